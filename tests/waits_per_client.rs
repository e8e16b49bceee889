//! The waits of one client on a route have a limit, by a key that the application chooses.

mod support;

use bytes::Bytes;
use http::{Request, request::Parts};
use http_body_util::{BodyExt, Full};
use std::{
    future::{Future, ready},
    hash::{Hash, Hasher},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use support::{Seen, Teapot, get, post, send, sent};
use tokio::time::advance;
use tower::{Service, ServiceExt};
use tower_comet::{Access, Comet, CometLayer, Denied, OutcomeKind, ResponseBody, Route};
use tower_layer::Layer;

const JSON: &str = "application/json";

fn user(request: &Parts) -> Option<String> {
    Some(request.headers.get("user")?.to_str().ok()?.to_owned())
}

fn route(waits: usize) -> Route {
    Route::new().read_by_anyone().append_by_anyone().max_waits_per(waits, user)
}

fn of(user: &str, uri: &str) -> Request<Full<Bytes>> {
    support::with("user", user, get(uri))
}

type Response = http::Response<ResponseBody<Full<Bytes>>>;

/// A request that was polled once.
enum Begun {
    Parked(Pin<Box<dyn Future<Output = Response>>>),
    Answered(Response),
}

impl Begun {
    fn new(layer: &CometLayer, request: Request<Full<Bytes>>) -> Self {
        let answer = layer.layer(Teapot).call(request);
        let mut answer: Pin<Box<dyn Future<Output = Response>>> = Box::pin(async { answer.await.expect("infallible") });
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(response) => Self::Answered(response),
            Poll::Pending => Self::Parked(answer),
        }
    }

    fn status(&self) -> Option<u16> {
        match self {
            Self::Parked(_) => None,
            Self::Answered(response) => Some(response.status().as_u16()),
        }
    }

    async fn refused(self) -> u32 {
        let Self::Answered(response) = self else { panic!("it is parked") };
        let seen = Seen::read(response).await.unwrap();
        assert_eq!((seen.status.as_u16(), &*seen.reason()), (429, "waits-per-client"));
        assert_eq!((seen.outcome, seen.header("cache-control")), (Some(OutcomeKind::Refused), Some("no-store")));
        seen.header("retry-after").expect("when to retry").parse().expect("seconds")
    }
}

#[tokio::test(start_paused = true)]
async fn polls_and_event_streams_of_one_client_count_together_on_all_channels_of_the_route() {
    let comet = Comet::new();
    let layer =
        CometLayer::new(comet.clone()).route("/events/{channel}", route(3)).route("/others/{channel}", route(1));
    let begin = |user, uri: &str| Begun::new(&layer, of(user, uri));
    let stream = "?offset=now&live=sse";

    let poll = begin("a", "/events/1");
    let first = begin("a", &format!("/events/1{stream}"));
    let second = begin("a", &format!("/events/2{stream}"));
    assert_eq!((poll.status(), first.status(), second.status()), (None, Some(200), Some(200)));
    for uri in ["/events/1", "/events/3", "/events/1?offset=now&live=sse", "/events/1?offset=now&live=long-poll"] {
        begin("a", uri).refused().await;
    }
    // Another client, an unidentified client and another route are not affected.
    assert_eq!(begin("b", "/events/1").status(), None);
    let unknown: Vec<_> = (0..10).map(|_| Begun::new(&layer, get("/events/1"))).collect();
    assert!(unknown.iter().all(|begun| begun.status().is_none()));
    let other = begin("a", "/others/1");
    assert_eq!(other.status(), None);
    begin("a", "/others/1").refused().await;
    // A refused request leaves nothing behind; those that are parked by now: three of a, the unknown ones, and the other route's.
    assert_eq!((comet.waiters(), comet.channels().count()), (3 + 10 + 1, 3));

    // A request that is answered at once does not count and is not refused.
    for (uri, status) in [("/events/1?offset=-1", 200), ("/events/1?timeout=0", 204), ("/events/1?offset=x", 400)] {
        assert_eq!(send(&layer, of("a", uri)).await.status.as_u16(), status, "{uri}");
    }

    // A stream leaves the count when it is dropped, and a poll when it is answered.
    drop(first);
    let poll_again = begin("a", "/events/1");
    assert_eq!(poll_again.status(), None);
    begin("a", "/events/1").refused().await;
    assert_eq!(send(&layer, post("/events/1", JSON, "1")).await.status.as_u16(), 204);
    let Begun::Parked(answer) = poll_again else { panic!("it is parked") };
    assert_eq!(answer.await.status().as_u16(), 200);
    assert_eq!(begin("a", "/events/1").status(), None);
    assert_eq!(send(&layer, of("a", "/events/1?offset=-1&live=long-poll")).await.status.as_u16(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_times_out_or_is_dropped_leaves_the_count_once() {
    let comet = Comet::new();
    let layer = CometLayer::new(comet.clone()).route("/events/{channel}", route(2));
    for _ in 0..3 {
        let waiting = [sent(&layer, of("a", "/events/1")).await, sent(&layer, of("a", "/events/1")).await];
        Begun::new(&layer, of("a", "/events/1")).refused().await;
        advance(Duration::from_secs(26)).await;
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap().status.as_u16(), 204);
        }
        let begun = [Begun::new(&layer, of("a", "/events/1")), Begun::new(&layer, of("a", "/events/1"))];
        assert!(begun.iter().all(|begun| begun.status().is_none()));
        Begun::new(&layer, of("a", "/events/1")).refused().await;
    }
    assert_eq!((comet.waiters(), comet.channels().count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_event_stream_counts_to_its_end_even_while_it_sends() {
    let comet = Comet::new();
    let layer = CometLayer::new(comet.clone()).route("/events/{channel}", route(1));
    let Begun::Answered(mut stream) = Begun::new(&layer, of("a", "/events/1?offset=now&live=sse")) else {
        panic!("a stream begins at once")
    };
    for nth in 0..3 {
        comet.channel("/events/1").publish(nth).await.unwrap();
        stream.body_mut().frame().await.unwrap().unwrap();
        Begun::new(&layer, of("a", "/events/1")).refused().await;
    }
    comet.channel("/events/1").close().await.unwrap();
    while stream.body_mut().frame().await.is_some() {}
    drop(stream);
    assert_eq!(Begun::new(&layer, of("a", "/events/2")).status(), None);
}

#[tokio::test(start_paused = true)]
async fn clones_of_a_route_and_of_a_layer_share_the_count() {
    let shared = route(1);
    let layer = CometLayer::new(Comet::new()).route("/a/{channel}", shared.clone()).route("/b/{channel}", shared);
    let clone = layer.clone().route("/c/{channel}", Route::new().read_by_anyone());
    let _parked = Begun::new(&layer, of("a", "/a/1"));
    Begun::new(&layer, of("a", "/b/1")).refused().await;
    Begun::new(&clone, of("a", "/a/1")).refused().await;
}

#[tokio::test(start_paused = true)]
async fn refused_clients_come_back_at_different_times() {
    let layer = CometLayer::new(Comet::new()).route("/events/{channel}", route(0));
    let mut seconds = std::collections::BTreeSet::new();
    for _ in 0..200 {
        seconds.insert(Begun::new(&layer, of("a", "/events/1")).refused().await);
    }
    assert_eq!(seconds, (1..=5).collect());
}

#[tokio::test(start_paused = true)]
async fn on_a_guarded_route_a_denied_request_does_not_count() {
    let layer = CometLayer::new(Comet::new()).route(
        "/events/{channel}",
        route(1).read_by(|access: Access| {
            ready(if access.channel() == "/events/1" { Ok(()) } else { Err(Denied::forbidden()) })
        }),
    );
    for _ in 0..3 {
        assert_eq!(send(&layer, of("a", "/events/2")).await.status.as_u16(), 403);
    }
    let _parked = Begun::new(&layer, of("a", "/events/1"));
    Begun::new(&layer, of("a", "/events/1")).refused().await;
}

/// A key that panics as configured. All of this is the application's code.
#[derive(Clone, Copy, Debug, Default)]
struct Panics {
    in_call: bool,
    in_hash: bool,
    in_drop: bool,
    in_drop_of_payload: bool,
}

struct Key(Panics);

struct Payload;

impl Drop for Payload {
    fn drop(&mut self) {
        panic!("a secret");
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if self.0.in_drop_of_payload {
            std::panic::panic_any(Payload);
        }
        assert!(!self.0.in_hash, "a secret");
        1.hash(state);
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        assert!(!self.0.in_drop, "a secret");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_panics_fails_its_own_request_and_no_other() {
    let (yes, no) = (true, Panics::default());
    for panics in [
        Panics { in_call: yes, ..no },
        Panics { in_hash: yes, ..no },
        Panics { in_drop: yes, ..no },
        Panics { in_hash: yes, in_drop: yes, ..no },
        Panics { in_drop_of_payload: yes, ..no },
    ] {
        let comet = Comet::new();
        let key = move |request: &Parts| {
            let panics = if request.headers.contains_key("panics") { panics } else { Panics::default() };
            assert!(!panics.in_call, "a secret");
            Some(Key(panics))
        };
        let layer = CometLayer::new(comet.clone())
            .route("/events/{channel}", Route::new().read_by_anyone().max_waits_per(2, key));
        let bystander = Begun::new(&layer, get("/events/1"));
        for (nth, uri) in ["/events/1", "/events/1?offset=now&live=sse"].into_iter().enumerate() {
            let seen = send(&layer, support::with("panics", "1", get(uri))).await;
            assert_eq!((seen.status.as_u16(), &*seen.reason()), (500, "key-panicked"), "{panics:?}");
            assert_eq!(seen.outcome, Some(OutcomeKind::Failed));
            assert!(!seen.text().contains("secret"), "{}", seen.text());
            assert_eq!(comet.stats().hook_panics, nth as u64 + 1);
        }
        // The one that is counted is the bystander.
        let parked = Begun::new(&layer, get("/events/1"));
        assert_eq!((bystander.status(), parked.status(), comet.waiters()), (None, None, 2));
        Begun::new(&layer, get("/events/1")).refused().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_key_function_is_called_once_for_each_request_that_may_wait_and_for_no_other() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    // A key that re-enters the crate: if any of its code ran under a lock, a debug build would panic.
    let comet = Comet::new();
    let inside = comet.clone();
    let key = move |_: &Parts| {
        counted.fetch_add(1, SeqCst);
        inside.channel("/events/1").publish("from the key").wait().unwrap();
        None::<u8>
    };
    let layer = CometLayer::new(comet.clone())
        .route("/events/{channel}", Route::new().read_by_anyone().append_by_anyone().max_waits_per(2, key));
    for (request, expected) in [
        (get("/events/2"), 1),
        (get("/events/2?offset=now&live=sse"), 2),
        (get("/events/2?offset=-1&live=long-poll"), 3),
        (get("/events/2?offset=-1"), 3),
        (get("/events/2?offset=bad&live=sse"), 3),
        (post("/events/2", JSON, "1"), 3),
        (support::request(http::Method::HEAD, "/events/2"), 3),
        (get("/elsewhere"), 3),
    ] {
        let what = format!("{} {}", request.method(), request.uri());
        let _begun = layer.layer(Teapot).oneshot(request);
        let mut begun = Box::pin(_begun);
        let _ = begun.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(calls.load(SeqCst), expected, "{what}");
    }
}
