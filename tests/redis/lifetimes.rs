//! Idle lifetimes (`Stream-TTL`): what keeps a channel alive in memory keeps it alive on Redis, also if a node has all that it
//! needs in its cache.

use std::time::Duration;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tower_comet::{Comet, Create, Error};

use crate::{
    common::{ask, request},
    support::{Node, Server},
};

const MILLISECOND: Duration = Duration::from_millis(1);

impl Node {
    async fn create_idle(&self, uri: &str, seconds: u64) {
        let seconds = seconds.to_string();
        let headers = [("content-type", "application/json"), ("stream-ttl", &*seconds)];
        let seen = self.send(ask(&format!("PUT {uri}"), &headers, "1")).await;
        assert_eq!(seen.status, 201, "{seen:?}");
    }

    /// Whether the channel exists, by a request that does not renew its lifetime.
    async fn exists(&self, uri: &str) -> bool {
        self.send(request(http::Method::HEAD, uri)).await.header("stream-ttl").is_some()
    }

    /// Reads for some time, and then gives up.
    async fn read_for(&self, millis: u32, uri: String) {
        drop(timeout(millis * MILLISECOND, self.get(&uri)).await);
    }

    /// Repeats a request without a pause.
    fn repeat(&self, uri: String) -> JoinHandle<()> {
        let node = self.clone();
        tokio::spawn(async move {
            loop {
                node.get(&uri).await;
                sleep(MILLISECOND).await;
            }
        })
    }
}

/// Two nodes on Redis, and one in memory under both names.
async fn nodes() -> (Server, [(&'static str, [Node; 2]); 2]) {
    let redis = Server::start().await;
    let on_redis = [Node::start(&redis.url()).await, Node::start(&redis.url()).await];
    let memory = Node::of(Comet::new());
    (redis, [("Redis", on_redis), ("memory", [memory.clone(), memory])])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_does_not_expire_while_it_has_a_waiter() {
    let (_redis, both) = nodes().await;
    for what in ["long-poll", "sse", "long-poll&timeout=1"] {
        for (engine, [creates, reads]) in &both {
            let (label, uri) = (format!("{engine}: {what}"), format!("/c/{}", what.len()));
            creates.create_idle(&uri, 1).await;
            let reader = reads.repeat(format!("{uri}?offset=now&live={what}"));
            sleep(4_000 * MILLISECOND).await;
            assert!(creates.exists(&uri).await, "{label}");
            // Also what does not keep it alive does not end the reader's keeping it alive.
            assert_eq!(creates.publish(&uri, 2).await.status, 204, "{label}");
            reader.abort();
            sleep(1_600 * MILLISECOND).await;
            assert!(!creates.exists(&uri).await, "{label}: it has no reader any more");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_channels_with_a_lifetime_of_a_second_do_not_expire_while_they_have_waiters() {
    const MANY: usize = 2_000;
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let names: Vec<_> = (0..MANY).map(|n| format!("/c/{n}")).collect();
    let mut waits = Vec::new();
    for name in &names {
        node.create_idle(name, 1).await;
        let mut subscription = node.comet.channel(name).subscribe();
        waits.push(tokio::spawn(async move { subscription.recv().await }));
    }
    crate::common::until("all wait", || node.comet.waiters() == MANY).await;
    sleep(3_000 * MILLISECOND).await;
    let ended: Vec<_> = waits.iter().filter(|wait| wait.is_finished()).collect();
    assert!(ended.is_empty(), "{}", ended.len());
    for name in &names {
        assert!(node.exists(name).await, "{name}");
    }
    for wait in waits {
        wait.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_reads_that_are_answered_at_once_renew_a_lifetime_and_head_requests_do_not() {
    let (_redis, both) = nodes().await;
    for (engine, [creates, reads]) in &both {
        for (nth, query, alive) in [(0, "?offset=-1&live=long-poll", true), (1, "?offset=-1", true), (2, "", false)] {
            let uri = format!("/c/{nth}");
            creates.create_idle(&uri, 1).await;
            reads.get(&format!("{uri}?offset=-1&live=long-poll")).await;
            for _ in 0..10 {
                sleep(300 * MILLISECOND).await;
                match query {
                    "" => _ = reads.exists(&uri).await,
                    query => _ = reads.get(&format!("{uri}{query}")).await,
                }
            }
            assert_eq!(creates.exists(&uri).await, alive, "{engine}: {query}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_live_read_late_in_a_lifetime_renews_it() {
    const READS: [(&str, u32, bool); 9] = [
        ("?offset=now&live=sse", 100, true),
        ("?offset=-1&live=sse", 100, true),
        ("?offset=TAIL&live=sse", 100, true),
        ("?offset=TAIL&live=long-poll", 100, true),
        ("?offset=now&live=long-poll", 100, true),
        ("?offset=-1&live=long-poll", 100, true),
        ("?offset=-1", 100, true),
        ("?offset=now", 100, true),
        ("nothing", 0, false),
    ];
    let (_redis, both) = nodes().await;
    let story = async |engine: &str, [creates, reads]: &[Node; 2], nth: usize, cached: bool| {
        let (query, millis, alive) = READS[nth];
        let uri = format!("/c/{nth}-{cached}");
        let began = Instant::now();
        creates.create_idle(&uri, 2).await;
        let tail = reads.get(&format!("{uri}?offset=-1")).await.offset();
        if cached {
            reads.read_for(100, format!("{uri}?offset=-1&live=long-poll")).await;
        }
        sleep_until(began + 1_300 * MILLISECOND).await;
        if query != "nothing" {
            reads.read_for(millis, format!("{uri}{query}").replace("TAIL", &tail.to_string())).await;
        }
        sleep_until(began + 2_700 * MILLISECOND).await;
        assert_eq!(creates.exists(&uri).await, alive, "{engine}: {query}, cached: {cached}");
    };
    let story = &story;
    for (engine, nodes) in &both {
        let stories = (0..READS.len()).flat_map(|nth| [false, true].map(|cached| story(engine, nodes, nth, cached)));
        futures_util::future::join_all(stories).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lifetime_of_any_length_is_reported_exactly() {
    let redis = Server::start().await;
    let nodes = [Node::start(&redis.url()).await, Node::of(Comet::new())];
    for node in &nodes {
        // 2^52 ms is the longest that Redis is given.
        for seconds in [1, 4_503_599_627_370, 4_503_599_627_371, (1 << 53) - 1, 1 << 53] {
            let uri = format!("/c/{seconds}");
            let channel = node.comet.channel(&uri);
            let create = |seconds| Create::new("text/plain").idle(Duration::from_secs(seconds));
            channel.create(create(seconds)).await.expect("room");
            channel.create(create(seconds)).await.expect("it exists, created in the same way");
            let other = channel.create(create(seconds - 1)).await;
            assert!(matches!(other, Err(Error::Conflict)), "{other:?}");
            channel.append("x").await.expect("room");
            assert_eq!(node.get(&format!("{uri}?offset=-1")).await.text(), "x");
            let fork = node.comet.channel(format!("{uri}-fork"));
            fork.create(Create::fork_of(&channel)).await.expect("room");
            for name in [channel.name(), fork.name()] {
                let head = node.send(request(http::Method::HEAD, name)).await;
                assert_eq!(head.header("stream-ttl"), Some(&*seconds.to_string()), "{name}");
            }
        }
    }
    let left: u64 = redis.command("PTTL comet:{/c/9007199254740992}:log").await;
    assert!(left > (1 << 51) && left <= 1 << 52, "{left}");
}
