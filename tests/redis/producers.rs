//! Producers: each message once, whichever node it is sent to.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use std::{cell::Cell, time::Duration};
use tower_comet::Comet;

use crate::{
    common::Seen,
    support::{Node, Proxy, Server, Way},
};

const CHANNEL: &str = "/c/orders";

fn message(epoch: u64, seq: u64) -> Request<Full<Bytes>> {
    message_of("till", CHANNEL, epoch, seq)
}

fn message_of(producer: &str, channel: &str, epoch: u64, seq: u64) -> Request<Full<Bytes>> {
    Request::post(channel)
        .header("content-type", "application/json")
        .header("producer-id", producer)
        .header("producer-epoch", epoch)
        .header("producer-seq", seq)
        .body(Full::from(format!("{}", epoch * 1_000 + seq)))
        .expect("a request")
}

fn told(seen: &Seen) -> (u16, Option<&str>, Option<&str>) {
    (seen.status.as_u16(), seen.header("producer-expected-seq"), seen.header("producer-epoch"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_again_to_another_node_is_one_message() {
    let redis = Server::start().await;
    let (a, b) = (Node::start(&redis.url()).await, Node::start(&redis.url()).await);
    assert_eq!(a.send(message(0, 0)).await.status, 200);
    for node in [&a, &b] {
        assert_eq!(told(&node.send(message(0, 0)).await), (204, None, Some("0")));
    }
    assert_eq!(b.send(message(0, 1)).await.status, 200);
    assert_eq!(told(&a.send(message(0, 3)).await), (409, Some("2"), None));
    // Another process takes over, and the first is fenced off wherever it turns.
    assert_eq!(b.send(message(1, 0)).await.status, 200);
    for node in [&a, &b] {
        assert_eq!(told(&node.send(message(0, 2)).await), (403, None, Some("1")));
    }
    assert_eq!(b.send(message(2, 1)).await.status, 400);
    assert_eq!(a.read_all(CHANNEL).await, [0, 1, 1_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_sends_again_what_it_does_not_know_of_and_all_of_it_is_there_once() {
    let redis = Server::start().await;
    let proxy = Proxy::start(redis.port()).await;
    let node = Node::start(&proxy.url()).await;
    let (mut seq, mut uncertain, mut duplicates) = (0, 0, 0);
    let meddle = async {
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            // The answers are lost, and then the connection.
            proxy.set(Way::Open, Way::Late(Duration::from_millis(100)));
            tokio::time::sleep(Duration::from_millis(50)).await;
            proxy.set(Way::Open, Way::Cut);
            tokio::time::sleep(Duration::from_millis(50)).await;
            proxy.open();
        }
    };
    let send = async {
        while seq < 1_000 {
            let seen = node.send(message(0, seq)).await;
            match seen.status.as_u16() {
                200 => seq += 1,
                204 => {
                    duplicates += 1;
                    seq += 1;
                }
                503 => {
                    uncertain += usize::from(seen.reason() == "uncertain");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                _ => panic!("{seen:?}"),
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    };
    tokio::join!(meddle, send);
    assert!(uncertain > 0 && duplicates > 0, "{uncertain} {duplicates}: nothing was uncertain");
    assert!(node.read_all(CHANNEL).await.into_iter().eq(0..1_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_whose_log_was_set_back_is_told_what_is_missing() {
    let mut redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    for seq in 0..20 {
        assert_eq!(node.send(message(0, seq)).await.status, 200);
        if seq == 9 {
            let _: String = redis.command("SAVE").await;
        }
    }
    redis.kill();
    redis.run().await;
    node.is_well(true).await;
    assert_eq!(told(&node.send(message(0, 20)).await), (409, Some("10"), None));
    for seq in 10..=20 {
        assert_eq!(node.send(message(0, seq)).await.status, 200);
    }
    assert!(node.read_all(CHANNEL).await.into_iter().eq(0..=20));
}

/// As in memory: see `tests/producers.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_producer_is_refused_for_good_where_it_may_have_been_known_before() {
    let redis = Server::start().await;
    let node =
        async || Node::of(Comet::builder().max_producers(2).redis(&redis.url()).connect().await.expect("it is up"));
    let nodes = [node().await, node().await];
    // Each to another node than the last.
    let nth = Cell::new(0);
    let send = async |request| {
        nth.set(nth.get() + 1);
        nodes[nth.get() % 2].send(request).await
    };
    let post = async |channel, id, epoch, seq| {
        let seen = send(message_of(id, channel, epoch, seq)).await;
        let reason = if seen.status.is_success() { String::new() } else { seen.reason() };
        let header = |name: &str| seen.header(name).map(str::to_owned);
        (seen.status.as_u16(), reason, header("producer-epoch"), header("producer-expected-seq"))
    };
    let unknown = |epoch: &str| (403, "unknown-producer".to_owned(), Some(epoch.to_owned()), None);
    let gap = |expected: &str| (409, "gap".to_owned(), None, Some(expected.to_owned()));
    let put = async |channel: &str, ttl: Option<&str>| {
        let request = Request::put(channel).header("content-type", "application/json");
        let request = ttl.into_iter().fold(request, |request, ttl| request.header("stream-ttl", ttl));
        send(request.body(Full::default()).expect("a request")).await.status.as_u16()
    };

    assert_eq!(put("/s/a", None).await, 201);
    assert_eq!(post("/s/a", "a", 3, 1).await, gap("0"));
    for id in ["a", "b", "c"] {
        assert_eq!(post("/s/a", id, 3, 0).await.0, 200);
    }
    for nth in 0..2 {
        assert_eq!(post("/s/a", "a", 3, 1).await, unknown("3"), "a was evicted, for either node: {nth}");
        assert_eq!(post("/s/a", "c", 3, 2).await, gap("1"), "c is known");
    }
    assert_eq!(post("/s/a", "a", 4, 0).await.0, 200, "a begins anew");

    let deleted = send(Request::delete("/s/a").body(Full::default()).expect("a request")).await;
    assert_eq!((deleted.status.as_u16(), put("/s/a", None).await), (204, 201));
    assert_eq!(post("/s/a", "a", 4, 1).await, unknown("4"));
    assert_eq!((post("/s/a", "a", 4, 0).await.0, post("/s/a", "a", 4, 2).await), (200, gap("1")));

    // One that has expired.
    assert_eq!((put("/s/b", Some("3600")).await, post("/s/b", "a", 0, 0).await.0), (201, 200));
    for part in ["channel", "log"] {
        assert_eq!(redis.command::<u64>(&format!("PEXPIREAT comet:{{/s/b}}:{part} 1")).await, 1, "{part}");
    }
    assert_eq!((post("/s/b", "a", 0, 1).await.0, put("/s/b", None).await), (404, 201));
    assert_eq!(post("/s/b", "a", 0, 1).await, unknown("0"));

    assert_eq!(post("/c/a", "a", 2, 1).await, unknown("2"));
    assert_eq!(nodes[0].get("/c/a?offset=-1").await.text(), "[]", "it was not created");
    assert_eq!((post("/c/a", "a", 2, 0).await.0, post("/c/a", "a", 2, 2).await), (200, gap("1")));
    assert_eq!(post("/c/a", "a", 1, 9).await.1, "fenced");
    assert_eq!(post("/c/a", "a", 3, 9).await.1, "epoch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_of_a_log_that_was_set_back_to_before_it_is_refused_for_good() {
    let mut redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let strict = "/s/orders";
    node.comet.channel(strict).create("application/json").await.expect("it is created");
    let _: String = redis.command("SAVE").await;
    for seq in 0..3 {
        assert_eq!(node.send(message_of("till", strict, 0, seq)).await.status, 200);
    }
    redis.kill();
    redis.run().await;
    node.is_well(true).await;
    crate::common::until("the loss is found", || node.comet.stats().lost_appends > 0).await;
    let seen = node.send(message_of("till", strict, 0, 3)).await;
    assert_eq!((told(&seen), &*seen.reason()), ((403, None, Some("0")), "unknown-producer"));
    assert_eq!(node.send(message_of("till", strict, 1, 0)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_appends_bytes_and_closes_and_another_process_sees_what_the_channel_is() {
    let redis = Server::start().await;
    let (here, there) = (Node::start(&redis.url()).await, Node::start(&redis.url()).await);
    let channel = here.comet.channel("/build/42");
    assert!(there.comet.channel("/build/42").info().await.unwrap().is_none());
    channel.create("text/plain").await.unwrap();
    let mut producer = channel.producer("compiler", 0);
    for line in ["one\n", "[2]", ""] {
        // JSON, text that is JSON as well, and nothing.
        assert_eq!(producer.append(line).await.is_ok(), !line.is_empty(), "{line:?}");
    }
    drop(producer.append("never polled"));
    let end = producer.append("three").await.unwrap();
    let closed = producer.close().await.unwrap();
    assert_eq!(closed, end);
    assert!(matches!(producer.append("four").await, Err(tower_comet::Error::Closed)));

    let info = there.comet.channel("/build/42").info().await.unwrap().expect("it exists");
    assert_eq!((info.content_type(), info.tail(), info.appends(), info.is_closed()), ("text/plain", end, 3, true));
    assert_eq!((info.idle(), info.expires_at()), (None, None));
    let route = tower_comet::Route::new().content_type("text/plain").read_by_anyone();
    let layer = tower_comet::CometLayer::new(there.comet).route("/{*path}", route);
    assert_eq!(crate::common::send(&layer, crate::common::get("/build/42?offset=-1")).await.text(), "one\n[2]three");
}
