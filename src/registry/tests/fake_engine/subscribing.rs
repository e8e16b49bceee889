//! Subscriptions take a round trip, and nothing else waits for them.

use super::*;
use crate::{Error, engine::Notice};

const SOON: Duration = Duration::from_secs(1);

const ROUND_TRIP: Duration = Duration::from_millis(5);
const NEVER_CONFIRMED: Duration = Duration::from_secs(3_600);

impl Node {
    async fn subscribing_in(takes: Duration) -> Self {
        let node = Self::start_with(Limits { channels: 100_000, ..Limits::default() }, None).await;
        node.engine.world().subscribing_takes = takes;
        node
    }

    /// Follows a channel in another task, which returns how long that has taken.
    fn follow(&self, name: String) -> JoinHandle<Result<Duration, Error>> {
        let registry = self.registry.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            registry.read_and_follow(&name, Start::Tail, ALL).await.map(|_| began.elapsed())
        })
    }

    async fn follow_all(&self, names: impl Iterator<Item = String>) {
        let joins: Vec<_> = names.map(|name| self.follow(name)).collect();
        for join in joins {
            join.await.expect("no panic").expect("it is followed");
        }
    }

    fn queued(&self) -> usize {
        self.engine.world().queued
    }
}

fn name(n: usize) -> String {
    format!("/n/{n}")
}

#[tokio::test(start_paused = true)]
async fn messages_and_probes_are_received_while_subscriptions_are_not_confirmed() {
    let node = Node::subscribing_in(Duration::ZERO).await;
    let mut wait = node.parked_after(1).await;
    node.engine.world().subscribing_takes = NEVER_CONFIRMED;
    let joins: Vec<_> = (0..1_000).map(|n| node.follow(name(n))).collect();
    settle().await;
    let began = Instant::now();
    node.engine.append(2);
    let Some(WaitEnd::Read(reading)) = ended(&mut wait, SOON).await else { panic!("it is delivered") };
    assert_eq!((numbers(reading), began.elapsed()), (vec![2], Duration::ZERO));
    sleep(Duration::from_millis(2_900)).await;
    assert!(node.registry.health().is_ok(), "the probes are received");
    assert_eq!(node.engine.world().connections, 1);
    assert!(joins.iter().all(|join| !join.is_finished()));
    // A connection that does not confirm is dropped. The requests are refused, or wait for the next connection.
    node.engine.world().subscribing_takes = Duration::ZERO;
    seconds(1).await;
    assert_eq!(node.engine.world().connections, 2);
    assert!(joins.iter().all(|join| join.is_finished()));
    assert!(node.engine.world().is_subscribed(&name(0)));
}

#[tokio::test(start_paused = true)]
async fn channels_that_are_joined_one_after_the_other_take_one_round_trip_each() {
    let node = Node::subscribing_in(ROUND_TRIP).await;
    let mut joins = Vec::new();
    for n in 0..500 {
        joins.push(node.follow(name(n)));
        sleep(Duration::from_millis(1)).await;
    }
    for join in joins {
        assert_eq!(join.await.expect("no panic").expect("it is followed"), ROUND_TRIP);
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_channels_are_joined_and_joined_again_within_three_round_trips() {
    let node = Node::subscribing_in(ROUND_TRIP).await;
    let began = Instant::now();
    node.follow_all((0..10_000).map(name)).await;
    assert!(began.elapsed() <= 3 * ROUND_TRIP, "{:?}", began.elapsed());

    node.engine.world().cut();
    settle().await;
    assert_eq!(node.engine.world().connections, 1, "it waits for a moment before it connects again");
    while node.registry.health().is_err() {
        sleep(Duration::from_millis(1)).await;
    }
    let began = Instant::now();
    node.follow_all((0..10_000).map(name)).await;
    assert!(began.elapsed() <= 3 * ROUND_TRIP, "{:?}", began.elapsed());
    assert!((0..10_000).all(|n| node.engine.world().is_subscribed(&name(n))));
}

#[tokio::test(start_paused = true)]
async fn a_channel_is_live_only_after_its_subscription_was_confirmed_and_it_was_read_after_that() {
    let node = Node::subscribing_in(ROUND_TRIP).await;
    node.engine.append(1);
    let join = node.follow(NAME.to_owned());
    sleep(ROUND_TRIP / 2).await;
    {
        let world = node.engine.world();
        assert_eq!((world.count("subscribe"), world.count("read")), (1, 0));
    }
    // Not received, because the subscription has not taken effect.
    node.engine.append(2);
    join.await.expect("no panic").expect("it is followed");
    assert_eq!(node.collect(2, SOON).await, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_is_followed_again_while_it_is_to_be_unsubscribed_from_stays_subscribed() {
    const MANY: usize = 6_000;
    let node = Node::subscribing_in(Duration::ZERO).await;
    node.follow_all((0..MANY).map(name)).await;
    // More than may be unconfirmed at a time: the requests for some are in flight, and the others are queued.
    node.engine.world().subscribing_takes = ROUND_TRIP;
    while node.engine.world().count("unsubscribe") == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    settle().await;
    assert!(node.registry.usage().followed() == 0 && node.engine.world().is_subscribed(&name(0)));
    let again = || (0..MANY).step_by(10).map(name);
    node.follow_all(again()).await;
    seconds(1).await;
    let world = node.engine.world();
    assert!(again().all(|name| world.is_subscribed(&name)));
    assert!(!world.is_subscribed(&name(1)) && !world.is_subscribed(&name(MANY - 1)));
}

/// A waker that takes its time.
struct Slow;

impl Wake for Slow {
    fn wake(self: Arc<Self>) {
        std::thread::sleep(Duration::from_micros(20));
    }
}

#[tokio::test(start_paused = true)]
async fn notices_are_not_queued_while_many_waiters_are_woken() {
    let node = Node::subscribing_in(Duration::ZERO).await;
    let mut wait = node.parked_after(1).await;
    let slow = Waker::from(Arc::new(Slow));
    let place = wait.after();
    let mut waits: Vec<_> = (0..5_000).map(|_| node.wait(place)).collect();
    for wait in &mut waits {
        assert!(wait.as_mut().poll(&mut Context::from_waker(&slow), NEVER, ALL).is_pending());
    }
    assert!(poll(&mut wait).is_pending());
    node.engine.append(2);
    let mut turns = 0;
    // Each poll of the task wakes some.
    while node.registry.waiters(NAME) > 0 || turns < 50 {
        turns += 1;
        node.engine.append(2 + turns);
        tokio::task::yield_now().await;
        assert!(node.queued() <= 1, "{} in turn {turns}", node.queued());
    }
}

#[tokio::test(start_paused = true)]
async fn one_poll_receives_more_notices_than_the_cooperative_budget_of_tokio_allows() {
    let node = Node::subscribing_in(Duration::ZERO).await;
    for _ in 0..5_000 {
        node.engine.world().tell("", Notice::Probe(1));
    }
    let mut most = 0;
    while node.queued() > 0 {
        let before = node.queued();
        tokio::task::yield_now().await;
        most = most.max(before - node.queued());
    }
    // The budget is 128.
    assert!(most > 128, "{most}");
}
