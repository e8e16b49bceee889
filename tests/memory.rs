//! What strangers ask for leaves no memory behind: counted by the allocator, in bytes.

mod support;

use bytes::Bytes;
use http::Response;
use http_body::Body;
use http_body_util::Empty;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::{
    alloc::System,
    future::Future,
    pin::{Pin, pin},
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};
use support::{Teapot, ask, get, send, sent, settle};
use tokio::time::advance;
use tower::Service;
use tower_comet::{Comet, CometLayer, CometService, Create, ResponseBody, Retention, Route};
use tower_layer::Layer;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const KIB: usize = 1024;

/// Bytes that are allocated now.
fn held() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
}

/// One test at a time: the allocator is everybody's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with_paused_clock(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().expect("a runtime").block_on(test);
}

/// Requests in process, without a task or a parser around them.
struct Asker(CometService<Teapot>);

impl Asker {
    fn new(comet: &Comet) -> Self {
        Self(CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone()).layer(Teapot))
    }

    fn get(
        &mut self,
        uri: String,
    ) -> impl Future<Output = Response<ResponseBody<http_body_util::Full<Bytes>>>> + use<> {
        let answer = self.0.call(http::Request::get(uri).body(Empty::<Bytes>::new()).expect("a request"));
        async { answer.await.expect("infallible") }
    }

    /// The status of what is answered at once; `None` if it is parked, and then it is dropped.
    fn status(&mut self, uri: String) -> Option<u16> {
        match pin!(self.get(uri)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(response) => Some(response.status().as_u16()),
            Poll::Pending => None,
        }
    }
}

#[test]
fn a_million_names_that_nobody_made_leave_nothing_behind() {
    let _alone = alone();
    with_paused_clock(async {
        let comet = Comet::new();
        let mut asker = Asker::new(&comet);
        let mut ask = |names: std::ops::Range<u32>| {
            for n in names {
                match n % 4 {
                    0 => assert_eq!(asker.status(format!("/events/{n}?offset=-1")), Some(200)),
                    1 => assert_eq!(asker.status(format!("/events/{n}?timeout=0")), Some(204)),
                    2 => assert_eq!(asker.status(format!("/events/{n}")), None),
                    _ => {
                        let gone = format!("/events/{n}?offset=0000000000000007_x0000000000000007&live=long-poll");
                        assert_eq!(asker.status(gone), Some(410));
                    }
                }
            }
        };
        ask(0..1_000);
        let before = held();
        ask(1_000..1_001_000);
        let left = held().saturating_sub(before);
        assert!(left < 16 * KIB, "{left} bytes are left");
        assert_eq!((comet.channels().count(), comet.waiters(), comet.stats().channels), (0, 0, 0));
    });
}

#[test]
fn a_crowd_on_as_many_names_gives_its_memory_back() {
    let _alone = alone();
    with_paused_clock(async {
        let comet = Comet::new();
        let mut asker = Asker::new(&comet);
        let before = held();
        for round in 0..3 {
            let mut crowd: Vec<Pin<Box<dyn Future<Output = _>>>> = Vec::new();
            for n in 0..50_000 {
                let mut wait = Box::pin(asker.get(format!("/events/{round}-{n}")));
                assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                crowd.push(wait);
            }
            let with_all = held().saturating_sub(before);
            assert!(with_all > 50_000 * 180, "{with_all}: it is counted at all");
            drop(crowd);
            let left = held().saturating_sub(before);
            assert!(left < 64 * KIB, "{left} bytes are left of {with_all}");
        }
    });
}

#[test]
fn one_who_stays_on_does_not_keep_the_memory_of_a_crowd() {
    let _alone = alone();
    with_paused_clock(async {
        let comet = Comet::new();
        let layer = CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone());
        let before = held();
        let mut stay = Vec::new();
        for round in 0..20 {
            let uri = format!("/events/{round}");
            stay.push(sent(&layer, get(&uri)).await);
            let mut asker = Asker::new(&comet);
            let mut crowd: Vec<Pin<Box<dyn Future<Output = _>>>> = Vec::new();
            for _ in 0..20_000 {
                let mut wait = Box::pin(asker.get(uri.clone()));
                assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                crowd.push(wait);
            }
            // From the front and from the back in turn.
            if round % 2 == 0 {
                crowd.reverse();
            }
            drop(crowd);
            settle().await;
            assert_eq!((comet.waiters(), comet.channel(&uri).waiters()), (stay.len(), 1), "it has parked again");
        }
        let left = held().saturating_sub(before);
        assert!(left < 20 * 32 * KIB, "{left} bytes are left");
        for (round, wait) in stay.into_iter().enumerate() {
            comet.channel(format!("/events/{round}")).publish(round).await.expect("room");
            assert_eq!(wait.await.expect("no panic").text(), format!("[{round}]"));
        }
    });
}

#[test]
fn a_million_channels_that_have_aged_out_give_their_memory_back() {
    let _alone = alone();
    const ROUND: u32 = 50_000;
    with_paused_clock(async {
        let comet = Comet::builder().retention(Retention::default().age(Duration::from_secs(60))).build();
        let mut asker = Asker::new(&comet);
        let before = held();
        for round in 0..20 {
            for n in 0..ROUND {
                comet.channel(format!("/events/{}", round * ROUND + n)).publish("a message").wait().expect("room");
            }
            let with_all = held().saturating_sub(before);
            assert!(with_all > 50_000 * 180, "{with_all}: it is counted at all");
            assert_eq!(comet.stats().channels, 50_000);
            advance(Duration::from_secs(61)).await;
            // Nothing sweeps; but any traffic moves the queue along, by two.
            for n in 0..ROUND / 2 {
                assert_eq!(asker.status(format!("/events/nobody-made-{n}?offset=-1")), Some(200));
            }
            let left = held().saturating_sub(before);
            // The names of the 65,536 channels that ended last are remembered, by their hash.
            assert!(left < 5_120 * KIB, "{left} bytes are left of {with_all}");
            assert_eq!((comet.stats().channels, comet.stats().history_bytes, comet.channels().count()), (0, 0, 0));
        }
    });
}

#[test]
fn a_burst_that_has_aged_out_and_a_crowd_that_has_left_give_their_memory_back() {
    let _alone = alone();
    with_paused_clock(async {
        let comet = Comet::new();
        let mut asker = Asker::new(&comet);
        let channel = comet.channel("/events/news");
        channel.create("application/json").await.expect("room");
        let before = held();
        for _ in 0..3 {
            let mut crowd: Vec<Pin<Box<dyn Future<Output = _>>>> = Vec::new();
            for _ in 0..20_000 {
                let mut wait = Box::pin(asker.get("/events/news".to_owned()));
                assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                crowd.push(wait);
            }
            for n in 0..1_000 {
                channel.publish(format!("{n:01000}")).await.expect("room");
            }
            assert_eq!(channel.history(), 1_000);
            assert!(held() - before > 1_000_000);
            drop(crowd);
            advance(Duration::from_secs(3_601)).await;
            assert_eq!(channel.history(), 0);
            let left = held().saturating_sub(before);
            // The test harness allocates beside this, a few kilobytes at a time.
            assert!(left < 32 * KIB, "{left} bytes are left");
        }
    });
}

/// A megabyte of small messages is cut without taking it apart.
#[test]
fn a_part_of_a_large_append_costs_no_more_than_the_append() {
    let _alone = alone();
    with_paused_clock(async {
        let comet = Comet::new();
        let source = comet.channel("source");
        let messages = format!("[1{}]", ",1".repeat(500_000));
        let created = source.create(Create::new("application/json").content(messages)).await;
        created.expect("created");
        let layer = CometLayer::new(comet)
            .route("/{*path}", Route::strict().read_by_anyone().channel("{path}").create_by_anyone());
        let before = ALLOCATOR.stats().bytes_allocated;
        let fork =
            [("stream-forked-from", "/source"), ("stream-fork-offset", "-1"), ("stream-fork-sub-offset", "499999")];
        let made = send(&layer, ask("PUT /fork", &fork, "")).await;
        assert_eq!(made.status, 201, "{made:?}");
        let allocated = ALLOCATOR.stats().bytes_allocated - before;
        assert!(allocated < 3_000 * KIB, "{allocated} bytes");
    });
}

#[test]
fn a_fork_that_is_refused_copies_nothing() {
    let _alone = alone();
    const LONG: usize = 20_000;
    // What the entries of the source take, and a little room, but not for the entries of a fork.
    let history = LONG * 129 + 100_000;
    let builder = Comet::builder().retention(Retention::unbounded()).max_history(history).max_append(1_000);
    let comet = builder.max_channels(4).build();
    let (source, other) = (comet.channel("/source"), comet.channel("/other"));
    for channel in [&source, &other, &comet.channel("/deleted")] {
        channel.create("text/plain").wait().expect("room");
    }
    let offsets: Vec<_> = (0..LONG).map(|_| source.append("x").wait().expect("room")).collect();
    let strange = other.append("x").wait().expect("room");
    comet.channel("/deleted").append("x").wait().expect("room");
    comet.channel("/fork").create(Create::fork_of(&comet.channel("/deleted"))).wait().expect("room");
    comet.channel("/deleted").delete().wait().expect("it is there");
    let of = |source| Create::fork_of(source);
    let refusals: [(&str, Create, &str); 9] = [
        ("/other", of(&source), "Conflict"),
        ("/fork", of(&source), "Conflict"),
        ("/x", of(&comet.channel("/deleted")), "Conflict"),
        ("/x", of(&comet.channel("/unknown")), "Unknown"),
        ("/x", of(&source).at(strange), "ForkOffset"),
        ("/x", of(&source).content("x".repeat(1_001)), "TooLarge { limit: 1000 }"),
        ("/x\0", of(&source), "Name"),
        ("/x", of(&source), "Full(Channels)"),
        ("/x", of(&source).at(offsets[LONG / 2]), "Full(History)"),
    ];
    for (name, how, error) in refusals {
        if error == "Full(History)" {
            comet.channel("/other").delete().wait().expect("it is there");
        }
        let (usage, before) = (comet.stats(), ALLOCATOR.stats().bytes_allocated);
        let refused = comet.channel(name).create(how).wait();
        let allocated = ALLOCATOR.stats().bytes_allocated - before;
        assert_eq!(format!("{:?}", refused.expect_err("refused")), error, "{name}");
        // The half of the source is half a megabyte, as references alone.
        assert!(allocated < 32 * KIB, "{error}: {allocated} bytes");
        assert_eq!(format!("{:?}", comet.stats()), format!("{usage:?}"), "{error}");
    }
    let layer = CometLayer::new(comet.clone()).route("/{*path}", Route::strict().read_by_anyone().create_by_anyone());
    with_paused_clock(async {
        let before = ALLOCATOR.stats().bytes_allocated;
        let json = [("stream-forked-from", "/source"), ("content-type", "application/json")];
        assert_eq!(send(&layer, ask("PUT /x", &json, "")).await.status, 409);
        let allocated = ALLOCATOR.stats().bytes_allocated - before;
        assert!(allocated < 32 * KIB, "another type: {allocated} bytes");
    });
}

#[test]
fn an_answer_of_tiny_appends_holds_no_more_than_its_content() {
    let _alone = alone();
    with_paused_clock(async {
        const MANY: usize = 10_000;
        for content_type in ["application/octet-stream", "application/json"] {
            let comet = Comet::builder().retention(Retention::unbounded()).build();
            let mut asker = Asker::new(&comet);
            let channel = comet.channel("/events/news");
            channel.create(content_type).await.expect("room");
            for n in 0..MANY {
                channel.append(format!("{}", n % 10)).await.expect("room");
            }
            let (mut offset, mut appends, mut answers) = ("-1".to_owned(), 0, 0);
            loop {
                let before = held();
                let response = asker.get(format!("/events/news?offset={offset}")).await;
                let (held, length) = (held() - before, response.body().size_hint().exact().expect("known") as usize);
                assert!(held <= length + 2 * KIB, "{held} bytes are held for an answer of {length}");
                offset = response.headers()["stream-next-offset"].to_str().expect("ASCII").to_owned();
                let up_to_date = response.headers().contains_key("stream-up-to-date");
                appends += if content_type == "application/json" { (length - 1) / 2 } else { length };
                answers += 1;
                if up_to_date {
                    break;
                }
            }
            assert_eq!(appends, MANY);
            assert!(answers > 3, "{answers} answers");
        }
    });
}
