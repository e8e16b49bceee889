//! A broadcast reaches all waiters of all nodes once, also on names without a channel.

use futures_util::future::join_all;
use http::{Method, Request};
use std::time::{Duration, Instant};
use tokio::{task::JoinHandle, time::sleep};
use tower_comet::{Offset, Retention};

use crate::{
    common::{Seen, ask, request, until},
    support::{Node, Poller, Server},
};

/// How long a transient channel lives without a reader, in milliseconds.
const LINGER: i64 = 60_000;

fn keys(name: &str) -> [String; 2] {
    ["channel", "log"].map(|key| format!("comet:{{{name}}}:{key}"))
}

async fn lives(redis: &Server, name: &str) -> [i64; 2] {
    let [channel, log] = keys(name);
    [redis.command(&format!("PTTL {channel}")).await, redis.command(&format!("PTTL {log}")).await]
}

async fn set_lives(redis: &Server, name: &str, milliseconds: u64) {
    for key in keys(name) {
        assert_eq!(redis.command::<u64>(&format!("PEXPIRE {key} {milliseconds}")).await, 1, "{key}");
    }
}

/// Begins a wait on a channel. It is parked when this returns.
async fn park(node: &Node, name: &'static str, offset: &str) -> JoinHandle<Seen> {
    let (before, poll) = (node.comet.channel(name).waiters(), format!("{name}?offset={offset}&live=long-poll"));
    let parked = node.clone();
    let wait = tokio::spawn(async move { parked.get(&poll).await });
    until("it is parked", || node.comet.channel(name).waiters() > before).await;
    wait
}

/// The absent tail of a name.
async fn absent_tail(node: &Node, name: &str) -> Offset {
    let seen = node.get(&format!("{name}?offset=now")).await;
    assert_eq!((seen.status.as_u16(), seen.text()), (200, "[]"));
    seen.offset()
}

/// Creates a transient channel: it has a waiter when 1 is broadcast.
async fn transient(redis: &Server, node: &Node, name: &'static str) -> Offset {
    let wait = park(node, name, "now").await;
    node.comet.broadcast(name, 1).await.expect("it answers");
    let seen = wait.await.expect("no panic");
    assert_eq!((seen.status.as_u16(), seen.text()), (200, "[1]"));
    for left in lives(redis, name).await {
        assert!((LINGER - 10_000..=LINGER).contains(&left), "{name}: {left}");
    }
    seen.offset()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_reaches_waiters_on_names_without_a_channel_on_every_node_once() {
    let redis = Server::start().await;
    let (a, b) = (Node::start(&redis.url()).await, Node::start(&redis.url()).await);
    a.publish_surely("/c/existing", 0).await;
    let waited_on = [(&a, "/c/both"), (&b, "/c/both"), (&a, "/c/a"), (&b, "/c/b"), (&b, "/c/existing")];
    let mut offsets: Vec<String> = vec!["now".to_owned(); 2 * waited_on.len()];
    for (number, by) in [(1, &a), (2, &b), (3, &a)] {
        let mut waits = Vec::new();
        for (nth, offset) in offsets.iter().enumerate() {
            let (node, name) = waited_on[nth % waited_on.len()];
            waits.push(park(node, name, offset).await);
        }
        let reached = by.comet.broadcast("/c/{channel}", number).await.expect("it answers");
        // The channels in Redis, and the names on which this node has waiters. The other node may have created a
        // channel just now.
        let known = if number == 1 { 3 } else { 4 };
        assert!((known..=4).contains(&reached), "{number}: {reached}");
        for (wait, offset) in waits.into_iter().zip(&mut offsets) {
            let seen = wait.await.expect("no panic");
            assert_eq!((seen.status.as_u16(), seen.text()), (200, &*format!("[{number}]")));
            *offset = seen.offset().to_string();
        }
        let expected: Vec<u64> = (1..=number).collect();
        for name in ["/c/both", "/c/a", "/c/b"] {
            assert_eq!(a.read_all(name).await, expected, "{name}");
        }
    }
    assert_eq!(b.read_all("/c/existing").await, [0, 1, 2, 3]);
    let stored: Vec<String> = redis.command("KEYS *:channel").await;
    assert_eq!(stored.len(), 4, "{stored:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_broadcasts_of_all_nodes_reach_every_poller_once() {
    const EACH: u64 = 30;
    let redis = Server::start().await;
    let nodes = [Node::start(&redis.url()).await, Node::start(&redis.url()).await];
    let names: Vec<String> = (0..8).map(|n| format!("/c/{n}")).collect();
    let pollers: Vec<_> =
        (0..16).map(|n| (&names[n / 2], Poller::start(&nodes[(n + n / 4) % 2], &names[n / 2]))).collect();
    until("all are parked", || nodes.iter().map(|node| node.comet.waiters()).sum::<usize>() == 16).await;
    // All channels have the broadcasts of one node in their order.
    join_all(nodes.iter().zip([0, 1_000]).map(|(node, first)| async move {
        for number in first..first + EACH {
            node.comet.broadcast("/c/{channel}", number).await.expect("it answers");
        }
    }))
    .await;
    for (name, poller) in pollers {
        let began = Instant::now();
        while poller.seen() < 2 * EACH as usize && began.elapsed() < Duration::from_secs(5) {
            sleep(Duration::from_millis(5)).await;
        }
        let log = poller.stop(0, Duration::ZERO).await;
        let stored = nodes[0].read_all(name).await;
        assert_eq!(log.parts, std::slice::from_ref(&stored), "{name}");
        for first in [0, 1_000] {
            let own: Vec<_> = stored.iter().filter(|number| (first..first + EACH).contains(number)).copied().collect();
            assert!(own.iter().copied().eq(first..first + EACH), "{name}: {stored:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transient_channel_lives_while_it_has_readers_and_shows_no_lifetime() {
    let redis = Server::start().await;
    let (a, b) = (Node::start(&redis.url()).await, Node::start(&redis.url()).await);
    let place = transient(&redis, &a, "/c/read").await;
    let head = a.send(request(Method::HEAD, "/c/read")).await;
    assert_eq!((head.status.as_u16(), head.header("stream-ttl"), head.header("stream-expires-at")), (200, None, None));

    set_lives(&redis, "/c/read", 20_000).await;
    b.send(request(Method::HEAD, "/c/read")).await;
    assert!(lives(&redis, "/c/read").await.iter().all(|left| *left <= 20_000), "`HEAD` reads nothing");
    b.get(&format!("/c/read?offset={place}")).await;
    assert!(lives(&redis, "/c/read").await.iter().all(|left| *left > 50_000), "a read extends it");

    set_lives(&redis, "/c/read", 20_000).await;
    a.comet.broadcast("/c/{channel}", 2).await.expect("it answers");
    let left = lives(&redis, "/c/read").await;
    assert!(left.iter().all(|left| (50_000..=LINGER).contains(left)), "another broadcast does too: {left:?}");

    // The node with the wait has cached all entries, and does not read again.
    let poller = Poller::start(&b, "/c/read");
    until("it is parked", || poller.seen() == 2 && b.comet.waiters() == 1).await;
    sleep(Duration::from_millis(300)).await;
    set_lives(&redis, "/c/read", 45_000).await;
    let began = Instant::now();
    while lives(&redis, "/c/read").await.iter().any(|left| *left <= 50_000) {
        assert!(began.elapsed() < Duration::from_secs(30), "a wait does not extend it");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(poller.stop(2, Duration::ZERO).await.parts, [[1, 2]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_or_a_creation_turns_a_transient_channel_into_an_ordinary_one() {
    let put = |name: &str| {
        let put = Request::put(name).header("content-type", "application/json");
        put.body(Default::default()).expect("a request")
    };
    for age in [None, Some(Duration::from_secs(3_600))] {
        let redis = Server::start().await;
        let keep = age.map_or_else(Retention::unbounded, |age| Retention::default().age(age));
        let node = Node::start_keeping(keep, &redis.url(), |redis| redis).await;
        // Ordinary ones, to compare with.
        node.publish_surely("/c/ordinary", 1).await;
        assert_eq!(node.send(put("/c/created")).await.status, 201);
        node.publish_surely("/c/created", 1).await;

        for name in ["/c/published", "/c/put", "/c/closed", "/c/stamped", "/c/refused"] {
            transient(&redis, &node, name).await;
        }
        node.publish_surely("/c/published", 2).await;
        assert_eq!(node.send(put("/c/put")).await.status, 200);
        assert_eq!(node.send(ask("POST /c/closed", &[("stream-closed", "true")], "")).await.status, 204);
        let stamp = [
            ("content-type", "application/json"),
            ("producer-id", "p"),
            ("producer-epoch", "0"),
            ("producer-seq", "0"),
        ];
        assert_eq!(node.send(ask("POST /c/stamped", &stamp, "2")).await.status, 200);

        for (name, like) in [
            ("/c/published", "/c/ordinary"),
            ("/c/put", "/c/created"),
            ("/c/closed", "/c/ordinary"),
            ("/c/stamped", "/c/ordinary"),
        ] {
            let (left, ordinary) = (lives(&redis, name).await, lives(&redis, like).await);
            for (left, ordinary) in left.iter().zip(ordinary) {
                let same = if ordinary < 0 { *left == ordinary } else { left.abs_diff(ordinary) < 10_000 };
                assert!(same && *left != 0, "{name}, {age:?}: {left} instead of {ordinary}");
            }
            // It stays an ordinary channel, and broadcasts are appended to it as to any other.
            node.comet.broadcast(name, 3).await.expect("it answers");
            node.get(&format!("{name}?offset=-1")).await;
            let now = lives(&redis, name).await;
            assert!(now.iter().all(|left| *left < 0 || *left > LINGER), "{name}, {age:?}: {now:?}");
        }
        assert_eq!(node.read_all("/c/published").await, [1, 2, 3]);

        // A refused change has no effect.
        let text = [("content-type", "text/plain")];
        assert_eq!(node.send(ask("POST /c/refused", &text, "2")).await.status, 409);
        assert_eq!(node.send(ask("PUT /c/refused", &text, "")).await.status, 409);
        let left = lives(&redis, "/c/refused").await;
        assert!(left.iter().all(|left| (0..=LINGER).contains(left)), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_tail_from_before_a_broadcast_is_refused_once_the_channel_has_expired() {
    for age in [None, Some(Duration::from_secs(3_600))] {
        let redis = Server::start().await;
        let keep = || age.map_or_else(Retention::unbounded, |age| Retention::default().age(age));
        let node = Node::start_keeping(keep(), &redis.url(), |redis| redis).await;
        let other = Node::start_keeping(keep(), &redis.url(), |redis| redis).await;
        const NAME: &str = "/c/news";
        let before = absent_tail(&other, NAME).await;
        let after = transient(&redis, &node, NAME).await;
        let seen = other.get(&format!("{NAME}?offset={before}")).await;
        assert_eq!((seen.status.as_u16(), seen.text()), (200, "[1]"), "until then it is good");

        set_lives(&redis, NAME, 1).await;
        sleep(Duration::from_millis(20)).await;
        for offset in [before, after] {
            for live in ["", "&live=long-poll"] {
                let seen = other.get(&format!("{NAME}?offset={offset}{live}")).await;
                assert_eq!(seen.status, 410, "{age:?} {offset}{live}: {seen:?}");
            }
        }
        let now = absent_tail(&other, NAME).await;
        assert_ne!(now, before);
        // It is accepted for as long as it is used.
        let was = format!("comet:{{{NAME}}}:was");
        for _ in 0..3 {
            assert_eq!(redis.command::<u64>(&format!("PEXPIRE {was} 5000")).await, 1);
            assert_eq!(other.get(&format!("{NAME}?offset={now}")).await.status, 200);
            let left: i64 = redis.command(&format!("PTTL {was}")).await;
            assert!(left > 600_000, "{left}");
        }
        other.publish_surely(NAME, 2).await;
        assert_eq!(other.get(&format!("{NAME}?offset={now}")).await.text(), "[2]");
        assert_eq!(other.get(&format!("{NAME}?offset={before}")).await.status, 410);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_broadcast_is_delivered_and_malformed_ones_are_ignored() {
    let redis = Server::start().await;
    let (a, b) = (Node::start(&redis.url()).await, Node::start(&redis.url()).await);
    let wait = park(&b, "/c/news", "now").await;
    let mut stranger = redis.connection().await;
    let pattern = |pattern: &[u8]| {
        let mut payload = vec![1; 21];
        payload.extend(u32::try_from(pattern.len()).expect("short").to_le_bytes());
        [&payload[..], pattern, b"[7]"].concat()
    };
    let payloads = [&b""[..], b"\x01", b"hello", &[0xff; 100], &pattern(b"/{"), &pattern(b"\xff"), &pattern(b"")[..27]];
    for payload in payloads {
        let receivers: u64 = redis::cmd("PUBLISH")
            .arg("comet:0:\0broadcast")
            .arg(payload)
            .query_async(&mut stranger)
            .await
            .expect("it answers");
        assert_eq!(receivers, 2);
    }
    let large = "x".repeat(1024 * 1024 - 2);
    // The other node may have created the channel when the names are listed.
    assert!(a.comet.broadcast("/{*rest}", &large).await.expect("it answers") <= 1);
    let seen = wait.await.expect("no panic");
    assert_eq!((seen.status.as_u16(), seen.body.len()), (200, large.len() + 4));
    assert!(a.comet.health().is_ok() && b.comet.health().is_ok());
}
