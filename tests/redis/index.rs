//! The index of names: a broadcast finds every channel in it, in few round trips, and what has no channel leaves it.

use futures_util::future::join_all;
use redis::Value;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tower_comet::Create;

use crate::support::{Node, Proxy, Server, Way};

const SHARDS: usize = 16;

/// Registered long ago.
const LONG_AGO: &str = "1000000000000";

/// All registered names, and when they were registered; with the marks of the shards.
async fn fields(redis: &Server) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    for shard in 0..SHARDS {
        fields.extend(redis.command::<BTreeMap<String, String>>(&format!("HGETALL comet:names:{shard}")).await);
    }
    fields
}

async fn names(redis: &Server) -> Vec<String> {
    fields(redis).await.into_keys().filter(|name| !name.starts_with('\0')).collect()
}

/// Sets when all names were registered.
async fn age(redis: &Server) {
    for shard in 0..SHARDS {
        let key = format!("comet:names:{shard}");
        for name in redis.command::<Vec<String>>(&format!("HKEYS {key}")).await {
            if !name.starts_with('\0') {
                let _: u64 = redis.command(&format!("HSET {key} {name} {LONG_AGO}")).await;
            }
        }
    }
}

/// The shard that a name is in.
async fn shard_of(redis: &Server, name: &str) -> String {
    for shard in 0..SHARDS {
        let key = format!("comet:names:{shard}");
        if redis.command::<u64>(&format!("HEXISTS {key} {name}")).await == 1 {
            return key;
        }
    }
    panic!("{name} is not registered");
}

async fn publish_to(node: &Node, names: impl Iterator<Item = String>) {
    let names: Vec<_> = names.collect();
    for names in names.chunks(500) {
        for made in join_all(names.iter().map(|name| node.comet.channel(name).publish(0))).await {
            made.expect("it is appended");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_to_10_000_channels_takes_at_most_20_round_trips() {
    const CHANNELS: usize = 10_000;
    let redis = Server::start().await;
    // Keys of others, which are not walked over.
    for tenth in 0..10 {
        let mut fill = redis::cmd("EVAL");
        fill.arg("for n = 1, 10000 do redis.call('SET', 'other:' .. ARGV[1] .. n, 'x') end").arg(0).arg(tenth);
        fill.exec_async(&mut redis.connection().await).await.expect("keys of others");
    }
    let proxy = Proxy::start(redis.port()).await;
    let node = Node::start(&proxy.url()).await;
    publish_to(&node, (0..CHANNELS).map(|n| format!("/c/{n}"))).await;
    assert_eq!(node.comet.broadcast("/c/{channel}", 1).await.expect("it answers"), CHANNELS, "registers all");

    let scans = redis.calls("scan").await;
    // So late that all that the node sends together is sent before the first answer.
    proxy.set(Way::Open, Way::Late(Duration::from_millis(100)));
    let before = proxy.rounds();
    assert_eq!(node.comet.broadcast("/c/{channel}", 2).await.expect("it answers"), CHANNELS);
    let rounds = proxy.rounds() - before;
    println!("{rounds} round trips, probes included");
    assert!(rounds <= 20, "{rounds}");
    assert_eq!(redis.calls("scan").await, scans, "the keyspace is not walked over");
    proxy.open();
    for name in ["/c/0", "/c/4711", "/c/9999"] {
        assert_eq!(node.read_all(name).await, [0, 1, 2], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_broadcast_registers_the_channels_that_an_index_lacks() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    publish_to(&node, (0..200).map(|n| format!("/c/{n}"))).await;
    node.comet.channel("/c/created").create(Create::new("application/json")).await.expect("it is created");
    assert_eq!(names(&redis).await.len(), 201);
    let all: String = (0..SHARDS).map(|shard| format!(" comet:names:{shard}")).collect();
    let one = shard_of(&redis, "/c/7").await;
    for lost in [&*all, &one] {
        // As a version without an index leaves them, or an eviction.
        let _: u64 = redis.command(&format!("DEL {lost}")).await;
        for (broadcast, scans) in [(1, true), (2, false)] {
            let before = redis.calls("scan").await;
            let reached = node.comet.broadcast("/c/{channel}", broadcast).await.expect("it answers");
            assert_eq!(reached, 201, "{lost}");
            assert_eq!(redis.calls("scan").await > before, scans, "{lost} {broadcast}");
        }
        assert_eq!(names(&redis).await.len(), 201, "{lost}");
    }
    assert_eq!(node.read_all("/c/7").await, [0, 1, 2, 1, 2]);
    assert_eq!(node.read_all("/c/created").await, [1, 2, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_removes_names_that_were_registered_long_ago_and_have_no_channel() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    publish_to(&node, ["/c/kept", "/c/deleted", "/c/expired", "/c/again"].map(str::to_owned).into_iter()).await;
    node.comet.broadcast("/c/{channel}", 1).await.expect("it answers");
    node.comet.channel("/c/deleted").delete().await.expect("it exists");
    redis.command::<()>("DEL comet:{/c/expired}:channel comet:{/c/expired}:log").await;
    node.comet.channel("/c/again").delete().await.expect("it exists");
    // Registered just now: the channel may be about to be created.
    assert_eq!(node.comet.broadcast("/c/{channel}", 2).await.expect("it answers"), 1);
    assert_eq!(names(&redis).await.len(), 4);

    age(&redis).await;
    publish_to(&node, ["/c/again".to_owned()].into_iter()).await;
    assert_eq!(node.comet.broadcast("/c/{channel}", 3).await.expect("it answers"), 2);
    assert_eq!(names(&redis).await, ["/c/again", "/c/kept"]);
    assert_eq!(node.comet.broadcast("/c/{channel}", 4).await.expect("it answers"), 2);
    assert_eq!(node.read_all("/c/again").await, [0, 3, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_without_a_channel_leave_the_index_without_a_broadcast() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    publish_to(&node, (0..2_000).map(|n| format!("/c/old/{n}"))).await;
    for n in 0..1_000 {
        redis.command::<()>(&format!("DEL comet:{{/c/old/{n}}}:channel comet:{{/c/old/{n}}}:log")).await;
    }
    age(&redis).await;
    // As many new channels make the node examine all names that there are.
    publish_to(&node, (0..6_000).map(|n| format!("/c/new/{n}"))).await;
    let names = names(&redis).await;
    let old = names.iter().filter(|name| name.starts_with("/c/old/")).count();
    println!("{old} old names, of which 1000 have a channel");
    assert!((1_000..1_500).contains(&old), "{old}");
    for n in 1_000..2_000 {
        assert!(names.binary_search(&format!("/c/old/{n}")).is_ok(), "{n}");
    }
    assert_eq!(node.comet.broadcast("/c/old/{channel}", 1).await.expect("it answers"), 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_registered_again_while_it_is_removed_stays() {
    let redis = Server::start().await;
    let proxy = Proxy::start(redis.port()).await;
    let (far, near) = (Node::start(&proxy.url()).await, Node::start(&redis.url()).await);
    near.comet.broadcast("/c/{channel}", 0).await.expect("it answers");
    publish_to(&near, ["/c/again".to_owned()].into_iter()).await;
    near.comet.channel("/c/again").delete().await.expect("it exists");
    age(&redis).await;
    proxy.set(Way::Open, Way::Late(Duration::from_millis(500)));
    let before = redis.calls("evalsha").await;
    let broadcast = tokio::spawn(async move { far.comet.broadcast("/c/{channel}", 1).await });
    // It has read the index, and its append has found no channel. It learns of that half a second later.
    let began = Instant::now();
    while redis.calls("evalsha").await <= before + SHARDS as u64 {
        assert!(began.elapsed() < Duration::from_secs(5), "it appends to no channel");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    near.publish_surely("/c/again", 2).await;
    assert_eq!(broadcast.await.expect("no panic").expect("it answers"), 0);
    assert_eq!(names(&redis).await, ["/c/again"]);
    assert_eq!(near.comet.broadcast("/c/{channel}", 3).await.expect("it answers"), 1);
    assert_eq!(near.read_all("/c/again").await, [2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_creates_no_channel_whose_name_was_registered_too_long_ago() {
    let redis = Server::start().await;
    redis.set("slowlog-log-slower-than", "0").await;
    let node = Node::start(&redis.url()).await;
    let forked = Create::new("application/json").content("[1]");
    node.comet.channel("/c/created").create(forked).await.expect("it is created");
    node.publish_surely("/c/appended", 1).await;
    let mut connection = redis.connection().await;
    let log: Vec<Vec<Value>> = redis.command("SLOWLOG GET -1").await;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    for name in ["/c/created", "/c/appended"] {
        let key = format!("comet:{{{name}}}:channel");
        // The newest call for the channel is the one that has created it.
        let call = log.iter().find_map(|entry| {
            let Value::Array(words) = &entry[3] else { return None };
            let words: Vec<_> =
                words.iter().map(|word| if let Value::BulkString(word) = word { &word[..] } else { b"" }).collect();
            (words[0] == b"EVALSHA" && words.contains(&key.as_bytes()) && words.last()?.len() == 13).then_some(words)
        });
        let call = call.expect("a call");
        redis.command::<()>(&format!("DEL {key} comet:{{{name}}}:log")).await;
        for (registered, creates) in [(now() - 11_000, false), (0, false), (now() - 5_000, true)] {
            let mut command = redis::cmd("EVALSHA");
            command.arg(&call[1..call.len() - 1]).arg(if registered == 0 {
                String::new()
            } else {
                registered.to_string()
            });
            let answer: Value = command.query_async(&mut connection).await.expect("it answers");
            let refused = format!("{answer:?}").contains("unindexed");
            let exists: bool = redis.command(&format!("EXISTS {key}")).await;
            assert_eq!((refused, exists), (!creates, creates), "{name} {registered}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_appends_that_create_a_channel_keep_their_order() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    for round in 0..20 {
        let names: Vec<_> = (0..5).map(|n| format!("/c/{round}-{n}")).collect();
        let appends = (0..100).flat_map(|number| names.iter().map(move |name| (name, number)));
        let made = appends.map(|(name, number)| node.comet.channel(name).publish(number));
        for made in join_all(made).await {
            made.expect("it is appended");
        }
        for name in &names {
            assert!(node.read_all(name).await.into_iter().eq(0..100), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_memory_for_the_index_no_channel_is_created() {
    let redis = Server::start_with(&["--maxmemory-policy", "noeviction"]).await;
    let node = Node::start(&redis.url()).await;
    node.publish_surely("/c/before", 1).await;
    redis.set("maxmemory", "1").await;
    for name in ["/c/created", "/c/appended"] {
        let refused = match name {
            "/c/created" => node.comet.channel(name).create(Create::new("application/json")).await,
            _ => node.comet.channel(name).publish(1).await,
        };
        assert!(matches!(refused, Err(tower_comet::Error::Full(_))), "{refused:?}");
        assert!(!redis.command::<bool>(&format!("EXISTS comet:{{{name}}}:channel")).await, "{name}");
    }
    redis.set("maxmemory", "0").await;
    node.publish_surely("/c/appended", 2).await;
    assert_eq!(node.comet.broadcast("/c/{channel}", 3).await.expect("it answers"), 2);
}
