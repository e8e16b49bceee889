//! What a node holds of a log that is kept elsewhere is all of it, whatever was heard.

use super::*;
use crate::{engine::Reason, registry::tests::fake_engine::engine::notice};

const SOON: Duration = Duration::from_secs(1);

/// Something is appended while somebody joins: after it was read what there is, before that is known.
async fn joined_amid(without: Option<Invariant>) -> Vec<u64> {
    let node = Node::without(without).await;
    node.engine.append(1);
    node.engine.world().hold_reads = true;
    let engine = node.engine.clone();
    let amid = async move {
        settle().await;
        engine.append(2);
        settle().await;
        engine.go_on();
    };
    tokio::join!(node.collect(2, SOON), amid).0
}

#[tokio::test(start_paused = true)]
async fn a_channel_is_subscribed_to_then_read_and_then_what_was_heard_meanwhile_is_taken_in() {
    assert_eq!(joined_amid(None).await, [1, 2]);
    assert_eq!(joined_amid(Some(Invariant::Order)).await, [1], "the control");
    assert_eq!(joined_amid(Some(Invariant::Drain)).await, [1], "the control");
}

async fn gap(without: Option<Invariant>) -> Vec<u64> {
    let node = Node::without(without).await;
    node.engine.append(1);
    node.read(Start::Earliest).await;
    node.engine.world().mute = true;
    node.engine.append(2);
    node.engine.world().mute = false;
    node.engine.append(3);
    settle().await;
    node.collect(3, SOON).await
}

#[tokio::test(start_paused = true)]
async fn what_does_not_follow_is_read_from_the_log() {
    assert_eq!(gap(None).await, [1, 2, 3]);
    assert_eq!(gap(Some(Invariant::Continuity)).await, [1, 3], "the control");
}

#[tokio::test(start_paused = true)]
async fn what_is_heard_twice_or_late_is_taken_in_once_and_nothing_is_read_for_it() {
    let node = Node::without(None).await;
    let first = node.engine.append(1);
    node.read(Start::Earliest).await;
    let (second, third) = (node.engine.append(2), node.engine.append(3));
    settle().await;
    let reads = node.engine.world().count("read");
    for (at, before, number) in [(third, second, 3), (second, first, 2), (third, second, 3)] {
        node.engine.world().tell(NAME, notice(at, before, number));
    }
    settle().await;
    assert_eq!(node.collect(3, SOON).await, [1, 2, 3]);
    assert_eq!(node.engine.world().count("read"), reads);
}

#[tokio::test(start_paused = true)]
async fn what_is_heard_of_another_log_of_that_name_is_no_old_news() {
    let node = Node::without(None).await;
    for number in 0..100 {
        node.engine.append(number);
    }
    let (_, place) = node.read(Start::Earliest).await;
    // Nobody says that it is gone, nor that there is another.
    node.engine.world().mute = true;
    node.engine.world().lose_log(NAME);
    let (first, second) = (node.engine.append(1), node.engine.append(2));
    node.engine.world().mute = false;
    node.engine.world().tell(NAME, notice(second, first, 2));
    let mut wait = node.wait(place);
    let ended = ended(&mut wait, SOON).await;
    assert!(matches!(&ended, Some(WaitEnd::Gone(gone)) if gone.reason() == Reason::Ahead), "{ended:?}");
    assert_eq!(node.collect(2, SOON).await, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn more_than_is_remembered_while_a_log_is_read_is_read_again() {
    let node = Node::without(None).await;
    node.engine.append(0);
    node.engine.world().hold_reads = true;
    let engine = node.engine.clone();
    let flood = async move {
        settle().await;
        for number in 1..1_000 {
            engine.append(number);
            if number % 100 == 0 {
                settle().await;
            }
        }
        engine.go_on();
    };
    let seen = tokio::join!(node.collect(1_000, SOON), flood).0;
    assert!(seen.into_iter().eq(0..1_000));
}

#[tokio::test(start_paused = true)]
async fn deletion_ends_a_wait_and_what_is_made_then_is_another_channel() {
    let node = Node::without(None).await;
    let mut wait = node.parked_after(1).await;
    node.engine.world().delete(NAME);
    assert!(matches!(ended(&mut wait, SOON).await, Some(WaitEnd::Deleted)));
    // Who comes now waits for what is made next.
    let (_, place) = node.read(Start::Tail).await;
    let mut wait = Box::pin(Wait::new(node.registry.clone(), NAME, place, false));
    assert!(poll(&mut wait).is_pending());
    node.engine.append(2);
    let Some(WaitEnd::Read(reading)) = ended(&mut wait, SOON).await else { panic!("it is made") };
    assert_eq!(numbers(reading), [2]);
    assert_eq!(node.collect(1, SOON).await, [2]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_stream_is_heard_and_read() {
    for heard in [true, false] {
        let node = Node::without(None).await;
        let mut wait = node.parked_after(1).await;
        node.engine.world().mute = !heard;
        node.engine.world().close(NAME);
        node.engine.world().mute = false;
        let ended = ended(&mut wait, Duration::from_secs(25)).await;
        assert!(matches!(&ended, Some(WaitEnd::Read(reading)) if reading.closed && reading.is_empty()), "{ended:?}");
    }
}

async fn cut(without: Option<Invariant>) -> Vec<u64> {
    let node = Node::without(without).await;
    let mut wait = node.parked_after(1).await;
    node.engine.world().down = true;
    node.engine.world().cut();
    seconds(5).await;
    assert!(node.registry.health().is_err());
    assert!(poll(&mut wait).is_pending(), "a parked wait stays parked");
    node.engine.append(2);
    node.engine.world().down = false;
    match ended(&mut wait, Duration::from_secs(5)).await {
        Some(WaitEnd::Read(reading)) => numbers(reading),
        None => Vec::new(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_cut_everything_is_read_again() {
    assert_eq!(cut(None).await, [2]);
    assert_eq!(cut(Some(Invariant::ReadAgain)).await, [0; 0], "the control");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_set_back_is_told_to_who_is_beyond() {
    for (grows, reason) in [(0, Reason::Ahead), (5, Reason::OtherLog), (20, Reason::OtherLog)] {
        let node = Node::without(None).await;
        for number in 0..10 {
            node.engine.append(number);
        }
        let (_, place) = node.read(Start::Earliest).await;
        let mut wait = node.wait(place);
        assert!(poll(&mut wait).is_pending());
        {
            let mut world = node.engine.world();
            world.cut();
            world.set_back(NAME, 5);
            for number in 0..grows {
                world.append(NAME, 100 + number);
            }
        }
        let ended = ended(&mut wait, Duration::from_secs(5)).await;
        assert!(matches!(&ended, Some(WaitEnd::Gone(gone)) if gone.reason() == reason), "{grows}: {ended:?}");
    }
}

async fn unheard(without: Option<Invariant>) -> bool {
    let node = Node::without(without).await;
    seconds(10).await;
    assert!(node.registry.health().is_ok());
    let connections = node.engine.world().connections;
    node.engine.world().mute = true;
    seconds(3).await;
    node.engine.world().connections > connections
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_probes_are_not_heard_is_given_up() {
    assert!(unheard(None).await);
    assert!(!unheard(Some(Invariant::Probe)).await, "the control");
}

async fn vanished(without: Option<Invariant>) -> bool {
    let node = Node::without(without).await;
    let mut wait = node.parked_after(1).await;
    node.engine.world().lose_log(NAME);
    matches!(ended(&mut wait, Duration::from_secs(25)).await, Some(WaitEnd::Deleted))
}

#[tokio::test(start_paused = true)]
async fn a_quiet_channel_is_compared_with_its_log() {
    assert!(vanished(None).await);
    assert!(!vanished(Some(Invariant::Compare)).await, "the control");
}

#[tokio::test(start_paused = true)]
async fn comparing_keeps_nobody_waiting_and_wakes_nobody() {
    let node = Node::without(None).await;
    let mut wait = node.parked_after(1).await;
    let reads = node.engine.world().count("read");
    node.engine.world().hold_reads = true;
    seconds(25).await;
    assert_eq!(node.engine.world().count("compare"), 1, "it is being compared");
    // Meanwhile it is live.
    node.engine.append(2);
    settle().await;
    assert!(matches!(poll(&mut wait), Poll::Ready(WaitEnd::Read(_))));
    assert_eq!(node.collect(2, SOON).await, [1, 2]);
    node.engine.go_on();
    settle().await;
    assert_eq!(node.engine.world().count("read"), reads, "what was heard meanwhile is no doubt");
}
