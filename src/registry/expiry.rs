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
    entry::{ChannelState, Entry, StoredLog},
    millis,
    slice::Slice,
    waiters::WakeList,
};
use crate::{
    Error, Limit,
    sync::{Mutex, MutexGuard},
};

/// How long an empty channel is remembered after its last reader. A long-poll client is back within
/// milliseconds, a telephone in a tunnel within a minute; both should find the log that they know.
const LINGER: u64 = 60_000;

/// How many channels one operation looks after.
pub(super) const STEP: usize = 2;

/// The logs by the time when they are worth a look. Each log is in here at most once.
pub(super) struct ExpiryQueue {
    queue: Mutex<BTreeMap<ExpiryKey, Weak<Entry>>>,
    /// When the first is due, to be read without the lock.
    first: AtomicU64,
}

/// A ticket that was due, and the queue that it was taken from.
#[derive(Clone, Copy)]
enum Due {
    /// The queue of fixed ends.
    End(ExpiryKey),
    Other(ExpiryKey),
}

/// A place in the queue: the time, and what tells those of one time apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ExpiryKey(NonZeroU64);

impl ExpiryKey {
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

impl ExpiryQueue {
    pub(super) fn new() -> Self {
        Self { queue: Mutex::new(BTreeMap::new()), first: AtomicU64::new(u64::MAX) }
    }

    fn insert(&self, due: u64, entry: Weak<Entry>) -> ExpiryKey {
        let mut queue = self.queue.lock();
        // At random, which also fills the tree better than in the order of time.
        let mut ticket = ExpiryKey::new(due, fastrand::u64(..));
        while queue.contains_key(&ticket) {
            ticket = ticket.next();
        }
        queue.insert(ticket, entry);
        self.note_first(&queue);
        ticket
    }

    fn remove(&self, ticket: ExpiryKey) {
        let mut queue = self.queue.lock();
        queue.remove(&ticket);
        self.note_first(&queue);
    }

    fn is_due(&self, now: u64) -> bool {
        self.first.load(Relaxed) <= now
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.load(Relaxed) == u64::MAX
    }

    fn pop_due(&self, now: u64) -> Option<(ExpiryKey, Weak<Entry>)> {
        if !self.is_due(now) {
            return None;
        }
        let mut queue = self.queue.lock();
        let (&ticket, _) = queue.first_key_value().filter(|(ticket, _)| ticket.due() <= now)?;
        let entry = queue.remove(&ticket)?;
        self.note_first(&queue);
        Some((ticket, entry))
    }

    fn note_first(&self, queue: &BTreeMap<ExpiryKey, Weak<Entry>>) {
        self.first.store(queue.first_key_value().map_or(u64::MAX, |(ticket, _)| ticket.due()), Relaxed);
    }
}

impl StoredLog {
    fn is_due(&self, due: Due) -> bool {
        match due {
            Due::End(ticket) => self.rare().ends == Some(ticket),
            Due::Other(ticket) => self.due == Some(ticket),
        }
    }
}

impl Registry {
    /// Trims or evicts up to [`STEP`] due channels of each queue, settles up to as many ended forks, and cuts transfers
    /// if they hold too much. Every operation does this.
    pub(super) fn step(&self, now: u64) {
        self.settle_some();
        for queue in [&self.expiry_queue, &self.transients] {
            for (ticket, entry) in (0..STEP).map_while(|_| queue.pop_due(now)) {
                self.look_after(&entry, Due::Other(ticket), now);
            }
        }
        // The wall clock is read only if a channel has a fixed end.
        for (ticket, entry) in (0..STEP).map_while(|_| self.pop_ended(now)) {
            self.look_after(&entry, Due::End(ticket), now);
        }
        self.make_room_to_read(0, None);
    }

    /// Evicts channels that have expired until one was or the slice is over, before something is refused for lack of room; and for
    /// the bytes of history, transient channels after them. Returns whether to try again.
    ///
    /// It ends: what stays in the queue is due later than `now`.
    pub(super) fn make_room(&self, lacking: Limit, now: u64, slice: &mut Slice) -> bool {
        let next = || {
            let other = self.expiry_queue.pop_due(now).map(|(ticket, entry)| (Due::Other(ticket), entry));
            other.or_else(|| self.pop_ended(now).map(|(ticket, entry)| (Due::End(ticket), entry)))
        };
        while let Some((due, entry)) = next() {
            let evicted = self.look_after(&entry, due, now);
            if slice.step() {
                return false;
            }
            if evicted {
                return true;
            }
        }
        // The limit on channels does not count transient ones.
        self.settle(slice) && lacking == Limit::History && !slice.step() && self.evict_transient(now)
    }

    /// Returns whether [`make_room`](Self::make_room) has left channels in the queue that are due at `now`.
    pub(crate) fn may_have_room(&self, now: u64) -> bool {
        self.expiry_queue.is_due(now) || !self.ends.is_empty() && self.ends.is_due(self.wall(now))
    }

    fn pop_ended(&self, now: u64) -> Option<(ExpiryKey, Weak<Entry>)> {
        if self.ends.is_empty() { None } else { self.ends.pop_due(self.wall(now)) }
    }

    /// Trims or evicts a channel that is due. Returns whether this has freed anything.
    fn look_after(&self, entry: &Weak<Entry>, due: Due, now: u64) -> bool {
        let Some(entry) = entry.upgrade() else { return false };
        let mut state = entry.lock();
        let waited_on = state.waiters.len() > 0;
        // The channel may have been deleted, and created again, since it was taken from the queue.
        let Some(kept) = state.log.as_mut().filter(|kept| kept.is_due(due)) else { return false };
        match due {
            Due::Other(_) => kept.due = None,
            Due::End(_) => kept.rare_mut().ends = None,
        }
        let over = self.is_over(kept, waited_on, now);
        if waited_on {
            kept.touched = now;
        }
        let freed = self.expire(kept, now);
        let forgotten = !kept.explicit && self.forgotten_at(kept).is_some_and(|at| at <= now);
        if !over && !forgotten {
            self.queue(kept, &entry, now);
            return freed;
        }
        if over {
            self.tombstone(&entry, &mut state);
        } else {
            // The channel was not deleted by name, so its name is free even if it has forks.
            self.drop_log(&entry, &mut state);
        }
        self.leave_evicted(&entry, state);
        true
    }

    /// Wakes the waiters of an evicted channel, and removes its entry from the map if it is vacant.
    ///
    /// An operation on any channel may do this in addition to its own work, so it wakes the waiters only if they are
    /// few. Otherwise their timers do: a channel that expires while it has waiters does so at a fixed time, and each
    /// waiter has set its timer to [look again](Self::look_again_at).
    fn leave_evicted(&self, entry: &Arc<Entry>, mut state: MutexGuard<'_, ChannelState>) {
        const FEW: usize = 64;
        let woken = if state.waiters.len() <= FEW { state.waiters.take() } else { WakeList::nobody() };
        let vacant = state.is_vacant();
        drop(state);
        woken.wake();
        if vacant {
            self.map.vacate(entry);
        }
    }

    /// Evicts the transient channel that expires first among those that no request uses. Returns whether there was one.
    pub(super) fn evict_transient(&self, now: u64) -> bool {
        /// How many channels are tried. A channel is in use while a woken wait has not read it yet.
        const TRIES: usize = 8;
        for _ in 0..TRIES {
            let Some((ticket, entry)) = self.transients.pop_due(u64::MAX) else { return false };
            let Some(entry) = entry.upgrade() else { continue };
            let mut state = entry.lock();
            let waited_on = state.waiters.len() > 0;
            let Some(kept) = state.log.as_mut().filter(|kept| kept.due == Some(ticket)) else { continue };
            kept.due = None;
            // A wait has a reference to its entry until it has read. The other two are the map's and this function's.
            if waited_on || Arc::strong_count(&entry) > 2 {
                // A millisecond later, because the order of channels with the same time is random: this one must not come
                // before one that is not tried yet.
                kept.touched = now.saturating_add(1);
                self.queue(kept, &entry, now);
                continue;
            }
            self.drop_log(&entry, &mut state);
            self.leave_evicted(&entry, state);
            return true;
        }
        false
    }

    /// Evicts transient channels while all channels together exceed the limit. Returns whether this is done.
    pub(super) fn evict_surplus(&self, slice: &mut Slice) -> bool {
        while self.usage.has_surplus(&self.limits) && self.evict_transient(self.now()) {
            if slice.step() {
                return false;
            }
        }
        true
    }

    /// Trims expired entries from a log. Returns whether there were any.
    pub(super) fn expire(&self, kept: &mut StoredLog, now: u64) -> bool {
        let oldest = self.retention.age.and_then(|age| now.checked_sub(millis(age)));
        let freed = oldest.map_or(0, |oldest| kept.log.expire(oldest));
        self.usage.leave_history(freed);
        freed > 0
    }

    /// Queues a log, unless it is queued already, for the time at which it may have to be trimmed or evicted. That time
    /// is always later than `now`, so that a walk over the due channels terminates.
    pub(super) fn queue(&self, kept: &mut StoredLog, entry: &Arc<Entry>, now: u64) {
        if kept.is_tombstoned() {
            return;
        }
        if let (None, Some(due)) = (kept.due, self.due(kept)) {
            let due = due.max(now.saturating_add(1));
            kept.due = Some(self.queue_of(kept).insert(due, Arc::downgrade(entry)));
        }
        if let (None, Some(end)) = (kept.rare().ends, kept.rare().until) {
            let due = end.max(self.wall(now).saturating_add(1));
            kept.rare_mut().ends = Some(self.ends.insert(due, Arc::downgrade(entry)));
        }
    }

    /// Moves a log in the queue after its lifetime has changed.
    pub(super) fn requeue(&self, kept: &mut StoredLog, entry: &Arc<Entry>, now: u64) {
        self.unqueue(kept);
        self.queue(kept, entry, now);
    }

    pub(super) fn unqueue(&self, kept: &mut StoredLog) {
        if let Some(ticket) = kept.due.take() {
            self.queue_of(kept).remove(ticket);
        }
        if kept.rare().ends.is_some() {
            if let Some(ticket) = kept.rare_mut().ends.take() {
                self.ends.remove(ticket);
            }
        }
    }

    fn queue_of(&self, kept: &StoredLog) -> &ExpiryQueue {
        if kept.transient { &self.transients } else { &self.expiry_queue }
    }

    /// Turns a transient channel into an ordinary one, if the limit on channels allows.
    pub(super) fn keep_transient(&self, kept: &mut StoredLog, entry: &Arc<Entry>, now: u64) -> Result<(), Error> {
        if kept.transient {
            self.usage.admit_channel(&self.limits).map_err(Error::Full)?;
            self.usage.leave_channel(true);
            self.unqueue(kept);
            kept.transient = false;
            self.queue(kept, entry, now);
        }
        Ok(())
    }

    /// Makes a channel transient again, after the append for which it became ordinary was refused.
    pub(super) fn unkeep_transient(&self, kept: &mut StoredLog, entry: &Arc<Entry>, now: u64) {
        self.usage.exchange_for_transient();
        self.unqueue(kept);
        kept.transient = true;
        self.queue(kept, entry, now);
    }

    /// When there will be something to evict or drop, but for a fixed end: what the log holds now is too old; a log that was not
    /// created explicitly has expired; it has been idle for its lifetime.
    fn due(&self, kept: &StoredLog) -> Option<u64> {
        let aged = if kept.explicit { self.aged_at(kept.log.newest()) } else { self.forgotten_at(kept) };
        match (aged, kept.idles_at()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Returns the time at which a log that was not created explicitly is forgotten: all of its entries have expired,
    /// and its last reader has had [`LINGER`] to return. A transient log exists for its readers only, so the age of its
    /// entries does not matter.
    fn forgotten_at(&self, kept: &StoredLog) -> Option<u64> {
        let unread = kept.touched.saturating_add(LINGER);
        if kept.transient {
            return Some(unread);
        }
        Some(self.aged_at(Some(kept.log.written()))?.max(unread))
    }

    fn aged_at(&self, written: Option<u64>) -> Option<u64> {
        Some(written?.saturating_add(millis(self.retention.age?)).saturating_add(1))
    }
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use super::*;
    use crate::{
        engine::Retention,
        registry::{Append, Creation, Lifetime, Limits},
    };
    use std::{
        sync::mpsc,
        task::Waker,
        thread,
        time::{Duration, Instant as StdInstant},
    };

    fn registry() -> Registry {
        Registry::new(Limits::default(), Retention::default())
    }

    /// Fails if `run` does not terminate.
    fn ends(what: &str, run: impl FnOnce() + Send + 'static) {
        let (done, wait) = mpsc::channel();
        thread::spawn(move || {
            run();
            let _ = done.send(());
        });
        assert!(wait.recv_timeout(Duration::from_secs(30)).is_ok(), "{what} does not end");
    }

    #[test]
    fn a_channel_that_expires_at_once_is_kept_while_it_has_a_waiter_and_walks_terminate() {
        ends("a walk over what is due", || {
            for window in [Duration::ZERO, Duration::from_micros(999)] {
                let registry = registry();
                let creation = Creation {
                    content_type: Some(registry.json().clone()),
                    lifetime: Some(Lifetime::Idle(window)),
                    ..Creation::default()
                };
                let entry = registry.enter("/x");
                let key = entry.lock().waiters.park(Waker::noop().clone());
                let (_, woken) = registry.create_local(registry.assert_local(), "/x", &creation).unwrap();
                // The woken wait parks again before anything else happens.
                woken.wake();
                assert!(entry.lock().waiters.remove(key).is_none());
                let key = entry.lock().waiters.park(Waker::noop().clone());
                for _ in 0..3 {
                    let began = StdInstant::now();
                    while began.elapsed() < Duration::from_millis(2) {}
                    let now = registry.now();
                    // As many as there are, however often they come again.
                    while registry.make_room(Limit::History, now, &mut Slice::new()) {}
                    assert!(!registry.may_have_room(now));
                    registry.step(now);
                    assert_eq!(registry.usage().channels(), 1, "it has a waiter");
                }
                drop(entry.lock().waiters.remove(key));
                let began = StdInstant::now();
                while began.elapsed() < Duration::from_millis(2) {}
                registry.step(registry.now());
                assert_eq!(registry.usage().channels(), 0);
            }
        });
    }

    fn broadcast(registry: &Registry, name: &str) -> Result<(), Error> {
        let batch = Some(crate::engine::Batch::value("x").unwrap());
        let mut append = Append { batch, create: Some(registry.json()), broadcast: Some(7), ..Append::default() };
        registry.append_local(registry.assert_local(), name, &mut append).map(|(_, woken)| woken.wake())
    }

    #[test]
    fn a_refused_append_leaves_a_transient_channel_transient() {
        let registry = registry();
        let entry = registry.enter("/x");
        let _key = entry.lock().waiters.park(Waker::noop().clone());
        broadcast(&registry, "/x").unwrap();
        let is_transient = || entry.lock().log.as_ref().is_some_and(|kept| kept.transient);
        let text = "text/plain".parse().unwrap();
        let append = |content_type| {
            let batch = Some(crate::engine::Batch::value("y").unwrap());
            let mut append = Append { batch, content_type, create: Some(registry.json()), ..Append::default() };
            registry.append_local(registry.assert_local(), "/x", &mut append).map(|(_, woken)| woken.wake())
        };
        assert!(matches!(append(Some(&text)), Err(Error::ContentType { .. })));
        assert!(is_transient());
        append(None).unwrap();
        assert!(!is_transient());
    }

    #[test]
    fn a_refusal_for_the_number_of_channels_evicts_no_transient_channel() {
        let registry = Registry::new(Limits { channels: 1, ..Limits::default() }, Retention::unbounded());
        let publish = |name: &str| {
            let batch = Some(crate::engine::Batch::value("y").unwrap());
            let mut append = Append { batch, create: Some(registry.json()), ..Append::default() };
            registry.append_local(registry.assert_local(), name, &mut append).map(|(_, woken)| woken.wake())
        };
        publish("/ordinary").unwrap();
        let _key = registry.enter("/x").lock().waiters.park(Waker::noop().clone());
        broadcast(&registry, "/x").unwrap();
        assert!(matches!(publish("/another"), Err(Error::Full(Limit::Channels))));
        assert_eq!(registry.usage().channels(), 2, "evicting it could not have helped");
    }

    #[test]
    fn a_transient_channel_is_evicted_when_no_request_holds_it_and_not_before() {
        let registry = Registry::new(Limits { channels: 1, ..Limits::default() }, Retention::unbounded());
        assert!(matches!(broadcast(&registry, "/x"), Err(Error::Unknown)), "there is no waiter");
        for name in ["/x", "/y"] {
            let _key = registry.enter(name).lock().waiters.park(Waker::noop().clone());
        }
        let held = registry.enter("/x");
        for name in ["/x", "/y"] {
            broadcast(&registry, name).unwrap();
        }
        assert_eq!(registry.usage().channels(), 2);
        // A wait that has not read yet holds one of them; the other one is evicted.
        assert!(registry.evict_surplus(&mut Slice::new()));
        assert_eq!(registry.names().collect::<Vec<_>>(), ["/x"]);
        assert!(!registry.evict_transient(registry.now()));
        drop(held);
        assert!(registry.evict_transient(registry.now()));
        assert_eq!(registry.usage().channels(), 0);
    }
}
