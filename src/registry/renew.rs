//! Renews idle lifetimes (`Stream-TTL`) on a remote engine.
//!
//! Only the engine ends an idle lifetime, because a channel may have readers in several processes. A live read that is
//! answered from cached entries does not reach the engine, and a parked wait does not either. So this process renews the
//! lifetime:
//!
//! * when a live read begins, unless this process has done so within the last eighth of the lifetime;
//! * three times in each lifetime while the channel has a waiter, so that one renewal may fail.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    Registry,
    entry::{ChannelState, Entry},
    follow::CHECK,
    slice::Slice,
    waiters::WakeList,
};
use crate::sync::Mutex;

/// The shortest time between two renewals of a channel with a waiter, in milliseconds. Renewals are due at multiples of
/// it, so that one request renews many channels.
const STEP: u64 = 25;

/// The channels with a waiter and a lifetime of less than a minute, by the time at which the next renewal is due. The
/// comparisons of all followed channels, one each 20 s, renew longer lifetimes.
///
/// A channel leaves the queue when it is due and has no waiter, so the queue has at most one element for each followed
/// channel, and for each that was followed within the last 20 s.
pub(super) struct Renewals {
    queue: Mutex<BTreeMap<u64, Vec<Renewal>>>,
}

struct Renewal {
    entry: Arc<Entry>,
    /// The number of the [`Replica`](super::follow::Replica) that queued it.
    number: u64,
}

impl Renewals {
    pub(super) fn new() -> Self {
        Self { queue: Mutex::new(BTreeMap::new()) }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.lock().is_empty()
    }

    /// Adds a channel. Returns whether no other is due earlier, or at the same time.
    fn push(&self, due: u64, renewal: Renewal) -> bool {
        let mut queue = self.queue.lock();
        let is_first = queue.first_key_value().is_none_or(|(first, _)| due < *first);
        queue.entry(due).or_default().push(renewal);
        is_first
    }

    /// Removes a channel that is due. Returns the time at which the next one is due if none is, or `None` if the queue is
    /// empty.
    fn pop(&self, now: u64) -> Result<Renewal, Option<u64>> {
        let mut queue = self.queue.lock();
        loop {
            let Some(mut first) = queue.first_entry() else { return Err(None) };
            if *first.key() > now {
                return Err(Some(*first.key()));
            }
            match first.get_mut().pop() {
                Some(renewal) => return Ok(renewal),
                None => _ = first.remove(),
            }
        }
    }
}

impl Registry {
    /// Returns whether a live read that begins now must renew the channel's lifetime, and counts it as renewed if so.
    pub(super) fn claim_renewal(&self, entry: &Entry) -> bool {
        let now = self.now();
        let mut state = entry.lock();
        let follow = state.replica.as_mut().filter(|follow| follow.idle.is_some() && follow.is_renewal_due(now));
        follow.map(|follow| follow.renewed = Some(now)).is_some()
    }

    /// Queues a channel to be renewed, if it has a waiter and a short idle lifetime and is not queued yet. Returns the
    /// maintenance task, to be woken once the lock is released.
    pub(super) fn queue_renewal(&self, entry: &Arc<Entry>, state: &mut ChannelState) -> WakeList {
        let waited_on = state.waiters.len() > 0;
        let Some(follow) = state.replica.as_mut().filter(|follow| waited_on && !follow.renewing) else {
            return WakeList::nobody();
        };
        let Some(window) = short(follow.idle) else { return WakeList::nobody() };
        follow.renewing = true;
        let renewal = Renewal { entry: entry.clone(), number: follow.number };
        if self.renewals.push(due(follow.renewed, window), renewal) {
            return WakeList::one(self.interest.queue.lock().tender.take());
        }
        WakeList::nobody()
    }

    /// Moves channels that are due to `to_renew`, as many as the slice allows. Returns the time at which the next one is due, if
    /// the queue is not empty.
    pub(super) fn take_renewals(&self, to_renew: &mut VecDeque<Arc<Entry>>, slice: &mut Slice) -> Option<u64> {
        let now = self.now();
        loop {
            let renewal = match self.renewals.pop(now) {
                Ok(renewal) => renewal,
                Err(next) => return next,
            };
            let mut state = renewal.entry.lock();
            let waited_on = state.waiters.len() > 0;
            let follow = state.replica.as_mut().filter(|follow| follow.number == renewal.number);
            let next = follow.and_then(|follow| {
                let window = short(follow.idle).filter(|_| waited_on);
                follow.renewing = window.is_some();
                let next = due(follow.renewed, window?);
                // Later, if a live read has renewed it meanwhile.
                if next > now {
                    return Some(next);
                }
                to_renew.push_back(renewal.entry.clone());
                Some(due(Some(now), window?))
            });
            drop(state);
            if let Some(next) = next {
                self.renewals.push(next, renewal);
            }
            if slice.step() {
                return Some(now);
            }
        }
    }
}

/// The length of an idle lifetime in milliseconds, if the comparisons of all channels do not renew it often enough.
fn short(idle: Option<u64>) -> Option<u64> {
    idle.filter(|window| *window < 3 * CHECK)
}

/// The time at which the next renewal is due, on the registry's clock.
fn due(renewed: Option<u64>, window: u64) -> u64 {
    renewed.map_or(0, |renewed| (renewed + STEP.max(window / 3)) / STEP * STEP)
}
