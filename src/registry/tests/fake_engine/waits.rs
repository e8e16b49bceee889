//! Who waits, who is ahead, who leaves, and who is kept out.

use super::*;
use crate::{Error, engine::Reason};

const SOON: Duration = Duration::from_secs(1);

/// A client has read on another node what this one has not heard of yet.
async fn ahead(without: Option<Invariant>) -> (bool, Vec<u64>) {
    let node = Node::without(without).await;
    node.engine.append(1);
    node.read(Start::Earliest).await;
    node.engine.world().be_late();
    let place = node.engine.append(2);
    let mut wait = node.wait(place);
    let sent_back = matches!(ended(&mut wait, SOON).await, Some(WaitEnd::Gone(_)));
    node.engine.append(3);
    node.engine.world().hear();
    let next = match ended(&mut wait, SOON).await {
        Some(WaitEnd::Read(reading)) => numbers(reading),
        _ => Vec::new(),
    };
    (sent_back, next)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_ahead_of_this_node_waits() {
    assert_eq!(ahead(None).await, (false, vec![3]));
    assert!(ahead(Some(Invariant::Ahead)).await.0, "the control");
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_more_than_is_held_has_it_from_the_engine() {
    let node = Node::without(None).await;
    let first = node.engine.append(0);
    node.read(Start::Earliest).await;
    let mut wait = node.wait(first);
    assert!(poll(&mut wait).is_pending());
    for number in 1..400 {
        node.engine.append(number);
    }
    settle().await;
    assert!(node.registry.peek_local(NAME).unwrap().unwrap().history <= 256);
    let Some(WaitEnd::Read(reading)) = ended(&mut wait, SOON).await else { panic!("there is something") };
    assert!(numbers(reading).into_iter().eq(1..400));
    // A read from the beginning is one from the log's, not from what is held.
    assert!(node.read(Start::Earliest).await.0.into_iter().eq(0..400));
}

#[tokio::test(start_paused = true)]
async fn a_channel_lingers_after_its_last_waiter_and_not_for_ever() {
    let node = Node::without(None).await;
    let wait = node.parked_after(1).await;
    let place = wait.after();
    seconds(60).await;
    assert!(node.engine.world().is_subscribed(NAME), "somebody waits");
    drop(wait);
    seconds(13).await;
    assert!(node.engine.world().is_subscribed(NAME), "somebody may be back");
    let reads = node.engine.world().count("read");
    assert_eq!(node.read(Start::After(place)).await.0, [0; 0]);
    assert_eq!(node.engine.world().count("read"), reads, "and costs nothing");
    seconds(18).await;
    assert!(!node.engine.world().is_subscribed(NAME));
    let usage = node.registry.usage();
    assert_eq!((node.registry.names().count(), usage.channels(), usage.history(), usage.followed()), (0, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_nobody_polls_outlives_the_following_of_its_channel() {
    let node = Node::without(None).await;
    node.engine.append(1);
    let (_, place) = node.read(Start::Earliest).await;
    // A client that reads slowly: it is not parked.
    let mut wait = node.wait(place);
    seconds(30).await;
    assert!(!node.engine.world().is_subscribed(NAME));
    node.engine.append(2);
    let Some(WaitEnd::Read(reading)) = ended(&mut wait, SOON).await else { panic!("it goes on where it was") };
    assert_eq!(numbers(reading), [2]);
}

#[tokio::test(start_paused = true)]
async fn a_wait_on_what_is_gone_when_it_is_followed_again_is_told() {
    let node = Node::without(None).await;
    node.engine.append(1);
    let (_, place) = node.read(Start::Earliest).await;
    let mut wait = node.wait(place);
    seconds(30).await;
    node.engine.world().delete(NAME);
    assert!(matches!(ended(&mut wait, SOON).await, Some(WaitEnd::Deleted)));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_began_while_nothing_could_be_followed_is_followed_later() {
    let node = Node::without(None).await;
    let place = node.engine.append(1);
    node.engine.world().down = true;
    node.engine.world().cut();
    settle().await;
    let mut wait = node.wait(place);
    assert!(poll(&mut wait).is_pending());
    node.engine.append(2);
    node.engine.world().down = false;
    let Some(WaitEnd::Read(reading)) = ended(&mut wait, Duration::from_secs(4)).await else { panic!("it is heard of") };
    assert_eq!(numbers(reading), [2]);
}

#[tokio::test(start_paused = true)]
async fn a_parked_client_that_is_ahead_of_a_log_that_was_set_back_is_told() {
    let node = Node::without(None).await;
    node.engine.append(1);
    node.read(Start::Earliest).await;
    // It has read two more elsewhere, of which this node hears nothing before they are gone.
    node.engine.world().be_late();
    node.engine.append(2);
    let place = node.engine.append(3);
    let mut wait = node.wait(place);
    node.engine.world().down = true;
    node.engine.world().cut();
    settle().await;
    assert!(poll(&mut wait).is_pending());
    node.engine.world().set_back(NAME, 1);
    node.engine.world().down = false;
    let ended = ended(&mut wait, Duration::from_secs(4)).await;
    assert!(matches!(&ended, Some(WaitEnd::Gone(gone)) if gone.reason() == Reason::Ahead), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_could_not_be_read_is_read_again() {
    let node = Node::without(None).await;
    let place = node.engine.append(1);
    node.engine.world().refuse_reads = true;
    let refused = node.registry.read_and_follow(NAME, Start::Earliest, ALL).await;
    assert!(matches!(refused, Err(Error::Unreachable)), "{refused:?}");
    let mut wait = node.wait(place);
    assert!(poll(&mut wait).is_pending());
    node.engine.append(2);
    seconds(3).await;
    assert!(node.registry.health().is_ok(), "the connection is well");
    node.engine.world().refuse_reads = false;
    let Some(WaitEnd::Read(reading)) = ended(&mut wait, Duration::from_secs(2)).await else { panic!("it is read") };
    assert_eq!(numbers(reading), [2]);
}

#[tokio::test(start_paused = true)]
async fn closing_ends_a_wait_whose_question_is_not_answered() {
    let node = Node::without(None).await;
    node.engine.append(1);
    node.read(Start::Earliest).await;
    node.engine.world().be_late();
    let place = node.engine.append(2);
    node.engine.world().hold_reads = true;
    let mut wait = node.wait(place);
    assert!(poll(&mut wait).is_pending(), "it asks");
    node.registry.close();
    let Poll::Ready(WaitEnd::Released(reading)) = poll(&mut wait) else { panic!("it ends at once") };
    assert_eq!(reading.next, place);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_joining_leaves_nothing() {
    let node = Node::without(None).await;
    node.engine.append(1);
    node.engine.world().hold_reads = true;
    for _ in 0..100 {
        timeout(Duration::ZERO, node.registry.read_and_follow(NAME, Start::Earliest, ALL))
            .await
            .expect_err("it is held");
    }
    let entry = node.registry.map.find(NAME).expect("it is being followed");
    assert_eq!(entry.lock().replica.as_ref().map(|follow| follow.joins()), Some(0));
}

#[tokio::test(start_paused = true)]
async fn no_more_is_followed_than_may_be_and_who_is_kept_out_waits_for_room() {
    let node = Node::start_with(Limits { channels: 4, ..Limits::default() }, None).await;
    let read = async |n: usize| node.registry.read_and_follow(&format!("/n/{n}"), Start::Tail, ALL).await;
    for n in 0..4 {
        assert!(read(n).await.is_ok());
    }
    let full = read(4).await;
    assert!(matches!(full, Err(Error::Full(crate::Limit::Channels))), "{full:?}");
    assert_eq!(node.registry.names().count(), 4, "who is refused leaves nothing");
    let mut wait = node.wait(Offset::ZERO);
    assert!(poll(&mut wait).is_pending());
    // Those that nobody waits on do not linger for long.
    seconds(3).await;
    assert!(node.engine.world().is_subscribed(NAME));
    node.engine.append(1);
    assert!(matches!(ended(&mut wait, SOON).await, Some(WaitEnd::Read(_))));
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_bounded_and_who_waits_has_it_all_the_same() {
    let limits = Limits { history: 1_000, ..Limits::default() };
    let node = Node::start_with(limits, None).await;
    node.engine.append(0);
    let (_, mut place) = node.read(Start::Earliest).await;
    let mut seen = Vec::new();
    for number in 1..200 {
        let mut wait = node.wait(place);
        assert!(poll(&mut wait).is_pending());
        node.engine.append(number);
        let Some(WaitEnd::Read(reading)) = ended(&mut wait, SOON).await else { panic!("there is something") };
        place = reading.next;
        seen.extend(numbers(reading));
        assert!(node.registry.usage().history() <= 1_200, "{}", node.registry.usage().history());
    }
    assert!(seen.into_iter().eq(1..200));
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_who_has_the_channels() {
    let node = Node::without(None).await;
    node.engine.append(1);
    node.read(Start::Earliest).await;
    drop(node.registry);
    settle().await;
    assert!(node.tender.is_finished());
    assert_eq!(std::sync::Arc::strong_count(&node.engine), 1);
}
