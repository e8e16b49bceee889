//! Redis comes back with an older state than was acknowledged.

use std::time::Duration;

use crate::{
    common::until,
    support::{Node, Poller, Proxy, Server, Verdict, Way, judge},
};

const CHANNEL: &str = "/c/news";

/// Who was at 100 when the log was set back to 60, and has since grown.
pub struct Story {
    pub told: usize,
    pub away: u16,
    pub verdict: Verdict,
}

/// A log is set back from 100 to 60, and grows by some more before the node finds Redis again.
pub async fn set_back(node: impl AsyncFn(&str) -> Node, grows: u64) -> Story {
    let mut redis = Server::start().await;
    let proxy = Proxy::start(redis.port()).await;
    let node = node(&proxy.url()).await;
    let poller = Poller::start(&node, CHANNEL);
    let mut acknowledged = Vec::new();
    for number in 0..60 {
        acknowledged.push((node.publish_surely(CHANNEL, number).await, number));
    }
    let _: String = redis.command("SAVE").await;
    for number in 60..100 {
        acknowledged.push((node.publish_surely(CHANNEL, number).await, number));
    }
    until("all is seen", || poller.seen() == 100).await;
    let place = acknowledged[99].0;

    proxy.set(Way::Cut, Way::Cut);
    redis.kill();
    redis.run().await;
    let other = Node::start(&redis.url()).await;
    for number in 0..grows {
        acknowledged.push((other.publish_surely(CHANNEL, 1_000 + number).await, 1_000 + number));
    }
    proxy.open();
    node.is_well(true).await;

    // Who was away meanwhile, and comes to a node that has heard of nothing.
    let away = other.get(&format!("{CHANNEL}?offset={place}&live=long-poll")).await.status.as_u16();
    acknowledged.push((node.publish_surely(CHANNEL, 2_000).await, 2_000));
    let now = node.read_all(CHANNEL).await;
    assert_eq!(now.len() as u64, 60 + grows + 1);
    let log = poller.stop(2_000, Duration::from_secs(5)).await;
    Story { told: log.told.len(), away, verdict: judge(&log, &acknowledged, &now) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_beyond_a_log_that_was_set_back_is_told() {
    // To before the client's place, exactly to it, and past it.
    for grows in [0, 40, 100] {
        let story = set_back(async |url: &str| Node::start(url).await, grows).await;
        assert_eq!((story.told, story.away, story.verdict), (1, 410, Verdict::GOOD), "{grows}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_to_a_replica_that_lags_is_told() {
    let mut first = Server::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let replica = Server::start_with(&["--replicaof", "127.0.0.1", &first.port().to_string()]).await;
    let proxy = Proxy::start(first.port()).await;
    let nodes = [Node::start(&proxy.url()).await, Node::start(&proxy.url()).await];
    let pollers = [Poller::start(&nodes[0], CHANNEL), Poller::start(&nodes[1], CHANNEL)];
    let mut acknowledged = Vec::new();
    for number in 0..60 {
        acknowledged.push((nodes[0].publish_surely(CHANNEL, number).await, number));
    }
    while first.info("replication", "master_repl_offset").await
        != replica.info("replication", "slave_repl_offset").await
        || replica.info("replication", "slave_repl_offset").await == 0
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // From here on it hears nothing of the first.
    let _: String = replica.command("REPLICAOF 127.0.0.1 1").await;
    for number in 60..100 {
        acknowledged.push((nodes[1].publish_surely(CHANNEL, number).await, number));
    }
    until("all is seen", || pollers.iter().all(|poller| poller.seen() == 100)).await;

    first.kill();
    proxy.lead_to(replica.port());
    // A replica is no place to write to, and not taken for one.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(nodes.iter().all(|node| node.comet.health().is_err()));
    let refused = nodes[0].publish(CHANNEL, 0).await;
    assert_eq!((refused.status.as_u16(), &*refused.reason()), (503, "unreachable"));

    let _: String = replica.command("REPLICAOF NO ONE").await;
    for node in &nodes {
        node.is_well(true).await;
    }
    for number in 1_000..1_060 {
        acknowledged.push((nodes[0].publish_surely(CHANNEL, number).await, number));
    }
    let now = nodes[1].read_all(CHANNEL).await;
    assert_eq!(now.len(), 120);
    for poller in pollers {
        let log = poller.stop(1_059, Duration::from_secs(5)).await;
        assert_eq!((log.told.len(), judge(&log, &acknowledged, &now)), (1, Verdict::GOOD), "{:?}", log.told);
    }
    // The last append that each has acknowledged: the replica has that of the first, and not that of the second.
    let lost = nodes.each_ref().map(|node| node.comet.stats().lost_appends);
    assert_eq!(lost, [0, 1]);
}
