//! Sending over HTTP: what a `POST` appends, what it answers, and what it is refused for.

mod support;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::json;
use support::{get, post, request, send, sent, with};
use tower_comet::{Comet, CometLayer, OutcomeKind, Route};

const JSON: &str = "application/json";

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone())
        .route("/events/{channel}", Route::new().read_by_anyone().append_by_anyone())
        .route(
            "/text/{channel}",
            Route::new().read_by_anyone().content_type("text/plain").append_by_anyone().close_by_anyone(),
        )
        .route("/streams/{channel}", Route::strict().read_by_anyone().append_by_anyone())
        .route("/ended/{channel}", Route::new().read_by_anyone().channel("/events/{channel}").close_by_anyone())
}

#[tokio::test(start_paused = true)]
async fn an_append_is_204_at_the_new_end_and_wakes_who_waits() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let news = comet.channel("/events/news");
    let waiting = sent(&layer, get("/events/news")).await;
    let seen = send(&layer, post("/events/news", JSON, r#"{"n": 1}"#)).await;
    assert_eq!((seen.status.as_u16(), seen.text(), seen.offset()), (204, "", news.tail()));
    assert_eq!(seen.outcome, Some(OutcomeKind::Appended));
    assert_eq!(seen.header("cache-control"), Some("no-store"));
    let heard = waiting.await.unwrap();
    assert_eq!((heard.json(), heard.offset()), (json!([{"n": 1}]), seen.offset()));

    let again = send(&layer, post("/events/news", JSON, "2")).await;
    assert!(again.offset() > seen.offset());
    let what_followed = send(&layer, get(&format!("/events/news?offset={}", seen.offset()))).await;
    assert_eq!(what_followed.text(), "[2]");
}

#[tokio::test(start_paused = true)]
async fn an_array_is_flattened_one_level_into_messages_of_one_append() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let news = comet.channel("/events/news");
    for (nth, (body, messages)) in [
        ("1", json!([1])),
        (" {\"a\": [1, 2]}\r\n", json!([{"a": [1, 2]}])),
        ("[1, \"two\"]", json!([1, "two"])),
        ("[[1, 2], [3]]", json!([[1, 2], [3]])),
        ("[[]]", json!([[]])),
        ("\"[1]\"", json!(["[1]"])),
        ("null", json!([null])),
    ]
    .into_iter()
    .enumerate()
    {
        let before = news.tail();
        assert_eq!(send(&layer, post("/events/news", JSON, body)).await.status.as_u16(), 204, "{body}");
        assert_eq!(news.history(), nth + 1, "one append, however many messages: {body}");
        let seen = send(&layer, get(&format!("/events/news?offset={before}"))).await;
        assert_eq!(seen.json(), messages, "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_append_is_refused_and_changes_nothing() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let untyped = |uri: &str| Request::post(uri).body(Full::from("1")).expect("a request");
    for known in [false, true] {
        if known {
            comet.channel("/events/x").publish("something").await.unwrap();
            comet.channel("/text/x").create("text/plain").await.unwrap();
        }
        let tails = || ["/events/x", "/text/x", "/streams/x"].map(|name| comet.channel(name).tail());
        let before = tails();
        for (request, status, reason) in [
            (post("/events/x", JSON, ""), 400, "empty"),
            (post("/events/x", JSON, "[]"), 400, "empty"),
            (post("/events/x", JSON, " [ ] "), 400, "empty"),
            (post("/events/x", JSON, "{"), 400, "json"),
            (post("/events/x", JSON, "1 2"), 400, "json"),
            (post("/events/x", JSON, "[1,]"), 400, "json"),
            (post("/events/x", JSON, b"\"\xff\"".as_slice()), 400, "json"),
            (untyped("/events/x"), 400, "content-type"),
            (post("/events/x", "json", "1"), 400, "malformed"),
            (post("/events/x", "text/plain", "1"), 409, "content-type"),
            (post("/events/x", "application/jsonl", "1"), 409, "content-type"),
            (post("/text/x", JSON, "1"), 409, "content-type"),
            (post("/text/x", "text/plain", ""), 400, "empty"),
            (post("/streams/x", JSON, "1"), 404, "not-found"),
            (with("stream-seq", "", post("/events/x", JSON, "1")), 400, "seq"),
            // Ending the stream is another action, and this route does not allow it.
            (with("stream-closed", "true", post("/events/x", JSON, "1")), 403, "forbidden"),
        ] {
            let what = format!("{} {:?} {:?}", request.uri(), request.headers(), request.body());
            let seen = send(&layer, request).await;
            assert_eq!((seen.status.as_u16(), &*seen.reason()), (status, reason), "{what}");
        }
        assert_eq!((tails(), comet.channels().count()), (before, if known { 2 } else { 0 }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_type_is_the_same_whatever_its_case_and_its_parameters() {
    let comet = Comet::new();
    let layer = layer(&comet);
    for content_type in ["application/json", "Application/JSON", "application/json; charset=utf-8"] {
        assert_eq!(send(&layer, post("/events/x", content_type, "1")).await.status.as_u16(), 204, "{content_type}");
    }
    let seen = send(&layer, get("/events/x?offset=-1")).await;
    assert_eq!((seen.text(), seen.header("content-type")), ("[1,1,1]", Some(JSON)));
}

#[tokio::test(start_paused = true)]
async fn on_a_comet_route_an_append_makes_the_channel_of_the_routes_type() {
    let comet = Comet::new();
    let layer = layer(&comet);
    assert_eq!(send(&layer, post("/text/log", "text/plain", "a\n")).await.status.as_u16(), 204);
    assert_eq!(send(&layer, post("/text/log", "text/plain", "b\n")).await.status.as_u16(), 204);
    let seen = send(&layer, get("/text/log?offset=-1")).await;
    assert_eq!((seen.text(), seen.header("content-type")), ("a\nb\n", Some("text/plain")));
    assert!(comet.channel("/text/log").publish("json").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_end_is_sent_alone_or_with_the_last_append_and_nothing_follows_it() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let end = |request| with("stream-closed", "true", request);

    let waiting = sent(&layer, get("/text/a")).await;
    let last = send(&layer, end(post("/text/a", "text/plain", "the last"))).await;
    assert_eq!((last.status.as_u16(), last.header("stream-closed")), (204, Some("true")));
    let heard = waiting.await.unwrap();
    assert_eq!((heard.text(), heard.header("stream-closed")), ("the last", Some("true")));

    let waiting = sent(&layer, get("/text/b")).await;
    assert_eq!(send(&layer, end(request(Method::POST, "/text/b"))).await.status.as_u16(), 204);
    let heard = waiting.await.unwrap();
    assert_eq!((heard.status.as_u16(), heard.header("stream-closed")), (204, Some("true")));

    for channel in ["/text/a", "/text/b"] {
        let tail = comet.channel(channel).tail();
        for late in [post(channel, "text/plain", "late"), end(post(channel, "text/plain", "late"))] {
            let seen = send(&layer, late).await;
            assert_eq!((seen.status.as_u16(), &*seen.reason(), seen.offset()), (409, "closed", tail));
            assert_eq!(seen.header("stream-closed"), Some("true"));
        }
        let again = send(&layer, end(request(Method::POST, channel))).await;
        assert_eq!((again.status.as_u16(), again.offset()), (204, tail), "ending again changes nothing");
    }

    // A route that may end, and no more, does not append.
    let seen = send(&layer, post("/ended/c", JSON, "1")).await;
    assert_eq!((seen.status.as_u16(), &*seen.reason()), (403, "forbidden"));
    assert_eq!(send(&layer, end(request(Method::POST, "/ended/c"))).await.status.as_u16(), 204);
    assert!(comet.channel("/events/c").is_closed());
}

#[tokio::test(start_paused = true)]
async fn an_application_keeps_its_own_methods_on_a_comet_route_and_a_strict_route_has_none() {
    let comet = Comet::new();
    let layer = CometLayer::new(comet.clone())
        .route("/events/{channel}", Route::new().read_by_anyone())
        .route("/streams/{channel}", Route::strict().read_by_anyone())
        .route("/some/{channel}", Route::strict().read_by_anyone().append_by_anyone().delete_by_anyone());
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::TRACE] {
        let inner = send(&layer, request(method.clone(), "/events/news")).await;
        assert_eq!((inner.status, inner.outcome), (StatusCode::IM_A_TEAPOT, None), "{method}");
        let refused = send(&layer, request(method.clone(), "/streams/news")).await;
        assert_eq!((refused.status.as_u16(), refused.header("allow")), (405, Some("GET, HEAD, OPTIONS")), "{method}");
    }
    let refused = send(&layer, request(Method::PUT, "/some/news")).await;
    assert_eq!(refused.header("allow"), Some("GET, HEAD, OPTIONS, POST, DELETE"));
    for uri in ["/events/news", "/streams/news"] {
        for method in [Method::OPTIONS, Method::CONNECT] {
            assert_eq!(send(&layer, request(method, uri)).await.status, StatusCode::IM_A_TEAPOT, "{uri}");
        }
    }
    assert_eq!(comet.channels().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn bytes_come_back_as_they_were_sent() {
    let comet = Comet::new();
    let layer = layer(&comet);
    comet.channel("/streams/x").create("application/octet-stream").await.unwrap();
    let every: Bytes = (0..=255).cycle().take(100_000).collect();
    assert_eq!(send(&layer, post("/streams/x", "application/octet-stream", every.clone())).await.status.as_u16(), 204);
    assert_eq!(send(&layer, get("/streams/x")).await.body, every);
}
