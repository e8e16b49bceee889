//! Following a channel whose log is kept elsewhere: who wants it, and whether what is held of it here is all there is.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{
    Registry,
    entry::{ChannelState, Entry},
    waiters::{Key, WaiterStatus, Waiters, WakeList},
};
use crate::{
    Error, Limit,
    engine::{Notice, Offset},
    sync::{Mutex, assert_unlocked},
};

/// How often what is held of a quiet channel is compared with its log, in milliseconds.
pub(super) const CHECK: u64 = 20_000;

/// How one channel is followed.
pub(super) struct Replica {
    pub(super) stage: ReplicaStage,
    /// Tells this following of the channel from others.
    pub(super) number: u64,
    /// Somebody reads the log.
    pub(super) busy: bool,
    /// It was live before: what is held is a part of the log, or there was none.
    pub(super) known: bool,
    /// Somebody waits who could not tell from what was held whether there is something: who is woken when that is known.
    pub(super) stale: bool,
    /// What was heard while the log was read.
    pub(super) pending: VecDeque<Notice>,
    /// Who needs the channel to be live, and does not wait on it.
    pub(super) joining: Waiters,
    /// The absent tail of the name that the engine reported last, even if the channel exists.
    pub(super) absent_tail: Offset,
    /// When this process found the channel, if it had no cached entries of it before.
    pub(super) found: Option<u64>,
    /// When somebody last waited on it or asked for it.
    pub(super) wanted: u64,
    /// When it was last read from the log, or compared with it.
    pub(super) checked: u64,
    /// The length of the channel's idle lifetime in milliseconds, if it has one.
    pub(super) idle: Option<u64>,
    /// When this process last sent a request that renews the idle lifetime.
    pub(super) renewed: Option<u64>,
    /// Whether the channel is queued to be renewed: see [`Renewals`](super::renew::Renewals).
    pub(super) renewing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplicaStage {
    /// What is held may not be all, and is being completed.
    Reading,
    /// What is held ends where the log does, as far as was heard.
    Live,
    /// The engine is out of reach. What is held is true, and may not be all.
    Lost,
}

impl Replica {
    fn new(now: u64) -> Self {
        Self {
            stage: ReplicaStage::Reading,
            number: fastrand::u64(..),
            busy: false,
            known: false,
            stale: true,
            pending: VecDeque::new(),
            joining: Waiters::default(),
            absent_tail: Offset::ZERO,
            found: None,
            wanted: now,
            checked: now,
            idle: None,
            renewed: None,
            renewing: false,
        }
    }

    /// The number of tasks that wait for the channel to become live.
    pub(super) fn joins(&self) -> usize {
        self.joining.len()
    }

    /// Whether this process has not kept the channel alive within the last eighth of its idle lifetime. Always `true`
    /// if it has none.
    pub(super) fn is_renewal_due(&self, now: u64) -> bool {
        let recent = self.renewed.zip(self.idle).map(|(renewed, window)| renewed.saturating_add(window / 8));
        recent.is_none_or(|recent| recent <= now)
    }

    /// Nothing is heard any more.
    pub(super) fn lose(&mut self) -> WakeList {
        self.stage = ReplicaStage::Lost;
        self.busy = false;
        self.pending.clear();
        self.joining.take()
    }

    /// It was read, or compared. Not all channels are compared in the same moment.
    pub(super) fn note_check(&mut self, now: u64) {
        self.checked = now.saturating_sub(fastrand::u64(..=CHECK / 2));
    }

    /// It is heard again, and to be read.
    pub(super) fn begin(&mut self) {
        self.stage = ReplicaStage::Reading;
        self.busy = false;
        self.pending.clear();
    }
}

/// What the task that tends to the channels is asked for.
pub(super) struct Interest {
    pub(super) queue: Mutex<InterestQueue>,
}

impl Interest {
    pub(super) fn nothing() -> Self {
        Self { queue: Mutex::new(InterestQueue::default()) }
    }

    /// Takes the queue together with its waker, which must not be dropped under the lock.
    pub(super) fn take(&self) -> InterestQueue {
        std::mem::take(&mut *self.queue.lock())
    }
}

#[derive(Default)]
pub(super) struct InterestQueue {
    /// To be subscribed to, and read.
    pub(super) to_follow: Vec<Arc<Entry>>,
    /// Subscribed to, and to be read again.
    pub(super) to_read: Vec<Arc<Entry>>,
    pub(super) tender: Option<Waker>,
}

impl Drop for Interest {
    /// The registry is gone, and who tends to its channels is told.
    fn drop(&mut self) {
        let tender = self.queue.lock().tender.take();
        WakeList::one(tender).wake();
    }
}

impl Registry {
    /// The entry of a channel that is live here, or why it cannot be.
    pub(super) async fn followed(&self, name: &str) -> Result<Arc<Entry>, Error> {
        loop {
            let entry = self.enter(name);
            match (Join { registry: self, entry: &entry, key: None }).await {
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

    /// Starts to follow a channel, unless it is followed already. Returns the maintenance task, to be woken once the
    /// lock is released.
    pub(super) fn follow(&self, entry: &Arc<Entry>, state: &mut ChannelState) -> Result<WakeList, Error> {
        let now = self.now();
        if let Some(follow) = &mut state.replica {
            follow.wanted = now;
            return Ok(WakeList::nobody());
        }
        if self.health.is_lost() {
            return Err(Error::Unreachable);
        }
        if self.usage.admit_followed() >= self.limits.channels {
            self.usage.leave_followed();
            return Err(Error::Full(Limit::Channels));
        }
        state.replica = Some(Box::new(Replica::new(now)));
        Ok(self.ask(|queue| queue.to_follow.push(entry.clone())))
    }

    /// Stops following a channel, and drops its cached entries. Returns the tasks that wait for it to become live, to
    /// be woken.
    pub(super) fn unfollow(&self, entry: &Entry, state: &mut ChannelState) -> WakeList {
        let joining = state.replica.take().map(|mut follow| follow.joining.take());
        self.usage.leave_followed();
        self.drop_log(entry, state);
        joining.unwrap_or_else(WakeList::nobody)
    }

    /// Queues a live channel to be read from the log again. Returns the maintenance task, to be woken once the lock is
    /// released.
    pub(super) fn mark_stale(&self, entry: &Arc<Entry>, state: &mut ChannelState) -> WakeList {
        let Some(follow) = state.replica.as_mut().filter(|follow| follow.stage == ReplicaStage::Live) else {
            return WakeList::nobody();
        };
        follow.begin();
        self.ask(|queue| queue.to_read.push(entry.clone()))
    }

    fn ask(&self, add: impl FnOnce(&mut InterestQueue)) -> WakeList {
        let mut queue = self.interest.queue.lock();
        add(&mut queue);
        WakeList::one(queue.tender.take())
    }
}

/// Resolves when a channel is live: whether the entry is still the channel's, or why it cannot be.
struct Join<'a> {
    registry: &'a Registry,
    entry: &'a Arc<Entry>,
    /// The place among those who join, in which following of the channel.
    key: Option<(u64, Key)>,
}

impl Future for Join<'_> {
    type Output = Result<bool, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert_unlocked();
        let this = &mut *self;
        let waker = cx.waker().clone();
        // Declared before the lock is taken, so dropped after it is released: see `Waiters`.
        let (_replaced, _tender);
        let mut state = this.entry.lock();
        if state.vacated {
            return Poll::Ready(Ok(false));
        }
        _tender = match this.registry.follow(this.entry, &mut state) {
            Ok(tender) => tender,
            Err(error) => return Poll::Ready(Err(error)),
        };
        let Some(follow) = &mut state.replica else { return Poll::Ready(Err(Error::Unreachable)) };
        match follow.stage {
            ReplicaStage::Live => return Poll::Ready(Ok(true)),
            ReplicaStage::Lost => return Poll::Ready(Err(Error::Unreachable)),
            ReplicaStage::Reading => {}
        }
        let key = this.key.filter(|(number, _)| *number == follow.number).map(|(_, key)| key);
        match key.filter(|key| follow.joining.standing(*key) == WaiterStatus::Parked) {
            Some(key) => _replaced = follow.joining.refresh(key, waker),
            None => this.key = Some((follow.number, follow.joining.park(waker))),
        }
        Poll::Pending
    }
}

impl Drop for Join<'_> {
    fn drop(&mut self) {
        let Some((number, key)) = self.key else { return };
        let mut state = self.entry.lock();
        let follow = state.replica.as_mut().filter(|follow| follow.number == number);
        let waker = follow.and_then(|follow| follow.joining.remove(key));
        drop(state);
        drop(waker);
    }
}
