//! The connection for commands: that it is lost is noticed by whoever uses it, and mended by who tends to the channels.

use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, IntoConnectionInfo, Script, ServerErrorKind, Value,
    aio::MultiplexedConnection,
};
use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::runtime::Handle;

use super::call::Call;
use crate::{
    Error, Limit,
    engine::Answer,
    sync::{Mutex, assert_unlocked},
};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(1);

/// How long a command may take: a black hole is noticed by then.
const RESPOND: Duration = Duration::from_secs(2);

/// How often a script is loaded again that was flushed meanwhile.
const LOADS: usize = 5;

pub(super) struct Link {
    client: Client,
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
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

impl Link {
    pub(super) fn new(url: &str) -> Result<Self, RedisError> {
        let info = url.into_connection_info().map_err(RedisError)?;
        // Otherwise Nagle's algorithm delays a command until the previous ones are acknowledged: by up to a round trip.
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let client = Client::open(info.set_tcp_settings(tcp)).map_err(RedisError)?;
        #[cfg(feature = "redis-rustls")]
        check_provider(&client)?;
        Ok(Self { client, runtime: Handle::current(), state: Mutex::new(State::default()) })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Says whether Redis is there, and errs if it says no.
    pub(super) async fn try_out(&self) -> Result<bool, RedisError> {
        match self.open().await {
            Ok(_) => Ok(true),
            Err(error) if is_refusal(&error) => Err(RedisError(error)),
            Err(_) => Ok(false),
        }
    }

    /// Opens a connection in place of the one that there is, which is used until then: it may be the subscriber's alone that was
    /// lost. The script is there from the beginning: appends that find it missing would not be made in the order in which they were sent.
    pub(super) async fn connect(&self, script: &Script) -> Result<(), Error> {
        let mut opened = self.open().await;
        if let Ok(connection) = &mut opened {
            // Who may not load it, or may not yet, finds out when it is run.
            drop(script.load_async(connection).await);
        }
        let opened = opened.ok();
        let is_open = opened.is_some();
        let mut state = self.state.lock();
        state.number += 1;
        // Dropped after the lock is released, because the drop wakes the task that drives the connection.
        let before = mem::replace(&mut state.connection, opened);
        drop(state);
        drop(before);
        if is_open { Ok(()) } else { Err(Error::Unreachable) }
    }

    async fn open(&self) -> Result<MultiplexedConnection, redis::RedisError> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(RESPOND));
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        redis::cmd("PING").exec_async(&mut connection).await?;
        // A replica answers everything but what is needed. Who may not ask for the role finds out later.
        if let Ok(Value::Array(role)) = redis::cmd("ROLE").query_async(&mut connection).await {
            if !matches!(role.first(), Some(Value::BulkString(role)) if role == b"master") {
                return Err((ErrorKind::Server(ServerErrorKind::ReadOnly), "this is a replica").into());
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
    pub(super) async fn read(&self, call: &Call<'_>) -> Result<Value, Error> {
        self.run(call, Kind::Read).await
    }

    /// Runs a script whose outcome matters.
    pub(super) async fn write(&self, call: &Call<'_>) -> Result<Value, Error> {
        self.run(call, Kind::Write).await
    }

    async fn run(&self, call: &Call<'_>, kind: Kind) -> Result<Value, Error> {
        let (mut connection, number) = self.connection()?;
        let mut loads = LOADS;
        loop {
            let mut said = call.command.query_async(&mut connection).await;
            // It was never loaded, or flushed again before it was run: nothing was done.
            if loads > 0 && said.as_ref().is_err_and(|error: &redis::RedisError| is_unknown_script(error)) {
                loads -= 1;
                match call.script.load_async(&mut connection).await {
                    Ok(_) => continue,
                    Err(error) => said = Err(error),
                }
            }
            return said.map_err(|error| self.judge(&error, kind, number));
        }
    }

    /// Lets a future use the runtime's clock and sockets, whoever polls it: a thread may, that has none.
    pub(super) fn within<'a, T, F>(&self, future: F) -> Answer<'a, T>
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

    /// What an error says about what was asked for, on the connection of this number.
    fn judge(&self, error: &redis::RedisError, kind: Kind, number: u64) -> Error {
        match error.kind() {
            // Redis has refused it: nothing was done. Out of memory is a limit like any other.
            ErrorKind::Server(_) | ErrorKind::Extension if says(error, "OOM") => Error::Full(Limit::History),
            ErrorKind::Server(_) | ErrorKind::Extension => {
                // A replica since a failover, or loading: another connection may lead to another server.
                if ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH"].iter().any(|word| says(error, word)) {
                    self.lose(number);
                }
                Error::Unreachable
            }
            _ => {
                self.lose(number);
                if kind == Kind::Write { Error::Uncertain } else { Error::Unreachable }
            }
        }
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

fn is_unknown_script(error: &redis::RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Whether an error is of this kind. Before Redis 7 what goes wrong in a script is told within another error.
fn says(error: &redis::RedisError, word: &str) -> bool {
    error.code() == Some(word) || error.detail().is_some_and(|detail| detail.contains(&format!("-{word} ")))
}

/// Whether it was Redis that said no, or the URL cannot be right; and not that nobody was there, or that there are too many.
fn is_refusal(error: &redis::RedisError) -> bool {
    match error.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => true,
        // A certificate that is not trusted.
        ErrorKind::Io if is_nonsense(error) => true,
        _ if error.detail().is_some_and(|detail| detail.contains("max number of clients")) => false,
        _ => matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM" | "ERR")),
    }
}

/// Whether somebody was there, and could not be understood or believed.
fn is_nonsense(error: &redis::RedisError) -> bool {
    // The client shares its sources.
    let source = error.source().and_then(|source| source.downcast_ref::<Arc<dyn StdError + Send + Sync>>());
    source.and_then(|source| source.downcast_ref::<io::Error>()).is_some_and(|e| e.kind() == io::ErrorKind::InvalidData)
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

/// Redis cannot be used: see [`RedisBuilder::connect`](crate::RedisBuilder::connect).
pub struct RedisError(redis::RedisError);

impl fmt::Display for RedisError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis cannot be used: {}", self.0)
    }
}

impl fmt::Debug for RedisError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisError").field(&self.0).finish()
    }
}

impl std::error::Error for RedisError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}
