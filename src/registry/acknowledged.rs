//! The last acknowledged append of each channel that this process has written to, and what became of it on the remote
//! engine.
//!
//! An engine can lose what it has acknowledged: it restarts from an older snapshot, or a replica that lags takes over.
//! Readers who have read the lost appends notice, by their offsets. Nobody else would. So after each reconnect the
//! [audit](super::audit) asks the engine for the appends that it acknowledged on earlier connections, and counts those
//! that are missing.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

use super::{Registry, millis};
use crate::{
    engine::{AppendFate, Offset},
    sync::Mutex,
};

/// The number of channels that are remembered. If there are more, the one that was remembered first is forgotten, until the
/// next append to it.
const CHANNELS: usize = 10_000;

/// How many channels one call examines at most, and how many appends it returns.
const EXAMINED: usize = 1_024;
pub(super) const VERIFIED: usize = 256;

/// An append is not verified if its history ages out within so many milliseconds: the engine may have trimmed it by the time it
/// answers.
const MARGIN: u64 = 5_000;

pub(super) struct Acknowledged {
    /// The number of the current connection.
    connection: AtomicU64,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    channels: HashMap<Arc<str>, WrittenChannel>,
    /// The channels by number, in the order in which they were remembered.
    order: BTreeMap<u64, Arc<str>>,
    /// The number of the next channel.
    next: u64,
    lost_appends: u64,
    missing_channels: u64,
    /// The last loss, and the connection on which it was found.
    last: Option<(u64, AuditCounts)>,
}

#[derive(Clone, Copy)]
struct AuditCounts {
    at: Instant,
    lost_appends: u64,
    missing_channels: u64,
}

struct WrittenChannel {
    number: u64,
    last: AcknowledgedAppend,
    /// The last append of an earlier connection, if it had not been verified when the channel was written to again.
    earlier: Option<AcknowledgedAppend>,
}

#[derive(Clone, Copy)]
struct AcknowledgedAppend {
    /// The tail that the engine acknowledged.
    tail: Offset,
    sent: Sent,
}

/// When an append was sent: on the registry's clock, and on which connection at the earliest.
#[derive(Clone, Copy)]
pub(super) struct Sent {
    at: u64,
    connection: u64,
}

impl Acknowledged {
    pub(super) fn new() -> Self {
        Self { connection: AtomicU64::new(0), memory: Mutex::new(Memory::default()) }
    }

    /// Returns the time of an append that is about to be sent.
    pub(super) fn send(&self, now: u64) -> Sent {
        Sent { at: now, connection: self.connection.load(Relaxed) }
    }

    /// Remembers an append that was acknowledged.
    pub(super) fn note(&self, name: &str, tail: Offset, sent: Sent) {
        if tail.position() == 0 {
            return;
        }
        let append = AcknowledgedAppend { tail, sent };
        let mut memory = self.memory.lock();
        if let Some(channel) = memory.channels.get_mut(name) {
            return channel.note(append);
        }
        if memory.channels.len() >= CHANNELS {
            if let Some((_, first)) = memory.order.pop_first() {
                memory.channels.remove(&first);
            }
        }
        let (name, number): (Arc<str>, _) = (name.into(), memory.next);
        memory.next += 1;
        memory.order.insert(number, name.clone());
        memory.channels.insert(name, WrittenChannel { number, last: append, earlier: None });
    }

    /// Forgets a channel: this process has deleted it.
    pub(super) fn forget(&self, name: &str) {
        self.memory.lock().forget(name);
    }

    /// Starts a connection: what was acknowledged before is to be verified. Returns the number of the first channel that is not.
    pub(super) fn reconnect(&self) -> u64 {
        // Under the lock, so that no channel is remembered in between.
        let memory = self.memory.lock();
        self.connection.fetch_add(1, Relaxed);
        memory.next
    }

    /// Returns appends of earlier connections that have not been verified, of channels with a number from `cursor` to below
    /// `end`, and moves `cursor` beyond those. Forgets appends that have aged out, or are about to.
    pub(super) fn unverified(
        &self,
        cursor: &mut u64,
        end: u64,
        now: u64,
        age: Option<Duration>,
    ) -> Vec<(Arc<str>, Offset)> {
        let connection = self.connection.load(Relaxed);
        let aged = |append: &AcknowledgedAppend| {
            age.is_some_and(|age| append.sent.at.saturating_add(millis(age)) <= now.saturating_add(MARGIN))
        };
        let mut memory = self.memory.lock();
        let names: Vec<_> = memory.order.range(*cursor..end).take(EXAMINED).map(|(_, name)| name.clone()).collect();
        if names.len() < EXAMINED {
            *cursor = end;
        }
        let mut found = Vec::new();
        for name in names {
            let Some(channel) = memory.channels.get_mut(&name) else { continue };
            if found.len() >= VERIFIED {
                *cursor = channel.number;
                break;
            }
            *cursor = (*cursor).max(channel.number + 1);
            channel.earlier = channel.earlier.filter(|earlier| !aged(earlier));
            let last = Some(channel.last).filter(|last| last.sent.connection < connection);
            if last.is_some_and(|last| aged(&last)) {
                memory.forget(&name);
                continue;
            }
            found.extend(channel.earlier.into_iter().chain(last).map(|append| (name.clone(), append.tail)));
        }
        found
    }

    /// Notes what the engine has answered for an append.
    pub(super) fn settle(&self, name: &str, tail: Offset, fate: AppendFate) {
        let connection = self.connection.load(Relaxed);
        let mut memory = self.memory.lock();
        let Some(channel) = memory.channels.get_mut(name) else { return };
        let is_last = channel.last.tail == tail;
        if !is_last && channel.earlier.is_none_or(|earlier| earlier.tail != tail) {
            return;
        }
        match fate {
            AppendFate::Unknown => {}
            AppendFate::Kept if is_last => channel.last.sent.connection = connection,
            AppendFate::Kept => channel.earlier = None,
            // With all that is remembered of it, so that it is counted once.
            AppendFate::Missing => {
                memory.forget(name);
                memory.count(connection, 0, 1);
            }
            AppendFate::Ended | AppendFate::Lost => {
                if is_last {
                    memory.forget(name)
                } else {
                    channel.earlier = None
                }
                memory.count(connection, u64::from(fate == AppendFate::Lost), 0);
            }
        }
    }

    /// The numbers of lost appends and of missing channels since the start.
    pub(super) fn counts(&self) -> (u64, u64) {
        let memory = self.memory.lock();
        (memory.lost_appends, memory.missing_channels)
    }
}

impl WrittenChannel {
    fn note(&mut self, append: AcknowledgedAppend) {
        let last = self.last;
        if append.sent.connection < last.sent.connection {
            // An answer that was processed late.
            self.earlier.get_or_insert(append);
            return;
        }
        if append.sent.connection > last.sent.connection {
            // This append may hide that the last one was lost.
            self.earlier.get_or_insert(last);
        } else if is_of_one_log(append.tail, last.tail) && append.tail.position() < last.tail.position() {
            return;
        }
        self.last = append;
    }
}

/// Whether two offsets are of one log: the upper halves of their fingerprints are equal.
fn is_of_one_log(a: Offset, b: Offset) -> bool {
    a.fingerprint() >> 32 == b.fingerprint() >> 32
}

impl Memory {
    fn forget(&mut self, name: &str) {
        if let Some(channel) = self.channels.remove(name) {
            self.order.remove(&channel.number);
        }
    }

    fn count(&mut self, connection: u64, lost_appends: u64, missing_channels: u64) {
        if lost_appends + missing_channels == 0 {
            return;
        }
        self.lost_appends += lost_appends;
        self.missing_channels += missing_channels;
        let (at, number) = (Instant::now(), connection);
        let (_, last) = self
            .last
            .take_if(|(connection, _)| *connection == number)
            .unwrap_or((number, AuditCounts { at, lost_appends: 0, missing_channels: 0 }));
        let (lost_appends, missing_channels) =
            (last.lost_appends + lost_appends, last.missing_channels + missing_channels);
        self.last = Some((number, AuditCounts { at, lost_appends, missing_channels }));
    }
}

impl Registry {
    /// The numbers of lost appends and of missing channels since the start.
    pub(crate) fn lost(&self) -> (u64, u64) {
        self.acknowledged.counts()
    }

    pub(crate) fn last_loss(&self) -> Option<Loss> {
        let last = self.acknowledged.memory.lock().last;
        last.map(|(_, found)| Loss { since: found.at.elapsed(), found })
    }
}

/// Appends that the engine had acknowledged to this process and has lost: see [`Comet::last_loss`](crate::Comet::last_loss).
#[derive(Clone, Copy)]
pub struct Loss {
    since: Duration,
    found: AuditCounts,
}

impl Loss {
    /// How long ago this process found the loss. The loss itself is older.
    #[must_use]
    pub fn since(&self) -> Duration {
        self.since
    }

    /// Appends that were lost, as [`Stats::lost_appends`](crate::Stats::lost_appends) counts them.
    #[must_use]
    pub fn lost_appends(&self) -> u64 {
        self.found.lost_appends
    }

    /// Channels that were missing, as [`Stats::missing_channels`](crate::Stats::missing_channels) counts them.
    #[must_use]
    pub fn missing_channels(&self) -> u64 {
        self.found.missing_channels
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (appends, channels) = (self.lost_appends(), self.missing_channels());
        write!(
            f,
            "found {:.1?} ago, after a reconnect: acknowledged appends were lost on {appends} channels, and {channels} channels are missing",
            self.since
        )
    }
}

impl fmt::Debug for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loss")
            .field("since", &self.since)
            .field("lost_appends", &self.lost_appends())
            .field("missing_channels", &self.missing_channels())
            .finish()
    }
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use super::*;

    const LOG: u64 = 7 << 32;

    fn append(acknowledged: &Acknowledged, name: &str, position: u64) -> Offset {
        let (tail, sent) = (Offset::new(position, LOG | position), acknowledged.send(0));
        acknowledged.note(name, tail, sent);
        tail
    }

    /// All appends that are to be verified, in calls of limited length.
    fn unverified(acknowledged: &Acknowledged, end: u64) -> Vec<(Arc<str>, Offset)> {
        let (mut cursor, mut all) = (0, Vec::new());
        while cursor < end {
            let some = acknowledged.unverified(&mut cursor, end, 0, None);
            assert!(some.len() <= VERIFIED + 1, "{}", some.len());
            all.extend(some);
        }
        all
    }

    #[test]
    fn the_memory_is_bounded_and_each_channel_is_verified_once() {
        let acknowledged = Acknowledged::new();
        for round in 1..=3 {
            for n in 0..25_000 {
                append(&acknowledged, &format!("/c/{n}"), round);
                append(&acknowledged, "/again", round);
                acknowledged.forget("/again");
            }
        }
        let memory = acknowledged.memory.lock();
        // One was forgotten last.
        assert_eq!((memory.channels.len(), memory.order.len()), (CHANNELS - 1, CHANNELS - 1));
        drop(memory);
        let end = acknowledged.reconnect();
        let mut all = unverified(&acknowledged, end);
        assert_eq!(all.len(), CHANNELS - 1);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), CHANNELS - 1);
        for (name, tail) in all {
            acknowledged.settle(&name, tail, AppendFate::Kept);
        }
        assert_eq!(unverified(&acknowledged, end), []);
        assert_eq!(acknowledged.counts(), (0, 0));
    }

    #[test]
    fn an_append_after_the_reconnect_does_not_hide_one_that_was_lost() {
        let acknowledged = Acknowledged::new();
        let lost = append(&acknowledged, "/c", 100);
        let end = acknowledged.reconnect();
        append(&acknowledged, "/c", 61);
        append(&acknowledged, "/c", 62);
        let names: Vec<_> = unverified(&acknowledged, end);
        assert_eq!(names, [("/c".into(), lost)]);
        acknowledged.settle("/c", lost, AppendFate::Lost);
        assert_eq!((acknowledged.counts(), unverified(&acknowledged, end)), ((1, 0), Vec::new()));
        // What was appended since is verified after the next reconnect.
        let end = acknowledged.reconnect();
        assert_eq!(unverified(&acknowledged, end).len(), 1);
    }

    #[test]
    fn answers_that_are_processed_late_do_not_replace_a_later_append() {
        let acknowledged = Acknowledged::new();
        append(&acknowledged, "/c", 5);
        append(&acknowledged, "/c", 4);
        let old = acknowledged.send(0);
        let end = acknowledged.reconnect();
        append(&acknowledged, "/c", 7);
        acknowledged.note("/c", Offset::new(6, LOG | 6), old);
        let positions: Vec<_> = unverified(&acknowledged, end).iter().map(|(_, tail)| tail.position()).collect();
        assert_eq!(positions, [5]);
    }

    #[test]
    fn a_missing_channel_is_counted_once_and_apart() {
        let acknowledged = Acknowledged::new();
        append(&acknowledged, "/c", 1);
        acknowledged.reconnect();
        append(&acknowledged, "/c", 2);
        let end = acknowledged.reconnect();
        let appends = unverified(&acknowledged, end);
        assert_eq!(appends.len(), 2);
        for (name, tail) in &appends {
            acknowledged.settle(name, *tail, AppendFate::Missing);
        }
        assert_eq!(acknowledged.counts(), (0, 1));
    }

    #[test]
    fn an_append_that_has_aged_out_is_not_verified() {
        let acknowledged = Acknowledged::new();
        append(&acknowledged, "/c", 1);
        let end = acknowledged.reconnect();
        let age = Some(Duration::from_secs(60));
        let found = |now| acknowledged.unverified(&mut 0, end, now, age).len();
        assert_eq!((found(54_999), found(55_000), found(0)), (1, 0, 0), "and it is forgotten");
    }
}
