//! Waking a wait at its deadline.

use pin_project_lite::pin_project;
use std::{future::Future, pin::Pin, task::Context};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::sync::assert_unlocked;

/// A deadline that never comes, on the registry's clock.
pub(crate) const NEVER: u64 = u64::MAX;

pin_project! {
    /// The timer of one wait, or none yet. It lies within the wait: no list of timers is shared, and no lock of ours is
    /// held while tokio's timer is polled.
    pub(super) struct Timer {
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl Timer {
    pub(super) fn new() -> Self {
        Self { sleep: None }
    }

    /// Has the task woken at a deadline, or once before it: a timer of the same task that is set for an earlier deadline
    /// stays as it is, so that an event stream, which puts its deadline off with each event, does not set it each time.
    ///
    /// Unless it is known to be the `same_task` that set the timer, a new one is made on the runtime that polls: a wait that
    /// was polled on another runtime before does not depend on whether that is driven, blocked, or gone. For the same reason a
    /// timer that has elapsed is not polled again: if it has because its runtime was shut down, that would panic.
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
        // If the task's cooperative budget is used up, tokio does not start the timer, and wakes the task instead.
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

    /// Sets the timer to so many milliseconds from now, on a runtime.
    fn set(on: &Runtime, timer: Pin<&mut Timer>, millis: u64, same_task: bool, waker: &Waker) {
        let _entered = on.enter();
        timer.set(Instant::now() + Duration::from_millis(millis), same_task, &mut Context::from_waker(waker));
    }

    fn pass(on: &Runtime, millis: u64) {
        on.block_on(async { tokio::time::sleep(Duration::from_millis(millis)).await });
    }

    #[test]
    fn a_task_is_woken_at_the_deadline_and_once_before_it_if_that_was_put_off() {
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
