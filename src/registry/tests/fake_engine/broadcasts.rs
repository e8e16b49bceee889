//! A broadcast reaches the waiters of every node, also on names without a channel.

use super::*;
use crate::{
    Broadcast, Error,
    engine::{Announcement, Batch, Notice},
};

const SOON: Duration = Duration::from_secs(1);

/// A broadcast of a number by another node, to `/events/` and one segment.
fn of_another_node(id: u64, number: u64) -> Notice {
    let batch = Batch::value(&number).expect("JSON");
    Notice::Broadcast(Announcement { id, pattern: "/events/{name}".to_owned(), batch })
}

impl Node {
    /// A wait on a channel that does not exist, parked.
    async fn parked_on(&self, name: &str) -> Pin<Box<Wait>> {
        let reading = self.registry.read_and_follow(name, Start::Tail, ALL).await.expect("nothing");
        let mut wait = Box::pin(Wait::new(self.registry.clone(), name, reading.next, false));
        assert!(poll(&mut wait).is_pending());
        wait
    }

    fn receive(&self, notice: Notice) {
        self.engine.world().tell("", notice);
    }

    fn appends(&self) -> usize {
        self.engine.world().count("append")
    }
}

async fn read(wait: &mut Pin<Box<Wait>>) -> Vec<u64> {
    match ended(wait, SOON).await {
        Some(WaitEnd::Read(reading)) => numbers(reading),
        Some(ended) => panic!("{ended:?}"),
        None => Vec::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_of_another_node_is_appended_to_names_with_waiters_and_no_channel() {
    let node = Node::without(None).await;
    let mut absent = [node.parked_on("/events/a").await, node.parked_on("/events/b").await];
    let mut other = node.parked_on("/jobs/a").await;
    let mut existing = node.parked_after(1).await;
    // Followed, but without a waiter.
    node.registry.read_and_follow("/events/c", Start::Tail, ALL).await.expect("nothing");
    seconds(10).await;
    node.receive(of_another_node(7, 5));
    for wait in &mut absent {
        assert_eq!(read(wait).await, [5]);
    }
    assert!(poll(&mut other).is_pending());
    assert!(poll(&mut existing).is_pending(), "the other node appends to what exists");
    assert_eq!(node.appends(), 2);
    assert!(!node.engine.world().exists("/events/c"));
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_that_another_node_has_appended_is_appended_once() {
    let node = Node::without(None).await;
    let mut wait = node.parked_on(NAME).await;
    seconds(10).await;
    // The other node finds the channel before this one has received the notice of it.
    node.engine.world().be_late();
    node.engine.world().append_part(NAME, 7, 5);
    node.receive(of_another_node(7, 5));
    settle().await;
    assert_eq!(node.appends(), 1, "it was tried");
    node.engine.world().hear();
    assert_eq!(read(&mut wait).await, [5]);
    assert_eq!(node.collect(2, SOON).await, [5]);
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_was_created_a_moment_before_the_broadcast_was_received_has_it() {
    // The broadcasting node may have requested the names before the channel existed.
    for (after, has_it) in [(1, true), (10, false)] {
        let node = Node::without(None).await;
        let mut wait = node.parked_on(NAME).await;
        node.engine.append(1);
        let Some(WaitEnd::Read(reading)) = ended(&mut wait, SOON).await else { panic!("it was appended") };
        let mut wait = node.wait(reading.next);
        assert!(poll(&mut wait).is_pending());
        seconds(after).await;
        node.receive(of_another_node(7, 5));
        assert_eq!(read(&mut wait).await == [5], has_it, "{after} s");
    }
}

#[tokio::test(start_paused = true)]
async fn broadcasts_that_were_received_one_after_the_other_are_appended_in_that_order() {
    let node = Node::without(None).await;
    let waits: Vec<_> = (0..40).map(|n| format!("/events/{n}")).collect();
    let mut parked = Vec::new();
    for name in &waits {
        parked.push(node.parked_on(name).await);
    }
    // The last of the first broadcast is made long after the others.
    let takes = (1..=40).map(|n| if n == 40 { 10_000 } else { 1_000 });
    node.engine.world().appends_take = takes.map(Duration::from_millis).collect();
    for number in 1..=3 {
        node.receive(of_another_node(number, number));
    }
    settle().await;
    assert_eq!(node.appends(), 16, "a few at a time");
    seconds(5).await;
    assert_eq!(node.appends(), 40);
    seconds(10).await;
    let world = node.engine.world();
    for name in &waits {
        assert_eq!(world.numbers(name), [1, 2, 3], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn notices_are_received_while_a_broadcast_is_appended() {
    let node = Node::without(None).await;
    let mut wait = node.parked_after(1).await;
    let _absent = node.parked_on("/events/a").await;
    seconds(10).await;
    node.engine.world().appends_take.push_back(Duration::from_secs(3_600));
    node.receive(of_another_node(7, 5));
    settle().await;
    assert_eq!(node.appends(), 1, "it is under way");
    node.engine.append(2);
    assert_eq!(read(&mut wait).await, [2]);
    seconds(30).await;
    assert!(node.registry.health().is_ok(), "and probes are");
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_with_a_malformed_pattern_is_ignored_and_the_next_is_not() {
    let node = Node::without(None).await;
    let mut wait = node.parked_on(NAME).await;
    let batch = Batch::value(&4).expect("JSON");
    node.receive(Notice::Broadcast(Announcement { id: 6, pattern: "/{".to_owned(), batch }));
    node.receive(of_another_node(7, 5));
    assert_eq!(read(&mut wait).await, [5]);
}

#[tokio::test(start_paused = true)]
async fn a_node_appends_its_own_broadcast_to_existing_channels_and_to_names_with_waiters() {
    let node = Node::without(None).await;
    node.engine.world().append("/events/far", 1);
    node.engine.world().append("/jobs/far", 1);
    let mut absent = node.parked_on("/events/a").await;
    let mut existing = node.parked_after(1).await;
    let broadcast = |number: u64| Broadcast::new(node.registry.clone(), "/events/{name}", &number);
    assert_eq!(broadcast(5).await.expect("it answers"), 3);
    assert_eq!((read(&mut absent).await, read(&mut existing).await), (vec![5], vec![5]));
    {
        let world = node.engine.world();
        assert_eq!((world.numbers("/events/far"), world.numbers("/jobs/far")), (vec![1, 5], vec![1]));
        let [Announcement { id, pattern, batch }] = &*world.announced else { panic!("{:?}", world.announced) };
        assert_eq!((&**pattern, batch.number()), ("/events/{name}", 5));
        let first = world.journal.iter().position(|what| *what == "append");
        assert!(world.journal.iter().position(|what| *what == "announce") < first, "before anything is appended");
        // What other nodes append meanwhile is not counted: the id is the same.
        assert!(world.has_part(NAME, *id));
    }
    // Without a connection, nothing is appended.
    node.engine.world().down = true;
    node.engine.world().cut();
    let appends = node.appends();
    assert!(matches!(broadcast(6).await, Err(Error::Unreachable)));
    assert_eq!(node.appends(), appends);
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_that_is_too_large_is_not_announced() {
    let node = Node::start_with(Limits { append: 10, ..Limits::default() }, None).await;
    let large = Broadcast::new(node.registry.clone(), "/{x}", "more than ten bytes").await;
    assert!(matches!(large, Err(Error::TooLarge { limit: 10 })), "{large:?}");
    assert!(node.engine.world().announced.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_appends_to_many_channels_at_a_time_and_counts_each_once() {
    const CHANNELS: usize = 10_000;
    let node = Node::without(None).await;
    for n in 0..CHANNELS {
        node.engine.world().append(&format!("/events/{n}"), 1);
    }
    node.engine.world().ended = ["/events/ended".to_owned(), "/jobs/ended".to_owned()].into();
    let broadcast = |number: u64| Broadcast::new(node.registry.clone(), "/events/{name}", &number);
    assert_eq!(broadcast(5).await.expect("it answers"), CHANNELS);
    let world = node.engine.world();
    assert!(world.append_each.len() <= 14, "{:?}", world.append_each);
    assert_eq!(world.append_each.iter().sum::<usize>(), CHANNELS + 2, "one twice, and one that has ended");
    assert_eq!(world.ended.iter().collect::<Vec<_>>(), ["/jobs/ended"], "the engine forgets the one that was found");
}
