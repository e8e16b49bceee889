//! Who waits on a channel: a list of wakers with O(1) in and out.

use std::{
    any::Any,
    fmt, mem,
    num::NonZeroU32,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    task::Waker,
    thread, vec,
};

use super::slice::{Slice, sliced};
use crate::sync::assert_unlocked;

/// The parked waiters of one channel, behind its lock.
///
/// An append wakes everybody, so the whole list is taken at once and a new round begins: what a
/// waiter holds is a [`Key`] of its round, and a key of an earlier round is known to be woken
/// without touching the list.
///
/// The caller clones a waker before it takes the lock, and this list returns wakers instead of waking or dropping them,
/// because all three run foreign code. Dropping the last reference to a task runs its destructor, which may be that of
/// another wait on the same channel.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    slots: Vec<WaiterSlot>,
    /// The first vacant slot; each names the next.
    vacant: Option<u32>,
    occupied: u32,
    /// Waits that count against the limit of the channel, parked or not.
    admitted: u32,
    round: u64,
}

#[derive(Debug)]
enum WaiterSlot {
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
pub(super) enum WaiterStatus {
    Parked,
    Woken,
    Released,
}

impl Waiters {
    /// How many are on the list.
    pub(super) fn len(&self) -> usize {
        self.occupied as usize
    }

    pub(super) fn park(&mut self, waker: Waker) -> Key {
        self.occupied += 1;
        let slot = match self.vacant {
            Some(slot) => {
                let taken = std::mem::replace(&mut self.slots[slot as usize], WaiterSlot::Parked(waker));
                let WaiterSlot::Vacant(next) = taken else {
                    unreachable!("the list of vacant slots holds vacant slots")
                };
                self.vacant = next;
                slot
            }
            None => {
                self.slots.push(WaiterSlot::Parked(waker));
                u32::try_from(self.slots.len() - 1).expect("fewer waiters than u32::MAX")
            }
        };
        Key::new(self.round, slot)
    }

    pub(super) fn standing(&self, key: Key) -> WaiterStatus {
        if key.round != self.round {
            return WaiterStatus::Woken;
        }
        match self.slots[key.index()] {
            WaiterSlot::Parked(_) => WaiterStatus::Parked,
            _ => WaiterStatus::Released,
        }
    }

    /// Returns whether a waiter is on the list and its stored waker wakes the same task as `waker`.
    pub(super) fn wakes(&self, key: Key, waker: &Waker) -> bool {
        key.round == self.round
            && matches!(self.slots.get(key.index()), Some(WaiterSlot::Parked(held)) if held.will_wake(waker))
    }

    /// Replaces the waker of a waiter that is on the list, and returns the old one.
    pub(super) fn refresh(&mut self, key: Key, waker: Waker) -> Option<Waker> {
        match self.slots.get_mut(key.index()) {
            Some(WaiterSlot::Parked(held)) if key.round == self.round => Some(std::mem::replace(held, waker)),
            // Returned, because it must not be dropped under the lock.
            _ => Some(waker),
        }
    }

    /// Takes a waiter off the list, unless that has happened already.
    pub(super) fn remove(&mut self, key: Key) -> Option<Waker> {
        if key.round != self.round {
            return None;
        }
        let slot = std::mem::replace(&mut self.slots[key.index()], WaiterSlot::Vacant(self.vacant));
        self.vacant = Some(key.slot.get() - 1);
        self.occupied -= 1;
        if self.occupied == 0 {
            self.restart();
        }
        match slot {
            WaiterSlot::Parked(waker) => Some(waker),
            _ => None,
        }
    }

    /// Takes everybody off the list.
    pub(super) fn take(&mut self) -> WakeList {
        if self.occupied == 0 {
            return WakeList::nobody();
        }
        self.round += 1;
        self.occupied = 0;
        self.vacant = None;
        WakeList::new(std::mem::take(&mut self.slots))
    }

    /// Takes all waiters off a list that has many more slots than waiters. They park again, on a list of the right
    /// size; otherwise a single remaining waiter would keep the memory of the longest list. This wakes at most 1,024
    /// waiters, because the destructor of a wait calls it and cannot spread the wake-ups over several polls.
    pub(super) fn regroup(&mut self) -> WakeList {
        const LONG: usize = 1_024;
        if self.slots.len() < LONG || self.len() > LONG.min(self.slots.len() / 8) {
            return WakeList::nobody();
        }
        self.take()
    }

    /// Tells up to `most` waiters to leave.
    pub(super) fn release(&mut self, most: usize) -> WakeList {
        let parked = self.slots.iter_mut().filter(|slot| matches!(slot, WaiterSlot::Parked(_)));
        WakeList::new(parked.take(most).map(|slot| std::mem::replace(slot, WaiterSlot::Released)).collect())
    }

    /// Everybody has left: forget the chain of vacant slots, and the memory of a crowd.
    fn restart(&mut self) {
        self.round += 1;
        self.vacant = None;
        self.slots.clear();
        self.slots.shrink_to(16);
    }
}

/// The list of waiters of a channel, which takes a pointer until the channel has its first waiter. That saves 40 of the 330 bytes
/// of a channel without one (`benches/tests/counted.rs`).
#[derive(Debug, Default)]
pub(super) struct ChannelWaiters(Option<Box<Waiters>>);

impl ChannelWaiters {
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |waiters| waiters.len())
    }

    /// Returns the number of waits that count against the limit of the channel: parked ones, woken ones that have not
    /// been polled yet, and event streams, even while they send an event.
    pub(super) fn admitted(&self) -> usize {
        self.0.as_ref().map_or(0, |waiters| waiters.admitted as usize)
    }

    pub(super) fn count_admitted(&mut self) {
        self.0.get_or_insert_default().admitted += 1;
    }

    pub(super) fn leave_admitted(&mut self) {
        if let Some(waiters) = &mut self.0 {
            waiters.admitted -= 1;
        }
    }

    pub(super) fn park(&mut self, waker: Waker) -> Key {
        // It stays from then on: its round tells who was woken.
        self.0.get_or_insert_default().park(waker)
    }

    pub(super) fn standing(&self, key: Key) -> WaiterStatus {
        self.0.as_ref().map_or(WaiterStatus::Woken, |waiters| waiters.standing(key))
    }

    pub(super) fn wakes(&self, key: Key, waker: &Waker) -> bool {
        self.0.as_ref().is_some_and(|waiters| waiters.wakes(key, waker))
    }

    pub(super) fn refresh(&mut self, key: Key, waker: Waker) -> Option<Waker> {
        match &mut self.0 {
            Some(waiters) => waiters.refresh(key, waker),
            None => Some(waker),
        }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Waker> {
        self.0.as_mut()?.remove(key)
    }

    pub(super) fn take(&mut self) -> WakeList {
        self.0.as_mut().map_or_else(WakeList::nobody, |waiters| waiters.take())
    }

    pub(super) fn regroup(&mut self) -> WakeList {
        self.0.as_mut().map_or_else(WakeList::nobody, |waiters| waiters.regroup())
    }

    pub(super) fn release(&mut self, most: usize) -> WakeList {
        self.0.as_mut().map_or_else(WakeList::nobody, |waiters| waiters.release(most))
    }
}

/// Wakers that were taken off a list, to be woken once no lock is held. Dropping this wakes the remaining ones. All of
/// them are woken even if one panics.
#[must_use = "dropping it wakes the waiters, which must not happen under a lock"]
pub(crate) struct WakeList {
    slots: vec::IntoIter<WaiterSlot>,
    /// The first panic of a waker, which is resumed when all have been woken.
    panic: Option<Box<dyn Any + Send>>,
    /// It is dropped instead.
    contained: bool,
}

impl WakeList {
    pub(crate) fn nobody() -> Self {
        Self::new(Vec::new())
    }

    /// The waker of one task that is not on a list.
    pub(super) fn one(waker: Option<Waker>) -> Self {
        Self::new(waker.map(WaiterSlot::Parked).into_iter().collect())
    }

    fn new(slots: Vec<WaiterSlot>) -> Self {
        Self { slots: slots.into_iter(), panic: None, contained: false }
    }

    /// Adds other wakers after these.
    pub(super) fn and(mut self, mut others: Self) -> Self {
        if others.len() == 0 {
            return self;
        }
        let slots = mem::take(&mut self.slots).chain(mem::take(&mut others.slots));
        Self::new(slots.collect())
    }

    /// Drops a waker's panic instead of resuming it, for a caller that must continue.
    pub(super) fn contain(mut self) -> Self {
        self.contained = true;
        self
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Wakes all of them before it returns.
    pub(crate) fn wake(self) {
        drop(self);
    }

    /// Wakes as many as the slice allows. Returns whether all have been woken.
    pub(crate) fn wake_some(&mut self, slice: &mut Slice) -> bool {
        while let Some(slot) = self.slots.next() {
            self.wake_one(slot);
            if slice.step() && self.slots.len() > 0 {
                return false;
            }
        }
        self.go_on_panicking();
        true
    }

    /// Wakes all of them in slices, and lets other tasks run in between.
    ///
    /// # Cancel safety
    ///
    /// If this future is dropped early, it wakes the remaining ones.
    pub(crate) async fn spread(mut self) {
        sliced(|slice| self.wake_some(slice)).await;
    }

    fn wake_one(&mut self, slot: WaiterSlot) {
        let WaiterSlot::Parked(waker) = slot else { return };
        assert_unlocked();
        // `wake` consumes the waker, and a panic leaves no state of this crate half-changed.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
            self.panic.get_or_insert(panic);
        }
    }

    fn go_on_panicking(&mut self) {
        if let Some(panic) = self.panic.take().filter(|_| !self.contained && !thread::panicking()) {
            resume_unwind(panic);
        }
    }
}

impl Drop for WakeList {
    fn drop(&mut self) {
        while let Some(slot) = self.slots.next() {
            self.wake_one(slot);
        }
        self.go_on_panicking();
    }
}

impl fmt::Debug for WakeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Woken").field("left", &self.len()).finish_non_exhaustive()
    }
}

/// Drops a waker, and contains a panic of its destructor. No lock may be held.
pub(super) fn discard(waker: Option<Waker>) {
    assert_unlocked();
    // Nothing of ours is seen half done.
    drop(catch_unwind(AssertUnwindSafe(|| drop(waker))));
}
