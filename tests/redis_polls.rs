//! What polls ask of Redis.
#![cfg(all(unix, feature = "redis"))]

#[path = "../examples/cluster/redis.rs"]
#[allow(dead_code, reason = "the example restarts it")]
mod server;
mod support;

use std::collections::BTreeMap;
use support::{get, send, until};
use tower_comet::{Comet, CometLayer, Route};

#[tokio::test]
async fn polls_of_a_channel_with_nothing_new_cost_redis_no_command_at_all() {
    let redis = server::Redis::start().await.expect("a redis-server");
    let comet = Comet::builder().redis(&redis.url()).connect().await.expect("a connection");
    until("Redis answers", || comet.health().is_ok()).await;
    let layer = CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone());
    let offset = comet.channel("/events/news").publish("first").await.expect("an offset");
    let poll = async |query: &str| {
        let uri = format!("/events/news?offset={offset}{query}");
        send(&layer, get(&uri)).await.status.as_u16()
    };

    // The first poll has the channel followed.
    assert_eq!(poll("&live=long-poll&timeout=0").await, 204);
    let before = commands(&redis.url()).await;
    for _ in 0..500 {
        assert_eq!(poll("&live=long-poll&timeout=0").await, 204);
    }
    assert_eq!(commands(&redis.url()).await, before);

    // Who does not wait is told what is true just now, and that only Redis knows.
    assert_eq!(poll("").await, 200);
    let after = commands(&redis.url()).await;
    assert_eq!(after["evalsha"], before["evalsha"] + 1, "{after:?}");
}

/// How often each command was called, but those of the clock and of this question.
async fn commands(url: &str) -> BTreeMap<String, u64> {
    let client = redis::Client::open(url).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.expect("an answer");
    let calls = info.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
    calls
        .map(|(command, rest)| {
            (command.to_owned(), rest.split(',').next().and_then(|n| n.parse().ok()).expect("a count"))
        })
        .filter(|(command, _)| !["publish", "info", "client|setinfo", "hello", "ping"].contains(&&**command))
        .collect()
}
