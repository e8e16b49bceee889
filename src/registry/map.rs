//! Names to channels.

use std::{
    borrow::Borrow,
    collections::HashSet,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::Arc,
    vec,
};

use super::entry::Entry;
use crate::sync::RwLock;

/// Loom wants the same locks taken in the same order each time, whatever the hash.
const SHARDS: usize = if cfg!(comet_loom) { 1 } else { 64 };

/// The channels by name. An entry is in here while it has a log or a waiter, and no longer.
pub(super) struct Map {
    hasher: RandomState,
    shards: Box<[RwLock<Shard>]>,
}

type Shard = HashSet<ByName, RandomState>;

impl Map {
    pub(super) fn new() -> Self {
        let hasher = RandomState::new();
        let shards = (0..SHARDS).map(|_| RwLock::new(HashSet::with_hasher(hasher.clone()))).collect();
        Self { hasher, shards }
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Entry>> {
        self.shard(name).read().get(name).map(|named| named.0.clone())
    }

    /// The entry of this name, created if there is none: see [`Entry::new`] for `since`. It may be vacated before the caller
    /// has its lock.
    pub(super) fn enter(&self, name: &str, since: impl FnOnce(u64) -> u64) -> Arc<Entry> {
        if let Some(entry) = self.find(name) {
            return entry;
        }
        let mut shard = self.shard(name).write();
        if let Some(named) = shard.get(name) {
            return named.0.clone();
        }
        let entry = Arc::new(Entry::new(name, since(self.hash(name))));
        shard.insert(ByName(entry.clone()));
        entry
    }

    /// Takes an entry out, if it is vacant still.
    ///
    /// That has to be seen under both locks. Under the entry's alone, somebody who finds it in the
    /// map meanwhile would use what is about to leave the map; under the shard's alone, somebody who has found it
    /// already would.
    pub(super) fn vacate(&self, entry: &Arc<Entry>) {
        let mut shard = self.shard(entry.name()).write();
        let mut state = entry.lock();
        if state.vacated || !state.is_vacant() {
            return;
        }
        state.vacated = true;
        drop(state);
        shard.remove(entry.name());
        // A flood of names leaves no memory behind.
        if shard.capacity() > 64 && shard.len() < shard.capacity() / 8 {
            let twice = shard.len() * 2;
            shard.shrink_to(twice);
        }
    }

    /// Returns all entries. This is no snapshot: an entry that is added or removed meanwhile may be returned or not.
    pub(super) fn entries(&self) -> impl Iterator<Item = Arc<Entry>> {
        let mut walk = Walk::default();
        std::iter::from_fn(move || self.next(&mut walk))
    }

    /// Returns the next entry of a walk.
    pub(super) fn next(&self, walk: &mut Walk) -> Option<Arc<Entry>> {
        loop {
            if let Some(entry) = walk.entries.next() {
                return Some(entry);
            }
            let shard = self.shards.get(walk.shard)?;
            walk.shard += 1;
            walk.entries = shard.read().iter().map(|named| named.0.clone()).collect::<Vec<_>>().into_iter();
        }
    }

    /// A number that is the same for the same name, for as long as this map lives.
    pub(super) fn hash(&self, name: &str) -> u64 {
        self.hasher.hash_one(name)
    }

    fn shard(&self, name: &str) -> &RwLock<Shard> {
        // The set itself goes by the lowest and the seven highest bits: these are neither.
        &self.shards[(self.hash(name) >> 40) as usize % SHARDS]
    }
}

impl Drop for Map {
    /// A fork holds its source: a long line of forks of forks would be dropped one within the other, and overflow the stack.
    /// So what they hold is let go first, while all of them are still in here.
    fn drop(&mut self) {
        for entry in self.entries() {
            let log = entry.lock().log.take();
            drop(log);
        }
    }
}

/// The progress of a walk over all entries. The walk copies one shard at a time, so that no shard is locked for long
/// and a poll can stop in between.
#[derive(Default)]
pub(crate) struct Walk {
    shard: usize,
    entries: vec::IntoIter<Arc<Entry>>,
}

/// An entry that is looked up by its name.
struct ByName(Arc<Entry>);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        self.0.name()
    }
}

impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for ByName {}
