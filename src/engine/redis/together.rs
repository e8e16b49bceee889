//! Appends that are under way at the same time, and go to Redis together: one script makes them, one after the other.
//!
//! To call a script costs Redis and its client as much as what this one does for an append. So who appends while enough calls are
//! under way waits for one of them to come back, and goes with all others who do.

use bytes::Bytes;
use redis::Script;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

use super::{
    Link,
    ask::{Said, appended},
    call::Call,
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
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<(Wish, Outcome)>,
    lanes: usize,
}

impl Together {
    pub(super) fn new(link: Arc<Link>, script: Script) -> Self {
        Self { link, script, waiting: Mutex::default() }
    }

    /// Appends, together with others or alone. One that is dropped before it was sent is not made.
    pub(super) async fn append(self: &Arc<Self>, wish: Wish) -> Result<Appended, Error> {
        let (outcome, made) = oneshot::channel();
        let begins = {
            let mut waiting = self.waiting();
            waiting.queue.push_back((wish, outcome));
            let begins = waiting.lanes < LANES;
            waiting.lanes += usize::from(begins);
            begins
        };
        if begins {
            let lane = Lane { together: self.clone(), left: false };
            self.link.runtime().spawn(lane.run());
        }
        // Without an outcome the runtime was shut down: nobody knows how far it came.
        made.await.unwrap_or(Err(Error::Uncertain))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, wishes: &[(Wish, Outcome)]) -> Result<Said, Error> {
        let keys: Vec<&String> = wishes.iter().flat_map(|(wish, _)| &wish.keys).collect();
        let mut call = Call::new(&self.script, keys.into_iter());
        for (Wish { topic, data, terms, .. }, _) in wishes {
            call.arg(topic).arg(&data[..]).arg(&terms[..]);
        }
        Said::new(self.link.write(&call).await?)
    }
}

/// Sends what waits, until nothing does.
struct Lane {
    together: Arc<Together>,
    left: bool,
}

impl Lane {
    async fn run(mut self) {
        while let Some(wishes) = self.take() {
            let mut said = self.together.send(&wishes).await;
            for (_, outcome) in wishes {
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
