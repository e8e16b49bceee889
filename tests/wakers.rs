//! Wakers are foreign code: they may re-enter the crate or panic, and there may be so many that waking them takes a
//! while.

mod support;

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tower_comet::{Channel, Comet, Create};

/// Counts its wake-ups, and re-enters the crate when it is woken and when it is dropped.
struct Meddler {
    channel: Channel,
    woken: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

impl Meddler {
    fn meddle(&self) {
        let _ = (self.channel.tail(), self.channel.waiters(), self.channel.history());
        let _ = self.channel.publish("from a waker").wait();
        let mut reader = self.channel.subscribe();
        let mut recv = pin!(reader.recv());
        let _ = recv.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
}

impl Wake for Meddler {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Relaxed);
        self.meddle();
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Relaxed);
        self.meddle();
    }
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker that panics");
    }
}

#[derive(Default)]
struct Counts(AtomicUsize);

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

type Parked = Pin<Box<dyn Future<Output = ()>>>;

/// A subscription in `recv` that was polled once, with this waker.
fn park(channel: &Channel, waker: &Waker) -> Parked {
    let mut reader = channel.subscribe();
    let mut parked: Parked = Box::pin(async move { drop(reader.recv().await) });
    assert!(parked.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
    parked
}

fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_waker_may_use_the_same_channel_when_it_is_woken_and_when_it_is_dropped() {
    let comet = Comet::new();
    let channel = comet.channel("/meddled");
    let (woken, dropped) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let meddler =
        || Waker::from(Arc::new(Meddler { channel: channel.clone(), woken: woken.clone(), dropped: dropped.clone() }));
    // Each act wakes or drops the waker of a parked subscription.
    let acts: [(&str, fn(&Comet, &Channel)); 6] = [
        ("publish", |_, channel| _ = channel.publish("x").wait()),
        ("close", |_, channel| _ = channel.close().wait()),
        ("delete", |_, channel| _ = channel.delete().wait()),
        ("create", |_, channel| _ = channel.create(Create::new("application/json")).wait()),
        ("broadcast", |comet, _| _ = comet.broadcast("/{name}", "x").wait()),
        ("nothing", |_, _| ()),
    ];
    for (nth, (act, run)) in acts.into_iter().enumerate() {
        let _ = channel.delete().wait();
        if act == "delete" {
            channel.publish("what is deleted").wait().unwrap();
        }
        let parked = park(&channel, &meddler());
        run(&comet, &channel);
        drop(parked);
        assert_eq!(dropped.load(Relaxed), nth + 1, "{act}");
        assert_eq!(channel.waiters(), 0, "{act}");
    }
    assert_eq!(woken.load(Relaxed), 5);

    // The waker that is replaced by another.
    let _ = channel.delete().wait();
    let mut parked = park(&channel, &meddler());
    assert!(poll(parked.as_mut()).is_pending() || dropped.load(Relaxed) == 7);
    drop(parked);
    assert_eq!(dropped.load(Relaxed), 7);

    let parked = park(&comet.channel("/another"), &meddler());
    comet.close();
    drop(parked);
    let mut drained = Box::pin(comet.drained());
    assert!(drained.as_mut().poll(&mut Context::from_waker(&meddler())).is_ready());
}

#[test]
fn a_waker_that_panics_does_not_leave_the_others_asleep() {
    let acts: [(&str, fn(&Comet)); 5] = [
        ("publish", |comet| _ = comet.channel("/news").publish("x").wait()),
        ("close a channel", |comet| _ = comet.channel("/news").close().wait()),
        ("delete", |comet| _ = comet.channel("/news").delete().wait()),
        ("broadcast", |comet| _ = comet.broadcast("/{name}", "x").wait()),
        ("close", |comet| comet.close()),
    ];
    for (act, run) in acts {
        let comet = Comet::new();
        let news = comet.channel("/news");
        news.publish("before").wait().unwrap();
        let (counts, panics) = (Arc::<Counts>::default(), Waker::from(Arc::new(Panics)));
        let mut parked = Vec::new();
        for nth in 0..100 {
            let waker = if nth % 10 == 0 { panics.clone() } else { Waker::from(counts.clone()) };
            parked.push(park(&news, &waker));
        }
        assert!(catch_unwind(AssertUnwindSafe(|| run(&comet))).is_err(), "{act}: the panic goes on");
        assert_eq!(counts.0.load(Relaxed), 90, "{act}");
        parked.clear();
        assert_eq!(comet.waiters(), 0, "{act}");
        comet.channel("/other").publish("and nothing is poisoned").wait().unwrap();
    }
}

#[test]
fn an_append_is_made_in_the_first_poll_and_wakes_all_waiters_even_if_it_is_then_dropped() {
    const MANY: usize = 20_000;
    let comet = Comet::new();
    let news = comet.channel("/news");
    let counts = Arc::<Counts>::default();
    let parked: Vec<_> = (0..MANY).map(|_| park(&news, &Waker::from(counts.clone()))).collect();
    let mut publish = Box::pin(news.publish("x"));
    let _ = poll(publish.as_mut());
    assert_eq!(news.history(), 1);
    drop(publish);
    assert_eq!(counts.0.load(Relaxed), MANY);
    drop(parked);
}

#[test]
fn a_broadcast_takes_many_polls_and_can_be_dropped_between_two() {
    const MANY: usize = 20_000;
    let comet = Comet::new();
    let counts = Arc::<Counts>::default();
    let channels: Vec<_> = (0..MANY).map(|n| comet.channel(format!("/rooms/{n}"))).collect();
    let parked: Vec<_> = channels.iter().map(|channel| park(channel, &Waker::from(counts.clone()))).collect();
    let appends = || comet.stats().appends as usize;
    let (mut broadcast, mut polls, mut most) = (Box::pin(comet.broadcast("/rooms/{room}", "x")), 0, 0);
    loop {
        let before = appends();
        polls += 1;
        let polled = poll(broadcast.as_mut());
        most = most.max(appends() - before);
        match polled {
            Poll::Ready(reached) => break assert_eq!(reached.unwrap(), MANY),
            Poll::Pending => assert!(polls < MANY),
        }
    }
    assert!(polls > 10 && most < MANY / 4, "{polls} polls, of which one made {most} appends");
    assert_eq!(counts.0.load(Relaxed), MANY);
    drop(parked);

    // A broadcast that matches nothing visits as many channels.
    let (mut nothing, mut polls) = (Box::pin(comet.broadcast("/nowhere/{x}", "x")), 0);
    while poll(nothing.as_mut()).is_pending() {
        polls += 1;
    }
    assert!(polls > 1, "{polls}");

    let (mut half, before) = (Box::pin(comet.broadcast("/rooms/{room}", "x")), appends());
    assert!(poll(half.as_mut()).is_pending() && poll(half.as_mut()).is_pending());
    drop(half);
    let made = appends() - before;
    assert!(made > 0 && made < MANY, "{made}");
    assert_eq!(comet.broadcast("/rooms/{room}", "x").wait().unwrap(), MANY, "on this thread, to the end");
}

#[tokio::test(start_paused = true)]
async fn making_room_takes_many_polls_and_the_append_is_made_in_the_end() {
    const MANY: usize = 20_000;
    let comet = Comet::builder().max_history(MANY * 164).build();
    for n in 0..MANY {
        let draft = comet.channel(format!("/drafts/{n}"));
        draft.create(Create::new("text/plain").idle(Duration::from_secs(10)).content("x".repeat(36))).await.unwrap();
    }
    assert_eq!(comet.stats().history_bytes, MANY * 164);
    tokio::time::advance(Duration::from_secs(11)).await;
    let large = comet.channel("/large");
    large.create("text/plain").await.unwrap();
    let (mut append, mut polls, mut most) = (Box::pin(large.append("x".repeat(MANY * 150))), 0, 0);
    // An append that is too large is refused before anything is evicted.
    assert!(matches!(poll(append.as_mut()), Poll::Ready(Err(tower_comet::Error::TooLarge { .. }))));
    append = Box::pin(large.append("x".repeat(1_000_000)));
    loop {
        let before = comet.stats().channels;
        polls += 1;
        let polled = poll(append.as_mut());
        most = most.max(before - comet.stats().channels);
        match polled {
            Poll::Ready(made) => break assert!(made.is_ok(), "{made:?}"),
            Poll::Pending => assert!(polls < MANY),
        }
    }
    assert!(polls > 3 && most < MANY / 4, "{polls} polls, of which one evicted {most} channels");
    assert_eq!(large.history(), 1);
}

#[test]
fn a_line_of_deleted_forks_is_settled_over_many_polls() {
    const MANY: usize = 10_000;
    let comet = Comet::new();
    let line: Vec<_> = (0..MANY).map(|n| comet.channel(format!("/forks/{n}"))).collect();
    line[0].create("text/plain").wait().unwrap();
    for pair in line.windows(2) {
        pair[1].create(Create::fork_of(&pair[0])).wait().unwrap();
    }
    for fork in &line[..MANY - 1] {
        fork.delete().wait().unwrap();
    }
    assert_eq!(comet.stats().channels, MANY, "each is needed by the one after it");
    let (mut delete, mut polls, mut most) = (Box::pin(line[MANY - 1].delete()), 0, 0);
    loop {
        let before = comet.stats().channels;
        polls += 1;
        let polled = poll(delete.as_mut());
        most = most.max(before - comet.stats().channels);
        if polled.is_ready() {
            break;
        }
    }
    assert!(polls > 3 && most < MANY / 2, "{polls} polls, of which one took {most}");
    assert_eq!(comet.stats().channels, 0);
}

#[test]
fn a_waker_that_panics_keeps_neither_other_channels_from_closing_nor_a_wait_from_being_counted_out() {
    let comet = Comet::new();
    let (counts, panics) = (Arc::<Counts>::default(), Waker::from(Arc::new(Panics)));
    let mut parked = Vec::new();
    for n in 0..100 {
        let channel = comet.channel(format!("/rooms/{n}"));
        parked.push(park(&channel, &panics));
        parked.push(park(&channel, &Waker::from(counts.clone())));
    }
    assert!(catch_unwind(AssertUnwindSafe(|| comet.close())).is_err());
    assert_eq!(counts.0.load(Relaxed), 100);
    drop(parked);

    // Few stay of many, and those are woken by the wait that leaves.
    let comet = Comet::new();
    let news = comet.channel("/news");
    let mut parked: Vec<_> =
        (0..2_000).map(|nth| park(&news, if nth < 10 { &panics } else { Waker::noop() })).collect();
    parked.truncate(10);
    assert_eq!(comet.waiters(), 10);
    parked.clear();
    assert_eq!((comet.waiters(), news.waiters()), (0, 0));
}
