//! Reading a channel.

use std::sync::Arc;

use super::{
    Registry,
    entry::{Entry, State},
};
use crate::engine::{Gone, Offset, Reading, Reason, Start};

impl Registry {
    /// What a channel holds from `start`, at most `limit` bytes of messages, cut between appends.
    /// A channel that nobody has made holds nothing, and is not made by looking.
    pub(crate) fn read(&self, name: &str, start: Start, limit: usize) -> Result<Reading, Gone> {
        self.step(self.now());
        match self.map.find(name) {
            Some(entry) => self.look(&entry, &mut entry.lock(), start, limit),
            None => self.look_at_nothing(name, start),
        }
    }

    /// Where a channel ends.
    pub(crate) fn tail(&self, name: &str) -> Offset {
        match self.read(name, Start::Tail, 0) {
            Ok(reading) => reading.next,
            Err(gone) => gone.tail(),
        }
    }

    /// How many appends a channel keeps.
    pub(crate) fn history(&self, name: &str) -> usize {
        let Some(entry) = self.map.find(name) else { return 0 };
        let mut state = entry.lock();
        state.log.as_mut().map_or(0, |kept| {
            self.expire(kept, self.now());
            kept.log.len()
        })
    }

    /// [`read`](Self::read), for who holds the channel's lock.
    pub(super) fn look(
        &self,
        entry: &Arc<Entry>,
        state: &mut State,
        start: Start,
        limit: usize,
    ) -> Result<Reading, Gone> {
        let Some(kept) = state.log.as_mut() else {
            return self.look_at_nothing(entry.name(), start);
        };
        let now = self.now();
        kept.touched = now;
        self.expire(kept, now);
        kept.log.read(start, limit)
    }

    fn look_at_nothing(&self, name: &str, start: Start) -> Result<Reading, Gone> {
        let origin = self.origins.of(self.map.hash(name));
        match start {
            Start::After(offset) if offset != origin => Err(Gone::new(Reason::Unknown, origin, origin)),
            _ => Ok(Reading::unknown(origin)),
        }
    }
}
