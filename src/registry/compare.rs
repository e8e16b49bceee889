//! Whether what is held of many channels is all there is: compared with their logs in few requests, and read only if it is not.

use std::{iter::repeat, sync::Arc};

use super::{Registry, entry::Entry, follow::ReplicaStage, waiters::WakeList};
use crate::engine::{CachedTail, Comparison, Remote};

impl Registry {
    /// Makes channels live of which all there is is held, and returns the others: they are to be read. After a lost connection
    /// those are few.
    pub(super) async fn confirm(&self, remote: &dyn Remote, entries: Vec<Arc<Entry>>) -> Vec<Arc<Entry>> {
        let mut to_read = Vec::new();
        let begun = |entry: &Arc<Entry>| {
            let mut state = entry.lock();
            let follow = state.replica.as_mut().filter(|follow| follow.stage == ReplicaStage::Reading && !follow.busy);
            follow.map(|follow| follow.busy = true).is_some()
        };
        let entries: Vec<_> = entries.into_iter().filter(begun).collect();
        let held: Vec<_> = entries.iter().map(|entry| self.held(entry)).collect();
        let seen = remote.compare(&held).await.unwrap_or_default();
        let seen = seen.into_iter().chain(repeat(Comparison::Other));
        for ((entry, held), seen) in entries.iter().zip(&held).zip(seen) {
            let Some((live, woken)) = self.confirm_one(entry, held, seen) else { continue };
            woken.contain().spread().await;
            if !live {
                to_read.push(entry.clone());
            }
        }
        to_read
    }

    /// Makes a channel live if its log matches the cached entries that were compared, and these have not changed since.
    /// Returns whether it is live, and the tasks to wake; `None` if the channel need not be confirmed any more.
    fn confirm_one(&self, entry: &Entry, held: &CachedTail<'_>, seen: Comparison) -> Option<(bool, WakeList)> {
        let mut state = entry.lock();
        let tail = state.known_tail().unwrap_or_else(|| state.remote_absent_tail());
        let now = self.now();
        let follow = state.replica.as_mut().filter(|follow| follow.stage == ReplicaStage::Reading)?;
        follow.note_check(now);
        // From here on nothing else reads it, or this does.
        follow.busy = false;
        if seen == Comparison::Same && tail == held.tail {
            return Some(self.go_live(&mut state, false, true));
        }
        Some((false, WakeList::nobody()))
    }

    /// Compares the cached entries of channels with their logs, and queues those that differ to be read. They stay live
    /// meanwhile. Also renews the idle lifetimes of channels with waiters.
    pub(super) async fn compare(&self, remote: &dyn Remote, entries: Vec<Arc<Entry>>) {
        let held: Vec<_> = entries.iter().map(|entry| self.held(entry)).collect();
        for (entry, seen) in entries.iter().zip(remote.compare(&held).await.unwrap_or_default()) {
            let mut state = entry.lock();
            let same = match seen {
                Comparison::Same => true,
                // The cached entries may have gone beyond it meanwhile.
                Comparison::At(tail) => state.log.as_ref().is_some_and(|kept| kept.log.has(tail) != Some(false)),
                Comparison::Other => false,
            };
            if !same {
                let tender = self.mark_stale(entry, &mut state);
                drop(state);
                tender.wake();
            }
        }
    }

    /// What is cached of a channel, for a request that is sent now.
    fn held<'a>(&self, entry: &'a Entry) -> CachedTail<'a> {
        let mut state = entry.lock();
        let touch = self.touch(&mut state);
        let (made, closed) = (state.log.is_some(), state.log.as_ref().is_some_and(|kept| kept.log.is_closed()));
        let tail = state.known_tail().unwrap_or_else(|| state.remote_absent_tail());
        CachedTail { name: entry.name(), tail, made, closed, touch }
    }
}
