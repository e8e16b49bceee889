//! Following a channel whose log is kept elsewhere: what this process holds of it, and whether that is all there is.
//!
//! What is published is a hint, and the log is the truth. So: *subscribe, confirmed; then read the log; then take in what came
//! meanwhile*; and what does not follow the last append that is held is never guessed at, but read from the log.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{
    Lifetime, Registry,
    entry::{Entry, Kept, State},
    millis,
    origin::Bucket,
};
use crate::{
    Error, Limit,
    engine::{Found, Log, Notice, Offset, Place, Remote, Start, Touch},
    sync::Mutex,
};

/// How much of a log is held, at most. Who wants more has it from the engine.
const APPENDS: usize = 256;
const BYTES: usize = 256 * 1024;

/// How many notices are kept while the log is read; if there are more, it is read again.
const PENDING: usize = 256;

/// How one channel is followed.
pub(super) struct Follow {
    pub(super) stage: Stage,
    /// Somebody reads the log.
    busy: bool,
    /// What was heard while the log was read.
    pending: VecDeque<Notice>,
    /// Who needs the channel to be live, and does not wait on it.
    joining: Vec<Waker>,
    /// What stands for the tail while nobody has made the channel.
    pub(super) origin: Offset,
    /// When somebody last waited on it or asked for it.
    pub(super) wanted: u64,
    /// When it was last read from the log, or compared with it.
    pub(super) checked: u64,
    /// Within how many milliseconds the engine is to be told that somebody waits.
    pub(super) idle: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// What is held may not be all, and is being completed.
    Reading,
    /// What is held ends where the log does, as far as was heard.
    Live,
    /// The engine is out of reach. What is held is true, and may not be all.
    Lost,
}

impl Follow {
    fn new(now: u64) -> Self {
        let (pending, joining) = (VecDeque::new(), Vec::new());
        Self {
            stage: Stage::Reading,
            busy: false,
            pending,
            joining,
            origin: Offset::ZERO,
            wanted: now,
            checked: now,
            idle: None,
        }
    }

    /// Nothing is heard any more.
    pub(super) fn lose(&mut self) -> Vec<Waker> {
        self.stage = Stage::Lost;
        self.busy = false;
        self.pending.clear();
        std::mem::take(&mut self.joining)
    }

    /// It is heard again, and to be read.
    pub(super) fn begin(&mut self) {
        self.stage = Stage::Reading;
        self.busy = false;
        self.pending.clear();
    }
}

/// What the task that tends to the channels is asked for.
pub(super) struct Asked {
    pub(super) queue: Mutex<AskedQueue>,
}

impl Asked {
    pub(super) fn nothing() -> Self {
        Self { queue: Mutex::new(AskedQueue::default()) }
    }
}

#[derive(Default)]
pub(super) struct AskedQueue {
    /// To be subscribed to, and read.
    pub(super) to_follow: Vec<Arc<Entry>>,
    /// Subscribed to, and to be read again.
    pub(super) to_read: Vec<Arc<Entry>>,
    pub(super) tender: Option<Waker>,
}

/// What a notice comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Changed,
    Known,
    /// It does not follow what is held.
    Doubtful,
}

impl Registry {
    /// The engine that keeps the logs, if that is not this process.
    pub(crate) fn remote(&self) -> Option<&Arc<dyn Remote>> {
        self.remote.as_ref()
    }

    /// The entry of a channel that is live here, or why it cannot be.
    pub(super) async fn followed(&self, name: &str) -> Result<Arc<Entry>, Error> {
        loop {
            let entry = self.map.enter(name);
            match poll_fn(|cx| self.poll_live(&entry, cx)).await {
                Ok(true) => return Ok(entry),
                // Its last waiter left meanwhile.
                Ok(false) => {}
                Err(error) => {
                    self.map.vacate(&entry);
                    return Err(error);
                }
            }
        }
    }

    /// Whether the entry is still the channel's, when it is live.
    fn poll_live(&self, entry: &Arc<Entry>, cx: &Context<'_>) -> Poll<Result<bool, Error>> {
        let mut state = entry.lock();
        if state.vacated {
            return Poll::Ready(Ok(false));
        }
        if let Err(error) = self.follow(entry, &mut state) {
            return Poll::Ready(Err(error));
        }
        let Some(follow) = &mut state.follow else { return Poll::Ready(Err(Error::Unreachable)) };
        match follow.stage {
            Stage::Live => Poll::Ready(Ok(true)),
            Stage::Lost => Poll::Ready(Err(Error::Unreachable)),
            Stage::Reading => {
                follow.joining.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Begins to follow a channel, unless it is followed.
    pub(super) fn follow(&self, entry: &Arc<Entry>, state: &mut State) -> Result<(), Error> {
        let now = self.now();
        if let Some(follow) = &mut state.follow {
            follow.wanted = now;
            return Ok(());
        }
        if self.health.is_lost() {
            return Err(Error::Unreachable);
        }
        if self.usage.admit_followed() >= self.limits.channels {
            self.usage.leave_followed();
            return Err(Error::Full(Limit::Channels));
        }
        state.follow = Some(Box::new(Follow::new(now)));
        self.ask(|queue| queue.to_follow.push(entry.clone()));
        Ok(())
    }

    /// Has a live channel read from the log again.
    pub(super) fn doubt(&self, entry: &Arc<Entry>, state: &mut State) {
        let Some(follow) = state.follow.as_mut().filter(|follow| follow.stage == Stage::Live) else { return };
        follow.begin();
        self.ask(|queue| queue.to_read.push(entry.clone()));
    }

    fn ask(&self, add: impl FnOnce(&mut AskedQueue)) {
        let mut queue = self.asked.queue.lock();
        add(&mut queue);
        let tender = queue.tender.take();
        drop(queue);
        if let Some(tender) = tender {
            tender.wake();
        }
    }

    /// Takes in what was heard of a channel.
    pub(super) fn hear(&self, name: &str, notice: Notice) {
        let Some(entry) = self.map.find(name) else { return };
        let mut state = entry.lock();
        let Some(follow) = &mut state.follow else { return };
        match follow.stage {
            Stage::Lost => return,
            Stage::Reading => {
                // One too many, and the oldest makes room: the newest then shows that something is missing.
                if follow.pending.len() == PENDING {
                    follow.pending.pop_front();
                }
                follow.pending.push_back(notice);
                return;
            }
            Stage::Live => {}
        }
        match self.take_in(&mut state, notice) {
            Taken::Known => {}
            Taken::Doubtful => self.doubt(&entry, &mut state),
            Taken::Changed => {
                let woken = state.waiters.take();
                drop(state);
                woken.wake();
            }
        }
    }

    fn take_in(&self, state: &mut State, notice: Notice) -> Taken {
        let now = self.now();
        let Some(kept) = state.log.as_deref_mut() else {
            return if matches!(notice, Notice::Deleted { .. }) { Taken::Known } else { Taken::Doubtful };
        };
        let tail = kept.log.tail();
        match notice {
            Notice::Appended { at, .. } if at.position() <= tail.position() => match kept.log.has(at) {
                // So old that it is not held: heard late.
                None | Some(true) => Taken::Known,
                Some(false) => Taken::Doubtful,
            },
            Notice::Appended { at, before, messages, data: Some(data), closed } => {
                let next = at.position() == tail.position() + 1 && before == tail.fingerprint();
                if !next || kept.log.is_closed() {
                    return Taken::Doubtful;
                }
                let cost = kept.log.cost();
                kept.log.follow(at, messages, data, now);
                if closed {
                    kept.log.close(now);
                }
                self.shorten(kept, cost);
                Taken::Changed
            }
            Notice::Closed { tail: at } if at == tail => {
                let known = kept.log.is_closed();
                kept.log.close(now);
                if known { Taken::Known } else { Taken::Changed }
            }
            Notice::Deleted { tail: at } if at == tail => {
                self.forget(state);
                Taken::Changed
            }
            Notice::Appended { .. } | Notice::Closed { .. } | Notice::Deleted { .. } | Notice::Made => Taken::Doubtful,
            Notice::Probe(_) => Taken::Known,
        }
    }

    /// Completes what is held of a channel from its log, and makes it live.
    pub(super) async fn read_up(&self, remote: &dyn Remote, entry: &Arc<Entry>) {
        match &mut entry.lock().follow {
            Some(follow) if !follow.busy => follow.busy = true,
            _ => return,
        }
        loop {
            let (place, touch) = {
                let state = entry.lock();
                if state.follow.is_none() {
                    return;
                }
                let tail = state.log.as_ref().map(|kept| kept.log.tail());
                let touch = if state.waiters.len() > 0 { Touch::Yes } else { Touch::No };
                (tail.map_or(Place::Window, |tail| Place::From(Start::After(tail))), touch)
            };
            let mut read = remote.read(entry.name(), place, BYTES, touch).await;
            if matches!(read, Err(Error::Gone(_))) {
                // It is not the log that is held, or has gone on by more than is kept.
                read = match remote.read(entry.name(), Place::Window, BYTES, touch).await {
                    // It was deleted, and its name is taken still.
                    Err(Error::Gone(gone)) => Ok(Found::Nothing(gone.tail())),
                    read => read,
                };
            }
            let Ok(read) = read else {
                let joining = entry.lock().follow.as_mut().map(|follow| follow.lose());
                joining.into_iter().flatten().for_each(Waker::wake);
                return;
            };
            if self.put(entry, read) {
                return;
            }
        }
    }

    /// Puts what was read beside what is held, and says whether that is all there is.
    fn put(&self, entry: &Arc<Entry>, found: Found) -> bool {
        let now = self.now();
        let mut state = entry.lock();
        let mut complete = match &found {
            Found::Page(page) => page.is_up_to_date(),
            Found::Nothing(_) => true,
        };
        let mut changed = self.replace(entry, &mut state, found, now);
        let Some(follow) = &mut state.follow else { return true };
        follow.checked = now;
        if complete {
            for notice in std::mem::take(&mut follow.pending) {
                match self.take_in(&mut state, notice) {
                    Taken::Known => {}
                    Taken::Changed => changed = true,
                    Taken::Doubtful => complete = false,
                }
            }
        }
        let mut joining = Vec::new();
        if let Some(follow) = state.follow.as_mut().filter(|_| complete) {
            follow.stage = Stage::Live;
            follow.busy = false;
            joining = std::mem::take(&mut follow.joining);
        }
        let woken = if changed { Some(state.waiters.take()) } else { None };
        drop(state);
        if let Some(woken) = woken {
            woken.wake();
        }
        joining.into_iter().for_each(Waker::wake);
        complete
    }

    /// Whether that changed anything.
    fn replace(&self, entry: &Arc<Entry>, state: &mut State, found: Found, now: u64) -> bool {
        let page = match found {
            Found::Page(page) => page,
            Found::Nothing(origin) => {
                if let Some(follow) = &mut state.follow {
                    follow.origin = origin;
                }
                return self.forget(state).is_some();
            }
        };
        let until = page.left.map(|left| now.saturating_add(millis(left)).saturating_add(1));
        if let Some(follow) = &mut state.follow {
            follow.idle = match page.lifetime {
                Lifetime::Idle(window) => Some(millis(window)),
                Lifetime::Unbounded | Lifetime::Until(_) => None,
            };
        }
        if let Some(kept) = state.log.as_deref_mut().filter(|kept| kept.log.tail() == page.after) {
            let changed = !page.entries.is_empty() || (page.closed && !kept.log.is_closed());
            let cost = kept.log.cost();
            kept.until = until;
            kept.log.extend(page, now);
            self.shorten(kept, cost);
            return changed;
        }
        self.forget(state);
        // An idle channel's end is the engine's to decide: others may read it elsewhere.
        let lifetime = if until.is_some() { page.lifetime } else { Lifetime::Unbounded };
        let log = Log::replica(page, now);
        self.usage.count_channel();
        let mut kept = Kept::new(log, Bucket::of(self.map.hash(entry.name())), now);
        kept.lifetime = lifetime;
        kept.until = until;
        kept.explicit = true;
        self.shorten(&mut kept, 0);
        state.log = Some(Box::new(kept));
        true
    }

    /// Keeps what is held of a log within bounds, and counts it.
    fn shorten(&self, kept: &mut Kept, before: usize) {
        let full = self.usage.history() > self.limits.history;
        kept.log.shorten(if full { 1 } else { APPENDS }, BYTES);
        self.usage.adjust_history(before, kept.log.cost());
    }
}
