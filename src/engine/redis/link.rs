//! The connection for commands: that it is lost is noticed by whoever uses it, and mended by who tends to the channels.

use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, ScriptInvocation, Value, aio::MultiplexedConnection};
use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::runtime::Handle;

use crate::{Error, Limit, engine::Answer};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(1);

/// How long a command may take: a black hole is noticed by then.
const RESPOND: Duration = Duration::from_secs(2);

pub(super) struct Link {
    client: Client,
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
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
        let client = Client::open(url).map_err(RedisError)?;
        Ok(Self { client, runtime: Handle::current(), state: Mutex::new(State::default()) })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) async fn try_out(&self) -> Result<(), RedisError> {
        match self.open().await {
            Err(error) if is_refusal(&error) => Err(RedisError(error)),
            _ => Ok(()),
        }
    }

    pub(super) async fn connect(&self) -> Result<(), Error> {
        self.state().connection = None;
        let connection = self.open().await.map_err(|_| Error::Unreachable)?;
        self.state().connection = Some(connection);
        Ok(())
    }

    async fn open(&self) -> Result<MultiplexedConnection, redis::RedisError> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(RESPOND));
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        redis::cmd("PING").exec_async(&mut connection).await?;
        Ok(connection)
    }

    pub(super) fn poll_lost(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.connection.is_none() {
            return Poll::Ready(());
        }
        if !state.watcher.as_ref().is_some_and(|watcher| watcher.will_wake(cx.waker())) {
            state.watcher = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Reads something.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, Error> {
        let mut connection = self.connection()?;
        command.query_async(&mut connection).await.map_err(|error| self.judge(&error, Kind::Read))
    }

    /// Runs a script that changes nothing but what time would.
    pub(super) async fn read(&self, script: &ScriptInvocation<'_>) -> Result<Value, Error> {
        let mut connection = self.connection()?;
        script.invoke_async(&mut connection).await.map_err(|error| self.judge(&error, Kind::Read))
    }

    /// Runs a script whose outcome matters.
    pub(super) async fn write(&self, script: &ScriptInvocation<'_>) -> Result<Value, Error> {
        let mut connection = self.connection()?;
        script.invoke_async(&mut connection).await.map_err(|error| self.judge(&error, Kind::Write))
    }

    /// Lets a future use the runtime's clock and sockets, whoever polls it: a thread may, that has none.
    pub(super) fn within<'a, T, F>(&self, future: F) -> Answer<'a, T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'a,
    {
        Box::pin(Within { runtime: self.runtime.clone(), future: Box::pin(future) })
    }

    fn connection(&self) -> Result<MultiplexedConnection, Error> {
        self.state().connection.clone().ok_or(Error::Unreachable)
    }

    /// What an error says about what was asked for.
    fn judge(&self, error: &redis::RedisError, kind: Kind) -> Error {
        match error.kind() {
            // Redis has refused it: nothing was done. Out of memory is a limit like any other.
            _ if error.code() == Some("OOM") => Error::Full(Limit::History),
            ErrorKind::Server(_) | ErrorKind::Extension => {
                // A replica since a failover, or loading: another connection may lead to another server.
                if matches!(error.code(), Some("READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOAUTH")) {
                    self.lose();
                }
                Error::Unreachable
            }
            _ => {
                self.lose();
                if kind == Kind::Write { Error::Uncertain } else { Error::Unreachable }
            }
        }
    }

    fn lose(&self) {
        let mut state = self.state();
        state.connection = None;
        let watcher = state.watcher.take();
        drop(state);
        if let Some(watcher) = watcher {
            watcher.wake();
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Whether it was Redis that said no, or the URL cannot be right; and not that nobody was there.
fn is_refusal(error: &redis::RedisError) -> bool {
    match error.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => true,
        // A certificate that is not trusted.
        ErrorKind::Io if is_nonsense(error) => true,
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
