//! Broadcasts with a remote engine.
//!
//! The node that broadcasts appends to all channels that the engine stores, and to the names that have waiters in this
//! process and no channel. It does not know which names without a channel have waiters on other nodes. Therefore it
//! announces the broadcast first, and each other node appends to such names itself. Several nodes may append to one
//! channel: the engine recognises the broadcast's id, and appends it once.

use futures_util::stream::{FuturesUnordered, StreamExt};
use matchit::Router;
use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    Append, Appended, Registry,
    entry::Entry,
    map::Walk,
    slice::{Slice, yield_now},
};
use crate::{
    Error,
    engine::{Announcement, Batch, Listed, Remote},
};

/// How many channels the broadcasting node appends to at a time: what Redis does in some 15 ms, in one round trip.
const APPENDS: usize = 768;

/// How many channels a node appends to at a time for the broadcasts of others.
const RELAYED: usize = 16;

/// How many broadcasts of other nodes a node queues, and how many bytes. It drops those beyond.
const QUEUED: usize = 1_024;
const QUEUED_BYTES: usize = 64 * 1024 * 1024;

/// The longest time between the announcement of a broadcast and its receipt, in milliseconds.
const DELAY: u64 = 5_000;

/// Appends a broadcast to all channels whose names match its pattern, and to matching names that have waiters in this
/// process and no channel. Returns how many of these have the broadcast, whichever node has appended it.
pub(super) async fn broadcast(
    registry: &Arc<Registry>,
    remote: &Arc<dyn Remote>,
    names: &Router<()>,
    pattern: String,
    batch: Batch,
) -> Result<usize, Error> {
    let broadcast = Announcement { id: fastrand::u64(..), pattern, batch };
    if broadcast.batch.size() > registry.limits.append {
        return Err(Error::TooLarge { limit: registry.limits.append });
    }
    // Announced before this node requests the names, so that no channel is missed that is created meanwhile: either the
    // names include it, or the node that receives the announcement has found it within the last `DELAY`.
    remote.announce(&broadcast).await?;
    let mut making = OwnBroadcast::new(registry.clone(), remote.clone(), broadcast);
    making.absent(names).await;
    making.stored(names).await?;
    match making.failed.or(making.refused) {
        Some(error) => Err(error),
        None => Ok(making.reached.len()),
    }
}

type Appending = Pin<Box<dyn Future<Output = Result<Appended, Error>> + Send>>;

/// The progress of a broadcast of this node.
struct OwnBroadcast {
    registry: Arc<Registry>,
    remote: Arc<dyn Remote>,
    broadcast: Arc<Announcement>,
    /// The names to append to next.
    next: Vec<String>,
    /// Of each of them, with which the engine forgets it if it has no channel.
    stale: Vec<Option<u64>>,
    /// The names without a channel to which the broadcast was appended.
    created: HashSet<String>,
    /// The hashes of the channels that have the broadcast: the engine may list a name twice, and it counts once.
    reached: HashSet<u64>,
    /// The error of one channel, which did not stop the broadcast: a limit was reached, or its keys cannot be read.
    refused: Option<Error>,
    /// The error that stopped the broadcast: usually, the engine is unreachable.
    failed: Option<Error>,
}

impl OwnBroadcast {
    fn new(registry: Arc<Registry>, remote: Arc<dyn Remote>, broadcast: Announcement) -> Self {
        Self {
            registry,
            remote,
            broadcast: Arc::new(broadcast),
            next: Vec::new(),
            stale: Vec::new(),
            created: HashSet::new(),
            reached: HashSet::new(),
            refused: None,
            failed: None,
        }
    }

    /// Appends to the names that have waiters in this process and, as far as it knows, no channel.
    async fn absent(&mut self, names: &Router<()>) {
        let (registry, mut walk, mut slice) = (self.registry.clone(), Walk::default(), Slice::new());
        while let Some(entry) = registry.map.next(&mut walk) {
            if matches!(target(&entry, None), Some(RelayTarget::Absent)) && names.at(entry.name()).is_ok() {
                self.created.insert(entry.name().to_owned());
                self.add(Listed { name: entry.name().to_owned(), stale: None }, RelayTarget::Absent).await;
            }
            pause(&mut slice).await;
        }
        self.append(RelayTarget::Absent).await;
    }

    /// Appends to channels that the engine stores. Does not recreate those that have ended meanwhile.
    async fn stored(&mut self, names: &Router<()>) -> Result<(), Error> {
        let (remote, mut slice) = (self.remote.clone(), Slice::new());
        let mut walk = remote.names();
        while self.failed.is_none() {
            let Some(page) = walk.next().await? else { break };
            for listed in page {
                if names.at(&listed.name).is_ok() && !self.created.contains(&listed.name) {
                    self.add(listed, RelayTarget::Exists).await;
                }
                pause(&mut slice).await;
            }
        }
        self.append(RelayTarget::Exists).await;
        Ok(())
    }

    /// Appends to a channel, together with others.
    async fn add(&mut self, listed: Listed, target: RelayTarget) {
        if let Err(error) = self.registry.check_name(&listed.name) {
            self.refused = Some(error);
            return;
        }
        self.next.push(listed.name);
        self.stale.push(listed.stale);
        if self.next.len() == APPENDS {
            self.append(target).await;
        }
    }

    /// Appends to the channels that have been added.
    async fn append(&mut self, target: RelayTarget) {
        let (names, stale) = (mem::take(&mut self.next), mem::take(&mut self.stale));
        if names.is_empty() || self.failed.is_some() {
            return;
        }
        let (registry, broadcast) = (self.registry.clone(), self.broadcast.clone());
        let append = part(&registry, &broadcast, target);
        let appended = match registry.append_each(&*self.remote, &names, &append).await {
            Ok(appended) => appended,
            Err(error) => {
                self.failed = Some(error);
                return;
            }
        };
        let mut ended = Vec::new();
        for ((name, stale), appended) in names.into_iter().zip(stale).zip(appended) {
            match appended {
                Ok(_) => _ = self.reached.insert(self.registry.map.hash(&name)),
                Err(Error::Unknown) if stale.is_some() => ended.push(Listed { name, stale }),
                // Closed, of another type, deleted or expired meanwhile.
                Err(Error::Closed | Error::ContentType { .. } | Error::Gone(_) | Error::Unknown) => {}
                Err(error @ (Error::Full(_) | Error::Engine(_) | Error::Layout { .. })) => self.refused = Some(error),
                Err(error) => self.failed = Some(error),
            }
        }
        if !ended.is_empty() {
            // If this fails, the next walk lists them again.
            drop(self.remote.forget(&ended).await);
        }
    }
}

/// Lets other tasks run after each slice.
async fn pause(slice: &mut Slice) {
    if slice.step() {
        yield_now().await;
        *slice = Slice::new();
    }
}

async fn append(
    registry: Arc<Registry>,
    broadcast: Arc<Announcement>,
    name: String,
    target: RelayTarget,
) -> Result<Appended, Error> {
    registry.append(&name, part(&registry, &broadcast, target)).await
}

/// The append of a broadcast to one channel.
fn part<'a>(registry: &'a Registry, broadcast: &Announcement, target: RelayTarget) -> Append<'a> {
    Append {
        batch: Some(broadcast.batch.clone()),
        create: matches!(target, RelayTarget::Absent).then_some(registry.json()),
        broadcast: Some(broadcast.id),
        ..Append::default()
    }
}

/// A name that this node appends a broadcast to.
#[derive(Clone, Copy, Debug)]
enum RelayTarget {
    /// It has waiters and no channel, which the append creates.
    Absent,
    Exists,
}

/// Returns whether this node appends a broadcast to this name, and to what. `received` is the time at which this node
/// received the broadcast, or `None` if the broadcast is its own.
///
/// If this node found the channel less than `DELAY` before `received`, or later, the channel may not have existed when
/// the other node requested the names. It may have no waiters now: they were woken, and their clients are about to
/// return.
fn target(entry: &Entry, received: Option<u64>) -> Option<RelayTarget> {
    let state = entry.lock();
    if state.log.is_none() {
        return (state.waiters.len() > 0).then_some(RelayTarget::Absent);
    }
    let found = state.replica.as_ref()?.found?;
    (found.saturating_add(DELAY) >= received?).then_some(RelayTarget::Exists)
}

/// Relays the broadcasts of other nodes, one after the other. The maintenance task polls this along with its other
/// work.
#[derive(Default)]
pub(super) struct Relay {
    queue: VecDeque<(Announcement, u64)>,
    bytes: usize,
    current: Option<Relaying>,
    appends: FuturesUnordered<Appending>,
}

/// A broadcast that is being relayed.
struct Relaying {
    names: Router<()>,
    broadcast: Arc<Announcement>,
    /// On the registry's clock.
    received: u64,
    walk: Walk,
}

impl Relay {
    /// Queues a broadcast that was received.
    pub(super) fn push(&mut self, broadcast: Announcement, now: u64) {
        let bytes = self.bytes + broadcast.batch.size();
        if self.queue.len() < QUEUED && bytes <= QUEUED_BYTES {
            self.bytes = bytes;
            self.queue.push_back((broadcast, now));
        }
    }

    /// Polls the appends in flight, and starts as many more as `RELAYED` and the slice allow.
    pub(super) fn poll(&mut self, registry: &Arc<Registry>, slice: &mut Slice, cx: &mut Context<'_>) {
        loop {
            // The results are ignored: the waiters read what was appended.
            while let Poll::Ready(Some(_)) = self.appends.poll_next_unpin(cx) {}
            if self.current.is_none() && !self.begin() {
                return;
            }
            let Some(current) = &mut self.current else { continue };
            if self.appends.len() >= RELAYED {
                return;
            }
            match registry.map.next(&mut current.walk) {
                Some(entry) => {
                    let target = target(&entry, Some(current.received));
                    if let Some(target) = target.filter(|_| current.names.at(entry.name()).is_ok()) {
                        let (registry, broadcast) = (registry.clone(), current.broadcast.clone());
                        self.appends.push(Box::pin(append(registry, broadcast, entry.name().to_owned(), target)));
                    }
                }
                // The next broadcast waits for the last append of this one, so that each channel has them in the order
                // of their receipt.
                None if self.appends.is_empty() => self.current = None,
                None => return,
            }
            if slice.step() {
                cx.waker().wake_by_ref();
                return;
            }
        }
    }

    /// Starts the next broadcast. Returns whether there was one. `current` stays `None` if its pattern is malformed.
    fn begin(&mut self) -> bool {
        let Some((broadcast, received)) = self.queue.pop_front() else { return false };
        self.bytes -= broadcast.batch.size();
        let mut names = Router::new();
        if names.insert(&*broadcast.pattern, ()).is_ok() {
            let (broadcast, walk) = (Arc::new(broadcast), Walk::default());
            self.current = Some(Relaying { names, broadcast, received, walk });
        }
        true
    }
}
