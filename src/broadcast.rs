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

use crate::{
    Error, Limit,
    change::block_on,
    engine::Batch,
    registry::{Append, Registry, Walk, Woken, sliced},
};
#[cfg(feature = "redis")]
use crate::{engine::Announcement, registry};

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
        let broadcast = broadcast(this.registry.clone(), ready);
        this.running.insert(Box::pin(broadcast)).as_mut().poll(cx)
    }
}

/// The progress of a broadcast with the logs in memory.
struct Publishing {
    registry: Arc<Registry>,
    names: Router<()>,
    batch: Batch,
    reached: usize,
    full: Option<Limit>,
    /// An error that stopped the broadcast, because no channel can store the message.
    failed: Option<Error>,
}

async fn broadcast(registry: Arc<Registry>, ready: Result<Ready, Error>) -> Result<usize, Error> {
    let Ready { names, pattern, batch } = ready?;
    #[cfg(feature = "redis")]
    if let Some(remote) = registry.remote() {
        let announcement = Announcement { id: fastrand::u64(..), pattern, batch };
        return registry::broadcast(&registry, remote, &names, announcement).await;
    }
    #[cfg(not(feature = "redis"))]
    drop(pattern);
    let mut publishing = Publishing { registry, names, batch, reached: 0, full: None, failed: None };
    publishing.publish().await;
    if let Some(error) = publishing.failed {
        return Err(error);
    }
    publishing.full.map_or(Ok(publishing.reached), |limit| Err(Error::Full(limit)))
}

impl Publishing {
    /// Appends to the matching names of the map, one slice in each poll.
    async fn publish(&mut self) {
        let (registry, mut walk, mut woken) = (self.registry.clone(), Walk::default(), Woken::nobody());
        let (now, mut retried) = (registry.now(), None);
        sliced(|slice| {
            loop {
                if !registry.finish(&mut woken, slice) {
                    return false;
                }
                let Some(name) = retried.take().or_else(|| registry.next_name(&mut walk)) else { return true };
                if self.names.at(&name).is_ok() {
                    let appended = registry.append(&name, &mut self.append(&registry)).map(|(_, woken)| woken);
                    if matches!(appended, Err(Error::Full(_))) {
                        // The append has evicted expired channels for a slice, which did not make enough room.
                        if registry.may_have_room(now) {
                            retried = Some(name);
                        } else {
                            self.note(appended).wake();
                        }
                        return false;
                    }
                    woken = self.note(appended);
                    if self.failed.is_some() {
                        return true;
                    }
                }
                if slice.step() {
                    return false;
                }
            }
        })
        .await;
    }

    fn append<'a>(&self, registry: &'a Registry) -> Append<'a> {
        let create = Some(registry.json());
        // In memory, a broadcast appends to each channel once, so the id is not compared.
        Append { batch: Some(self.batch.clone()), create, broadcast: Some(0), ..Append::default() }
    }

    fn note(&mut self, appended: Result<Woken, Error>) -> Woken {
        match appended {
            Ok(woken) => {
                self.reached += 1;
                return woken;
            }
            Err(Error::Full(limit)) => self.full = Some(limit),
            // The channel is closed, has another type, was deleted, or has no waiters any more.
            Err(Error::Closed | Error::ContentType { .. } | Error::Gone(_) | Error::Unknown) => {}
            Err(error) => self.failed = Some(error),
        }
        Woken::nobody()
    }
}

impl fmt::Debug for Broadcast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broadcast").finish_non_exhaustive()
    }
}
