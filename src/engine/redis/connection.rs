//! The connection for commands: that it is lost is noticed by whoever uses it, and mended by who tends to the channels.

use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, IntoConnectionInfo, ServerErrorKind, Value,
    aio::MultiplexedConnection,
};
use std::{
    future::Future,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{runtime::Handle, time::timeout};

use super::{
    diagnose::explain,
    errors::{RedisError, cause, convert, explained, is_refusal, is_unknown_script},
    script_call::ScriptCall,
    scripts::Script,
};
use crate::{
    Error,
    engine::RemoteFuture,
    sync::{Mutex, assert_unlocked},
};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(1);

/// How long a command may take: a black hole is noticed by then.
const RESPOND: Duration = Duration::from_secs(2);

/// Returns the user's name, empty for the default user, and the password. Called for each connection.
pub(crate) type Credentials = Arc<dyn Fn() -> (String, String) + Send + Sync>;

pub(super) struct Connection {
    client: Client,
    credentials: Option<Credentials>,
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
    /// Counts the connections: what goes wrong late on one that was before is not this one's fault.
    number: u64,
    /// Who waits for the connection to be lost.
    watcher: Option<Waker>,
}

/// Whether a command changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

impl Connection {
    pub(super) fn new(url: &str, credentials: Option<Credentials>) -> Result<Self, RedisError> {
        let info = url.into_connection_info().map_err(RedisError)?;
        // Otherwise Nagle's algorithm delays a command until the previous ones are acknowledged: by up to a round trip.
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let client = Client::open(info.set_tcp_settings(tcp)).map_err(RedisError)?;
        #[cfg(feature = "redis-rustls")]
        check_provider(&client)?;
        Ok(Self { client, credentials, runtime: Handle::current(), state: Mutex::new(State::default()) })
    }

    /// The client for a new connection, with the present credentials.
    pub(super) fn client(&self) -> Result<Client, redis::RedisError> {
        let Some(credentials) = &self.credentials else { return Ok(self.client.clone()) };
        assert_unlocked();
        // A panic must not end the maintenance task.
        let (user, password) = catch_unwind(AssertUnwindSafe(|| credentials())).map_err(|_| {
            redis::RedisError::from((ErrorKind::Client, "the application's credentials function panicked"))
        })?;
        let info = self.client.get_connection_info().clone();
        let mut settings = info.redis_settings().clone().set_password(password);
        if !user.is_empty() {
            settings = settings.set_username(user);
        }
        Client::open(info.set_redis_settings(settings))
    }

    /// The number of the database that the URL names.
    pub(super) fn database(&self) -> i64 {
        self.client.get_connection_info().redis_settings().db()
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Returns whether a connection can be opened, `trial` run on it, and `topic` subscribed to on another one; an error if
    /// that will never be.
    pub(super) async fn try_out(&self, trial: &ScriptCall<'_>, topic: &str) -> Result<bool, RedisError> {
        let tried = async {
            let mut connection = self.open().await?;
            run_trial(trial, &mut connection).await.map_err(explained)?;
            subscribe(&mut connection, topic).await
        };
        match timeout(CONNECT + RESPOND, tried).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) if is_refusal(&error) => Err(RedisError(error)),
            Ok(Err(_)) | Err(_) => Ok(false),
        }
    }

    /// Returns an error with the cause if Redis refuses a subscription. The client's subscriber would ignore it.
    pub(super) async fn check_subscription(&self, topic: &str) -> Result<(), Error> {
        let checked = async { subscribe(&mut self.open().await?, topic).await };
        checked.await.map_err(|error| cause(&error))
    }

    /// Opens a connection in place of the one that there is, which is used until then: it may be the subscriber's alone that was
    /// lost. The script is there from the beginning: appends that find it missing would not be made in the order in which they were sent.
    pub(super) async fn connect(&self, script: &Script) -> Result<(), Error> {
        let mut opened = self.open().await;
        if let Ok(connection) = &mut opened {
            // Who may not load it, or may not yet, finds out when it is run.
            drop(script.load().exec_async(connection).await);
        }
        let (opened, failed) = match opened {
            Ok(connection) => (Some(connection), None),
            Err(error) => (None, Some(error)),
        };
        let mut state = self.state.lock();
        state.number += 1;
        // Dropped after the lock is released, because the drop wakes the task that drives the connection.
        let before = mem::replace(&mut state.connection, opened);
        drop(state);
        drop(before);
        failed.map_or(Ok(()), |error| Err(cause(&error)))
    }

    async fn open(&self) -> Result<MultiplexedConnection, redis::RedisError> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(RESPOND));
        let client = self.client()?;
        let opened = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            redis::cmd("PING").exec_async(&mut connection).await.map(|()| connection)
        };
        let mut connection = match opened.await {
            Ok(connection) => connection,
            Err(error) => return Err(explain(&client, error).await),
        };
        // A replica answers everything but what is needed. Who may not ask for the role finds out later.
        if let Ok(Value::Array(role)) = redis::cmd("ROLE").query_async(&mut connection).await {
            match role.first() {
                Some(Value::BulkString(role)) if role == b"master" => {}
                Some(Value::BulkString(role)) if role == b"sentinel" => {
                    let what = "this is a Redis Sentinel, which is not supported: the URL must lead to the primary";
                    return Err((ErrorKind::InvalidClientConfig, what).into());
                }
                _ => {
                    let what = "this server is a replica: the URL must lead to the primary".to_owned();
                    return Err((ErrorKind::Server(ServerErrorKind::ReadOnly), "", what).into());
                }
            }
        }
        Ok(connection)
    }

    pub(super) fn poll_lost(&self, cx: &Context<'_>) -> Poll<()> {
        let watcher = cx.waker().clone();
        // Declared before the lock is taken, so dropped after it is released.
        let _replaced;
        let mut state = self.state.lock();
        if state.connection.is_none() {
            return Poll::Ready(());
        }
        _replaced = state.watcher.replace(watcher);
        Poll::Pending
    }

    /// Reads something.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, Error> {
        let (mut connection, number) = self.connection()?;
        command.query_async(&mut connection).await.map_err(|error| self.judge(&error, Kind::Read, number))
    }

    /// Runs a command whose outcome matters.
    pub(super) async fn tell(&self, command: &Cmd) -> Result<Value, Error> {
        let (mut connection, number) = self.connection()?;
        command.query_async(&mut connection).await.map_err(|error| self.judge(&error, Kind::Write, number))
    }

    /// Runs a script that changes nothing but what time would.
    pub(super) async fn read(&self, call: &ScriptCall<'_>) -> Result<Value, Error> {
        self.run(call, Kind::Read).await
    }

    /// Runs a script whose outcome matters.
    pub(super) async fn write(&self, call: &ScriptCall<'_>) -> Result<Value, Error> {
        self.run(call, Kind::Write).await
    }

    /// Runs a script to find out whether Redis allows it. The error has Redis's words, whatever was done.
    pub(super) async fn attempt(&self, call: &ScriptCall<'_>) -> Result<(), Error> {
        let (mut connection, number) = self.connection()?;
        run_trial(call, &mut connection).await.map_err(|error| match self.judge(&error, Kind::Read, number) {
            error @ Error::Full(_) => error,
            _ => cause(&error),
        })
    }

    pub(super) async fn run(&self, call: &ScriptCall<'_>, kind: Kind) -> Result<Value, Error> {
        let (mut connection, number) = self.connection()?;
        let mut said = call.command.query_async(&mut connection).await;
        // The script was never loaded, or was flushed, so nothing was done.
        if said.as_ref().is_err_and(is_unknown_script) {
            said = call.whole().query_async(&mut connection).await;
        }
        said.map_err(|error| self.judge(&error, kind, number))
    }

    /// Lets a future use the runtime's clock and sockets, whoever polls it: a thread may, that has none.
    pub(super) fn within<'a, T, F>(&self, future: F) -> RemoteFuture<'a, T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'a,
    {
        Box::pin(Within { runtime: self.runtime.clone(), future: Box::pin(future) })
    }

    fn connection(&self) -> Result<(MultiplexedConnection, u64), Error> {
        let state = self.state.lock();
        let connection = state.connection.clone().ok_or(Error::Unreachable)?;
        Ok((connection, state.number))
    }

    /// Converts an error of a command on the connection of this number, and drops the connection if it is of no use any more.
    fn judge(&self, error: &redis::RedisError, kind: Kind, number: u64) -> Error {
        let (error, lost) = convert(error, kind);
        if lost {
            self.lose(number);
        }
        error
    }

    fn lose(&self, number: u64) {
        let mut state = self.state.lock();
        if state.number != number {
            return;
        }
        let (connection, watcher) = (state.connection.take(), state.watcher.take());
        drop(state);
        assert_unlocked();
        drop(connection);
        if let Some(watcher) = watcher {
            watcher.wake();
        }
    }
}

/// Without a provider, or with several, rustls would panic at the first connection.
#[cfg(feature = "redis-rustls")]
fn check_provider(client: &Client) -> Result<(), RedisError> {
    let encrypted = matches!(client.get_connection_info().addr(), redis::ConnectionAddr::TcpTls { .. });
    if !encrypted || rustls::crypto::CryptoProvider::get_default().is_some() {
        return Ok(());
    }
    let what = "no cryptography provider is installed for TLS: first thing in `main`, call \
                `rustls::crypto::ring::default_provider().install_default()`, or that of another provider";
    Err(RedisError((ErrorKind::InvalidClientConfig, what).into()))
}

/// Runs a script in both ways in which channels need it: Redis may allow one and not the other.
async fn run_trial(trial: &ScriptCall<'_>, connection: &mut MultiplexedConnection) -> Result<(), redis::RedisError> {
    trial.whole().exec_async(connection).await?;
    match trial.command.exec_async(connection).await {
        // Flushed since.
        Err(error) if is_unknown_script(&error) => Ok(()),
        ran => ran,
    }
}

/// Subscribes on a connection for commands, which is of no other use then.
async fn subscribe(connection: &mut MultiplexedConnection, topic: &str) -> Result<(), redis::RedisError> {
    redis::cmd("SUBSCRIBE").arg(topic).exec_async(connection).await
}

struct Within<F> {
    runtime: Handle,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        assert_unlocked();
        let this = &mut *self;
        let _within = this.runtime.enter();
        this.future.as_mut().poll(cx)
    }
}
