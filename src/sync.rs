//! The locks and the atomics whose races are modelled: `std`'s, or loom's under `--cfg comet_loom`.
//!
//! Poisoning is ignored. No code of a user runs under one of these locks, so a panic while one is held
//! would be a fault of this crate, and refusing every later request would make it worse.

#[cfg(not(comet_loom))]
use std::sync as imp;

#[cfg(comet_loom)]
use loom::sync as imp;

use std::sync::PoisonError;

pub(crate) use imp::atomic::{AtomicU8, AtomicUsize};
pub(crate) use imp::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

/// A mutex that cannot be poisoned.
#[derive(Debug)]
pub(crate) struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader-writer lock that cannot be poisoned.
#[derive(Debug)]
pub(crate) struct RwLock<T>(imp::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
