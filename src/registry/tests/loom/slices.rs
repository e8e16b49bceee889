//! Waking that is spread over several polls, or dropped half-way.

use ::loom::thread;
use std::{sync::Arc, task::Poll};

use super::{ASLEEP, Append, Batch, NAME, Registry, WaitEnd, outcomes, registry, waiting};
use crate::registry::{WakeList, slice::Slice};

/// Appends, and wakes as many as one slice allows, which is one here.
fn publish_one_slice(registry: &Registry) -> WakeList {
    let batch = Some(Batch::value("news").unwrap());
    let mut append = Append { batch, create: Some(registry.json()), ..Append::default() };
    let (_, mut woken) = registry.append_local(registry.assert_local(), NAME, &mut append).unwrap();
    assert!(!woken.wake_some(&mut Slice::new()), "there are two waiters");
    woken
}

/// Polls one of two waiters while the other may not have been woken yet.
fn a_poll_meets_an_append(give_up: fn(WakeList)) -> &'static str {
    let registry = registry();
    let [mut first, mut second] = [waiting(&registry), waiting(&registry)];
    let parked = (first.run(), second.run());
    let publisher = thread::spawn({
        let registry = Arc::clone(&registry);
        move || give_up(publish_one_slice(&registry))
    });
    let early = second.resume(parked.1);
    let polled_early = early.is_ready();
    publisher.join().unwrap();
    match (first.resume(parked.0), second.resume(early)) {
        (Poll::Ready(WaitEnd::Read(_)), Poll::Ready(WaitEnd::Read(_))) if polled_early => "both, one of them at once",
        (Poll::Ready(WaitEnd::Read(_)), Poll::Ready(WaitEnd::Read(_))) => "both",
        (Poll::Pending, _) | (_, Poll::Pending) => ASLEEP,
        _ => "ended otherwise",
    }
}

#[test]
fn a_publisher_that_gives_up_half_way_wakes_all_waiters() {
    assert_eq!(outcomes(|| a_poll_meets_an_append(drop)), ["both", "both, one of them at once"]);
    assert_eq!(outcomes(|| a_poll_meets_an_append(WakeList::wake)), ["both", "both, one of them at once"]);
    let broken = outcomes(|| a_poll_meets_an_append(forget));
    assert_eq!(broken, [ASLEEP]);
}

#[allow(clippy::mem_forget, reason = "this is what must not happen")]
fn forget(woken: WakeList) {
    std::mem::forget(woken);
}
