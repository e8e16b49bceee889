//! How long a channel lives by itself (Durable Streams, section 7).

use std::time::{Duration, SystemTime};

use super::{
    Lifetime, Registry,
    entry::{Entry, Kept, State},
    millis,
};

impl Registry {
    /// Returns the log of a channel, unless it has expired.
    ///
    /// No waiter need be woken here: a wait on a channel that expires at a fixed time has set its timer to that time,
    /// and an idle channel has no waiters.
    pub(super) fn living<'a>(&self, entry: &Entry, state: &'a mut State, now: u64) -> Option<&'a mut Kept> {
        let waited_on = state.waiters.len() > 0;
        if state.log.as_ref().is_some_and(|kept| !kept.is_buried() && kept.is_over(waited_on, now)) {
            self.bury(entry, state);
        }
        state.log.as_mut()
    }

    /// The end of a lifetime on the registry's clock, if it is fixed.
    pub(super) fn end_of(&self, lifetime: Lifetime) -> Option<u64> {
        match lifetime {
            Lifetime::Until(end) => {
                let left = end.duration_since(SystemTime::now()).unwrap_or_default();
                Some(ends_in(left, self.now()))
            }
            Lifetime::Unbounded | Lifetime::Idle(_) => None,
        }
    }
}

/// The end of a lifetime of which so much is left: a millisecond later, as what is left was rounded down.
pub(super) fn ends_in(left: Duration, now: u64) -> u64 {
    now.saturating_add(millis(left)).saturating_add(1)
}

impl Kept {
    pub(super) fn is_over(&self, waited_on: bool, now: u64) -> bool {
        match self.special().lifetime {
            Lifetime::Unbounded => false,
            Lifetime::Idle(window) => !waited_on && self.touched.saturating_add(millis(window)) <= now,
            Lifetime::Until(_) => self.special().until.is_some_and(|until| until <= now),
        }
    }

    /// When the lifetime ends if nobody touches the channel meanwhile.
    pub(super) fn ends(&self) -> Option<u64> {
        match self.special().lifetime {
            Lifetime::Unbounded => None,
            Lifetime::Idle(window) => Some(self.touched.saturating_add(millis(window))),
            Lifetime::Until(_) => self.special().until,
        }
    }
}
