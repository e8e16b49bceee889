//! Each rule, taken out: if the stories above did not go wrong without it, they would not show that it holds.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};
use tokio::runtime;
use tower_comet::{Create, Error, Invariant};

use crate::{
    cuts::{Behind, late},
    joining::join,
    rolled_back::set_back,
    support::{Node, Server, Way},
};

async fn without(rule: Invariant, url: &str) -> Node {
    Node::start_with(url, |redis| redis.without(rule)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_before_subscribing_loses() {
    let redis = Server::start().await;
    let nodes = [without(Invariant::Order, &redis.url()).await, without(Invariant::Order, &redis.url()).await];
    let joined = join(nodes, Duration::from_secs(5), Duration::from_secs(2)).await;
    println!("{joined:?}");
    assert!(joined.lost.load(Relaxed) > 0, "{joined:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_take_in_what_was_heard_meanwhile_loses() {
    let redis = Server::start().await;
    let nodes = [without(Invariant::Drain, &redis.url()).await, without(Invariant::Drain, &redis.url()).await];
    let joined = join(nodes, Duration::from_secs(5), Duration::from_secs(2)).await;
    println!("{joined:?}");
    assert!(joined.lost.load(Relaxed) > 0, "{joined:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_again_after_a_cut_loses() {
    let story = Behind::start(async |url: &str| without(Invariant::ReadAgain, url).await).await;
    story.proxy.set(Way::Cut, Way::Cut);
    story.behind().is_well(false).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // What is published last is published while nobody hears it.
    let Behind { redis, proxy, race, .. } = story;
    let truth = race.publisher.stop().await;
    proxy.open();
    race.nodes[1].is_well(true).await;
    let last = truth.acknowledged.last().expect("some").1;
    let mut lost = 0;
    for poller in race.pollers {
        lost += usize::from(!poller.stop(last, Duration::from_secs(3)).await.parts[0].contains(&last));
    }
    assert!(lost > 0);
    drop(redis);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_a_number_for_an_append_loses() {
    let story = set_back(async |url: &str| without(Invariant::Fingerprint, url).await, 100).await;
    assert!(story.told == 0 && story.verdict.lost > 0, "{} {:?}", story.told, story.verdict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_miss_its_probe_loses() {
    let story = Behind::start(async |url: &str| without(Invariant::Probe, url).await).await;
    let empty = Server::start().await;
    story.proxy.set(Way::Elsewhere(empty.port()), Way::Open);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(story.behind().comet.health().is_ok(), "it has noticed nothing");
    assert!(!story.hears(Duration::from_secs(3)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_a_client_that_is_ahead_for_a_stranger_sends_it_back() {
    let story = late(async |url: &str| without(Invariant::Ahead, url).await).await;
    assert_eq!(story.wait, 410);
}

/// A node is killed before each of the steps of a fork. Within the time of a pin, nothing is left, or the fork is there whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_between_two_steps_of_a_fork_leaves_nothing() {
    const PIN: Duration = Duration::from_secs(2);
    let redis = Server::start().await;
    let node = Node::start_with(&redis.url(), |redis| redis.fork_steps(None, PIN)).await;
    let (source, fork) = (node.comet.channel("/c/source"), node.comet.channel("/c/fork"));
    let (mut made, mut not_made) = (0, 0);
    for deleted in [false, true] {
        for steps in 0..14 {
            for number in 0..1_200 {
                source.publish(&number).await.expect("it is made");
            }
            let before = keys(&redis).await;
            let url = redis.url();
            let process =
                runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
            let killed = process.spawn(async move {
                let node = Node::start_with(&url, |redis| redis.fork_steps(Some(steps), PIN)).await;
                let how = Create::fork_of(&node.comet.channel("/c/source"));
                node.comet.channel("/c/fork").create(how).await
            });
            // It stops after a few milliseconds.
            tokio::time::sleep(Duration::from_millis(300)).await;
            drop(killed);
            process.shutdown_background();
            if deleted {
                source.delete().await.expect("it is deleted");
            }
            let began = Instant::now();
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let mut left = keys(&redis).await;
                let visible = left.iter().any(|key| key == "comet:{/c/fork}:channel");
                let scores = scores(&redis).await;
                let settled = if visible {
                    scores == ["inf"] && !left.iter().any(|key| key.contains("fork:") || key.ends_with("forking"))
                } else {
                    left.retain(|key| !(key.ends_with(":was") || before.contains(key)));
                    scores.is_empty() && left.is_empty()
                };
                if settled {
                    made += u32::from(visible);
                    not_made += u32::from(!visible);
                    break;
                }
                assert!(began.elapsed() < PIN, "{deleted} {steps}: {left:?} {scores:?}");
            }
            // A source that has a fork keeps its name.
            let exists = fork.delete().await;
            if deleted && exists.is_err() {
                let gone = source.delete().await;
                assert!(matches!(gone, Err(Error::Unknown)), "{steps}: {gone:?}");
            }
            drop(source.delete().await);
            let mut left = keys(&redis).await;
            left.retain(|key| !key.ends_with(":was"));
            assert!(left.is_empty(), "{deleted} {steps}: {left:?}");
        }
    }
    assert!(made >= 2 && not_made >= 18, "{made} {not_made}");
}

async fn keys(redis: &Server) -> Vec<String> {
    let mut keys: Vec<String> = redis.command("KEYS *").await;
    keys.retain(|key| !key.starts_with("comet:probe") && !key.starts_with("comet:names:"));
    keys
}

async fn scores(redis: &Server) -> Vec<String> {
    let all: Vec<String> = redis.command("ZRANGE comet:{/c/source}:forks 0 -1 WITHSCORES").await;
    all.into_iter().skip(1).step_by(2).collect()
}
