//! Each rule, taken out: if the stories above did not go wrong without it, they would not show that it holds.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use tower_comet::Rule;

use crate::{
    cuts::{Behind, late},
    joining::join,
    rolled_back::set_back,
    support::{Node, Server, Way},
};

async fn without(rule: Rule, url: &str) -> Node {
    Node::start_with(url, |redis| redis.without(rule)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_before_subscribing_loses() {
    let redis = Server::start().await;
    let nodes = [without(Rule::Order, &redis.url()).await, without(Rule::Order, &redis.url()).await];
    let joined = join(nodes, Duration::from_secs(5), Duration::from_secs(2)).await;
    println!("{joined:?}");
    assert!(joined.lost.load(Relaxed) > 0, "{joined:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_take_in_what_was_heard_meanwhile_loses() {
    let redis = Server::start().await;
    let nodes = [without(Rule::Drain, &redis.url()).await, without(Rule::Drain, &redis.url()).await];
    let joined = join(nodes, Duration::from_secs(5), Duration::from_secs(2)).await;
    println!("{joined:?}");
    assert!(joined.lost.load(Relaxed) > 0, "{joined:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_again_after_a_cut_loses() {
    let story = Behind::start(async |url: &str| without(Rule::ReadAgain, url).await).await;
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
    let story = set_back(async |url: &str| without(Rule::Fingerprint, url).await, 100).await;
    assert!(story.told == 0 && story.verdict.lost > 0, "{} {:?}", story.told, story.verdict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_miss_its_probe_loses() {
    let story = Behind::start(async |url: &str| without(Rule::Probe, url).await).await;
    let empty = Server::start().await;
    story.proxy.set(Way::Elsewhere(empty.port()), Way::Open);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(story.behind().comet.health().is_ok(), "it has noticed nothing");
    assert!(!story.hears(Duration::from_secs(3)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_a_client_that_is_ahead_for_a_stranger_sends_it_back() {
    let story = late(async |url: &str| without(Rule::Ahead, url).await).await;
    assert_eq!(story.wait, 410);
}
