//! A reader of an event stream that stops reading. By itself in this file: what is measured is the process.

mod support;

use std::time::Duration;
use support::{Client, Server, Teapot, get, open_to_all, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tower_comet::{Comet, CometLayer, Retention};
use tower_layer::Layer;

#[tokio::test]
async fn a_slow_reader_holds_no_memory_beyond_its_channels_history() {
    const APPEND: usize = 256 * 1024;
    const KEPT: usize = 4;
    const ROUNDS: usize = 400;
    const READERS: usize = 10;
    let comet = Comet::builder().retention(Retention::default().appends(KEPT).bytes(usize::MAX)).build();
    let layer = CometLayer::new(comet.clone()).route("/s/{*path}", open_to_all());
    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    let server = Server::start(layer.layer(Teapot)).await;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut socket = server.connect().await;
        socket
            .write_all(b"GET /s/a?offset=now&live=sse HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut head = [0; 15];
        socket.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        readers.push(socket);
    }
    until("all wait", || comet.waiters() == READERS).await;

    let before = resident();
    for _ in 0..ROUNDS {
        channel.append(vec![b'x'; APPEND]).await.unwrap();
        tokio::task::yield_now().await;
    }
    // 100 MiB went by, and nobody has read on: the readers have stopped at what their sockets took.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let stats = comet.stats();
    assert!(stats.history_bytes <= KEPT * (APPEND + 128), "{stats:?}");
    if let (Some(before), Some(after)) = (before, resident()) {
        let grown = after.saturating_sub(before);
        println!("{} MiB went by, the process grew by {} MiB", (ROUNDS * APPEND) >> 20, grown >> 20);
        // Each connection holds one event and hyper's buffer at the most: a reading of four appends, as text.
        let bound = READERS * 3 * KEPT * APPEND + KEPT * APPEND;
        assert!(grown < bound && grown < ROUNDS * APPEND, "grown by {grown} of {bound}");
    }

    // Who reads on gets what it was sent, and then the end; and who comes back is told that it missed something.
    let mut client = Client::http1(server.addr).await;
    for mut socket in readers {
        let mut rest = Vec::new();
        timeout(Duration::from_secs(20), socket.read_to_end(&mut rest)).await.expect("it ends").ok();
        let text = String::from_utf8_lossy(&rest);
        let at = text.rfind("\nid:").expect("an event at the least") + 4;
        let here = &text[at..at + 34];
        let seen = client.send(get(&format!("/s/a?offset={here}&live=long-poll&timeout=0"))).await.unwrap();
        assert_eq!((seen.status.as_u16(), &*seen.reason()), (410, "trimmed"), "{seen:?}");
    }
    until("nobody waits", || comet.waiters() == 0).await;
}

/// The resident memory of this process.
fn resident() -> Option<usize> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    pages.split(' ').nth(1)?.parse::<usize>().ok().map(|pages| pages * 4096)
}
