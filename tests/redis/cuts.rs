//! The way to Redis: cut, silent, slow, or leading elsewhere.

use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

use crate::{
    common::until,
    crashes::Race,
    support::{Node, Poller, Proxy, Server, Verdict, Way},
};

/// Two nodes in a race, one of them behind a proxy.
pub struct Behind {
    pub redis: Server,
    pub proxy: Proxy,
    pub race: Race,
    /// On a channel of its own: in the race, who comes from the other node brings news.
    aside: Poller,
}

const ASIDE: &str = "/c/aside";

impl Behind {
    pub async fn start(second: impl AsyncFnOnce(&str) -> Node) -> Self {
        let redis = Server::start().await;
        let proxy = Proxy::start(redis.port()).await;
        let nodes = [Node::start(&redis.url()).await, second(&proxy.url()).await];
        let race = Race::start(nodes, Duration::from_millis(2));
        race.publisher.goes_on(200).await;
        let aside = Poller::start(&race.nodes[1], ASIDE);
        race.nodes[0].publish_surely(ASIDE, 1).await;
        until("it hears", || aside.has_seen(1)).await;
        Self { redis, proxy, race, aside }
    }

    pub fn behind(&self) -> &Node {
        &self.race.nodes[1]
    }

    /// How long it takes until the node behind the proxy hears again what is published, and is heard: it may make another connection
    /// before anybody sees that the last one was lost.
    pub async fn restored(&self) -> Duration {
        let began = Instant::now();
        // What is published from here on goes the new way.
        sleep(Duration::from_millis(50)).await;
        self.race.nodes[0].publish_surely(ASIDE, 2).await;
        until("it hears again", || self.aside.has_seen(2)).await;
        while !self.behind().publish("/c/other", 1).await.status.is_success() {
            sleep(Duration::from_millis(5)).await;
        }
        began.elapsed()
    }

    /// Whether what is published is heard by who waits at the node behind the proxy, and who has no news from elsewhere.
    #[cfg(comet_faults)]
    pub async fn hears(&self, within: Duration) -> bool {
        self.race.nodes[0].publish_surely(ASIDE, 2).await;
        timeout(within, until("it hears", || self.aside.has_seen(2))).await.is_ok()
    }

    /// How long it took the node to notice.
    pub async fn notices(&self) -> Duration {
        let began = Instant::now();
        self.behind().is_well(false).await;
        began.elapsed()
    }
}

async fn plain(url: &str) -> Node {
    Node::start(url).await
}

/// A little more than what was promised, for a machine that is busy.
const SOON: Duration = Duration::from_millis(3_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_for_a_while_lose_nothing() {
    for (subscriber, commands) in [(Way::Cut, Way::Open), (Way::Open, Way::Cut), (Way::Cut, Way::Cut)] {
        let story = Behind::start(plain).await;
        story.proxy.set(subscriber, commands);
        assert!(story.notices().await < Duration::from_secs(2));
        sleep(Duration::from_secs(3)).await;
        story.proxy.open();
        story.behind().is_well(true).await;
        story.race.publisher.goes_on(100).await;
        let (_, verdicts) = story.race.end().await;
        assert_eq!(verdicts, vec![(0, Verdict::GOOD); 4], "{subscriber:?} {commands:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_is_noticed_and_another_one_made() {
    // Nothing goes through for five seconds; the connections that there are stay silent for ever.
    let (stuck, hole) = (Way::Stuck, Way::Hole);
    for (subscriber, commands) in [(hole, hole), (stuck, stuck), (stuck, Way::Open), (Way::Open, stuck)] {
        let story = Behind::start(plain).await;
        story.proxy.set(subscriber, commands);
        let noticed = if subscriber == hole { story.notices().await } else { story.restored().await };
        assert!(noticed < SOON, "{noticed:?} for {subscriber:?} {commands:?}");
        if subscriber == hole {
            sleep(Duration::from_secs(5) - noticed).await;
            story.proxy.open();
            story.behind().is_well(true).await;
        }
        story.race.publisher.goes_on(100).await;
        let (_, verdicts) = story.race.end().await;
        assert_eq!(verdicts, vec![(0, Verdict::GOOD); 4], "{subscriber:?} {commands:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_at_the_wrong_server_is_noticed_by_what_it_does_not_hear() {
    let (story, empty) = (Behind::start(plain).await, Server::start().await);
    story.proxy.set(Way::Elsewhere(empty.port()), Way::Open);
    let noticed = story.restored().await;
    assert!(noticed < SOON && noticed > Duration::from_millis(500), "{noticed:?}");
    story.race.publisher.goes_on(100).await;
    let (_, verdicts) = story.race.end().await;
    assert_eq!(verdicts, vec![(0, Verdict::GOOD); 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_that_redis_throws_out_lose_nothing() {
    let story = Behind::start(plain).await;
    for _ in 0..8 {
        sleep(Duration::from_millis(fastrand::u64(100..600))).await;
        let thrown_out: u64 = story.redis.command("CLIENT KILL TYPE pubsub").await;
        assert!(thrown_out > 0);
    }
    story.race.publisher.goes_on(300).await;
    let (truth, verdicts) = story.race.end().await;
    assert_eq!((truth.refused.len(), verdicts), (0, vec![(0, Verdict::GOOD); 4]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_does_not_listen_is_thrown_out_and_loses_nothing() {
    let story = Behind::start(plain).await;
    story.redis.set("client-output-buffer-limit", "pubsub 65536 65536 1").await;
    story.proxy.set(Way::Stalled, Way::Open);
    // More than the sockets hold, before a probe is missed. It is none of what is published otherwise, and passed over.
    let began = Instant::now();
    let large = "x".repeat(1 << 20);
    while !story.redis.has_said("overcoming of output buffer limits") {
        let _: u64 = story.redis.command(&format!("PUBLISH comet:0:/c/news {large}")).await;
        assert!(began.elapsed() < Duration::from_secs(15), "Redis does not throw it out");
    }
    story.proxy.open();
    story.behind().is_well(true).await;
    story.race.publisher.goes_on(100).await;
    let (_, verdicts) = story.race.end().await;
    assert_eq!(verdicts, vec![(0, Verdict::GOOD); 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_from_a_node_that_has_heard_more_waits() {
    let story = late(plain).await;
    assert_eq!((story.wait, story.next), (204, 200));
}

/// What a client is answered that has read on one node, and goes on at another that hears half a second late.
pub struct Late {
    pub wait: u16,
    pub next: u16,
}

pub async fn late(second: impl AsyncFnOnce(&str) -> Node) -> Late {
    let redis = Server::start().await;
    let proxy = Proxy::start(redis.port()).await;
    let (a, b) = (Node::start(&redis.url()).await, second(&proxy.url()).await);
    let uri = "/c/late";
    a.publish_surely(uri, 1).await;
    // It follows the channel, and is not to wait for what it hears.
    assert_eq!(b.get(&format!("{uri}?offset=-1&live=long-poll")).await.text(), "[1]");
    proxy.set(Way::Late(Duration::from_millis(500)), Way::Open);
    let place = a.publish_surely(uri, 2).await;
    let poll = format!("{uri}?offset={place}&live=long-poll");
    let wait = match timeout(Duration::from_millis(200), b.get(&poll)).await {
        // It waits.
        Err(_) => 204,
        Ok(seen) => seen.status.as_u16(),
    };
    let place = a.publish_surely(uri, 3).await;
    let ahead = b.clone();
    let next = tokio::spawn(async move { ahead.get(&format!("{uri}?offset={place}&live=long-poll")).await });
    sleep(Duration::from_millis(100)).await;
    a.publish_surely(uri, 4).await;
    let next = next.await.expect("no panic");
    assert!(next.status != 200 || next.text() == "[4]", "{next:?}");
    Late { wait, next: next.status.as_u16() }
}
