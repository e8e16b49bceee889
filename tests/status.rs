//! Every status, and the headers that go with it, for every operation: over HTTP/1.1 and over HTTP/2.
//!
//! A row is a request and its answer. Of the answer's headers `name: value` must be so, `name` be there, and `!name` not. A
//! `$word` stands for an offset: where it comes first it is learned, after that it must be the same.

mod support;

use std::{collections::HashMap, future::ready, time::Duration};
use support::{Client, Seen, Server, Teapot, ask, open_to_all};
use tower_comet::{Access, Comet, CometLayer, Denied, Retention, Route};
use tower_layer::Layer;

struct Row {
    request: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: &'static str,
    status: u16,
    /// The `reason` of a problem, or the body of anything else.
    says: &'static str,
    expected: Vec<&'static str>,
}

fn row(
    request: &'static str,
    headers: &[(&'static str, &'static str)],
    body: &'static str,
    status: u16,
    says: &'static str,
    expected: &[&'static str],
) -> Row {
    Row { request, headers: headers.to_vec(), body, status, says, expected: expected.to_vec() }
}

const TEXT: (&str, &str) = ("content-type", "text/plain");
const JSON: (&str, &str) = ("content-type", "application/json");
const CLOSED: (&str, &str) = ("stream-closed", "true");
const P: (&str, &str) = ("producer-id", "p");

fn epoch(epoch: &'static str) -> (&'static str, &'static str) {
    ("producer-epoch", epoch)
}

fn seq(seq: &'static str) -> (&'static str, &'static str) {
    ("producer-seq", seq)
}

fn layer() -> CometLayer {
    let comet = Comet::builder().retention(Retention::unbounded()).max_append(1_000).build();
    let guarded = |access: Access| {
        ready(match access.headers().get("authorization").map(|value| value.as_bytes()) {
            Some(b"let me") => Ok(()),
            Some(b"hide it") => Err(Denied::not_found()),
            Some(_) => Err(Denied::forbidden()),
            None => Err(Denied::unauthorized("Bearer")),
        })
    };
    CometLayer::new(comet)
        .route("/s/{*path}", open_to_all())
        .route("/read-only/{*path}", Route::strict().read_by_anyone())
        .route("/no-put/{*path}", Route::strict().read_by_anyone().append_by_anyone().delete_by_anyone())
        .route("/no-close/{*path}", Route::strict().read_by_anyone().append_by_anyone().create_by_anyone())
        .route("/guarded/{*path}", open_to_all().read_by(guarded).append_by(guarded).delete_by(guarded))
        .route("/comet/{channel}", Route::new().read_by_anyone().append_by_anyone().create_by_anyone())
        .route("/comet-read-only/{channel}", Route::new().read_by_anyone())
}

/// Goes through a table by both protocols, each with channels of its own.
async fn both(rows: &[Row]) {
    let server = Server::start(layer().layer(Teapot)).await;
    let http1 = Client::http1(server.addr).await;
    through("HTTP/1.1", http1, rows).await;
    let server = Server::start(layer().layer(Teapot)).await;
    let http2 = Client::http2(server.addr).await;
    through("HTTP/2", http2, rows).await;
}

async fn through(protocol: &str, mut client: Client, rows: &[Row]) {
    let mut offsets = HashMap::new();
    for row in rows {
        let label = format!("{protocol}: {} {:?} {:?}", row.request, row.headers, row.body);
        let filled: Vec<_> = row.headers.iter().map(|(name, value)| (*name, fill(value, &offsets))).collect();
        let headers: Vec<_> = filled.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let request = ask(&fill(row.request, &offsets), &headers, row.body);
        let seen = client.send(request).await.unwrap_or_else(|error| panic!("{label}: {error}"));
        assert_eq!(seen.status.as_u16(), row.status, "{label}: {seen:?}");
        // What the inner service answers is not the layer's to judge.
        if row.status != 418 {
            checked_as_all_are(&label, row, &seen);
        }
        for expected in &row.expected {
            match expected.split_once(": ") {
                Some((name, word)) if word.starts_with('$') => {
                    let offset = seen.header(name).unwrap_or_else(|| panic!("{label}: no {name}")).to_owned();
                    assert_eq!(offsets.entry(word).or_insert(offset.clone()), &offset, "{label}: {word}");
                }
                Some((name, value)) => assert_eq!(seen.header(name), Some(value), "{label}: {name}"),
                None => match expected.strip_prefix('!') {
                    Some(name) => assert_eq!(seen.header(name), None, "{label}: {name}"),
                    None => assert!(seen.header(expected).is_some(), "{label}: no {expected}: {seen:?}"),
                },
            }
        }
    }
}

/// A text with offsets in the place of their words.
fn fill(text: &str, offsets: &HashMap<&str, String>) -> String {
    let mut text = text.to_owned();
    for (word, offset) in offsets {
        text = text.replace(word, offset);
    }
    text
}

/// What every answer of the layer has in common.
fn checked_as_all_are(label: &str, row: &Row, seen: &Seen) {
    assert_eq!(seen.header("x-content-type-options"), Some("nosniff"), "{label}");
    assert_eq!(seen.header("cross-origin-resource-policy"), Some("same-origin"), "{label}");
    let cache = seen.header("cache-control").unwrap_or_default();
    assert!(cache.contains("no-store"), "{label}: {cache}");
    assert_ne!(seen.header("stream-up-to-date"), Some("false"), "{label}");
    assert_ne!(seen.header("stream-closed"), Some("false"), "{label}");
    if row.request.starts_with("HEAD") || row.status == 204 || row.status == 304 {
        assert!(seen.body.is_empty(), "{label}");
    } else if row.status >= 400 {
        assert_eq!(seen.reason(), row.says, "{label}");
        assert_eq!(seen.json()["status"], row.status, "{label}");
    } else {
        assert_eq!(seen.text(), row.says, "{label}");
    }
}

#[tokio::test]
async fn create() {
    both(&[
        row(
            "PUT /s/a",
            &[TEXT],
            "one",
            201,
            "",
            &["location: http://localhost/s/a", "content-type: text/plain", "stream-next-offset: $a", "!stream-closed"],
        ),
        row(
            "PUT /s/a",
            &[TEXT],
            "is not compared",
            200,
            "",
            &["stream-next-offset: $a", "!location", "!stream-closed"],
        ),
        row("PUT /s/a", &[("content-type", "TEXT/Plain; charset=utf-8")], "", 200, "", &["content-type: text/plain"]),
        row("PUT /s/a", &[JSON], "", 409, "conflict", &[]),
        row("PUT /s/a", &[], "", 409, "conflict", &[]),
        row("PUT /s/a", &[TEXT, ("stream-ttl", "60")], "", 409, "conflict", &[]),
        row("PUT /s/a", &[TEXT, CLOSED], "", 409, "conflict", &[]),
        row("PUT /s/a", &[TEXT, ("stream-closed", "yes")], "", 200, "", &["!stream-closed"]),
        row("GET /s/a", &[], "", 200, "one", &["stream-next-offset: $a"]),
        row("PUT /s/none", &[], "", 201, "", &["content-type: application/octet-stream"]),
        row("PUT /s/closed", &[TEXT, ("stream-closed", "TRUE")], "all", 201, "", &["stream-closed: true"]),
        row("PUT /s/closed", &[TEXT, CLOSED], "", 200, "", &["stream-closed: true"]),
        row("PUT /s/closed", &[TEXT], "", 409, "conflict", &[]),
        row("PUT /s/json", &[JSON], "[1, [2]]", 201, "", &["content-type: application/json"]),
        row("GET /s/json", &[], "", 200, "[1, [2]]", &[]),
        row("PUT /s/empty", &[JSON], " [ ] ", 201, "", &["stream-next-offset: $empty"]),
        row("GET /s/empty", &[], "", 200, "[]", &["stream-next-offset: $empty", "stream-up-to-date: true"]),
        row("PUT /s/bad", &[JSON], "{", 400, "json", &[]),
        row("PUT /s/bad", &[("content-type", "text")], "", 400, "malformed", &[]),
        row("HEAD /s/bad", &[], "", 404, "", &[]),
        row("PUT /s/a%20b/%C3%A4", &[TEXT], "", 201, "", &["location: http://localhost/s/a%20b/%C3%A4"]),
        row("PUT /s/a?x=1", &[TEXT], "", 200, "", &[]),
        row("PUT /s/a%2Fb", &[TEXT], "", 400, "name", &[]),
        row("PUT /s/../b", &[TEXT], "", 400, "name", &[]),
        row("PUT /s/__ds/subscriptions/1", &[TEXT], "", 501, "subscriptions", &[]),
        row("PUT /read-only/a", &[TEXT], "", 405, "method", &["allow: GET, HEAD, OPTIONS"]),
        row("PUT /no-put/a", &[TEXT], "", 405, "method", &["allow: GET, HEAD, OPTIONS, POST, DELETE"]),
    ])
    .await;
}

#[tokio::test]
async fn lifetimes() {
    let ttl = |value| [TEXT, ("stream-ttl", value)];
    let at = |value| [TEXT, ("stream-expires-at", value)];
    let mut rows = vec![
        row("PUT /s/ttl", &ttl("60"), "", 201, "", &[]),
        row("PUT /s/ttl", &ttl("60"), "", 200, "", &[]),
        row("PUT /s/ttl", &ttl("61"), "", 409, "conflict", &[]),
        row("PUT /s/ttl", &at("2099-01-01T00:00:00Z"), "", 409, "conflict", &[]),
        row("HEAD /s/ttl", &[], "", 200, "", &["stream-ttl: 60", "!stream-expires-at"]),
        row("PUT /s/at", &at("2099-01-01T00:00:00Z"), "", 201, "", &[]),
        row("PUT /s/at", &at("2099-01-01T02:00:00+02:00"), "", 200, "", &[]),
        row("PUT /s/at", &at("2099-01-01T00:00:01Z"), "", 409, "conflict", &[]),
        row("HEAD /s/at", &[], "", 200, "", &["stream-expires-at: 2099-01-01T00:00:00Z", "!stream-ttl"]),
        row(
            "PUT /s/x",
            &[TEXT, ("stream-ttl", "60"), ("stream-expires-at", "2099-01-01T00:00:00Z")],
            "",
            400,
            "ttl",
            &[],
        ),
        row("PUT /s/longest", &ttl("9007199254740992"), "", 201, "", &[]),
        row("HEAD /s/longest", &[], "", 200, "", &["stream-ttl: 9007199254740992"]),
        row("PUT /s/before-windows", &at("1600-12-31T23:59:59Z"), "", 201, "", &[]),
        row("PUT /s/past", &at("1999-01-01T00:00:00Z"), "", 201, "", &[]),
        row("PUT /s/far", &at("9999-12-31T23:59:59Z"), "", 201, "", &[]),
        row("GET /s/far", &[], "", 200, "", &[]),
    ];
    for value in ["", "-1", "+1", "01", "1.0", "1e3", "9007199254740993", "0x10", "sixty"] {
        rows.push(row("PUT /s/x", &ttl(value), "", 400, "ttl", &[]));
    }
    for value in ["", "tomorrow", "2099-01-01", "2099-13-01T00:00:00Z", "4070908800"] {
        rows.push(row("PUT /s/x", &at(value), "", 400, "expires-at", &[]));
    }
    both(&rows).await;
}

#[tokio::test]
async fn append() {
    both(&[
        row("POST /s/a", &[TEXT], "x", 404, "not-found", &[]),
        row("PUT /s/a", &[TEXT], "", 201, "", &["stream-next-offset: $0"]),
        row("POST /s/a", &[TEXT], "one", 204, "", &["stream-next-offset: $1", "!stream-closed", "!producer-seq"]),
        row("POST /s/a", &[("content-type", "Text/PLAIN;charset=utf-8")], "two", 204, "", &["stream-next-offset: $2"]),
        row("GET /s/a?offset=$0", &[], "", 200, "onetwo", &["stream-next-offset: $2"]),
        row("GET /s/a?offset=$1", &[], "", 200, "two", &[]),
        row("POST /s/a", &[TEXT], "", 400, "empty", &[]),
        row("POST /s/a", &[], "x", 400, "content-type", &[]),
        row("POST /s/a", &[("content-type", "nonsense")], "x", 400, "malformed", &[]),
        row("POST /s/a", &[JSON], "1", 409, "content-type", &[]),
        row("POST /s/a%2", &[TEXT], "x", 400, "name", &[]),
        row("PUT /s/json", &[JSON], "", 201, "", &[]),
        row("POST /s/json", &[JSON], "[1,2]", 204, "", &["stream-next-offset: $both"]),
        row("POST /s/json", &[JSON], "[[3]]", 204, "", &[]),
        row("POST /s/json", &[JSON], "[]", 400, "empty", &[]),
        row("POST /s/json", &[JSON], "[1,", 400, "json", &[]),
        row("POST /s/json", &[JSON], "  ", 400, "json", &[]),
        row("GET /s/json", &[], "", 200, "[1,2,[3]]", &[]),
        row("GET /s/json?offset=$both", &[], "", 200, "[[3]]", &[]),
        row("POST /s/a", &[TEXT, ("stream-seq", "2")], "!", 204, "", &[]),
        row("POST /s/a", &[TEXT, ("stream-seq", "10")], "!", 409, "sequence", &[]),
        row("POST /s/a", &[TEXT, ("stream-seq", "2")], "!", 409, "sequence", &[]),
        row("POST /s/a", &[TEXT, ("stream-seq", "")], "!", 400, "seq", &[]),
        row("POST /s/a", &[TEXT, ("stream-seq", "3")], "!", 204, "", &[]),
        row("GET /s/a?offset=$2", &[], "", 200, "!!", &[]),
        row("POST /read-only/a", &[TEXT], "x", 405, "method", &["allow: GET, HEAD, OPTIONS"]),
        row("POST /s/__ds/jwks.json", &[TEXT], "x", 501, "subscriptions", &[]),
    ])
    .await;
}

#[tokio::test]
async fn an_append_that_is_too_large_is_413() {
    let large: &'static str = "x".repeat(1_001).leak();
    let fits: &'static str = "x".repeat(1_000).leak();
    both(&[
        row("PUT /s/a", &[TEXT], large, 413, "too-large", &[]),
        row("PUT /s/a", &[TEXT], fits, 201, "", &[]),
        row("POST /s/a", &[TEXT], large, 413, "too-large", &[]),
        row("POST /s/a", &[TEXT], fits, 204, "", &[]),
    ])
    .await;
}

#[tokio::test]
async fn close() {
    both(&[
        row("POST /s/a", &[CLOSED], "", 404, "not-found", &[]),
        row("PUT /s/a", &[TEXT], "", 201, "", &[]),
        row(
            "POST /s/a",
            &[TEXT, ("stream-closed", "false")],
            "one",
            204,
            "",
            &["stream-next-offset: $1", "!stream-closed"],
        ),
        row("POST /s/a", &[("stream-closed", "1")], "", 400, "empty", &["!stream-closed"]),
        row("POST /s/a", &[JSON, CLOSED], "", 204, "", &["stream-next-offset: $1", "stream-closed: true"]),
        row("POST /s/a", &[CLOSED], "", 204, "", &["stream-next-offset: $1", "stream-closed: true"]),
        row("POST /s/a", &[TEXT], "x", 409, "closed", &["stream-next-offset: $1", "stream-closed: true"]),
        row("POST /s/a", &[TEXT, CLOSED], "x", 409, "closed", &["stream-next-offset: $1", "stream-closed: true"]),
        row("GET /s/a", &[], "", 200, "one", &["stream-closed: true", "stream-up-to-date: true"]),
        row("HEAD /s/a", &[], "", 200, "", &["stream-closed: true"]),
        row("PUT /s/b", &[TEXT], "", 201, "", &[]),
        row(
            "POST /s/b",
            &[TEXT, ("stream-closed", "True")],
            "last",
            204,
            "",
            &["stream-closed: true", "stream-next-offset: $b"],
        ),
        row("GET /s/b", &[], "", 200, "last", &["stream-closed: true", "stream-next-offset: $b"]),
        row("PUT /s/c", &[JSON], "", 201, "", &[]),
        row("POST /s/c", &[JSON, CLOSED], "[]", 400, "empty", &["!stream-closed"]),
        row("HEAD /s/c", &[], "", 200, "", &["!stream-closed"]),
        row("PUT /no-close/a", &[TEXT], "", 201, "", &[]),
        row("POST /no-close/a", &[CLOSED], "", 403, "forbidden", &[]),
        row("POST /no-close/a", &[TEXT, CLOSED], "last", 403, "forbidden", &[]),
        row("POST /no-close/a", &[TEXT], "more", 204, "", &["!stream-closed"]),
    ])
    .await;
}

#[tokio::test]
async fn producers() {
    both(&[
        row("PUT /s/a", &[TEXT], "", 201, "", &[]),
        row("POST /s/a", &[TEXT, P, epoch("1")], "x", 400, "producer", &[]),
        row("POST /s/a", &[TEXT, P, epoch("1"), seq("-1")], "x", 400, "producer", &[]),
        row("POST /s/a", &[TEXT, P, epoch("1"), seq("9007199254740992")], "x", 400, "producer", &[]),
        row("POST /s/a", &[TEXT, ("producer-id", ""), epoch("1"), seq("0")], "x", 400, "producer", &[]),
        row(
            "POST /s/a",
            &[TEXT, P, epoch("1"), seq("1")],
            "x",
            409,
            "gap",
            &["producer-expected-seq: 0", "producer-received-seq: 1"],
        ),
        row(
            "POST /s/a",
            &[TEXT, P, epoch("1"), seq("0")],
            "a",
            200,
            "",
            &["producer-epoch: 1", "producer-seq: 0", "stream-next-offset: $0", "!stream-closed"],
        ),
        row(
            "POST /s/a",
            &[TEXT, P, epoch("1"), seq("1")],
            "b",
            200,
            "",
            &["producer-seq: 1", "stream-next-offset: $1"],
        ),
        row(
            "POST /s/a",
            &[TEXT, P, epoch("1"), seq("0")],
            "a",
            204,
            "",
            &["producer-epoch: 1", "producer-seq: 1", "stream-next-offset: $1"],
        ),
        row(
            "POST /s/a",
            &[TEXT, P, epoch("1"), seq("3")],
            "x",
            409,
            "gap",
            &["producer-expected-seq: 2", "producer-received-seq: 3", "!stream-closed"],
        ),
        row("POST /s/a", &[TEXT, P, epoch("0"), seq("2")], "x", 403, "fenced", &["producer-epoch: 1"]),
        row("POST /s/a", &[TEXT, P, epoch("2"), seq("1")], "x", 400, "epoch", &[]),
        row("POST /s/a", &[JSON, P, epoch("1"), seq("2")], "1", 409, "content-type", &[]),
        row("POST /s/a", &[TEXT, P, epoch("1"), seq("2")], "", 400, "empty", &[]),
        row("POST /s/a", &[TEXT, P, epoch("2"), seq("0")], "c", 200, "", &["producer-epoch: 2", "producer-seq: 0"]),
        row("POST /s/a", &[TEXT, P, epoch("1"), seq("2")], "x", 403, "fenced", &["producer-epoch: 2"]),
        row(
            "POST /s/a",
            &[P, CLOSED, epoch("2"), seq("1")],
            "",
            204,
            "",
            &["producer-epoch: 2", "producer-seq: 1", "stream-closed: true", "stream-next-offset: $end"],
        ),
        row("POST /s/a", &[P, CLOSED, epoch("2"), seq("1")], "", 204, "", &["stream-closed: true", "producer-seq: 1"]),
        row("POST /s/a", &[TEXT, P, CLOSED, epoch("2"), seq("1")], "other", 204, "", &["stream-closed: true"]),
        row(
            "POST /s/a",
            &[P, CLOSED, epoch("2"), seq("2")],
            "",
            409,
            "closed",
            &["stream-closed: true", "stream-next-offset: $end"],
        ),
        row("POST /s/a", &[TEXT, P, CLOSED, epoch("2"), seq("0")], "c", 409, "closed", &["stream-closed: true"]),
        row("GET /s/a", &[], "", 200, "abc", &["stream-closed: true", "stream-next-offset: $end"]),
    ])
    .await;
}

/// Where several things are wrong with a request, the first of these is said: soft-deleted or missing, closed, type,
/// producer, sequence.
#[tokio::test]
async fn precedence() {
    both(&[
        row("PUT /s/closed", &[TEXT, CLOSED], "x", 201, "", &[]),
        row("POST /s/closed", &[JSON, ("stream-seq", "1")], "{", 409, "closed", &["stream-closed: true"]),
        row("PUT /s/a", &[TEXT], "", 201, "", &[]),
        row("POST /s/a", &[TEXT, ("stream-seq", "5"), P, epoch("5"), seq("0")], "x", 200, "", &[]),
        // Type before producer and sequence.
        row("POST /s/a", &[JSON, ("stream-seq", "1"), P, epoch("1"), seq("9")], "1", 409, "content-type", &[]),
        row("POST /s/a", &[JSON, ("stream-seq", "1"), P, epoch("1"), seq("9")], "{", 409, "content-type", &[]),
        // Producer before sequence.
        row("POST /s/a", &[TEXT, ("stream-seq", "1"), P, epoch("1"), seq("9")], "x", 403, "fenced", &[]),
        row("POST /s/a", &[TEXT, ("stream-seq", "1"), P, epoch("5"), seq("9")], "x", 409, "gap", &[]),
        // A duplicate is one, whatever its sequence says; what is new is not.
        row("POST /s/a", &[TEXT, ("stream-seq", "5"), P, epoch("5"), seq("0")], "x", 204, "", &["producer-seq: 0"]),
        row("POST /s/a", &[TEXT, ("stream-seq", "5"), P, epoch("5"), seq("1")], "x", 409, "sequence", &[]),
        // And what was refused for its sequence has not used up the producer's number.
        row("POST /s/a", &[TEXT, ("stream-seq", "6"), P, epoch("5"), seq("1")], "x", 200, "", &["producer-seq: 1"]),
        row("POST /s/missing", &[JSON, P, epoch("5"), seq("7")], "{", 404, "not-found", &[]),
    ])
    .await;
}

#[tokio::test]
async fn delete() {
    both(&[
        row("DELETE /s/a", &[], "", 404, "not-found", &[]),
        row("PUT /s/a", &[TEXT], "one", 201, "", &["stream-next-offset: $old"]),
        row("DELETE /s/a", &[], "", 204, "", &[]),
        row("DELETE /s/a", &[], "", 404, "not-found", &[]),
        row("GET /s/a", &[], "", 404, "not-found", &[]),
        row("GET /s/a?offset=$old", &[], "", 404, "not-found", &[]),
        row("HEAD /s/a", &[], "", 404, "", &[]),
        row("POST /s/a", &[TEXT], "x", 404, "not-found", &[]),
        row("PUT /s/a", &[TEXT], "two", 201, "", &["stream-next-offset: $new"]),
        row("GET /s/a", &[], "", 200, "two", &[]),
        row("GET /s/a?offset=$old", &[], "", 410, "other-log", &["stream-next-offset: $new", "stream-earliest-offset"]),
        row("DELETE /read-only/a", &[], "", 405, "method", &["allow: GET, HEAD, OPTIONS"]),
        row("DELETE /s/__ds/x", &[], "", 501, "subscriptions", &[]),
    ])
    .await;
}

#[tokio::test]
async fn head() {
    both(&[
        row("HEAD /s/a", &[], "", 404, "", &[]),
        row("PUT /s/a", &[("content-type", "text/html")], "one", 201, "", &["stream-next-offset: $1"]),
        row(
            "HEAD /s/a",
            &[],
            "",
            200,
            "",
            &[
                "content-type: text/html",
                "stream-next-offset: $1",
                "!stream-closed",
                "!stream-ttl",
                "!stream-expires-at",
                "!etag",
                "content-security-policy: sandbox",
            ],
        ),
        row(
            "HEAD /comet/a",
            &[],
            "",
            200,
            "",
            &["content-type: application/json", "stream-next-offset: 0000000000000000_x0000000000000000"],
        ),
        row("HEAD /s/__ds", &[], "", 501, "", &[]),
        row("HEAD /s/a%00", &[], "", 400, "", &[]),
    ])
    .await;
}

#[tokio::test]
async fn get() {
    both(&[
        row("GET /s/a", &[], "", 404, "not-found", &[]),
        row("GET /s/a?offset=now&live=long-poll", &[], "", 404, "not-found", &[]),
        row("PUT /s/a", &[TEXT], "", 201, "", &["stream-next-offset: $0"]),
        row(
            "GET /s/a",
            &[],
            "",
            200,
            "",
            &["stream-next-offset: $0", "stream-up-to-date: true", "etag", "content-type: text/plain"],
        ),
        row("POST /s/a", &[TEXT], "one", 204, "", &["stream-next-offset: $1"]),
        row(
            "GET /s/a?offset=-1",
            &[],
            "",
            200,
            "one",
            &["stream-next-offset: $1", "stream-up-to-date: true", "!stream-closed"],
        ),
        row("GET /s/a?offset=$1", &[], "", 200, "", &["stream-next-offset: $1", "stream-up-to-date: true", "etag"]),
        row("GET /s/a?offset=now", &[], "", 200, "", &["stream-next-offset: $1", "!etag"]),
        row("GET /s/a?offset=0000000000000000_x0000000000000000", &[], "", 200, "one", &[]),
        row("GET /s/a?offset=-1&unknown=1&cursor=garbage", &[], "", 200, "one", &["!stream-cursor"]),
        row("GET /s/a?offset=-1", &[("if-none-match", "*")], "", 304, "", &["etag", "stream-next-offset: $1"]),
        row("GET /s/a?offset=-1", &[("if-none-match", "\"x\"")], "", 200, "one", &[]),
        row(
            "GET /s/a?offset=0000000000000009_x0000000000000000",
            &[],
            "",
            410,
            "other-log",
            &["stream-next-offset: $1"],
        ),
        row("GET /s/a?offset=", &[], "", 400, "offset", &[]),
        row("GET /s/a?offset=1", &[], "", 400, "offset", &[]),
        row("GET /s/a?offset=-1&offset=-1", &[], "", 400, "query", &[]),
        row("GET /s/a?live=long-poll", &[], "", 400, "offset", &[]),
        row("GET /s/a?live=sse", &[], "", 400, "offset", &[]),
        row("GET /s/a?offset=-1&live=websocket", &[], "", 400, "live", &[]),
        row(
            "GET /s/a?offset=-1&live=long-poll",
            &[],
            "",
            200,
            "one",
            &["stream-cursor", "stream-next-offset: $1", "etag"],
        ),
        row(
            "GET /s/a?offset=$1&live=long-poll&timeout=0",
            &[],
            "",
            204,
            "",
            &[
                "stream-cursor",
                "stream-next-offset: $1",
                "stream-up-to-date: true",
                "!etag",
                "!stream-closed",
                "!content-type",
            ],
        ),
        row("GET /s/a?offset=$1&live=long-poll", &[("prefer", "wait=0")], "", 204, "", &["preference-applied: wait=0"]),
        row("POST /s/a", &[CLOSED], "", 204, "", &[]),
        row("GET /s/a?offset=$1&live=long-poll", &[], "", 204, "", &["stream-closed: true", "stream-up-to-date: true"]),
        row("GET /s/a?offset=now&live=long-poll", &[], "", 204, "", &["stream-closed: true"]),
        row("GET /s/a?offset=now", &[], "", 200, "", &["stream-closed: true"]),
        row("GET /s/a?offset=-1&live=long-poll", &[], "", 200, "one", &["stream-closed: true"]),
        row("PUT /s/json", &[JSON], "", 201, "", &[]),
        row(
            "GET /s/json?offset=now",
            &[],
            "",
            200,
            "[]",
            &["content-type: application/json", "!content-security-policy"],
        ),
        row("PUT /s/svg", &[("content-type", "image/svg+xml")], "<svg/>", 201, "", &[]),
        row("GET /s/svg", &[], "", 200, "<svg/>", &["content-security-policy: sandbox"]),
        row("GET /s/__ds/subscriptions/x", &[], "", 501, "subscriptions", &[]),
        row("GET /s/%5F_ds/subscriptions/x", &[], "", 501, "subscriptions", &[]),
        row("GET /s/x/__ds", &[], "", 404, "not-found", &[]),
        row("PATCH /s/a", &[], "", 405, "method", &["allow: GET, HEAD, OPTIONS, POST, PUT, DELETE"]),
        row("OPTIONS /s/a", &[], "", 418, "inner", &[]),
        row("GET /elsewhere", &[], "", 418, "inner", &[]),
    ])
    .await;
}

#[tokio::test]
async fn headers_with_one_value_occur_once_and_bodies_are_not_encoded() {
    let twice = |name| [TEXT, (name, "1"), (name, "1")];
    let mut rows = vec![row("PUT /s/a", &[TEXT], "", 201, "", &[])];
    for name in ["content-type", "producer-id", "producer-epoch", "stream-seq", "stream-closed", "stream-ttl"] {
        rows.push(row("POST /s/a", &twice(name), "x", 400, "repeated-header", &[]));
    }
    let id = ("last-event-id", "");
    rows.extend([
        row("GET /s/a?offset=-1&live=sse", &[id, id], "", 400, "repeated-header", &[]),
        row("GET /s/a", &[("accept", "a/b"), ("accept", "c/d")], "", 200, "", &[]),
        row(
            "POST /s/a",
            &[TEXT, ("content-encoding", "gzip")],
            "x",
            415,
            "content-encoding",
            &["accept-encoding: identity"],
        ),
        row("PUT /s/b", &[TEXT, ("content-encoding", "br")], "x", 415, "content-encoding", &[]),
        row("POST /s/a", &[TEXT, ("content-encoding", "identity")], "x", 204, "", &[]),
    ]);
    both(&rows).await;
}

/// Event streams of streams that have ended, so that each answer has an end.
#[tokio::test]
async fn event_streams() {
    both(&[
        row("GET /s/a?offset=-1&live=sse", &[], "", 404, "not-found", &[]),
        row("PUT /s/json", &[JSON, CLOSED], "[1,2]", 201, "", &[]),
        row("GET /s/json?offset=now&live=sse&cursor=7", &[("last-event-id", "x")], "", 400, "offset", &[]),
        row("GET /s/json?offset=1&live=sse", &[("last-event-id", "")], "", 400, "offset", &[]),
        row(
            "GET /s/json?offset=-1&live=sse",
            &[("last-event-id", "0000000000000007_x0000000000000000")],
            "",
            410,
            "other-log",
            &[],
        ),
        row("PUT /s/empty", &[TEXT, CLOSED], "", 201, "", &[]),
        row("HEAD /s/empty", &[], "", 200, "", &["stream-next-offset: $empty"]),
    ])
    .await;

    for (content_type, content, data, encoding) in [
        ("application/json", "[1,2]", "data:[1,2]\n", None),
        ("text/csv", "a\r\nb", "data:a\ndata:b\n", None),
        ("application/octet-stream", "a\nb", "data:YQpi\n", Some("base64")),
    ] {
        let server = Server::start(layer().layer(Teapot)).await;
        for mut client in [Client::http1(server.addr).await, Client::http2(server.addr).await] {
            let made = client.send(ask("PUT /s/a", &[("content-type", content_type), CLOSED], content)).await.unwrap();
            let seen = client.send(ask("GET /s/a?offset=-1&live=sse", &[], "")).await.unwrap();
            assert_eq!(seen.header("content-type"), Some("text/event-stream"));
            assert_eq!(seen.header("stream-sse-data-encoding"), encoding);
            assert_eq!((seen.header("content-length"), seen.header("etag")), (None, None));
            assert!(seen.header("cache-control").unwrap().contains("no-cache"));
            let at = made.offset();
            let control = format!(r#"{{"streamClosed":true,"streamNextOffset":"{at}","upToDate":true}}"#);
            let (retry, events) = seen.text().split_once("\n\n").unwrap();
            assert!(retry.starts_with("retry:"), "{retry}");
            assert_eq!(events, format!("event: data\nid:{at}\n{data}\nevent: control\ndata:{control}\nid:{at}\n\n"));
        }
    }
}

#[tokio::test]
async fn forks_and_what_they_leave() {
    const OF_A: (&str, &str) = ("stream-forked-from", "/s/a");
    const SUB: &str = "stream-fork-sub-offset";
    const AT: &str = "stream-fork-offset";
    both(&[
        row("PUT /s/f", &[OF_A], "", 404, "not-found", &[]),
        row("PUT /s/a", &[TEXT, ("stream-ttl", "600")], "one", 201, "", &["stream-next-offset: $1"]),
        row("POST /s/a", &[TEXT], "two", 204, "", &["stream-next-offset: $2"]),
        row(
            "PUT /s/f",
            &[OF_A],
            "",
            201,
            "",
            &["content-type: text/plain", "stream-next-offset: $2", "location: http://localhost/s/f"],
        ),
        row("PUT /s/f", &[OF_A], "", 200, "", &["!location"]),
        row("PUT /s/f", &[OF_A, (AT, "$1")], "", 409, "conflict", &[]),
        row("PUT /s/f", &[TEXT], "", 409, "conflict", &[]),
        row("HEAD /s/f", &[], "", 200, "", &["stream-ttl: 600"]),
        row("PUT /s/g", &[OF_A, (AT, "$1"), ("stream-ttl", "5")], "2", 201, "", &[]),
        row("HEAD /s/g", &[], "", 200, "", &["stream-ttl: 5"]),
        row("GET /s/g", &[], "", 200, "one2", &[]),
        row("GET /s/g?offset=$1&live=long-poll", &[], "", 200, "2", &[]),
        row("GET /s/g?offset=$2", &[], "", 410, "other-log", &[]),
        row("PUT /s/h", &[OF_A, (AT, "0000000000000000_x0000000000000000")], "", 201, "", &[]),
        row("GET /s/h", &[], "", 200, "", &["stream-up-to-date: true"]),
        row("PUT /s/i", &[OF_A, (AT, "$1"), (SUB, "2")], "", 201, "", &[]),
        row("GET /s/i", &[], "", 200, "onetw", &[]),
        row("PUT /s/j", &[OF_A, (AT, "$1"), (SUB, "3")], "", 201, "", &["stream-next-offset: $2"]),
        row("PUT /s/x", &[OF_A, (AT, "$1"), (SUB, "4")], "", 400, "fork-offset", &[]),
        row("PUT /s/x", &[OF_A, (AT, "$2"), (SUB, "1")], "", 400, "fork-offset", &[]),
        row("PUT /s/x", &[OF_A, (SUB, "1")], "", 400, "fork", &[]),
        row("PUT /s/x", &[OF_A, (AT, "$1"), (SUB, "-1")], "", 400, "fork", &[]),
        row("PUT /s/x", &[OF_A, (AT, "$1"), (SUB, "99999999999999999999")], "", 400, "fork", &[]),
        row("PUT /s/x", &[TEXT, (SUB, "0")], "", 400, "fork", &[]),
        row("PUT /s/x", &[TEXT, (AT, "$1")], "", 400, "fork", &[]),
        row("PUT /s/x", &[OF_A, (AT, "garbage")], "", 400, "offset", &[]),
        row("PUT /s/x", &[OF_A, (AT, "9999999999999999_x9999999999999999")], "", 400, "fork-offset", &[]),
        row("PUT /s/x", &[OF_A, JSON], "", 409, "content-type", &[]),
        row("PUT /s/a", &[OF_A, TEXT], "", 409, "conflict", &[]),
        row("PUT /s/x", &[("stream-forked-from", "/elsewhere")], "", 404, "not-found", &[]),
        row("PUT /s/x", &[("stream-forked-from", "http://localhost/s/a")], "", 400, "fork", &[]),
        row("PUT /s/x", &[("stream-forked-from", "/guarded/a")], "", 404, "not-found", &[]),
        row("HEAD /s/x", &[], "", 404, "", &[]),
        row("DELETE /s/a", &[], "", 204, "", &[]),
        row("GET /s/a", &[], "", 410, "deleted", &[]),
        row("GET /s/a?offset=now&live=long-poll", &[], "", 410, "deleted", &[]),
        row("GET /s/a?offset=-1&live=sse", &[], "", 410, "deleted", &[]),
        row("HEAD /s/a", &[], "", 410, "", &[]),
        row("POST /s/a", &[TEXT], "x", 410, "deleted", &[]),
        row("POST /s/a", &[CLOSED], "", 410, "deleted", &[]),
        row("DELETE /s/a", &[], "", 410, "deleted", &[]),
        row("PUT /s/a", &[TEXT, ("stream-ttl", "600")], "", 409, "conflict", &[]),
        row("PUT /s/x", &[OF_A], "", 409, "conflict", &[]),
        row("PUT /s/f", &[OF_A], "", 200, "", &[]),
        row("GET /s/f", &[], "", 200, "onetwo", &[]),
        row("DELETE /s/f", &[], "", 204, "", &[]),
        row("DELETE /s/g", &[], "", 204, "", &[]),
        row("DELETE /s/h", &[], "", 204, "", &[]),
        row("DELETE /s/i", &[], "", 204, "", &[]),
        row("HEAD /s/a", &[], "", 410, "", &[]),
        row("DELETE /s/j", &[], "", 204, "", &[]),
        row("HEAD /s/a", &[], "", 404, "", &[]),
        row("PUT /s/a", &[JSON], "", 201, "", &[]),
    ])
    .await;
}

#[tokio::test]
async fn denials() {
    const BEARER: &str = "authorization";
    both(&[
        row("PUT /guarded/a", &[TEXT], "one", 201, "", &[]),
        row("GET /guarded/a", &[], "", 401, "unauthorized", &["www-authenticate: Bearer"]),
        row("GET /guarded/a", &[(BEARER, "no")], "", 403, "forbidden", &[]),
        row("GET /guarded/a", &[(BEARER, "hide it")], "", 404, "not-found", &[]),
        row("HEAD /guarded/a", &[], "", 401, "", &["www-authenticate: Bearer"]),
        row("POST /guarded/a", &[TEXT], "x", 401, "unauthorized", &[]),
        row("DELETE /guarded/a", &[(BEARER, "no")], "", 403, "forbidden", &[]),
        // Whoever may not does not learn what is wrong with the request.
        row("GET /guarded/a?offset=bad", &[(BEARER, "no")], "", 403, "forbidden", &[]),
        row("GET /guarded/missing", &[(BEARER, "no")], "", 403, "forbidden", &[]),
        row("GET /guarded/a", &[(BEARER, "let me")], "", 200, "one", &[]),
    ])
    .await;
}

#[tokio::test]
async fn comet_routes_differ_where_they_say_so() {
    both(&[
        row("GET /comet/a?offset=-1", &[], "", 200, "[]", &["stream-next-offset: 0000000000000000_x0000000000000000"]),
        row(
            "GET /comet/a?timeout=0",
            &[],
            "",
            204,
            "",
            &["stream-next-offset: 0000000000000000_x0000000000000000", "stream-cursor"],
        ),
        row("GET /comet/a?offset=0000000000000001_x0000000000000000", &[], "", 410, "gone", &[]),
        row("POST /comet/a", &[TEXT], "x", 409, "content-type", &[]),
        row("POST /comet/a", &[JSON], "1", 204, "", &["stream-next-offset: $1"]),
        row("GET /comet/a?offset=0000000000000000_x0000000000000000", &[], "", 200, "[1]", &["stream-next-offset: $1"]),
        row("GET /comet/a?timeout=0", &[], "", 204, "", &["stream-next-offset: $1"]),
        row("PUT /comet/a", &[], "", 200, "", &[]),
        row("PUT /comet/b", &[TEXT], "", 409, "content-type", &[]),
        row("PUT /comet/b", &[], "[1]", 201, "", &["content-type: application/json"]),
        row("DELETE /comet/a", &[], "", 418, "inner", &[]),
        row("PATCH /comet/a", &[], "", 418, "inner", &[]),
        row("POST /comet-read-only/a", &[JSON], "1", 418, "inner", &[]),
        row("GET /comet/__ds?timeout=0", &[], "", 204, "", &[]),
    ])
    .await;
}

#[tokio::test]
async fn a_location_is_what_the_outside_sees() {
    for (url, location) in [
        ("https://example.com", "https://example.com/s/a"),
        ("https://example.com/api/", "https://example.com/api/s/a"),
    ] {
        let server = Server::start(layer().public_url(url).layer(Teapot)).await;
        for mut client in [Client::http1(server.addr).await, Client::http2(server.addr).await] {
            let seen = client.send(ask("PUT /s/a", &[TEXT], "")).await.unwrap();
            assert_eq!(seen.header("location"), Some(location));
            client.send(ask("DELETE /s/a", &[], "")).await.unwrap();
        }
    }
    // Whatever a client calls this host, it is called that.
    let server = Server::start(layer().layer(Teapot)).await;
    let mut client = Client::http1(server.addr).await;
    let seen = client.send(ask("PUT /s/a", &[TEXT, ("host", "streams.test:8080")], "")).await.unwrap();
    assert_eq!(seen.header("location"), Some("http://streams.test:8080/s/a"));
}

#[tokio::test]
async fn a_server_that_closes_refuses_waits_and_nothing_else() {
    let comet = Comet::new();
    let layer = CometLayer::new(comet.clone()).route("/s/{*path}", open_to_all().max_wait(Duration::from_secs(5)));
    let server = Server::start(layer.layer(Teapot)).await;
    comet.close();
    for http2 in [false, true] {
        for (line, status) in [
            ("PUT /s/a", 201),
            ("POST /s/a", 204),
            ("GET /s/a", 200),
            ("GET /s/a?offset=now&live=long-poll", 503),
            ("GET /s/a?offset=now&live=sse", 200),
            ("GET /s/a?offset=-1&live=long-poll", 200),
            ("HEAD /s/a", 200),
            ("DELETE /s/a", 204),
        ] {
            let mut client = if http2 { Client::http2(server.addr).await } else { Client::http1(server.addr).await };
            let seen = client.send(ask(line, &[TEXT], if line.starts_with("POST") { "x" } else { "" })).await.unwrap();
            assert_eq!(seen.status.as_u16(), status, "{line}");
            assert_eq!(seen.header("connection"), (!http2).then_some("close"), "{line}");
            assert_eq!(seen.header("retry-after").is_some(), status == 503, "{line}");
        }
    }
}
