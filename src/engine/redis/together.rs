//! Appends that are under way at the same time, and go to Redis together: one script makes them, one after the other.
//!
//! To call a script costs Redis and its client as much as what this one does for an append. So who appends while enough calls are
//! under way waits for one of them to come back, and goes with all others who do.

use bytes::Bytes;
use redis::Script;
use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};
use tokio::{sync::oneshot, task::unconstrained};

use super::{
    Link,
    call::Call,
    said::{Said, appended},
};
use crate::{Error, engine::Appended};

/// How many calls are under way at a time: while one runs, the next is on its way.
const LANES: usize = 6;

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
    /// Held while some are taken and sent.
    order: Mutex<()>,
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<(Wish, Outcome)>,
    lanes: usize,
}

impl Together {
    pub(super) fn new(link: Arc<Link>, script: Script) -> Self {
        Self { link, script, waiting: Mutex::default(), order: Mutex::default() }
    }

    /// Appends, together with others or alone. One that is dropped before it was sent is not made.
    pub(super) async fn append(self: &Arc<Self>, wish: Wish) -> Result<Appended, Error> {
        match self.enter(wish) {
            Turn::Alone(wish, _lane) => self.send(self.call([&wish].into_iter())).await?.next().and_then(appended),
            // Without an outcome the runtime was shut down: nobody knows how far it came.
            Turn::Together(made) => made.await.unwrap_or(Err(Error::Uncertain)),
        }
    }

    fn enter(self: &Arc<Self>, wish: Wish) -> Turn {
        let mut waiting = self.waiting();
        if waiting.lanes == 0 {
            // Nobody is under way: it is not worth a task.
            waiting.lanes = 1;
            return Turn::Alone(wish, Alone(self.clone()));
        }
        let (outcome, made) = oneshot::channel();
        waiting.queue.push_back((wish, outcome));
        if waiting.lanes < LANES {
            waiting.lanes += 1;
            drop(waiting);
            self.begin_lane();
        }
        Turn::Together(made)
    }

    /// There is room for it.
    fn begin_lane(self: &Arc<Self>) {
        let lane = Lane { together: self.clone(), left: false };
        self.link.runtime().spawn(lane.run());
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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

/// One that is under way alone. When it is over, or dropped, those who came meanwhile go.
struct Alone(Arc<Together>);

impl Drop for Alone {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        if waiting.queue.is_empty() {
            waiting.lanes -= 1;
        } else {
            drop(waiting);
            self.0.begin_lane();
        }
    }
}

/// Sends what waits, until nothing does.
struct Lane {
    together: Arc<Together>,
    left: bool,
}

impl Lane {
    async fn run(mut self) {
        while let Some((outcomes, mut said)) = self.send().await {
            for outcome in outcomes {
                // Who does not want to know it any more is not told.
                let _ = outcome.send(match &mut said {
                    Ok(said) => said.next().and_then(appended),
                    Err(Error::Full(limit)) => Err(Error::Full(*limit)),
                    Err(Error::Uncertain) => Err(Error::Uncertain),
                    Err(_) => Err(Error::Unreachable),
                });
            }
        }
    }

    /// Sends those who go next, and says what is said to them.
    async fn send(&mut self) -> Option<(Vec<Outcome>, Result<Said, Error>)> {
        let together = self.together.clone();
        let (mut outcomes, mut sending) = (Vec::new(), None);
        let said = poll_fn(|cx| {
            if sending.is_none() {
                // Who came first goes first, whichever lane it is in: two appends that one task has begun one after the other are
                // made in that order.
                let _order = together.order.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(taken) = self.take() else { return Poll::Ready(None) };
                let call = together.call(taken.iter().map(|(wish, _)| wish));
                outcomes.extend(taken.into_iter().map(|(_, outcome)| outcome));
                return sending.insert(Box::pin(together.send(call))).as_mut().poll(cx).map(Some);
            }
            sending.as_mut().map_or(Poll::Ready(None), |sending| sending.as_mut().poll(cx).map(Some))
        });
        let said = said.await?;
        Some((outcomes, said))
    }

    /// Those who go next. If there are none, this is no lane any more, and whoever comes begins another.
    fn take(&mut self) -> Option<Vec<(Wish, Outcome)>> {
        let mut waiting = self.together.waiting();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some((wish, outcome)) = waiting.queue.pop_front() {
            if outcome.is_closed() {
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
        if taken.is_empty() {
            waiting.lanes -= 1;
            self.left = true;
            return None;
        }
        Some(taken)
    }
}

impl Drop for Lane {
    /// It was stopped: with the runtime. Nobody waits for what nobody sends.
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let mut waiting = self.together.waiting();
        waiting.lanes -= 1;
        let unsent = if waiting.lanes == 0 { std::mem::take(&mut waiting.queue) } else { VecDeque::new() };
        drop(waiting);
        drop(unsent);
    }
}
