//! Appends that the engine has acknowledged and lost are found after a reconnect.

use super::*;
use crate::engine::{Append, Batch};

impl Node {
    /// Appends a number through this node. The double has each once, like a part of a broadcast.
    async fn append_to(&self, name: &str, number: u64) {
        let append = Append {
            batch: Some(Batch::value(&number).expect("JSON")),
            create: Some(self.registry.json()),
            broadcast: Some(number),
            ..Append::default()
        };
        self.registry.append(name, append).await.expect("it is acknowledged");
    }

    async fn reconnect(&self) {
        self.engine.world().cut();
        seconds(2).await;
        assert!(self.registry.health().is_ok());
    }

    fn loss(&self) -> Option<(u64, u64)> {
        self.registry.last_loss().map(|loss| (loss.lost_appends(), loss.missing_channels()))
    }
}

#[tokio::test(start_paused = true)]
async fn lost_appends_and_missing_channels_are_counted_once() {
    let node = Node::without(None).await;
    for (name, appends) in [("/kept", 3), ("/set-back", 3), ("/missing", 1)] {
        for number in 1..=appends {
            node.append_to(name, number).await;
        }
    }
    node.reconnect().await;
    assert_eq!((node.registry.lost(), node.loss()), ((0, 0), None));
    {
        let mut world = node.engine.world();
        world.set_back("/set-back", 2);
        world.lose_log("/missing");
    }
    seconds(60).await;
    assert_eq!(node.registry.lost(), (0, 0), "verified after a reconnect only");
    for _ in 0..2 {
        node.reconnect().await;
        assert_eq!((node.registry.lost(), node.loss()), ((1, 1), Some((1, 1))));
    }
    assert!(node.registry.last_loss().expect("a loss").since() >= Duration::from_secs(2));
    // Another one, later.
    node.engine.world().set_back("/kept", 1);
    node.reconnect().await;
    assert_eq!((node.registry.lost(), node.loss()), ((2, 1), Some((1, 0))));
}

#[tokio::test(start_paused = true)]
async fn a_loss_is_found_although_the_channel_was_written_to_before_it_could_be_verified() {
    let node = Node::without(None).await;
    for number in 1..=3 {
        node.append_to("/c", number).await;
    }
    node.engine.world().set_back("/c", 1);
    node.engine.world().refuse_reads = true;
    node.reconnect().await;
    for number in 11..=15 {
        node.append_to("/c", number).await;
    }
    assert_eq!(node.registry.lost(), (0, 0));
    // The request is sent again each second.
    node.engine.world().refuse_reads = false;
    seconds(2).await;
    assert_eq!(node.registry.lost(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn each_acknowledged_append_of_many_channels_is_verified_once_after_a_reconnect() {
    const MANY: usize = 3_000;
    let node = Node::without(None).await;
    for n in 0..MANY {
        node.append_to(&format!("/c/{n}"), 1).await;
    }
    for n in (0..MANY).step_by(3) {
        node.engine.world().lose_log(&format!("/c/{n}"));
    }
    let before = node.engine.world().count("verify");
    assert_eq!(before, 0, "nothing was acknowledged before the first connection");
    node.reconnect().await;
    assert_eq!(node.registry.lost(), (0, MANY as u64 / 3));
    assert_eq!(node.engine.world().count("verify"), MANY.div_ceil(256));
}
