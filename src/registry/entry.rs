//! One channel: its log and its waiters, behind one lock.

use std::{fmt, sync::Arc};

use super::{Fork, Lifetime, expiry::ExpiryKey, follow::Replica, waiters::ChannelWaiters};
use crate::{
    engine::{Log, Offset},
    sync::{Mutex, MutexGuard, Rank},
};

pub(super) struct Entry {
    name: Box<str>,
    state: Mutex<ChannelState>,
}

pub(super) struct ChannelState {
    /// What was appended; `None` while nobody has made the channel.
    pub(super) log: Option<StoredLog>,
    pub(super) waiters: ChannelWaiters,
    /// Whether what is published elsewhere is heard here.
    pub(super) replica: Option<Box<Replica>>,
    /// The number of an ending after which no channel of this name has ended: see [`AbsentTails`](super::absent::AbsentTails). Unused
    /// with a remote engine.
    pub(super) since: u64,
    /// Out of the map: whoever still finds this entry looks its name up again.
    pub(super) vacated: bool,
}

/// A log, and how long it is kept.
pub(super) struct StoredLog {
    pub(super) log: Log,
    /// When it was last read or written, on the registry's clock.
    pub(super) touched: u64,
    /// Its place in the queue of expiries, for all but a fixed end.
    pub(super) due: Option<ExpiryKey>,
    rare: Option<Box<RareFields>>,
    /// Created by a broadcast for waiters on a name without a channel: it expires soon after its last reader, and is
    /// evicted before another channel is refused. Any other write turns it into an ordinary channel.
    pub(super) transient: bool,
    /// Created by name rather than by an append: it stays until it is deleted.
    pub(super) explicit: bool,
}

/// What few channels have: the others do not hold room for it.
pub(super) struct RareFields {
    pub(super) lifetime: Lifetime,
    /// The end of the lifetime, if that is fixed, in milliseconds on the time line of [`Registry::wall`](super::Registry::wall).
    pub(super) until: Option<u64>,
    /// Its place in the queue of fixed ends.
    pub(super) ends: Option<ExpiryKey>,
    /// How many forks of it there are.
    pub(super) forks: usize,
    /// Deleted, but its name is taken for as long as it has forks.
    pub(super) tombstoned: bool,
    pub(super) fork_source: Option<ForkSource>,
}

impl RareFields {
    const NOTHING: Self =
        Self { lifetime: Lifetime::Unbounded, until: None, ends: None, forks: 0, tombstoned: false, fork_source: None };
}

impl StoredLog {
    pub(super) fn new(log: Log, transient: bool, now: u64) -> Self {
        Self { log, touched: now, due: None, rare: None, transient, explicit: false }
    }

    pub(super) fn rare(&self) -> &RareFields {
        static NOTHING: RareFields = RareFields::NOTHING;
        self.rare.as_deref().unwrap_or(&NOTHING)
    }

    pub(super) fn rare_mut(&mut self) -> &mut RareFields {
        self.rare.get_or_insert_with(|| Box::new(RareFields::NOTHING))
    }

    pub(super) fn set_lifetime(&mut self, lifetime: Lifetime, until: Option<u64>) {
        if (lifetime, until) != (self.rare().lifetime, self.rare().until) {
            let special = self.rare_mut();
            (special.lifetime, special.until) = (lifetime, until);
        }
    }

    pub(super) fn is_tombstoned(&self) -> bool {
        self.rare().tombstoned
    }
}

impl ChannelState {
    /// Where the channel ends, as far as is held here.
    pub(super) fn known_tail(&self) -> Option<Offset> {
        self.log.as_ref().map(|kept| kept.log.tail())
    }

    /// The absent tail that a remote engine reported last. It may have changed since: the engine decides.
    pub(super) fn remote_absent_tail(&self) -> Offset {
        self.replica.as_ref().map_or(Offset::ZERO, |follow| follow.absent_tail)
    }
}

/// Where a fork comes from.
pub(super) struct ForkSource {
    pub(super) fork: Fork,
    pub(super) parent: ForkParent,
}

/// A log that is forked, and counts its forks.
#[derive(Clone)]
pub(super) struct ForkParent {
    pub(super) entry: Arc<Entry>,
    pub(super) log: u64,
}

impl Entry {
    /// `since` is that of [`ChannelState`].
    pub(super) fn new(name: &str, since: u64) -> Self {
        let (waiters, log, follow) = (ChannelWaiters::default(), None, None);
        let state = ChannelState { log, waiters, replica: follow, since, vacated: false };
        Self { name: name.into(), state: Mutex::ranked(Rank::Channel, state) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ChannelState> {
        self.state.lock()
    }
}

impl ChannelState {
    /// Whether the channel has a parked wait, or an event stream that is not parked at the moment.
    pub(super) fn is_waited_on(&self) -> bool {
        self.waiters.len() > 0 || self.waiters.admitted() > 0
    }

    /// Whether the entry can leave the map. An admitted wait keeps it there, so that its limit counts all waits of a name.
    pub(super) fn is_vacant(&self) -> bool {
        self.log.is_none() && self.replica.is_none() && !self.is_waited_on()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("name", &self.name).finish_non_exhaustive()
    }
}
