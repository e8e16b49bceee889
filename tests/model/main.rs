//! The whole of the protocol against a simple model of it: random requests on a few names, with time passing between
//! them; of each answer the status, the reason, the content and the headers are what the model says.
//!
//! HTTP in, HTTP out: the requests go through the layer, on a clock that stands still until it is moved.

mod server;
#[path = "../support/mod.rs"]
mod support;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, TestRunner},
};
use server::{Answer, Fork, From, How, Kind, Lifetime, Messages, Place, Request, Server, Stamp};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    time::{Duration, SystemTime},
};
use support::{Seen, Teapot, ask, open_to_all, send};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tower::ServiceExt;
use tower_comet::{Comet, CometLayer, Retention};
use tower_layer::Layer;

const NAMES: [&str; 3] = ["/s/a", "/s/b", "/s/c"];

/// A step, in which places are numbers: which places there are is not known before.
#[derive(Clone, Debug)]
enum Step {
    Ask(&'static str, Request, Option<Index>),
    Pass(u64),
}

fn name() -> impl Strategy<Value = &'static str> {
    select(&NAMES)
}

fn messages(most: usize) -> impl Strategy<Value = Messages> {
    prop_oneof![4 => vec(0..10u8, 1..=most), 1 => Just(Messages::new())]
}

fn kind() -> impl Strategy<Value = Kind> {
    // Mostly of one kind, or hardly anything would fit.
    prop_oneof![9 => Just(Kind::Json), 1 => Just(Kind::Text)]
}

fn lifetime() -> impl Strategy<Value = Option<Lifetime>> {
    let idle = (1..4u64).prop_map(|seconds| Some(Lifetime::Idle(seconds * 1_000)));
    // Between two seconds, as the clock on the wall is off by a little.
    let until = (1..6u64).prop_map(|seconds| Some(Lifetime::Until(seconds * 1_000 + 500)));
    prop_oneof![12 => Just(None), 2 => idle, 1 => until]
}

fn put() -> impl Strategy<Value = Request> {
    (kind(), lifetime(), prop::bool::weighted(0.1), messages(4)).prop_map(|(kind, lifetime, closed, content)| {
        Request::Put { kind: Some(kind), lifetime, closed, content, fork: None }
    })
}

fn fork() -> impl Strategy<Value = (Request, Option<Index>)> {
    let place = option::weighted(0.6, (any::<Index>(), prop_oneof![Just(0), 0..5usize]));
    (name(), place, option::weighted(0.3, select(&[Kind::Json, Kind::Text][..])), lifetime(), messages(2)).prop_map(
        |(source, at, kind, lifetime, content)| {
            let fork = Some(Fork { source, at: None, part: at.map_or(0, |(_, part)| part) });
            (Request::Put { kind, lifetime, closed: false, content, fork }, at.map(|(at, _)| at))
        },
    )
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (select(&["p", "q"][..]), 0..3u64, 0..3u64).prop_map(|(id, epoch, seq)| Stamp { id, epoch, seq })
}

fn post() -> impl Strategy<Value = Request> {
    let seq = option::weighted(0.3, select(&["1", "10", "2", "3"][..]));
    (kind(), messages(4), prop::bool::weighted(0.05), seq, option::weighted(0.6, stamp()))
        .prop_map(|(kind, content, close, seq, stamp)| Request::Post { kind, content, close, seq, stamp })
}

fn get() -> impl Strategy<Value = (Request, Option<Index>)> {
    let how = select(&[How::Read, How::LongPoll, How::Events][..]);
    let from = prop_oneof![
        2 => Just((From::Start, None)),
        1 => Just((From::Now, None)),
        3 => any::<Index>().prop_map(|at| (From::Now, Some(at))),
    ];
    (from, how).prop_map(|((from, at), how)| (Request::Get { from, how }, at))
}

fn step() -> impl Strategy<Value = Step> {
    let without = |request| (request, None);
    let request = prop_oneof![
        4 => put().prop_map(without),
        4 => fork(),
        10 => post().prop_map(without),
        6 => get(),
        1 => Just(without(Request::Head)),
        2 => Just(without(Request::Delete)),
    ];
    prop_oneof![
        16 => (name(), request).prop_map(|(name, (request, at))| Step::Ask(name, request, at)),
        1 => (1..4u64).prop_map(|seconds| Step::Pass(seconds * 1_000)),
    ]
}

/// The server, its model, and what clients have learned.
struct World<'a> {
    comet: Comet,
    layer: CometLayer,
    model: Server,
    began: SystemTime,
    places: BTreeMap<Place, String>,
    came_true: &'a RefCell<BTreeMap<String, usize>>,
}

impl World<'_> {
    async fn take(&mut self, step: Step) {
        match step {
            Step::Pass(millis) => {
                tokio::time::advance(Duration::from_millis(millis)).await;
                self.model.pass(millis);
                // Traffic elsewhere, so that all that is due is looked after.
                for _ in 0..2 * NAMES.len() {
                    send(&self.layer, support::get("/s/elsewhere")).await;
                }
            }
            Step::Ask(name, mut request, at) => {
                match (&mut request, at) {
                    (_, None) => {}
                    (_, Some(_)) if self.places.is_empty() => return,
                    (Request::Put { fork: Some(fork), .. }, Some(at)) => fork.at = Some(self.place(at)),
                    (Request::Get { from, .. }, Some(at)) => *from = From::Place(self.place(at)),
                    (request, _) => unreachable!("{request:?} has no place"),
                }
                let written = self.written(name, &request);
                let expected = self.model.answer(name, &request);
                match (&request, expected.status) {
                    (Request::Get { how: How::Events, .. }, 200) => self.compare_events(&expected, written).await,
                    _ => self.compare(name, &request, &expected, &send(&self.layer, written).await),
                }
            }
        }
        let stats = self.comet.stats();
        assert_eq!((stats.channels, stats.history_bytes), self.model.usage());
        assert_eq!(stats.waiters, 0);
    }

    fn place(&self, at: Index) -> Place {
        *self.places.keys().nth(at.index(self.places.len())).expect("within")
    }

    /// A request as it goes over the wire.
    fn written(&self, name: &str, request: &Request) -> http::Request<Full<Bytes>> {
        let mut headers: Vec<(&str, String)> = Vec::new();
        let (line, body) = match request {
            Request::Put { kind, lifetime, closed, content, fork } => {
                let inherited = fork.as_ref().and_then(|fork| self.model.kind(fork.source));
                headers.extend(kind.map(|kind| ("content-type", kind.content_type().to_owned())));
                headers.extend(lifetime.map(|lifetime| self.written_lifetime(lifetime)));
                headers.extend(closed.then(|| ("stream-closed", "true".to_owned())));
                if let Some(Fork { source, at, part }) = fork {
                    headers.push(("stream-forked-from", (*source).to_owned()));
                    headers.extend(at.map(|at| ("stream-fork-offset", self.places[&at].clone())));
                    headers.extend((*part > 0).then(|| ("stream-fork-sub-offset", part.to_string())));
                }
                let kind = kind.or(inherited).unwrap_or(Kind::Text);
                (format!("PUT {name}"), if content.is_empty() { String::new() } else { kind.text(content) })
            }
            Request::Post { kind, content, close, seq, stamp } => {
                headers.push(("content-type", kind.content_type().to_owned()));
                headers.extend(close.then(|| ("stream-closed", "true".to_owned())));
                headers.extend(seq.map(|seq| ("stream-seq", seq.to_owned())));
                if let Some(Stamp { id, epoch, seq }) = stamp {
                    headers.push(("producer-id", (*id).to_owned()));
                    headers.push(("producer-epoch", epoch.to_string()));
                    headers.push(("producer-seq", seq.to_string()));
                }
                (format!("POST {name}"), if content.is_empty() { String::new() } else { kind.text(content) })
            }
            Request::Get { from, how } => {
                let offset = match from {
                    From::Start => "-1",
                    From::Now => "now",
                    From::Place(place) => &self.places[place],
                };
                let live = match how {
                    How::Read => "",
                    How::LongPoll => "&live=long-poll&timeout=0",
                    How::Events => "&live=sse",
                };
                (format!("GET {name}?offset={offset}{live}"), String::new())
            }
            Request::Head => (format!("HEAD {name}"), String::new()),
            Request::Delete => (format!("DELETE {name}"), String::new()),
        };
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        ask(&line, &headers, body)
    }

    fn written_lifetime(&self, lifetime: Lifetime) -> (&'static str, String) {
        match lifetime {
            Lifetime::Idle(window) => ("stream-ttl", (window / 1_000).to_string()),
            Lifetime::Until(end) => {
                let end = OffsetDateTime::from(self.began + Duration::from_millis(end));
                ("stream-expires-at", end.format(&Rfc3339).expect("a time"))
            }
        }
    }

    fn compare(&mut self, name: &str, request: &Request, expected: &Answer, seen: &Seen) {
        let label = format!("{name} {request:?} at {}: {seen:?}", self.model.now());
        assert_eq!(seen.status.as_u16(), expected.status, "{label}");
        if let (Some(reason), false) = (expected.reason, matches!(request, Request::Head)) {
            assert_eq!(seen.reason(), reason, "{label}");
        }
        assert_eq!(seen.header("stream-closed"), expected.closed.then_some("true"), "{label}");
        let next = seen.header("stream-next-offset").map(str::to_owned);
        assert_eq!(next.is_some(), expected.next.is_some(), "{label}");
        if let (Some(place), Some(offset)) = (expected.next, next) {
            self.same(place, &offset, &label);
        }
        match &expected.content {
            Some((kind, content)) => {
                assert_eq!(seen.text(), kind.text(content), "{label}");
                assert_eq!(seen.header("content-type"), Some(kind.content_type()), "{label}");
                assert_eq!(seen.header("stream-up-to-date"), Some("true"), "{label}");
            }
            None if expected.reason.is_none() => assert!(seen.body.is_empty(), "{label}"),
            None => {}
        }
        if let Some((epoch, seq)) = expected.accepted {
            let told = (seen.header("producer-epoch"), seen.header("producer-seq"));
            assert_eq!(told, (Some(&*epoch.to_string()), Some(&*seq.to_string())), "{label}");
        }
        for name in ["stream-ttl", "stream-expires-at"] {
            let told =
                expected.lifetime.map(|lifetime| self.written_lifetime(lifetime)).filter(|(told, _)| *told == name);
            assert_eq!(seen.header(name), told.as_ref().map(|(_, value)| &**value), "{label}");
        }
        let what = format!("{request:?}");
        let what = what.split(' ').next().unwrap_or_default();
        let what = format!("{what} {} {}", expected.status, expected.reason.unwrap_or_default());
        self.came_true(what.trim_end());
    }

    /// An event stream, as far as it goes without a wait.
    async fn compare_events(&mut self, expected: &Answer, request: http::Request<Full<Bytes>>) {
        let label = format!("{request:?}");
        let response = self.layer.layer(Teapot).oneshot(request).await.expect("infallible");
        assert_eq!(response.status().as_u16(), 200, "{label}");
        let (mut body, mut text, mut ended) = (response.into_body(), Vec::new(), false);
        while let Some(frame) = body.frame().now_or_never() {
            let Some(frame) = frame else {
                ended = true;
                break;
            };
            text.extend(frame.expect("infallible").into_data().expect("data"));
        }
        drop(body);
        let (next, (kind, content)) = (expected.next.expect("a place"), expected.content.clone().expect("content"));
        let offset = self.places.get(&next).expect("it was told by whoever appended last").clone();
        let data = if content.is_empty() {
            String::new()
        } else {
            format!("event: data\nid:{offset}\ndata:{}\n\n", kind.text(&content))
        };
        let text = String::from_utf8(text).expect("text");
        let events = text.strip_prefix("retry:").and_then(|text| text.split_once("\n\n")).map(|(_, events)| events);
        let control = events.and_then(|events| events.strip_prefix(&*data)?.strip_prefix("event: control\ndata:"));
        let control = control.and_then(|rest| rest.strip_suffix(&format!("\nid:{offset}\n\n")));
        let control: serde_json::Value =
            serde_json::from_str(control.unwrap_or_else(|| panic!("{label}: {text}"))).expect(&label);
        assert_eq!(
            (control["streamNextOffset"].as_str(), &control["upToDate"]),
            (Some(&*offset), &true.into()),
            "{label}"
        );
        assert_eq!((control["streamClosed"] == true, ended), (expected.closed, expected.closed), "{label}: {text}");
        self.came_true("Get 200, as events");
    }

    /// One place has one offset, and no other place has that; and they are in the same order.
    fn same(&mut self, place: Place, offset: &str, label: &str) {
        let known = self.places.entry(place).or_insert_with(|| offset.to_owned());
        assert_eq!(known, offset, "{place:?}: {label}");
        for (other, taken) in &self.places {
            assert_eq!(taken == offset, *other == place, "{offset} is {other:?} and {place:?}: {label}");
            if other.appends != place.appends {
                assert_eq!(taken.as_str() < offset, other.appends < place.appends, "{other:?} {place:?}: {label}");
            }
        }
    }

    fn came_true(&self, what: &str) {
        *self.came_true.borrow_mut().entry(what.to_owned()).or_default() += 1;
    }

    /// Everything is deleted, and nothing is left.
    async fn end(mut self) {
        for name in self.model.names() {
            self.take(Step::Ask(name, Request::Delete, None)).await;
        }
        let stats = self.comet.stats();
        assert_eq!((stats.channels, stats.history_bytes, self.comet.channels().count()), (0, 0, 0));
    }
}

#[test]
fn the_server_answers_as_a_map_of_vectors_would() {
    let came_true = RefCell::default();
    let config = Config { cases: 300, max_shrink_iters: 4_000, failure_persistence: None, ..Config::default() };
    let steps = vec(step(), 20..80);
    TestRunner::new(config)
        .run(&steps, |steps| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.expect("a runtime").block_on(async {
                let comet = Comet::builder().retention(Retention::unbounded()).build();
                let mut world = World {
                    layer: CometLayer::new(comet.clone()).route("/s/{*path}", open_to_all()),
                    comet,
                    model: Server::default(),
                    began: SystemTime::now(),
                    places: BTreeMap::new(),
                    came_true: &came_true,
                };
                for step in steps {
                    world.take(step).await;
                }
                world.end().await;
            });
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    // Hardly anything was tested if hardly anything happened.
    let came_true = came_true.into_inner();
    println!("{came_true:?}");
    for what in [
        "Put 200",
        "Put 201",
        "Put 400 fork-offset",
        "Put 404 not-found",
        "Put 409 conflict",
        "Put 409 content-type",
        "Post 200",
        "Post 204",
        "Post 400 empty",
        "Post 400 epoch",
        "Post 403 fenced",
        "Post 403 unknown-producer",
        "Post 404 not-found",
        "Post 409 closed",
        "Post 409 content-type",
        "Post 409 gap",
        "Post 409 sequence",
        "Post 410 deleted",
        "Get 200",
        "Get 204",
        "Get 404 not-found",
        "Get 410 deleted",
        "Get 410 other-log",
        "Head 200",
        "Head 404 not-found",
        "Delete 204",
        "Delete 404 not-found",
        "Delete 410 deleted",
    ] {
        assert!(came_true.contains_key(what), "{what} never happened: {came_true:?}");
    }
}
