//! Redis stops, with and without what it has kept.

use std::time::Duration;
use tokio::time::sleep;

use crate::{
    common::until,
    support::{Node, Poller, Publisher, Server, Truth, Verdict, judge},
};

const CHANNEL: &str = "/c/news";

/// Four pollers on two nodes, two of which go to another node with each poll, and one who publishes.
pub struct Race {
    pub nodes: [Node; 2],
    pub publisher: Publisher,
    pub pollers: Vec<Poller>,
}

impl Race {
    pub fn start(nodes: [Node; 2], every: Duration) -> Self {
        let publisher = Publisher::start(&nodes[0], CHANNEL, 0, every);
        let roaming = |first: usize| {
            let nodes = nodes.clone();
            Poller::roaming(move |nth| nodes[(nth + first) % 2].clone(), CHANNEL)
        };
        let pollers =
            vec![Poller::start(&nodes[0], CHANNEL), Poller::start(&nodes[1], CHANNEL), roaming(0), roaming(1)];
        Self { nodes, publisher, pollers }
    }

    /// Ends it, and says of each poller how often it was told to start over, and what is wrong with what it has seen.
    pub async fn end(self) -> (Truth, Vec<(usize, Verdict)>) {
        let truth = self.publisher.stop().await;
        for node in &self.nodes {
            node.is_well(true).await;
        }
        // Whatever was on its way is there by then.
        let last = self.nodes[1].publish_surely(CHANNEL, u64::from(u32::MAX)).await;
        let now = self.nodes[1].read_all(CHANNEL).await;
        let mut acknowledged = truth.acknowledged.clone();
        acknowledged.push((last, u64::from(u32::MAX)));
        let mut verdicts = Vec::new();
        for poller in self.pollers {
            let log = poller.stop(u64::from(u32::MAX), Duration::from_secs(10)).await;
            println!("told {:?}, refused {} times", log.told, log.refused);
            verdicts.push((log.told.len(), judge(&log, &acknowledged, &now)));
        }
        (truth, verdicts)
    }
}

async fn killed(options: &[&str]) -> (Truth, Vec<(usize, Verdict)>) {
    let mut redis = Server::start_with(options).await;
    let nodes = [Node::start(&redis.url()).await, Node::start(&redis.url()).await];
    let race = Race::start(nodes, Duration::from_millis(2));
    race.publisher.goes_on(300).await;
    redis.kill();
    sleep(Duration::from_millis(1_500)).await;
    assert!(race.nodes.iter().all(|node| node.comet.health().is_err()));
    redis.run().await;
    race.publisher.goes_on(300).await;
    race.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_on_a_log_that_is_lost_is_told() {
    let (_, verdicts) = killed(&[]).await;
    for (told, verdict) in verdicts {
        assert!(told > 0);
        assert_eq!(verdict, Verdict::GOOD);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_a_redis_that_keeps_everything_is_not_noticed() {
    let (truth, verdicts) = killed(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    assert!(!truth.refused.is_empty());
    assert_eq!(verdicts, vec![(0, Verdict::GOOD); 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_paused_waits_stay_parked_and_then_nothing_is_lost() {
    let redis = Server::start().await;
    let nodes = [Node::start(&redis.url()).await, Node::start(&redis.url()).await];
    let race = Race::start(nodes, Duration::from_millis(2));
    // These poll a channel where nothing happens, and are not to notice anything.
    let (quiet, parked) = ("/c/quiet", 10);
    let place = race.nodes[0].publish_surely(quiet, 7).await;
    let waits: Vec<_> = (0..parked)
        .map(|n| {
            let node = race.nodes[n % 2].clone();
            tokio::spawn(async move { node.get(&format!("{quiet}?offset={place}&live=long-poll")).await })
        })
        .collect();
    race.publisher.goes_on(300).await;
    let waiters = || race.nodes.iter().map(|node| node.comet.channel(quiet).waiters()).sum::<usize>();
    until("all are parked", || waiters() == parked).await;

    redis.pause();
    sleep(Duration::from_secs(10)).await;
    assert!(race.nodes.iter().all(|node| node.comet.health().is_err()));
    assert!(waits.iter().all(|wait| !wait.is_finished()), "parked waits stay parked");
    redis.resume();

    race.publisher.goes_on(300).await;
    race.nodes[1].publish_surely(quiet, 8).await;
    for wait in waits {
        let seen = wait.await.expect("no panic");
        assert_eq!((seen.status.as_u16(), seen.text()), (200, "[8]"));
    }
    let nodes = race.nodes.clone();
    let (truth, verdicts) = race.end().await;
    assert_eq!(verdicts, vec![(0, Verdict::GOOD); 4]);
    let all = nodes[0].read_all(CHANNEL).await;
    let there = |number: &u64| all.iter().filter(|n| *n == number).count();
    assert!(!truth.uncertain.is_empty(), "one was on its way");
    assert!(truth.uncertain.iter().all(|number| there(number) == 1), "what was sent is done, once");
    assert!(truth.refused.iter().all(|number| there(number) == 0), "what was refused is not");
}
