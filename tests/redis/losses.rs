//! Appends that were acknowledged and are lost are counted, and reported. What has ended in an orderly way is not.

use std::time::Duration;
use tokio::time::sleep;
use tower_comet::{Create, Retention};

use crate::{
    common::until,
    support::{Node, Proxy, Server, Way},
};

impl Node {
    /// Lost appends and missing channels.
    fn lost(&self) -> (u64, u64) {
        let stats = self.comet.stats();
        (stats.lost_appends, stats.missing_channels)
    }

    async fn publish_all(&self, uris: &[&str]) {
        for uri in uris {
            self.publish_surely(uri, 1).await;
        }
    }
}

/// Cuts the node's connections for a moment, and waits until it has verified what it remembers.
async fn reconnect(node: &Node, proxy: &Proxy, meanwhile: impl Future<Output = ()>) {
    proxy.set(Way::Cut, Way::Cut);
    node.is_well(false).await;
    meanwhile.await;
    proxy.open();
    node.is_well(true).await;
    sleep(Duration::from_millis(500)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restart_from_an_older_snapshot_has_lost_is_counted_once() {
    let mut redis = Server::start().await;
    let proxy = Proxy::start(redis.port()).await;
    let node = Node::start(&proxy.url()).await;
    node.publish_all(&["/c/whole", "/c/cut", "/c/cut", "/c/busy", "/c/busy"]).await;
    let _: String = redis.command("SAVE").await;
    node.publish_all(&["/c/cut", "/c/busy", "/c/missing", "/c/replaced"]).await;

    proxy.set(Way::Cut, Way::Cut);
    redis.kill();
    redis.run().await;
    // Another node is faster, and fills the positions of what was lost.
    let other = Node::start(&redis.url()).await;
    other.publish_all(&["/c/busy", "/c/busy", "/c/replaced", "/c/replaced"]).await;
    assert_eq!((node.lost(), other.lost()), ((0, 0), (0, 0)));
    proxy.open();
    node.is_well(true).await;
    until("it is counted", || node.lost() == (3, 1)).await;
    let loss = node.comet.last_loss().expect("a loss");
    assert_eq!((loss.lost_appends(), loss.missing_channels()), (3, 1));
    assert!(loss.since() < Duration::from_secs(10), "{loss}");
    assert!(node.comet.health().is_ok(), "the node can serve requests");

    node.publish_all(&["/c/whole", "/c/cut", "/c/missing"]).await;
    reconnect(&node, &proxy, async {}).await;
    assert_eq!((node.lost(), other.lost()), ((3, 1), (0, 0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushall_is_counted_as_missing_channels() {
    let redis = Server::start().await;
    let proxy = Proxy::start(redis.port()).await;
    let node = Node::start(&proxy.url()).await;
    let names: Vec<_> = (0..1_000).map(|n| format!("/c/{n}")).collect();
    node.publish_all(&names.iter().map(|name| &**name).collect::<Vec<_>>()).await;
    // It has a lifetime, which is not over.
    let idle = node.comet.channel("/c/idle");
    idle.create(Create::new("application/json").idle(Duration::from_secs(3_600)).content("1")).await.expect("room");
    redis.command::<()>("FLUSHALL").await;
    reconnect(&node, &proxy, async {}).await;
    until("they are counted", || node.lost() == (0, 1_001)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_channel_is_missing_and_an_evicted_log_is_lost() {
    let redis = Server::start().await;
    let proxy = Proxy::start(redis.port()).await;
    let node = Node::start(&proxy.url()).await;
    node.publish_all(&["/c/log", "/c/channel", "/c/both"]).await;
    let idle = node.comet.channel("/c/idle");
    idle.create(Create::new("application/json").idle(Duration::from_secs(3_600)).content("1")).await.expect("room");
    let evict = async {
        let keys = ["{/c/log}:log", "{/c/channel}:channel", "{/c/both}:log", "{/c/both}:channel"];
        for key in keys.iter().chain(&["{/c/idle}:channel", "{/c/idle}:log"]) {
            redis.command::<()>(&format!("DEL comet:{key}")).await;
        }
    };
    reconnect(&node, &proxy, evict).await;
    until("they are counted", || node.lost() == (1, 3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trimmed_or_deleted_or_has_expired_is_not_counted() {
    let redis = Server::start().await;
    let proxy = Proxy::start(redis.port()).await;
    let keep = || Retention::default().appends(2);
    let node = Node::start_keeping(keep(), &proxy.url(), |redis| redis).await;
    let other = Node::start_keeping(keep(), &redis.url(), |redis| redis).await;
    let second = Duration::from_secs(1);
    let json = || Create::new("application/json");
    for name in ["/c/idle", "/c/idle-again"] {
        node.comet.channel(name).create(json().idle(second)).await.expect("room");
    }
    let until = std::time::SystemTime::now() + 2 * second;
    node.comet.channel("/c/until").create(json().until(until).content("0")).await.expect("room");
    let names = ["/c/idle", "/c/idle-again", "/c/trimmed", "/c/grown", "/c/source", "/c/again"];
    node.publish_all(&names).await;
    node.publish_all(&["/c/deleted-here", "/c/deleted-there", "/c/moved"]).await;
    let (source, fork) = (node.comet.channel("/c/source"), node.comet.channel("/c/fork"));
    fork.create(Create::fork_of(&source)).await.expect("room");
    fork.close().await.expect("it is open");
    node.comet.channel("/c/deleted-here").delete().await.expect("it exists");
    reconnect(&node, &proxy, async {
        // The appends of this node are trimmed, or more follow.
        other.publish_all(&["/c/trimmed", "/c/trimmed", "/c/trimmed", "/c/trimmed", "/c/grown"]).await;
        for name in ["/c/deleted-there", "/c/again", "/c/source"] {
            other.comet.channel(name).delete().await.expect("it exists");
        }
        other.publish_all(&["/c/again", "/c/again"]).await;
        sleep(3 * second).await;
        other.publish_all(&["/c/idle-again", "/c/idle-again"]).await;
    })
    .await;
    assert_eq!((node.lost(), node.comet.last_loss().is_none()), ((0, 0), true));
    // The control: one of them is lost now.
    redis.command::<()>("DEL comet:{/c/moved}:channel").await;
    reconnect(&node, &proxy, async {}).await;
    crate::common::until("it is counted", || node.lost() == (0, 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_has_aged_out_is_not_counted() {
    let redis = Server::start().await;
    let proxy = Proxy::start(redis.port()).await;
    let keep = Retention::default().age(Duration::from_secs(6));
    let node = Node::start_keeping(keep, &proxy.url(), |redis| redis).await;
    node.publish_all(&["/c/a", "/c/b"]).await;
    node.comet.channel("/c/created").create("application/json").await.expect("room");
    node.publish_all(&["/c/created"]).await;
    reconnect(&node, &proxy, async {
        // As the expiry of the keys does.
        sleep(Duration::from_secs(7)).await;
        redis.command::<()>("DEL comet:{/c/a}:channel comet:{/c/a}:log comet:{/c/created}:log").await;
    })
    .await;
    assert_eq!(node.lost(), (0, 0));
}
