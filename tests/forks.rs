//! Forks: what they hold, who may make them, and that nothing is left of them.

mod support;

use proptest::prelude::*;
use std::{
    future::ready,
    sync::{Arc, Mutex},
};
use support::{Seen, ask, get, open_to_all, post, request, send, settle};
use tower_comet::{Access, Action, Comet, CometLayer, Create, Denied, Error, Grant, Retention, Route};

const TEXT: (&str, &str) = ("content-type", "text/plain");
const START: &str = "0000000000000000_0000000000000000";

fn comet() -> Comet {
    Comet::builder().retention(Retention::unbounded()).build()
}

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/s/{*path}", open_to_all())
}

async fn fork(layer: &CometLayer, name: &str, of: &str) -> Seen {
    send(layer, ask(&format!("PUT /s/{name}"), &[("stream-forked-from", &format!("/s/{of}"))], "")).await
}

async fn status(layer: &CometLayer, line: &str) -> u16 {
    send(layer, ask(line, &[], "")).await.status.as_u16()
}

/// All orders of these.
fn permutations(names: &[&'static str]) -> Vec<Vec<&'static str>> {
    let Some((first, rest)) = names.split_first() else { return vec![vec![]] };
    let inserted = |shorter: Vec<&'static str>| {
        (0..=shorter.len()).map(move |at| {
            let mut longer = shorter.clone();
            longer.insert(at, *first);
            longer
        })
    };
    permutations(rest).into_iter().flat_map(inserted).collect()
}

/// A root, two forks of it, two forks of the first of those, and a fork of one of these.
const TREE: [(&str, &str); 5] = [("a", "root"), ("b", "root"), ("aa", "a"), ("ab", "a"), ("aaa", "aa")];

#[tokio::test]
async fn forks_of_forks_deleted_in_any_order_leave_no_memory() {
    let orders = permutations(&["root", "a", "b", "aa", "ab", "aaa"]);
    assert_eq!(orders.len(), 720);
    let comet = comet();
    let layer = layer(&comet);
    for order in orders {
        assert_eq!(send(&layer, ask("PUT /s/root", &[TEXT], "root ")).await.status.as_u16(), 201, "{order:?}");
        for (name, of) in TREE {
            assert_eq!(fork(&layer, name, of).await.status.as_u16(), 201);
            let own = post(&format!("/s/{name}"), "text/plain", format!("{name} "));
            assert_eq!(send(&layer, own).await.status.as_u16(), 204);
        }
        let children =
            |name: &str| TREE.iter().filter(|(_, of)| *of == name).map(|(child, _)| *child).collect::<Vec<_>>();
        let mut deleted: Vec<&str> = Vec::new();
        for name in &order {
            assert_eq!(status(&layer, &format!("DELETE /s/{name}")).await, 204, "{name} of {order:?}");
            deleted.push(name);
            for (other, expected) in [
                ("root", "root "),
                ("a", "root a "),
                ("b", "root b "),
                ("aa", "root a aa "),
                ("ab", "root a ab "),
                ("aaa", "root a aa aaa "),
            ] {
                let seen = send(&layer, get(&format!("/s/{other}"))).await;
                // Deleted, it is gone for good when all that came of it is.
                let mut line = vec![other];
                while let Some(next) = line.iter().flat_map(|name| children(name)).find(|child| !line.contains(child)) {
                    line.push(next);
                }
                let status = match (deleted.contains(&other), line.iter().all(|name| deleted.contains(name))) {
                    (false, _) => 200,
                    (true, false) => 410,
                    (true, true) => 404,
                };
                assert_eq!(seen.status.as_u16(), status, "{other} after {deleted:?}");
                if status == 200 {
                    assert_eq!(seen.text(), expected, "after {deleted:?}");
                }
            }
        }
        assert_eq!((comet.stats().channels, comet.stats().history_bytes), (0, 0), "{order:?}");
        assert_eq!(comet.channels().count(), 0, "{order:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_made_and_deleted_by_many_at_once_leave_no_memory() {
    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
    const STEPS: usize = 4_000;
    let comet = comet();
    let layer = layer(&comet);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let layer = layer.clone();
        tasks.spawn(async move {
            let mut seen = std::collections::BTreeMap::new();
            let one = || NAMES[fastrand::usize(..NAMES.len())];
            for _ in 0..STEPS {
                let (what, answer) = match fastrand::u8(..10) {
                    0 => ("create", send(&layer, ask(&format!("PUT /s/{}", one()), &[TEXT], "root")).await),
                    1..5 => ("fork", fork(&layer, one(), one()).await),
                    5 => ("append", send(&layer, post(&format!("/s/{}", one()), "text/plain", "more")).await),
                    _ => ("delete", send(&layer, ask(&format!("DELETE /s/{}", one()), &[], "")).await),
                };
                *seen.entry((what, answer.status.as_u16())).or_insert(0) += 1;
            }
            seen
        });
    }
    let mut seen = std::collections::BTreeMap::new();
    while let Some(done) = tasks.join_next().await {
        for (what, times) in done.unwrap() {
            *seen.entry(what).or_insert(0) += times;
        }
    }
    println!("{seen:?}");
    for what in [("create", 201), ("fork", 201), ("fork", 404), ("fork", 409), ("delete", 204), ("delete", 410)] {
        assert!(seen.get(&what).is_some_and(|times| *times > 20), "{what:?} hardly happened: {seen:?}");
    }
    for name in NAMES {
        status(&layer, &format!("DELETE /s/{name}")).await;
    }
    assert_eq!((comet.stats().channels, comet.stats().history_bytes, comet.channels().count()), (0, 0, 0));
}

#[tokio::test]
async fn a_fork_holds_what_its_source_held_and_goes_its_own_way() {
    let comet = comet();
    let layer = layer(&comet);
    send(&layer, ask("PUT /s/a", &[TEXT, ("stream-closed", "true")], "ended")).await;
    let made = fork(&layer, "b", "a").await;
    assert_eq!((made.status.as_u16(), made.header("stream-closed")), (201, None), "a fork starts open");
    let more = send(&layer, post("/s/b", "text/plain", ", or not")).await;
    assert_eq!(send(&layer, get("/s/b")).await.text(), "ended, or not");
    assert_eq!(send(&layer, get("/s/a")).await.text(), "ended");
    let own = send(&layer, get(&format!("/s/b?offset={}", made.offset()))).await;
    assert_eq!((own.text(), own.offset()), (", or not", more.offset()), "the source's offsets are the fork's");
    let ahead = send(&layer, get(&format!("/s/a?offset={}", more.offset()))).await;
    assert_eq!((ahead.status.as_u16(), &*ahead.reason()), (410, "other-log"), "but not the other way round");
}

#[tokio::test]
async fn neither_producers_nor_sequences_are_inherited() {
    let comet = comet();
    let layer = layer(&comet);
    send(&layer, ask("PUT /s/a", &[TEXT], "")).await;
    let stamped = |uri: &str| {
        let line = format!("POST {uri}");
        ask(
            &line,
            &[TEXT, ("producer-id", "p"), ("producer-epoch", "3"), ("producer-seq", "0"), ("stream-seq", "5")],
            "x",
        )
    };
    assert_eq!(send(&layer, stamped("/s/a")).await.status.as_u16(), 200);
    fork(&layer, "b", "a").await;
    assert_eq!(send(&layer, stamped("/s/b")).await.status.as_u16(), 200, "new there");
    assert_eq!(send(&layer, stamped("/s/a")).await.status.as_u16(), 204, "a duplicate here");
}

#[tokio::test(start_paused = true)]
async fn only_a_forks_own_appends_wake_who_waits_on_it() {
    let comet = comet();
    let layer = layer(&comet);
    send(&layer, ask("PUT /s/a", &[TEXT], "one")).await;
    fork(&layer, "b", "a").await;
    let at_once = send(&layer, get("/s/b?offset=-1&live=long-poll")).await;
    assert_eq!(at_once.text(), "one", "what is inherited is there at once");
    let waiting = tokio::spawn({
        let layer = layer.clone();
        async move { send(&layer, get("/s/b?offset=now&live=long-poll")).await }
    });
    settle().await;
    send(&layer, post("/s/a", "text/plain", "the source's")).await;
    assert_eq!(status(&layer, "DELETE /s/a").await, 204);
    settle().await;
    assert!(!waiting.is_finished());
    send(&layer, post("/s/b", "text/plain", "the fork's")).await;
    assert_eq!(waiting.await.unwrap().text(), "the fork's");
}

#[tokio::test]
async fn a_part_of_an_append_is_all_that_a_fork_of_it_keeps() {
    const LARGE: usize = 1_000_000;
    let comet = comet();
    let layer = layer(&comet);
    let source = comet.channel("/s/a");
    source.create("application/octet-stream").await.unwrap();
    source.append(vec![b'x'; LARGE]).await.unwrap();
    let headers = [("stream-forked-from", "/s/a"), ("stream-fork-offset", START), ("stream-fork-sub-offset", "3")];
    assert_eq!(send(&layer, ask("PUT /s/b", &headers, "")).await.status.as_u16(), 201);
    source.delete().await.unwrap();
    assert_eq!(send(&layer, get("/s/b")).await.text(), "xxx");
    assert!(comet.stats().history_bytes < 200, "{:?}", comet.stats());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Wherever a fork begins, to the byte or to the message, it holds just what comes before.
    #[test]
    fn a_fork_begins_anywhere(appends in prop::collection::vec(1..5usize, 1..6), anchor in 0..6usize, part in 0..7usize, json: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let comet = comet();
            let layer = layer(&comet);
            let content_type = if json { "application/json" } else { "text/plain" };
            let made = send(&layer, ask("PUT /s/a", &[("content-type", content_type)], "")).await;
            let mut offsets = vec![made.header("stream-next-offset").unwrap().to_owned()];
            let mut messages = Vec::new();
            for (nth, size) in appends.iter().enumerate() {
                let own: Vec<usize> = (0..*size).map(|at| (nth + at) % 10).collect();
                let body = if json { format!("{own:?}") } else { own.iter().map(usize::to_string).collect() };
                let seen = send(&layer, post("/s/a", content_type, body)).await;
                offsets.push(seen.header("stream-next-offset").unwrap().to_owned());
                messages.extend(own);
            }
            let anchor = anchor.min(appends.len());
            let (part_text, at) = (part.to_string(), offsets[anchor].clone());
            let headers = [("stream-forked-from", "/s/a"), ("stream-fork-offset", &*at), ("stream-fork-sub-offset", &*part_text)];
            let forked = send(&layer, ask("PUT /s/b", &headers, "")).await;
            if part > appends.get(anchor).copied().unwrap_or(0) {
                prop_assert_eq!(forked.status.as_u16(), 400);
                prop_assert_eq!(comet.stats().channels, 1);
                return Ok(());
            }
            prop_assert_eq!(forked.status.as_u16(), 201);
            let kept = &messages[..appends[..anchor].iter().sum::<usize>() + part];
            let all = send(&layer, get("/s/b")).await;
            if json {
                prop_assert_eq!(all.json(), serde_json::json!(kept));
            } else {
                prop_assert_eq!(all.text(), kept.iter().map(usize::to_string).collect::<String>());
            }
            prop_assert_eq!(all.offset(), forked.offset());
            // And every offset of the source up to there is one of the fork, with the same to come.
            for (nth, offset) in offsets[..=anchor].iter().enumerate() {
                let rest = send(&layer, get(&format!("/s/b?offset={offset}"))).await;
                prop_assert_eq!(rest.status.as_u16(), 200);
                let came_before = appends[..nth].iter().sum::<usize>();
                let expected = &kept[came_before..];
                if json {
                    prop_assert_eq!(rest.json(), serde_json::json!(expected));
                } else {
                    prop_assert_eq!(rest.text(), expected.iter().map(usize::to_string).collect::<String>());
                }
            }
            // A fork leaves as if it had never been.
            let before = comet.stats().history_bytes;
            prop_assert_eq!(send(&layer, request(http::Method::DELETE, "/s/b")).await.status.as_u16(), 204);
            prop_assert!(comet.stats().history_bytes <= before);
            prop_assert_eq!(send(&layer, request(http::Method::DELETE, "/s/a")).await.status.as_u16(), 204);
            prop_assert_eq!((comet.stats().channels, comet.stats().history_bytes), (0, 0));
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_fork_that_is_refused_is_not_counted_by_its_source() {
    let comet = Comet::builder().max_channels(2).retention(Retention::unbounded()).build();
    let layer = layer(&comet);
    send(&layer, ask("PUT /s/a", &[TEXT], "one")).await;
    send(&layer, ask("PUT /s/b", &[TEXT], "")).await;
    let of_a = ("stream-forked-from", "/s/a");
    for (headers, status) in [
        (vec![of_a], 503),
        (vec![of_a, ("content-type", "application/json")], 409),
        (vec![of_a, ("stream-fork-offset", START), ("stream-fork-sub-offset", "9")], 400),
    ] {
        assert_eq!(send(&layer, ask("PUT /s/c", &headers, "")).await.status.as_u16(), status, "{headers:?}");
    }
    assert_eq!(send(&layer, ask("PUT /s/b", &[of_a], "")).await.status.as_u16(), 409);
    let conflict = comet.channel("/s/b").create(Create::fork_of(&comet.channel("/s/a"))).await;
    assert!(matches!(conflict, Err(Error::Conflict)));
    // With a fork left over it would be 410 from here on.
    assert_eq!(status(&layer, "DELETE /s/a").await, 204);
    assert_eq!(status(&layer, "GET /s/a").await, 404);
}

/// Asks for `name: yes` of whoever does something, and writes down what was asked.
fn asks(
    asked: &Arc<Mutex<Vec<String>>>,
    name: &'static str,
) -> impl Fn(Access) -> std::future::Ready<Result<Grant, Denied>> + use<> {
    let asked = asked.clone();
    move |access: Access| {
        let (action, channel, path) = (access.action(), access.channel(), access.uri().path());
        asked.lock().unwrap().push(format!("{name}: {action:?} {channel} by {path}"));
        let granted = access.headers().get(name).is_some_and(|value| value == "yes");
        ready(match (granted, name) {
            (true, "tenant") => Ok(Grant::channel(format!("/of-tenant{channel}"))),
            (true, _) => Ok(().into()),
            (false, _) if action == Action::Read => Err(Denied::unauthorized("Bearer")),
            (false, _) => Err(Denied::forbidden()),
        })
    }
}

#[tokio::test]
async fn a_fork_needs_leave_to_create_it_and_leave_to_read_its_source_by_the_route_of_that() {
    let asked = Arc::default();
    let comet = comet();
    let layer = CometLayer::new(comet.clone())
        .route("/drafts/{*path}", Route::strict().read_by_anyone().create_by(asks(&asked, "drafts")))
        .route("/secret/{*path}", Route::strict().read_by(asks(&asked, "secret")))
        .route("/mine/{*path}", Route::strict().read_by(asks(&asked, "tenant")))
        .route("/news/{channel}", Route::new().read_by_anyone().channel("news:{channel}"));
    for (channel, content) in [
        ("/secret/a", "a secret"),
        ("/of-tenant/mine/a", "a tenant's"),
        ("/unrouted", "on no route"),
        ("news:today", "[\"news\"]"),
    ] {
        let content_type = if channel == "news:today" { "application/json" } else { "text/plain" };
        comet.channel(channel).create(Create::new(content_type).content(content)).await.unwrap();
    }
    for (source, leave, status, holds, asks) in [
        ("/secret/a", &[][..], 403, "", &["drafts: Create /drafts/x by /drafts/x"][..]),
        ("/secret/a", &["secret"], 403, "", &["drafts: Create /drafts/x by /drafts/x"]),
        (
            "/secret/a",
            &["drafts"],
            404,
            "",
            &["drafts: Create /drafts/x by /drafts/x", "secret: Read /secret/a by /secret/a"],
        ),
        (
            "/secret/a",
            &["drafts", "secret"],
            201,
            "a secret",
            &["drafts: Create /drafts/x by /drafts/x", "secret: Read /secret/a by /secret/a"],
        ),
        (
            "/secret/missing",
            &["drafts"],
            404,
            "",
            &["drafts: Create /drafts/x by /drafts/x", "secret: Read /secret/missing by /secret/missing"],
        ),
        (
            "/mine/a",
            &["drafts", "tenant"],
            201,
            "a tenant's",
            &["drafts: Create /drafts/x by /drafts/x", "tenant: Read /mine/a by /mine/a"],
        ),
        ("/of-tenant/mine/a", &["drafts", "tenant"], 404, "", &["drafts: Create /drafts/x by /drafts/x"]),
        ("/unrouted", &["drafts"], 404, "", &["drafts: Create /drafts/x by /drafts/x"]),
        ("/news/today", &["drafts"], 201, "[\"news\"]", &["drafts: Create /drafts/x by /drafts/x"]),
        ("news:today", &["drafts"], 400, "", &["drafts: Create /drafts/x by /drafts/x"]),
        ("/secret/%2e%2e/a", &["drafts"], 400, "", &["drafts: Create /drafts/x by /drafts/x"]),
        ("", &["drafts"], 400, "", &["drafts: Create /drafts/x by /drafts/x"]),
    ] {
        asked.lock().unwrap().clear();
        let leave: Vec<_> = leave.iter().map(|name| (*name, "yes")).collect();
        let headers = [&leave[..], &[("stream-forked-from", source)]].concat();
        let seen = send(&layer, ask("PUT /drafts/x", &headers, "")).await;
        assert_eq!(seen.status.as_u16(), status, "{source:?} {leave:?}: {seen:?}");
        assert_eq!(*asked.lock().unwrap(), asks, "{source:?} {leave:?}");
        if status == 404 {
            // Whether it is there does not show.
            assert_eq!(seen.reason(), "not-found", "{source:?} {leave:?}");
        }
        if status == 201 {
            assert_eq!(send(&layer, get("/drafts/x")).await.text(), holds, "{source:?}");
            comet.channel("/drafts/x").delete().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_forks_source_is_one_path_to_the_hook_the_router_and_the_registry() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = {
        let seen = seen.clone();
        move |access: Access| {
            seen.lock().unwrap().push((access.channel().to_owned(), access.uri().to_string()));
            ready(Ok::<_, Denied>(()))
        }
    };
    let comet = comet();
    let layer = CometLayer::new(comet.clone())
        .route("/s/{*path}", Route::strict().read_by_anyone().create_by_anyone().delete_by_anyone())
        .route("/rooms/{*room}", Route::strict().read_by(record));
    for channel in ["/rooms/42", "/rooms/42?x", "/rooms/42#x"] {
        comet.channel(channel).create(Create::new("text/plain").content(channel)).await.unwrap();
    }
    for source in [
        "/rooms/42?x",
        "/rooms/42?",
        "/rooms/42#x",
        "/rooms/42#",
        "/rooms/42?x#y",
        "//rooms/42",
        "///rooms/42",
        "rooms/42",
        "?/rooms/42",
        "",
        "/rooms/4\t2",
        "/rooms/4 2",
        "http://localhost/rooms/42",
        "https://localhost/rooms/42",
        "http:/rooms/42",
        // Names that no path has: see `src/name.rs`.
        "/rooms/4%002",
        "/rooms/4%0d%0a2",
        "/rooms/a%2f42",
        "/rooms/%2e%2e/42",
        "/rooms/../42",
        "/rooms//42",
        "/rooms/42/",
        "/rooms/%zz",
        "/rooms/%FF",
    ] {
        let answer = send(&layer, ask("PUT /s/x", &[("stream-forked-from", source)], "")).await;
        assert_eq!((answer.status.as_u16(), &*answer.reason()), (400, "fork"), "{source:?}");
        assert_eq!(*seen.lock().unwrap(), [], "{source:?}: the hook is not asked");
    }
    let twice = [("stream-forked-from", "/rooms/42"), ("stream-forked-from", "/rooms/42")];
    assert_eq!(send(&layer, ask("PUT /s/x", &twice, "")).await.reason(), "repeated-header");
    assert_eq!(comet.stats().channels, 3);

    for (source, channel) in [
        ("/rooms/42", "/rooms/42"),
        ("/rooms/%34%32", "/rooms/42"),
        ("/rooms/42%3Fx", "/rooms/42?x"),
        ("/rooms/42%3fx", "/rooms/42?x"),
        ("/rooms/42%23x", "/rooms/42#x"),
    ] {
        for (sent_to, origin) in
            [("/s/x?query", ""), ("https://example.com:8443/s/x?query", "https://example.com:8443")]
        {
            let what = format!("{source} {sent_to}");
            let fork = ask(&format!("PUT {sent_to}"), &[("stream-forked-from", source)], "");
            assert_eq!(send(&layer, fork).await.status.as_u16(), 201, "{what}");
            assert_eq!(
                seen.lock().unwrap().drain(..).collect::<Vec<_>>(),
                [(channel.to_owned(), format!("{origin}{source}"))]
            );
            assert_eq!(send(&layer, get("/s/x")).await.text(), channel, "{what}");
            assert_eq!(status(&layer, "DELETE /s/x").await, 204, "{what}");
        }
    }
}
