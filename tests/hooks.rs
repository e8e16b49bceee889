//! Authorization hooks that fail: one that never decides times out, one that panics fails its own request and no other.

mod support;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use std::{
    future::{Future, pending, ready},
    panic::panic_any,
    pin::Pin,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering::SeqCst},
    task::{Context, Poll},
    time::Duration,
};
use support::{
    Client, Seen, Server, Teapot, ask, get, post, request, send, send_with, sent, settle, soon, until, with,
};
use tokio::time::Instant;
use tower_comet::{Access, Action, Authorize, Comet, CometLayer, Denied, Grant, OutcomeKind, Route};
use tower_layer::Layer;

const JSON: &str = "application/json";
const LIMIT: Duration = Duration::from_secs(3);

fn guarded(hook: impl Authorize + Clone) -> Route {
    let route = Route::new().hook_timeout(LIMIT);
    route.read_by(hook.clone()).append_by(hook.clone()).create_by(hook.clone()).close_by(hook.clone()).delete_by(hook)
}

fn every_action(uri: &str) -> Vec<(Request<Full<Bytes>>, Action)> {
    vec![
        (get(uri), Action::Read),
        (get(&format!("{uri}?offset=-1")), Action::Read),
        (get(&format!("{uri}?offset=-1&live=sse")), Action::Read),
        (request(Method::HEAD, uri), Action::Read),
        (post(uri, JSON, "1"), Action::Append),
        (with("content-type", JSON, request(Method::PUT, uri)), Action::Create),
        (with("stream-closed", "true", request(Method::POST, uri)), Action::Close),
        (request(Method::DELETE, uri), Action::Delete),
    ]
}

/// A hook that decides in its `polls`th poll, unless it panics before, as configured.
#[derive(Clone, Copy, Debug, Default)]
struct Panics {
    in_call: bool,
    in_poll: Option<usize>,
    in_drop: bool,
    in_drop_of_payload: bool,
}

struct Deciding {
    panics: Panics,
    polls: usize,
}

struct Payload;

impl Drop for Payload {
    fn drop(&mut self) {
        panic!("a secret")
    }
}

impl Authorize for Panics {
    fn authorize(&self, _: Access) -> impl Future<Output = Result<Grant, Denied>> + Send {
        assert!(!self.in_call, "a secret");
        Deciding { panics: *self, polls: 0 }
    }
}

impl Future for Deciding {
    type Output = Result<Grant, Denied>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.polls += 1;
        if self.panics.in_poll == Some(self.polls) {
            if self.panics.in_drop_of_payload {
                panic_any(Payload);
            }
            panic!("a secret");
        }
        if self.polls == 3 {
            return Poll::Ready(Ok(().into()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Deciding {
    fn drop(&mut self) {
        assert!(!self.panics.in_drop, "a secret");
    }
}

/// Every step in which a hook can panic.
fn panics() -> [Panics; 6] {
    let none = Panics::default();
    [
        Panics { in_call: true, ..none },
        Panics { in_poll: Some(1), ..none },
        Panics { in_poll: Some(3), ..none },
        Panics { in_drop: true, ..none },
        Panics { in_poll: Some(2), in_drop: true, ..none },
        Panics { in_poll: Some(2), in_drop_of_payload: true, ..none },
    ]
}

fn check_panicked(seen: &Seen, head: bool, what: &str) {
    assert_eq!((seen.status.as_u16(), seen.outcome), (500, Some(OutcomeKind::Failed)), "{what}");
    assert_eq!(seen.header("cache-control"), Some("no-store"), "{what}");
    assert_eq!(seen.header("retry-after"), None, "{what}");
    if head {
        assert_eq!(seen.text(), "", "{what}");
        return;
    }
    assert_eq!(seen.reason(), "hook-panicked", "{what}");
    assert!(!seen.text().contains("secret") && !seen.text().contains("room"), "{what}: {}", seen.text());
}

fn check_timed_out(seen: &Seen, head: bool, what: &str) {
    assert_eq!((seen.status.as_u16(), seen.outcome), (503, Some(OutcomeKind::Refused)), "{what}");
    assert_eq!(seen.header("cache-control"), Some("no-store"), "{what}");
    let seconds: u32 = seen.header("retry-after").expect(what).parse().expect(what);
    assert!((1..=5).contains(&seconds), "{what}");
    if head {
        assert_eq!(seen.text(), "", "{what}");
        return;
    }
    assert_eq!(seen.reason(), "hook-timeout", "{what}");
    assert!(!seen.text().contains("room"), "{what}: {}", seen.text());
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_anywhere_is_a_500_for_every_action() {
    let comet = Comet::new();
    comet.channel("/room").publish("stored").await.unwrap();
    let mut calls = 0;
    for hook in panics() {
        let layer = CometLayer::new(comet.clone()).route("/{channel}", guarded(hook));
        for (request, _) in every_action("/room") {
            let (head, what) = (request.method() == Method::HEAD, format!("{hook:?} {request:?}"));
            check_panicked(&send(&layer, request).await, head, &what);
            calls += 1;
            assert_eq!(comet.stats().hook_panics, calls, "{what}");
        }
    }
    let stats = comet.stats();
    assert_eq!((stats.hook_timeouts, stats.waiters, stats.channels), (0, 0, 1));
    assert_eq!((comet.channel("/room").history(), comet.channel("/room").is_closed()), (1, false));
}

#[tokio::test(start_paused = true)]
async fn an_async_closure_that_panics_is_a_500_and_the_next_request_is_decided() {
    let comet = Comet::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let hook = {
        let calls = calls.clone();
        move |_: Access| {
            let first = calls.fetch_add(1, SeqCst) == 0;
            async move {
                tokio::task::yield_now().await;
                assert!(!first, "a secret");
                Ok::<_, Denied>(())
            }
        }
    };
    let layer = CometLayer::new(comet.clone()).route("/{channel}", guarded(hook));
    check_panicked(&send(&layer, get("/room?offset=-1")).await, false, "the first");
    assert_eq!(send(&layer, get("/room?offset=-1")).await.status.as_u16(), 200, "the same hook decides again");
    assert_eq!((calls.load(SeqCst), comet.stats().hook_panics), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_drop_of_a_hook_that_a_client_abandons_stays_in_the_layer() {
    let comet = Comet::new();
    struct Never;
    impl Future for Never {
        type Output = Result<(), Denied>;
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            Poll::Pending
        }
    }
    impl Drop for Never {
        fn drop(&mut self) {
            panic!("a secret")
        }
    }
    let layer = CometLayer::new(comet.clone()).route("/{channel}", guarded(|_: Access| Never));
    let abandoned = sent(&layer, get("/room")).await;
    abandoned.abort();
    assert!(abandoned.await.unwrap_err().is_cancelled(), "the task does not end by a panic");
    assert_eq!(comet.stats().hook_panics, 1);
    // Past the limit as well, where the hook has failed in both ways.
    check_panicked(&send(&layer, get("/room")).await, false, "timed out, then panicked in its drop");
    assert_eq!((comet.stats().hook_panics, comet.stats().hook_timeouts), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_never_decides_times_out_for_every_action() {
    let comet = Comet::new();
    comet.channel("/room").publish("stored").await.unwrap();
    let never = |_: Access| pending::<Result<(), Denied>>();
    let layer = CometLayer::new(comet.clone()).route("/{channel}", guarded(never));
    let mut calls = 0;
    for (request, _) in every_action("/room") {
        let (head, what) = (request.method() == Method::HEAD, format!("{request:?}"));
        let started = Instant::now();
        check_timed_out(&send(&layer, request).await, head, &what);
        // tokio's timers have a granularity of a millisecond.
        let elapsed = started.elapsed();
        assert!(elapsed >= LIMIT && elapsed <= LIMIT + Duration::from_millis(2), "{what}: {elapsed:?}");
        calls += 1;
        assert_eq!(comet.stats().hook_timeouts, calls, "{what}");
    }
    let stats = comet.stats();
    assert_eq!((stats.hook_panics, stats.waiters, stats.channels), (0, 0, 1));
    assert_eq!((comet.channel("/room").history(), comet.channel("/room").is_closed()), (1, false));
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_hook_is_ten_seconds_by_default() {
    let hook = |access: Access| async move {
        let millis = if access.channel() == "/late" { 10_500 } else { 9_500 };
        tokio::time::sleep(Duration::from_millis(millis)).await;
        Ok::<_, Denied>(())
    };
    let layer = CometLayer::new(Comet::new()).route("/{channel}", Route::new().read_by(hook));
    assert_eq!(send(&layer, get("/in-time?offset=-1")).await.status.as_u16(), 200);
    check_timed_out(&send(&layer, get("/late?offset=-1")).await, false, "late");
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_times_out_frees_what_it_and_its_request_own() {
    let comet = Comet::new();
    let owned = Arc::new(());
    let hook = |access: Access| async move {
        let _access = access;
        pending::<Result<(), Denied>>().await
    };
    let layer = CometLayer::new(comet.clone()).route("/{channel}", guarded(hook));
    for (request, _) in every_action("/room") {
        let (mut request, what) = with_owned(request, &owned);
        request.headers_mut().insert("x-large", "x".repeat(1_000).parse().unwrap());
        let waiting = tokio::spawn({
            let layer = layer.clone();
            async move { send_with(&layer, request).await }
        });
        settle().await;
        assert!(Arc::strong_count(&owned) > 1, "{what}: the hook has the request");
        assert_eq!(waiting.await.unwrap().status.as_u16(), 503, "{what}");
        assert_eq!(Arc::strong_count(&owned), 1, "{what}");
    }
    assert_eq!((comet.waiters(), comet.stats().channels, comet.stats().history_bytes), (0, 0, 0));
}

fn with_owned(mut request: Request<Full<Bytes>>, owned: &Arc<()>) -> (Request<Full<Bytes>>, String) {
    let what = format!("{} {}", request.method(), request.uri());
    request.extensions_mut().insert(owned.clone());
    (request, what)
}

#[tokio::test(start_paused = true)]
async fn the_hook_of_a_forks_source_has_the_limits_of_the_sources_route() {
    for (exists, source) in [(true, "/sources/room"), (false, "/sources/none")] {
        let comet = Comet::new();
        if exists {
            comet.channel("/sources/room").publish("stored").await.unwrap();
        }
        let forks = || Route::new().read_by_anyone().create_by_anyone().hook_timeout(Duration::from_secs(1));
        let fork = || ask("PUT /forks/x", &[("stream-forked-from", source)], "");

        let never = |_: Access| pending::<Result<(), Denied>>();
        let sources = Route::new().hook_timeout(LIMIT).read_by(never);
        let layer = CometLayer::new(comet.clone()).route("/forks/{x}", forks()).route("/sources/{x}", sources);
        let started = Instant::now();
        check_timed_out(&send(&layer, fork()).await, false, source);
        assert!(started.elapsed() >= LIMIT, "{source}: {:?}", started.elapsed());

        for hook in panics() {
            let sources = Route::new().hook_timeout(LIMIT).read_by(hook);
            let layer = CometLayer::new(comet.clone()).route("/forks/{x}", forks()).route("/sources/{x}", sources);
            check_panicked(&send(&layer, fork()).await, false, source);
        }
        assert_eq!(comet.stats().channels, usize::from(exists));
        assert_eq!((comet.stats().hook_timeouts, comet.stats().hook_panics), (1, panics().len() as u64));
    }
}

#[tokio::test]
async fn other_streams_of_an_http2_connection_go_on_while_hooks_fail() {
    let comet = Comet::new();
    let never = |_: Access| pending::<Result<(), Denied>>();
    let mut layer = CometLayer::new(comet.clone())
        .route("/open/{channel}", Route::new().read_by_anyone())
        .route("/asked/{channel}", Route::new().read_by(|_: Access| ready(Ok::<_, Denied>(()))))
        .route("/never/{channel}", Route::new().hook_timeout(Duration::from_millis(50)).read_by(never));
    for (nth, hook) in panics().into_iter().enumerate() {
        layer = layer.route(&format!("/panics{nth}/{{channel}}"), Route::new().read_by(hook));
    }
    let server = Server::start(layer.layer(Teapot)).await;
    let mut client = Client::http2(server.addr).await;
    let parked: Vec<_> = ["/open/x", "/asked/x"].into_iter().map(|uri| tokio::spawn(client.send(get(uri)))).collect();
    until("both are parked", || comet.waiters() == 2).await;

    let failing: Vec<_> = (0..panics().len()).map(|nth| client.send(get(&format!("/panics{nth}/x")))).collect();
    let late = client.send(get("/never/x"));
    for (nth, response) in failing.into_iter().enumerate() {
        let seen = soon(response).await.unwrap_or_else(|error| panic!("{nth}: {error}"));
        assert_eq!((seen.status.as_u16(), seen.reason()), (500, "hook-panicked".to_owned()), "{nth}");
    }
    let seen = soon(late).await.unwrap();
    assert_eq!((seen.status.as_u16(), seen.reason()), (503, "hook-timeout".to_owned()));

    assert_eq!(comet.waiters(), 2, "the parked streams are still there");
    for channel in ["/open/x", "/asked/x"] {
        comet.channel(channel).publish("news").await.unwrap();
    }
    for response in parked {
        assert_eq!(soon(response).await.unwrap().unwrap().text(), r#"["news"]"#);
    }
    assert_eq!((comet.stats().hook_timeouts, comet.stats().hook_panics), (1, panics().len() as u64));
}
