//! Batches concurrent appends: one call of a script makes them, one after the other.
//!
//! A call of a script costs Redis and its client as much as an append in it. So an append that finds enough calls in
//! flight is queued until one of them returns, and is then sent together with all other queued appends.
//!
//! The appends of a channel are made in the order in which they were started. Therefore at most one call in flight has
//! appends of a channel: its later appends are parked until that call has returned. Of two calls in flight, the later one may
//! run first: if Redis has lost the script, it refuses the earlier call, and another node may load the script before the later
//! one arrives; or the connection is replaced between the two.

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    sync::oneshot,
    task::unconstrained,
    time::{Sleep, sleep},
};

use super::{
    Link,
    call::Call,
    link::Kind,
    said::{Said, appended},
    scripts::Script,
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

/// How long the appends of a channel are parked behind one that was sent alone. That one returns only when the application
/// polls its future, and must not stop others for longer.
const PATIENCE: Duration = Duration::from_millis(100);

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

/// Appends that have not been sent yet, and the channels of those that have.
#[derive(Default)]
struct Waiting {
    /// In the order in which they were started.
    queue: VecDeque<(Wish, Outcome)>,
    /// The channels that a call in flight appends to, or that are ready, by their first key.
    busy: HashMap<String, Busy>,
    /// The channels with parked appends and no call in flight.
    ready: VecDeque<String>,
    /// How many calls were sent, which numbers them.
    calls: u64,
    /// Whether an append that was sent alone is in flight.
    alone: bool,
    /// The number and the channel of the append that was sent alone, while others must not overtake it.
    held: Option<(u64, String)>,
    /// Whether a [`Sender`] runs.
    sending: bool,
    /// The waker of the [`Sender`], while it has nothing to send.
    sender: Option<Waker>,
}

/// A channel that a call in flight appends to, or that is ready.
struct Busy {
    /// The number of the call; [`READY`] if there is none.
    call: u64,
    /// The channel's later appends, older than any in the queue.
    parked: VecDeque<(Wish, Outcome)>,
}

/// No call has this number.
const READY: u64 = 0;

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
            waiting.hold(&wish.keys[0]);
            return Turn::Alone(wish, Alone(self.clone()));
        }
        let (outcome, made) = oneshot::channel();
        waiting.queue.push_back((wish, outcome));
        let (begins, sender) = (!mem::replace(&mut waiting.sending, true), waiting.sender.take());
        drop(waiting);
        assert_unlocked();
        if begins {
            self.link.runtime().spawn(Sender::new(self.clone()));
        } else if let Some(sender) = sender {
            sender.wake();
        }
        Turn::Together(made)
    }

    /// Takes the next appends, as many as one call may carry. Parks those whose channel has a call in flight.
    fn take(&self) -> Option<Batch> {
        // Dropped after the lock is released: the drop of either half of the pair may run foreign code.
        let mut cancelled = Vec::new();
        self.waiting.lock().take(&mut cancelled)
    }

    fn call<'a>(&self, wishes: impl ExactSizeIterator<Item = &'a Wish> + Clone) -> Call<'_> {
        let mut call = Call::new(&self.script, 2 * wishes.len(), wishes.clone().flat_map(|wish| &wish.keys));
        for Wish { topic, data, terms, .. } in wishes {
            call.arg(topic).arg(&data[..]).arg(&terms[..]);
        }
        call
    }

    /// Sends a call. The first poll sends it.
    async fn send(&self, call: Call<'_>) -> Result<Said, Error> {
        // Unconstrained, because otherwise the first poll does not send it if the task has used up its budget.
        Said::new(unconstrained(self.link.write(&call)).await?, Kind::Write)
    }
}

/// The appends of one call, and where their results are sent.
#[derive(Default)]
struct Batch {
    number: u64,
    wishes: Vec<Wish>,
    outcomes: Vec<Outcome>,
    bytes: usize,
    full: bool,
}

impl Batch {
    /// Adds an append. Returns it if there is no room.
    fn add(&mut self, (wish, outcome): (Wish, Outcome)) -> Option<(Wish, Outcome)> {
        self.bytes += wish.data.len();
        if !self.wishes.is_empty() && self.bytes > MOST_BYTES {
            self.full = true;
            return Some((wish, outcome));
        }
        self.wishes.push(wish);
        self.outcomes.push(outcome);
        self.full = self.wishes.len() == MOST;
        None
    }
}

impl Waiting {
    /// Begins the call of an append that is sent alone.
    fn hold(&mut self, channel: &str) {
        self.calls += 1;
        self.alone = true;
        self.busy.insert(channel.to_owned(), Busy { call: self.calls, parked: VecDeque::new() });
        self.held = Some((self.calls, channel.to_owned()));
    }

    /// Begins the call of the next appends.
    fn take(&mut self, cancelled: &mut Vec<(Wish, Outcome)>) -> Option<Batch> {
        self.calls += 1;
        let mut batch = Batch { number: self.calls, ..Batch::default() };
        // Ready channels first: their parked appends are older than the queued ones of the same channel.
        while !batch.full {
            let Some(channel) = self.ready.pop_front() else { break };
            let Some(busy) = self.busy.get_mut(&channel) else { continue };
            while !batch.full {
                let Some(append) = busy.parked.pop_front() else { break };
                if append.1.is_closed() {
                    cancelled.push(append);
                    continue;
                }
                match batch.add(append) {
                    None => busy.call = batch.number,
                    Some(append) => busy.parked.push_front(append),
                }
            }
            if busy.call == READY {
                if busy.parked.is_empty() {
                    self.busy.remove(&channel);
                } else {
                    self.ready.push_front(channel);
                }
            }
        }
        while !batch.full {
            let Some(append) = self.queue.pop_front() else { break };
            if append.1.is_closed() {
                cancelled.push(append);
                continue;
            }
            let busy = self.busy.get_mut(&append.0.keys[0]);
            let begins = busy.is_none();
            if let Some(busy) = busy.filter(|busy| busy.call != batch.number) {
                busy.parked.push_back(append);
                continue;
            }
            match batch.add(append) {
                None if begins => {
                    let channel = batch.wishes.last().map_or_else(String::new, |wish| wish.keys[0].clone());
                    self.busy.insert(channel, Busy { call: batch.number, parked: VecDeque::new() });
                }
                None => {}
                Some(append) => self.queue.push_front(append),
            }
        }
        if batch.wishes.is_empty() { None } else { Some(batch) }
    }

    /// Ends the call of this number for a channel: its parked appends may be sent.
    fn release(&mut self, number: u64, channel: &str) {
        let Some(busy) = self.busy.get_mut(channel).filter(|busy| busy.call == number) else { return };
        if busy.parked.is_empty() {
            self.busy.remove(channel);
        } else {
            busy.call = READY;
            self.ready.push_back(channel.to_owned());
        }
    }

    /// Ends the call of the append that was sent alone. Returns whether parked appends may be sent now.
    fn release_held(&mut self) -> bool {
        let Some((number, channel)) = self.held.take() else { return false };
        self.release(number, &channel);
        !self.ready.is_empty()
    }

    /// Whether appends are parked behind the one that was sent alone.
    fn is_held(&self) -> bool {
        let held = self.held.as_ref().and_then(|(_, channel)| self.busy.get(channel));
        held.is_some_and(|busy| !busy.parked.is_empty())
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
        let mut waiting = self.0.waiting.lock();
        waiting.alone = false;
        let sender = if waiting.release_held() { waiting.sender.take() } else { None };
        drop(waiting);
        assert_unlocked();
        if let Some(sender) = sender {
            sender.wake();
        }
    }
}

type Sending = Pin<Box<dyn Future<Output = (Batch, Result<Said, Error>)> + Send>>;

/// The task that sends queued appends, until the queue is empty and all calls have returned. There is at most one, so
/// that appends are sent in the order of the queue.
struct Sender {
    together: Arc<Together>,
    calls: FuturesUnordered<Sending>,
    /// Ends the time for which appends are parked behind one that was sent alone.
    patience: Option<Pin<Box<Sleep>>>,
    left: bool,
}

impl Future for Sender {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        assert_unlocked();
        let this = &mut *self;
        loop {
            while let Poll::Ready(Some(returned)) = this.calls.poll_next_unpin(cx) {
                this.settle(returned);
            }
            let sent = this.send_next(cx);
            if sent == 0 && !this.overtakes(cx) && this.has_nothing_to_send(cx) {
                return if this.left { Poll::Ready(()) } else { Poll::Pending };
            }
        }
    }
}

impl Sender {
    fn new(together: Arc<Together>) -> Self {
        Self { together, calls: FuturesUnordered::new(), patience: None, left: false }
    }

    /// Sends calls until [`CALLS`] are in flight or no append may be sent. Returns how many it has sent.
    fn send_next(&mut self, cx: &mut Context<'_>) -> usize {
        let mut sent = 0;
        while self.calls.len() < CALLS {
            let Some(batch) = self.together.take() else { break };
            sent += 1;
            let together = self.together.clone();
            let mut call: Sending = Box::pin(async move {
                let said = together.send(together.call(batch.wishes.iter())).await;
                (batch, said)
            });
            // The first poll sends this call, before the appends of the next one are taken.
            match call.as_mut().poll(cx) {
                Poll::Ready(returned) => self.settle(returned),
                Poll::Pending => self.calls.push(call),
            }
        }
        sent
    }

    fn settle(&self, (batch, said): (Batch, Result<Said, Error>)) {
        let mut waiting = self.together.waiting.lock();
        for wish in &batch.wishes {
            waiting.release(batch.number, &wish.keys[0]);
        }
        drop(waiting);
        report(batch.outcomes, said);
    }

    /// Whether the appends that are parked behind one that was sent alone may be sent, because it has not returned for
    /// [`PATIENCE`].
    fn overtakes(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.together.waiting.lock().is_held() {
            self.patience = None;
            return false;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        if patience.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.patience = None;
        self.together.waiting.lock().release_held()
    }

    /// Returns `false` if there is something to send. Otherwise registers the waker for new appends, or ends the task
    /// if no call is in flight and no append is parked.
    fn has_nothing_to_send(&mut self, cx: &Context<'_>) -> bool {
        let sender = cx.waker().clone();
        // Declared before the lock is taken, so dropped after it is released.
        let _replaced;
        let mut waiting = self.together.waiting.lock();
        if self.calls.len() < CALLS && !(waiting.queue.is_empty() && waiting.ready.is_empty()) {
            return false;
        }
        self.left = self.calls.is_empty() && !waiting.is_held();
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
            Err(Error::Engine(source)) => Err(Error::Engine(source.to_string().into())),
            Err(Error::Unreachable) => Err(Error::Unreachable),
            Err(_) => Err(Error::Uncertain),
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
        waiting.held = None;
        waiting.ready.clear();
        let unsent = (mem::take(&mut waiting.queue), mem::take(&mut waiting.busy), waiting.sender.take());
        drop(waiting);
        drop(unsent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends to channels, each named by a letter, of so many bytes.
    fn queue(waiting: &mut Waiting, channels: &str, bytes: usize) -> Vec<oneshot::Receiver<Result<Appended, Error>>> {
        let append = |channel: char| {
            let (outcome, made) = oneshot::channel();
            let data = Bytes::from(vec![0; bytes]);
            let wish = Wish { keys: [channel.into(), String::new()], topic: String::new(), data, terms: Vec::new() };
            waiting.queue.push_back((wish, outcome));
            made
        };
        channels.chars().map(append).collect()
    }

    fn take(waiting: &mut Waiting) -> Option<(u64, String)> {
        let batch = waiting.take(&mut Vec::new())?;
        Some((batch.number, batch.wishes.iter().map(|wish| &*wish.keys[0]).collect()))
    }

    fn release(waiting: &mut Waiting, (number, channels): (u64, String)) {
        for channel in channels.chars() {
            waiting.release(number, &channel.to_string());
        }
    }

    #[test]
    fn a_channel_has_at_most_one_call_in_flight_and_its_appends_keep_their_order() {
        let mut waiting = Waiting::default();
        let mut made = queue(&mut waiting, "aab", 1);
        let first = take(&mut waiting).expect("a batch");
        assert_eq!(first.1, "aab");
        made.extend(queue(&mut waiting, "acaba", 1));
        let second = take(&mut waiting).expect("a batch");
        assert_eq!(second.1, "c");
        assert!(take(&mut waiting).is_none(), "the others are parked");
        release(&mut waiting, second);
        assert!(take(&mut waiting).is_none());
        // A later append of a channel does not pass its parked ones.
        made.extend(queue(&mut waiting, "ca", 1));
        release(&mut waiting, first);
        let third = take(&mut waiting).expect("a batch");
        assert_eq!(third.1, "aaabca");
        assert!(take(&mut waiting).is_none());
        release(&mut waiting, third);
        assert!(waiting.busy.is_empty() && waiting.ready.is_empty());
    }

    #[test]
    fn what_a_call_has_no_room_for_stays_first() {
        let mut waiting = Waiting::default();
        let mut made = queue(&mut waiting, "a", 1);
        let first = take(&mut waiting).expect("a batch");
        made.extend(queue(&mut waiting, &"a".repeat(MOST + 1), 1));
        made.extend(queue(&mut waiting, "b", MOST_BYTES));
        let second = take(&mut waiting).expect("a batch");
        assert_eq!(second.1, "b");
        release(&mut waiting, first);
        let third = take(&mut waiting).expect("a batch");
        assert_eq!(third.1.len(), MOST);
        assert!(take(&mut waiting).is_none(), "the last of them is parked behind these");
        made.extend(queue(&mut waiting, "c", MOST_BYTES));
        release(&mut waiting, third);
        assert_eq!(take(&mut waiting).expect("a batch").1, "a", "with the next there would be too many bytes");
        assert_eq!(take(&mut waiting).expect("a batch").1, "c");
    }

    #[test]
    fn a_channel_whose_parked_appends_were_all_dropped_is_not_busy() {
        let mut waiting = Waiting::default();
        let _made = queue(&mut waiting, "a", 1);
        let first = take(&mut waiting).expect("a batch");
        let dropped = queue(&mut waiting, "aa", 1);
        assert!(take(&mut waiting).is_none());
        drop(dropped);
        release(&mut waiting, first);
        assert!(take(&mut waiting).is_none());
        assert!(waiting.busy.is_empty() && waiting.ready.is_empty());
    }

    #[test]
    fn an_append_that_was_sent_alone_holds_its_channel_until_it_is_released() {
        let mut waiting = Waiting::default();
        waiting.hold("a");
        let _made = queue(&mut waiting, "ab", 1);
        assert!(!waiting.is_held());
        assert_eq!(take(&mut waiting).expect("a batch").1, "b");
        assert!(waiting.is_held());
        assert!(waiting.release_held() && !waiting.is_held());
        let next = take(&mut waiting).expect("a batch");
        assert_eq!(next.1, "a");
        // It returns later, and does not release the call that has overtaken it.
        assert!(!waiting.release_held());
        assert!(waiting.busy.contains_key("a"));
    }
}
