//! What is followed when a connection is lost is compared with its log on the next, and read only if it is not the same.

use super::*;

const SOON: Duration = Duration::from_secs(1);

/// What is waited on when the connection is lost, and taken up again: how often it was read then, and what is there in the end.
async fn taken_up(away: impl FnOnce(&FakeEngine), amid: impl FnOnce(&FakeEngine), all: usize) -> (usize, Vec<u64>) {
    let node = Node::without(None).await;
    let mut wait = node.parked_after(1).await;
    let reads = node.engine.world().count("read");
    node.engine.world().down = true;
    node.engine.world().cut();
    settle().await;
    away(&node.engine);
    node.engine.world().hold_reads = true;
    node.engine.world().down = false;
    seconds(3).await;
    amid(&node.engine);
    settle().await;
    node.engine.go_on();
    settle().await;
    let reads = node.engine.world().count("read") - reads;
    assert_eq!(node.engine.world().count("compare"), 1);
    assert_eq!(poll(&mut wait).is_pending(), all == 1);
    (reads, node.collect(all, SOON).await)
}

#[tokio::test(start_paused = true)]
async fn what_is_the_same_after_a_lost_connection_is_compared_and_not_read() {
    let nothing = |_: &FakeEngine| {};
    let append = |engine: &FakeEngine| {
        engine.append(2);
    };
    assert_eq!(taken_up(nothing, nothing, 1).await, (0, vec![1]));
    assert_eq!(taken_up(nothing, append, 2).await, (0, vec![1, 2]), "it was heard");
    assert_eq!(taken_up(append, nothing, 2).await, (1, vec![1, 2]), "it was not");
    let unheard = |engine: &FakeEngine| {
        engine.world().mute = true;
        engine.append(2);
        engine.world().mute = false;
        engine.append(3);
    };
    assert_eq!(taken_up(nothing, unheard, 3).await, (1, vec![1, 2, 3]), "what was heard did not follow");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_was_closed_deleted_or_is_another_since_is_read() {
    for (what, away) in [
        ("closed", (|engine| engine.world().close(NAME)) as fn(&FakeEngine)),
        ("deleted", |engine| engine.world().delete(NAME)),
        ("another", |engine| {
            engine.world().lose_log(NAME);
            engine.append(1);
        }),
    ] {
        let node = Node::without(None).await;
        let mut wait = node.parked_after(1).await;
        node.engine.world().cut();
        away(&node.engine);
        assert!(ended(&mut wait, SOON).await.is_some(), "{what}");
    }
}
