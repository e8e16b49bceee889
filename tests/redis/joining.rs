//! Joining and leaving a channel while it is published to.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tower_comet::{Comet, Retention};

use crate::{
    common::until,
    support::{Log, Node, Poller, Proxy, Publisher, Server, Verdict, Way, judge, note},
};

/// What became of clients that joined a channel that began in the same moment.
#[derive(Debug, Default)]
pub struct Joined {
    /// All of it was there already.
    pub late: AtomicUsize,
    /// Nothing was there yet.
    pub early: AtomicUsize,
    pub amid: AtomicUsize,
    /// Something did not come.
    pub lost: AtomicUsize,
}

/// Four clients on two nodes join a channel while two publish to it, again and again.
pub async fn join(nodes: [Node; 2], time: Duration, patience: Duration) -> Joined {
    const EACH: u64 = 4;
    let joined = std::sync::Arc::new(Joined::default());
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    let mut number = 0;
    while started.elapsed() < time {
        while tasks.len() >= 40 {
            tasks.join_next().await.expect("some are there").expect("no panic");
        }
        number += 1;
        let uri = format!("/c/fresh-{number}");
        for (nth, node) in nodes.iter().enumerate() {
            let (node, uri, first) = (node.clone(), uri.clone(), nth as u64 * EACH);
            tasks.spawn(async move {
                sleep(Duration::from_millis(5)).await;
                for number in first..first + EACH {
                    sleep(Duration::from_micros(fastrand::u64(..1_000))).await;
                    node.publish_surely(&uri, number).await;
                }
            });
        }
        for nth in 0..4 {
            let (node, uri, joined) = (nodes[nth % 2].clone(), uri.clone(), joined.clone());
            tasks.spawn(async move {
                sleep(Duration::from_micros(fastrand::u64(..30_000))).await;
                let (mut log, mut offset) = (Log { parts: vec![Vec::new()], ..Log::default() }, "-1".to_owned());
                let begun = Instant::now();
                let mut first = None;
                while log.parts[0].len() < 2 * EACH as usize && begun.elapsed() < patience {
                    let poll = format!("{uri}?offset={offset}&live=long-poll");
                    let Ok(seen) = timeout(patience, node.get(&poll)).await else { break };
                    note(&mut log, &seen, &mut offset);
                    first = first.or(Some(log.parts[0].len()));
                }
                assert_eq!(log.told, [""; 0]);
                let all = 2 * EACH as usize;
                match first {
                    Some(first) if first == all => &joined.late,
                    Some(1) => &joined.early,
                    _ => &joined.amid,
                }
                .fetch_add(1, Relaxed);
                joined.lost.fetch_add(all - log.parts[0].len().min(all), Relaxed);
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    std::sync::Arc::try_unwrap(joined).expect("all are done")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_while_it_is_published_to_misses_nothing() {
    let redis = Server::start().await;
    let nodes = [Node::start(&redis.url()).await, Node::start(&redis.url()).await];
    let joined = join(nodes, Duration::from_secs(5), Duration::from_secs(15)).await;
    println!("{joined:?}");
    assert_eq!(joined.lost.load(Relaxed), 0, "{joined:?}");
    let (late, early, amid) = (joined.late.load(Relaxed), joined.early.load(Relaxed), joined.amid.load(Relaxed));
    let all = late + early + amid;
    assert!(all > 500 && late.min(early).min(amid) > all / 1_000, "it is no race: {joined:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_and_comes_back_misses_nothing() {
    const CHANNELS: usize = 6;
    let redis = Server::start().await;
    let node = || async {
        // As many as it may follow: it lets go of a channel soon after the last waiter.
        let keep = Retention::default().appends(100_000).bytes(1 << 30);
        let comet = Comet::builder().max_channels(CHANNELS).retention(keep).redis(&redis.url()).connect().await;
        Node::of(comet.expect("it answers"))
    };
    let nodes = [node().await, node().await];
    let uri = |channel| format!("/c/come-and-go-{channel}");
    let publishers: Vec<_> = (0..CHANNELS)
        .map(|channel| {
            [0, 1].map(|n| Publisher::start(&nodes[n], &uri(channel), n as u64 * 1_000_000, Duration::from_millis(4)))
        })
        .collect();
    let pollers: Vec<_> = (0..4 * CHANNELS)
        .map(|n| tokio::spawn(come_and_go(nodes[n % 2].clone(), uri(n / 4), Duration::from_secs(10))))
        .collect();
    let mut followed_less = 0;
    for _ in 0..100 {
        sleep(Duration::from_millis(100)).await;
        followed_less += usize::from(nodes[0].comet.channels().count() < CHANNELS);
    }
    assert!(followed_less > 10, "no channel was let go of");
    let mut truths = Vec::new();
    for publishers in publishers {
        let mut acknowledged = Vec::new();
        for publisher in publishers {
            acknowledged.extend(publisher.stop().await.acknowledged);
        }
        acknowledged.sort_unstable();
        assert!(acknowledged.len() > 500, "{}", acknowledged.len());
        truths.push(acknowledged);
    }
    for (n, poller) in pollers.into_iter().enumerate() {
        let (mut log, mut offset) = poller.await.expect("no panic");
        let truth = &truths[n / 4];
        // And what is left.
        while log.parts[0].len() < truth.len() {
            let poll = format!("{}?offset={offset}&live=long-poll", uri(n / 4));
            let seen = timeout(Duration::from_secs(5), nodes[n % 2].get(&poll)).await.expect("more has been published");
            note(&mut log, &seen, &mut offset);
        }
        assert_eq!((log.told.len(), judge(&log, truth, &[])), (0, Verdict::GOOD));
    }
}

/// Polls for a moment, and gives each poll up within milliseconds; then is away for a while.
async fn come_and_go(node: Node, uri: String, time: Duration) -> (Log, String) {
    let (mut log, mut offset) = (Log { parts: vec![Vec::new()], ..Log::default() }, "-1".to_owned());
    let started = Instant::now();
    while started.elapsed() < time {
        let here = Instant::now();
        while here.elapsed() < Duration::from_millis(200) {
            let poll = format!("{uri}?offset={offset}&live=long-poll");
            let given = Duration::from_micros(fastrand::u64(2_000..8_000));
            if let Ok(seen) = timeout(given, node.get(&poll)).await {
                note(&mut log, &seen, &mut offset);
            }
        }
        sleep(Duration::from_millis(fastrand::u64(2_000..4_000))).await;
    }
    (log, offset)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_channels_delay_neither_messages_nor_each_other() {
    const ROUND_TRIP: Duration = Duration::from_millis(20);
    const NEW: u64 = 1_000;
    let redis = Server::start().await;
    let proxy = Proxy::start(redis.port()).await;
    let (near, far) = (Node::start(&redis.url()).await, Node::start(&proxy.url()).await);
    proxy.set(Way::Late(ROUND_TRIP), Way::Late(ROUND_TRIP));
    let poller = Poller::start(&far, "/c/live");
    near.publish_surely("/c/live", 0).await;
    until("it is followed", || poller.has_seen(0)).await;

    let joins = tokio::spawn(join_new(far.clone(), NEW));
    let mut delays = Vec::new();
    while !joins.is_finished() {
        let (sent, number) = (Instant::now(), delays.len() as u64 + 1);
        near.publish_surely("/c/live", number).await;
        until("it is delivered", || poller.has_seen(number)).await;
        delays.push(sent.elapsed());
        assert!(far.comet.health().is_ok());
    }
    let mut joins = joins.await.expect("no panic");
    let (delay, join) = (median(&mut delays), median(&mut joins));
    println!("{} messages, after {delay:.1?}; {NEW} channels, in {join:.1?}", delays.len());
    assert!(delay < 3 * ROUND_TRIP, "{delay:?}");
    // One round trip to subscribe, and one to read.
    assert!(join < 4 * ROUND_TRIP, "{join:?}");
}

/// Polls `count` new channels, one each 2 ms. Returns how long each took to answer that it has no messages.
async fn join_new(node: Node, count: u64) -> Vec<Duration> {
    let mut joins = JoinSet::new();
    for n in 0..count {
        let node = node.clone();
        joins.spawn(async move {
            let began = Instant::now();
            let seen = node.get(&format!("/c/new-{n}?offset=now&live=long-poll&timeout=0")).await;
            assert_eq!(seen.status, 204, "{seen:?}");
            began.elapsed()
        });
        sleep(Duration::from_millis(2)).await;
    }
    joins.join_all().await
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
