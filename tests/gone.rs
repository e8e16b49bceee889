//! What cannot be served any more is said, never skipped: 410, why, and where a client could start over.

mod support;

use serde_json::json;
use std::time::Duration;
use support::{Seen, get, send, sent};
use tokio::time::{Instant, advance};
use tower_comet::{Channel, Comet, CometLayer, Offset, OutcomeKind, Retention, Route};

const ZERO: &str = "0000000000000000_x0000000000000000";

/// The same channels on a comet route and on a strict one.
fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone())
        .route("/events/{channel}", Route::new().read_by_anyone().channel("{channel}"))
        .route("/streams/{channel}", Route::strict().read_by_anyone().channel("{channel}"))
}

fn keeping(appends: usize) -> Comet {
    Comet::builder().retention(Retention::default().appends(appends)).build()
}

async fn publish(channel: &Channel, count: usize) -> Vec<Offset> {
    let mut offsets = Vec::new();
    for n in 0..count {
        offsets.push(channel.publish(n).await.unwrap());
    }
    offsets
}

/// An offset that is so much further in the same log.
fn ahead(offset: Offset, by: u64) -> Offset {
    let text = offset.to_string();
    let position: u64 = text[..16].parse().expect("a position");
    format!("{:016}{}", position + by, &text[16..]).parse().expect("an offset")
}

fn live(route: &str, offset: impl std::fmt::Display) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    get(&format!("{route}/news?offset={offset}&live=long-poll"))
}

/// A read, a wait and an event stream from there, on both routes: all are the same refusal, at once.
async fn refused(layer: &CometLayer, offset: impl std::fmt::Display, reason: &str) -> Seen {
    let began = Instant::now();
    let mut last = None;
    for route in ["/events", "/streams"] {
        for live in ["", "&live=long-poll", "&live=sse"] {
            let seen = send(layer, get(&format!("{route}/news?offset={offset}{live}"))).await;
            assert_eq!((seen.status.as_u16(), &*seen.reason()), (410, reason), "{offset}{live}");
            assert_eq!(seen.header("cache-control"), Some("no-store"));
            assert_eq!(seen.outcome, Some(OutcomeKind::Gone));
            last = Some(seen);
        }
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody waits for what has gone");
    last.expect("six of them")
}

fn earliest(seen: &Seen) -> Offset {
    seen.header("stream-earliest-offset").expect("a 410 says where to start over").parse().expect("an offset")
}

#[tokio::test(start_paused = true)]
async fn each_way_of_being_gone_has_its_reason_and_says_where_to_start_over() {
    let comet = keeping(2);
    let layer = layer(&comet);
    let news = comet.channel("news");
    let offsets = publish(&news, 4).await;
    let (floor, tail) = (offsets[1], offsets[3]);

    let elsewhere = Comet::new().channel("news");
    let others = publish(&elsewhere, 4).await;
    for (offset, reason) in [
        (offsets[0], "trimmed"),
        (ZERO.parse().unwrap(), "trimmed"),
        (ahead(tail, 1), "ahead"),
        (ahead(tail, 1_000_000), "ahead"),
        (ahead(tail, 9_999_999_999_999_000), "ahead"),
        // Below the floor, at it, between it and the tail, and past that.
        (others[0], "other-log"),
        (others[1], "other-log"),
        (others[2], "other-log"),
        (others[3], "other-log"),
        (ahead(others[3], 7), "other-log"),
    ] {
        let seen = refused(&layer, offset, reason).await;
        assert_eq!((seen.offset(), earliest(&seen)), (tail, floor), "{offset}");
        let again = send(&layer, get(&format!("/events/news?offset={}", earliest(&seen)))).await;
        assert_eq!((again.status.as_u16(), again.json()), (200, json!([2, 3])), "starting over works");
    }
}

#[tokio::test(start_paused = true)]
async fn the_floor_resumes_and_one_position_earlier_does_not() {
    let comet = keeping(3);
    let layer = layer(&comet);
    let news = comet.channel("news");
    let offsets = publish(&news, 10).await;
    let (gone, kept) = offsets.split_at(6);
    for (nth, offset) in kept.iter().enumerate() {
        let expected: Vec<_> = (7 + nth..10).collect();
        let seen = send(&layer, get(&format!("/events/news?offset={offset}"))).await;
        assert_eq!((seen.status.as_u16(), seen.json()), (200, json!(expected)), "{offset}");
    }
    for offset in gone {
        assert_eq!(earliest(&refused(&layer, offset, "trimmed").await), kept[0]);
    }
    assert_eq!(send(&layer, get("/events/news?offset=-1")).await.json(), json!([7, 8, 9]), "-1 is what is kept");
}

#[tokio::test(start_paused = true)]
async fn who_holds_the_offset_of_an_empty_channel_is_told_when_history_was_trimmed_since() {
    for created in [false, true] {
        let comet = keeping(2);
        let layer = layer(&comet);
        let news = comet.channel("news");
        if created {
            news.create("application/json").await.unwrap();
        }
        let empty = send(&layer, get("/events/news?offset=-1")).await.offset();
        assert_eq!(empty.to_string() == ZERO, !created);
        publish(&news, 2).await;
        let seen = send(&layer, get(&format!("/events/news?offset={empty}"))).await;
        assert_eq!(seen.json(), json!([0, 1]), "all of it is there");
        publish(&news, 1).await;
        refused(&layer, empty, "trimmed").await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_aged_out_is_trimmed_and_a_channel_that_is_forgotten_gone() {
    let comet = Comet::builder().retention(Retention::default().age(Duration::from_secs(600))).build();
    let layer = layer(&comet);
    let news = comet.channel("news");
    let nothing = news.tail();
    let first = news.publish("first").await.unwrap();
    advance(Duration::from_secs(300)).await;
    let second = news.publish("second").await.unwrap();
    advance(Duration::from_secs(301)).await;
    refused(&layer, nothing, "trimmed").await;
    let seen = send(&layer, get(&format!("/events/news?offset={first}"))).await;
    assert_eq!(seen.json(), json!(["second"]));

    // Who reads along finds the log that it knows, empty by then.
    for seconds in [290, 10, 5] {
        advance(Duration::from_secs(seconds)).await;
        let seen = send(&layer, get(&format!("/events/news?offset={second}"))).await;
        assert_eq!((seen.status.as_u16(), seen.json()), (200, json!([])));
    }
    assert_eq!((news.history(), comet.stats().channels), (0, 1));
    advance(Duration::from_secs(61)).await;
    // Any traffic moves it along.
    comet.channel("other").publish("something").await.unwrap();
    assert_eq!(comet.stats().channels, 1);
    for offset in [nothing, first, second] {
        let seen = send(&layer, get(&format!("/events/news?offset={offset}&live=long-poll"))).await;
        assert_eq!((seen.status.as_u16(), seen.reason()), (410, "gone".to_owned()), "{offset}");
        let over = send(&layer, get(&format!("/events/news?offset={}", earliest(&seen)))).await;
        assert_eq!((over.status.as_u16(), over.json()), (200, json!([])));
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_is_made_again_never_accepts_an_old_offset() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let news = comet.channel("news");
    let mut old = vec![news.tail()];
    for round in 0..3 {
        if round > 0 {
            old.push(news.create("application/json").await.unwrap());
        }
        old.extend(publish(&news, 3).await);
        news.delete().await.unwrap();
        for offset in &old {
            let seen = send(&layer, live("/events", offset)).await;
            assert_eq!((seen.status.as_u16(), seen.reason()), (410, "gone".to_owned()), "{offset}");
            let seen = send(&layer, live("/streams", offset)).await;
            assert_eq!((seen.status.as_u16(), seen.reason()), (404, "not-found".to_owned()), "{offset}");
        }
        publish(&news, 5).await;
        for offset in &old {
            let seen = send(&layer, live("/events", offset)).await;
            let reason = seen.reason();
            assert!(seen.status == 410 && ["other-log", "trimmed"].contains(&&*reason), "{offset}: {seen:?}");
        }
        news.delete().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_started_again_recognises_no_offset_of_before() {
    let before = Comet::new().channel("news");
    let offsets = publish(&before, 3).await;
    let comet = Comet::new();
    let layer = layer(&comet);
    for offset in &offsets {
        let seen = send(&layer, live("/events", offset)).await;
        assert_eq!((seen.status.as_u16(), seen.reason()), (410, "gone".to_owned()));
    }
    publish(&comet.channel("news"), 3).await;
    for offset in offsets {
        refused(&layer, offset, "other-log").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_a_burst_has_passed_by_is_told() {
    let comet = keeping(2);
    let layer = layer(&comet);
    let news = comet.channel("news");
    let offset = publish(&news, 1).await[0];
    let fell_out = sent(&layer, live("/events", offset)).await;
    // All of it before the one who waits comes to look.
    let burst = publish(&news, 3).await;
    let seen = fell_out.await.unwrap();
    assert_eq!((seen.status.as_u16(), seen.reason(), earliest(&seen)), (410, "trimmed".to_owned(), burst[0]));

    let kept_up = sent(&layer, live("/events", burst[2])).await;
    publish(&news, 2).await;
    assert_eq!(kept_up.await.unwrap().json(), json!([0, 1]));
}
