//! Who may do what: asked for each action, before a body is read, about the channel that is meant.

mod support;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use serde_json::json;
use std::{
    future::{Future, ready},
    sync::{Arc, Mutex},
};
use support::{Seen, Teapot, Untouchable, get, post, request, send, send_with, sent, settle, with};
use tower::{ServiceExt, util::MapRequestLayer};
use tower_comet::{Access, Action, Authorize, Comet, CometLayer, Denied, Grant, OutcomeKind, Route};
use tower_layer::Layer;

const JSON: &str = "application/json";

/// A hook that notes what it is asked, and denies it.
#[derive(Clone, Default)]
struct Deny(Arc<Mutex<Vec<(Action, String)>>>);

impl Authorize for Deny {
    fn authorize(&self, access: Access) -> impl Future<Output = Result<Grant, Denied>> + Send {
        self.0.lock().unwrap().push((access.action(), access.channel().to_owned()));
        ready(Err(Denied::forbidden()))
    }
}

fn guarded(strict: bool, hook: impl Authorize + Clone) -> Route {
    let route = if strict { Route::strict() } else { Route::new() };
    route.read_by(hook.clone()).append_by(hook.clone()).create_by(hook.clone()).close_by(hook.clone()).delete_by(hook)
}

/// A request that does each of what can be done.
fn every_action(uri: &str) -> Vec<(Request<Full<Bytes>>, Action)> {
    vec![
        (get(uri), Action::Read),
        (get(&format!("{uri}?offset=-1")), Action::Read),
        (get(&format!("{uri}?offset=now&live=long-poll")), Action::Read),
        (get(&format!("{uri}?offset=-1&live=sse")), Action::Read),
        (request(Method::HEAD, uri), Action::Read),
        (post(uri, JSON, "1"), Action::Append),
        (with("content-type", JSON, request(Method::PUT, uri)), Action::Create),
        (with("stream-closed", "true", request(Method::POST, uri)), Action::Close),
        (request(Method::DELETE, uri), Action::Delete),
    ]
}

#[tokio::test(start_paused = true)]
async fn each_action_is_asked_about_and_a_denial_changes_nothing() {
    for strict in [false, true] {
        let comet = Comet::new();
        comet.channel("/a b").publish("kept").await.unwrap();
        let hook = Deny::default();
        let layer = CometLayer::new(comet.clone()).route("/{channel}", guarded(strict, hook.clone()));
        for (request, action) in every_action("/a%20b") {
            let what = format!("{} {}", request.method(), request.uri());
            let seen = send(&layer, request).await;
            assert_eq!((seen.status.as_u16(), seen.outcome), (403, Some(OutcomeKind::Denied)), "{what}");
            assert_eq!(seen.header("cache-control"), Some("no-store"), "{what}");
            assert_eq!(hook.0.lock().unwrap().drain(..).collect::<Vec<_>>(), [(action, "/a b".to_owned())], "{what}");
        }
        let channel = comet.channel("/a b");
        assert_eq!((channel.history(), channel.is_closed(), comet.stats().channels), (1, false, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_that_ends_the_stream_needs_both() {
    let comet = Comet::new();
    let may =
        |action| move |access: Access| ready(if access.action() == action { Ok(()) } else { Err(Denied::forbidden()) });
    let routes = |hook: Action| Route::new().read_by_anyone().append_by(may(hook)).close_by(may(hook));
    let layer = CometLayer::new(comet.clone())
        .route("/appends/{channel}", routes(Action::Append))
        .route("/closes/{channel}", routes(Action::Close));
    let last = |uri| with("stream-closed", "true", post(uri, JSON, "1"));
    for (request, status) in [
        (last("/appends/x"), 403),
        (last("/closes/x"), 403),
        (post("/closes/x", JSON, "1"), 403),
        (with("stream-closed", "true", request(Method::POST, "/appends/x")), 403),
        (post("/appends/x", JSON, "1"), 204),
        (with("stream-closed", "true", request(Method::POST, "/closes/x")), 204),
    ] {
        let what = format!("{} {:?}", request.uri(), request.headers());
        assert_eq!(send(&layer, request).await.status.as_u16(), status, "{what}");
    }
    // A body of unknown length may be an append: it is asked about as one.
    let streamed = Request::post("/closes/x").header("stream-closed", "true").body(Untouchable).unwrap();
    assert_eq!(send_with(&layer, streamed).await.status.as_u16(), 403);
}

#[tokio::test(start_paused = true)]
async fn a_denial_is_decided_before_the_body_is_read() {
    let comet = Comet::new();
    let slow = async |_: Access| {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        Err::<(), _>(Denied::forbidden())
    };
    let layer = CometLayer::new(comet.clone())
        .route("/sync/{channel}", guarded(false, Deny::default()))
        .route("/slow/{channel}", guarded(true, slow));
    for uri in ["/sync/x", "/slow/x"] {
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let unread = || Request::builder().method(&method).uri(uri).header("content-type", JSON);
            let seen = send_with(&layer, unread().body(Untouchable).unwrap()).await;
            assert_eq!(seen.status.as_u16(), 403, "{method} {uri}");
            let too_large = unread().header("content-length", "1000000000000").body(Untouchable).unwrap();
            assert_eq!(send_with(&layer, too_large).await.status.as_u16(), 403, "whatever else is wrong with it");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_may_take_its_time_and_a_wait_begins_after_it() {
    let comet = Comet::new();
    let (asked, mut asks) = tokio::sync::mpsc::unbounded_channel::<tokio::sync::oneshot::Sender<bool>>();
    let hook = move |_: Access| {
        let (answer, answered) = tokio::sync::oneshot::channel();
        asked.send(answer).unwrap();
        async move { if answered.await == Ok(true) { Ok(()) } else { Err(Denied::not_found()) } }
    };
    let layer = CometLayer::new(comet.clone()).route("/{channel}", Route::new().read_by(hook));
    let [granted, denied, dropped] =
        [sent(&layer, get("/x")).await, sent(&layer, get("/x")).await, sent(&layer, get("/x")).await];
    assert_eq!(comet.waiters(), 0);
    asks.recv().await.unwrap().send(true).unwrap();
    asks.recv().await.unwrap().send(false).unwrap();
    let gone = asks.recv().await.unwrap();
    dropped.abort();
    settle().await;
    assert!(gone.is_closed(), "a client that goes takes its question along");
    assert_eq!(comet.waiters(), 1);
    comet.channel("/x").publish("x").await.unwrap();
    assert_eq!((granted.await.unwrap().status.as_u16(), denied.await.unwrap().status.as_u16()), (200, 404));
}

#[tokio::test(start_paused = true)]
async fn a_denial_says_as_much_as_the_hook_does() {
    let comet = Comet::new();
    let by_name = |access: Access| {
        ready(match access.channel() {
            "/unauthorized" => Err(Denied::unauthorized("Basic realm=\"chat\"")),
            "/forbidden" => Err(Denied::forbidden()),
            "/not-found" => Err(Denied::not_found()),
            _ => Ok(()),
        })
    };
    let layer = CometLayer::new(comet.clone()).route("/{channel}", guarded(true, by_name));
    for (uri, status, challenge) in
        [("/unauthorized", 401, Some("Basic realm=\"chat\"")), ("/forbidden", 403, None), ("/not-found", 404, None)]
    {
        for (request, _) in every_action(uri) {
            let what = format!("{} {}", request.method(), request.uri());
            let head = request.method() == Method::HEAD;
            let seen = send(&layer, request).await;
            assert_eq!((seen.status.as_u16(), seen.header("www-authenticate")), (status, challenge), "{what}");
            assert_eq!(seen.outcome, Some(OutcomeKind::Denied), "{what}");
            if head {
                assert_eq!(seen.text(), "", "{what}");
            } else {
                assert_eq!(seen.reason(), uri[1..], "{what}");
            }
        }
    }
    // What is hidden looks like what is not there.
    let hidden = send(&layer, get("/not-found?offset=-1")).await;
    let absent = send(&layer, get("/absent?offset=-1")).await;
    assert_eq!((hidden.status, hidden.body, hidden.headers), (absent.status, absent.body, absent.headers));
}

#[derive(Clone)]
struct Tenant(&'static str);

#[tokio::test(start_paused = true)]
async fn a_hook_sees_what_outer_layers_left_and_grants_another_channel() {
    let comet = Comet::new();
    let own = |access: Access| {
        assert!(access.uri().path() == "/inbox" && access.headers().contains_key("x-tenant"), "{access:?}");
        assert!(!format!("{access:?}").contains("x-tenant"), "headers are secrets");
        ready(match access.extensions().get() {
            Some(Tenant(tenant)) => Ok(Grant::channel(format!("/tenants/{tenant}/inbox"))),
            None => Err(Denied::unauthorized("Bearer")),
        })
    };
    let layer = CometLayer::new(comet.clone()).route("/inbox", guarded(false, own));
    let login = MapRequestLayer::new(|mut request: Request<Full<Bytes>>| {
        let tenant = match request.headers()["x-tenant"].to_str() {
            Ok("acme") => Some(Tenant("acme")),
            Ok("globex") => Some(Tenant("globex")),
            _ => None,
        };
        tenant.map(|tenant| request.extensions_mut().insert(tenant));
        request
    });
    let service = login.layer(layer.layer(Teapot));
    let by = async |tenant: &str, request| {
        Seen::read(service.clone().oneshot(with("x-tenant", tenant, request)).await.unwrap()).await.unwrap()
    };
    assert_eq!(by("acme", post("/inbox", JSON, r#""for acme""#)).await.status.as_u16(), 204);
    assert_eq!(by("acme", get("/inbox?offset=-1")).await.json(), json!(["for acme"]));
    assert_eq!(by("globex", get("/inbox?offset=-1")).await.json(), json!([]));
    assert_eq!(by("nobody", get("/inbox?offset=-1")).await.status.as_u16(), 401);
    assert_eq!(comet.channel("/tenants/acme/inbox").history(), 1);
    assert_eq!(comet.channel("/inbox").history(), 0);
    for (request, _) in every_action("/inbox").into_iter().skip(4) {
        assert!(by("globex", request).await.status.is_success());
    }
    assert_eq!(comet.channels().count(), 1, "globex has deleted its own, and no other");
}

#[tokio::test(start_paused = true)]
async fn a_unit_grants_the_requested_channel() {
    let comet = Comet::new();
    let requested = |_: Access| ready(Ok::<_, Denied>(Grant::requested()));
    let unit = |_: Access| ready(Ok::<_, Denied>(()));
    let layer = CometLayer::new(comet.clone())
        .route("/requested/{channel}", guarded(false, requested))
        .route("/unit/{channel}", guarded(false, unit));
    for uri in ["/requested/x", "/unit/x"] {
        assert_eq!(send(&layer, post(uri, JSON, "1")).await.status.as_u16(), 204, "{uri}");
        assert_eq!(send(&layer, get(&format!("{uri}?offset=-1"))).await.json(), json!([1]), "{uri}");
        assert_eq!(comet.channel(uri).history(), 1, "{uri}");
    }
}

/// What the documentation of `Authorize` promises: a poll ends after `max_wait`, an event stream after a minute.
#[tokio::test(start_paused = true)]
async fn a_reader_whose_access_is_revoked_receives_until_its_response_ends() {
    for (query, at_least, at_most) in [("offset=now&live=long-poll", 23, 25), ("offset=now&live=sse", 56, 60)] {
        let comet = Comet::new();
        let revoked = Arc::new(Mutex::new(false));
        let hook = {
            let revoked = revoked.clone();
            move |_: Access| ready(if *revoked.lock().unwrap() { Err(Denied::forbidden()) } else { Ok(()) })
        };
        let layer = CometLayer::new(comet.clone()).route("/{channel}", Route::new().read_by(hook));
        let started = tokio::time::Instant::now();
        let reading = sent(&layer, get(&format!("/x?{query}"))).await;
        *revoked.lock().unwrap() = true;
        let seen = reading.await.unwrap();
        let lasted = started.elapsed().as_secs();
        assert!(seen.status.is_success() && (at_least..=at_most).contains(&lasted), "{query}: {lasted} s");
        assert_eq!(send(&layer, get(&format!("/x?{query}"))).await.status.as_u16(), 403, "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_granted_name_is_checked_like_any_other() {
    let comet = Comet::new();
    for bad in ["", "a\nb", &"x".repeat(256)] {
        let bad = bad.to_owned();
        let hook = move |_: Access| ready(Ok::<_, Denied>(Grant::channel(bad.clone())));
        let layer = CometLayer::new(comet.clone()).route("/{channel}", guarded(false, hook));
        for (request, _) in every_action("/x") {
            // The fault is the server's, not the client's.
            assert_eq!(send(&layer, request).await.status.as_u16(), 500);
        }
    }
    assert_eq!(comet.channels().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn writing_is_off_until_a_route_turns_it_on() {
    let comet = Comet::new();
    let layer = CometLayer::new(comet.clone())
        .route("/comet/{x}", Route::new().read_by_anyone())
        .route("/strict/{x}", Route::strict().read_by_anyone());
    for (uri, refused) in [("/comet/x", 418), ("/strict/x", 405)] {
        for (request, action) in every_action(uri) {
            let seen = send(&layer, request).await;
            assert_eq!(seen.status.as_u16() == refused, action != Action::Read, "{uri} {action:?}");
        }
    }
    assert_eq!(comet.stats().channels, 0);
}
