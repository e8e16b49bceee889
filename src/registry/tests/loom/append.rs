//! An append or a deletion, and a wait that begins, times out or is dropped at that moment.

use ::loom::thread;
use std::{
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    ALL, ASLEEP, NAME, NEVER, Registry, Task, WaitEnd, messages_after, outcomes, publish, registry,
    registry_with_history, wait, waiting,
};
use crate::engine::{Offset, Reading, Start};

type AppendQueue = Box<dyn FnMut(&mut Context<'_>) -> Poll<WaitEnd> + Send>;

/// The registry's own.
fn a_wait(registry: &Arc<Registry>) -> AppendQueue {
    let mut wait = wait(registry);
    Box::new(move |cx| wait.as_mut().poll(cx, NEVER, ALL))
}

/// Looks, lets go of the lock, and registers.
fn a_wait_that_locks_twice(registry: &Arc<Registry>) -> AppendQueue {
    // In this order: who looks at an entry that holds nothing takes it out of the map.
    let after = registry.tail(NAME);
    let (registry, entry) = (registry.clone(), registry.enter(NAME));
    Box::new(move |cx| {
        let reading = registry.read_entry(&entry, &mut entry.lock(), Start::After(after), ALL, 0).unwrap();
        if !reading.is_empty() {
            return Poll::Ready(WaitEnd::Read(reading));
        }
        entry.lock().waiters.park(cx.waker().clone());
        Poll::Pending
    })
}

fn an_append_meets_a_new_wait(registry: &Arc<Registry>, wait: fn(&Arc<Registry>) -> AppendQueue) -> &'static str {
    let mut task = Task::new(wait(registry));
    let waiter = thread::spawn(move || (task.run(), task));
    publish(registry);
    let (ended, mut task) = waiter.join().unwrap();
    match task.resume(ended) {
        Poll::Ready(WaitEnd::Read(reading)) if reading.messages != 1 => "not just what is new",
        Poll::Ready(WaitEnd::Read(_)) if task.polls == 1 => "found",
        Poll::Ready(WaitEnd::Read(_)) => "woken",
        Poll::Pending => ASLEEP,
        Poll::Ready(_) => "ended otherwise",
    }
}

#[test]
fn an_append_is_found_by_a_wait_or_wakes_it() {
    for registry in [registry, registry_with_history] {
        let sound = outcomes(move || an_append_meets_a_new_wait(&registry(), a_wait));
        assert_eq!(sound, ["found", "woken"]);
        let broken = outcomes(move || an_append_meets_a_new_wait(&registry(), a_wait_that_locks_twice));
        assert_eq!(broken, [ASLEEP, "found", "woken"]);
    }
}

fn a_time_out_meets_an_append(place: fn(&Registry, &Reading) -> Offset) -> &'static str {
    let registry = registry_with_history();
    let mut wait = wait(&registry);
    let own = wait.after();
    let waiter = thread::spawn({
        let registry = registry.clone();
        move || {
            let waker = Task::new(|_| Poll::<()>::Pending).waker();
            let mut cx = Context::from_waker(&waker);
            if wait.as_mut().poll(&mut cx, NEVER, ALL).is_ready() {
                return ("found", own);
            }
            match wait.as_mut().poll(&mut cx, 0, ALL) {
                Poll::Ready(WaitEnd::Read(_)) => ("found when the time was over", own),
                Poll::Ready(WaitEnd::TimedOut(reading)) => ("timed out", place(&registry, &reading)),
                _ => (ASLEEP, own),
            }
        }
    });
    publish(&registry);
    match waiter.join().unwrap() {
        ("timed out", place) if messages_after(&registry, place) == 1 => "found by the next wait",
        ("timed out", _) => "skipped",
        (found, _) => found,
    }
}

#[test]
fn a_time_out_as_an_append_lands_skips_nothing() {
    let sound = outcomes(|| a_time_out_meets_an_append(|_, reading| reading.next));
    assert_eq!(sound, ["found", "found by the next wait", "found when the time was over"]);
    let broken = outcomes(|| a_time_out_meets_an_append(|registry, _| registry.tail(NAME)));
    assert_eq!(broken, ["found", "found by the next wait", "found when the time was over", "skipped"]);
}

#[test]
fn a_dropped_wait_takes_no_wake_up_with_it() {
    let seen = outcomes(|| {
        let registry = registry();
        let [mut dropped, mut other] = [waiting(&registry), waiting(&registry)];
        let (first, second) = (dropped.run(), other.run());
        assert!(first.is_pending() && second.is_pending());
        let bell = dropped.bell.clone();
        let leaver = thread::spawn(move || drop(dropped));
        publish(&registry);
        leaver.join().unwrap();
        let woken = *bell.rung.lock();
        match other.resume(second) {
            Poll::Ready(WaitEnd::Read(_)) if registry.waiters(NAME) > 0 => "left on the list",
            Poll::Ready(WaitEnd::Read(_)) if woken => "the other is woken too",
            Poll::Ready(WaitEnd::Read(_)) => "the other alone is woken",
            _ => ASLEEP,
        }
    });
    assert_eq!(seen, ["the other alone is woken", "the other is woken too"]);
}

#[test]
fn a_dropped_wait_takes_nobodys_place_with_it() {
    let seen = outcomes(|| {
        let registry = registry_with_history();
        let mut dropped = waiting(&registry);
        assert!(dropped.run().is_pending());
        let leaver = thread::spawn(move || drop(dropped));
        publish(&registry);
        // In the place that was vacated by the append, or by the one that leaves, or beside it.
        let mut next = waiting(&registry);
        let parked = next.run();
        assert!(parked.is_pending());
        publish(&registry);
        leaver.join().unwrap();
        match next.resume(parked) {
            Poll::Ready(WaitEnd::Read(_)) if registry.waiters(NAME) == 0 && registry.usage().waits() == 1 => "woken",
            Poll::Ready(_) => "miscounted",
            Poll::Pending => ASLEEP,
        }
    });
    assert_eq!(seen, ["woken"]);
}

fn a_deletion_meets_a_new_wait(delete: fn(&Registry), then: fn(&Registry)) -> &'static str {
    let registry = registry_with_history();
    let mut task = waiting(&registry);
    let waiter = thread::spawn(move || (task.run(), task));
    delete(&registry);
    then(&registry);
    let (ended, mut task) = waiter.join().unwrap();
    match task.resume(ended) {
        Poll::Ready(WaitEnd::Deleted) if task.polls == 1 => "found",
        Poll::Ready(WaitEnd::Deleted) => "woken",
        Poll::Ready(WaitEnd::Read(_)) => "took the next log for its own",
        Poll::Ready(_) => "ended otherwise",
        Poll::Pending => ASLEEP,
    }
}

fn delete(registry: &Registry) {
    registry.delete_local(registry.assert_local(), NAME).unwrap().1.wake();
}

/// Takes the wakers, lets go of the lock, and takes the log.
fn delete_with_two_locks(registry: &Registry) {
    registry.edit(NAME, |_, state| state.waiters.take()).wake();
    registry.edit(NAME, |entry, state| registry.tombstone(entry, state));
}

#[test]
fn a_deletion_is_found_by_a_wait_or_wakes_it() {
    fn made_again(registry: &Registry) {
        publish(registry);
    }
    assert_eq!(outcomes(|| a_deletion_meets_a_new_wait(delete, |_| ())), ["found", "woken"]);
    assert_eq!(outcomes(|| a_deletion_meets_a_new_wait(delete, made_again)), ["found", "woken"]);
    let broken = outcomes(|| a_deletion_meets_a_new_wait(delete_with_two_locks, |_| ()));
    assert_eq!(broken, [ASLEEP, "found", "woken"]);
}
