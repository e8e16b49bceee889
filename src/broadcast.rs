//! The future of a broadcast.

use matchit::Router;
use serde::Serialize;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{Error, change::block_on, engine::Batch, registry::Registry};

/// A message to many channels: see [`Comet::broadcast`](crate::Comet::broadcast). The future resolves to the number of
/// channels that have the message.
///
/// With the logs in memory, it appends to a few hundred channels in each poll, and lets other tasks run in between. On Redis,
/// it appends to up to 768 channels at a time, in one round trip.
///
/// # Cancel safety
///
/// Nothing happens before the first poll. A broadcast that is dropped before it is ready has been published to some
/// channels and not to others; all waiters of the former are woken. On Redis, the other nodes complete their part.
#[must_use = "nothing is published until this is awaited, or waited for with `.wait()`"]
pub struct Broadcast {
    registry: Arc<Registry>,
    ready: Option<Result<Ready, Error>>,
    running: Option<Pin<Box<dyn Future<Output = Result<usize, Error>> + Send>>>,
}

/// The checked arguments of a broadcast.
struct Ready {
    /// Matches names against the pattern.
    names: Router<()>,
    pattern: String,
    batch: Batch,
}

impl Broadcast {
    pub(crate) fn new<T: Serialize + ?Sized>(registry: Arc<Registry>, pattern: &str, value: &T) -> Self {
        let mut names = Router::new();
        let inserted = names.insert(pattern, ()).map_err(|error| Error::Pattern(error.into()));
        let ready =
            inserted.and_then(|()| Ok(Ready { names, pattern: pattern.to_owned(), batch: Batch::value(value)? }));
        Self { registry, ready: Some(ready), running: None }
    }

    /// Blocks the thread until the message is appended to all channels, for code outside a runtime: see
    /// [`Change::wait`](crate::Change::wait).
    ///
    /// # Errors
    ///
    /// Those of [`Comet::broadcast`](crate::Comet::broadcast).
    pub fn wait(self) -> Result<usize, Error> {
        block_on(self)
    }
}

impl Future for Broadcast {
    type Output = Result<usize, Error>;

    /// # Panics
    ///
    /// If polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(running) = &mut this.running {
            return running.as_mut().poll(cx);
        }
        let ready = this.ready.take().expect("`Broadcast` polled after it was ready");
        let registry = this.registry.clone();
        let broadcast = async move {
            let Ready { names, pattern, batch } = ready?;
            registry.broadcast(names, pattern, batch).await
        };
        this.running.insert(Box::pin(broadcast)).as_mut().poll(cx)
    }
}

impl fmt::Debug for Broadcast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broadcast").finish_non_exhaustive()
    }
}
