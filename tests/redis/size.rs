//! Many channels, and none left behind.

use std::time::{Duration, Instant};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tower_comet::Comet;

use crate::{
    common::until,
    support::{Node, Server},
};

/// With an optimiser it does ten times as many in the time.
const MANY: usize = if cfg!(debug_assertions) { 10_000 } else { 100_000 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_channels_are_live_again_within_seconds() {
    let redis = Server::start().await;
    let (node, other) = (Node::start(&redis.url()).await, Node::start(&redis.url()).await);
    let mut waits = JoinSet::new();
    for n in 0..MANY {
        let node = node.clone();
        waits.spawn(async move { node.get(&format!("/c/{n}?offset=now&live=long-poll")).await.status.as_u16() });
    }
    until("all are parked", || node.comet.waiters() == MANY).await;
    // Each is read again, or compared, after all are subscribed to.
    let looked_at = async || redis.calls("hget").await + redis.calls("hmget").await;
    let before = looked_at().await;
    let _: u64 = redis.command("CLIENT KILL TYPE pubsub").await;
    let began = Instant::now();
    let live = async {
        while looked_at().await < before + MANY as u64 {
            sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    };
    // Somebody else's appends meanwhile, one after the other.
    let appends = async {
        let mut times = Vec::new();
        while times.len() < 300 {
            let sent = Instant::now();
            other.publish_surely("/c/other", 1).await;
            times.push(sent.elapsed());
            sleep(Duration::from_millis(2)).await;
        }
        times.sort_unstable();
        times[times.len() * 99 / 100]
    };
    let (live, slow) = tokio::join!(live, appends);
    println!("{MANY} channels, live {live:.1?} after the cut; p99 of appends meanwhile {slow:.1?}");
    assert!(live < Duration::from_secs(5) && slow < Duration::from_millis(250), "{live:?} {slow:?}");

    let heard = (0..MANY).step_by(50);
    for n in heard.clone() {
        other.publish_surely(&format!("/c/{n}"), 1).await;
    }
    let mut answers = Vec::new();
    while answers.len() < heard.len() {
        answers.push(waits.join_next().await.expect("they wait").expect("no panic"));
    }
    assert!(answers.iter().all(|status| *status == 200), "each hears its own");
    node.comet.close();
    let rest = waits.join_all().await;
    assert!(rest.len() == MANY - heard.len() && rest.iter().all(|status| *status == 204));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_shuts_down_answers_its_waits_and_leaves_nothing_in_redis() {
    let redis = Server::start().await;
    let other = redis.connection().await;
    let before: Vec<String> = clients(&redis).await;
    let node = Node::start(&redis.url()).await;
    let place = node.publish_surely("/c/news", 1).await;
    let mut waits = JoinSet::new();
    for n in 0..100 {
        let node = node.clone();
        let uri = if n % 2 == 0 { format!("/c/{n}?offset=now") } else { format!("/c/news?offset={place}") };
        waits.spawn(async move { node.get(&format!("{uri}&live=long-poll")).await.status.as_u16() });
    }
    until("all are parked", || node.comet.waiters() == 100).await;
    assert_eq!(clients(&redis).await.len(), before.len() + 2, "one connection for commands, one that hears");

    let began = Instant::now();
    node.comet.close();
    while let Some(status) = waits.join_next().await {
        assert_eq!(status.expect("no panic"), 204);
    }
    assert!(began.elapsed() < Duration::from_millis(500));
    drop(node);
    let began = Instant::now();
    while clients(&redis).await.len() > before.len() {
        assert!(began.elapsed() < Duration::from_millis(500), "its connections are still there");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(redis.command::<Vec<String>>("PUBSUB CHANNELS").await, [""; 0]);
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_shuts_down_while_redis_is_silent_answers_at_once() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let place = node.publish_surely("/c/news", 1).await;
    let waits = node.clone();
    let parked = tokio::spawn(async move { waits.get(&format!("/c/news?offset={place}&live=long-poll")).await });
    until("it is parked", || node.comet.waiters() == 1).await;
    redis.pause();
    let began = Instant::now();
    node.comet.close();
    assert_eq!(parked.await.expect("no panic").status, 204);
    assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    redis.resume();
}

async fn clients(redis: &Server) -> Vec<String> {
    let clients: String = redis.command("CLIENT LIST").await;
    // The one that asks is not counted.
    clients.lines().filter(|line| !line.contains("cmd=client")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_nobody_uses_leave_nothing_behind() {
    const MOST: usize = 200;
    let redis = Server::start().await;
    let comet = Comet::builder().max_channels(MOST).redis(&redis.url()).connect().await.expect("it answers");
    let node = Node::of(comet);
    for n in 0..5_000 {
        assert_eq!(node.get(&format!("/c/{n}?offset=-1")).await.status, 200);
        assert_eq!(node.send(crate::common::request(http::Method::HEAD, &format!("/c/{n}"))).await.status, 200);
    }
    assert_eq!(node.comet.channels().count(), 0, "a read leaves nothing");

    let mut full = 0;
    for n in 0..2_000 {
        let poll = format!("/c/{n}?offset=now&live=long-poll");
        match timeout(Duration::from_millis(if n % 10 == 0 { 2 } else { 0 }), node.get(&poll)).await {
            Ok(seen) => {
                assert_eq!((seen.status.as_u16(), &*seen.reason()), (503, "full"));
                full += 1;
            }
            Err(_gone) => {}
        }
        assert!(node.comet.channels().count() <= MOST);
    }
    assert!(full > 0, "the limit was not reached");
    let began = Instant::now();
    while node.comet.channels().count() > MOST / 2 {
        assert!(began.elapsed() < Duration::from_secs(5), "they linger as if there was room");
        sleep(Duration::from_millis(20)).await;
    }
    // Somebody else has room again.
    timeout(Duration::from_millis(300), node.get("/c/other?offset=now&live=long-poll")).await.expect_err("it waits");
    let topics: Vec<String> = redis.command("PUBSUB CHANNELS").await;
    assert!(topics.len() <= MOST / 2 + 20, "{} topics", topics.len());
    // Those of the trial expire within ten seconds of the connection.
    let trial: u64 = redis.command("EXISTS comet:probe comet:probe:hash").await;
    let keys: u64 = redis.command("DBSIZE").await;
    assert!(keys <= trial, "{keys} keys");
}
