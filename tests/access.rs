//! What a hook knows of a request, and how it can deny one.
#![allow(unreachable_pub, reason = "the support module is shared")]

mod support;

use http::{Method, Request};
use std::{future::ready, time::Duration};
use support::{get, request, send};
use tower::ServiceExt;
use tower_comet::{Access, Action, Comet, CometLayer, Denied, Grant, Outcome, OutcomeKind, Route, RoutePattern};

#[tokio::test]
async fn a_hook_knows_the_pattern_and_the_decoded_parameters() {
    let hook = |access: Access| {
        let seen = ["room", "rest", "other"].map(|name| access.param(name).unwrap_or("-").to_owned()).join(" ");
        ready(Ok::<_, Denied>(Grant::channel(format!("{} {seen}", access.route_pattern().expect("a route")))))
    };
    let open = || Route::new().read_by(hook).append_by(hook).close_by(hook).create_by(hook);
    let comet = Comet::new();
    let layer = CometLayer::new(comet.clone())
        .route("/rooms/{room}/x", open())
        .route("/all/{*rest}", open())
        .route("/escaped/{room}", open().escaped_slashes())
        .route("/named/{room}", open().channel("n:{room}"));
    for (path, name) in [
        ("/rooms/caf%C3%A9/x", "/rooms/{room}/x café - -"),
        ("/all/a/b%20c", "/all/{*rest} - a/b c -"),
        ("/escaped/a%2fb", "/escaped/{room} a%2Fb - -"),
        ("/named/42", "/named/{room} 42 - -"),
    ] {
        // One append that closes is two actions, and both are asked about.
        let append = support::ask(
            &format!("POST {path}"),
            &[("content-type", "application/json"), ("stream-closed", "true")],
            "1",
        );
        assert_eq!(send(&layer, append).await.status, 204, "{path}");
        assert_eq!(comet.channel(name).history(), 1, "{path}");
    }
}

#[tokio::test]
async fn a_fork_asks_with_the_parameters_of_its_source() {
    let hook = |access: Access| {
        let own = access.param("room").is_some_and(|room| room == "mine");
        ready(if own || access.action() != Action::Read { Ok(()) } else { Err(Denied::forbidden()) })
    };
    let comet = Comet::new();
    let layer = CometLayer::new(comet.clone())
        .route("/rooms/{room}", Route::strict().content_type("application/json").read_by(hook).create_by(hook));
    for room in ["mine", "theirs"] {
        comet.channel(format!("/rooms/{room}")).publish(1).await.unwrap();
    }
    for (room, status) in [("mine", 201), ("theirs", 404)] {
        let source = format!("/rooms/{room}");
        let fork = support::ask(&format!("PUT /rooms/fork-of-{room}"), &[("stream-forked-from", &*source)], "");
        assert_eq!(send(&layer, fork).await.status, status, "{room}");
    }
}

#[tokio::test]
async fn a_denial_has_the_status_the_headers_and_the_body_that_it_names() {
    let html = || Denied::forbidden().with_body("text/html; charset=utf-8", "<script>1</script>");
    let json =
        || Denied::too_many_requests(Duration::from_millis(1_200)).with_body("application/json", r#"{"wait":2}"#);
    let hook = move |access: Access| {
        ready(Err::<(), _>(match access.channel() {
            "/429" => Denied::too_many_requests(Duration::ZERO),
            "/503" => Denied::unavailable(Duration::from_secs(7)),
            "/html" => html(),
            "/json" => json(),
            _ => Denied::unauthorized("Session"),
        }))
    };
    let layer = CometLayer::new(Comet::new()).route("/{channel}", Route::new().read_by(hook));
    for (path, status, reason, retry) in [
        ("/429", 429, "too-many-requests", Some("1")),
        ("/503", 503, "unavailable", Some("7")),
        ("/401", 401, "unauthorized", None),
    ] {
        let seen = send(&layer, get(path)).await;
        assert_eq!((seen.status.as_u16(), &*seen.reason(), seen.header("retry-after")), (status, reason, retry));
        assert_eq!((seen.outcome, seen.header("cache-control")), (Some(OutcomeKind::Denied), Some("no-store")));
    }
    let seen = send(&layer, get("/html")).await;
    assert_eq!((seen.status.as_u16(), seen.text()), (403, "<script>1</script>"));
    assert_eq!(seen.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(seen.header("content-security-policy"), Some("sandbox"));
    assert_eq!(seen.header("x-content-type-options"), Some("nosniff"));
    let seen = send(&layer, get("/json")).await;
    assert_eq!((seen.status.as_u16(), seen.text(), seen.header("retry-after")), (429, r#"{"wait":2}"#, Some("2")));
    let seen = send(&layer, request(Method::HEAD, "/json")).await;
    assert_eq!((seen.status.as_u16(), seen.text()), (429, ""));
}

#[test]
fn a_hook_can_be_tested_without_a_layer() {
    let access = |path: &str| {
        let (parts, ()) = Request::get(path).body(()).unwrap().into_parts();
        Access::new("/rooms/42", Action::Read, parts)
    };
    let bare = access("/rooms/42");
    assert_eq!((bare.route_pattern(), bare.param("room")), (None, None));
    let routed = access("/rooms/4%202").with_route_pattern("/rooms/{room}");
    assert_eq!((routed.route_pattern(), routed.param("room")), (Some("/rooms/{room}"), Some("4 2")));
    for pattern in ["/other/{room}", "/rooms/{", "rooms"] {
        let made = std::panic::catch_unwind(|| access("/rooms/42").with_route_pattern(pattern));
        assert!(made.is_err(), "{pattern}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_response_of_the_layer_names_its_route_and_its_wait() {
    let comet = Comet::new();
    let routes = CometLayer::new(comet.clone())
        .route("/rooms/{room}", Route::new().read_by_anyone().max_wait(Duration::from_secs(5)))
        .route("/shut/{room}", Route::new().read_by(|_: Access| ready(Err::<(), _>(Denied::not_found()))))
        .into_service();
    for (method, path, pattern, outcome, waited) in [
        ("GET", "/rooms/1?offset=-1", Some("/rooms/{room}"), "read", 0),
        ("GET", "/rooms/1", Some("/rooms/{room}"), "timed-out", 5),
        ("GET", "/rooms/1?offset=x", Some("/rooms/{room}"), "invalid", 0),
        ("GET", "/rooms/1?offset=-1&live=sse", Some("/rooms/{room}"), "streamed", 0),
        ("HEAD", "/rooms/1", Some("/rooms/{room}"), "read", 0),
        ("PATCH", "/rooms/1", Some("/rooms/{room}"), "invalid", 0),
        ("OPTIONS", "/rooms/1", Some("/rooms/{room}"), "read", 0),
        ("GET", "/shut/1", Some("/shut/{room}"), "denied", 0),
        ("GET", "/nowhere", None, "invalid", 0),
    ] {
        let request = support::request(method.parse().unwrap(), path);
        let response = routes.clone().oneshot(request).await.unwrap();
        let extensions = response.extensions();
        let seen: &Outcome = extensions.get().expect("an outcome");
        assert_eq!(extensions.get().map(RoutePattern::as_str), pattern, "{method} {path}");
        assert_eq!(
            (seen.as_str(), (seen.waited() + Duration::from_millis(500)).as_secs()),
            (outcome, waited),
            "{method} {path}"
        );
    }
    let waiting = tokio::spawn(routes.oneshot(get("/rooms/2")));
    support::until("it is parked", || comet.waiters() == 1).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    comet.channel("/rooms/2").publish(1).await.unwrap();
    let response = waiting.await.unwrap().unwrap();
    let seen: Outcome = *response.extensions().get().expect("an outcome");
    let waited = seen.waited() + Duration::from_millis(500);
    assert_eq!((seen.kind(), waited.as_secs()), (OutcomeKind::Delivered, 3));
}
