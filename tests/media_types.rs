//! Content types: a text that a browser could read as another type is refused, and only three types are served without
//! a sandbox.

mod support;

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use std::panic::catch_unwind;
use support::{ask, get, open_to_all, request, send, with};
use tower_comet::{Comet, CometLayer, Create, Error, Route};

/// With `text/html` in them, which a browser that splits at commas takes for the type.
const ATTACKS: [&str; 3] =
    ["text/plain;,text/html", "application/octet-stream;,text/html", "application/json;,text/html"];

const MALFORMED: [&str; 14] = [
    "",
    "text",
    "text/",
    "text/plain,text/html",
    "text/plain;x=\",text/html\"",
    "text/plain text/html",
    "text /plain",
    "text/plain ",
    "text/plain;x",
    "text/plain;x=\"y",
    "text/plain;x=y\u{e4}",
    "text/pl\u{e4}in",
    "text/plain;x=\"\t\u{e4}\"",
    "text/plain;x=(y)",
];

fn layer(comet: &Comet) -> CometLayer {
    let comet_route = |content_type| {
        Route::new().read_by_anyone().content_type(content_type).append_by_anyone().create_by_anyone().close_by_anyone()
    };
    CometLayer::new(comet.clone())
        .route("/json/{x}", comet_route("application/json"))
        .route("/text/{x}", comet_route("text/plain"))
        .route("/bytes/{x}", comet_route("application/octet-stream"))
        .route("/s/{x}", open_to_all())
}

fn typed(line: &str, content_type: &[u8]) -> Request<Full<Bytes>> {
    let mut request = ask(line, &[], "\"<script>\"");
    request.headers_mut().insert("content-type", HeaderValue::from_bytes(content_type).expect("a header's value"));
    request
}

#[tokio::test(start_paused = true)]
async fn a_malformed_content_type_is_400_and_nothing_is_stored() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let texts = ATTACKS.iter().chain(&MALFORMED).map(|text| text.as_bytes());
    // In Latin-1, as some clients send it.
    for content_type in texts.chain([b"text/plain;x=\"\xe4\"".as_slice()]) {
        let what = String::from_utf8_lossy(content_type);
        for line in
            ["POST /json/x", "POST /text/x", "POST /bytes/x", "PUT /json/x", "PUT /text/x", "PUT /s/x", "POST /s/x"]
        {
            let seen = send(&layer, typed(line, content_type)).await;
            assert_eq!((seen.status.as_u16(), &*seen.reason()), (400, "malformed"), "{line} {what}");
        }
        // A request without content does not need a type, but a malformed one is refused nevertheless.
        let close = with("stream-closed", "true", request(http::Method::POST, "/text/x"));
        let (mut close, value) = (close, HeaderValue::from_bytes(content_type).unwrap());
        close.headers_mut().insert("content-type", value);
        assert_eq!(send(&layer, close).await.status.as_u16(), 400, "{what}");
    }
    assert_eq!(comet.stats().channels, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_with_two_content_types_is_400() {
    let comet = Comet::new();
    let layer = layer(&comet);
    for line in ["POST /text/x", "PUT /text/x", "PUT /s/x"] {
        for second in ["text/plain", "text/html", ""] {
            let seen = send(&layer, with("content-type", second, typed(line, b"text/plain"))).await;
            assert_eq!((seen.status.as_u16(), &*seen.reason()), (400, "repeated-header"), "{line} {second:?}");
        }
    }
    assert_eq!(comet.stats().channels, 0);
}

#[tokio::test(start_paused = true)]
async fn a_malformed_content_type_is_an_error_in_process_and_a_panic_of_a_route() {
    let comet = Comet::new();
    for content_type in
        ATTACKS.into_iter().chain(MALFORMED).chain([" text/plain", "text/plain\r\nx: y", "text/plain\0"])
    {
        for create in [Create::new(content_type), Create::from(content_type).content("x").closed()] {
            let created = comet.channel("/x").create(create).await;
            assert!(matches!(created, Err(Error::MediaType)), "{content_type:?}: {created:?}");
        }
        assert!(catch_unwind(|| Route::new().content_type(content_type)).is_err(), "{content_type:?}");
        assert!(catch_unwind(|| Route::strict().content_type(content_type)).is_err(), "{content_type:?}");
    }
    assert_eq!(comet.stats().channels, 0);
}

#[tokio::test(start_paused = true)]
async fn three_types_leave_without_a_sandbox_whatever_their_case_and_parameters() {
    for (content_type, sandboxed) in [
        ("application/json", false),
        ("Application/JSON;charset=utf-8", false),
        ("text/plain", false),
        ("text/plain; charset=utf-8;;x=\"a;b\"", false),
        ("TEXT/PLAIN;", false),
        ("application/octet-stream", false),
        ("text/html", true),
        ("text/html;x=\"text/plain\"", true),
        ("text/plainer", true),
        ("text/xml", true),
        ("image/svg+xml", true),
        ("application/xhtml+xml", true),
        ("application/jsonp", true),
        ("application/problem+json", true),
        ("application/pdf", true),
        ("*/*", true),
    ] {
        let comet = Comet::new();
        let layer = layer(&comet);
        let policy = sandboxed.then_some("sandbox");
        let created = send(&layer, typed("PUT /s/x", content_type.as_bytes())).await;
        assert_eq!(created.status.as_u16(), 201, "{content_type}");
        for request in [
            get("/s/x"),
            get("/s/x?offset=-1&live=long-poll"),
            request(http::Method::HEAD, "/s/x"),
            typed("PUT /s/x", content_type.as_bytes()),
        ] {
            let what = format!("{content_type} {request:?}");
            let seen = send(&layer, request).await;
            assert!(seen.status.is_success(), "{what}");
            assert_eq!(seen.header("content-type"), Some(content_type), "{what}");
            assert_eq!(seen.header("content-security-policy"), policy, "{what}");
            assert_eq!(seen.header("x-content-type-options"), Some("nosniff"), "{what}");
        }
        // Nobody has created this one: it has the type of its route.
        let route = Route::new().read_by_anyone().content_type(content_type);
        let absent = CometLayer::new(comet.clone()).route("/{x}", route);
        for request in [get("/absent?offset=-1"), request(http::Method::HEAD, "/absent")] {
            let seen = send(&absent, request).await;
            assert_eq!(seen.header("content-type"), Some(content_type));
            assert_eq!(seen.header("content-security-policy"), policy, "{content_type}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn json_text_and_base64_are_decided_by_the_parsed_type() {
    for (content_type, body, stream) in [
        ("APPLICATION/json ; x=\"a;b\"", r#"["<script>"]"#, "\ndata:[\"<script>\"]\n"),
        ("Text/x", r#""<script>""#, "\ndata:\"<script>\"\n"),
        ("textual/x", r#""<script>""#, "\ndata:IjxzY3JpcHQ+Ig==\n"),
    ] {
        let comet = Comet::new();
        let layer = layer(&comet);
        let create = typed("PUT /s/x", content_type.as_bytes());
        let closed = with("stream-closed", "true", create);
        assert_eq!(send(&layer, closed).await.status.as_u16(), 201, "{content_type}");
        assert_eq!(send(&layer, get("/s/x")).await.text(), body, "{content_type}");
        let events = send(&layer, get("/s/x?offset=-1&live=sse")).await;
        assert!(events.text().contains(stream), "{content_type}: {}", events.text());
        let base64 = events.header("stream-sse-data-encoding");
        assert_eq!(base64, content_type.starts_with("textual").then_some("base64"), "{content_type}");
    }
}
