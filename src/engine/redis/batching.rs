//! Batches concurrent appends: one call of a script makes them, one after the other.
//!
//! A call of a script costs Redis and its client as much as an append in it. So an append that finds enough calls in
//! flight is queued until one of them returns, and is then sent together with all other queued appends.
//!
//! The appends of a channel are made in the order in which they were started. Therefore at most one call in flight has
//! appends of a channel: its later appends are parked until that call has returned. Of two calls in flight, the later one may
//! run first: if Redis has lost the script, it refuses the earlier call, and another node may load the script before the later
//! one arrives; or the connection is replaced between the two.

use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::Value;
use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::oneshot,
    task::unconstrained,
    time::{Sleep, sleep},
};

use super::{
    Connection, Keys,
    connection::Kind,
    errors::shared,
    index::Index,
    queue::{AppendBatch, AppendQueue, EXAMINED, QueuedAppend},
    reply::{Reply, appended, is_unindexed, strange},
    script_call::ScriptCall,
    scripts::Script,
};
use crate::{
    Error,
    engine::Appended,
    sync::{Mutex, assert_unlocked},
};

/// How many calls are under way at a time: while one runs, the next is on its way.
const CALLS: usize = 6;

/// How long the appends of a channel are parked behind one that was sent alone. That one returns only when the application
/// polls its future, and must not stop others for longer.
const PATIENCE: Duration = Duration::from_millis(500);

pub(super) struct AppendBatcher {
    connection: Arc<Connection>,
    script: Script,
    index: Arc<Index>,
    keys: Arc<Keys>,
    waiting: Mutex<AppendQueue>,
}

impl AppendBatcher {
    pub(super) fn new(connection: Arc<Connection>, script: Script, index: Arc<Index>, keys: Arc<Keys>) -> Self {
        Self { connection, script, index, keys, waiting: Mutex::default() }
    }

    /// Appends, together with others or alone. One that is dropped before it was sent is not made.
    pub(super) async fn append(self: &Arc<Self>, wish: QueuedAppend) -> Result<Appended, Error> {
        match self.enter(wish) {
            Turn::Alone(wish, alone) => {
                let said = self.send([&wish].into_iter(), None).await?.pop();
                match said {
                    Some(said) if is_unindexed(&said) => self.make_in_background(wish, alone).await,
                    said => said.map_or_else(|| Err(strange(Kind::Write)), appended),
                }
            }
            // No outcome: the runtime was shut down, and whether the append was made is not known.
            Turn::Together(made) => made.await.unwrap_or(Err(Error::Uncertain)),
        }
    }

    fn enter(self: &Arc<Self>, wish: QueuedAppend) -> Turn {
        let mut waiting = self.waiting.lock();
        if !waiting.alone && !waiting.sending {
            // Nothing is in flight, so the append needs no task.
            waiting.hold(&wish.keys[0]);
            return Turn::Alone(wish, Alone { batcher: self.clone(), holds: None });
        }
        let (outcome, made) = oneshot::channel();
        waiting.queue.push_back((wish, outcome));
        let (begins, sender) = (!mem::replace(&mut waiting.sending, true), waiting.sender.take());
        drop(waiting);
        assert_unlocked();
        if begins {
            self.connection.runtime().spawn(Sender::new(self.clone()));
        } else if let Some(sender) = sender {
            sender.wake();
        }
        Turn::Together(made)
    }

    /// Takes the next appends, as many as one call may carry. Parks those whose channel has a call in flight. Examines at most
    /// `left` appends.
    fn take(&self, left: &mut usize) -> Option<AppendBatch> {
        // Dropped after the lock is released: the drop of either half of the pair may run foreign code.
        let mut cancelled = Vec::new();
        self.waiting.lock().take(left, &mut cancelled)
    }

    /// Makes an append that was sent alone, and was answered that its channel does not exist and is not registered. It takes two more
    /// round trips, for which a task polls it: later appends of the channel must not overtake it.
    async fn make_in_background(self: &Arc<Self>, wish: QueuedAppend, mut alone: Alone) -> Result<Appended, Error> {
        alone.hold_on();
        let (outcome, result) = oneshot::channel();
        let batcher = self.clone();
        self.connection.runtime().spawn(async move {
            let (wishes, mut made) = ([wish], [Err(Error::Unreachable)]);
            let again = Again { channels: vec![&*wishes[0].keys[0]], appends: vec![(0, 0)] };
            batcher.make_again(&wishes, again, &mut made).await;
            drop(alone);
            let [made] = made;
            let _ = outcome.send(made);
        });
        result.await.unwrap_or(Err(Error::Uncertain))
    }

    /// Makes appends with one call. Those that would create a channel are made with a second call, once the names of the channels
    /// are registered in the [index](super::index). Returns the result of each. The first poll sends the first call.
    pub(super) async fn make(&self, wishes: &[QueuedAppend]) -> Vec<Result<Appended, Error>> {
        let said = match self.send(wishes.iter(), None).await {
            Ok(said) => said,
            Err(error) => return wishes.iter().map(|_| Err(shared(&error))).collect(),
        };
        let again = Again::of(wishes, &said);
        let mut made: Vec<_> = said.into_iter().map(appended).collect();
        made.resize_with(wishes.len(), || Err(strange(Kind::Write)));
        if !again.appends.is_empty() {
            self.make_again(wishes, again, &mut made).await;
        }
        made
    }

    async fn make_again(&self, wishes: &[QueuedAppend], again: Again<'_>, made: &mut [Result<Appended, Error>]) {
        let names: Vec<_> = again.channels.iter().map(|key| self.keys.name_of(key).unwrap_or_default()).collect();
        let registered = self.index.register(&names).await;
        let (mut appends, mut oldest) = (Vec::new(), u64::MAX);
        for (nth, channel) in again.appends {
            match &registered[channel] {
                Ok(time) => {
                    oldest = oldest.min(*time);
                    appends.push(nth);
                }
                Err(error) => made[nth] = Err(shared(error)),
            }
        }
        if appends.is_empty() {
            return;
        }
        let said = self.send(appends.iter().map(|nth| &wishes[*nth]), Some(oldest)).await;
        let mut said = said.map(Vec::into_iter);
        for nth in appends {
            made[nth] = match &mut said {
                Ok(said) => said.next().map_or_else(|| Err(strange(Kind::Write)), appended),
                Err(error) => Err(shared(error)),
            };
        }
    }

    /// Sends a call with these appends. `registered` is when the names of their channels were registered. The first poll sends it.
    async fn send<'a>(
        &self,
        wishes: impl ExactSizeIterator<Item = &'a QueuedAppend> + Clone,
        registered: Option<u64>,
    ) -> Result<Vec<Value>, Error> {
        let mut call = ScriptCall::new(&self.script, 2 * wishes.len(), wishes.clone().flat_map(|wish| &wish.keys));
        for QueuedAppend { topic, data, terms, .. } in wishes {
            call.arg(topic).arg(&data[..]).arg(&terms[..]);
        }
        if let Some(time) = registered {
            call.arg(time);
        }
        // Unconstrained, because otherwise the first poll does not send it if the task has used up its budget.
        Ok(Reply::new(unconstrained(self.connection.write(&call)).await?, Kind::Write)?.items().collect())
    }
}

/// The appends of a call that are to be made again, because their channels did not exist and were not registered in the index.
struct Again<'a> {
    channels: Vec<&'a str>,
    /// Each by its number in the call, with the number of its channel. They include the later appends of the same channels,
    /// which would have found the channel.
    appends: Vec<(usize, usize)>,
}

impl<'a> Again<'a> {
    fn of(wishes: &'a [QueuedAppend], said: &[Value]) -> Self {
        let mut again = Self { channels: Vec::new(), appends: Vec::new() };
        if !said.iter().any(is_unindexed) {
            return again;
        }
        for (nth, (wish, said)) in wishes.iter().zip(said).enumerate() {
            let key = &*wish.keys[0];
            let known = again.channels.iter().position(|channel| *channel == key);
            let channel = known.or_else(|| {
                is_unindexed(said).then(|| {
                    again.channels.push(key);
                    again.channels.len() - 1
                })
            });
            if let Some(channel) = channel {
                again.appends.push((nth, channel));
            }
        }
        again
    }
}

/// How an append goes.
enum Turn {
    Alone(QueuedAppend, Alone),
    Together(oneshot::Receiver<Result<Appended, Error>>),
}

/// An append that was sent alone and is in flight, until this is dropped.
struct Alone {
    batcher: Arc<AppendBatcher>,
    /// The number and the channel of its call, if no append may overtake it, however long it takes.
    holds: Option<(u64, String)>,
}

impl Alone {
    /// Does not let other appends overtake this one any more. The caller ensures that it is polled.
    fn hold_on(&mut self) {
        self.holds = self.batcher.waiting.lock().held.take();
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let mut waiting = self.batcher.waiting.lock();
        waiting.alone = false;
        let released = match self.holds.take() {
            Some((number, channel)) => {
                waiting.release(number, &channel);
                !waiting.ready.is_empty()
            }
            None => waiting.release_held(),
        };
        // No task may be there if all other appends have returned.
        let begins = released && !waiting.sending;
        waiting.sending |= released;
        let sender = if released { waiting.sender.take() } else { None };
        drop(waiting);
        assert_unlocked();
        if begins {
            self.batcher.connection.runtime().spawn(Sender::new(self.batcher.clone()));
        } else if let Some(sender) = sender {
            sender.wake();
        }
    }
}

type Sending = Pin<Box<dyn Future<Output = (AppendBatch, Vec<Result<Appended, Error>>)> + Send>>;

/// The task that sends queued appends, until the queue is empty and all calls have returned. There is at most one, so
/// that appends are sent in the order of the queue.
pub(super) struct Sender {
    batcher: Arc<AppendBatcher>,
    calls: FuturesUnordered<Sending>,
    /// Ends the time for which appends are parked behind one that was sent alone.
    patience: Option<Pin<Box<Sleep>>>,
    left: bool,
}

impl Future for Sender {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        assert_unlocked();
        let (this, mut left) = (&mut *self, EXAMINED);
        loop {
            while let Poll::Ready(Some(returned)) = this.calls.poll_next_unpin(cx) {
                this.settle(returned);
            }
            let sent = this.send_next(&mut left, cx);
            if left == 0 {
                // Other tasks, and threads that wait for the lock, go first.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if sent == 0 && !this.overtakes(cx) && this.has_nothing_to_send(cx) {
                return if this.left { Poll::Ready(()) } else { Poll::Pending };
            }
        }
    }
}

impl Sender {
    fn new(batcher: Arc<AppendBatcher>) -> Self {
        Self { batcher, calls: FuturesUnordered::new(), patience: None, left: false }
    }

    /// Sends calls until [`CALLS`] are in flight, no append may be sent, or none is `left` to be examined in this poll. Returns how
    /// many it has sent.
    fn send_next(&mut self, left: &mut usize, cx: &mut Context<'_>) -> usize {
        let mut sent = 0;
        while self.calls.len() < CALLS {
            let Some(batch) = self.batcher.take(left) else { break };
            sent += 1;
            let batcher = self.batcher.clone();
            let mut call: Sending = Box::pin(async move {
                let made = batcher.make(&batch.wishes).await;
                (batch, made)
            });
            // The first poll sends this call, before the appends of the next one are taken.
            match call.as_mut().poll(cx) {
                Poll::Ready(returned) => self.settle(returned),
                Poll::Pending => self.calls.push(call),
            }
        }
        sent
    }

    fn settle(&self, (batch, made): (AppendBatch, Vec<Result<Appended, Error>>)) {
        let mut waiting = self.batcher.waiting.lock();
        for wish in &batch.wishes {
            waiting.release(batch.number, &wish.keys[0]);
        }
        drop(waiting);
        // Those of dropped appends are discarded.
        for (outcome, made) in batch.outcomes.into_iter().zip(made) {
            let _ = outcome.send(made);
        }
    }

    /// Whether the appends that are parked behind one that was sent alone may be sent, because it has not returned for
    /// [`PATIENCE`].
    fn overtakes(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.batcher.waiting.lock().is_held() {
            self.patience = None;
            return false;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        if patience.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.patience = None;
        self.batcher.waiting.lock().release_held()
    }

    /// Returns `false` if there is something to send. Otherwise registers the waker for new appends, or ends the task
    /// if no call is in flight and no append is parked.
    fn has_nothing_to_send(&mut self, cx: &Context<'_>) -> bool {
        let sender = cx.waker().clone();
        // Declared before the lock is taken, so dropped after it is released.
        let _replaced;
        let mut waiting = self.batcher.waiting.lock();
        if self.calls.len() < CALLS && !(waiting.queue.is_empty() && waiting.ready.is_empty()) {
            return false;
        }
        self.left = self.calls.is_empty() && !waiting.is_held();
        waiting.sending = !self.left;
        _replaced = if self.left { waiting.sender.take() } else { waiting.sender.replace(sender) };
        true
    }
}

impl Drop for Sender {
    /// If the task is dropped with its runtime, the queued appends are not sent, and their futures resolve to
    /// [`Error::Uncertain`].
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let mut waiting = self.batcher.waiting.lock();
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
    use bytes::Bytes;
    use std::future::poll_fn;

    use super::*;
    use crate::{
        engine::{Redis, Retention},
        fault_injection::Faults,
    };

    /// It is never connected, so each call fails at once.
    fn batcher() -> Arc<AppendBatcher> {
        let redis = Redis::new("redis://127.0.0.1:1", None, "comet", Retention::default(), 1, Faults::default());
        redis.expect("a URL").batcher
    }

    fn wish(channel: &str) -> QueuedAppend {
        QueuedAppend {
            keys: [channel.to_owned(), String::new()],
            topic: String::new(),
            data: Bytes::new(),
            terms: Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_append_that_creates_its_channel_is_not_overtaken_however_long_it_takes() {
        for (holds_on, overtaken) in [(false, true), (true, false)] {
            let batcher = batcher();
            let Turn::Alone(_, mut alone) = batcher.enter(wish("a")) else { panic!("nothing else is in flight") };
            if holds_on {
                alone.hold_on();
            }
            let Turn::Together(mut later) = batcher.enter(wish("a")) else { panic!("it is queued") };
            sleep(2 * PATIENCE).await;
            assert_eq!(later.try_recv().is_ok(), overtaken, "{holds_on}");
            // Other channels are not held up, whether or not a task was left.
            let Turn::Together(other) = batcher.enter(wish("b")) else { panic!("it is queued") };
            assert!(matches!(other.await, Ok(Err(Error::Unreachable))));
            drop(alone);
            if holds_on {
                assert!(matches!(later.await, Ok(Err(Error::Unreachable))), "it is sent now");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_poll_examines_a_bounded_number_of_appends() {
        const BUSY: usize = 5 * EXAMINED;
        let batcher = batcher();
        let mut made = Vec::new();
        let mut waiting = batcher.waiting.lock();
        waiting.hold("busy");
        waiting.sending = true;
        for nth in 0..=BUSY {
            let (outcome, result) = oneshot::channel();
            let channel = if nth < BUSY { "busy" } else { "other" };
            waiting.queue.push_back((wish(channel), outcome));
            made.push(result);
        }
        drop(waiting);

        let (mut sender, mut polls) = (Sender::new(batcher.clone()), 0);
        let (mut queued, mut settled) = (BUSY + 1, 0);
        poll_fn(|cx| {
            let poll = Pin::new(&mut sender).poll(cx);
            polls += 1;
            let (queued_before, settled_before) = (queued, settled);
            queued = batcher.waiting.lock().queue.len();
            settled = made.iter().filter(|result| !result.is_empty()).count();
            assert!(queued_before - queued <= EXAMINED, "parked {} in one poll", queued_before - queued);
            assert!(settled - settled_before <= EXAMINED, "failed {} in one poll", settled - settled_before);
            poll
        })
        .await;
        assert_eq!(settled, BUSY + 1, "the parked appends are sent when the patience with the first one ends");
        assert!((10..=15).contains(&polls), "five polls park them, and five send them: {polls}");
    }
}
