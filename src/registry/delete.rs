//! Deleting a channel, and what a deletion leaves of one that has forks (Durable Streams, section 4.2).

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{
    Local, Registry,
    entry::{ChannelState, Entry, ForkParent, StoredLog},
    expiry::STEP,
    slice::Slice,
    waiters::WakeList,
};
use crate::{
    Error,
    engine::{Offset, Reason},
    sync::Mutex,
};

impl Registry {
    /// Deletes a channel and its log. Returns its tail and the waiters to wake.
    ///
    /// While it has forks its name stays taken; they have what they inherited.
    pub(crate) fn delete_local(&self, _: Local, name: &str) -> Result<(Offset, WakeList), Error> {
        self.check_name(name)?;
        self.change(name, |entry, state, now| {
            let kept = self.living(entry, state, now).ok_or(Error::Unknown)?;
            if kept.is_tombstoned() {
                return Err(Error::Gone(kept.log.gone(Reason::Deleted)));
            }
            let tail = kept.log.tail();
            self.tombstone(entry, state);
            Ok((tail, state.waiters.take()))
        })
    }

    /// Takes a log out of its channel, or, if it has forks, what it holds out of the log.
    pub(super) fn tombstone(&self, entry: &Entry, state: &mut ChannelState) {
        match &mut state.log {
            Some(kept) if kept.rare().forks > 0 => {
                kept.rare_mut().tombstoned = true;
                self.unqueue(kept);
                self.usage.leave_history(kept.log.clear());
            }
            _ => _ = self.drop_log(entry, state),
        }
    }

    /// Removes the log of a channel. Returns whether there was one.
    pub(super) fn drop_log(&self, entry: &Entry, state: &mut ChannelState) -> bool {
        let Some(kept) = self.take_out(state) else { return false };
        if self.local().is_some() && (kept.log.tail().position() > 0 || kept.log.is_closed()) {
            // A client with an older absent tail has missed messages. Number this ending, so that the absent tail is
            // refused.
            state.since = self.absent_tails.note(self.map.hash(entry.name()));
        }
        true
    }

    /// Removes a log from its channel without numbering an ending.
    pub(super) fn take_out(&self, state: &mut ChannelState) -> Option<StoredLog> {
        let mut kept = state.log.take()?;
        self.unqueue(&mut kept);
        self.usage.leave_history(kept.log.cost());
        self.usage.leave_channel(kept.transient);
        if let Some(origin) = &kept.rare().fork_source {
            self.orphans.push(origin.parent.clone());
        }
        Some(kept)
    }

    /// Subtracts ended forks from the fork counts of their parents. If the parent is a tombstone and this was its last
    /// fork, the parent ends too, and may itself be a fork. Returns whether all ended forks are settled.
    ///
    /// This only frees the memory of tombstones, so the next operation can do the rest.
    pub(super) fn settle(&self, slice: &mut Slice) -> bool {
        while let Some(parent) = self.orphans.pop() {
            self.settle_one(&parent);
            if slice.step() {
                return self.orphans.is_empty();
            }
        }
        true
    }

    /// Subtracts an ended fork from the count of its parent. No lock may be held.
    pub(super) fn settle_one(&self, parent: &ForkParent) {
        let mut state = parent.entry.lock();
        let Some(kept) = state.log.as_mut().filter(|kept| kept.log.id() == parent.log) else { return };
        let special = kept.rare_mut();
        special.forks -= 1;
        if special.tombstoned && special.forks == 0 {
            self.drop_log(&parent.entry, &mut state);
        }
        let vacant = state.is_vacant();
        drop(state);
        if vacant {
            self.map.vacate(&parent.entry);
        }
    }

    /// Settles up to [`STEP`] ended forks. Every operation does this.
    pub(super) fn settle_some(&self) {
        for parent in (0..STEP).map_while(|_| self.orphans.pop()) {
            self.settle_one(&parent);
        }
    }
}

/// Parents of forks that are gone, to be told when no lock is held.
pub(super) struct Orphans {
    parents: Mutex<Vec<ForkParent>>,
    any: AtomicBool,
}

impl Orphans {
    pub(super) fn new() -> Self {
        Self { parents: Mutex::new(Vec::new()), any: AtomicBool::new(false) }
    }

    pub(super) fn push(&self, parent: ForkParent) {
        self.parents.lock().push(parent);
        self.any.store(true, Relaxed);
    }

    fn is_empty(&self) -> bool {
        !self.any.load(Relaxed)
    }

    fn pop(&self) -> Option<ForkParent> {
        if !self.any.load(Relaxed) {
            return None;
        }
        let mut parents = self.parents.lock();
        let parent = parents.pop();
        self.any.store(!parents.is_empty(), Relaxed);
        parent
    }
}
