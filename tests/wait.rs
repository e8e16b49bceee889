//! Waiting over HTTP: what a bare `GET` promises.

mod support;

use std::time::Duration;
use support::{get, send, settle};
use tokio::time::Instant;
use tower_comet::{Comet, CometLayer, Outcome, Route};

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/events/{channel}", Route::new())
}

#[tokio::test(start_paused = true)]
async fn a_bare_get_waits_for_the_next_message() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let news = comet.channel("/events/news");
    news.publish("before").await.unwrap();

    let waiting = tokio::spawn({
        let layer = layer.clone();
        async move { send(&layer, get("/events/news")).await }
    });
    settle().await;
    assert_eq!((comet.waiters(), news.waiters()), (1, 1));

    let tail = news.publish("after").await.unwrap();
    let seen = waiting.await.unwrap();
    assert_eq!((seen.status.as_u16(), seen.text()), (200, r#"["after"]"#));
    assert_eq!(seen.offset(), tail);
    assert_eq!(seen.header("stream-up-to-date"), Some("true"));
    assert_eq!(seen.outcome, Some(Outcome::Delivered));
    assert!(seen.header("stream-cursor").is_some() && seen.header("etag").is_some());
    assert_eq!((comet.waiters(), news.waiters()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_time_out_is_204_at_the_clients_own_offset_and_skips_nothing() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let news = comet.channel("/events/news");
    let offset = news.publish("seen").await.unwrap();

    let began = Instant::now();
    let seen = send(&layer, get(&format!("/events/news?offset={offset}&live=long-poll"))).await;
    assert_eq!((seen.status.as_u16(), seen.offset()), (204, offset));
    assert_eq!(seen.outcome, Some(Outcome::TimedOut));
    let waited = began.elapsed();
    assert!(waited > Duration::from_secs(23) && waited <= Duration::from_millis(25_001), "{waited:?}");

    news.publish("missed between two polls").await.unwrap();
    let seen = send(&layer, get(&format!("/events/news?offset={offset}&live=long-poll"))).await;
    assert_eq!(seen.text(), r#"["missed between two polls"]"#);
}
