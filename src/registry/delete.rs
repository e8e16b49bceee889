//! Deleting a channel, and what a deletion leaves of one that has forks (Durable Streams, section 4.2).

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{
    Registry,
    entry::{Kept, Parent, State},
};
use crate::{
    Error,
    engine::{Offset, Reason},
    sync::Mutex,
};

impl Registry {
    /// Deletes a channel with all that it holds, and lets whoever waits know. Returns where it ended.
    ///
    /// While it has forks its name stays taken; they have what they inherited.
    pub(crate) fn delete(&self, name: &str) -> Result<Offset, Error> {
        self.check_name(name)?;
        let deleted = self.change(name, |_, state, now| {
            let kept = self.living(state, now).ok_or(Error::Unknown)?;
            if kept.is_buried() {
                return Err(Error::Gone(kept.log.gone(Reason::Deleted)));
            }
            let tail = kept.log.tail();
            self.bury(state);
            Ok((tail, state.waiters.take()))
        });
        self.settle();
        deleted
    }

    /// Takes a log out of its channel, or, if it has forks, what it holds out of the log.
    pub(super) fn bury(&self, state: &mut State) {
        match &mut state.log {
            Some(kept) if kept.special().forks > 0 => {
                kept.special_mut().buried = true;
                self.unqueue(kept);
                self.usage.leave_history(kept.log.clear());
            }
            _ => drop(self.forget(state)),
        }
    }

    /// Takes a log out of its channel.
    pub(super) fn forget(&self, state: &mut State) -> Option<Kept> {
        let mut kept = state.log.take()?;
        self.unqueue(&mut kept);
        self.usage.leave_history(kept.log.cost());
        self.usage.leave_channel();
        if kept.log.tail().position() > 0 || kept.log.is_closed() {
            // Whoever has been away since before all that is to be told.
            self.origins.forget(kept.bucket);
        }
        if let Some(origin) = &kept.special().origin {
            self.orphans.push(origin.parent.clone());
        }
        Some(kept)
    }

    /// Tells the parents of forks that are gone, with no lock held; the last fork of a deleted
    /// channel takes it along, and so on upwards.
    pub(super) fn settle(&self) {
        while let Some(parent) = self.orphans.pop() {
            let mut state = parent.entry.lock();
            let Some(kept) = state.log.as_mut().filter(|kept| kept.log.id() == parent.log) else { continue };
            let special = kept.special_mut();
            special.forks -= 1;
            if special.buried && special.forks == 0 {
                self.forget(&mut state);
            }
            let vacant = state.is_vacant();
            drop(state);
            if vacant {
                self.map.vacate(&parent.entry);
            }
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
