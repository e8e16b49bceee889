//! Producers: each message once, whichever node it is sent to.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use std::time::Duration;

use crate::{
    common::Seen,
    support::{Node, Proxy, Server, Way},
};

const CHANNEL: &str = "/c/orders";

fn message(epoch: u64, seq: u64) -> Request<Full<Bytes>> {
    Request::post(CHANNEL)
        .header("content-type", "application/json")
        .header("producer-id", "till")
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
