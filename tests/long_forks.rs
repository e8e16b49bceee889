//! Forks of long logs: they take many polls, and other operations run in between.

mod support;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};
use support::{Teapot, ask, get, open_to_all, send};
use tower::ServiceExt;
use tower_comet::{Change, Comet, CometBuilder, CometLayer, Create, Error, Limit, Offset, Retention};
use tower_layer::Layer;

/// The number of entries that one poll copies.
const STEP: usize = 1_024;

/// The cost of an append of one byte, in the measure of `max_history`.
const ONE: usize = 129;

fn comet(retention: Retention, set: impl FnOnce(CometBuilder) -> CometBuilder) -> Comet {
    set(Comet::builder().retention(retention)).build()
}

/// Creates a channel of text with as many appends of one byte. Returns the offset after each.
fn fill(comet: &Comet, name: &str, appends: usize) -> Vec<Offset> {
    let channel = comet.channel(name);
    channel.create("text/plain").wait().expect("room");
    append(comet, name, appends)
}

/// Appends one byte at a time: the last digit of the append's number.
fn append(comet: &Comet, name: &str, appends: usize) -> Vec<Offset> {
    let channel = comet.channel(name);
    let mut append = |_| {
        let number = channel.tail().to_string();
        let digit = number[..16].parse::<u64>().expect("a position") % 10;
        channel.append(digit.to_string()).wait().expect("room")
    };
    (0..appends).map(&mut append).collect()
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Begins a fork of `/source`, which has more entries than one poll copies.
fn begin(comet: &Comet, name: &str, at: Option<Offset>) -> Pin<Box<Change>> {
    let how = Create::fork_of(&comet.channel("/source"));
    let how = if let Some(at) = at { how.at(at) } else { how };
    let mut fork = Box::pin(comet.channel(name).create(how));
    assert!(poll(fork.as_mut()).is_pending());
    fork
}

fn finish(mut fork: Pin<Box<Change>>) -> Result<Offset, Error> {
    for _ in 0..1_000 {
        if let Poll::Ready(done) = poll(fork.as_mut()) {
            return done;
        }
    }
    panic!("it does not end");
}

/// Returns all that a channel retains, from the earliest message on.
async fn content(comet: &Comet, name: &str) -> String {
    let layer = CometLayer::new(comet.clone()).route("/{channel}", open_to_all());
    let (mut all, mut offset) = (String::new(), "-1".to_owned());
    loop {
        let seen = send(&layer, get(&format!("{name}?offset={offset}"))).await;
        assert_eq!(seen.status, 200, "{seen:?}");
        all.push_str(seen.text());
        offset = seen.offset().to_string();
        if seen.header("stream-up-to-date").is_some() {
            return all;
        }
    }
}

fn digits(numbers: std::ops::Range<usize>) -> String {
    numbers.map(|number| (number % 10).to_string()).collect()
}

/// The channels and the bytes of history.
fn usage(comet: &Comet) -> (usize, usize) {
    (comet.stats().channels, comet.stats().history_bytes)
}

#[tokio::test]
async fn a_fork_of_a_long_log_copies_a_bounded_number_of_entries_in_each_poll_and_counts_them_at_once() {
    const LONG: usize = 20_000;
    let comet = comet(Retention::unbounded(), |builder| builder);
    let offsets = fill(&comet, "/source", LONG);
    let source = comet.channel("/source");
    let (mut fork, mut polls, mut most) = (Box::pin(comet.channel("/fork").create(Create::fork_of(&source))), 0, 0);
    let tail = loop {
        let (before, tail) = (comet.stats().history_bytes, source.tail());
        let polled = poll(fork.as_mut());
        polls += 1;
        // The first poll reserves what each entry costs beside its payload of one byte.
        let reserved = if polls == 1 { LONG * (ONE - 1) } else { 0 };
        most = most.max(comet.stats().history_bytes - before - reserved);
        assert_eq!(source.tail(), tail);
        match polled {
            Poll::Ready(made) => break made.expect("room"),
            // An append in between belongs to the source only.
            Poll::Pending => _ = append(&comet, "/source", 1),
        }
        assert!(polls < LONG);
        most = most.max(comet.stats().history_bytes - before - reserved - ONE);
    };
    assert_eq!((polls, most), (LONG.div_ceil(STEP), STEP));
    assert_eq!(tail, offsets[LONG - 1]);
    assert!(content(&comet, "/fork").await == digits(0..LONG));
    assert_eq!(usage(&comet), (2, (2 * LONG + polls - 1) * ONE));
    comet.channel("/fork").delete().wait().unwrap();
    source.delete().wait().unwrap();
    assert_eq!(usage(&comet), (0, 0));
}

#[tokio::test]
async fn other_tasks_run_while_a_put_forks_a_long_log() {
    const LONG: usize = 20_000;
    let comet = comet(Retention::unbounded(), |builder| builder);
    fill(&comet, "/source", LONG);
    let layer = CometLayer::new(comet.clone()).route("/{channel}", open_to_all());
    let fork = tokio::spawn(async move {
        send(&layer, ask("PUT /fork", &[("stream-forked-from", "/source")], "and its own")).await
    });
    let turns = Arc::new(AtomicUsize::new(0));
    let other = tokio::spawn({
        let turns = turns.clone();
        // Not `tokio::task::yield_now`, which lets all woken tasks run before it.
        poll_fn(move |cx| {
            turns.fetch_add(1, Relaxed);
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        })
    });
    assert_eq!(fork.await.unwrap().status, 201);
    assert!(turns.load(Relaxed) >= LONG / STEP, "{turns:?}");
    other.abort();
    assert!(content(&comet, "/fork").await == digits(0..LONG) + "and its own");
}

#[tokio::test]
async fn a_fork_starts_over_if_the_next_entry_is_trimmed_and_keeps_what_it_has_otherwise() {
    const LONG: usize = 10_000;
    for (appended, inherited) in [(1_000, 0..LONG), (STEP, 0..LONG), (STEP + 1, STEP + 1..LONG), (9_000, 9_000..LONG)] {
        for at_tail in [true, false] {
            let comet = comet(Retention::unbounded().appends(LONG), |builder| builder);
            let offsets = fill(&comet, "/source", LONG);
            let fork = begin(&comet, "/fork", (!at_tail).then_some(offsets[LONG - 1]));
            append(&comet, "/source", appended);
            assert_eq!(finish(fork).expect("room"), offsets[LONG - 1]);
            assert!(content(&comet, "/fork").await == digits(inherited.clone()), "{appended}");
            assert_eq!(usage(&comet), (2, (LONG + inherited.len()) * ONE), "{appended}");
        }
    }
}

#[tokio::test]
async fn a_fork_whose_offset_is_trimmed_meanwhile_is_refused_unless_it_named_none() {
    const LONG: usize = 10_000;
    let comet = comet(Retention::unbounded().appends(LONG), |builder| builder);
    let offsets = fill(&comet, "/source", LONG);
    let (named, at_tail) = (begin(&comet, "/named", Some(offsets[LONG - 1])), begin(&comet, "/tail", None));
    let exact = begin(&comet, "/exact", Some(offsets[LONG - 1]));
    append(&comet, "/source", LONG);
    // The floor of the source is its former tail, so an empty fork can begin there.
    assert_eq!(finish(exact).expect("room"), offsets[LONG - 1]);
    let later = append(&comet, "/source", 1)[0];
    assert!(matches!(finish(named), Err(Error::ForkOffset)));
    let tail = finish(at_tail).expect("room");
    assert!(tail > offsets[LONG - 1] && tail < later, "a tail that the source had since: {tail}");
    assert_eq!((comet.channel("/exact").history(), comet.channel("/tail").history()), (0, 0));
    assert_eq!(usage(&comet), (3, LONG * ONE));
    comet.channel("/tail").append("x").wait().unwrap();
    assert_eq!(content(&comet, "/tail").await, "x");
}

#[test]
fn a_fork_whose_source_is_deleted_meanwhile_is_refused_and_leaves_no_tombstone() {
    const LONG: usize = 10_000;
    let comet = comet(Retention::unbounded(), |builder| builder);
    fill(&comet, "/source", LONG);
    let (fork, another) = (begin(&comet, "/fork", None), begin(&comet, "/another", None));
    let source = comet.channel("/source");
    source.delete().wait().unwrap();
    assert!(matches!(source.create("text/plain").wait(), Err(Error::Conflict)), "its name is taken");
    assert!(matches!(source.create(Create::fork_of(&source)).wait(), Err(Error::Conflict)));
    assert!(matches!(comet.channel("/third").create(Create::fork_of(&source)).wait(), Err(Error::Conflict)));
    assert!(matches!(finish(fork), Err(Error::Conflict)), "as a request that comes now");
    assert!(usage(&comet).0 > 1, "the other fork is not over");
    drop(another);
    assert_eq!((usage(&comet), comet.channels().count()), ((0, 0), 0));
    source.create("text/plain").wait().expect("its name is free");
}

#[tokio::test(start_paused = true)]
async fn a_fork_whose_source_is_forgotten_and_created_anew_meanwhile_is_refused() {
    const LONG: usize = 10_000;
    for anew in [false, true] {
        let age = Duration::from_secs(100);
        let comet = comet(Retention::unbounded().age(age), |builder| builder);
        let source = comet.channel("/source");
        for _ in 0..LONG {
            source.publish(1).await.unwrap();
        }
        // An event stream that is not read is no waiter, but its entry of the name stays, and gets the new log.
        let layer = CometLayer::new(comet.clone()).route("/{channel}", open_to_all());
        let stream = layer.layer(Teapot).oneshot(get("/source?offset=now&live=sse")).await.expect("infallible");
        assert_eq!(stream.status(), 200);
        let fork = begin(&comet, "/fork", None);
        tokio::time::advance(2 * age).await;
        if anew {
            source.publish(1).await.unwrap();
        } else {
            comet.channel("/other").publish(1).await.unwrap();
        }
        assert_eq!(comet.stats().channels, 2, "the new channel, and the one that is reserved for the fork");
        assert!(matches!(finish(fork), Err(Error::Unknown)), "{anew}");
        assert_eq!(comet.stats().channels, 1, "{anew}");
        assert!(comet.stats().history_bytes < 200, "{anew}: {:?}", comet.stats());
    }
}

#[test]
fn a_fork_that_is_dropped_half_way_leaves_nothing() {
    const LONG: usize = 10_000;
    let comet = comet(Retention::unbounded(), |builder| builder);
    fill(&comet, "/source", LONG);
    let before = usage(&comet);
    let fork = begin(&comet, "/fork", None);
    assert_eq!(usage(&comet), (2, before.1 + LONG * (ONE - 1) + STEP), "it is counted while it is copied");
    assert_eq!(comet.channels().count(), 1, "but does not exist yet");
    drop(fork);
    assert_eq!(usage(&comet), before);
    comet.channel("/source").delete().wait().unwrap();
    assert_eq!((usage(&comet), comet.channels().count()), ((0, 0), 0), "nothing counts the fork any more");
}

#[test]
fn forks_that_are_made_at_once_never_exceed_the_limit_on_history() {
    const LONG: usize = 10_000;
    let limit = 2 * LONG * ONE + LONG * ONE * 3 / 4;
    let comet = comet(Retention::unbounded(), |builder| builder.max_history(limit));
    fill(&comet, "/source", LONG);
    let source = comet.channel("/source");
    let fork = |name: &str| Some(Box::pin(comet.channel(name).create(Create::fork_of(&source))));
    let (mut forks, mut done) = ([fork("/a"), fork("/b"), fork("/c")], Vec::new());
    for _ in 0..1_000 {
        for (nth, slot) in forks.iter_mut().enumerate() {
            if let Some(Poll::Ready(made)) = slot.as_mut().map(|fork| poll(fork.as_mut())) {
                done.push((nth, made));
                *slot = None;
            }
            assert!(comet.stats().history_bytes <= limit, "{:?}", comet.stats());
        }
    }
    let (made, refused): (Vec<_>, Vec<_>) = done.into_iter().partition(|(_, made)| made.is_ok());
    assert_eq!((made.len(), refused.len()), (1, 2));
    assert!(refused.iter().all(|(_, refused)| matches!(refused, Err(Error::Full(Limit::History)))), "{refused:?}");
    assert_eq!(usage(&comet), (2, 2 * LONG * ONE));
}

#[test]
fn a_payload_that_exceeds_the_limit_on_history_refuses_the_fork_in_the_middle() {
    const LONG: usize = 4_000;
    let cost = 100 + 128;
    let comet = comet(Retention::unbounded(), |builder| builder.max_history(LONG * (cost + 128) + 1_500 * 100));
    let source = comet.channel("/source");
    source.create("text/plain").wait().unwrap();
    for _ in 0..LONG {
        source.append("x".repeat(100)).wait().unwrap();
    }
    // The first poll copies a quarter of it, which fits.
    let fork = begin(&comet, "/fork", None);
    assert!(matches!(finish(fork), Err(Error::Full(Limit::History))));
    assert_eq!(usage(&comet), (1, LONG * cost));
}

#[tokio::test(start_paused = true)]
async fn expired_channels_make_room_for_a_fork_over_many_polls() {
    const MANY: usize = 10_000;
    const LONG: usize = 5_000;
    let comet = comet(Retention::unbounded(), |builder| builder.max_history(MANY * ONE + LONG * ONE));
    fill(&comet, "/source", LONG);
    for n in 0..MANY {
        let idle = Create::new("text/plain").idle(Duration::from_secs(10)).content("x");
        comet.channel(format!("/drafts/{n}")).create(idle).await.unwrap();
    }
    let source = comet.channel("/source");
    let refused = comet.channel("/fork").create(Create::fork_of(&source)).await;
    assert!(matches!(refused, Err(Error::Full(Limit::History))));
    assert_eq!(comet.stats().channels, MANY + 1);
    tokio::time::advance(Duration::from_secs(11)).await;
    let fork = Box::pin(comet.channel("/fork").create(Create::fork_of(&source)));
    finish(fork).expect("the expired channels are evicted");
    assert_eq!(comet.channel("/fork").history(), LONG);
    assert!(comet.stats().history_bytes <= (MANY + LONG) * ONE);
}

#[test]
fn two_requests_for_the_same_fork_make_it_once() {
    const LONG: usize = 10_000;
    let comet = comet(Retention::unbounded(), |builder| builder);
    let offsets = fill(&comet, "/source", LONG);
    let (first, second) = (begin(&comet, "/fork", None), begin(&comet, "/fork", None));
    let third = begin(&comet, "/fork", Some(offsets[LONG - 2]));
    let tail = finish(first).unwrap();
    assert_eq!(finish(second).unwrap(), tail);
    assert!(matches!(finish(third), Err(Error::Conflict)), "it asks for another offset");
    assert_eq!(usage(&comet), (2, 2 * LONG * ONE));
    for name in ["/fork", "/source"] {
        comet.channel(name).delete().wait().unwrap();
    }
    assert_eq!((usage(&comet), comet.channels().count()), ((0, 0), 0), "the source counted one fork");
}

#[test]
fn a_fork_does_not_replace_a_channel_that_is_created_meanwhile() {
    const LONG: usize = 10_000;
    let comet = comet(Retention::unbounded(), |builder| builder);
    fill(&comet, "/source", LONG);
    let fork = begin(&comet, "/fork", None);
    let other = comet.channel("/fork");
    other.create(Create::new("text/plain").content("x")).wait().unwrap();
    assert!(matches!(finish(fork), Err(Error::Conflict)));
    assert_eq!((usage(&comet), other.history()), ((2, (LONG + 1) * ONE), 1));
}

#[test]
fn retention_trims_a_fork_that_is_created_with_content() {
    const LONG: usize = 10_000;
    let comet = comet(Retention::unbounded().bytes(LONG), |builder| builder);
    fill(&comet, "/source", LONG);
    let how = || Create::fork_of(&comet.channel("/source"));
    for (content, left) in [(1, LONG), (100, LONG - 99), (LONG - 1, 2), (2 * LONG, 1)] {
        let fork = comet.channel(format!("/{content}"));
        fork.create(how().content("x".repeat(content)).closed()).wait().unwrap();
        assert_eq!((fork.history(), fork.is_closed()), (left, true), "{content}");
        fork.delete().wait().unwrap();
        assert_eq!(usage(&comet), (1, LONG * ONE), "{content}");
    }
}

/// `cargo test --release --test long_forks -- --ignored --nocapture` prints what a fork of a million appends takes.
#[test]
#[ignore = "a measurement"]
fn the_longest_poll_of_a_fork_of_a_million_appends() {
    const LONG: usize = 1_000_000;
    let comet = comet(Retention::unbounded(), |builder| builder.max_history(1 << 30));
    fill(&comet, "/source", LONG);
    let source = comet.channel("/source");
    let longest = |what: &str, name: &str, mut meddle: Box<dyn FnMut(usize)>| {
        let mut fork = pin!(comet.channel(name).create(Create::fork_of(&source)));
        let (began, mut polls) = (Instant::now(), Vec::new());
        loop {
            let began = Instant::now();
            let polled = poll(fork.as_mut());
            polls.push(began.elapsed());
            if let Poll::Ready(made) = polled {
                println!("{what}: {made:?}");
                break;
            }
            meddle(polls.len());
        }
        let (took, number, last) = (began.elapsed(), polls.len(), polls[polls.len() - 1]);
        polls.sort_unstable();
        println!("{what}: {took:.1?} in {number} polls, the longest {:.1?}, the last {last:.1?}", &polls[number - 4..]);
    };
    longest("first", "/first", Box::new(|_| ()));
    longest("second", "/second", Box::new(|_| ()));
    let other = comet.channel("/third");
    longest(
        "refused in the end",
        "/third",
        Box::new(move |polls| {
            if polls == 1 {
                other.create("text/plain").wait().unwrap();
            }
        }),
    );
    let mut fork = Box::pin(comet.channel("/fourth").create(Create::fork_of(&source)));
    for _ in 0..970 {
        assert!(poll(fork.as_mut()).is_pending());
    }
    let began = Instant::now();
    drop(fork);
    println!("dropped near its end: {:.1?}", began.elapsed());
    for name in ["/first", "/second", "/source"] {
        let began = Instant::now();
        comet.channel(name).delete().wait().unwrap();
        println!("{name} deleted: {:.1?}", began.elapsed());
    }
}
