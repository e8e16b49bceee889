//! What is kept, to the message and to the second, and what is left of a channel that is no more.

use std::time::Duration;
use tokio::time::advance;

use super::{AGE, ALL, NAME, close, publish_to, registry, texts, with_paused_clock};
use crate::{
    engine::{Offset, Reason, Retention, Start},
    registry::{Creation, Registry},
};

const LINGER: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(1);

fn publish(registry: &Registry, text: &str) -> Offset {
    publish_to(registry, NAME, &[text.to_owned()]).unwrap()
}

fn read(registry: &Registry, after: Offset) -> Result<Vec<String>, Reason> {
    registry.read_local(NAME, Start::After(after), ALL.into()).map(texts).map_err(|gone| gone.reason())
}

fn aging() -> Retention {
    Retention::default().age(AGE)
}

#[test]
fn the_floor_resumes_and_one_position_earlier_is_trimmed() {
    let message = r#"["x"]"#.len();
    for retention in [Retention::unbounded().appends(2), Retention::unbounded().bytes(2 * message)] {
        let registry = registry(retention);
        let places: Vec<_> = (0..4).map(|_| publish(&registry, "x")).collect();
        assert_eq!(read(&registry, Offset::ZERO), Err(Reason::Trimmed));
        assert_eq!(read(&registry, places[0]), Err(Reason::Trimmed));
        assert_eq!(read(&registry, places[1]).unwrap(), ["x", "x"], "the floor");
        assert_eq!(read(&registry, places[2]).unwrap(), ["x"]);
        assert_eq!(read(&registry, places[3]).unwrap(), [""; 0]);
    }
}

#[test]
fn a_message_is_kept_as_long_as_it_is_said_and_a_millisecond_more_is_too_late() {
    with_paused_clock(async {
        let registry = registry(aging());
        let first = publish(&registry, "first");
        advance(AGE / 2).await;
        publish(&registry, "second");
        advance(AGE / 2).await;
        assert_eq!(read(&registry, Offset::ZERO).unwrap(), ["first", "second"]);
        advance(TICK).await;
        assert_eq!(read(&registry, Offset::ZERO), Err(Reason::Trimmed));
        assert_eq!(read(&registry, first).unwrap(), ["second"]);
    });
}

#[test]
fn one_append_larger_than_all_that_is_kept_is_kept_by_itself() {
    let registry = registry(Retention::unbounded().bytes(10));
    let before = publish(&registry, "small");
    publish(&registry, &"large".repeat(10));
    assert_eq!(read(&registry, before).unwrap(), ["large".repeat(10)]);
    assert_eq!(read(&registry, Offset::ZERO), Err(Reason::Trimmed));
}

#[test]
fn who_held_the_offset_of_an_unknown_channel_is_told_that_it_was_forgotten() {
    with_paused_clock(async {
        let registry = registry(aging());
        for _ in 0..3 {
            let origin = registry.absent_tail(NAME);
            let tail = publish(&registry, "missed");
            // The queue looks at it when it has aged out, and when its readers should be back.
            advance(LINGER).await;
            assert_eq!(read(&registry, origin), Err(Reason::Unknown));
            assert_eq!(read(&registry, tail), Err(Reason::Unknown));
            assert_eq!(registry.peek_local(NAME).unwrap().map(|peek| peek.tail), None);

            let next = registry.absent_tail(NAME);
            assert_ne!(next, origin);
            assert_eq!(read(&registry, next).unwrap(), [""; 0]);
            publish(&registry, "again");
            assert_eq!(read(&registry, next).unwrap(), ["again"]);
            assert_eq!(read(&registry, origin), Err(Reason::OtherLog));
            assert_eq!(read(&registry, tail), Err(Reason::OtherLog));
            advance(2 * LINGER).await;
            registry.step(registry.now());
        }
    });
}

/// As when it is forgotten: nobody who was away can know otherwise that there was something.
#[test]
fn who_held_the_offset_of_an_unknown_channel_is_told_that_something_was_deleted() {
    let registry = registry(Retention::unbounded());
    let origin = registry.absent_tail(NAME);
    publish(&registry, "missed");
    registry.delete_local(registry.assert_local(), NAME).unwrap().1.wake();
    publish(&registry, "another");
    assert_eq!(read(&registry, origin), Err(Reason::OtherLog));
}

#[test]
fn a_channel_is_remembered_a_minute_after_its_last_reader_and_for_good_if_it_was_created() {
    with_paused_clock(async {
        let registry = registry(aging());
        let tail = publish(&registry, "news");
        for _ in 0..3 {
            advance(LINGER - TICK).await;
            assert_eq!(read(&registry, tail).unwrap(), [""; 0], "a reader came back in time");
        }
        advance(LINGER).await;
        assert_eq!(read(&registry, tail), Err(Reason::Unknown));

        let creation = Creation { content_type: Some(registry.json().clone()), ..Creation::default() };
        registry.create_local(registry.assert_local(), NAME, &creation).unwrap().1.wake();
        let tail = publish(&registry, "news");
        advance(100 * LINGER).await;
        assert_eq!(read(&registry, tail).unwrap(), [""; 0]);
        assert_eq!(registry.usage().history(), 0, "but what it held has aged out");
    });
}

#[test]
fn memory_returns_with_traffic_on_other_channels_alone() {
    const MANY: usize = 1_000;

    with_paused_clock(async {
        let registry = registry(aging());
        for n in 0..MANY {
            publish_to(&registry, &format!("/rooms/{n}"), &["a few words".to_owned()]).unwrap();
        }
        close(&registry).unwrap();
        let usage = registry.usage();
        assert_eq!((usage.channels(), usage.history() > 64 * MANY), (MANY + 1, true));
        advance(LINGER).await;
        // Two at each operation, whatever that is about.
        for done in 1..=MANY / 2 {
            registry.read_local("/elsewhere", Start::Tail, ALL.into()).unwrap();
            assert_eq!(usage.channels(), MANY + 1 - 2 * done);
        }
        registry.read_local("/elsewhere", Start::Tail, ALL.into()).unwrap();
        assert_eq!((usage.channels(), usage.history(), usage.waits()), (0, 0, 0));
        assert_eq!(registry.names().count(), 0);
    });
}
