//! What Redis lets go of: by itself, by command, or because it was asked to keep no more.

use std::time::Duration;
use tokio::time::timeout;
use tower_comet::{Offset, Retention};

use crate::{
    common::Seen,
    support::{Node, Server},
};

const CHANNEL: &str = "/c/news";
const KEYS: &str = "comet:{/c/news}:channel comet:{/c/news}:log";

/// A quiet channel is looked at this often, and a little more.
const CHECKED: Duration = Duration::from_secs(30);

/// Two nodes with a channel of two appends, the first of which somebody waits after, and the second somebody has read.
struct Story {
    redis: Server,
    nodes: [Node; 2],
    place: Offset,
    parked: tokio::task::JoinHandle<Seen>,
}

impl Story {
    async fn begin(options: &[&str]) -> Self {
        let redis = Server::start_with(options).await;
        let nodes = [Node::start(&redis.url()).await, Node::start(&redis.url()).await];
        nodes[0].publish_surely(CHANNEL, 1).await;
        let place = nodes[0].publish_surely(CHANNEL, 2).await;
        let node = nodes[0].clone();
        let parked = tokio::spawn(async move {
            loop {
                let seen = node.get(&format!("{CHANNEL}?offset={place}&live=long-poll")).await;
                if seen.status != 204 {
                    return seen;
                }
            }
        });
        crate::common::until("it is parked", || nodes[0].comet.channel(CHANNEL).waiters() == 1).await;
        Self { redis, nodes, place, parked }
    }

    /// Who waits is told, and so is who was away, on a node that follows the channel and on one that does not.
    async fn end(self, what: &str) {
        let seen = timeout(CHECKED, self.parked).await.unwrap_or_else(|_| panic!("{what}: parked for ever"));
        let seen = seen.expect("no panic");
        assert!([404, 410].contains(&seen.status.as_u16()), "{what}: {seen:?}");
        for node in &self.nodes {
            for live in ["", "&live=long-poll"] {
                let away = node.get(&format!("{CHANNEL}?offset={}{live}", self.place)).await;
                assert_eq!(away.status, 410, "{what}: {away:?}");
            }
        }
    }
}

/// Without a word, and with another append after it.
async fn vanished(what: &'static str, options: &[&str], vanish: impl AsyncFn(&Server)) {
    for again in [false, true] {
        let story = Story::begin(options).await;
        vanish(&story.redis).await;
        if again {
            story.nodes[1].publish_surely(CHANNEL, 3).await;
        }
        story.end(what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_is_taken_out_of_redis_is_told_to_who_waits_and_to_who_was_away() {
    tokio::join!(
        vanished("FLUSHALL", &[], async |redis| redis.command::<()>("FLUSHALL").await),
        vanished("DEL", &[], async |redis| redis.command::<()>(&format!("DEL {KEYS}")).await),
        vanished("DEL of what it is", &[], async |redis| redis.command::<()>("DEL comet:{/c/news}:channel").await),
        vanished("expiry", &[], async |redis| {
            for key in KEYS.split(' ') {
                redis.command::<()>(&format!("PEXPIRE {key} 1")).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }),
        vanished("eviction", &["--maxmemory-policy", "allkeys-random"], async |redis| {
            redis.set("maxmemory", "1").await;
            // What is written is refused, or evicts; at last nothing is left.
            while redis.command::<u64>("DBSIZE").await > 0 {
                let _: redis::Value = redis.command("EVAL return{redis.pcall('SET','x','y')} 0").await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            redis.set("maxmemory", "0").await;
        }),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_log_is_told_to_who_is_behind_and_not_to_who_has_seen_all_of_it() {
    let story = Story::begin(&[]).await;
    story.redis.command::<()>("DEL comet:{/c/news}:log").await;
    let first = story.nodes[1].get(&format!("{CHANNEL}?offset=-1")).await;
    assert_eq!((first.status.as_u16(), first.text(), first.offset()), (200, "[]", story.place));
    story.nodes[1].publish_surely(CHANNEL, 3).await;
    let seen = story.parked.await.expect("no panic");
    assert_eq!((seen.status.as_u16(), seen.text()), (200, "[3]"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_for_as_much_as_is_kept_resumes_and_for_more_is_told() {
    let redis = Server::start().await;
    // One reads what it holds itself, the other asks.
    let keep = || Retention::default().appends(100);
    let follows = Node::start_keeping(keep(), &redis.url(), |redis| redis).await;
    let asks = Node::start_keeping(keep(), &redis.url(), |redis| redis).await;
    let mut places = Vec::new();
    for number in 0..=300 {
        places.push(follows.publish_surely(CHANNEL, number).await);
        if number == 0 {
            follows.get(&format!("{CHANNEL}?offset=-1&live=long-poll")).await;
        }
    }
    for node in [&follows, &asks] {
        for live in ["", "&live=long-poll"] {
            let poll = async |place: Offset| node.get(&format!("{CHANNEL}?offset={place}{live}")).await;
            let all = poll(places[200]).await;
            let numbers: Vec<u64> = serde_json::from_slice(&all.body).expect("numbers");
            assert_eq!((all.status.as_u16(), numbers), (200, (201..=300).collect()), "{live}");
            let more = poll(places[199]).await;
            assert_eq!((more.status.as_u16(), &*more.reason()), (410, "trimmed"), "{live}");
            assert_eq!(more.header("stream-earliest-offset"), Some(&*places[200].to_string()), "{live}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_read_begins_at_the_earliest_that_redis_keeps_and_not_at_what_a_node_holds() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    for number in 0..1_000 {
        node.publish_surely(CHANNEL, number).await;
    }
    // It follows the channel, and holds the end of it.
    node.get(&format!("{CHANNEL}?offset=-1&live=long-poll")).await;
    let (mut offset, mut all) = ("-1".to_owned(), Vec::new());
    while all.len() < 1_000 {
        let seen = node.get(&format!("{CHANNEL}?offset={offset}&live=long-poll")).await;
        all.extend(serde_json::from_slice::<Vec<u64>>(&seen.body).expect("numbers"));
        offset = seen.offset().to_string();
    }
    assert!(all.into_iter().eq(0..1_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polls_of_a_quiet_channel_cost_redis_nothing() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let place = node.publish_surely(CHANNEL, 1).await;
    let poll = format!("{CHANNEL}?offset={place}&live=long-poll");
    let once = async || drop(timeout(Duration::from_millis(1), node.get(&poll)).await);
    timeout(Duration::from_millis(200), node.get(&poll)).await.expect_err("it waits");
    let asked = async || redis.calls("evalsha").await + redis.calls("eval").await;
    let before = asked().await;
    for _ in 0..500 {
        once().await;
    }
    let cost = asked().await - before;
    assert!(cost <= 1, "{cost} questions for 500 polls");
}
