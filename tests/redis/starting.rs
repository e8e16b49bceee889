//! Starting: without Redis, with a wrong URL, with a wrong password.

use std::time::{Duration, Instant};
use tower_comet::{Comet, Create};

use crate::{
    common::until,
    support::{Node, Server},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_the_application_serves_its_own_and_the_channels_heal_by_themselves() {
    let mut redis = Server::start().await;
    redis.kill();
    let node = Node::start(&redis.url()).await;
    let why = node.comet.health().expect_err("nobody is there").to_string();
    assert!(why.starts_with("the logs have been out of reach for "), "{why}");
    for uri in ["/c/news", "/c/news?offset=-1&live=long-poll", "/c/news?offset=now&live=sse"] {
        let began = Instant::now();
        let seen = node.get(uri).await;
        assert_eq!((seen.status.as_u16(), &*seen.reason()), (503, "unreachable"), "{uri}");
        assert!(seen.header("retry-after").is_some() && began.elapsed() < Duration::from_millis(500), "{seen:?}");
    }
    assert_eq!(node.publish("/c/news", 1).await.status, 503);
    assert_eq!(node.get("/its/own").await.status, 418);
    assert_eq!(node.comet.channels().count(), 0);

    redis.run().await;
    node.is_well(true).await;
    node.publish_surely("/c/news", 2).await;
    assert_eq!(node.get("/c/news?offset=-1&live=long-poll").await.text(), "[2]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_does_not_answer_keeps_nobody_from_starting() {
    let redis = Server::start().await;
    redis.pause();
    let began = Instant::now();
    let node = Node::start(&redis.url()).await;
    assert!(began.elapsed() < Duration::from_secs(5) && node.comet.health().is_err());
    redis.resume();
    node.is_well(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_is_told_at_the_start() {
    let redis = Server::start_with(&["--requirepass", "secret"]).await;
    let connect = async |url: String| Comet::builder().redis(&url).connect().await;
    let port = redis.port();
    for (user, says) in [("", "NOAUTH"), (":wrong@", "uthentication"), ("nobody:secret@", "uthentication")] {
        let refused = connect(format!("redis://{user}127.0.0.1:{port}")).await.expect_err(user);
        assert!(refused.to_string().contains(says), "{user}: {refused}");
        assert!(!format!("{refused} {refused:?}").contains("wrong"), "a password is nobody's business: {refused:?}");
    }
    assert!(connect(format!("redis://:secret@127.0.0.1:{port}/99")).await.is_err(), "there is no such database");
    let accepted = connect(format!("redis://:secret@127.0.0.1:{port}/3")).await.expect("the right password");
    accepted.channel("/x").publish("hello").await.expect("it may");
    for url in ["", "nonsense", "http://127.0.0.1", "redis://127.0.0.1:port"] {
        assert!(connect(url.to_owned()).await.is_err(), "{url}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_prefix_has_other_channels() {
    let redis = Server::start().await;
    let (a, b) = (Node::start(&redis.url()).await, Node::start_with(&redis.url(), |redis| redis.prefix("b*")).await);
    a.publish_surely("/c/news", 1).await;
    b.publish_surely("/c/news", 2).await;
    b.publish_surely("/c/more", 3).await;
    assert_eq!((a.read_all("/c/news").await, b.read_all("/c/news").await), (vec![1], vec![2]));
    assert_eq!(a.comet.broadcast("/c/{channel}", 4).await.expect("it answers"), 1);
    assert_eq!(b.comet.broadcast("/c/{channel}", 5).await.expect("it answers"), 2);
    let mut keys: Vec<String> = redis.command("KEYS *").await;
    keys.sort();
    assert_eq!(keys.iter().filter(|key| key.starts_with("b*:{/c/")).count(), 4, "{keys:?}");
    assert_eq!(keys.iter().filter(|key| key.starts_with("comet:{/c/news}:")).count(), 2, "{keys:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_type_that_does_not_parse_is_served_as_bytes_in_a_sandbox() {
    let redis = Server::start().await;
    let writer = Node::start(&redis.url()).await;
    let mut connection = redis.connection().await;
    for (nth, (created, stored)) in [
        ("text/plain", "text/plain;,text/html"),
        ("application/octet-stream", "application/octet-stream;,text/html"),
        ("text/html", "text/html, text/plain"),
        ("text/plain", ""),
        ("text/plain", "text/plain\r\nset-cookie: a=b"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("/c/{nth}");
        // Closed, so that an event stream ends.
        let create = Create::new(created).content("<script>").closed();
        writer.comet.channel(&name).create(create).await.expect("it is created");
        let mut set = redis::cmd("HSET");
        set.arg(format!("comet:{{{name}}}:channel")).arg("type").arg(stored);
        set.query_async::<()>(&mut connection).await.expect("it is set");
        // A node that has not cached the channel.
        let node = Node::start(&redis.url()).await;
        for uri in [format!("{name}?offset=-1"), format!("{name}?offset=-1&live=long-poll")] {
            let seen = node.get(&uri).await;
            assert_eq!((seen.status.as_u16(), seen.text()), (200, "<script>"), "{stored:?}");
            assert_eq!(seen.header("content-type"), Some("application/octet-stream"), "{stored:?}");
            assert_eq!(seen.header("content-security-policy"), Some("sandbox"), "{stored:?}");
            assert_eq!(seen.header("set-cookie"), None, "{stored:?}");
        }
        let events = node.get(&format!("{name}?offset=-1&live=sse")).await;
        assert_eq!(events.header("stream-sse-data-encoding"), Some("base64"), "{stored:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_databases_of_one_server_share_no_topics() {
    let redis = Server::start().await;
    let (zero, seven) = (Node::start(&redis.url()).await, Node::start(&format!("{}/7", redis.url())).await);
    let parked = |node: &Node| {
        let node = node.clone();
        tokio::spawn(async move { node.get("/c/news?offset=now&live=long-poll").await })
    };
    let waits = [parked(&zero), parked(&seven)];
    until("both are parked", || zero.comet.waiters() + seven.comet.waiters() == 2).await;
    let topics: Vec<String> = redis.command("PUBSUB CHANNELS *news").await;
    let topics: std::collections::BTreeSet<_> = topics.iter().map(String::as_str).collect();
    assert!(topics.into_iter().eq(["comet:0:/c/news", "comet:7:/c/news"]));
    // A broadcast, of which nothing is stored where it is not heard.
    assert_eq!(zero.comet.broadcast("/c/{name}", 1).await.expect("it answers"), 1);
    let [here, there] = waits;
    assert_eq!(here.await.expect("no panic").text(), "[1]");
    seven.comet.channel("/c/news").publish(2).await.expect("it is made");
    assert_eq!(there.await.expect("no panic").text(), "[2]");
    assert_eq!(seven.read_all("/c/news").await, [2]);
}
