//! Batches concurrent appends: one call of a script makes them, one after the other.
//!
//! A call of a script costs Redis and its client as much as an append in it. So an append that finds enough calls in
//! flight is queued until one of them returns, and is then sent together with all other queued appends.

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::Script;
use std::{
    collections::VecDeque,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tokio::{sync::oneshot, task::unconstrained};

use super::{
    Link,
    call::Call,
    said::{Said, appended},
};
use crate::{
    Error,
    engine::Appended,
    sync::{Mutex, assert_unlocked},
};

/// How many calls are under way at a time: while one runs, the next is on its way.
const CALLS: usize = 6;

/// How many appends go together, and how many bytes of them: Redis does nothing else meanwhile.
const MOST: usize = 32;
const MOST_BYTES: usize = 256 * 1024;

/// One append, as the script wants it.
pub(super) struct Wish {
    pub(super) keys: [String; 2],
    pub(super) topic: String,
    pub(super) data: Bytes,
    /// All else.
    pub(super) terms: Vec<u8>,
}

type Outcome = oneshot::Sender<Result<Appended, Error>>;

pub(super) struct Together {
    link: Arc<Link>,
    script: Script,
    waiting: Mutex<Waiting>,
}

/// Appends that have not been sent yet.
#[derive(Default)]
struct Waiting {
    queue: VecDeque<(Wish, Outcome)>,
    /// Whether an append that was sent alone is in flight.
    alone: bool,
    /// Whether a [`Sender`] runs.
    sending: bool,
    /// The waker of the [`Sender`], while it has nothing to send.
    sender: Option<Waker>,
}

impl Together {
    pub(super) fn new(link: Arc<Link>, script: Script) -> Self {
        Self { link, script, waiting: Mutex::default() }
    }

    /// Appends, together with others or alone. One that is dropped before it was sent is not made.
    pub(super) async fn append(self: &Arc<Self>, wish: Wish) -> Result<Appended, Error> {
        match self.enter(wish) {
            Turn::Alone(wish, _alone) => self.send(self.call([&wish].into_iter())).await?.next().and_then(appended),
            // No outcome: the runtime was shut down, and whether the append was made is not known.
            Turn::Together(made) => made.await.unwrap_or(Err(Error::Uncertain)),
        }
    }

    fn enter(self: &Arc<Self>, wish: Wish) -> Turn {
        let mut waiting = self.waiting.lock();
        if !waiting.alone && !waiting.sending {
            // Nothing is in flight, so the append needs no task.
            waiting.alone = true;
            return Turn::Alone(wish, Alone(self.clone()));
        }
        let (outcome, made) = oneshot::channel();
        waiting.queue.push_back((wish, outcome));
        let (begins, sender) = (!mem::replace(&mut waiting.sending, true), waiting.sender.take());
        drop(waiting);
        assert_unlocked();
        if begins {
            self.link.runtime().spawn(Sender { together: self.clone(), calls: FuturesUnordered::new(), left: false });
        } else if let Some(sender) = sender {
            sender.wake();
        }
        Turn::Together(made)
    }

    /// Takes the next appends from the queue, as many as one call may carry.
    fn take(&self) -> Vec<(Wish, Outcome)> {
        // Dropped after the lock is released: the drop of either half of the pair may run foreign code.
        let mut cancelled = Vec::new();
        let mut waiting = self.waiting.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some((wish, outcome)) = waiting.queue.pop_front() {
            if outcome.is_closed() {
                cancelled.push((wish, outcome));
                continue;
            }
            bytes += wish.data.len();
            if !taken.is_empty() && bytes > MOST_BYTES {
                waiting.queue.push_front((wish, outcome));
                break;
            }
            taken.push((wish, outcome));
            if taken.len() == MOST {
                break;
            }
        }
        taken
    }

    fn call<'a>(&self, wishes: impl ExactSizeIterator<Item = &'a Wish> + Clone) -> Call<'_> {
        let mut call = Call::new(&self.script, 2 * wishes.len(), wishes.clone().flat_map(|wish| &wish.keys));
        for Wish { topic, data, terms, .. } in wishes {
            call.arg(topic).arg(&data[..]).arg(&terms[..]);
        }
        call
    }

    /// It is on its way when it was polled once.
    async fn send(&self, call: Call<'_>) -> Result<Said, Error> {
        // Otherwise not, if the task has done much before.
        Said::new(unconstrained(self.link.write(&call)).await?)
    }
}

/// How an append goes.
enum Turn {
    Alone(Wish, Alone),
    Together(oneshot::Receiver<Result<Appended, Error>>),
}

/// An append that was sent alone and is in flight, until this is dropped.
struct Alone(Arc<Together>);

impl Drop for Alone {
    fn drop(&mut self) {
        self.0.waiting.lock().alone = false;
    }
}

type Sending = Pin<Box<dyn Future<Output = (Vec<Outcome>, Result<Said, Error>)> + Send>>;

/// The task that sends queued appends, until the queue is empty and all calls have returned. There is at most one, so
/// that appends are sent in the order of the queue: two appends that one task has started one after the other are made
/// in that order.
struct Sender {
    together: Arc<Together>,
    calls: FuturesUnordered<Sending>,
    left: bool,
}

impl Future for Sender {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        assert_unlocked();
        let this = &mut *self;
        loop {
            while let Poll::Ready(Some((outcomes, said))) = this.calls.poll_next_unpin(cx) {
                report(outcomes, said);
            }
            let sent = this.send_next(cx);
            if sent == 0 && this.has_nothing_to_send(cx) {
                return if this.left { Poll::Ready(()) } else { Poll::Pending };
            }
        }
    }
}

impl Sender {
    /// Sends calls until [`CALLS`] are in flight or the queue is empty. Returns how many it has sent.
    fn send_next(&mut self, cx: &mut Context<'_>) -> usize {
        let mut sent = 0;
        while self.calls.len() < CALLS {
            let taken = self.together.take();
            if taken.is_empty() {
                break;
            }
            sent += 1;
            let (wishes, outcomes): (Vec<_>, Vec<_>) = taken.into_iter().unzip();
            let together = self.together.clone();
            let mut call: Sending =
                Box::pin(async move { (outcomes, together.send(together.call(wishes.iter())).await) });
            // The first poll sends this call, before the appends of the next one are taken.
            match call.as_mut().poll(cx) {
                Poll::Ready((outcomes, said)) => report(outcomes, said),
                Poll::Pending => self.calls.push(call),
            }
        }
        sent
    }

    /// Returns `false` if there is something to send. Otherwise registers the waker for new appends, or ends the task
    /// if no call is in flight.
    fn has_nothing_to_send(&mut self, cx: &Context<'_>) -> bool {
        let sender = cx.waker().clone();
        // Declared before the lock is taken, so dropped after it is released.
        let _replaced;
        let mut waiting = self.together.waiting.lock();
        if self.calls.len() < CALLS && !waiting.queue.is_empty() {
            return false;
        }
        self.left = self.calls.is_empty();
        waiting.sending = !self.left;
        _replaced = if self.left { waiting.sender.take() } else { waiting.sender.replace(sender) };
        true
    }
}

/// Sends the results of a call to its appends. Those of dropped appends are discarded.
fn report(outcomes: Vec<Outcome>, mut said: Result<Said, Error>) {
    for outcome in outcomes {
        let _ = outcome.send(match &mut said {
            Ok(said) => said.next().and_then(appended),
            Err(Error::Full(limit)) => Err(Error::Full(*limit)),
            Err(Error::Uncertain) => Err(Error::Uncertain),
            Err(_) => Err(Error::Unreachable),
        });
    }
}

impl Drop for Sender {
    /// If the task is dropped with its runtime, the queued appends are not sent, and their futures resolve to
    /// [`Error::Uncertain`].
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let mut waiting = self.together.waiting.lock();
        waiting.sending = false;
        let unsent = (mem::take(&mut waiting.queue), waiting.sender.take());
        drop(waiting);
        drop(unsent);
    }
}
