//! What has aged out is let go, a step with each operation: there is no task that sweeps.

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    Registry,
    entry::{Entry, Kept},
    millis,
};
use crate::sync::Mutex;

/// How long an empty channel is remembered after its last reader. A long-poll client is back within
/// milliseconds, a telephone in a tunnel within a minute; both should find the log that they know.
const LINGER: u64 = 60_000;

/// How many channels one operation looks after.
const STEP: usize = 2;

/// The logs by the time when they are worth a look. Each log is in here at most once.
pub(super) struct Expiries {
    queue: Mutex<BTreeMap<Ticket, Weak<Entry>>>,
    /// When the first is due, to be read without the lock.
    first: AtomicU64,
}

/// A place in the queue: the time, and what tells those of one time apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(NonZeroU64);

impl Ticket {
    /// Leaves 42 bits for the time: 139 years of milliseconds.
    const TIE: u32 = 22;

    fn new(due: u64, tie: u64) -> Self {
        // What is later than that is never, with room for the next.
        let time = due.min((u64::MAX >> Self::TIE) - 1) << Self::TIE;
        Self(NonZeroU64::MIN.saturating_add(time | tie & ((1 << Self::TIE) - 1)))
    }

    fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    fn due(self) -> u64 {
        (self.0.get() - 1) >> Self::TIE
    }
}

impl Expiries {
    pub(super) fn new() -> Self {
        Self { queue: Mutex::new(BTreeMap::new()), first: AtomicU64::new(u64::MAX) }
    }

    fn insert(&self, due: u64, entry: Weak<Entry>) -> Ticket {
        let mut queue = self.queue.lock();
        // At random, which also fills the tree better than in the order of time.
        let mut ticket = Ticket::new(due, fastrand::u64(..));
        while queue.contains_key(&ticket) {
            ticket = ticket.next();
        }
        queue.insert(ticket, entry);
        self.note_first(&queue);
        ticket
    }

    fn remove(&self, ticket: Ticket) {
        let mut queue = self.queue.lock();
        queue.remove(&ticket);
        self.note_first(&queue);
    }

    fn pop_due(&self, now: u64) -> Option<(Ticket, Weak<Entry>)> {
        if self.first.load(Relaxed) > now {
            return None;
        }
        let mut queue = self.queue.lock();
        let (&ticket, _) = queue.first_key_value().filter(|(ticket, _)| ticket.due() <= now)?;
        let entry = queue.remove(&ticket)?;
        self.note_first(&queue);
        Some((ticket, entry))
    }

    fn note_first(&self, queue: &BTreeMap<Ticket, Weak<Entry>>) {
        self.first.store(queue.first_key_value().map_or(u64::MAX, |(ticket, _)| ticket.due()), Relaxed);
    }
}

impl Registry {
    /// Looks after the next few channels that are due.
    pub(super) fn step(&self, now: u64) {
        self.settle();
        self.look_after(now, STEP);
    }

    /// Looks after all channels that are due, before something is refused for want of room.
    pub(super) fn sweep(&self, now: u64) {
        self.look_after(now, usize::MAX);
        self.settle();
    }

    fn look_after(&self, now: u64, most: usize) {
        for _ in 0..most {
            let Some((ticket, entry)) = self.expiries.pop_due(now) else { return };
            if let Some(entry) = entry.upgrade() {
                self.look_after_one(&entry, ticket, now);
            }
        }
    }

    fn look_after_one(&self, entry: &Arc<Entry>, ticket: Ticket, now: u64) {
        let mut state = entry.lock();
        let waited_on = state.waiters.len() > 0;
        // It may have been deleted, and made anew, since its turn came.
        let Some(kept) = state.log.as_mut().filter(|kept| kept.due == Some(ticket)) else { return };
        kept.due = None;
        let over = kept.is_over(waited_on, now);
        if waited_on {
            kept.touched = now;
        }
        self.expire(kept, now);
        let forgotten = !kept.explicit && self.forgotten_at(kept).is_some_and(|at| at <= now);
        if !over && !forgotten {
            self.queue(kept, entry);
            return;
        }
        if over {
            self.bury(&mut state);
        } else {
            // Nobody has deleted it: its name is free, whatever forks it has.
            self.forget(&mut state);
        }
        let woken = state.waiters.take();
        let vacant = state.is_vacant();
        drop(state);
        woken.wake();
        if vacant {
            self.map.vacate(entry);
        }
    }

    /// Lets go of what has aged out of a log.
    pub(super) fn expire(&self, kept: &mut Kept, now: u64) {
        if let Some(oldest) = self.retention.age.and_then(|age| now.checked_sub(millis(age))) {
            self.usage.leave_history(kept.log.expire(oldest));
        }
    }

    /// Queues a log, unless it is, for when there may be something to let go.
    pub(super) fn queue(&self, kept: &mut Kept, entry: &Arc<Entry>) {
        if kept.due.is_some() || kept.is_buried() {
            return;
        }
        if let Some(due) = self.due(kept) {
            kept.due = Some(self.expiries.insert(due, Arc::downgrade(entry)));
        }
    }

    /// Queues a log that is to live for another time than it was queued for.
    pub(super) fn requeue(&self, kept: &mut Kept, entry: &Arc<Entry>) {
        self.unqueue(kept);
        self.queue(kept, entry);
    }

    pub(super) fn unqueue(&self, kept: &mut Kept) {
        if let Some(ticket) = kept.due.take() {
            self.expiries.remove(ticket);
        }
    }

    /// When there will be something to let go: what the log holds now has aged out; a log that nobody created is
    /// forgotten; its lifetime is over.
    fn due(&self, kept: &Kept) -> Option<u64> {
        let aged = if kept.explicit { self.aged_at(kept.log.newest()) } else { self.forgotten_at(kept) };
        match (aged, kept.ends()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// When a log that nobody created is forgotten: all of it has aged out, and its readers should be back.
    fn forgotten_at(&self, kept: &Kept) -> Option<u64> {
        let aged = self.aged_at(Some(kept.log.written()))?;
        Some(aged.max(kept.touched.saturating_add(LINGER)))
    }

    fn aged_at(&self, written: Option<u64>) -> Option<u64> {
        Some(written?.saturating_add(millis(self.retention.age?)).saturating_add(1))
    }
}
