//! The walk of the maintenance task over all channels.

use std::sync::Arc;

use super::{
    Registry,
    backlog::Backlog,
    entry::Entry,
    follow::{CHECK, ReplicaStage},
    map::Walk,
    slice::Slice,
    subscriptions::Subscriptions,
};

/// How long a channel is followed after its last waiter, in milliseconds: a long-poll client is back within a few.
const LINGER: u64 = 15_000;

/// A walk over all channels. It stops following those that are no longer used, queues those whose last read failed to
/// be read again, and queues those that have been quiet to be compared.
pub(super) struct Round {
    walk: Walk,
    /// Whether this round queues channels to be compared: not while those of an earlier round are pending.
    compares: bool,
}

impl Round {
    pub(super) fn new(compares: bool) -> Self {
        Self { walk: Walk::default(), compares }
    }
}

impl Registry {
    /// Continues a round. Returns whether it is complete.
    pub(super) fn continue_round(
        &self,
        round: &mut Round,
        subscriptions: &mut Subscriptions,
        backlog: &mut Backlog,
        slice: &mut Slice,
    ) -> bool {
        while let Some(entry) = self.map.next(&mut round.walk) {
            if self.maintain(&entry, round.compares, backlog) {
                subscriptions.leave(entry.name());
                self.map.vacate(&entry);
            }
            if slice.step() {
                return false;
            }
        }
        true
    }

    /// Returns whether the channel is no longer followed.
    fn maintain(&self, entry: &Arc<Entry>, compares: bool, backlog: &mut Backlog) -> bool {
        let now = self.now();
        // Nobody keeps others out by asking for names that nobody uses.
        let linger = if self.usage.followed() > self.limits.channels / 2 { LINGER / 10 } else { LINGER };
        // Declared before the lock is taken, so dropped after it is released.
        let _tender;
        let mut state = entry.lock();
        let waited_on = state.waiters.len() > 0;
        if waited_on && state.replica.is_none() {
            // Following the channel failed when the wait began.
            _tender = self.follow(entry, &mut state);
        }
        let Some(follow) = &mut state.replica else { return false };
        if waited_on {
            follow.wanted = now;
        }
        if follow.wanted + linger <= now && follow.stage != ReplicaStage::Reading {
            let joining = self.unfollow(entry, &mut state);
            drop(state);
            joining.contain().wake();
            return true;
        }
        match follow.stage {
            ReplicaStage::Reading => {}
            // The engine is reachable, but the last read of this channel failed.
            ReplicaStage::Lost => {
                follow.begin();
                backlog.to_read.push_back(entry.clone());
            }
            ReplicaStage::Live if compares && follow.checked + CHECK <= now => {
                follow.checked = now;
                backlog.to_compare.push_back(entry.clone());
            }
            ReplicaStage::Live => {}
        }
        false
    }
}
