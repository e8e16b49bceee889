//! How much work one poll does before it lets other tasks run.

use std::{
    future::poll_fn,
    mem,
    task::{Context, Poll},
};

#[cfg(not(comet_loom))]
use std::time::{Duration, Instant};

/// One poll's share of work that grows with the number of channels or waiters: half a millisecond, so that what one step
/// does beyond it stays within one.
///
/// The clock is the machine's, also where tokio's is paused: this is about the time that a thread is busy. Few steps do
/// not read it.
pub(crate) struct Slice {
    steps: u32,
    /// It stays over, whoever asks first.
    over: bool,
    #[cfg(not(comet_loom))]
    began: Option<Instant>,
}

/// A clock is read after as many steps, each of which takes a few microseconds at most.
#[cfg(not(comet_loom))]
const STEPS: u32 = 32;

#[cfg(not(comet_loom))]
const LENGTH: Duration = Duration::from_micros(500);

impl Slice {
    pub(crate) fn new() -> Self {
        Self {
            steps: 0,
            over: false,
            #[cfg(not(comet_loom))]
            began: None,
        }
    }

    /// Counts one step, and returns whether this slice is over.
    pub(crate) fn step(&mut self) -> bool {
        self.steps += 1;
        self.over = self.over || self.is_long();
        self.over
    }

    #[cfg(not(comet_loom))]
    fn is_long(&mut self) -> bool {
        self.steps % STEPS == 0 && self.began.get_or_insert_with(Instant::now).elapsed() >= LENGTH
    }

    /// Loom has no clock: a slice is one step.
    #[cfg(comet_loom)]
    fn is_long(&mut self) -> bool {
        self.steps > 0
    }
}

/// Runs `work` a slice at a time, and lets other tasks run in between. `work` returns whether all of it is done.
///
/// # Cancel safety
///
/// Dropped in between, the rest is not done, unless dropping `work` does it.
pub(crate) async fn sliced(mut work: impl FnMut(&mut Slice) -> bool) {
    poll_fn(|cx| poll_sliced(cx, &mut work)).await;
}

/// Lets other tasks run once.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    sliced(|_| mem::replace(&mut yielded, true)).await;
}

/// One slice of work that [`sliced`] would run to its end.
pub(crate) fn poll_sliced(cx: &Context<'_>, work: impl FnOnce(&mut Slice) -> bool) -> Poll<()> {
    if work(&mut Slice::new()) {
        return Poll::Ready(());
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}
