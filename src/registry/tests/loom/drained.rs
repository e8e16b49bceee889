//! Waiting for nobody to wait, and the last who leaves at that moment.

use ::loom::thread;
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use super::{ASLEEP, Registry, Task, WaitEnd, outcomes, registry, waiting};
use crate::{
    Error, Limit,
    engine::Retention,
    registry::{Drained, Limits, waiters::Waiters},
    sync::{AtomicUsize, Mutex},
};

fn draining(registry: &Arc<Registry>) -> Task<impl FnMut(&mut Context<'_>) -> Poll<()> + Send + use<>> {
    let mut drained = Drained::new(registry.clone());
    Task::new(move |cx| Future::poll(Pin::new(&mut drained), cx))
}

fn told<F: FnMut(&mut Context<'_>) -> Poll<()>>((ended, mut task): (Poll<()>, Task<F>)) -> &'static str {
    match task.resume(ended) {
        Poll::Ready(()) if task.polls == 1 => "found",
        Poll::Ready(()) => "woken",
        Poll::Pending => ASLEEP,
    }
}

#[test]
fn the_last_who_leaves_wakes_who_waits_for_that() {
    let seen = outcomes(|| {
        let registry = registry();
        let mut leaving = waiting(&registry);
        assert!(leaving.run().is_pending());
        let mut drained = draining(&registry);
        let watcher = thread::spawn(move || (drained.run(), drained));
        drop(leaving);
        told(watcher.join().unwrap())
    });
    assert_eq!(seen, ["found", "woken"]);
}

#[test]
fn of_two_who_leave_together_one_is_the_last() {
    let seen = outcomes(|| {
        let registry = registry();
        let [mut one, mut other] = [waiting(&registry), waiting(&registry)];
        assert!(one.run().is_pending() && other.run().is_pending());
        let mut drained = draining(&registry);
        let parked = drained.run();
        let leaver = thread::spawn(move || drop(one));
        drop(other);
        leaver.join().unwrap();
        told((parked, drained))
    });
    assert_eq!(seen, ["woken"]);
}

/// One that is refused for want of room was never among those who wait.
#[test]
fn a_refused_wait_keeps_nobody_from_being_told() {
    let seen = outcomes(|| {
        let limits = Limits { waits: 1, ..Limits::default() };
        let registry = Arc::new(Registry::new(limits, Retention::unbounded()));
        let mut leaving = waiting(&registry);
        assert!(leaving.run().is_pending());
        let mut drained = draining(&registry);
        let parked = drained.run();
        let mut coming = waiting(&registry);
        let comer = thread::spawn(move || coming.run());
        drop(leaving);
        // Beside the one that left, or after it. One that got in leaves again right here.
        match (comer.join().unwrap(), told((parked, drained))) {
            (Poll::Ready(WaitEnd::Refused(Error::Full(Limit::Waits))), "woken") => "refused",
            (Poll::Pending, "woken") => "let in",
            (_, told) => told,
        }
    });
    assert_eq!(seen, ["let in", "refused"]);
}

/// A place with one inside and room for no more, whose last to leave wakes who waits for that.
struct Room {
    inside: AtomicUsize,
    watchers: Mutex<Waiters>,
}

impl Room {
    fn new() -> Arc<Self> {
        Arc::new(Self { inside: AtomicUsize::new(1), watchers: Mutex::new(Waiters::default()) })
    }

    fn leave(&self) {
        if self.inside.fetch_sub(1, Ordering::AcqRel) == 1 {
            let woken = self.watchers.lock().take();
            woken.wake();
        }
    }

    fn counts_under_the_lock(&self, cx: &Context<'_>) -> Poll<()> {
        let mut watchers = self.watchers.lock();
        if self.inside.load(Ordering::Acquire) == 0 {
            return Poll::Ready(());
        }
        watchers.park(cx.waker().clone());
        Poll::Pending
    }

    fn counts_before_the_lock(&self, cx: &Context<'_>) -> Poll<()> {
        if self.inside.load(Ordering::Acquire) == 0 {
            return Poll::Ready(());
        }
        self.watchers.lock().park(cx.waker().clone());
        Poll::Pending
    }

    /// Comes in, and leaves again; or is refused.
    fn looks_before_it_counts(&self) {
        let admit = |inside| (inside < 1).then_some(inside + 1);
        if self.inside.fetch_update(Ordering::AcqRel, Ordering::Acquire, admit).is_ok() {
            self.leave();
        }
    }

    fn counts_and_takes_it_back(&self) {
        if self.inside.fetch_add(1, Ordering::AcqRel) >= 1 {
            self.inside.fetch_sub(1, Ordering::AcqRel);
        } else {
            self.leave();
        }
    }
}

fn the_last_leaves(poll: fn(&Room, &Context<'_>) -> Poll<()>) -> &'static str {
    let room = Room::new();
    let mut task = Task::new({
        let room = room.clone();
        move |cx: &mut Context<'_>| poll(&room, cx)
    });
    let watcher = thread::spawn(move || (task.run(), task));
    room.leave();
    told(watcher.join().unwrap())
}

#[test]
fn the_count_is_read_under_the_lock() {
    assert_eq!(outcomes(|| the_last_leaves(Room::counts_under_the_lock)), ["found", "woken"]);
    assert_eq!(outcomes(|| the_last_leaves(Room::counts_before_the_lock)), [ASLEEP, "found", "woken"]);
}

fn the_last_leaves_as_another_comes(come: fn(&Room)) -> &'static str {
    let room = Room::new();
    let mut task = Task::new({
        let room = room.clone();
        move |cx: &mut Context<'_>| room.counts_under_the_lock(cx)
    });
    let parked = task.run();
    let comer = thread::spawn({
        let room = room.clone();
        move || come(&room)
    });
    room.leave();
    comer.join().unwrap();
    told((parked, task))
}

#[test]
fn who_is_refused_was_never_counted() {
    assert_eq!(outcomes(|| the_last_leaves_as_another_comes(Room::looks_before_it_counts)), ["woken"]);
    assert_eq!(outcomes(|| the_last_leaves_as_another_comes(Room::counts_and_takes_it_back)), [ASLEEP, "woken"]);
}
