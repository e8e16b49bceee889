//! The end of all waits, at once or one by one, and a wait that begins or is answered at that moment.

use ::loom::thread;
use std::{
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use super::{
    ALL, ASLEEP, NAME, NEVER, Registry, Task, WaitEnd, admitted_wait, messages_after, outcomes, publish, registry,
    registry_with_history, release, wait, waiting,
};
use crate::{
    Error,
    engine::{Offset, Reading},
    registry::{Creation, waiters::WaiterStatus},
    sync::AtomicU8,
};

#[test]
fn closing_ends_a_wait_that_began_and_refuses_one_that_begins() {
    for registry in [registry, registry_with_history] {
        let seen = outcomes(move || {
            let registry = registry();
            let mut task = waiting(&registry);
            let waiter = thread::spawn(move || (task.run(), task));
            registry.close();
            let (ended, mut task) = waiter.join().unwrap();
            match task.resume(ended) {
                Poll::Ready(WaitEnd::Released(_)) => "released",
                Poll::Ready(WaitEnd::Refused(Error::ShutDown)) => "refused",
                Poll::Ready(_) => "ended otherwise",
                Poll::Pending => ASLEEP,
            }
        });
        assert_eq!(seen, ["refused", "released"]);
    }
}

/// The same with the two steps of closing in either order.
fn closing_meets_a_new_wait(close: fn(&Registry, &AtomicU8)) -> &'static str {
    let registry = registry();
    let closed = Arc::new(AtomicU8::new(0));
    let mut task = Task::new({
        let (entry, closed) = (registry.enter(NAME), closed.clone());
        move |cx: &mut Context<'_>| {
            let mut state = entry.lock();
            if closed.load(Ordering::Acquire) == 1 {
                return Poll::Ready(());
            }
            state.waiters.park(cx.waker().clone());
            Poll::Pending
        }
    });
    let waiter = thread::spawn(move || (task.run(), task));
    close(&registry, &closed);
    let (ended, mut task) = waiter.join().unwrap();
    if task.resume(ended).is_ready() { "ended" } else { ASLEEP }
}

fn wake_everybody(registry: &Registry) {
    for entry in registry.map.entries() {
        let woken = entry.lock().waiters.take();
        woken.wake();
    }
}

#[test]
fn the_phase_is_set_before_the_lists_are_taken() {
    let sound = outcomes(|| {
        closing_meets_a_new_wait(|registry, closed| {
            closed.store(1, Ordering::Release);
            wake_everybody(registry);
        })
    });
    assert_eq!(sound, ["ended"]);
    let broken = outcomes(|| {
        closing_meets_a_new_wait(|registry, closed| {
            wake_everybody(registry);
            closed.store(1, Ordering::Release);
        })
    });
    assert_eq!(broken, [ASLEEP, "ended"]);
}

fn a_release_meets_an_append(place: fn(&Registry, &Reading) -> Offset) -> &'static str {
    let registry = registry_with_history();
    let mut wait = wait(&registry);
    let mut task = Task::new({
        let registry = registry.clone();
        move |cx: &mut Context<'_>| {
            wait.as_mut().poll(cx, NEVER, ALL).map(|ended| match ended {
                WaitEnd::Read(_) => None,
                WaitEnd::Released(reading) => Some(place(&registry, &reading)),
                _ => panic!("neither read nor released"),
            })
        }
    });
    let parked = task.run();
    registry.drain();
    let waiter = thread::spawn(move || (task.resume(parked), task));
    let appender = thread::spawn({
        let registry = registry.clone();
        move || publish(&registry)
    });
    let released = release(&registry, 1);
    appender.join().unwrap();
    let (ended, mut task) = waiter.join().unwrap();
    match task.resume(ended) {
        Poll::Ready(None) if released == 0 => "read",
        Poll::Ready(None) => "read as it was released",
        Poll::Ready(Some(place)) if messages_after(&registry, place) == 1 => "released, and found by the next wait",
        Poll::Ready(Some(_)) => "skipped",
        Poll::Pending => ASLEEP,
    }
}

#[test]
fn a_release_as_an_append_lands_skips_nothing() {
    const SOUND: [&str; 3] = ["read", "read as it was released", "released, and found by the next wait"];

    assert_eq!(outcomes(|| a_release_meets_an_append(|_, reading| reading.next)), SOUND);
    let broken = outcomes(|| a_release_meets_an_append(|registry, _| registry.tail(NAME)));
    assert_eq!(broken, [&SOUND[..], &["skipped"]].concat());
}

/// What a wait does that was polled, as far as a release needs it.
type AppendQueue = Task<Box<dyn FnMut(&mut Context<'_>) -> Poll<&'static str> + Send>>;

/// The registry's own.
fn a_wait(registry: &Arc<Registry>) -> AppendQueue {
    let mut wait = wait(registry);
    Task::new(Box::new(move |cx| {
        wait.as_mut().poll(cx, NEVER, ALL).map(|ended| match ended {
            WaitEnd::Released(_) => "released",
            _ => "ended otherwise",
        })
    }))
}

/// Takes a wake-up for nothing but that.
fn a_wait_that_parks_again(registry: &Arc<Registry>) -> AppendQueue {
    let (entry, mut key) = (registry.enter(NAME), None);
    Task::new(Box::new(move |cx| {
        let mut state = entry.lock();
        match key.map(|key| state.waiters.standing(key)) {
            Some(WaiterStatus::Released) => return Poll::Ready("released"),
            Some(WaiterStatus::Parked) => {}
            Some(WaiterStatus::Woken) | None => key = Some(state.waiters.park(cx.waker().clone())),
        }
        Poll::Pending
    }))
}

fn a_release_meets_a_poll(wait: fn(&Arc<Registry>) -> AppendQueue, release: fn(&Registry)) -> &'static str {
    let registry = registry();
    let mut task = wait(&registry);
    assert!(task.run().is_pending());
    registry.drain();
    let waiter = thread::spawn(move || (task.run(), task));
    release(&registry);
    let (ended, mut task) = waiter.join().unwrap();
    match task.resume(ended) {
        Poll::Ready(ended) => ended,
        Poll::Pending => ASLEEP,
    }
}

#[test]
fn who_is_released_does_not_park_again() {
    fn release_one(registry: &Registry) {
        assert_eq!(release(registry, 1), 1);
    }
    for wait in [a_wait, a_wait_that_parks_again] {
        assert_eq!(outcomes(move || a_release_meets_a_poll(wait, release_one)), ["released"]);
    }
    let broken = outcomes(|| a_release_meets_a_poll(a_wait_that_parks_again, wake_everybody));
    assert_eq!(broken, [ASLEEP], "woken, not marked");
}

/// Creating wakes everybody too, without a message.
fn a_release_meets_a_creation(wait: fn(&Arc<Registry>) -> AppendQueue) -> &'static str {
    let registry = registry();
    let mut task = wait(&registry);
    let parked = task.run();
    registry.drain();
    let creator = thread::spawn({
        let registry = registry.clone();
        move || {
            let content_type = Some(registry.json().clone());
            registry
                .create_local(registry.assert_local(), NAME, &Creation { content_type, ..Creation::default() })
                .map(drop)
                .unwrap();
        }
    });
    let released = release(&registry, 1);
    creator.join().unwrap();
    match task.resume(parked) {
        Poll::Ready(ended) if released == 1 => ended,
        Poll::Ready("released") => "released when it was woken",
        Poll::Ready(ended) => ended,
        Poll::Pending => ASLEEP,
    }
}

#[test]
fn a_creation_does_not_undo_a_release() {
    let sound = outcomes(|| a_release_meets_a_creation(a_wait));
    assert_eq!(sound, ["released", "released when it was woken"]);
    let broken = outcomes(|| a_release_meets_a_creation(a_wait_that_parks_again));
    assert_eq!(broken, [ASLEEP]);
}

#[test]
fn closing_as_an_append_lands_skips_nothing() {
    let seen = outcomes(|| {
        let registry = registry_with_history();
        let mut task = waiting(&registry);
        let waiter = thread::spawn(move || (task.run(), task));
        let appender = thread::spawn({
            let registry = registry.clone();
            move || publish(&registry)
        });
        registry.close();
        appender.join().unwrap();
        let (ended, mut task) = waiter.join().unwrap();
        match task.resume(ended) {
            Poll::Ready(WaitEnd::Read(reading)) if reading.messages == 1 => "read",
            Poll::Ready(WaitEnd::Released(reading)) if messages_after(&registry, reading.next) == 1 => "released",
            Poll::Ready(WaitEnd::Refused(Error::ShutDown)) => "refused",
            Poll::Ready(_) => "skipped",
            Poll::Pending => ASLEEP,
        }
    });
    assert_eq!(seen, ["read", "refused", "released"]);
}

#[test]
fn a_newcomer_is_not_taken_for_who_was_released() {
    let seen = outcomes(|| {
        let registry = registry();
        let mut released = waiting(&registry);
        let parked = released.run();
        // Counted already, so that draining does not keep it out.
        let mut coming = admitted_wait(&registry);
        let mut coming = Task::new(move |cx| coming.as_mut().poll(cx, NEVER, ALL));
        registry.drain();
        let newcomer = thread::spawn(move || (coming.run(), coming));
        release(&registry, 1);
        let mut released_first = match released.resume(parked) {
            Poll::Ready(WaitEnd::Released(_)) => true,
            Poll::Ready(_) => return "ended otherwise",
            Poll::Pending => false,
        };
        drop(released);
        released_first &= registry.usage().waits() == 1;
        let (ended, mut coming) = newcomer.join().unwrap();
        publish(&registry);
        match coming.resume(ended) {
            Poll::Ready(WaitEnd::Read(_)) if released_first => "the one released, the other woken",
            _ => ASLEEP,
        }
    });
    assert_eq!(seen, ["the one released, the other woken"]);
}
