//! A 204 never skips a message: appends that meet time-outs, over real connections.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use support::{Client, Server, Teapot, get, open_to_all};
use tokio::task::JoinSet;
use tower_comet::{Comet, CometLayer, Retention};
use tower_layer::Layer;

const APPENDS: u64 = 1_200;
const READERS: usize = 6;

#[derive(Default)]
struct Tally {
    delivered: usize,
    timed_out: usize,
    messages: Vec<u64>,
}

/// Follows a channel with waits of a few milliseconds, until it has seen the last message.
async fn follow(mut client: Client, done: Arc<AtomicBool>) -> Tally {
    let mut tally = Tally::default();
    let mut offset = "-1".to_owned();
    loop {
        let last_look = done.load(Relaxed);
        let timeout = ["0.001", "0.002", "0.003"][tally.timed_out % 3];
        let seen = client.send(get(&format!("/s/a?offset={offset}&live=long-poll&timeout={timeout}"))).await.unwrap();
        let next = seen.header("stream-next-offset").unwrap().to_owned();
        match seen.status.as_u16() {
            200 => {
                tally.delivered += 1;
                tally.messages.extend(serde_json::from_slice::<Vec<u64>>(&seen.body).unwrap());
            }
            204 => {
                assert!(offset == next || offset == "-1", "a time-out moved on from {offset} to {next}");
                tally.timed_out += 1;
                if last_look {
                    return tally;
                }
            }
            other => panic!("{other}: {seen:?}"),
        }
        offset = next;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_time_out_skips_a_message_over_either_protocol() {
    let comet = Comet::builder().retention(Retention::unbounded()).build();
    let channel = comet.channel("/s/a");
    channel.create("application/json").await.unwrap();
    let server = Server::start(CometLayer::new(comet.clone()).route("/s/{*path}", open_to_all()).layer(Teapot)).await;

    let done = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        let http2 = reader % 2 == 0;
        let client = if http2 { Client::http2(server.addr).await } else { Client::http1(server.addr).await };
        let done = done.clone();
        readers.spawn(async move { (http2, follow(client, done).await) });
    }
    for n in 0..APPENDS {
        // Around the length of a wait, so that about as many appends come just before its end as just after.
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..5_000))).await;
        channel.publish(n).await.unwrap();
    }
    done.store(true, Relaxed);

    while let Some(reader) = readers.join_next().await {
        let (http2, tally) = reader.unwrap();
        let Tally { delivered, timed_out, messages } = tally;
        println!("HTTP/2: {http2}, {delivered} answers with messages, {timed_out} time-outs");
        assert!(messages.iter().copied().eq(0..APPENDS), "HTTP/2: {http2}: {messages:?}");
        assert!(delivered > 300 && timed_out > 20, "no race: {delivered} {timed_out}");
    }
}
