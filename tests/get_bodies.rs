//! A `GET` with a body: the body is read while the request waits, and discarded.

mod support;

use bytes::Bytes;
use http::{Request, Version};
use http_body::Frame;
use http_body_util::{Channel, channel::Sender};
use std::{
    future::ready,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use support::{Seen, Untouchable, send_with, settle};
use tokio::{task::JoinHandle, time::Instant};
use tower_comet::{Access, Comet, CometLayer, Denied, OutcomeKind, Route};

const KIB: usize = 1024;

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone())
        .route("/events/{channel}", Route::new().read_by_anyone().max_waits_per(1, |_| Some("everybody")))
}

fn get(version: Version) -> (Sender<Bytes, io::Error>, Request<Channel<Bytes, io::Error>>) {
    let (sender, body) = Channel::new(1);
    (sender, Request::get("/events/news").version(version).body(body).unwrap())
}

/// A wait with a body that has not arrived.
async fn begin(layer: &CometLayer) -> (Sender<Bytes, io::Error>, JoinHandle<Seen>) {
    let (sender, request) = get(Version::HTTP_11);
    let layer = layer.clone();
    let waiting = tokio::spawn(async move { send_with(&layer, request).await });
    settle().await;
    (sender, waiting)
}

async fn send(sender: &mut Sender<Bytes, io::Error>, bytes: usize) -> bool {
    let sent = sender.try_send(Frame::data(Bytes::from(vec![b'x'; bytes]))).is_ok();
    settle().await;
    sent
}

#[tokio::test(start_paused = true)]
async fn the_request_waits_while_its_body_arrives_and_after_it() {
    let comet = Comet::new();
    let layer = layer(&comet);
    for (sent, ended) in [(0, false), (10, false), (10, true), (0, true)] {
        let (mut sender, waiting) = begin(&layer).await;
        assert!(send(&mut sender, sent).await, "it is read");
        let sender = (!ended).then_some(sender);
        settle().await;
        assert!(!waiting.is_finished());
        assert_eq!(comet.waiters(), 1);
        comet.channel("/events/news").publish("x").await.unwrap();
        let seen = waiting.await.unwrap();
        assert_eq!((seen.status.as_u16(), seen.text()), (200, r#"["x"]"#), "{sent}, {ended}");
        drop(sender);
    }
    assert_eq!(comet.waiters(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_large_or_breaks_off_or_never_ends_is_refused_and_the_wait_ends() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let (mut sender, waiting) = begin(&layer).await;
    assert!(send(&mut sender, 64 * KIB).await);
    assert!(!waiting.is_finished());
    send(&mut sender, 1).await;
    let seen = waiting.await.unwrap();
    assert_eq!((seen.status.as_u16(), &*seen.reason(), seen.header("connection")), (400, "body", Some("close")));

    let (sender, waiting) = begin(&layer).await;
    sender.abort(io::Error::other("lost"));
    let seen = waiting.await.unwrap();
    assert_eq!((seen.status.as_u16(), &*seen.reason(), seen.header("connection")), (400, "body", Some("close")));

    let began = Instant::now();
    let (_sender, waiting) = begin(&layer).await;
    let seen = waiting.await.unwrap();
    assert_eq!((seen.status.as_u16(), seen.outcome), (408, Some(OutcomeKind::Refused)));
    assert_eq!((began.elapsed(), seen.header("connection")), (Duration::from_secs(10), Some("close")));
    assert_eq!((comet.waiters(), comet.channels().count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_of_a_request_that_does_not_wait_or_came_on_http_2() {
    let comet = Comet::new();
    let layer = layer(&comet);
    // It panics if it is read.
    for (uri, status) in [("?offset=-1", 200), ("?offset=now&live=sse", 200), ("?offset=x", 400)] {
        let request = Request::get(format!("/events/news{uri}")).body(Untouchable).unwrap();
        assert_eq!(send_with(&layer, request).await.status.as_u16(), status, "{uri}");
    }
    let request = Request::get("/events/news").version(Version::HTTP_2).body(Untouchable).unwrap();
    assert_eq!(send_with(&layer, request).await.status.as_u16(), 204);
}

#[tokio::test(start_paused = true)]
async fn a_hook_decides_before_the_body_is_read() {
    let asked = Arc::new(AtomicBool::new(false));
    let hook = {
        let asked = asked.clone();
        move |_: Access| {
            asked.store(true, SeqCst);
            ready(Err::<(), _>(Denied::forbidden()))
        }
    };
    let layer = CometLayer::new(Comet::new()).route("/events/{channel}", Route::new().read_by(hook));
    let seen = send_with(&layer, Request::get("/events/news").body(Untouchable).unwrap()).await;
    assert_eq!((seen.status.as_u16(), asked.load(SeqCst)), (403, true));
}
