//! Publishing in process: from anywhere, to one channel or to many, and what can go wrong.

mod support;

use serde::Serialize;
use serde_json::json;
use std::{collections::HashMap, thread, time::Duration};
use support::{get, send, sent};
use tokio::time::advance;
use tower_comet::{Comet, CometLayer, Create, Error, Limit, Retention, Route};

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/{*channel}", Route::new().read_by_anyone())
}

#[derive(Serialize)]
struct Headline<'a> {
    text: &'a str,
}

#[tokio::test(start_paused = true)]
async fn any_value_is_one_message_and_what_was_published_may_be_gone_by_then() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let news = comet.channel("/news");
    let change = {
        let text = "borrowed".to_owned();
        news.publish(&Headline { text: &text })
    };
    assert_eq!(news.history(), 0, "nothing happens before it is polled");
    tokio::spawn(change).await.unwrap().unwrap();
    news.publish([1, 2]).await.unwrap();
    news.publish("text").await.unwrap();
    news.publish(None::<u8>).await.unwrap();
    let seen = send(&layer, get("/news?offset=-1")).await;
    assert_eq!(seen.json(), json!([{"text": "borrowed"}, [1, 2], "text", null]));
    drop(news.publish("never polled"));
    assert_eq!(news.history(), 4);
}

#[tokio::test(start_paused = true)]
async fn appended_json_is_flattened_one_level_and_bytes_are_kept_as_they_are() {
    let comet = Comet::new();
    let layer = layer(&comet);
    comet.channel("/json").append("[1, [2]]").await.unwrap();
    comet.channel("/json").append(r#"{"a": []}"#).await.unwrap();
    assert_eq!(send(&layer, get("/json?offset=-1")).await.json(), json!([1, [2], {"a": []}]));
    comet.channel("/bytes").create("application/octet-stream").await.unwrap();
    comet.channel("/bytes").append("[1, [2]]").await.unwrap();
    comet.channel("/bytes").append(&b"\0\xff"[..]).await.unwrap();
    assert_eq!(&send(&layer, get("/bytes?offset=-1")).await.body[..], b"[1, [2]]\0\xff");
}

#[test]
fn a_plain_thread_without_a_runtime_publishes_to_who_waits_in_one() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let waiting = runtime.block_on(sent(&layer, get("/news")));
    assert_eq!(comet.waiters(), 1);
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let news = comet.channel("/news");
            thread::spawn(move || (0..100).map(|n| news.publish((thread, n)).wait().unwrap()).collect::<Vec<_>>())
        })
        .collect();
    let mut offsets = Vec::new();
    for thread in threads {
        let own = thread.join().unwrap();
        assert!(own.is_sorted(), "each thread's appends are in its order");
        offsets.extend(own);
    }
    offsets.sort();
    offsets.dedup();
    assert_eq!((offsets.len(), comet.channel("/news").history()), (400, 400), "no two share an offset");
    assert_eq!(runtime.block_on(waiting).unwrap().json()[0][1], json!(0), "the first of one of them comes first");
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_every_channel_that_matches_and_no_other() {
    let comet = Comet::new();
    let layer = layer(&comet);
    for name in ["/rooms/1", "/rooms/2", "/rooms/2/private", "/news"] {
        comet.channel(name).publish("before").await.unwrap();
    }
    comet.channel("/rooms/text").create("text/plain").await.unwrap();
    comet.channel("/rooms/ended").close().await.unwrap();
    // Waited on, made by nobody.
    let waiting = sent(&layer, get("/rooms/3")).await;

    assert_eq!(comet.broadcast("/rooms/{room}", "closing").await.unwrap(), 3);
    assert_eq!(waiting.await.unwrap().json(), json!(["closing"]));
    assert_eq!(comet.broadcast("/rooms/{*rest}", "closed").await.unwrap(), 4);
    assert_eq!(comet.broadcast("/nowhere/{x}", "nobody").await.unwrap(), 0);
    let histories: HashMap<_, _> =
        comet.channels().map(|channel| (channel.name().to_owned(), channel.history())).collect();
    let expected = [
        ("/rooms/1", 3),
        ("/rooms/2", 3),
        ("/rooms/3", 2),
        ("/rooms/2/private", 2),
        ("/news", 1),
        ("/rooms/text", 0),
        ("/rooms/ended", 0),
    ];
    assert_eq!(histories, expected.map(|(name, history)| (name.to_owned(), history)).into());

    assert!(matches!(comet.broadcast("/rooms/{room", "x").await, Err(Error::Pattern(_))));
    assert!(matches!(comet.broadcast("/rooms/{room}", &Unwritable).await, Err(Error::Encode(_))));

    // A waiter on a name without a channel is reached whatever the limit on channels.
    let small = Comet::builder().max_channels(1).max_append(10).build();
    small.channel("/a").publish("x").await.unwrap();
    assert!(matches!(small.broadcast("/{x}", "more than ten bytes").await, Err(Error::TooLarge { limit: 10 })));
    let waiting = sent(&self::layer(&small), get("/b")).await;
    assert_eq!(small.broadcast("/{x}", "x").await.unwrap(), 2);
    assert_eq!((small.channel("/a").history(), small.channel("/b").history()), (2, 1));
    assert_eq!(waiting.await.unwrap().json(), json!(["x"]));
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_to_waiters_on_names_without_a_channel_prevents_no_other_channel_from_being_created() {
    const WAITERS: usize = 50;
    let comet = Comet::builder().max_channels(WAITERS).build();
    let layer = layer(&comet);
    let mut waiting = Vec::new();
    for n in 0..WAITERS {
        waiting.push(sent(&layer, get(&format!("/rooms/{n}"))).await);
    }
    assert_eq!(comet.broadcast("/rooms/{room}", "noon").await.unwrap(), WAITERS);
    for wait in waiting {
        assert_eq!(wait.await.unwrap().json(), json!(["noon"]));
    }
    assert_eq!(comet.stats().channels, WAITERS);
    for n in 0..WAITERS {
        comet.channel(format!("/customers/{n}")).publish("hello").await.unwrap();
        assert_eq!(comet.stats().channels, WAITERS, "one is evicted for each");
    }
    assert!(matches!(comet.channel("/one-more").publish("x").await, Err(Error::Full(Limit::Channels))));
}

#[tokio::test(start_paused = true)]
async fn a_transient_channel_is_forgotten_a_minute_after_its_last_reader_unless_it_is_used() {
    for unbounded in [false, true] {
        let retention = if unbounded { Retention::unbounded() } else { Retention::default() };
        let comet = Comet::builder().retention(retention).build();
        let layer = layer(&comet);
        for name in ["/rooms/idle", "/rooms/read", "/rooms/published", "/rooms/created"] {
            let waiting = sent(&layer, get(name)).await;
            assert_eq!(comet.broadcast(name, "noon").await.unwrap(), 1);
            waiting.await.unwrap();
        }
        comet.channel("/rooms/published").publish("more").await.unwrap();
        comet.channel("/rooms/created").create("application/json").await.unwrap();
        advance(Duration::from_secs(59)).await;
        assert_eq!(send(&layer, get("/rooms/read?offset=-1")).await.json(), json!(["noon"]));
        advance(Duration::from_secs(2)).await;
        let histories = || {
            // Any operation looks after what is due.
            (0..4).for_each(|_| _ = comet.broadcast("/nothing", "x").wait());
            for n in 0..4 {
                let _ = comet.channel(format!("/nothing/{n}")).delete().wait();
            }
            ["idle", "read", "published", "created"].map(|name| comet.channel(format!("/rooms/{name}")).history())
        };
        assert_eq!(histories(), [0, 1, 2, 1]);
        advance(Duration::from_secs(61)).await;
        assert_eq!(histories(), [0, 0, 2, 1]);
        assert_eq!(comet.stats().channels, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_stream_is_seen_by_every_waiter_at_once() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let job = comet.channel("/jobs/1");
    let tail = job.publish("started").await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..100 {
        waiting.push(sent(&layer, get("/jobs/1")).await);
    }
    let mut reader = job.subscribe();
    let reading = tokio::spawn(async move { reader.recv().await });
    support::settle().await;
    assert_eq!(job.waiters(), 101);
    let before = tokio::time::Instant::now();
    assert_eq!(job.close().await.unwrap(), tail);
    for waiting in waiting {
        let seen = waiting.await.unwrap();
        assert_eq!((seen.status.as_u16(), seen.header("stream-closed"), seen.offset()), (204, Some("true"), tail));
    }
    assert!(reading.await.unwrap().unwrap().is_none());
    assert_eq!((before.elapsed(), job.waiters()), (std::time::Duration::ZERO, 0));
    assert!(job.is_closed());
    assert_eq!(job.close().await.unwrap(), tail, "closing again changes nothing");
}

/// What no format can write.
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("of no kind that can be written"))
    }
}

#[tokio::test(start_paused = true)]
async fn each_error_says_what_is_wrong_and_nothing_was_changed() {
    let comet = Comet::builder().max_append(8).max_name(10).max_channels(4).build();
    let json = comet.channel("/json");
    json.publish("kept").await.unwrap();
    let text = comet.channel("/text");
    text.create("text/plain").await.unwrap();
    let ended = comet.channel("/ended");
    ended.close().await.unwrap();
    let unknown = comet.channel("/unknown");

    macro_rules! refused {
        ($($change:expr => $error:pat),* $(,)?) => {$(
            match $change.await {
                Err(error @ $error) => {
                    let said = error.to_string();
                    assert!(!said.is_empty());
                    // Or who prints the whole chain would say it twice.
                    let source = std::error::Error::source(&error).map(|source| source.to_string());
                    assert!(source.is_none_or(|source| !said.contains(&source)), "{said}");
                }
                other => panic!("{}: {other:?}", stringify!($change)),
            }
        )*};
    }
    refused! {
        comet.channel("").publish("x") => Error::Name,
        comet.channel("/longer than ten").publish("x") => Error::Name,
        comet.channel("/a\nb").publish("x") => Error::Name,
        comet.channel("/a\u{85}b").create("text/plain") => Error::Name,
        comet.channel("").delete() => Error::Name,
        comet.channel("").close() => Error::Name,
        json.publish(&Unwritable) => Error::Encode(_),
        json.publish("more than eight") => Error::TooLarge { limit: 8 },
        json.append("[1, 2") => Error::Json(_),
        json.append("") => Error::Json(_),
        json.append("[]") => Error::Empty,
        text.append("") => Error::Empty,
        text.append("more than eight") => Error::TooLarge { limit: 8 },
        text.publish("x") => Error::ContentType { .. },
        json.create("text/plain") => Error::Conflict,
        text.create(Create::new("text/plain").closed()) => Error::Conflict,
        unknown.create("text") => Error::MediaType,
        unknown.create("text/plain\r\nx: y") => Error::MediaType,
        unknown.create(Create::new("text/plain").content("more than eight")) => Error::TooLarge { limit: 8 },
        unknown.create(Create::new("application/json").content("{")) => Error::Json(_),
        unknown.create(Create::fork_of(&comet.channel("/nobody"))) => Error::Unknown,
        unknown.create(Create::fork_of(&json).at(text.tail())) => Error::ForkOffset,
        unknown.delete() => Error::Unknown,
        ended.publish("x") => Error::Closed,
        ended.publish_last("x") => Error::Closed,
    }
    assert_eq!(comet.channels().count(), 3);
    comet.channel("/fourth").publish("x").await.unwrap();
    refused! {
        unknown.publish("x") => Error::Full(Limit::Channels),
        unknown.create("text/plain") => Error::Full(Limit::Channels),
        unknown.close() => Error::Full(Limit::Channels),
    }
    assert_eq!((json.history(), text.history(), ended.history(), comet.stats().channels), (1, 0, 0, 4));
    let Err(Error::ContentType { holds }) = text.publish("x").await else { panic!("it holds text") };
    assert_eq!(holds, "text/plain");
}
