//! The connection for commands: that it is lost is noticed by whoever uses it, and mended by who tends to the channels.

use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, IntoConnectionInfo, ServerErrorKind, Value,
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

use super::{
    call::Call,
    said::{has_code, refused},
    scripts::Script,
};
use crate::{
    Error,
    engine::Answer,
    sync::{Mutex, assert_unlocked},
};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(1);

/// How long a command may take: a black hole is noticed by then.
const RESPOND: Duration = Duration::from_secs(2);

/// The codes with which Redis refuses a command before it runs it.
const BEFORE: [&str; 7] = ["BUSY", "CROSSSLOT", "MISCONF", "MOVED", "NOPERM", "NOREPLICAS", "NOSCRIPT"];

/// The codes after which a new connection may lead to another server: a replica since a failover, or a server that loads.
const RECONNECT: [&str; 5] = ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH"];

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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

    /// The number of the database that the URL names.
    pub(super) fn database(&self) -> i64 {
        self.client.get_connection_info().redis_settings().db()
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
            drop(script.load().exec_async(connection).await);
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
        let mut said = call.command.query_async(&mut connection).await;
        // The script was never loaded, or was flushed, so nothing was done.
        if said.as_ref().is_err_and(is_unknown_script) {
            said = call.whole().query_async(&mut connection).await;
        }
        said.map_err(|error| self.judge(&error, kind, number))
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

/// Converts an error of a command. The result says that nothing was done only if that is certain. Returns also whether a new
/// connection is needed.
fn convert(error: &redis::RedisError, kind: Kind) -> (Error, bool) {
    let (ErrorKind::Server(_) | ErrorKind::Extension) = error.kind() else {
        return (if kind == Kind::Write { Error::Uncertain } else { Error::Unreachable }, true);
    };
    let text = [error.code(), error.detail()].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let has = |code: &&str| has_code(&text, code);
    if RECONNECT.iter().any(has) {
        return (Error::Unreachable, true);
    }
    // A script that has changed something is neither refused for lack of memory nor killed.
    let unchanged = has_code(&text, "OOM") || text.contains("Script killed by user");
    let before = BEFORE.iter().any(has) && !text.contains("user_script");
    (if kind == Kind::Read || unchanged || before { refused(&text) } else { Error::Uncertain }, false)
}

fn is_unknown_script(error: &redis::RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_reported_as_not_done_only_if_redis_has_not_begun_it() {
        use ServerErrorKind::{BusyLoading, NoPerm, ReadOnly, ResponseError};
        let converted = |kind, text: &str, write| {
            let (error, lost) = convert(&(ErrorKind::Server(kind), "", text.to_owned()).into(), write);
            let word = match error {
                Error::Engine(_) => "engine",
                Error::Full(_) => "full",
                Error::Unreachable => "unreachable",
                Error::Uncertain => "uncertain",
                other => panic!("{other:?}"),
            };
            (word, lost)
        };
        let killed = "Error running script: @user_script: 1: Script killed by user with SCRIPT KILL...";
        let refused = "The user executing the script can't run this command script: 00, on @user_script:9.";
        let old = "Error running script (call to f_00): @user_script:9: @user_script: 9: ";
        for (kind, text, write, read) in [
            (NoPerm, "No permissions to access a key", ("engine", false), ("engine", false)),
            (NoPerm, refused, ("uncertain", false), ("engine", false)),
            (ResponseError, refused, ("uncertain", false), ("engine", false)),
            (ResponseError, "something that only a proxy says", ("uncertain", false), ("engine", false)),
            (ResponseError, killed, ("engine", false), ("engine", false)),
            (ResponseError, &format!("{old}-OOM command not allowed"), ("full", false), ("full", false)),
            (ResponseError, &format!("{old}-READONLY You can't write"), ("unreachable", true), ("unreachable", true)),
            (
                ResponseError,
                "READONLY You can't write script: 00, on @user_script:9.",
                ("unreachable", true),
                ("unreachable", true),
            ),
            (ReadOnly, "You can't write script: 00, on @user_script:9.", ("unreachable", true), ("unreachable", true)),
            (BusyLoading, "Redis is loading the dataset in memory", ("unreachable", true), ("unreachable", true)),
        ] {
            assert_eq!(converted(kind, text, Kind::Write), write, "{text}");
            assert_eq!(converted(kind, text, Kind::Read), read, "{text}");
        }
        let cut = || io::Error::from(io::ErrorKind::BrokenPipe).into();
        assert!(matches!(convert(&cut(), Kind::Write), (Error::Uncertain, true)));
        assert!(matches!(convert(&cut(), Kind::Read), (Error::Unreachable, true)));
    }
}
