//! Event streams of channels whose beginning is not cached.

use tower_comet::{CometLayer, Route};

use crate::{
    common::{get, send},
    support::{Node, Server},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_character_that_is_split_over_two_appends_arrives_whole_also_where_a_read_is_cut() {
    let redis = Server::start().await;
    let nodes = [Node::start(&redis.url()).await, Node::start(&redis.url()).await];
    let channel = nodes[0].comet.channel("/text");
    channel.create("text/plain").await.unwrap();
    // More than one read returns, and more than is cached.
    let first = ["x".repeat(70_000).as_bytes(), b"\xf0\x9f"].concat();
    let more = std::iter::repeat_n(b"yy".to_vec(), 100);
    for content in [first, b"\x98".to_vec(), b"\x80z".to_vec()].into_iter().chain(more) {
        channel.append(content).await.unwrap();
    }
    channel.close().await.unwrap();

    for node in nodes {
        let route = Route::new().content_type("text/plain").read_by_anyone();
        let layer = CometLayer::new(node.comet).route("/{channel}", route);
        let events = send(&layer, get("/text?offset=-1&live=sse")).await;
        assert!(events.text().contains("x\u{1f600}z") && !events.text().contains('\u{fffd}'), "{events:?}");
    }
}
