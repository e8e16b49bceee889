//! A channel's life: how it comes to be, what type it has, and when it is forgotten.

mod support;

use std::time::Duration;
use support::{get, post, send, sent, settle};
use tokio::time::advance;
use tower_comet::{Comet, CometLayer, Create, Error, Retention, Route};

const MINUTE: Duration = Duration::from_secs(60);

fn comet() -> Comet {
    Comet::builder().retention(Retention::default().age(10 * MINUTE)).build()
}

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone())
        .route("/text/{channel}", Route::new().read_by_anyone().content_type("text/plain").append_by_anyone())
}

/// Advances the clock, and then does something unrelated: there is no task that sweeps.
async fn pass(comet: &Comet, duration: Duration) {
    advance(duration).await;
    let other = comet.channel("/other");
    other.create("text/plain").await.unwrap();
    other.delete().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_look_or_a_wait_makes_neither_a_log_nor_a_type() {
    let comet = comet();
    let layer = layer(&comet);
    let channel = comet.channel("/text/x");
    let _tail = channel.tail();
    assert_eq!((channel.history(), channel.waiters(), channel.is_closed()), (0, 0, false));
    send(&layer, get("/text/x?offset=-1")).await;
    let waiting = sent(&layer, get("/text/x")).await;
    let mut reader = channel.subscribe();
    let reading = tokio::spawn(async move { reader.recv().await });
    settle().await;
    assert_eq!((comet.stats().channels, comet.channels().count(), comet.waiters()), (0, 1, 2));
    // Waited on as text, and made as JSON: the first append decides.
    channel.publish(1).await.unwrap();
    let seen = waiting.await.unwrap();
    assert_eq!((seen.text(), seen.header("content-type")), ("[1]", Some("application/json")));
    assert_eq!(reading.await.unwrap().unwrap().unwrap().data(), "1");
}

#[tokio::test(start_paused = true)]
async fn the_first_append_or_create_decides_the_type() {
    let comet = comet();
    let layer = layer(&comet);
    comet.channel("/text/published").publish("x").await.unwrap();
    comet.channel("/text/appended").append("[1]").await.unwrap();
    comet.channel("/text/closed").close().await.unwrap();
    comet.channel("/text/created").create("image/png").await.unwrap();
    send(&layer, post("/text/posted", "text/plain", "x")).await;
    for (name, content_type) in [
        ("/text/published", "application/json"),
        ("/text/appended", "application/json"),
        ("/text/closed", "application/json"),
        ("/text/created", "image/png"),
        ("/text/posted", "text/plain"),
    ] {
        let seen = send(&layer, get(&format!("{name}?offset=-1"))).await;
        assert_eq!(seen.header("content-type"), Some(content_type), "{name}");
        let publishes = comet.channel(name).publish("x").await;
        match content_type {
            "application/json" if name == "/text/closed" => assert!(matches!(publishes, Err(Error::Closed))),
            "application/json" => assert!(publishes.is_ok()),
            _ => assert!(matches!(publishes, Err(Error::ContentType { .. })), "{name}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_is_forgotten_when_its_history_has_aged_out_and_nobody_is_there() {
    let comet = comet();
    comet.channel("/news").publish("x").await.unwrap();
    pass(&comet, 10 * MINUTE).await;
    assert_eq!((comet.stats().channels, comet.channel("/news").history()), (1, 1));
    pass(&comet, Duration::from_millis(1)).await;
    assert_eq!((comet.stats().channels, comet.channels().count(), comet.stats().history_bytes), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_is_waited_on_or_was_created_is_not_forgotten() {
    let comet = comet();
    let (waited, created) = (comet.channel("/waited"), comet.channel("/created"));
    for channel in [&waited, &created] {
        channel.publish("x").await.unwrap();
    }
    created.create("application/json").await.unwrap();
    let mut reader = waited.subscribe();
    let reading = tokio::spawn(async move { reader.recv().await });
    settle().await;
    pass(&comet, 60 * MINUTE).await;
    for channel in [&waited, &created] {
        assert_eq!(channel.history(), 0, "{channel:?}");
    }
    assert_eq!(comet.stats().channels, 2);

    waited.publish("at last").await.unwrap();
    assert_eq!(reading.await.unwrap().unwrap().unwrap().json::<String>().unwrap(), "at last");
    pass(&comet, 60 * MINUTE).await;
    assert_eq!(comet.stats().channels, 1, "nobody waits on it any more");
    created.delete().await.unwrap();
    assert_eq!((comet.stats().channels, comet.channels().count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_empty_log_is_kept_a_minute_for_who_has_just_read_it() {
    let comet = comet();
    let news = comet.channel("/news");
    let tail = news.publish("x").await.unwrap();
    pass(&comet, 10 * MINUTE - Duration::from_secs(1)).await;
    assert!(news.subscribe_earliest().recv().await.unwrap().is_some());
    pass(&comet, Duration::from_secs(59)).await;
    assert_eq!((news.tail(), news.history(), comet.stats().channels), (tail, 0, 1));
    pass(&comet, Duration::from_secs(2)).await;
    assert_eq!(comet.stats().channels, 0);
    assert!(news.tail() != tail);
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_ends_a_channel_that_was_created() {
    let comet = comet();
    let idle = comet.channel("/idle");
    idle.create(Create::new("application/json").idle(MINUTE)).await.unwrap();
    let mut reader = idle.subscribe();
    for _ in 0..3 {
        advance(MINUTE - Duration::from_secs(1)).await;
        idle.publish("used").await.unwrap();
        assert!(reader.recv().await.unwrap().is_some());
    }
    let reading = tokio::spawn(async move { reader.recv().await });
    settle().await;
    pass(&comet, 5 * MINUTE).await;
    assert_eq!((idle.history(), comet.stats().channels), (3, 1), "who waits keeps it");
    reading.abort();
    assert!(reading.await.is_err());
    pass(&comet, MINUTE + Duration::from_secs(1)).await;
    assert_eq!((idle.history(), comet.stats().channels), (0, 0));
}
