//! What caches may keep, under which name, and for how long; and what is refused rather than answered with something else.

mod support;

use http::Method;
use std::{
    collections::HashSet,
    future::ready,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use support::{Seen, ask, get, open_to_all, post, request, send};
use tower_comet::{Access, Comet, CometLayer, Denied, Retention, Route};

const TEXT: (&str, &str) = ("content-type", "text/plain");
const PUBLIC: &str = "public, max-age=60, stale-while-revalidate=300";

fn layer(comet: &Comet) -> CometLayer {
    let minute = Duration::from_secs(60);
    CometLayer::new(comet.clone())
        .route("/plain/{*path}", open_to_all())
        .route("/shared/{*path}", open_to_all().cache_for(minute))
        .route("/own/{*path}", open_to_all().cache_for(minute).read_by(|_: Access| ready(Ok::<_, Denied>(()))))
        .route("/comet/{channel}", Route::new().read_by_anyone().cache_for(minute))
}

fn cache_control(seen: &Seen) -> &str {
    seen.header("cache-control").unwrap()
}

async fn read(layer: &CometLayer, uri: &str, tag: &str) -> Seen {
    send(layer, ask(&format!("GET {uri}"), &[("if-none-match", tag)], "")).await
}

#[tokio::test(start_paused = true)]
async fn only_messages_are_cached_and_only_where_the_route_says_so() {
    let layer = layer(&Comet::new());
    for (route, control) in
        [("plain", "no-store"), ("shared", PUBLIC), ("own", "private, max-age=60, stale-while-revalidate=300")]
    {
        let path = format!("/{route}/a");
        let empty = send(&layer, ask(&format!("PUT {path}"), &[TEXT], ""))
            .await
            .header("stream-next-offset")
            .unwrap()
            .to_owned();
        let first =
            send(&layer, post(&path, "text/plain", "one")).await.header("stream-next-offset").unwrap().to_owned();
        let tail =
            send(&layer, post(&path, "text/plain", "two")).await.header("stream-next-offset").unwrap().to_owned();
        let no = "no-store";
        for (query, status, expected) in [
            ("", 200, control),
            ("?offset=-1", 200, control),
            (&*format!("?offset={empty}"), 200, control),
            (&format!("?offset={first}"), 200, control),
            (&format!("?offset={first}&live=long-poll&cursor=5"), 200, control),
            // What comes next is not known to come never.
            (&format!("?offset={tail}"), 200, no),
            ("?offset=now", 200, no),
            (&format!("?offset={tail}&live=long-poll&timeout=0"), 204, no),
            ("?offset=now&live=long-poll&timeout=0", 204, no),
            ("?offset=0000000000000009_x0000000000000001", 410, no),
            ("?offset=nonsense", 400, no),
        ] {
            let seen = send(&layer, get(&format!("{path}{query}"))).await;
            assert_eq!((seen.status.as_u16(), cache_control(&seen)), (status, expected), "{path}{query}");
        }
        for method in [Method::HEAD, Method::PATCH, Method::DELETE] {
            let seen = send(&layer, request(method.clone(), &path)).await;
            assert_eq!(cache_control(&seen), no, "{method} {path}");
        }
        let seen = send(&layer, get(&path)).await;
        assert_eq!((seen.status.as_u16(), cache_control(&seen)), (404, no));
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_next_is_not_cached() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let news = comet.channel("/comet/news");
    // From the tail of that time: the same request asks for another message each time.
    for query in ["", "?offset=now&live=long-poll"] {
        let waiting = support::sent(&layer, get(&format!("/comet/news{query}"))).await;
        news.publish("one").await.unwrap();
        let seen = waiting.await.unwrap();
        assert_eq!((seen.status.as_u16(), seen.json()), (200, serde_json::json!(["one"])));
        assert_eq!((cache_control(&seen), seen.header("etag")), ("no-store", None), "{query}");
        assert!(seen.header("stream-cursor").is_some());
    }
    // From an offset, it is the same message for everybody.
    let after = news.tail();
    let waiting = support::sent(&layer, get(&format!("/comet/news?offset={after}&live=long-poll"))).await;
    news.publish("two").await.unwrap();
    let seen = waiting.await.unwrap();
    assert_eq!((cache_control(&seen), seen.header("vary")), (PUBLIC, Some("accept")));
    assert!(seen.header("etag").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_list_of_tags_can_have_several_lines() {
    let layer = layer(&Comet::new());
    send(&layer, ask("PUT /shared/a", &[TEXT], "one")).await;
    let tag = send(&layer, get("/shared/a")).await.header("etag").unwrap().to_owned();
    for lines in [[&*tag, "\"x\""], ["\"x\"", &tag], ["\"x\", \"y\"", &tag]] {
        let lines = lines.map(|line| ("if-none-match", line));
        assert_eq!(send(&layer, ask("GET /shared/a", &lines, "")).await.status.as_u16(), 304, "{lines:?}");
    }
    let lines = [("if-none-match", "\"x\""), ("if-none-match", "\"y\"")];
    assert_eq!(send(&layer, ask("GET /shared/a", &lines, "")).await.status.as_u16(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_tag_names_a_range_of_one_log_and_changes_when_the_stream_ends() {
    let layer = layer(&Comet::new());
    let tags = std::cell::RefCell::new(HashSet::new());
    let fresh = |seen: &Seen| {
        let tag = seen.header("etag").expect("a tag").to_owned();
        assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 2, "{tag}");
        assert!(tags.borrow_mut().insert(tag.clone()), "{tag} was the name of something else");
        tag
    };
    for round in 0..3 {
        send(&layer, ask("PUT /shared/a", &[TEXT], "")).await;
        fresh(&send(&layer, get("/shared/a")).await);
        let one = send(&layer, post("/shared/a", "text/plain", "one")).await.offset();
        let first = fresh(&send(&layer, get("/shared/a")).await);
        let same = read(&layer, "/shared/a", &first).await;
        assert_eq!((same.status.as_u16(), &same.body[..], same.header("etag")), (304, &b""[..], Some(&*first)));
        assert_eq!(cache_control(&same), PUBLIC, "or a cache would throw away what it has");
        assert_eq!((same.offset(), same.header("stream-up-to-date")), (one, Some("true")));

        let at_tail = fresh(&send(&layer, get(&format!("/shared/a?offset={one}"))).await);
        send(&layer, post("/shared/a", "text/plain", "two")).await;
        let both = fresh(&send(&layer, get("/shared/a")).await);
        assert_eq!(read(&layer, "/shared/a", &first).await.text(), "onetwo");
        fresh(&read(&layer, &format!("/shared/a?offset={one}"), &at_tail).await);

        send(&layer, ask("POST /shared/a", &[("stream-closed", "true")], "")).await;
        let closed = read(&layer, "/shared/a", &both).await;
        assert_eq!((closed.status.as_u16(), closed.header("stream-closed")), (200, Some("true")), "round {round}");
        let closed = fresh(&closed);
        let same = read(&layer, "/shared/a", &closed).await;
        assert_eq!((same.status.as_u16(), same.header("stream-closed")), (304, Some("true")));
        for (listed, status) in [
            (format!("\"x\", {closed}"), 304),
            (format!("W/{closed}"), 304),
            ("*".to_owned(), 304),
            (format!("{both}, {first}"), 200),
            (closed.trim_matches('"').to_owned(), 200),
            (String::new(), 200),
        ] {
            assert_eq!(read(&layer, "/shared/a", &listed).await.status.as_u16(), status, "{listed}");
        }
        // A log that is made anew has other names, though it holds the same.
        send(&layer, request(Method::DELETE, "/shared/a")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_answered_at_once_can_be_answered_with_304_and_one_that_waited_not() {
    let layer = layer(&Comet::new());
    send(&layer, ask("PUT /shared/a", &[TEXT], "one")).await;
    let live = "/shared/a?offset=-1&live=long-poll";
    let tag = send(&layer, get(live)).await.header("etag").unwrap().to_owned();
    let same = read(&layer, live, &tag).await;
    assert_eq!(same.status.as_u16(), 304);
    assert!(same.header("stream-cursor").is_some());
    let nothing = read(&layer, "/shared/a?offset=now&live=long-poll&timeout=0", "*").await;
    assert_eq!(nothing.status.as_u16(), 204);
}

/// The interval that now is in, counted from 2024-10-09T00:00:00Z.
fn interval() -> u64 {
    (SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - 1_728_432_000) / 20
}

#[tokio::test(start_paused = true)]
async fn all_clients_of_an_interval_share_a_cursor_and_one_that_is_ahead_is_sent_on() {
    let comet = Comet::new();
    let layer = layer(&comet);
    send(&layer, ask("PUT /shared/a", &[TEXT], "one")).await;
    let cursor = async |query: &str| -> u64 {
        let seen = send(&layer, get(&format!("/shared/a?{query}"))).await;
        if seen.text().contains("event: control") {
            let control = seen.text().split("event: control\ndata:").nth(1).unwrap().lines().next().unwrap();
            let control: serde_json::Value = serde_json::from_str(control).unwrap();
            return control["streamCursor"].as_str().unwrap().parse().unwrap();
        }
        seen.header("stream-cursor").unwrap().parse().unwrap()
    };
    for query in ["offset=-1&live=long-poll", "offset=now&live=long-poll&timeout=0", "offset=-1&live=sse"] {
        // Whoever has none, one of the past, or one that is none.
        for client in
            ["", "&cursor=0", "&cursor=1000", "&cursor=garbage", "&cursor=", "&cursor=-1", "&cursor=9007199254740993"]
        {
            let before = interval();
            let got = cursor(&format!("{query}{client}")).await;
            assert!((before..=interval()).contains(&got), "{query}{client}: {got}, {before}");
        }
        // Whoever is there, or ahead, goes up and up, so that no cache can turn it in a circle.
        let mut at = interval();
        for _ in 0..20 {
            let next = cursor(&format!("{query}&cursor={at}")).await;
            assert!(next > at && next <= at + 180, "{query}: {at} {next}");
            at = next;
        }
        for at in [1 << 31, (1 << 40) + 1, (1 << 53) - 1, 1 << 53] {
            assert!(cursor(&format!("{query}&cursor={at}")).await > at, "{query}: {at}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_retention_has_let_go_is_refused_and_said_where_to_go_on() {
    let comet = Comet::builder().retention(Retention::default().appends(2)).build();
    let layer = layer(&comet);
    let made = send(&layer, ask("PUT /shared/a", &[TEXT], "")).await;
    let mut offsets = vec![made.offset()];
    for text in ["1", "2", "3", "4"] {
        offsets.push(send(&layer, post("/shared/a", "text/plain", text)).await.offset());
    }
    for (at, left) in [(0, None), (1, None), (2, Some("34")), (3, Some("4")), (4, Some(""))] {
        for live in ["", "&live=long-poll&timeout=0"] {
            let seen = send(&layer, get(&format!("/shared/a?offset={}{live}", offsets[at]))).await;
            match left {
                Some(left) => assert_eq!((seen.status.is_success(), seen.text()), (true, left), "{at}{live}"),
                None => {
                    assert_eq!((seen.status.as_u16(), &*seen.reason()), (410, "trimmed"), "{at}{live}");
                    assert_eq!(seen.offset(), offsets[4]);
                    let earliest = seen.header("stream-earliest-offset").unwrap();
                    assert_eq!(earliest, offsets[2].to_string());
                    assert_eq!(send(&layer, get(&format!("/shared/a?offset={earliest}"))).await.text(), "34");
                }
            }
        }
    }
    assert_eq!(send(&layer, get("/shared/a?offset=-1")).await.text(), "34", "`-1` is the earliest that is kept");
    let zero = send(&layer, get("/shared/a?offset=0000000000000000_x0000000000000000")).await;
    assert_eq!(zero.reason(), "trimmed");
}

#[tokio::test(start_paused = true)]
async fn an_offset_of_a_log_that_was_deleted_never_fits_the_next_one() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let mut old = Vec::new();
    for round in 0..20 {
        let made = send(&layer, ask("PUT /shared/a", &[TEXT], "")).await;
        let mut own = vec![made.offset()];
        for _ in 0..round % 4 {
            own.push(send(&layer, post("/shared/a", "text/plain", "x")).await.offset());
        }
        for offset in &own {
            assert_eq!(send(&layer, get(&format!("/shared/a?offset={offset}"))).await.status.as_u16(), 200);
        }
        for offset in &old {
            let seen = send(&layer, get(&format!("/shared/a?offset={offset}&live=long-poll&timeout=0"))).await;
            assert_eq!((seen.status.as_u16(), &*seen.reason()), (410, "other-log"), "{offset}");
        }
        old.append(&mut own);
        send(&layer, request(Method::DELETE, "/shared/a")).await;
    }
    // On a comet route, where unknown is no error, what was known is still known to be gone.
    let news = comet.channel("/comet/news");
    let last = news.publish("x").await.unwrap();
    news.delete().await.unwrap();
    let seen = send(&layer, get(&format!("/comet/news?offset={last}&live=long-poll&timeout=0"))).await;
    assert_eq!((seen.status.as_u16(), &*seen.reason()), (410, "gone"));
    let zero = "/comet/news?offset=0000000000000000_x0000000000000000&live=long-poll&timeout=0";
    assert_eq!(
        send(&layer, get(zero)).await.status.as_u16(),
        410,
        "and who waited before anything was in it missed it"
    );
}
