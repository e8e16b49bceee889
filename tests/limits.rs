//! Everything that a stranger can make grow has a limit with a default, and holds it with an answer.

mod support;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use serde_json::json;
use std::{
    collections::BTreeSet,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use support::{Seen, Teapot, get, post, send, sent};
use tokio::time::advance;
use tower::ServiceExt;
use tower_comet::{Comet, CometBuilder, CometLayer, Error, Limit, OutcomeKind, Retention, Route};
use tower_layer::Layer;

const JSON: &str = "application/json";
const MIB: usize = 1024 * 1024;

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone())
        .route("/events/{channel}", Route::new().read_by_anyone().append_by_anyone().create_by_anyone())
        .route("/bytes/{channel}", Route::strict().read_by_anyone().append_by_anyone().create_by_anyone())
}

fn built(set: impl FnOnce(CometBuilder) -> CometBuilder) -> (Comet, CometLayer) {
    let comet = set(Comet::builder()).build();
    let layer = layer(&comet);
    (comet, layer)
}

/// A JSON string of so many bytes.
fn text(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes - 2))
}

/// 503, to be tried again in some seconds.
fn full(seen: &Seen) -> u64 {
    assert_eq!((seen.status.as_u16(), &*seen.reason(), seen.outcome), (503, "full", Some(OutcomeKind::Refused)));
    assert_eq!(seen.header("cache-control"), Some("no-store"));
    seen.header("retry-after").expect("when to try again").parse().expect("seconds")
}

/// Waits, polled once, without a task each.
struct Crowd(Vec<Pin<Box<dyn Future<Output = Seen>>>>);

impl Crowd {
    /// So many waits, all of which park.
    fn park(layer: &CometLayer, count: usize, uri: impl Fn(usize) -> String) -> Self {
        let mut crowd = Self(Vec::with_capacity(count));
        for nth in 0..count {
            assert!(crowd.come(layer, &uri(nth)).is_none(), "the {nth}th was answered at once");
        }
        crowd
    }

    /// One more, who is parked, or refused.
    fn come(&mut self, layer: &CometLayer, uri: &str) -> Option<Seen> {
        let response = layer.layer(Teapot).oneshot(get(uri));
        let mut wait: Pin<Box<dyn Future<Output = Seen>>> =
            Box::pin(async { Seen::read(response.await.expect("infallible")).await.expect("infallible") });
        match wait.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(seen) => Some(seen),
            Poll::Pending => {
                self.0.push(wait);
                None
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_has_a_size() {
    for (set, limit) in [(None, MIB), (Some(100), 100)] {
        let (comet, layer) = built(|builder| set.map_or(builder.clone(), |bytes| builder.max_append(bytes)));
        let news = comet.channel("/events/news");
        assert_eq!(send(&layer, post("/events/news", JSON, text(limit))).await.status.as_u16(), 204);
        news.publish("x".repeat(limit - 2)).await.unwrap();
        // The brackets of an array are not counted: they are the batch's.
        news.append(format!("[{}]", text(limit))).await.unwrap();
        assert_eq!(comet.stats().appends, 3);

        let seen = send(&layer, post("/events/news", JSON, text(limit + 1))).await;
        assert_eq!((seen.status.as_u16(), &*seen.reason()), (413, "too-large"));
        assert_eq!(seen.outcome, Some(OutcomeKind::Refused));
        let put = http::Request::put("/bytes/x").body(Full::from(vec![0; limit + 1])).unwrap();
        assert_eq!(send(&layer, put).await.status.as_u16(), 413);
        let refused = news.publish("x".repeat(limit - 1)).await;
        assert!(matches!(refused, Err(Error::TooLarge { limit: said }) if said == limit));
        assert_eq!((comet.stats().appends, comet.channels().count()), (3, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn waits_have_a_number_in_all() {
    let (comet, layer) = built(|builder| builder.max_waits(3));
    let mut crowd = Crowd::park(&layer, 3, |nth| format!("/events/{nth}"));
    comet.channel("/events/made").create(JSON).await.unwrap();
    for uri in ["/events/x", "/events/0", "/events/made", "/events/made?offset=-1&live=sse"] {
        full(&crowd.come(&layer, uri).expect("refused"));
    }
    assert_eq!((comet.waiters(), comet.channels().count()), (3, 4), "who is refused leaves nothing behind");

    // What does not wait is not refused.
    for (uri, status) in [
        ("/events/x?offset=-1", 200),
        ("/events/x?timeout=0", 204),
        ("/events/x?offset=0000000000000001_x0000000000000001&live=long-poll", 410),
        ("/elsewhere", 418),
    ] {
        assert_eq!(send(&layer, get(uri)).await.status.as_u16(), status, "{uri}");
    }
    comet.channel("/events/x").publish("x").await.unwrap();
    assert_eq!(send(&layer, get("/events/x?offset=-1&live=long-poll")).await.status.as_u16(), 200);

    crowd.0.pop();
    assert!(crowd.come(&layer, "/events/x").is_none(), "a place is free again");
    full(&crowd.come(&layer, "/events/x").expect("refused"));
}

#[tokio::test(start_paused = true)]
async fn waits_have_a_number_on_one_channel() {
    let (comet, layer) = built(|builder| builder.max_waits_per_channel(2));
    let mut crowd = Crowd::park(&layer, 2, |_| "/events/news".to_owned());
    full(&crowd.come(&layer, "/events/news").expect("refused"));
    assert!(crowd.come(&layer, "/events/other").is_none());
    assert_eq!((comet.waiters(), comet.channel("/events/news").waiters()), (3, 2));
    drop(crowd.0.remove(0));
    assert!(crowd.come(&layer, "/events/news").is_none(), "a place is free again");
    comet.channel("/events/news").publish("x").await.unwrap();
    full(&crowd.come(&layer, "/events/news").expect("refused: the woken waits were not answered yet"));
    let answered = crowd.0.remove(0).await;
    assert_eq!(answered.text(), r#"["x"]"#);
    assert!(crowd.come(&layer, "/events/news").is_none(), "an answered wait has left");
    full(&crowd.come(&layer, "/events/news").expect("refused"));
}

/// An event stream counts even while it sends an event and is not parked.
#[tokio::test(start_paused = true)]
async fn event_streams_and_polls_of_one_channel_count_together_and_leave_once() {
    let (comet, layer) = built(|builder| builder.max_waits_per_channel(3));
    let news = comet.channel("/events/news");
    let open = async || layer.layer(Teapot).oneshot(get("/events/news?offset=now&live=sse")).await.unwrap();
    for created_before in [false, true] {
        if created_before {
            news.publish("x").await.unwrap();
        }
        let mut streams = Vec::new();
        for nth in 0..2 {
            let mut stream = open().await;
            assert_eq!(stream.status().as_u16(), 200, "{nth}");
            // Read until it parks, or not read at all.
            if nth == 0 {
                stream.body_mut().frame().await.expect("an event").unwrap();
            }
            streams.push(stream);
        }
        // Takes the streams off the list of waiters: one of them is about to send the message.
        news.publish("x").await.unwrap();
        let mut crowd = Crowd::park(&layer, 1, |_| "/events/news".to_owned());
        for uri in ["/events/news", "/events/news?offset=now&live=sse"] {
            full(&crowd.come(&layer, uri).expect("refused"));
        }
        assert_eq!((comet.waiters(), comet.channels().count()), (3, 1));

        // The stream counts while it sends the message, after that, and when it has parked again.
        for _ in 0..4 {
            let frame = streams[0].body_mut().frame().now_or_never();
            full(&crowd.come(&layer, "/events/news").expect("refused"));
            if frame.is_none() {
                break;
            }
        }
        drop(streams.pop());
        assert!(crowd.come(&layer, "/events/news").is_none(), "a place is free again");
        full(&crowd.come(&layer, "/events/news").expect("refused"));
        drop((crowd, streams));
        assert_eq!((comet.waiters(), news.waiters()), (0, 0));
        news.delete().await.unwrap();
        assert_eq!(comet.channels().count(), 0, "no count keeps the channel");
        drop(Crowd::park(&layer, 3, |_| "/events/news".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn waits_on_a_deleted_channel_leave_the_count_when_they_are_answered() {
    let (comet, layer) = built(|builder| builder.max_waits_per_channel(2));
    let news = comet.channel("/events/news");
    news.publish("x").await.unwrap();
    let stream = layer.layer(Teapot).oneshot(get("/events/news?offset=now&live=sse")).await.unwrap();
    let poll = sent(&layer, get("/events/news?offset=now&live=long-poll")).await;
    news.delete().await.unwrap();
    news.publish("another life").await.unwrap();
    let mut crowd = Crowd(Vec::new());
    full(&crowd.come(&layer, "/events/news").expect("refused: both are there still"));
    assert_eq!(poll.await.unwrap().status.as_u16(), 404);
    assert!(crowd.come(&layer, "/events/news").is_none());
    full(&crowd.come(&layer, "/events/news").expect("refused"));
    drop(stream);
    assert!(crowd.come(&layer, "/events/news").is_none());
    full(&crowd.come(&layer, "/events/news").expect("refused"));
    drop(crowd);
    news.delete().await.unwrap();
    assert_eq!((comet.waiters(), comet.channels().count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn subscriptions_are_never_refused_but_count() {
    let (comet, layer) = built(|builder| builder.max_waits_per_channel(2));
    let news = comet.channel("/events/news");
    let receive = || {
        let mut reader = news.subscribe();
        let mut receive = Box::pin(async move { reader.recv().await.map(drop) });
        assert!(receive.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        receive
    };
    let mut receiving: Vec<_> = (0..3).map(|_| receive()).collect();
    let mut crowd = Crowd(Vec::new());
    full(&crowd.come(&layer, "/events/news").expect("refused"));
    receiving.truncate(1);
    assert!(crowd.come(&layer, "/events/news").is_none());
    full(&crowd.come(&layer, "/events/news").expect("refused"));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_waits_are_the_default() {
    const MANY: usize = 100_000;
    for spread in [1, 64] {
        let (comet, layer) = built(|builder| builder);
        let mut crowd = Crowd::park(&layer, MANY, |nth| format!("/events/{}", nth % spread));
        assert_eq!(comet.waiters(), MANY);
        full(&crowd.come(&layer, "/events/0").expect("refused"));
        drop(crowd);
        assert_eq!((comet.waiters(), comet.channels().count()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_comes_back_at_different_times() {
    let (_, layer) = built(|builder| builder.max_waits(0).max_channels(0));
    let (mut waits, mut appends) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..200 {
        waits.insert(full(&send(&layer, get("/events/x")).await));
        appends.insert(full(&send(&layer, post("/events/x", JSON, "1")).await));
    }
    for seconds in [waits, appends] {
        assert_eq!(seconds, (1..=5).collect());
    }
}

#[tokio::test(start_paused = true)]
async fn channels_have_a_number() {
    for (set, limit) in [(None, 100_000), (Some(3), 3)] {
        let (comet, layer) = built(|builder| set.map_or(builder.clone(), |channels| builder.max_channels(channels)));
        for nth in 0..limit {
            comet.channel(format!("/events/{nth}")).publish(nth).wait().unwrap();
        }
        full(&send(&layer, post("/events/x", JSON, "1")).await);
        full(&send(&layer, http::Request::put("/events/x").body(Full::default()).unwrap()).await);
        let refused = comet.channel("/events/x").publish("x").await;
        assert!(matches!(refused, Err(Error::Full(Limit::Channels))));

        // Those that there are go on, and waiting makes none.
        assert_eq!(send(&layer, post("/events/0", JSON, "1")).await.status.as_u16(), 204);
        assert_eq!(send(&layer, get("/events/x?timeout=0.1")).await.status.as_u16(), 204);
        assert_eq!((comet.stats().channels, comet.channels().count()), (limit, limit));
        comet.channel("/events/1").delete().await.unwrap();
        assert_eq!(send(&layer, post("/events/x", JSON, "1")).await.status.as_u16(), 204);
        // What has aged out makes room, though nobody has looked after it since.
        advance(Duration::from_secs(3_601)).await;
        for nth in 0..limit.min(1_000) {
            comet.channel(format!("/events/new{nth}")).publish("x").wait().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn all_history_together_has_a_size() {
    /// What an append costs beside its bytes.
    const ENTRY: usize = 128;
    let megabyte = Bytes::from(vec![b'x'; MIB]);
    for (set, fits) in [(None, 255), (Some(4 * (MIB + ENTRY)), 4)] {
        let (comet, layer) = built(|builder| {
            let builder = builder.max_append(4 * MIB);
            set.map_or(builder.clone(), |bytes| builder.max_history(bytes))
        });
        let channel = |nth: usize| comet.channel(format!("/bytes/{nth}"));
        for nth in 0..fits {
            channel(nth).create("application/octet-stream").await.unwrap();
            channel(nth).append(megabyte.clone()).await.unwrap();
        }
        assert_eq!(comet.stats().history_bytes, fits * (MIB + ENTRY));
        channel(fits).create("application/octet-stream").await.unwrap();
        let append = |nth| post(&format!("/bytes/{nth}"), "application/octet-stream", megabyte.clone());
        full(&send(&layer, append(fits)).await);
        assert!(matches!(channel(fits).append(megabyte.clone()).await, Err(Error::Full(Limit::History))));
        // Nothing that was acknowledged is thrown away to make room.
        for nth in 0..fits {
            assert_eq!(channel(nth).history(), 1);
        }
        // A channel that lets as much go as it takes goes on, here by its own retention of a megabyte.
        assert_eq!(send(&layer, append(0)).await.status.as_u16(), 204);
        channel(1).delete().await.unwrap();
        assert_eq!(send(&layer, append(fits)).await.status.as_u16(), 204);
        advance(Duration::from_secs(3_601)).await;
        // More than the few channels held that any operation looks after.
        channel(fits).append(vec![b'x'; 4 * MIB]).await.unwrap();
        // Only as many as were needed are evicted. Later operations may evict the others.
        assert_eq!(channel(fits).history(), 1);
        assert!(comet.stats().history_bytes <= set.unwrap_or(256 * MIB), "{:?}", comet.stats());
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_keeps_so_many_appends_so_many_bytes_and_so_long() {
    let kept = async |comet: &Comet, appends: usize, bytes: usize| {
        let channel = comet.channel("/x");
        for _ in 0..appends {
            channel.publish("x".repeat(bytes - 4)).wait().unwrap();
        }
        channel.history()
    };
    let retention = Retention::default;
    for (set, appends, bytes, expected) in [
        (retention(), 1_100, 10, 1_000),
        (retention().appends(10), 100, 10, 10),
        (retention().appends(0), 100, 10, 1),
        (retention(), 100, MIB / 8, 8),
        (retention(), 100, MIB / 8 + 1, 7),
        (retention().bytes(1_000), 100, 100, 10),
        (retention().bytes(0), 100, 100, 1),
        (Retention::unbounded(), 2_000, 1_000, 2_000),
    ] {
        let comet = Comet::builder().retention(set.clone()).build();
        assert_eq!(kept(&comet, appends, bytes).await, expected, "{set:?}");
        let layer = CometLayer::new(comet.clone()).route("/{x}", Route::new().read_by_anyone().max_chunk(usize::MAX));
        let seen = send(&layer, get("/x?offset=-1")).await;
        assert_eq!(seen.json().as_array().map(Vec::len), Some(expected), "{set:?}");
    }
    for (set, hours) in [(retention(), 1), (retention().age(Duration::from_secs(7_200)), 2)] {
        let comet = Comet::builder().retention(set).build();
        assert_eq!(kept(&comet, 5, 10).await, 5);
        advance(Duration::from_secs(3_600 * hours)).await;
        assert_eq!(comet.channel("/x").history(), 5);
        advance(Duration::from_millis(1)).await;
        assert_eq!(comet.channel("/x").history(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_has_a_size() {
    let comet = Comet::builder().retention(Retention::unbounded()).build();
    let layer = CometLayer::new(comet.clone())
        .route("/events/{x}", Route::new().read_by_anyone())
        .route("/small/{x}", Route::new().read_by_anyone().channel("/events/{x}").max_chunk(MIB / 2));
    let channel = comet.channel("/events/x");
    for _ in 0..32 {
        channel.publish("x".repeat(MIB / 8 - 4)).await.unwrap();
    }
    let waiting = sent(&layer, get("/events/x")).await;
    for (uri, appends) in [("/events/x", 8), ("/small/x", 4)] {
        let seen = send(&layer, get(&format!("{uri}?offset=-1"))).await;
        assert_eq!((seen.json().as_array().map(Vec::len), seen.header("stream-up-to-date")), (Some(appends), None));
    }
    channel.publish(json!(1)).await.unwrap();
    assert_eq!(waiting.await.unwrap().text(), "[1]");
}
