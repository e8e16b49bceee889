//! What may grow, and how far.

use std::sync::{
    Arc,
    atomic::{
        AtomicU64, AtomicUsize as Counter,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
};

use crate::{Limit, engine::ResponseBytes, sync::AtomicUsize};

#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Bytes of one append.
    pub(crate) append: usize,
    /// Bytes of all history together.
    pub(crate) history: usize,
    /// Bytes of all request bodies that are being received.
    pub(crate) receiving: usize,
    /// Bytes that responses hold, and no log.
    pub(crate) reading: usize,
    /// Channels that hold a log.
    pub(crate) channels: usize,
    /// Waits on all channels.
    pub(crate) waits: usize,
    /// Waits on one channel.
    pub(crate) waits_per_channel: usize,
    /// Bytes of a name.
    pub(crate) name: usize,
    /// Producers that a channel remembers.
    pub(crate) producers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            append: 1024 * 1024,
            history: 256 * 1024 * 1024,
            receiving: 64 * 1024 * 1024,
            reading: 256 * 1024 * 1024,
            channels: 100_000,
            waits: 100_000,
            waits_per_channel: 100_000,
            name: 255,
            producers: 256,
        }
    }
}

/// What is in use of the limits, and what has been done.
///
/// Every operation writes in here, and reads what lies beside it: so nothing does.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Usage {
    waits: AtomicUsize,
    channels: Counter,
    /// Transient channels, which are not among those.
    transients: Counter,
    followed: Counter,
    history: Counter,
    receiving: Counter,
    responses: Arc<ResponseBytes>,
    lent: Arc<ResponseBytes>,
    cut: AtomicU64,
    appends: AtomicU64,
    delivered: AtomicU64,
    timed_out: AtomicU64,
    hook_timeouts: AtomicU64,
    hook_panics: AtomicU64,
    invalid_grants: AtomicU64,
}

impl Usage {
    pub(super) fn new() -> Self {
        Self {
            waits: AtomicUsize::new(0),
            channels: Counter::new(0),
            transients: Counter::new(0),
            followed: Counter::new(0),
            history: Counter::new(0),
            receiving: Counter::new(0),
            responses: Arc::default(),
            lent: Arc::default(),
            cut: AtomicU64::new(0),
            appends: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            hook_timeouts: AtomicU64::new(0),
            hook_panics: AtomicU64::new(0),
            invalid_grants: AtomicU64::new(0),
        }
    }

    pub(crate) fn waits(&self) -> usize {
        // Pairs with the release of a wait: who sees none left sees what they left behind.
        self.waits.load(Acquire)
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels.load(Relaxed) + self.transients.load(Relaxed)
    }

    /// Returns whether transient channels must be evicted to make room for others.
    pub(super) fn has_surplus(&self, limits: &Limits) -> bool {
        self.transients.load(Relaxed) > 0 && self.channels() > limits.channels
    }

    pub(crate) fn history(&self) -> usize {
        self.history.load(Relaxed)
    }

    pub(crate) fn receiving(&self) -> usize {
        self.receiving.load(Relaxed)
    }

    /// Counts the bytes that responses hold, and no log.
    pub(crate) fn responses(&self) -> &Arc<ResponseBytes> {
        &self.responses
    }

    /// Counts the appends that the server was lent without a copy, once for each response.
    pub(super) fn lent(&self) -> &Arc<ResponseBytes> {
        &self.lent
    }

    pub(crate) fn cut(&self) -> u64 {
        self.cut.load(Relaxed)
    }

    pub(crate) fn appends(&self) -> u64 {
        self.appends.load(Relaxed)
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Relaxed)
    }

    pub(crate) fn timed_out(&self) -> u64 {
        self.timed_out.load(Relaxed)
    }

    pub(crate) fn hook_timeouts(&self) -> u64 {
        self.hook_timeouts.load(Relaxed)
    }

    pub(crate) fn hook_panics(&self) -> u64 {
        self.hook_panics.load(Relaxed)
    }

    pub(crate) fn invalid_grants(&self) -> u64 {
        self.invalid_grants.load(Relaxed)
    }

    pub(super) fn admit_wait(&self, limits: &Limits) -> Result<(), Limit> {
        // Never over the limit and back: the last to leave would take the one that is refused for one that waits, and
        // tell nobody that it was the last.
        let admit = |waits| (waits < limits.waits).then_some(waits + 1);
        self.waits.fetch_update(AcqRel, Acquire, admit).map(drop).map_err(|_| Limit::Waits)
    }

    pub(super) fn count_wait(&self) {
        self.waits.fetch_add(1, AcqRel);
    }

    /// Gives a wait's place back, and says whether it was the last.
    pub(super) fn leave_wait(&self) -> bool {
        self.waits.fetch_sub(1, AcqRel) == 1
    }

    pub(super) fn admit_channel(&self, limits: &Limits) -> Result<(), Limit> {
        let admit = |channels| (channels < limits.channels).then_some(channels + 1);
        self.channels.fetch_update(Relaxed, Relaxed, admit).map(drop).map_err(|_| Limit::Channels)
    }

    /// Counts a transient channel. Each is created for a waiter, so the limit on waits bounds their number.
    pub(super) fn admit_transient(&self, limits: &Limits) -> Result<(), Limit> {
        let admit = |transients| (transients < limits.channels.max(limits.waits)).then_some(transients + 1);
        self.transients.fetch_update(Relaxed, Relaxed, admit).map(drop).map_err(|_| Limit::Channels)
    }

    /// Counts a channel as transient again.
    pub(super) fn exchange_for_transient(&self) {
        self.transients.fetch_add(1, Relaxed);
        self.leave_channel(false);
    }

    /// Counts a channel whose log is kept elsewhere.
    pub(super) fn count_channel(&self) {
        self.channels.fetch_add(1, Relaxed);
    }

    /// Counts one more channel that is followed, and says how many there were.
    pub(super) fn admit_followed(&self) -> usize {
        self.followed.fetch_add(1, Relaxed)
    }

    #[cfg(feature = "redis")]
    pub(super) fn followed(&self) -> usize {
        self.followed.load(Relaxed)
    }

    pub(super) fn leave_followed(&self) {
        self.followed.fetch_sub(1, Relaxed);
    }

    pub(super) fn leave_channel(&self, transient: bool) {
        let count = if transient { &self.transients } else { &self.channels };
        count.fetch_sub(1, Relaxed);
    }

    /// Exchanges what an append lets go for what it adds.
    pub(super) fn admit_history(&self, limits: &Limits, adds: usize, frees: usize) -> Result<(), Limit> {
        let admit = |history: usize| {
            let after = (history + adds).saturating_sub(frees);
            (after <= limits.history || adds <= frees).then_some(after)
        };
        self.history.fetch_update(Relaxed, Relaxed, admit).map(drop).map_err(|_| Limit::History)
    }

    /// Counts what a log remembers beside its history: little, and nothing is refused for it.
    pub(super) fn adjust_history(&self, before: usize, after: usize) {
        self.history.fetch_add(after.saturating_sub(before), Relaxed);
        self.leave_history(before.saturating_sub(after));
    }

    pub(super) fn leave_history(&self, frees: usize) {
        if frees > 0 {
            self.history.fetch_sub(frees, Relaxed);
        }
    }

    /// Counts memory that is about to be allocated for a request body.
    pub(crate) fn admit_receiving(&self, limits: &Limits, bytes: usize) -> Result<(), Limit> {
        let admit = |receiving: usize| receiving.checked_add(bytes).filter(|after| *after <= limits.receiving);
        self.receiving.fetch_update(Relaxed, Relaxed, admit).map(drop).map_err(|_| Limit::Receiving)
    }

    pub(crate) fn leave_receiving(&self, bytes: usize) {
        self.receiving.fetch_sub(bytes, Relaxed);
    }

    pub(super) fn count_append(&self) {
        self.appends.fetch_add(1, Relaxed);
    }

    pub(super) fn count_cut(&self) {
        self.cut.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_delivered(&self) {
        self.delivered.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_timed_out(&self) {
        self.timed_out.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_hook_timeout(&self) {
        self.hook_timeouts.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_hook_panic(&self) {
        self.hook_panics.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_invalid_grant(&self) {
        self.invalid_grants.fetch_add(1, Relaxed);
    }
}
