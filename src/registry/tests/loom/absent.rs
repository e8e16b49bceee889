//! Absent tails, while channels of this name and of others end.

use ::loom::thread;
use std::sync::Arc;

use super::{ALL, NAME, Registry, outcomes, publish, publish_to, registry};
use crate::engine::{Offset, Start};

/// Creates and ends a channel, with a message that a client may have missed.
fn come_and_end(registry: &Registry, end: fn(&Registry)) {
    publish(registry);
    end(registry);
}

fn delete(registry: &Registry) {
    registry.delete_local(registry.assert_local(), NAME).unwrap().1.wake();
}

/// Drops the log and numbers no ending.
fn lose(registry: &Registry) {
    registry.edit(NAME, |_, state| drop(state.log.take()));
}

fn a_reader_meets_a_channel_that_comes_and_ends(end: fn(&Registry)) -> &'static str {
    let registry = registry();
    let other = thread::spawn({
        let registry = Arc::clone(&registry);
        move || come_and_end(&registry, end)
    });
    let reading = registry.read_local(NAME, Start::Tail, ALL).unwrap();
    other.join().unwrap();
    let found = reading.content_type.is_some();
    match registry.read_local(NAME, Start::After(reading.next), ALL) {
        Err(_) if found => "read, and refused as it ended",
        Err(_) => "refused",
        Ok(_) if reading.next == Offset::ZERO => "skipped",
        Ok(_) => "began after the end",
    }
}

#[test]
fn an_absent_tail_from_before_a_channel_came_and_ended_is_refused() {
    let sound = outcomes(|| a_reader_meets_a_channel_that_comes_and_ends(delete));
    assert_eq!(sound, ["began after the end", "read, and refused as it ended", "refused"]);
    let broken = outcomes(|| a_reader_meets_a_channel_that_comes_and_ends(lose));
    assert!(broken.contains(&"skipped"), "{broken:?}");
}

fn a_reader_meets_the_end_of_another_channel(is_good: fn(&Registry, Offset) -> bool) -> &'static str {
    let registry = registry();
    let other = thread::spawn({
        let registry = Arc::clone(&registry);
        move || {
            publish_to(&registry, "/another");
            registry.delete_local(registry.assert_local(), "/another").unwrap().1.wake();
        }
    });
    let tail = registry.read_local(NAME, Start::Tail, ALL).unwrap().next;
    other.join().unwrap();
    if is_good(&registry, tail) { "good" } else { "refused" }
}

#[test]
fn the_end_of_another_channel_refuses_no_absent_tail() {
    let sound = outcomes(|| {
        a_reader_meets_the_end_of_another_channel(|registry, tail| {
            registry.read_local(NAME, Start::After(tail), ALL).is_ok()
        })
    });
    assert_eq!(sound, ["good"]);
    let shared =
        outcomes(|| a_reader_meets_the_end_of_another_channel(|registry, tail| registry.absent_tail(NAME) == tail));
    assert_eq!(shared, ["good", "refused"], "as if all names shared one count");
}
