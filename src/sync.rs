//! The locks and the atomics whose races are modelled: `std`'s, or loom's under `--cfg comet_loom`.
//!
//! # Rules
//!
//! 1. A thread takes locks in the order of [`Rank`], and never two of one rank.
//! 2. No foreign code runs while a thread holds one of these locks: no waker is cloned, woken or dropped, no foreign
//!    future is polled, no hook is called, and no value is dropped whose destructor a user wrote. Any of these may
//!    re-enter this crate on the same thread and take the same lock. For example, tokio wakes a task from within the
//!    poll of a timer when the task's cooperative budget is used up.
//!
//! Debug builds check both rules. Taking a lock out of order panics. [`assert_unlocked`], which this crate calls before
//! it runs foreign code, panics if the thread holds a lock.
//!
//! Poisoning is ignored. Because no foreign code runs under a lock, a panic under one is a bug in this crate, and
//! refusing every later request would make it worse.

#[cfg(not(comet_loom))]
use std::sync as imp;

#[cfg(comet_loom)]
use loom::sync as imp;

use std::{
    ops::{Deref, DerefMut},
    sync::PoisonError,
};

pub(crate) use imp::atomic::{AtomicU8, AtomicUsize};

/// The order in which a thread may take locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(debug_assertions), allow(dead_code, reason = "checked in debug builds alone"))]
pub(crate) enum Rank {
    /// A shard of the map of channels.
    Shard,
    /// One channel.
    Channel,
    /// Everything else: queues and lists, under which no other lock is taken.
    Leaf,
}

/// A mutex that cannot be poisoned.
#[derive(Debug)]
pub(crate) struct Mutex<T> {
    inner: imp::Mutex<T>,
    #[cfg(debug_assertions)]
    rank: Rank,
}

impl<T> Mutex<T> {
    /// Creates a mutex of [`Rank::Leaf`].
    pub(crate) fn new(value: T) -> Self {
        Self::ranked(Rank::Leaf, value)
    }

    pub(crate) fn ranked(rank: Rank, value: T) -> Self {
        let _ = rank;
        Self {
            inner: imp::Mutex::new(value),
            #[cfg(debug_assertions)]
            rank,
        }
    }

    pub(crate) fn lock(&self) -> Guard<imp::MutexGuard<'_, T>> {
        #[cfg(debug_assertions)]
        let held = held::Held::new(self.rank);
        Guard {
            inner: self.inner.lock().unwrap_or_else(PoisonError::into_inner),
            #[cfg(debug_assertions)]
            _held: held,
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// The guard that [`Mutex::lock`] returns.
pub(crate) type MutexGuard<'a, T> = Guard<imp::MutexGuard<'a, T>>;

/// A reader-writer lock that cannot be poisoned. Only the shards of the map use it, so its rank is [`Rank::Shard`].
#[derive(Debug)]
pub(crate) struct RwLock<T>(imp::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> Guard<imp::RwLockReadGuard<'_, T>> {
        #[cfg(debug_assertions)]
        let held = held::Held::new(Rank::Shard);
        Guard {
            inner: self.0.read().unwrap_or_else(PoisonError::into_inner),
            #[cfg(debug_assertions)]
            _held: held,
        }
    }

    pub(crate) fn write(&self) -> Guard<imp::RwLockWriteGuard<'_, T>> {
        #[cfg(debug_assertions)]
        let held = held::Held::new(Rank::Shard);
        Guard {
            inner: self.0.write().unwrap_or_else(PoisonError::into_inner),
            #[cfg(debug_assertions)]
            _held: held,
        }
    }
}

/// Releases its lock when it is dropped.
pub(crate) struct Guard<G> {
    // Fields are dropped in declaration order: the lock is released before `held` forgets it.
    inner: G,
    #[cfg(debug_assertions)]
    _held: held::Held,
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.inner
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.inner
    }
}

/// Asserts that this thread holds no lock. Called before foreign code runs.
///
/// # Panics
///
/// In debug builds, if this thread holds a lock of this module.
#[inline]
#[cfg_attr(debug_assertions, track_caller)]
pub(crate) fn assert_unlocked() {
    #[cfg(debug_assertions)]
    held::assert_none();
}

/// Records which locks this thread holds. Disabled under loom, which runs all of its threads on one thread of the
/// system.
#[cfg(debug_assertions)]
mod held {
    use super::Rank;
    use std::{cell::Cell, thread};

    thread_local! {
        static HELD: Cell<[bool; 3]> = const { Cell::new([false; 3]) };
    }

    /// One lock that this thread holds.
    pub(super) struct Held(Option<Rank>);

    impl Held {
        #[track_caller]
        pub(super) fn new(rank: Rank) -> Self {
            if cfg!(comet_loom) {
                return Self(None);
            }
            // A thread that is exiting may have dropped this thread-local already. Its locks are not checked.
            let checked = HELD.try_with(|held| {
                let mut ranks = held.get();
                let above = ranks.iter().rposition(|held| *held).filter(|above| *above >= rank as usize);
                if let Some(above) = above.filter(|_| !thread::panicking()) {
                    panic!("a lock of rank {rank:?} is taken while one of rank {above} is held");
                }
                if above.is_some() {
                    return None;
                }
                ranks[rank as usize] = true;
                held.set(ranks);
                Some(rank)
            });
            Self(checked.ok().flatten())
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            let Some(rank) = self.0 else { return };
            let _ = HELD.try_with(|held| {
                let mut ranks = held.get();
                ranks[rank as usize] = false;
                held.set(ranks);
            });
        }
    }

    #[track_caller]
    pub(super) fn assert_none() {
        let held = HELD.try_with(Cell::get).unwrap_or_default();
        if held.contains(&true) && !thread::panicking() {
            panic!("foreign code runs while a lock is held: {held:?}");
        }
    }
}

#[cfg(all(test, debug_assertions, not(comet_loom)))]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn panics(f: impl FnOnce()) -> bool {
        catch_unwind(AssertUnwindSafe(f)).is_err()
    }

    #[test]
    fn locks_are_taken_in_order_only() {
        let (shard, channel, leaf) = (RwLock::new(()), Mutex::ranked(Rank::Channel, ()), Mutex::new(()));
        {
            let _shard = shard.write();
            let _channel = channel.lock();
            let _leaf = leaf.lock();
        }
        let other = Mutex::ranked(Rank::Channel, ());
        assert!(panics(|| drop((channel.lock(), other.lock()))), "two of one rank");
        assert!(panics(|| drop((channel.lock(), channel.lock()))), "one twice");
        assert!(panics(|| drop((leaf.lock(), channel.lock()))), "a channel under a leaf");
        assert!(panics(|| drop((channel.lock(), shard.read()))), "a shard under a channel");
        drop((shard.read(), leaf.lock()));
    }

    #[test]
    fn foreign_code_is_refused_under_a_lock_only() {
        let (channel, leaf) = (Mutex::ranked(Rank::Channel, ()), Mutex::new(()));
        assert_unlocked();
        for lock in [&channel, &leaf] {
            let held = lock.lock();
            assert!(panics(assert_unlocked));
            drop(held);
            assert_unlocked();
        }
    }
}
