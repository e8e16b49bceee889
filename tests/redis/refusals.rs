//! Redis is there, and says no.

use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

use crate::{
    crashes::Race,
    support::{Node, Server, Verdict},
};

const CHANNEL: &str = "/c/news";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_are_flushed_are_loaded_again_and_nobody_notices() {
    let redis = Server::start().await;
    let nodes = [Node::start(&redis.url()).await, Node::start(&redis.url()).await];
    let race = Race::start(nodes, Duration::from_millis(1));
    race.publisher.goes_on(100).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let _: String = redis.command("SCRIPT FLUSH").await;
        sleep(Duration::from_millis(1)).await;
    }
    let (truth, verdicts) = race.end().await;
    assert_eq!((truth.refused.len(), truth.uncertain.len()), (0, 0));
    assert_eq!(verdicts, vec![(0, Verdict::GOOD); 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_loads_it_is_out_of_reach_and_then_nothing_is_lost() {
    let mut redis = Server::start_with(&["--rdbcompression", "no"]).await;
    let nodes = [Node::start(&redis.url()).await, Node::start(&redis.url()).await];
    let race = Race::start(nodes, Duration::from_millis(2));
    race.publisher.goes_on(200).await;
    // It takes a while to load these. Meanwhile Redis answers after every 2 MB.
    let _: String = redis.command("DEBUG POPULATE 8000 ballast 2048").await;
    race.nodes[0].is_well(true).await;
    // Only what is in the snapshot comes back: so nothing is acknowledged after it.
    redis.command::<()>("CLIENT PAUSE 100000 WRITE").await;
    sleep(Duration::from_millis(50)).await;
    let _: String = redis.command("SAVE").await;
    redis.kill();
    redis.options(&["--key-load-delay", "300"]);
    redis.launch();
    crate::common::until("it loads", || redis.ping().starts_with("-LOADING")).await;
    sleep(Duration::from_millis(300)).await;
    assert!(race.nodes.iter().all(|node| node.comet.health().is_err()));
    let refused = race.nodes[0].get(&format!("{CHANNEL}?offset=-1")).await;
    assert_eq!((refused.status.as_u16(), &*refused.reason()), (503, "unreachable"));
    race.publisher.goes_on(200).await;
    let (_, verdicts) = race.end().await;
    assert_eq!(verdicts, vec![(0, Verdict::GOOD); 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_becomes_a_replica_refuses_and_nothing_is_uncertain() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let place = node.publish_surely(CHANNEL, 1).await;
    let waits = node.clone();
    let parked = tokio::spawn(async move { waits.get(&format!("{CHANNEL}?offset={place}&live=long-poll")).await });
    crate::common::until("it is parked", || node.comet.waiters() == 1).await;
    // A replica of nobody: it keeps what it has.
    let _: String = redis.command("REPLICAOF 127.0.0.1 1").await;
    for _ in 0..20 {
        let refused = node.publish(CHANNEL, 2).await;
        assert_eq!((refused.status.as_u16(), &*refused.reason()), (503, "unreachable"));
        sleep(Duration::from_millis(20)).await;
    }
    assert!(node.comet.health().is_err());
    let _: String = redis.command("REPLICAOF NO ONE").await;
    node.is_well(true).await;
    node.publish_surely(CHANNEL, 3).await;
    assert_eq!(parked.await.expect("no panic").text(), "[3]");
    assert_eq!(node.read_all(CHANNEL).await, [1, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_without_room_refuses_what_is_new_and_serves_what_there_is() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let place = node.publish_surely(CHANNEL, 1).await;
    let idle = http::Request::put("/c/idle").header("content-type", "application/json").header("stream-ttl", "100");
    assert_eq!(node.send(idle.body(http_body_util::Full::default()).expect("a request")).await.status, 201);
    redis.set("maxmemory", "1").await;
    for uri in [CHANNEL, "/c/fresh", "/c/idle"] {
        let refused = node.publish(uri, 2).await;
        assert_eq!((refused.status.as_u16(), &*refused.reason()), (503, "full"), "{uri}");
        assert!(refused.header("retry-after").is_some());
    }
    assert!(node.comet.health().is_ok(), "it can be read");
    assert_eq!(node.read_all(CHANNEL).await, [1]);
    assert_eq!(node.get("/c/fresh?offset=-1").await.text(), "[]");
    let poll = format!("{CHANNEL}?offset={place}&live=long-poll");
    timeout(Duration::from_millis(300), node.get(&poll)).await.expect_err("it waits");
    redis.set("maxmemory", "0").await;
    node.publish_surely(CHANNEL, 3).await;
    assert_eq!(node.get(&poll).await.text(), "[3]");
}
