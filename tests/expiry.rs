//! How long a channel lives by itself: `Stream-TTL` and `Stream-Expires-At`.

mod support;

use http::Request;
use http_body_util::{BodyExt, Full};
use std::time::{Duration, SystemTime};
use support::{Seen, Teapot, ask, get, open_to_all, post, request, send, settle};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    task::JoinHandle,
    time::{Instant, advance},
};
use tower::ServiceExt;
use tower_comet::{Comet, CometLayer, Create, Error, Retention, Route};
use tower_layer::Layer;

const TEXT: (&str, &str) = ("content-type", "text/plain");
const LIVE: &str = "live=long-poll";

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/s/{*path}", open_to_all()).route(
        "/comet/{channel}",
        Route::new().read_by_anyone().create_by_anyone().append_by_anyone().delete_by_anyone(),
    )
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A `Stream-Expires-At`. The clock on the wall does not stand still in a test, but moves by less than a second.
fn wall_clock_in(seconds: u64) -> String {
    OffsetDateTime::from(SystemTime::now() + Duration::from_secs(seconds)).format(&Rfc3339).unwrap()
}

async fn status(layer: &CometLayer, request: Request<Full<bytes::Bytes>>) -> u16 {
    send(layer, request).await.status.as_u16()
}

async fn create(layer: &CometLayer, path: &str, name: &str, value: &str) {
    assert_eq!(status(layer, ask(&format!("PUT {path}"), &[TEXT, (name, value)], "first")).await, 201, "{path}");
}

/// A request that is parked when this returns.
async fn parked(comet: &Comet, layer: &CometLayer, uri: &str) -> JoinHandle<Seen> {
    let before = comet.waiters();
    let (layer, request) = (layer.clone(), get(uri));
    let waiting = tokio::spawn(async move { send(&layer, request).await });
    settle().await;
    assert_eq!(comet.waiters(), before + 1, "{uri}");
    waiting
}

#[tokio::test(start_paused = true)]
async fn what_reads_or_writes_restarts_the_window_and_nothing_else_does() {
    let producer = [("producer-id", "p"), ("producer-epoch", "0"), ("producer-seq", "0")];
    let closing = [("stream-closed", "true")];
    for (restarts, what) in [
        (true, get("/s/a")),
        (true, get("/s/a?offset=-1")),
        (true, get("/s/a?offset=now")),
        (true, get(&format!("/s/a?offset=now&{LIVE}&timeout=0"))),
        (true, get(&format!("/s/a?offset=-1&{LIVE}"))),
        (true, post("/s/a", "text/plain", "more")),
        (true, ask("POST /s/a", &closing, "")),
        (true, ask("POST /s/a", &[TEXT, producer[0], producer[1], producer[2]], "more")),
        (true, ask("POST /s/a", &[closing[0], producer[0], producer[1], producer[2]], "")),
        (false, request(http::Method::HEAD, "/s/a")),
        (false, request(http::Method::OPTIONS, "/s/a")),
        (false, post("/s/a", "application/json", "\"refused\"")),
        (false, ask("POST /s/a", &[TEXT, producer[0], producer[1], ("producer-seq", "7")], "a gap")),
        (false, get("/s/b")),
    ] {
        let layer = layer(&Comet::new());
        let label = format!("{} {} {:?}", what.method(), what.uri(), what.headers());
        create(&layer, "/s/a", "stream-ttl", "10").await;
        advance(seconds(9)).await;
        send(&layer, what).await;
        advance(seconds(9)).await;
        let seen = send(&layer, request(http::Method::HEAD, "/s/a")).await;
        assert_eq!(seen.status.as_u16(), if restarts { 200 } else { 404 }, "{label}");
        assert_eq!(seen.header("stream-ttl"), restarts.then_some("10"), "{label}: the window, not what is left of it");
        advance(seconds(2)).await;
        assert_eq!(status(&layer, get("/s/a")).await, 404, "{label}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_fixed_does_not_move() {
    let layer = layer(&Comet::new());
    let end = wall_clock_in(10);
    create(&layer, "/s/a", "stream-expires-at", &end).await;
    for _ in 0..8 {
        advance(seconds(1)).await;
        assert_eq!(status(&layer, get("/s/a")).await, 200);
        assert_eq!(status(&layer, post("/s/a", "text/plain", "more")).await, 204);
    }
    let told = send(&layer, request(http::Method::HEAD, "/s/a")).await;
    let told = OffsetDateTime::parse(told.header("stream-expires-at").unwrap(), &Rfc3339).unwrap();
    assert_eq!(told, OffsetDateTime::parse(&end, &Rfc3339).unwrap());
    advance(seconds(3)).await;
    assert_eq!(status(&layer, get("/s/a")).await, 404);
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_404_everywhere_and_can_be_made_anew() {
    for (name, value) in
        [("stream-ttl", "2".to_owned()), ("stream-expires-at", wall_clock_in(2)), ("stream-ttl", "0".to_owned())]
    {
        for what in [
            get("/s/a"),
            get("/s/a?offset=now"),
            get(&format!("/s/a?offset=-1&{LIVE}")),
            get("/s/a?offset=-1&live=sse"),
            request(http::Method::HEAD, "/s/a"),
            post("/s/a", "text/plain", "more"),
            ask("POST /s/a", &[("stream-closed", "true")], ""),
            request(http::Method::DELETE, "/s/a"),
            ask("PUT /s/b", &[("stream-forked-from", "/s/a")], ""),
        ] {
            let comet = Comet::new();
            let layer = layer(&comet);
            let label = format!("{name}: {} {}", what.method(), what.uri());
            let made = send(&layer, ask("PUT /s/a", &[TEXT, (name, &value)], "first")).await;
            advance(seconds(3)).await;
            assert_eq!(status(&layer, what).await, 404, "{label}");

            // Made in another way than before, which it could not be if it were there still.
            let anew = send(&layer, ask("PUT /s/a", &[("content-type", "application/json")], "[1]")).await;
            assert_eq!(anew.status.as_u16(), 201, "{label}");
            assert_eq!(send(&layer, get("/s/a")).await.text(), "[1]", "{label}");
            let old = send(&layer, get(&format!("/s/a?offset={}", made.offset()))).await;
            assert_eq!((old.status.as_u16(), &*old.reason()), (410, "other-log"), "{label}");
            assert_eq!(comet.stats().channels, 1, "{label}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn delete_close_and_expiry_wake_who_waits_and_end_event_streams() {
    for (end, status, control) in [("delete", 404, ""), ("expiry", 404, ""), ("close", 204, "\"streamClosed\":true")] {
        let comet = Comet::new();
        let layer = layer(&comet);
        create(&layer, "/s/a", "stream-expires-at", &wall_clock_in(10)).await;
        let waiting = parked(&comet, &layer, &format!("/s/a?offset=now&{LIVE}")).await;
        let stream = parked(&comet, &layer, "/s/a?offset=now&live=sse").await;
        let mut along = comet.channel("/s/a").subscribe();
        let along = tokio::spawn(async move { along.recv().await });
        settle().await;

        let began = Instant::now();
        let after = match end {
            "delete" => comet.channel("/s/a").delete().await.map(|_| 0..=0).unwrap(),
            "close" => comet.channel("/s/a").close().await.map(|_| 0..=0).unwrap(),
            _ => 9_000..=10_010,
        };
        let seen = waiting.await.unwrap();
        assert_eq!(seen.status.as_u16(), status, "{end}");
        assert_eq!(seen.header("stream-closed"), (end == "close").then_some("true"), "{end}");
        let stream = stream.await.unwrap();
        assert!(stream.text().ends_with("\n\n") && stream.text().contains(control), "{end}: {}", stream.text());
        match along.await.unwrap() {
            Ok(None) => assert_eq!(end, "close"),
            Err(Error::Gone(_)) => assert_ne!(end, "close"),
            other => panic!("{end}: {other:?}"),
        }
        let elapsed = began.elapsed().as_millis();
        assert!(after.contains(&elapsed), "{end}: {elapsed} ms");
        assert_eq!(comet.waiters(), 0, "{end}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_came_and_went_with_nothing_in_it_is_no_news_to_who_waits() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let waiting = parked(&comet, &layer, "/comet/a").await;
    let stream = parked(&comet, &layer, "/comet/a?offset=now&live=sse").await;
    let mut along = comet.channel("/comet/a").subscribe();
    let along = tokio::spawn(async move { along.recv().await });
    settle().await;
    let made = send(&layer, ask("PUT /comet/a", &[("stream-expires-at", &wall_clock_in(5))], "")).await;
    assert_eq!(made.status.as_u16(), 201);

    tokio::time::sleep(Duration::from_secs(6)).await;
    let read = send(&layer, ask("GET /comet/a?offset=-1", &[], "")).await;
    assert_eq!(read.text(), "[]", "it is over");
    assert_eq!(comet.waiters(), 3);

    // And all of them hear what comes after it.
    comet.channel("/comet/a").publish("at last").await.unwrap();
    assert_eq!(waiting.await.unwrap().text(), r#"["at last"]"#);
    assert_eq!(&along.await.unwrap().unwrap().unwrap().data()[..], b"\"at last\"");
    assert!(stream.await.unwrap().text().contains("at last"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_with_live_readers_never_idles_out() {
    for live in [LIVE, "live=sse"] {
        let comet = Comet::new();
        let layer = layer(&comet);
        create(&layer, "/s/a", "stream-ttl", "10").await;
        let waiting = parked(&comet, &layer, &format!("/s/a?offset=now&{live}")).await;
        // With traffic elsewhere, which looks after what is due.
        while !waiting.is_finished() {
            assert_eq!(status(&layer, request(http::Method::HEAD, "/s/a")).await, 200, "{live}");
            assert_eq!(status(&layer, get("/s/other")).await, 404);
            advance(seconds(1)).await;
            settle().await;
        }
        assert!(matches!(waiting.await.unwrap().status.as_u16(), 200 | 204), "{live}");
        advance(seconds(8)).await;
        assert_eq!(status(&layer, request(http::Method::HEAD, "/s/a")).await, 200, "{live}: until a window later");
        advance(seconds(3)).await;
        assert_eq!(status(&layer, request(http::Method::HEAD, "/s/a")).await, 404, "{live}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_whose_connection_is_cut_has_read_until_then() {
    for live in [LIVE, "live=sse"] {
        let comet = Comet::new();
        let layer = layer(&comet);
        create(&layer, "/s/a", "stream-ttl", "5").await;
        let waiting = parked(&comet, &layer, &format!("/s/a?offset=now&{live}")).await;
        // Between two heartbeats, so that nothing else has touched the channel for longer than its window.
        advance(seconds(14)).await;
        waiting.abort();
        settle().await;
        assert_eq!(comet.waiters(), 0);
        advance(seconds(4)).await;
        assert_eq!(status(&layer, request(http::Method::HEAD, "/s/a")).await, 200, "{live}");
        advance(seconds(2)).await;
        assert_eq!(status(&layer, request(http::Method::HEAD, "/s/a")).await, 404, "{live}");
    }
}

#[tokio::test(start_paused = true)]
async fn memory_of_what_has_expired_comes_back_with_traffic_on_other_channels_alone() {
    const CHANNELS: usize = 1_000;
    let comet = Comet::builder().retention(Retention::unbounded()).build();
    let layer = layer(&comet);
    create(&layer, "/s/other", "stream-ttl", "1000").await;
    for nth in 0..CHANNELS {
        let lifetime =
            if nth % 2 == 0 { ("stream-ttl", "5".to_owned()) } else { ("stream-expires-at", wall_clock_in(5)) };
        let request = ask(&format!("PUT /s/{nth}"), &[TEXT, (lifetime.0, &lifetime.1)], vec![b'x'; 1_000]);
        assert_eq!(status(&layer, request).await, 201);
    }
    let full = comet.stats();
    assert!(full.channels == CHANNELS + 1 && full.history_bytes > CHANNELS * 1_000, "{full:?}");
    advance(seconds(6)).await;
    // A few at a time: no request pays for all.
    get_other(&layer, 1).await;
    assert!(comet.stats().channels > CHANNELS - 10, "{:?}", comet.stats());
    get_other(&layer, CHANNELS / 2 + 1).await;
    assert_eq!((comet.stats().channels, comet.channels().count()), (1, 1));
    assert!(comet.stats().history_bytes < 200, "{:?}", comet.stats());

    async fn get_other(layer: &CometLayer, times: usize) {
        for _ in 0..times {
            assert_eq!(status(layer, get("/s/other")).await, 200);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_what_has_expired_leaves_nothing_behind() {
    let comet = Comet::new();
    let layer = layer(&comet);
    for what in ["GET /s/a", "HEAD /s/a", "POST /s/a", "DELETE /s/a", "PUT /s/b"] {
        create(&layer, "/s/a", "stream-ttl", "1").await;
        advance(seconds(2)).await;
        let request = ask(what, &[TEXT, ("stream-forked-from", "/s/a")], "x");
        assert_eq!(status(&layer, request).await, 404, "{what}");
        assert_eq!(
            (comet.stats().channels, comet.channels().count(), comet.stats().history_bytes),
            (0, 0, 0),
            "{what}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_made_anew_for_want_of_room_stays_gone() {
    let comet = Comet::builder().max_history(1_000).build();
    let layer = layer(&comet);
    create(&layer, "/s/a", "stream-ttl", "1").await;
    advance(seconds(2)).await;
    assert_eq!(status(&layer, ask("PUT /s/a", &[TEXT], vec![b'x'; 2_000])).await, 503);
    assert_eq!(status(&layer, request(http::Method::HEAD, "/s/a")).await, 404);

    // In process nobody looks before; and so many others are due that this one's turn has not come.
    for nth in 0..9 {
        comet.channel(format!("/{nth}")).create(Create::new("text/plain").idle(seconds(1))).await.unwrap();
    }
    let channel = comet.channel("/s/a");
    channel.create(Create::new("application/json").idle(seconds(1))).await.unwrap();
    advance(seconds(2)).await;
    assert!(matches!(channel.publish("x".repeat(2_000)).await, Err(Error::Full(_))));
    assert_eq!(status(&layer, request(http::Method::HEAD, "/s/a")).await, 404);
    assert_eq!((comet.stats().channels, comet.stats().history_bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_was_only_forgotten_is_not_kept_from_its_name_by_its_forks() {
    let comet = Comet::builder().retention(Retention::default().age(seconds(10))).build();
    let layer = layer(&comet);
    let news = comet.channel("/comet/news");
    news.publish("old").await.unwrap();
    let fork = ask("PUT /comet/fork", &[("stream-forked-from", "/comet/news")], "");
    assert_eq!(status(&layer, fork).await, 201);
    advance(seconds(100)).await;
    for _ in 0..3 {
        assert_eq!(status(&layer, get("/comet/other?offset=-1")).await, 200);
    }
    assert_eq!(comet.stats().channels, 1, "the fork was created, and stays");
    news.publish("new").await.unwrap();
    assert_eq!(send(&layer, get("/comet/news?offset=-1")).await.text(), r#"["new"]"#);
    comet.channel("/comet/fork").delete().await.unwrap();
    news.delete().await.unwrap();
    assert_eq!((comet.stats().channels, comet.channels().count(), comet.stats().history_bytes), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_event_stream_that_nobody_reads_any_more_is_no_reader() {
    let comet = Comet::new();
    let layer = layer(&comet);
    create(&layer, "/s/a", "stream-ttl", "5").await;
    let response = layer.layer(Teapot).oneshot(get("/s/a?offset=now&live=sse")).await.unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    advance(seconds(6)).await;
    assert_eq!((status(&layer, get("/s/a")).await, comet.waiters()), (404, 0));
}
