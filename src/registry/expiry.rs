//! What has aged out is let go, a step with each operation: there is no task that sweeps.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{Registry, entry::Entry, entry::Kept, entry::State, millis};
use crate::sync::Mutex;

/// How long an empty channel is remembered after its last reader. A long-poll client is back within
/// milliseconds, a telephone in a tunnel within a minute; both should find the log that they know.
const LINGER: u64 = 60_000;

/// How many channels one operation looks after.
const STEP: usize = 2;

/// The logs by the time when they are worth a look. Each log is in here at most once.
pub(super) struct Expiries {
    queue: Mutex<BTreeMap<(u64, u64), Weak<Entry>>>,
    /// When the first is due, to be read without the lock.
    first: AtomicU64,
}

impl Expiries {
    pub(super) fn new() -> Self {
        Self { queue: Mutex::new(BTreeMap::new()), first: AtomicU64::new(u64::MAX) }
    }

    fn insert(&self, due: u64, log: u64, entry: Weak<Entry>) {
        let mut queue = self.queue.lock();
        queue.insert((due, log), entry);
        self.note_first(&queue);
    }

    fn remove(&self, due: u64, log: u64) {
        let mut queue = self.queue.lock();
        queue.remove(&(due, log));
        self.note_first(&queue);
    }

    fn pop_due(&self, now: u64) -> Option<(u64, Weak<Entry>)> {
        if self.first.load(Relaxed) > now {
            return None;
        }
        let mut queue = self.queue.lock();
        let (&(due, log), _) = queue.first_key_value()?;
        if due > now {
            return None;
        }
        let entry = queue.remove(&(due, log))?;
        self.note_first(&queue);
        Some((log, entry))
    }

    fn note_first(&self, queue: &BTreeMap<(u64, u64), Weak<Entry>>) {
        self.first.store(queue.first_key_value().map_or(u64::MAX, |(&(due, _), _)| due), Relaxed);
    }
}

impl Registry {
    /// Looks after the next few channels that are due.
    pub(super) fn step(&self, now: u64) {
        self.look_after(now, STEP);
    }

    /// Looks after all channels that are due, before something is refused for want of room.
    pub(super) fn sweep(&self, now: u64) {
        self.look_after(now, usize::MAX);
    }

    fn look_after(&self, now: u64, most: usize) {
        for _ in 0..most {
            let Some((id, entry)) = self.expiries.pop_due(now) else { return };
            let Some(entry) = entry.upgrade() else { continue };
            let mut state = entry.lock();
            // It may have been deleted, and made anew, since it was queued.
            let Some(kept) = state.log.as_mut().filter(|kept| kept.log.id() == id) else { continue };
            kept.due = None;
            self.expire(kept, now);
            if kept.explicit && kept.log.len() == 0 {
                continue;
            }
            let waited_on = state.waiters.len() > 0;
            let kept = state.log.as_mut().expect("it is there still");
            let forgettable = kept.log.len() == 0 && !waited_on && kept.touched.saturating_add(LINGER) <= now;
            if !forgettable {
                let touched = if waited_on { now } else { kept.touched };
                self.queue(kept, touched, &entry);
                continue;
            }
            self.forget(&mut state);
            // After, not before, the log has gone: a newcomer in between would be told the place that
            // the forgotten log's readers hold.
            self.origins.forget(self.map.hash(entry.name()));
            drop(state);
            self.map.vacate(&entry);
        }
    }

    /// Lets go of what has aged out of a log.
    pub(super) fn expire(&self, kept: &mut Kept, now: u64) {
        if let Some(oldest) = self.retention.age.and_then(|age| now.checked_sub(millis(age))) {
            self.usage.leave_history(kept.log.expire(oldest));
        }
    }

    /// Takes a log out of a channel, and out of the queue.
    pub(super) fn forget(&self, state: &mut State) -> Option<Box<Kept>> {
        let kept = state.log.take()?;
        if let Some(due) = kept.due {
            self.expiries.remove(due, kept.log.id());
        }
        self.usage.leave_history(kept.log.cost());
        self.usage.leave_channel();
        Some(kept)
    }

    /// Queues a log for when all that it holds now has aged out and its readers should be back.
    pub(super) fn queue(&self, kept: &mut Kept, touched: u64, entry: &Arc<Entry>) {
        let Some(age) = self.retention.age else { return };
        if kept.due.is_some() {
            return;
        }
        let aged = kept.log.newest().map_or(0, |at| at.saturating_add(millis(age)).saturating_add(1));
        let due = aged.max(touched.saturating_add(LINGER));
        kept.due = Some(due);
        self.expiries.insert(due, kept.log.id(), Arc::downgrade(entry));
    }
}
