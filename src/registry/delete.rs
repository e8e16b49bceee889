//! Deleting a channel, and what a deletion leaves of one that has forks (Durable Streams, section 4.2).

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{
    Registry,
    entry::{Entry, Kept, Parent, State},
    expiry::STEP,
    slice::Slice,
    waiters::Woken,
};
use crate::{
    Error,
    engine::{Offset, Reason},
    sync::Mutex,
};

impl Registry {
    /// Deletes a channel with all that it holds, and returns where it ended, and the waiters to be woken.
    ///
    /// While it has forks its name stays taken; they have what they inherited.
    pub(crate) fn delete(&self, name: &str) -> Result<(Offset, Woken), Error> {
        self.check_name(name)?;
        self.change(name, |entry, state, now| {
            let kept = self.living(entry, state, now).ok_or(Error::Unknown)?;
            if kept.is_buried() {
                return Err(Error::Gone(kept.log.gone(Reason::Deleted)));
            }
            let tail = kept.log.tail();
            self.bury(entry, state);
            Ok((tail, state.waiters.take()))
        })
    }

    /// Takes a log out of its channel, or, if it has forks, what it holds out of the log.
    pub(super) fn bury(&self, entry: &Entry, state: &mut State) {
        match &mut state.log {
            Some(kept) if kept.special().forks > 0 => {
                kept.special_mut().buried = true;
                self.unqueue(kept);
                self.usage.leave_history(kept.log.clear());
            }
            _ => _ = self.forget(entry, state),
        }
    }

    /// Takes a log out of its channel, and returns whether there was one.
    pub(super) fn forget(&self, entry: &Entry, state: &mut State) -> bool {
        let Some(kept) = self.take_out(state) else { return false };
        if self.remote.is_none() && (kept.log.tail().position() > 0 || kept.log.is_closed()) {
            // A client that has been away since before all that must be told.
            state.since = self.endings.note(self.map.hash(entry.name()));
        }
        true
    }

    /// Takes a log out of its channel, as if it had never been there.
    pub(super) fn take_out(&self, state: &mut State) -> Option<Kept> {
        let mut kept = state.log.take()?;
        self.unqueue(&mut kept);
        self.usage.leave_history(kept.log.cost());
        self.usage.leave_channel(kept.transient);
        if let Some(origin) = &kept.special().origin {
            self.orphans.push(origin.parent.clone());
        }
        Some(kept)
    }

    /// Counts forks that have ended at the channels that they were forked from. The last fork of a deleted channel ends that
    /// too, and so on upwards. Returns whether none is left to be counted.
    ///
    /// No operation depends on it but the memory that tombstones take: what is left is done by the next one.
    pub(super) fn settle(&self, slice: &mut Slice) -> bool {
        while let Some(parent) = self.orphans.pop() {
            self.settle_one(&parent);
            if slice.step() {
                return self.orphans.is_empty();
            }
        }
        true
    }

    fn settle_one(&self, parent: &Parent) {
        let mut state = parent.entry.lock();
        let Some(kept) = state.log.as_mut().filter(|kept| kept.log.id() == parent.log) else { return };
        let special = kept.special_mut();
        special.forks -= 1;
        if special.buried && special.forks == 0 {
            self.forget(&parent.entry, &mut state);
        }
        let vacant = state.is_vacant();
        drop(state);
        if vacant {
            self.map.vacate(&parent.entry);
        }
    }

    /// Counts the forks that ended last, one or two: every operation does as much.
    pub(super) fn settle_some(&self) {
        for parent in (0..STEP).map_while(|_| self.orphans.pop()) {
            self.settle_one(&parent);
        }
    }
}

/// Parents of forks that are gone, to be told when no lock is held.
pub(super) struct Orphans {
    parents: Mutex<Vec<Parent>>,
    any: AtomicBool,
}

impl Orphans {
    pub(super) fn new() -> Self {
        Self { parents: Mutex::new(Vec::new()), any: AtomicBool::new(false) }
    }

    pub(super) fn push(&self, parent: Parent) {
        self.parents.lock().push(parent);
        self.any.store(true, Relaxed);
    }

    fn is_empty(&self) -> bool {
        !self.any.load(Relaxed)
    }

    fn pop(&self) -> Option<Parent> {
        if !self.any.load(Relaxed) {
            return None;
        }
        let mut parents = self.parents.lock();
        let parent = parents.pop();
        self.any.store(!parents.is_empty(), Relaxed);
        parent
    }
}
