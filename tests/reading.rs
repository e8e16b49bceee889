//! Reading over HTTP without a wait: what there is from an offset on, the same on a comet route and on a strict one.

mod support;

use serde_json::json;
use std::time::Duration;
use support::{get, request, send, with};
use tower_comet::{Comet, CometLayer, Create, Denied, Offset, OutcomeKind, Route};

/// The same channels on a comet route and on a strict one.
const BOTH: [&str; 2] = ["/events", "/streams"];

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone())
        .route("/events/{channel}", Route::new().read_by_anyone().channel("{channel}"))
        .route("/streams/{channel}", Route::strict().read_by_anyone().channel("{channel}"))
}

/// A layer, a channel with two messages, and where each of them ends.
async fn two_messages(comet: &Comet) -> (CometLayer, [Offset; 2]) {
    let news = comet.channel("news");
    (layer(comet), [news.publish("one").await.unwrap(), news.publish("two").await.unwrap()])
}

#[tokio::test(start_paused = true)]
async fn a_read_gives_what_follows_its_offset_and_says_where_that_ends() {
    let comet = Comet::new();
    let (layer, [one, two]) = two_messages(&comet).await;
    for (query, messages) in [
        ("offset=-1".to_owned(), json!(["one", "two"])),
        (format!("offset={one}"), json!(["two"])),
        (format!("offset={two}"), json!([])),
        ("offset=now".to_owned(), json!([])),
        ("offset=-1&live=long-poll".to_owned(), json!(["one", "two"])),
        (format!("offset={one}&live=long-poll"), json!(["two"])),
        (format!("Offset=now&offset={one}&of=&what+is=%FF+unknown"), json!(["two"])),
    ] {
        for route in BOTH {
            let seen = send(&layer, get(&format!("{route}/news?{query}"))).await;
            assert_eq!((seen.status.as_u16(), seen.json(), seen.offset()), (200, messages.clone(), two), "{query}");
            assert_eq!(seen.header("content-type"), Some("application/json"), "{query}");
            assert_eq!(seen.header("stream-up-to-date"), Some("true"), "{query}");
            assert_eq!(seen.header("stream-cursor").is_some(), query.contains("live"), "{query}");
            assert_eq!(seen.header("etag").is_some(), query != "offset=now", "{query}");
            assert_eq!(seen.header("stream-closed"), None, "{query}");
            assert_eq!(seen.header("cache-control"), Some("no-store"), "{query}");
            assert_eq!(seen.header("x-content-type-options"), Some("nosniff"), "{query}");
            let outcome = if query.contains("live") { OutcomeKind::Delivered } else { OutcomeKind::Read };
            assert_eq!(seen.outcome, Some(outcome), "{query}");
        }
    }
    assert_eq!(comet.waiters(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_bare_get_of_a_strict_route_reads_from_the_start() {
    let comet = Comet::new();
    let (layer, [_, two]) = two_messages(&comet).await;
    let seen = send(&layer, get("/streams/news")).await;
    assert_eq!((seen.status.as_u16(), seen.json(), seen.offset()), (200, json!(["one", "two"]), two));
}

#[tokio::test(start_paused = true)]
async fn messages_are_one_array_and_bytes_are_bytes() {
    let comet = Comet::new();
    let layer = layer(&comet);
    for (content_type, appends, none, all, sandboxed) in [
        ("application/json", [r#"[1, "a"]"#, r#"{"b": [2]}"#], "[]", r#"[1, "a",{"b": [2]}]"#, false),
        ("application/vnd.x", ["\0\u{1}", "\n"], "", "\0\u{1}\n", true),
        ("application/octet-stream", ["[1]", "[2]"], "", "[1][2]", false),
        ("text/plain; charset=utf-8", ["a\n", "b\n"], "", "a\nb\n", false),
        ("text/html", ["<script>", "</script>"], "", "<script></script>", true),
    ] {
        let channel = comet.channel("x");
        channel.create(content_type).await.unwrap();
        for route in BOTH {
            assert_eq!(send(&layer, get(&format!("{route}/x?offset=-1"))).await.text(), none, "{content_type}");
        }
        for append in appends {
            channel.append(append).await.unwrap();
        }
        for route in BOTH {
            let seen = send(&layer, get(&format!("{route}/x?offset=-1"))).await;
            assert_eq!((seen.text(), seen.header("content-type")), (all, Some(content_type)));
            // What a browser would run is run without the application's rights.
            let csp = seen.header("content-security-policy");
            assert_eq!(csp, sandboxed.then_some("sandbox"), "{content_type}");
        }
        channel.delete().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_cut_between_appends_and_only_the_last_is_up_to_date() {
    let comet = Comet::new();
    let route = Route::new().read_by_anyone().channel("{channel}").max_chunk(8);
    let layer = CometLayer::new(comet.clone()).route("/events/{channel}", route);
    let log = comet.channel("log");
    log.create("text/plain").await.unwrap();
    let mut ends = Vec::new();
    for append in ["aaaa", "bbbb", "c", "larger than a chunk", "d", "e"] {
        ends.push(log.append(append).await.unwrap());
    }
    log.close().await.unwrap();

    for live in ["", "&live=long-poll"] {
        let mut next = "-1".to_owned();
        for (chunk, end) in [("aaaabbbb", ends[1]), ("c", ends[2]), ("larger than a chunk", ends[3]), ("de", ends[5])] {
            let seen = send(&layer, get(&format!("/events/log?offset={next}{live}"))).await;
            assert_eq!((seen.text(), seen.offset()), (chunk, end));
            let last = (chunk == "de").then_some("true");
            assert_eq!((seen.header("stream-up-to-date"), seen.header("stream-closed")), (last, last), "{chunk}");
            next = end.to_string();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_client_has_already_is_304() {
    let comet = Comet::new();
    let (layer, [one, two]) = two_messages(&comet).await;
    for query in ["offset=-1".to_owned(), format!("offset={one}"), format!("offset={one}&live=long-poll")] {
        for route in BOTH {
            let ask = || get(&format!("{route}/news?{query}"));
            let tag = send(&layer, ask()).await.header("etag").expect("a tag").to_owned();
            for seen in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
                let same = send(&layer, with("if-none-match", &seen, ask())).await;
                assert_eq!((same.status.as_u16(), same.text(), same.offset()), (304, "", two), "{seen}");
                assert_eq!(same.header("etag"), Some(&*tag), "{seen}");
            }
            for seen in ["", "\"x\"", "x", tag.trim_matches('"')] {
                assert_eq!(send(&layer, with("if-none-match", seen, ask())).await.status.as_u16(), 200, "{seen}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_of_one_log_of_one_part_of_it_and_of_its_end() {
    let comet = Comet::new();
    let (layer, [one, two]) = two_messages(&comet).await;
    let mut tags = Vec::new();
    let mut note = async |uri: &str| {
        let tag = send(&layer, get(uri)).await.header("etag").expect("a tag").to_owned();
        assert!(!tags.contains(&tag), "{uri}: {tag} is in {tags:?}");
        tags.push(tag);
    };
    note("/events/news?offset=-1").await;
    note(&format!("/events/news?offset={one}")).await;
    note(&format!("/events/news?offset={two}")).await;
    comet.channel("news").publish("three").await.unwrap();
    note("/events/news?offset=-1").await;
    comet.channel("news").close().await.unwrap();
    note("/events/news?offset=-1").await;
    comet.channel("news").delete().await.unwrap();
    two_messages(&comet).await;
    note("/events/news?offset=-1").await;
}

#[tokio::test(start_paused = true)]
async fn head_says_what_a_channel_is_and_never_waits() {
    let comet = Comet::new();
    let (layer, [_, two]) = two_messages(&comet).await;
    comet.channel("text").create(Create::new("text/plain").idle(Duration::from_secs(60))).await.unwrap();
    comet.channel("ended").close().await.unwrap();
    for route in BOTH {
        for (channel, query, content_type, closed, ttl) in [
            ("news", "", "application/json", None, None),
            ("news", "?offset=now&live=long-poll", "application/json", None, None),
            ("news", "?offset=nonsense&live=x", "application/json", None, None),
            ("text", "", "text/plain", None, Some("60")),
            ("ended", "", "application/json", Some("true"), None),
        ] {
            let seen = send(&layer, request(http::Method::HEAD, &format!("{route}/{channel}{query}"))).await;
            assert_eq!((seen.status.as_u16(), seen.text()), (200, ""), "{channel}{query}");
            assert_eq!(seen.header("content-type"), Some(content_type), "{channel}");
            assert_eq!(seen.header("stream-closed"), closed, "{channel}");
            assert_eq!(seen.header("stream-ttl"), ttl, "{channel}");
            assert_eq!(seen.header("cache-control"), Some("no-store"));
            assert_eq!(seen.offset() == two, channel == "news");
        }
    }
    let unknown = send(&layer, request(http::Method::HEAD, "/events/unknown")).await;
    assert_eq!((unknown.status.as_u16(), unknown.header("content-type")), (200, Some("application/json")));
    assert_eq!(unknown.header("stream-next-offset"), Some("0000000000000000_x0000000000000000"));
    let unknown = send(&layer, request(http::Method::HEAD, "/streams/unknown")).await;
    assert_eq!(unknown.status.as_u16(), 404);
    assert_eq!(comet.channels().count(), 3, "looking makes nothing");
}

#[tokio::test(start_paused = true)]
async fn a_malformed_query_is_400_and_says_what_is_wrong_with_it() {
    let comet = Comet::new();
    let (layer, [one, _]) = two_messages(&comet).await;
    for (query, reason) in [
        ("offset=", "offset"),
        ("offset=-2", "offset"),
        ("offset=0", "offset"),
        ("offset=NOW", "offset"),
        ("offset=../../etc/passwd", "offset"),
        ("offset=-1%00", "offset"),
        ("offset=-1%0d%0aSet-Cookie:%20a", "offset"),
        ("offset=0000000000000001_x000000000000000A", "offset"),
        (&format!("offset={one}0"), "offset"),
        (&format!("offset={one}&offset={one}"), "query"),
        ("offset=-1&live=", "live"),
        ("offset=-1&live=yes", "live"),
        ("live=long-poll", "offset"),
        ("live=sse", "offset"),
        ("offset=now&live=long-poll&timeout=soon", "timeout"),
        ("offset=now&live=long-poll&timeout=-1", "timeout"),
        ("offset=now&live=long-poll&timeout=1&timeout=1", "query"),
    ] {
        for route in BOTH {
            let seen = send(&layer, get(&format!("{route}/news?{query}"))).await;
            assert_eq!((seen.status.as_u16(), seen.reason()), (400, reason.to_owned()), "{query}");
            assert_eq!(seen.header("cache-control"), Some("no-store"), "{query}");
            assert_eq!(seen.outcome, Some(OutcomeKind::Invalid), "{query}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_an_answer_with_messages_may_be_cached_and_only_where_the_route_says_so() {
    let comet = Comet::new();
    let (_, [_, two]) = two_messages(&comet).await;
    let minute = || Route::new().read_by_anyone().channel("{channel}").cache_for(Duration::from_secs(60));
    let asked = |_| std::future::ready(Ok::<_, Denied>(()));
    let layer = CometLayer::new(comet.clone())
        .route("/public/{channel}", minute())
        .route("/private/{channel}", minute().read_by(asked));
    for (whose, query, cached) in [
        ("public", "offset=-1".to_owned(), true),
        ("private", "offset=-1".to_owned(), true),
        ("public", "offset=-1&live=long-poll".to_owned(), true),
        ("public", format!("offset={two}"), false),
        ("public", format!("offset={two}&live=long-poll&timeout=0"), false),
        ("public", format!("offset={two}1"), false),
        ("public", "offset=0000000000000009_x0000000000000009".to_owned(), false),
    ] {
        let seen = send(&layer, get(&format!("/{whose}/news?{query}"))).await;
        let control = seen.header("cache-control").expect("always");
        assert_eq!(control.starts_with(&format!("{whose}, max-age=60")), cached, "{query}: {control}");
        assert_eq!(control == "no-store", !cached, "{query}: {control}");
    }
}
