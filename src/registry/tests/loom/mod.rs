//! The races of the registry, in every order that their threads can take: `RUSTFLAGS="--cfg comet_loom"`.
//!
//! A model returns what came of one execution in a word, and [`outcomes`] collects the words of all of them. A test names
//! exactly what may come of a race: a word too many is a fault of the registry, a word too few a race that
//! never happened. Nothing blocks in here: a task that is not woken is found [`ASLEEP`] when all threads are done.
//!
//! Each model can also be run with one step done wrong. That must lose something, or the model could not see a loss.

mod absent;
mod append;
mod closing;
mod drained;
mod forks;
mod leaving;
mod list;
mod slices;

use ::loom::model::Builder;
use std::{
    collections::BTreeSet,
    future::Future,
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use crate::registry::{Append, Limits, NEVER, ReadOrWait, Registry, Wait, WaitEnd, Walk};
use crate::{
    engine::{Batch, Offset, Retention, Start},
    sync::Mutex,
};

const NAME: &str = "/events/news";

/// As much as there is.
const ALL: crate::engine::Extent = crate::engine::Extent { bytes: usize::MAX, whole_characters: false };

/// Parked, and nobody will wake it.
const ASLEEP: &str = "asleep";

/// What came of a model, over all orders of its threads.
fn outcomes(model: impl Fn() -> &'static str + Send + Sync + 'static) -> Vec<&'static str> {
    let seen = Arc::new(std::sync::Mutex::new(BTreeSet::new()));
    Builder::new().check({
        let seen = seen.clone();
        move || {
            let outcome = model();
            seen.lock().unwrap().insert(outcome);
        }
    });
    let seen = seen.lock().unwrap();
    seen.iter().copied().collect()
}

/// A task with the part of an executor that matters: it is polled again when it was woken.
struct Task<F> {
    poll: F,
    polls: usize,
    bell: Arc<Bell>,
}

struct Bell {
    // Not an atomic: loom lets a swap and a store that race end in either order, and a ring would be lost in here.
    rung: Mutex<bool>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        *self.rung.lock() = true;
    }
}

impl<T, F: FnMut(&mut Context<'_>) -> Poll<T>> Task<F> {
    fn new(poll: F) -> Self {
        Self { poll, polls: 0, bell: Arc::new(Bell { rung: Mutex::new(false) }) }
    }

    /// Polls until it is ready or asleep.
    fn run(&mut self) -> Poll<T> {
        let waker = self.waker();
        loop {
            self.polls += 1;
            if let Poll::Ready(done) = (self.poll)(&mut Context::from_waker(&waker)) {
                return Poll::Ready(done);
            }
            if !self.was_woken() {
                return Poll::Pending;
            }
        }
    }

    /// Goes on if it was woken since.
    fn resume(&mut self, before: Poll<T>) -> Poll<T> {
        match before {
            Poll::Pending if self.was_woken() => self.run(),
            settled => settled,
        }
    }

    fn waker(&self) -> Waker {
        self.bell.clone().into()
    }

    fn was_woken(&self) -> bool {
        mem::take(&mut self.bell.rung.lock())
    }
}

fn registry() -> Arc<Registry> {
    Arc::new(Registry::new(Limits::default(), Retention::unbounded()))
}

/// With a message in the channel already.
fn registry_with_history() -> Arc<Registry> {
    let registry = registry();
    publish(&registry);
    registry
}

fn publish(registry: &Registry) -> Offset {
    publish_to(registry, NAME)
}

fn publish_to(registry: &Registry, name: &str) -> Offset {
    let batch = Batch::value("news").unwrap();
    let mut append = Append { batch: Some(batch), create: Some(registry.json()), ..Append::default() };
    let (appended, woken) = registry.append_local(registry.assert_local(), name, &mut append).unwrap();
    woken.wake();
    appended.tail
}

/// Ends up to `most` waits, and returns their number.
fn release(registry: &Registry, most: usize) -> usize {
    let mut walk = Walk::default();
    let mut released = pin!(registry.release(&mut walk, most));
    loop {
        if let Poll::Ready(released) = released.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return released;
        }
    }
}

/// A wait for what comes next.
fn wait(registry: &Arc<Registry>) -> Pin<Box<Wait>> {
    match registry.read_or_wait_local(NAME, Start::Tail, ALL) {
        Ok(ReadOrWait::Wait(wait)) => Box::pin(wait),
        _ => panic!("there is nothing after the tail"),
    }
}

/// Begins a wait as an event stream does: it is admitted before it is polled.
fn admitted_wait(registry: &Arc<Registry>) -> Pin<Box<Wait>> {
    let mut wait = Wait::new(registry.clone(), NAME, registry.tail(NAME), false);
    wait.admit().unwrap();
    Box::pin(wait)
}

/// The same, as a task.
fn waiting(registry: &Arc<Registry>) -> Task<impl FnMut(&mut Context<'_>) -> Poll<WaitEnd> + Send + use<>> {
    let mut wait = wait(registry);
    Task::new(move |cx| wait.as_mut().poll(cx, NEVER, ALL))
}

fn messages_after(registry: &Registry, offset: Offset) -> usize {
    registry.read_local(NAME, Start::After(offset), ALL).unwrap().messages
}
