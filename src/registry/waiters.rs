//! Who waits on a channel: a list of wakers with O(1) in and out.

use std::{num::NonZeroU32, task::Waker};

/// The parked waiters of one channel, behind its lock.
///
/// An append wakes everybody, so the whole list is taken at once and a new round begins: what a
/// waiter holds is a [`Key`] of its round, and a key of an earlier round is known to be woken
/// without touching the list.
///
/// Wakers are given out rather than dropped or woken here. Both can run a task's destructor, and with it
/// that of another wait on the same channel, which would take the lock that is held here.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    slots: Vec<Slot>,
    /// The first vacant slot; each names the next.
    vacant: Option<u32>,
    occupied: usize,
    round: u64,
}

#[derive(Debug)]
enum Slot {
    Parked(Waker),
    /// Told to leave. The slot stays its owner's until the owner comes for it, so that no newcomer can
    /// be taken for it.
    Released,
    Vacant(Option<u32>),
}

/// A place on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    round: u64,
    /// Counted from 1, so that an `Option<Key>` is no larger than a key.
    slot: NonZeroU32,
}

impl Key {
    fn new(round: u64, slot: u32) -> Self {
        Self { round, slot: NonZeroU32::MIN.saturating_add(slot) }
    }

    fn index(self) -> usize {
        self.slot.get() as usize - 1
    }
}

/// What became of a waiter since it was last polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Parked,
    Woken,
    Released,
}

impl Waiters {
    /// A list whose keys fit no list of another round.
    pub(super) fn of_round(round: u64) -> Self {
        Self { round, ..Self::default() }
    }

    /// How many are on the list.
    pub(super) fn len(&self) -> usize {
        self.occupied
    }

    pub(super) fn park(&mut self, waker: Waker) -> Key {
        self.occupied += 1;
        let slot = match self.vacant {
            Some(slot) => {
                let taken = std::mem::replace(&mut self.slots[slot as usize], Slot::Parked(waker));
                let Slot::Vacant(next) = taken else { unreachable!("the list of vacant slots holds vacant slots") };
                self.vacant = next;
                slot
            }
            None => {
                self.slots.push(Slot::Parked(waker));
                u32::try_from(self.slots.len() - 1).expect("fewer waiters than u32::MAX")
            }
        };
        Key::new(self.round, slot)
    }

    pub(super) fn standing(&self, key: Key) -> Standing {
        if key.round != self.round {
            return Standing::Woken;
        }
        match self.slots[key.index()] {
            Slot::Parked(_) => Standing::Parked,
            _ => Standing::Released,
        }
    }

    /// Notes the waker of a waiter that was polled again, and gives out the one that it replaces.
    pub(super) fn refresh(&mut self, key: Key, waker: &Waker) -> Option<Waker> {
        match self.slots.get_mut(key.index()) {
            Some(Slot::Parked(held)) if key.round == self.round && !held.will_wake(waker) => {
                Some(std::mem::replace(held, waker.clone()))
            }
            _ => None,
        }
    }

    /// Takes a waiter off the list, unless that has happened already.
    pub(super) fn remove(&mut self, key: Key) -> Option<Waker> {
        if key.round != self.round {
            return None;
        }
        let slot = std::mem::replace(&mut self.slots[key.index()], Slot::Vacant(self.vacant));
        self.vacant = Some(key.slot.get() - 1);
        self.occupied -= 1;
        if self.occupied == 0 {
            self.restart();
        }
        match slot {
            Slot::Parked(waker) => Some(waker),
            _ => None,
        }
    }

    /// Takes everybody off the list.
    pub(super) fn take(&mut self) -> Woken {
        if self.occupied == 0 {
            return Woken(Vec::new());
        }
        self.round += 1;
        self.occupied = 0;
        self.vacant = None;
        Woken(std::mem::take(&mut self.slots))
    }

    /// Takes everybody off the list if few are left of a crowd: they park again, on a list of their own size. Otherwise one
    /// who stays on would keep the memory of all who have ever been there.
    pub(super) fn regroup(&mut self) -> Woken {
        const CROWD: usize = 1_024;
        if self.slots.len() < CROWD || self.occupied > self.slots.len() / 8 {
            return Woken::nobody();
        }
        self.take()
    }

    /// Tells up to `most` waiters to leave.
    pub(super) fn release(&mut self, most: usize) -> Woken {
        let parked = self.slots.iter_mut().filter(|slot| matches!(slot, Slot::Parked(_)));
        Woken(parked.take(most).map(|slot| std::mem::replace(slot, Slot::Released)).collect())
    }

    /// Everybody has left: forget the chain of vacant slots, and the memory of a crowd.
    fn restart(&mut self) {
        self.round += 1;
        self.vacant = None;
        self.slots.clear();
        self.slots.shrink_to(16);
    }
}

/// The same, of a channel that need not have had any yet: nothing is held for that.
#[derive(Debug, Default)]
pub(super) struct Crowd(Option<Box<Waiters>>);

impl Crowd {
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |waiters| waiters.len())
    }

    pub(super) fn park(&mut self, waker: Waker) -> Key {
        // It stays from then on: its round tells who was woken.
        self.0.get_or_insert_default().park(waker)
    }

    pub(super) fn standing(&self, key: Key) -> Standing {
        self.0.as_ref().map_or(Standing::Woken, |waiters| waiters.standing(key))
    }

    pub(super) fn refresh(&mut self, key: Key, waker: &Waker) -> Option<Waker> {
        self.0.as_mut()?.refresh(key, waker)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Waker> {
        self.0.as_mut()?.remove(key)
    }

    pub(super) fn take(&mut self) -> Woken {
        self.0.as_mut().map_or_else(Woken::nobody, |waiters| waiters.take())
    }

    pub(super) fn regroup(&mut self) -> Woken {
        self.0.as_mut().map_or_else(Woken::nobody, |waiters| waiters.regroup())
    }

    pub(super) fn release(&mut self, most: usize) -> Woken {
        self.0.as_mut().map_or_else(Woken::nobody, |waiters| waiters.release(most))
    }
}

/// Waiters to be woken, once the lock is released.
#[derive(Debug)]
#[must_use = "who is not woken here sleeps on"]
pub(super) struct Woken(Vec<Slot>);

impl Woken {
    pub(super) fn nobody() -> Self {
        Self(Vec::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn wake(self) {
        for slot in self.0 {
            if let Slot::Parked(waker) = slot {
                waker.wake();
            }
        }
    }
}
