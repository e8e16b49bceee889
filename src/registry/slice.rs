//! Bounds the work of one poll, so that other tasks can run.

use std::{
    future::poll_fn,
    mem,
    task::{Context, Poll},
};

#[cfg(not(comet_loom))]
use std::time::{Duration, Instant};

/// The time that one poll may spend on work that grows with the number of channels or waiters: half a millisecond, so
/// that a poll takes less than one even if its last step overruns.
///
/// A slice measures real time even if tokio's clock is paused, because it bounds how long a thread is busy. It reads
/// the clock once in `STEPS` steps, so a poll of fewer steps does not read it at all.
pub(crate) struct Slice {
    steps: u32,
    /// Set when a step finds that the time is used up. Later steps do not read the clock.
    over: bool,
    #[cfg(not(comet_loom))]
    began: Option<Instant>,
    #[cfg(not(comet_loom))]
    length: Duration,
}

/// The number of steps between two reads of the clock. A step takes a few microseconds at most.
#[cfg(not(comet_loom))]
const STEPS: u32 = 32;

#[cfg(not(comet_loom))]
const LENGTH: Duration = Duration::from_micros(500);

impl Slice {
    pub(crate) fn new() -> Self {
        Self::part(1)
    }

    /// One of `parts` equal parts of a slice, for a poll that does several kinds of work: none of them can use up the
    /// time of the others.
    pub(crate) fn part(parts: u32) -> Self {
        let _ = parts;
        Self {
            steps: 0,
            over: false,
            #[cfg(not(comet_loom))]
            began: None,
            #[cfg(not(comet_loom))]
            length: LENGTH / parts,
        }
    }

    /// Counts one step. Returns whether this slice is over.
    pub(crate) fn step(&mut self) -> bool {
        self.steps += 1;
        self.over = self.over || self.is_long();
        self.over
    }

    /// Returns whether a step has found that this slice is over.
    #[cfg(feature = "redis")]
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    #[cfg(not(comet_loom))]
    fn is_long(&mut self) -> bool {
        self.steps % STEPS == 0 && self.began.get_or_insert_with(Instant::now).elapsed() >= self.length
    }

    /// Loom has no clock: a slice is one step.
    #[cfg(comet_loom)]
    fn is_long(&mut self) -> bool {
        self.steps > 0
    }
}

/// Calls `work` with one slice in each poll, and lets other tasks run in between, until `work` returns `true`.
///
/// # Cancel safety
///
/// If this future is dropped early, the rest of the work is not done, unless dropping `work` does it.
pub(crate) async fn sliced(mut work: impl FnMut(&mut Slice) -> bool) {
    poll_fn(|cx| poll_sliced(cx, &mut work)).await;
}

/// Lets other tasks run once.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    sliced(|_| mem::replace(&mut yielded, true)).await;
}

/// Calls `work` with one slice, as [`sliced`] does in each poll. Wakes the task again unless `work` returns `true`.
pub(crate) fn poll_sliced(cx: &Context<'_>, work: impl FnOnce(&mut Slice) -> bool) -> Poll<()> {
    if work(&mut Slice::new()) {
        return Poll::Ready(());
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}
