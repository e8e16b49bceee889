//! The timer that wakes a wait at its deadline.

use pin_project_lite::pin_project;
use std::{future::Future, pin::Pin, task::Context};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::sync::assert_unlocked;

/// The deadline of a wait that does not time out, on the registry's clock.
pub(crate) const NEVER: u64 = u64::MAX;

pin_project! {
    /// The timer of one wait, or none yet. The wait owns it: no list of timers is shared, so no lock is held while
    /// tokio's timer is polled.
    pub(super) struct Timer {
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl Timer {
    pub(super) fn new() -> Self {
        Self { sleep: None }
    }

    /// Wakes the task at `deadline`, and possibly once before it: a timer that the same task has set to an earlier
    /// deadline is not reset. An event stream postpones its deadline with each event, and would otherwise reset its
    /// timer each time.
    ///
    /// Unless the caller knows that the `same_task` set the timer, this creates a new timer on the current runtime, so
    /// that the wait does not depend on an earlier runtime, which may be blocked, not driven or shut down. For the same
    /// reason an elapsed timer is not polled again: a timer also elapses when its runtime shuts down, and polling it
    /// then panics.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its timer.
    pub(super) fn set(self: Pin<&mut Self>, deadline: Instant, same_task: bool, cx: &mut Context<'_>) {
        assert_unlocked();
        let mut sleep = self.project().sleep;
        match sleep.as_mut().as_pin_mut().filter(|sleep| same_task && !sleep.is_elapsed()) {
            Some(sleep) if sleep.deadline() <= deadline => {}
            Some(sleep) => sleep.reset(deadline),
            None => sleep.set(Some(sleep_until(deadline))),
        }
        // If the task's cooperative budget is used up, tokio wakes the task instead of starting the timer.
        if sleep.as_pin_mut().is_some_and(|sleep| sleep.poll(cx).is_ready()) {
            cx.waker().wake_by_ref();
        }
    }

    pub(super) fn clear(self: Pin<&mut Self>) {
        assert_unlocked();
        self.project().sleep.set(None);
    }
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use super::*;
    use std::{
        future::poll_fn,
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        task::{Poll, Wake, Waker},
        time::Duration,
    };
    use tokio::{
        runtime::{Builder, Runtime},
        task::coop::unconstrained,
    };

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    impl Woken {
        fn times(&self) -> usize {
            self.0.load(Relaxed)
        }
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
    }

    /// Sets the timer to `millis` from now, on the runtime `on`.
    fn set(on: &Runtime, timer: Pin<&mut Timer>, millis: u64, same_task: bool, waker: &Waker) {
        let _entered = on.enter();
        timer.set(Instant::now() + Duration::from_millis(millis), same_task, &mut Context::from_waker(waker));
    }

    fn pass(on: &Runtime, millis: u64) {
        on.block_on(async { tokio::time::sleep(Duration::from_millis(millis)).await });
    }

    #[test]
    fn a_task_is_woken_at_the_deadline_and_once_before_it_if_the_deadline_was_postponed() {
        let (on, woken) = (runtime(), Arc::<Woken>::default());
        let (waker, mut timer) = (Waker::from(woken.clone()), pin!(Timer::new()));
        set(&on, timer.as_mut(), 1_000, false, &waker);
        pass(&on, 500);
        set(&on, timer.as_mut(), 1_000, true, &waker);
        pass(&on, 400);
        assert_eq!(woken.times(), 0);
        pass(&on, 200);
        assert_eq!(woken.times(), 1, "at the earlier deadline");
        set(&on, timer.as_mut(), 400, true, &waker);
        set(&on, timer.as_mut(), 200, true, &waker);
        pass(&on, 250);
        assert_eq!(woken.times(), 2, "moved to an earlier one");
        set(&on, timer.as_mut(), 1_000, true, &waker);
        timer.as_mut().clear();
        pass(&on, 2_000);
        assert_eq!(woken.times(), 2, "cleared");
    }

    #[test]
    fn a_deadline_that_has_passed_wakes_at_once() {
        let (on, woken) = (runtime(), Arc::<Woken>::default());
        let (waker, mut timer) = (Waker::from(woken.clone()), pin!(Timer::new()));
        on.block_on(unconstrained(poll_fn(|_| {
            timer.as_mut().set(Instant::now(), false, &mut Context::from_waker(&waker));
            Poll::Ready(())
        })));
        assert_eq!(woken.times(), 1);
    }

    #[test]
    fn a_timer_moves_with_the_wait_to_the_runtime_that_polls_it() {
        let (undriven, on, woken) = (runtime(), runtime(), Arc::<Woken>::default());
        let (waker, mut timer) = (Waker::from(woken.clone()), pin!(Timer::new()));
        set(&undriven, timer.as_mut(), 1_000, false, Waker::noop());
        set(&on, timer.as_mut(), 1_000, false, &waker);
        pass(&on, 1_100);
        assert_eq!(woken.times(), 1);
        drop(undriven);
    }

    #[test]
    fn a_timer_of_a_runtime_that_was_shut_down_is_replaced() {
        let (gone, on, woken) = (runtime(), runtime(), Arc::<Woken>::default());
        let (waker, mut timer) = (Waker::from(woken.clone()), pin!(Timer::new()));
        set(&gone, timer.as_mut(), 1_000, false, &waker);
        drop(gone);
        assert_eq!(woken.times(), 1, "tokio wakes what its timers can no longer wake");
        set(&on, timer.as_mut(), 1_000, true, &waker);
        pass(&on, 1_100);
        assert_eq!(woken.times(), 2);
    }
}
