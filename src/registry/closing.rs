//! Ending all waits, at once or spread over time.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use super::{
    Registry,
    waiters::{Key, Waiters},
};
use crate::sync::{AtomicU8, Mutex};

const OPEN: u8 = 0;
/// Nothing begins to wait; who waits already stays.
const DRAINING: u8 = 1;
/// Nothing waits.
const CLOSED: u8 = 2;

pub(super) struct Closing {
    phase: AtomicU8,
    /// Who waits for nobody to wait.
    watchers: Mutex<Waiters>,
}

impl Closing {
    pub(super) fn new() -> Self {
        Self { phase: AtomicU8::new(OPEN), watchers: Mutex::new(Waiters::default()) }
    }
}

impl Registry {
    /// Whether [`drain`](Self::drain) or [`close`](Self::close) was called.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.phase.load(Ordering::Acquire) != OPEN
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closing.phase.load(Ordering::Acquire) == CLOSED
    }

    /// From now on nothing begins to wait.
    pub(crate) fn drain(&self) {
        // Never back from closed to draining.
        self.closing.phase.fetch_max(DRAINING, Ordering::AcqRel);
    }

    /// Ends all waits.
    ///
    /// The phase is set before the first list is taken. A wait reads the phase under its channel's
    /// lock: either it parked before that lock was taken here, and is on the list, or it locks
    /// after, and sees the phase.
    pub(crate) fn close(&self) {
        self.closing.phase.store(CLOSED, Ordering::Release);
        for entry in self.map.entries() {
            let woken = entry.lock().waiters.take();
            woken.wake();
        }
    }

    /// Ends up to `most` waits, and says how many.
    pub(crate) fn release(&self, most: usize) -> usize {
        let mut released = 0;
        for entry in self.map.entries() {
            if released == most {
                break;
            }
            let woken = entry.lock().waiters.release(most - released);
            released += woken.len();
            woken.wake();
        }
        released
    }

    pub(super) fn nobody_waits(&self) {
        let woken = self.closing.watchers.lock().take();
        woken.wake();
    }
}

/// Resolves when nobody waits.
pub(crate) struct Drained {
    registry: Arc<Registry>,
    key: Option<Key>,
}

impl Drained {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, key: None }
    }

    fn leave(&mut self) {
        let waker = self.key.take().and_then(|key| self.registry.closing.watchers.lock().remove(key));
        drop(waker);
    }
}

impl Future for Drained {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.leave();
        let registry = self.registry.clone();
        // The count is read under the lock that the last to leave takes after counting itself out:
        // it either is counted out here already, or finds this waker.
        let mut watchers = registry.closing.watchers.lock();
        if registry.usage.waits() == 0 {
            return Poll::Ready(());
        }
        self.key = Some(watchers.park(cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        self.leave();
    }
}
