//! The channels, and everybody who waits on them.
//!
//! No HTTP in here. The one rule that everything follows: *check and register under the channel's lock*. A
//! wait reads the log and, if there is nothing, puts its waker on the list under the same
//! lock; an append adds and takes the wakers under it, and wakes when it has let go of it.
//!
//! | file | |
//! | --- | --- |
//! | `map` | names to channels |
//! | `entry` | one channel: its log and its waiters, behind one lock |
//! | `waiters` | the list of wakers |
//! | `timer` | waking a wait at its deadline |
//! | `slice` | how much work one poll does before it lets other tasks run |
//! | `read`, `wait`, `append`, `create`, `delete`, `broadcast` | the operations in memory |
//! | `fork` | creating a channel as a fork, in many steps |
//! | `authority`, `dispatch` | who keeps the logs, and the operations for either case |
//! | `content` | what a response sends for a reading |
//! | `outgoing`, `transfers` | the frames that the server holds, the appends that responses hold, and the limit on both |
//! | `closing` | ending all waits, at once or spread over time |
//! | `follow`, `hold`, `health` | channels of a remote engine: which this process follows, the entries it caches, whether the engine is reachable |
//! | `tend` | the maintenance task of such channels |
//! | `subscriptions`, `backlog`, `compare`, `round` | its work: subscribing, reading, comparing, and the walk over all channels |
//! | `acknowledged`, `audit` | the last acknowledged appends, and verifying after a reconnect that a remote engine still has them |
//! | `renew` | renewing idle lifetimes on a remote engine |
//! | `relay` | broadcasts with a remote engine: of this node, and of the others |
//! | `lifetime` | how long a channel lives by itself |
//! | `clock` | how far the wall clock has moved away from the registry's |
//! | `expiry` | what has aged out is let go, a step with each operation |
//! | `absent` | the offsets that stand for the tail of a channel that does not exist |
//! | `limits` | what may grow, and how far |
//!
//! The order of the locks, and what must not run under one, stand in [`sync`](crate::sync).

mod absent;
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "without a remote engine nothing is verified"))]
mod acknowledged;
mod append;
#[cfg(feature = "redis")]
mod audit;
mod authority;
#[cfg(feature = "redis")]
mod backlog;
mod broadcast;
mod clock;
mod closing;
#[cfg(feature = "redis")]
mod compare;
mod content;
mod create;
mod delete;
mod dispatch;
mod entry;
mod expiry;
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "without an engine elsewhere nothing is followed"))]
mod follow;
mod fork;
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "without an engine elsewhere it is always well"))]
mod health;
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "and nothing is held of what is kept elsewhere"))]
mod hold;
mod lifetime;
mod limits;
mod map;
mod outgoing;
mod read;
#[cfg(feature = "redis")]
mod relay;
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "in memory, reading a channel renews its lifetime"))]
mod renew;
#[cfg(feature = "redis")]
mod round;
mod slice;
#[cfg(feature = "redis")]
mod subscriptions;
#[cfg(feature = "redis")]
mod tend;
#[cfg(test)]
mod tests;
mod timer;
mod transfers;
mod wait;
mod waiters;

use std::{fmt, sync::Arc, time::Duration};
use tokio::time::Instant;

use crate::{
    Error,
    engine::{MediaType, Retention},
    fault_injection::Faults,
    name::is_path_or_word,
};
use absent::AbsentTails;
use acknowledged::Acknowledged;
use authority::Authority;
use clock::Clock;
use closing::Closing;
use delete::Orphans;
use entry::{ChannelState, Entry};
use expiry::ExpiryQueue;
use follow::Interest;
use health::Health;
use map::Map;
use renew::Renewals;
use transfers::Transfers;

#[cfg(feature = "redis")]
use crate::engine::Remote;
pub(crate) use crate::engine::{Append, Appended, Created, Creation, Fork, Lifetime};
pub use acknowledged::Loss;
pub(crate) use authority::Local;
pub(crate) use closing::Drained;
pub(crate) use content::{Content, Transfer};
pub(crate) use dispatch::LiveRead;
pub use health::Unhealthy;
pub(crate) use limits::{Limits, Usage};
pub(crate) use map::Walk;
pub(crate) use outgoing::Outgoing;
pub(crate) use read::{Peek, ReadOrWait};
pub(crate) use slice::poll_sliced;
#[cfg(feature = "redis")]
pub(crate) use tend::{connect, maintain_remote};
pub(crate) use timer::NEVER;
pub(crate) use transfers::{Cut, HeldAppends};
pub(crate) use wait::{Wait, WaitEnd};
pub(crate) use waiters::WakeList;

/// All channels of one [`Comet`](crate::Comet).
pub(crate) struct Registry {
    limits: Limits,
    retention: Retention,
    usage: Usage,
    map: Map,
    absent_tails: AbsentTails,
    expiry_queue: ExpiryQueue,
    /// The channels whose lifetime has a fixed end, by that end.
    ends: ExpiryQueue,
    /// The channels that broadcasts created for waiters on a name without one, in the order in which they are evicted.
    transients: ExpiryQueue,
    orphans: Orphans,
    transfers: Transfers,
    closing: Closing,
    authority: Authority,
    interest: Interest,
    renewals: Renewals,
    acknowledged: Acknowledged,
    health: Health,
    faults: Faults,
    began: Instant,
    clock: Clock,
    /// The type of a channel that nobody gave another.
    json: MediaType,
}

impl Registry {
    pub(crate) fn new(limits: Limits, retention: Retention) -> Self {
        Self {
            limits,
            retention,
            usage: Usage::new(),
            map: Map::new(),
            absent_tails: AbsentTails::new(),
            expiry_queue: ExpiryQueue::new(),
            ends: ExpiryQueue::new(),
            transients: ExpiryQueue::new(),
            orphans: Orphans::new(),
            transfers: Transfers::new(),
            closing: Closing::new(),
            authority: Authority::local(),
            interest: Interest::nothing(),
            renewals: Renewals::new(),
            acknowledged: Acknowledged::new(),
            health: Health::well(),
            faults: Faults::default(),
            began: Instant::now(),
            clock: Clock::new(),
            json: MediaType::Json,
        }
    }

    /// Channels whose logs are kept elsewhere. Nothing is heard of them until they are [tended](tend) to.
    #[cfg(feature = "redis")]
    pub(crate) fn elsewhere(limits: Limits, retention: Retention, remote: Arc<dyn Remote>, faults: Faults) -> Self {
        Self { authority: Authority::Remote(remote), health: Health::unknown(), faults, ..Self::new(limits, retention) }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The type of a channel that nobody gave another.
    pub(crate) fn json(&self) -> &MediaType {
        &self.json
    }

    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Whether a channel may have this name.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), Error> {
        let controls = if name.is_ascii() {
            name.bytes().any(|byte| byte.is_ascii_control())
        } else {
            name.chars().any(char::is_control)
        };
        if name.is_empty() || name.len() > self.limits.name || controls || !is_path_or_word(name) {
            return Err(Error::Name);
        }
        Ok(())
    }

    /// The names of all channels that hold a log or are waited on, as they are passed by.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.map.entries().map(|entry| entry.name().to_owned())
    }

    /// The next name of a walk over all channels that hold a log or are waited on.
    pub(crate) fn next_name(&self, walk: &mut Walk) -> Option<String> {
        self.map.next(walk).map(|entry| entry.name().to_owned())
    }

    /// How many wait on a channel.
    pub(crate) fn waiters(&self, name: &str) -> usize {
        self.map.find(name).map_or(0, |entry| entry.lock().waiters.len())
    }

    /// Does something to a channel, which stays in the map if that left a reason to keep it.
    fn edit<T>(&self, name: &str, edit: impl FnOnce(&Arc<Entry>, &mut ChannelState) -> T) -> T {
        loop {
            let entry = self.enter(name);
            let mut state = entry.lock();
            if state.vacated {
                // Its last waiter left between the map's lock and this one.
                continue;
            }
            let done = edit(&entry, &mut state);
            let vacant = state.is_vacant();
            drop(state);
            if vacant {
                self.map.vacate(&entry);
            }
            return done;
        }
    }

    /// Looks at a channel that is there, which leaves the map if its lifetime turns out to be over and nobody waits.
    fn visit<T>(&self, entry: &Arc<Entry>, look: impl FnOnce(&mut ChannelState) -> T) -> T {
        let mut state = entry.lock();
        // What is vacant already is about to be used by whoever has entered it.
        let held = state.log.is_some();
        let seen = look(&mut state);
        let vacant = held && state.is_vacant();
        drop(state);
        if vacant {
            self.map.vacate(entry);
        }
        seen
    }

    /// Milliseconds since this registry was made. A clock that ages history and ends waits; no offset depends on it.
    pub(crate) fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }

    /// The same on the time line of fixed ends, which follows the wall clock. It begins at a large number, so that a wall clock
    /// that is set back stays on it. With a remote engine, that decides when a channel ends, and has said how long that will
    /// take, so this is the registry's clock.
    fn wall(&self, now: u64) -> u64 {
        /// 34 years.
        const BEGAN: u64 = 1 << 40;
        if self.remote().is_some() { now } else { now.saturating_add(BEGAN).saturating_add_signed(self.clock.drift()) }
    }

    /// The moment of a time on that clock.
    fn moment(&self, now: u64) -> Instant {
        self.began + Duration::from_millis(now)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("usage", &self.usage).finish_non_exhaustive()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
