//! Ending all waits, at once or spread over time.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use super::{
    Registry,
    map::Walk,
    slice::sliced,
    waiters::{Key, Waiters, WakeList, discard},
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

    /// Ends all waits before it returns.
    ///
    /// The phase is set before the first list is taken. A wait reads the phase under its channel's
    /// lock: either it parked before that lock was taken here, and is on the list, or it locks
    /// after, and sees the phase.
    pub(crate) fn close(&self) {
        self.closing.phase.store(CLOSED, Ordering::Release);
        let mut panic = None;
        for entry in self.map.entries() {
            let woken = entry.lock().waiters.take();
            // A waker that panics does not keep the waiters of other channels from being woken.
            if let Err(first) = catch_unwind(AssertUnwindSafe(|| woken.wake())) {
                panic.get_or_insert(first);
            }
        }
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Like [`close`](Self::close), in slices, with other tasks running in between.
    pub(crate) async fn close_sliced(&self) {
        self.closing.phase.store(CLOSED, Ordering::Release);
        let (mut walk, mut woken) = (Walk::default(), WakeList::nobody());
        sliced(|slice| {
            loop {
                if !woken.wake_some(slice) {
                    return false;
                }
                let Some(entry) = self.map.next(&mut walk) else { return true };
                woken = entry.lock().waiters.take().contain();
                if slice.step() {
                    return false;
                }
            }
        })
        .await;
    }

    /// Ends up to `most` waits and returns their number. Continues `walk`, wraps around at most once, and lets other
    /// tasks run in between.
    pub(crate) async fn release(&self, walk: &mut Walk, most: usize) -> usize {
        let (mut left, mut ends, mut woken) = (most, 0, WakeList::nobody());
        sliced(|slice| {
            loop {
                if !woken.wake_some(slice) {
                    return false;
                }
                if left == 0 {
                    return true;
                }
                match self.map.next(walk) {
                    Some(entry) => {
                        woken = entry.lock().waiters.release(left).contain();
                        left -= woken.len();
                    }
                    None if ends == 1 => return true,
                    None => {
                        ends += 1;
                        *walk = Walk::default();
                    }
                }
                if slice.step() {
                    return false;
                }
            }
        })
        .await;
        most - left
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
        discard(self.key.take().and_then(|key| self.registry.closing.watchers.lock().remove(key)));
    }
}

impl Future for Drained {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.leave();
        let (registry, waker) = (self.registry.clone(), cx.waker().clone());
        // The count is read under the lock that the last to leave takes after counting itself out:
        // it either is counted out here already, or finds this waker.
        let mut watchers = registry.closing.watchers.lock();
        if registry.usage.waits() == 0 {
            return Poll::Ready(());
        }
        self.key = Some(watchers.park(waker));
        Poll::Pending
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        self.leave();
    }
}
