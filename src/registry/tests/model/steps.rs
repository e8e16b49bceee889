//! Random steps, and what is compared after each.

use proptest::{
    collection::vec,
    prelude::*,
    sample::Index,
    test_runner::{Config, TestRunner},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use super::{
    AGE, ALL, NAME, close, publish_to, registry, texts,
    vec::{Awaited, Channel, Found, Place},
    with_paused_clock,
};
use crate::{
    Error,
    engine::{Offset, Reading, Reason, Retention, Start},
    registry::{Creation, NEVER, ReadOrWait, Registry, Wait, WaitEnd},
};

#[derive(Clone, Debug)]
enum Step {
    /// One append of messages of these sizes.
    Publish(Vec<usize>),
    /// A read from a remembered place, and a wait from there if it finds nothing.
    Read(Index, usize),
    Poll(Index, /* its time is over */ bool),
    Drop(Index),
    Pass(u64),
    Create,
    Close,
    Delete,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => vec(0..60usize, 1..4).prop_map(Step::Publish),
        6 => (any::<Index>(), prop_oneof![Just(ALL), 0..200usize]).prop_map(|(place, limit)| Step::Read(place, limit)),
        6 => (any::<Index>(), prop::bool::weighted(0.2)).prop_map(|(wait, over)| Step::Poll(wait, over)),
        2 => any::<Index>().prop_map(Step::Drop),
        2 => (0..6_000u64).prop_map(Step::Pass),
        1 => (55_000..75_000u64).prop_map(Step::Pass),
        1 => prop_oneof![Just(Step::Create), Just(Step::Close), Just(Step::Delete)],
    ]
}

/// The channel, its model, and the clients of both.
struct World<'a> {
    registry: Arc<Registry>,
    model: Channel,
    places: BTreeMap<Place, Offset>,
    waits: Vec<Waiting>,
    messages: usize,
    came_true: &'a RefCell<BTreeSet<&'static str>>,
}

struct Waiting {
    wait: Pin<Box<Wait>>,
    place: Place,
    parked: bool,
    admitted: bool,
    rung: bool,
    bell: Arc<Bell>,
}

#[derive(Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

impl World<'_> {
    async fn take(&mut self, step: Step) {
        match step {
            Step::Publish(sizes) => self.publish(&sizes),
            Step::Read(place, limit) => self.read(place, limit),
            Step::Poll(index, over) if !self.waits.is_empty() => self.poll(index.index(self.waits.len()), over),
            Step::Drop(index) if !self.waits.is_empty() => self.drop(index.index(self.waits.len())),
            Step::Poll(..) | Step::Drop(_) => {}
            Step::Pass(millis) => tokio::time::advance(Duration::from_millis(millis)).await,
            Step::Create => self.create(),
            Step::Close => self.close(),
            Step::Delete => self.delete(),
        }
        self.compare();
    }

    fn publish(&mut self, sizes: &[usize]) {
        let texts = sizes.iter().map(|size| {
            self.messages += 1;
            format!("{}{}", self.messages, "x".repeat(*size))
        });
        let texts: Vec<_> = texts.collect();
        let bytes = serde_json::to_vec(&texts).unwrap().len();
        self.step();
        let published = publish_to(&self.registry, NAME, &texts);
        if self.model.log.as_ref().is_some_and(|log| log.closed) {
            assert!(matches!(published, Err(Error::Closed)), "{published:?}");
        } else {
            self.model.publish(texts, bytes, self.registry.now());
            self.touch();
            self.everybody_is_woken();
            self.is_tail(published.unwrap());
        }
    }

    fn read(&mut self, place: Index, limit: usize) {
        let (place, offset) = self.places.iter().nth(place.index(self.places.len())).unwrap();
        let (place, offset) = (*place, *offset);
        self.step();
        let reading = self.registry.read_local(NAME, Start::After(offset), limit.into());
        self.touch();
        let existed = self.model.log.is_some();
        match (self.model.read(place, limit), reading) {
            (Ok(expected), Ok(reading)) if expected.texts.is_empty() && !expected.closed => {
                self.came_true("a read that finds nothing");
                let wait = match self.registry.read_or_wait_local(NAME, Start::After(offset), limit.into()) {
                    Ok(ReadOrWait::Wait(wait)) => Box::pin(wait),
                    _ => panic!("it found nothing just now"),
                };
                assert_eq!((wait.after(), wait.existed()), (reading.next, existed));
                let place = expected.next;
                self.same(expected, reading);
                let bell = Arc::default();
                self.waits.push(Waiting { wait, place, parked: false, admitted: false, rung: false, bell });
            }
            (Ok(expected), Ok(reading)) => {
                self.came_true(if expected.up_to_date { "a read to the tail" } else { "a read that is cut" });
                self.same(expected, reading);
            }
            (Err(expected), Err(gone)) => {
                self.came_true(expected.as_str());
                assert_eq!((gone.reason(), gone.tail()), (expected, self.registry.tail(NAME)));
            }
            (expected, reading) => panic!("{expected:?} was expected of {place:?}, not {reading:?}"),
        }
    }

    fn poll(&mut self, index: usize, over: bool) {
        let waiting = &mut self.waits[index];
        waiting.bell.0.store(false, Relaxed);
        let waker = Waker::from(waiting.bell.clone());
        let ended =
            waiting.wait.as_mut().poll(&mut Context::from_waker(&waker), if over { 0 } else { NEVER }, ALL.into());
        let place = waiting.place;
        if let Poll::Ready(WaitEnd::Deleted) = ended {
            // It may look at what it was on, which is out of the map, or at what is there now.
            self.touched_or_not();
        } else {
            self.touch();
        }
        let expected = self.model.wait(place, over);
        let waiting = &mut self.waits[index];
        waiting.rung = false;
        match (expected, ended) {
            (Awaited::Pending, Poll::Pending) => {
                (waiting.parked, waiting.admitted) = (true, true);
                return;
            }
            (Awaited::Read(found), Poll::Ready(WaitEnd::Read(reading))) => {
                self.came_true("a wait that is answered");
                self.same(found, reading);
            }
            (Awaited::TimedOut(at), Poll::Ready(WaitEnd::TimedOut(reading))) => {
                self.came_true("a wait that times out");
                assert!(over && reading.is_empty());
                self.same_place(at, reading.next);
            }
            (Awaited::Gone(reason), Poll::Ready(WaitEnd::Gone(gone))) if gone.reason() == reason => {
                self.came_true("a wait that fell behind");
            }
            (Awaited::Deleted, Poll::Ready(WaitEnd::Deleted)) => self.came_true("a wait on what is deleted"),
            (expected, ended) => panic!("{expected:?} was expected of {place:?}, not {ended:?}"),
        }
        self.waits.swap_remove(index);
    }

    fn drop(&mut self, index: usize) {
        if self.waits.swap_remove(index).parked {
            self.touch_without_expiry();
        }
    }

    fn create(&mut self) {
        let creation = Creation { content_type: Some(self.registry.json().clone()), ..Creation::default() };
        let created = self.registry.create_local(self.registry.assert_local(), NAME, &creation);
        let now = self.registry.now();
        let (log, fresh) = self.model.make(now);
        if log.closed {
            assert!(matches!(created, Err(Error::Conflict)), "{created:?}");
            return;
        }
        log.explicit = true;
        if fresh {
            self.everybody_is_woken();
        }
        let (created, _) = created.unwrap();
        assert_eq!(created.fresh, fresh);
        self.is_tail(created.tail);
    }

    fn close(&mut self) {
        self.step();
        let tail = close(&self.registry).unwrap();
        if self.model.log.as_ref().is_none_or(|log| !log.closed) {
            self.model.close(self.registry.now());
            self.everybody_is_woken();
        }
        self.touch_without_expiry();
        self.is_tail(tail);
    }

    fn delete(&mut self) {
        self.step();
        match self.registry.delete_local(self.registry.assert_local(), NAME) {
            Ok((tail, woken)) => {
                woken.wake();
                self.is_tail(tail);
                assert!(self.model.delete());
                self.everybody_is_woken();
            }
            Err(error) => assert!(matches!(error, Error::Unknown) && self.model.log.is_none(), "{error:?}"),
        }
    }

    /// All that can be seen without touching the channel.
    fn compare(&mut self) {
        let peek = self.registry.peek_local(NAME).unwrap();
        self.model.expire(self.registry.now());
        let (history, cost) = self.model.history();
        let log = self.model.log.as_ref();
        assert_eq!(peek.as_ref().map(|peek| (peek.history, peek.closed)), log.map(|log| (history, log.closed)));
        self.is_tail(self.registry.tail(NAME));

        let usage = self.registry.usage();
        let parked = self.waits.iter().filter(|waiting| waiting.parked).count();
        let admitted = self.waits.iter().filter(|waiting| waiting.admitted).count();
        assert_eq!((usage.channels(), usage.history()), (usize::from(peek.is_some()), cost));
        assert_eq!((self.registry.waiters(NAME), usage.waits()), (parked, admitted));
        for waiting in &self.waits {
            assert_eq!(waiting.bell.0.load(Relaxed), waiting.rung, "woken, or not, on {:?}", waiting.place);
        }
        for (place, offset) in self.places.clone() {
            match (self.model.read(place, ALL), self.glance(offset)) {
                (Ok(expected), Ok(reading)) => self.same(expected, reading),
                (expected, glance) => assert_eq!(expected.err(), glance.err(), "of {place:?}"),
            }
        }
    }

    /// A read that does not count as one.
    fn glance(&self, offset: Offset) -> Result<Reading, Reason> {
        let entry = self.registry.map.find(NAME);
        let state = entry.as_ref().map(|entry| entry.lock());
        let start = match (&entry, &state) {
            (Some(entry), Some(state)) => self.registry.resolve(entry, state, Start::After(offset)),
            _ => Start::After(offset),
        };
        let reading = match state.as_ref().and_then(|state| state.log.as_ref()) {
            Some(kept) => kept.log.read(start, ALL.into()),
            None if offset == self.registry.absent_tail(NAME) => Ok(Reading::unknown(offset)),
            None => return Err(Reason::Unknown),
        };
        reading.map_err(|gone| gone.reason())
    }

    fn same(&mut self, expected: Found, reading: Reading) {
        self.same_place(expected.next, reading.next);
        let found = (reading.closed, reading.up_to_date, reading.messages);
        assert_eq!(found, (expected.closed, expected.up_to_date, expected.texts.len()));
        assert_eq!(texts(reading), expected.texts);
    }

    /// One place has one offset, and no other place has that.
    fn same_place(&mut self, place: Place, offset: Offset) {
        if *self.places.entry(place).or_insert(offset) != offset
            || self.places.iter().any(|(other, taken)| *taken == offset && *other != place)
        {
            panic!("{offset} for {place:?}, but {:?}", self.places);
        }
    }

    fn is_tail(&mut self, offset: Offset) {
        self.same_place(self.model.tail(), offset);
    }

    fn step(&mut self) {
        let waited_on = self.waits.iter().any(|waiting| waiting.parked);
        self.model.step(waited_on, self.registry.now());
    }

    fn touch(&mut self) {
        self.model.touch(self.registry.now());
    }

    fn touch_without_expiry(&mut self) {
        let now = self.registry.now();
        if let Some(log) = &mut self.model.log {
            log.touched = now;
        }
    }

    fn touched_or_not(&mut self) {
        let entry = self.registry.map.find(NAME);
        let state = entry.as_ref().map(|entry| entry.lock());
        if let (Some(kept), Some(log)) = (state.as_ref().and_then(|state| state.log.as_ref()), &mut self.model.log) {
            log.touched = kept.touched;
        }
    }

    fn everybody_is_woken(&mut self) {
        for waiting in self.waits.iter_mut().filter(|waiting| waiting.parked) {
            (waiting.parked, waiting.rung) = (false, true);
        }
    }

    fn came_true(&self, what: &'static str) {
        self.came_true.borrow_mut().insert(what);
    }

    /// Everybody leaves, and the channel is deleted.
    fn end(mut self) {
        self.waits.clear();
        if self.model.log.is_some() {
            self.registry.delete_local(self.registry.assert_local(), NAME).ok();
        }
        let usage = self.registry.usage();
        assert_eq!((usage.channels(), usage.history(), usage.waits()), (0, 0, 0));
        assert_eq!(self.registry.names().collect::<Vec<_>>(), [""; 0]);
    }
}

#[test]
fn a_channel_does_what_a_vec_would() {
    let came_true = RefCell::default();
    let mut runner = TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    let done = runner.run(&vec(step(), 1..80), |steps| {
        with_paused_clock(async {
            let retention = Retention::default().appends(4).bytes(200).age(AGE);
            let registry = registry(retention.clone());
            let places = BTreeMap::from([(Place::Origin(0), Offset::ZERO)]);
            let model = Channel::new(retention);
            let mut world = World { registry, model, places, waits: Vec::new(), messages: 0, came_true: &came_true };
            for step in steps {
                world.take(step).await;
            }
            world.end();
        });
        Ok(())
    });
    done.unwrap_or_else(|error| panic!("{error}"));
    let never: Vec<_> = EVERYTHING.into_iter().filter(|what| !came_true.borrow().contains(what)).collect();
    assert!(never.is_empty(), "never came true: {never:?}");
}

/// What the steps must have led to at least once, or they were too tame.
const EVERYTHING: [&str; 10] = [
    "a read that finds nothing",
    "a read that is cut",
    "a read to the tail",
    "a wait on what is deleted",
    "a wait that fell behind",
    "a wait that is answered",
    "a wait that times out",
    "gone",
    "other-log",
    "trimmed",
];
