//! Long-polls and event streams on a paused clock: when they end, and with what.

use http::Response;
use http_body_util::{BodyExt, Full};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tower_comet::{Comet, Create, OutcomeKind, ResponseBody};
use tower_comet_minimal::{get, layer, open, send, settle, spawn};

const LIVE: &str = "live=long-poll";

/// The next frame of an event stream as text, or `None` at its end.
async fn next(response: &mut Response<ResponseBody<Full<bytes::Bytes>>>) -> Option<String> {
    let frame = response.body_mut().frame().await?.expect("no error").into_data().expect("no trailers");
    Some(String::from_utf8(frame.to_vec()).expect("UTF-8"))
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_returns_the_next_message() {
    let comet = Comet::new();
    let (layer, news) = (layer(&comet), comet.channel("/events/news"));
    news.publish("before").await.unwrap();
    let began = Instant::now();
    let waits: Vec<_> = (0..100).map(|_| spawn(&layer, "/events/news".to_owned())).collect();
    settle().await;
    assert_eq!(comet.waiters(), 100);
    let tail = news.publish("after").await.unwrap().to_string();
    for wait in waits {
        let seen = wait.await.unwrap();
        assert_eq!((seen.status, seen.text(), seen.outcome), (200, r#"["after"]"#, Some(OutcomeKind::Delivered)));
        assert_eq!(seen.header("stream-next-offset"), Some(&*tail));
    }
    assert_eq!((comet.waiters(), began.elapsed()), (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_times_out_with_204_at_its_time() {
    let comet = Comet::new();
    let layer = layer(&comet);
    for (query, seconds) in [("", 25.0), ("?timeout=10", 10.0), ("?timeout=0.5", 0.5), ("?timeout=0", 0.0)] {
        let began = Instant::now();
        let seen = send(&layer, get(&format!("/events/news{query}"))).await;
        let waited = began.elapsed().as_secs_f64();
        assert_eq!((seen.status, seen.text(), seen.outcome), (204, "", Some(OutcomeKind::TimedOut)), "{query}");
        // Up to a sixteenth earlier, at random. A timer of tokio has a resolution of 1 ms.
        assert!(waited >= seconds * 15.0 / 16.0 && waited <= seconds + 0.002, "{query}: {waited}");
    }
    assert_eq!(comet.waiters(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_time_out_skips_no_message() {
    let comet = Comet::new();
    let (layer, news) = (layer(&comet), comet.channel("/events/news"));
    let (mut before, mut after) = (0, 0);
    // The wait times out between 938 and 1000 ms.
    for millis in 920..1_010 {
        let uri = format!("/events/news?offset={}&{LIVE}&timeout=1", news.tail());
        let wait = spawn(&layer, uri.clone());
        sleep(Duration::from_millis(millis)).await;
        news.publish(millis).await.unwrap();
        let mut seen = wait.await.unwrap();
        if seen.status == 204 {
            after += 1;
            seen = send(&layer, get(&uri)).await;
        } else {
            before += 1;
        }
        assert_eq!((seen.status, seen.text()), (200, &*format!("[{millis}]")));
    }
    assert!(before >= 10 && after >= 10, "{before} messages before the time-out, {after} after it");
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_ends_with_the_lifetime_of_its_channel() {
    let comet = Comet::new();
    let end = std::time::SystemTime::now() + Duration::from_secs(2);
    comet.channel("/events/job").create(Create::new("application/json").until(end)).await.unwrap();
    let began = Instant::now();
    let seen = send(&layer(&comet), get("/events/job")).await;
    assert_eq!(seen.status, 404, "{seen:?}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_event_stream_carries_messages_and_heartbeats_and_ends_after_a_minute() {
    let comet = Comet::new();
    let (layer, news) = (layer(&comet), comet.channel("/events/news"));
    news.publish("old").await.unwrap();
    let mut stream = open(&layer, get("/events/news?offset=now&live=sse")).await;
    let began = Instant::now();
    let first = next(&mut stream).await.unwrap();
    assert!(first.contains("event:") && !first.contains("old") && began.elapsed().is_zero(), "{first}");

    // A heartbeat after 15 s of silence, or up to a 256th earlier.
    let silence = Duration::from_millis(14_940)..=Duration::from_millis(15_002);
    assert_eq!(next(&mut stream).await.unwrap(), ":\n\n");
    assert!(silence.contains(&began.elapsed()), "{:?}", began.elapsed());

    sleep(Duration::from_secs(5)).await;
    news.publish("new").await.unwrap();
    let published = Instant::now();
    let mut text = String::new();
    while !text.contains("event: control") {
        text += &next(&mut stream).await.unwrap();
    }
    assert!(text.contains("new") && published.elapsed().is_zero(), "{text}");

    // A message puts the next heartbeat off.
    assert_eq!(next(&mut stream).await.unwrap(), ":\n\n");
    assert!(silence.contains(&published.elapsed()), "{:?}", published.elapsed());

    while let Some(frame) = next(&mut stream).await {
        assert_eq!(frame, ":\n\n");
    }
    let lasted = began.elapsed().as_secs_f64();
    assert!((56.2..=60.01).contains(&lasted), "{lasted}");
    drop(stream);
    assert_eq!(comet.waiters(), 0);
}
