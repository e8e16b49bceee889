//! The channels whose logs are to be read, or compared with the cached entries: a limited number at a time.

use futures_util::stream::{FuturesUnordered, StreamExt};
use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{Registry, entry::Entry, slice::Slice};
use crate::{engine::Remote, fault_injection::Invariant};

/// How many logs are read at a time.
const READS: usize = 64;

/// How many channels are compared in one request, and how many of those are under way: the engine does nothing else meanwhile.
/// A channel with an idle lifetime counts as `IDLE` channels, because renewing the lifetime takes so much longer.
const COMPARED: usize = 256;
const COMPARES: usize = 4;
const IDLE: usize = 8;

type RemoteWork<T> = Pin<Box<dyn Future<Output = T> + Send>>;

#[derive(Default)]
pub(super) struct Backlog {
    /// To be read unless what is held of them is all there is, in this order.
    to_confirm: VecDeque<Arc<Entry>>,
    /// To be read, in this order.
    pub(super) to_read: VecDeque<Arc<Entry>>,
    /// To be compared before all others, because that renews their idle lifetimes.
    pub(super) to_renew: VecDeque<Arc<Entry>>,
    /// To be compared, when there is nothing else.
    pub(super) to_compare: VecDeque<Arc<Entry>>,
    reads: FuturesUnordered<RemoteWork<()>>,
    /// Each leaves those that are to be read.
    compares: FuturesUnordered<RemoteWork<Vec<Arc<Entry>>>>,
}

impl Backlog {
    /// Queues a channel whose subscription was confirmed.
    pub(super) fn joined(&mut self, registry: &Registry, entry: Arc<Entry>) {
        if !registry.faults.holds(Invariant::Order) {
            return;
        }
        let was_live = match &entry.lock().replica {
            Some(follow) => follow.known,
            None => return,
        };
        if was_live && !registry.faults.holds(Invariant::ReadAgain) {
            return Registry::assume(&entry);
        }
        // If it was live, the cached entries are probably complete.
        let queue = if was_live { &mut self.to_confirm } else { &mut self.to_read };
        queue.push_back(entry);
    }

    /// Polls the requests in flight, and sends as many more as the limits and the slice allow.
    pub(super) fn poll(
        &mut self,
        registry: &Arc<Registry>,
        remote: &Arc<dyn Remote>,
        slice: &mut Slice,
        cx: &mut Context<'_>,
    ) {
        loop {
            while let Poll::Ready(Some(())) = self.reads.poll_next_unpin(cx) {
                slice.step();
            }
            while let Poll::Ready(Some(to_read)) = self.compares.poll_next_unpin(cx) {
                self.to_read.extend(to_read);
                slice.step();
            }
            if !self.begin_reads(registry, remote) && !self.begin_compares(registry, remote) {
                return;
            }
            if slice.is_over() {
                cx.waker().wake_by_ref();
                return;
            }
        }
    }

    /// Whether there was something to begin with.
    fn begin_reads(&mut self, registry: &Arc<Registry>, remote: &Arc<dyn Remote>) -> bool {
        let room = READS - self.reads.len();
        let begun = self.to_read.len().min(room);
        for entry in self.to_read.drain(..begun) {
            let (registry, remote) = (registry.clone(), remote.clone());
            self.reads.push(Box::pin(async move { registry.refresh(&*remote, &entry).await }));
        }
        begun > 0
    }

    fn begin_compares(&mut self, registry: &Arc<Registry>, remote: &Arc<dyn Remote>) -> bool {
        let before = self.compares.len();
        while self.compares.len() < COMPARES {
            let (registry, remote) = (registry.clone(), remote.clone());
            if !self.to_renew.is_empty() {
                let entries = first(&mut self.to_renew);
                self.compares.push(Box::pin(async move {
                    registry.compare(&*remote, entries).await;
                    Vec::new()
                }));
            } else if !self.to_confirm.is_empty() {
                let entries = first(&mut self.to_confirm);
                self.compares.push(Box::pin(async move { registry.confirm(&*remote, entries).await }));
            } else if !self.to_compare.is_empty() && self.to_read.is_empty() {
                let entries = first(&mut self.to_compare);
                self.compares.push(Box::pin(async move {
                    registry.compare(&*remote, entries).await;
                    Vec::new()
                }));
            } else {
                break;
            }
        }
        self.compares.len() > before
    }
}

/// Takes the channels of the next request from a queue.
fn first(queue: &mut VecDeque<Arc<Entry>>) -> Vec<Arc<Entry>> {
    let mut room = COMPARED;
    let fits = |entry: &&Arc<Entry>| {
        let idle = entry.lock().replica.as_ref().is_some_and(|follow| follow.idle.is_some());
        let left = room.checked_sub(if idle { IDLE } else { 1 });
        room = left.unwrap_or_default();
        left.is_some()
    };
    let count = queue.iter().take_while(fits).count();
    queue.drain(..count).collect()
}
