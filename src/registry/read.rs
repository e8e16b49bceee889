//! Reading a channel.

use std::sync::Arc;

use super::{
    Lifetime, Registry, Wait,
    entry::{ChannelState, Entry},
};
use crate::engine::{Extent, Gone, MediaType, Offset, Reading, Reason, Start};

impl Registry {
    /// What a channel holds from `start`, as much as `extent` says.
    /// A channel that nobody has made holds nothing, and is not made by looking.
    pub(crate) fn read_local(&self, name: &str, start: Start, extent: Extent) -> Result<Reading, Gone> {
        let now = self.now();
        self.step(now);
        match self.map.find(name) {
            Some(entry) => self.visit(&entry, |state| self.read_entry(&entry, state, start, extent, now)),
            None => self.read_absent(name, start),
        }
    }

    /// The same, as a wait if there is nothing and the stream has not ended: one look at the map serves both.
    pub(crate) fn read_or_wait_local(
        self: &Arc<Self>,
        name: &str,
        start: Start,
        extent: Extent,
    ) -> Result<ReadOrWait, Gone> {
        let now = self.now();
        self.step(now);
        let found = self.map.find(name);
        let reading = match &found {
            Some(entry) => self.visit(entry, |state| self.read_entry(entry, state, start, extent, now))?,
            None => self.read_absent(name, start)?,
        };
        if !reading.is_empty() || reading.closed {
            return Ok(ReadOrWait::Read(reading));
        }
        let entry = found.unwrap_or_else(|| self.enter(name));
        Ok(ReadOrWait::Wait(Wait::on(entry, self.clone(), reading.next, reading.content_type.is_some())))
    }

    /// What a channel is, without touching it: looking does not keep it alive. `None` if nobody has made it.
    pub(crate) fn peek_local(&self, name: &str) -> Result<Option<Peek>, Gone> {
        let Some(entry) = self.map.find(name) else { return Ok(None) };
        self.visit(&entry, |state| {
            let now = self.now();
            let Some(kept) = self.living(&entry, state, now) else { return Ok(None) };
            if kept.is_tombstoned() {
                return Err(kept.log.gone(Reason::Deleted));
            }
            self.expire(kept, now);
            Ok(Some(Peek {
                content_type: kept.log.content_type().clone(),
                tail: kept.log.tail(),
                closed: kept.log.is_closed(),
                history: kept.log.len(),
                lifetime: kept.rare().lifetime,
            }))
        })
    }

    /// The tail of a channel, also of one that nobody has made.
    pub(crate) fn tail(&self, name: &str) -> Offset {
        match self.peek_local(name) {
            Ok(Some(peek)) => peek.tail,
            Ok(None) => self.absent_tail(name),
            Err(gone) => gone.tail(),
        }
    }

    /// Returns the absent tail of a name. With a remote engine, this is the one that the engine reported last; the
    /// engine decides whether it still accepts it.
    pub(crate) fn absent_tail(&self, name: &str) -> Offset {
        if self.remote().is_some() {
            return self.map.find(name).map_or(Offset::ZERO, |entry| entry.lock().remote_absent_tail());
        }
        self.absent_tails.tail(self.map.hash(name))
    }

    /// The entry of this name in the map, created if there is none.
    pub(super) fn enter(&self, name: &str) -> Arc<Entry> {
        self.map.enter(name, |hash| self.absent_tails.since(hash))
    }

    /// Resolves the absent tail of this name to the start of the log. Returns any other start unchanged.
    pub(super) fn resolve(&self, entry: &Entry, state: &ChannelState, start: Start) -> Start {
        match start {
            Start::After(offset) if offset.position() == 0 && self.is_absent_tail(entry, state, offset) => {
                Start::AbsentTail
            }
            start => start,
        }
    }

    fn is_absent_tail(&self, entry: &Entry, state: &ChannelState, offset: Offset) -> bool {
        match self.remote() {
            Some(_) => offset == state.remote_absent_tail(),
            None => self.absent_tails.is_tail(offset, self.map.hash(entry.name()), state.since),
        }
    }

    /// Reads a name without an entry.
    fn read_absent(&self, name: &str, start: Start) -> Result<Reading, Gone> {
        let absent_tail = self.absent_tail(name);
        let known = match start {
            Start::After(offset) if self.remote().is_none() => {
                let hash = self.map.hash(name);
                self.absent_tails.is_tail(offset, hash, self.absent_tails.since(hash))
            }
            Start::After(offset) => offset == absent_tail,
            _ => true,
        };
        absent(absent_tail, known)
    }

    /// [`read_local`](Self::read_local), for who holds the channel's lock.
    pub(super) fn read_entry(
        &self,
        entry: &Arc<Entry>,
        state: &mut ChannelState,
        start: Start,
        extent: Extent,
        now: u64,
    ) -> Result<Reading, Gone> {
        self.living(entry, state, now);
        let start = self.resolve(entry, state, start);
        let Some(kept) = state.log.as_mut() else {
            let absent_tail = match self.remote() {
                Some(_) => state.remote_absent_tail(),
                None => self.absent_tails.tail(self.map.hash(entry.name())),
            };
            return absent(absent_tail, !matches!(start, Start::After(_)));
        };
        if kept.is_tombstoned() {
            return Err(kept.log.gone(Reason::Deleted));
        }
        kept.touched = now;
        self.expire(kept, now);
        let mut reading = kept.log.read(start, extent)?;
        reading.until = self.look_again_at(kept, now);
        Ok(reading)
    }
}

/// Returns an empty reading of a channel that does not exist, if the client's offset is `known` to be good.
fn absent(absent_tail: Offset, known: bool) -> Result<Reading, Gone> {
    if known { Ok(Reading::unknown(absent_tail)) } else { Err(Gone::new(Reason::Unknown, absent_tail, absent_tail)) }
}

/// What comes of a read that may wait.
pub(crate) enum ReadOrWait {
    Read(Reading),
    Wait(Wait),
}

impl ReadOrWait {
    /// Whether somebody has made the channel.
    pub(crate) fn found(&self) -> bool {
        match self {
            Self::Read(reading) => reading.content_type.is_some(),
            Self::Wait(wait) => wait.existed(),
        }
    }
}

/// What a channel is.
#[derive(Clone, Debug)]
pub(crate) struct Peek {
    pub(crate) content_type: MediaType,
    pub(crate) tail: Offset,
    pub(crate) closed: bool,
    pub(crate) history: usize,
    pub(crate) lifetime: Lifetime,
}
