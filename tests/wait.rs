//! Waiting over HTTP: when a wait begins, how long it is, and how it ends.

mod support;

use serde_json::json;
use std::{collections::BTreeSet, time::Duration};
use support::{get, request, send, sent, settle, with};
use tokio::time::{Instant, advance};
use tower_comet::{Comet, CometLayer, Create, OutcomeKind, Route};

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone())
        .route("/events/{channel}", Route::new().read_by_anyone())
        .route("/streams/{channel}", Route::strict().read_by_anyone().content_type("application/json"))
        .route("/patient/{channel}", Route::new().read_by_anyone().max_wait(Duration::from_secs(50)))
}

#[tokio::test(start_paused = true)]
async fn a_bare_get_waits_for_the_next_message() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let news = comet.channel("/events/news");
    news.publish("before").await.unwrap();

    let waiting = sent(&layer, get("/events/news")).await;
    assert_eq!((comet.waiters(), news.waiters()), (1, 1));

    let tail = news.publish("after").await.unwrap();
    let seen = waiting.await.unwrap();
    assert_eq!((seen.status.as_u16(), seen.text()), (200, r#"["after"]"#));
    assert_eq!(seen.offset(), tail);
    assert_eq!(seen.header("stream-up-to-date"), Some("true"));
    assert_eq!(seen.outcome, Some(OutcomeKind::Delivered));
    assert!(seen.header("stream-cursor").is_some() && seen.header("etag").is_none(), "what comes next has no name");
    assert_eq!((comet.waiters(), news.waiters()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn every_wait_at_the_tail_is_given_what_comes() {
    let comet = Comet::new();
    let layer = layer(&comet);
    for channel in ["/events/news", "/streams/news"] {
        let news = comet.channel(channel);
        news.create("application/json").await.unwrap();
        // An empty channel's start is its tail.
        let mut waiting = vec![sent(&layer, get(&format!("{channel}?offset=-1&live=long-poll"))).await];
        assert_eq!(news.waiters(), 1);
        let tail = news.publish("first").await.unwrap();
        assert_eq!(waiting.pop().unwrap().await.unwrap().json(), json!(["first"]));

        for offset in ["now", &tail.to_string()] {
            waiting.push(sent(&layer, get(&format!("{channel}?offset={offset}&live=long-poll"))).await);
        }
        assert_eq!(news.waiters(), 2);
        let tail = news.append("[1, 2]").await.unwrap();
        for waiting in waiting {
            let seen = waiting.await.unwrap();
            assert_eq!((seen.status.as_u16(), seen.json(), seen.offset()), (200, json!([1, 2]), tail));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_out_is_204_at_the_clients_own_offset_and_skips_nothing() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let news = comet.channel("/events/news");
    let offset = news.publish("seen").await.unwrap();

    let began = Instant::now();
    let seen = send(&layer, get(&format!("/events/news?offset={offset}&live=long-poll"))).await;
    assert_eq!((seen.status.as_u16(), seen.text(), seen.offset()), (204, "", offset));
    assert_eq!(seen.outcome, Some(OutcomeKind::TimedOut));
    assert_eq!(seen.header("stream-up-to-date"), Some("true"));
    assert_eq!(seen.header("cache-control"), Some("no-store"));
    assert!(seen.header("stream-cursor").is_some() && seen.header("etag").is_none());
    let waited = began.elapsed();
    assert!(waited > Duration::from_secs(23) && waited <= Duration::from_millis(25_001), "{waited:?}");

    news.publish("missed between two polls").await.unwrap();
    let seen = send(&layer, get(&format!("/events/news?offset={offset}&live=long-poll"))).await;
    assert_eq!(seen.text(), r#"["missed between two polls"]"#);
}

#[tokio::test(start_paused = true)]
async fn the_shortest_of_what_is_asked_and_allowed_is_waited_less_a_sixteenth_at_most() {
    let comet = Comet::new();
    let layer = layer(&comet);
    for (uri, prefer, seconds, applied) in [
        ("/events/x", None, 25.0, None),
        ("/patient/x", None, 50.0, None),
        ("/events/x?timeout=10", None, 10.0, None),
        ("/events/x?timeout=0.5", None, 0.5, None),
        ("/events/x?timeout=3600", None, 25.0, None),
        ("/patient/x?timeout=3600", None, 50.0, None),
        ("/events/x", Some("wait=10"), 10.0, Some("wait=10")),
        ("/events/x", Some("respond-async, Wait=\"10\"; a=b"), 10.0, Some("wait=10")),
        ("/events/x", Some("wait=3600"), 25.0, Some("wait=25")),
        ("/events/x", Some("wait=99999999999999999999"), 25.0, None),
        ("/events/x", Some("wait=soon"), 25.0, None),
        ("/events/x", Some("wait=-1"), 25.0, None),
        ("/events/x?timeout=5", Some("wait=10"), 5.0, Some("wait=10")),
        ("/events/x?timeout=10", Some("wait=5"), 5.0, Some("wait=5")),
    ] {
        let ask = || prefer.map_or_else(|| get(uri), |prefer| with("prefer", prefer, get(uri)));
        let began = Instant::now();
        let seen = send(&layer, ask()).await;
        let waited = began.elapsed().as_secs_f64();
        assert_eq!((seen.status.as_u16(), seen.header("preference-applied")), (204, applied), "{uri} {prefer:?}");
        // tokio's timer has a resolution of a millisecond.
        assert!(waited >= seconds * 15.0 / 16.0 && waited <= seconds + 0.002, "{uri} {prefer:?}: {waited}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_time_at_all_is_answered_at_once_and_still_finds_what_there_is() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let news = comet.channel("/events/news");
    let offset = news.publish("seen").await.unwrap();
    let began = Instant::now();
    let uri = format!("/events/news?offset={offset}&live=long-poll");
    for ask in [get(&format!("{uri}&timeout=0")), with("prefer", "wait=0", get(&uri)), get("/events/news?timeout=0")] {
        let seen = send(&layer, ask).await;
        assert_eq!((seen.status.as_u16(), seen.offset()), (204, offset));
    }
    news.publish("missed").await.unwrap();
    assert_eq!(send(&layer, get(&format!("{uri}&timeout=0"))).await.json(), json!(["missed"]));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn waits_that_begin_together_do_not_end_together() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let mut waiting = Vec::new();
    for _ in 0..100 {
        waiting.push(sent(&layer, get("/events/news?timeout=16")).await);
    }
    assert_eq!(comet.waiters(), 100);
    let (mut left, mut ends) = (100, BTreeSet::new());
    for millisecond in 0..16_002 {
        advance(Duration::from_millis(1)).await;
        settle().await;
        if comet.waiters() < left {
            left = comet.waiters();
            ends.insert(millisecond);
        }
    }
    assert_eq!(left, 0);
    assert!(ends.len() > 60, "{} different deadlines: {ends:?}", ends.len());
    assert!(ends.first().unwrap() < &15_200 && ends.last().unwrap() > &15_800, "spread over the sixteenth: {ends:?}");
}

#[tokio::test(start_paused = true)]
async fn waiting_on_a_channel_that_nobody_made_works_and_leaves_nothing_behind() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let empty = send(&layer, get("/events/news?offset=-1")).await;
    assert_eq!((empty.status.as_u16(), empty.json()), (200, json!([])));
    assert_eq!(comet.channels().count(), 0, "looked at");

    let timed_out = send(&layer, get("/events/news")).await;
    assert_eq!((timed_out.status.as_u16(), timed_out.offset()), (204, empty.offset()));
    assert_eq!(comet.channels().count(), 0, "waited on");

    let dropped = sent(&layer, get("/events/news")).await;
    assert_eq!(comet.channels().count(), 1);
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    assert_eq!((comet.channels().count(), comet.waiters()), (0, 0), "dropped");

    // From the offset that an unknown channel has, nothing of what comes is missed.
    let waiting = sent(&layer, get(&format!("/events/news?offset={}&live=long-poll", empty.offset()))).await;
    comet.channel("/events/news").publish("first").await.unwrap();
    assert_eq!(waiting.await.unwrap().json(), json!(["first"]));
    let late = send(&layer, get(&format!("/events/news?offset={}&live=long-poll", timed_out.offset()))).await;
    assert_eq!(late.json(), json!(["first"]));

    // On a strict route there is nothing to wait for.
    for query in ["", "?offset=-1", "?offset=now&live=long-poll", "?offset=-1&live=sse"] {
        let began = Instant::now();
        let seen = send(&layer, get(&format!("/streams/news{query}"))).await;
        assert_eq!((seen.status.as_u16(), seen.reason()), (404, "not-found".to_owned()), "{query}");
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_is_told_to_who_waits_and_nobody_waits_after_it() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let job = comet.channel("/events/job");
    let started = job.publish("started").await.unwrap();
    let uri = format!("/events/job?offset={started}&live=long-poll");

    let waiting = sent(&layer, get(&uri)).await;
    let end = job.publish_last("done").await.unwrap();
    let with_data = waiting.await.unwrap();
    assert_eq!((with_data.status.as_u16(), with_data.json(), with_data.offset()), (200, json!(["done"]), end));
    assert_eq!(with_data.header("stream-closed"), Some("true"));

    let began = Instant::now();
    for uri in [format!("/events/job?offset={end}&live=long-poll"), "/events/job".to_owned()] {
        let after = send(&layer, get(&uri)).await;
        assert_eq!(
            (after.status.as_u16(), after.offset(), after.outcome),
            (204, end, Some(OutcomeKind::Ended)),
            "{uri}"
        );
        assert_eq!(after.header("stream-closed"), Some("true"));
        assert_eq!(after.header("stream-up-to-date"), Some("true"));
    }
    assert_eq!(began.elapsed(), Duration::ZERO);

    let other = comet.channel("/events/other");
    let waiting = sent(&layer, get("/events/other")).await;
    other.close().await.unwrap();
    let ended = waiting.await.unwrap();
    assert_eq!((ended.status.as_u16(), ended.header("stream-closed")), (204, Some("true")));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_and_the_end_of_a_lifetime_are_told_to_who_waits() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let news = comet.channel("/events/news");
    news.publish("something").await.unwrap();
    let waiting = sent(&layer, get("/events/news")).await;
    news.delete().await.unwrap();
    let seen = waiting.await.unwrap();
    assert_eq!((seen.status.as_u16(), seen.reason()), (404, "deleted".to_owned()));

    let soon = std::time::SystemTime::now() + Duration::from_secs(2);
    news.create(Create::new("application/json").until(soon)).await.unwrap();
    let began = Instant::now();
    let seen = send(&layer, get("/events/news")).await;
    assert_eq!((seen.status.as_u16(), seen.reason()), (404, "deleted".to_owned()));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_cursor_goes_on_from_the_clients() {
    let comet = Comet::new();
    let layer = layer(&comet);
    comet.channel("/events/news").publish("something").await.unwrap();
    let cursor = async |query: &str| {
        let seen = send(&layer, get(&format!("/events/news?{query}&live=long-poll&timeout=0"))).await;
        seen.header("stream-cursor").expect("a live answer has one").parse::<u64>().expect("digits")
    };
    for query in ["offset=-1", "offset=now"] {
        let fresh = cursor(query).await;
        // A clock may tick once in between.
        assert!((fresh..=fresh + 1).contains(&cursor(query).await), "clients share a URL");
        for ahead in [fresh + 1, fresh + 1_000] {
            assert!(cursor(&format!("{query}&cursor={ahead}")).await > ahead);
        }
        for garbage in ["1", "x", "-1", "99999999999999999999", ""] {
            assert!((fresh..=fresh + 1).contains(&cursor(&format!("{query}&cursor={garbage}")).await), "{garbage}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_and_a_read_of_an_empty_channel_never_wait() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let began = Instant::now();
    for method in [http::Method::HEAD, http::Method::GET] {
        for query in ["offset=-1", "offset=now", "offset=0000000000000000_0000000000000000"] {
            let seen = send(&layer, request(method.clone(), &format!("/events/news?{query}"))).await;
            assert_eq!(seen.status.as_u16(), 200, "{method} {query}");
        }
    }
    let head = send(&layer, request(http::Method::HEAD, "/events/news?offset=now&live=long-poll")).await;
    assert_eq!((head.status.as_u16(), began.elapsed()), (200, Duration::ZERO));
}
