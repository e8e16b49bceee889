//! Reading a channel.

use std::sync::Arc;

use super::{
    Lifetime, Registry, Wait,
    entry::{Entry, State},
    origin::Bucket,
};
use crate::engine::{Gone, MediaType, Offset, Reading, Reason, Start};

impl Registry {
    /// What a channel holds from `start`, at most `limit` bytes of messages, cut between appends.
    /// A channel that nobody has made holds nothing, and is not made by looking.
    pub(crate) fn read(&self, name: &str, start: Start, limit: usize) -> Result<Reading, Gone> {
        let now = self.now();
        self.step(now);
        match self.map.find(name) {
            Some(entry) => self.visit(&entry, |state| self.look(&entry, state, start, limit, now)),
            None => look_at_nothing(self.origin(name), start),
        }
    }

    /// The same, as a wait if there is nothing and the stream has not ended: one look at the map serves both.
    pub(crate) fn read_or_wait(self: &Arc<Self>, name: &str, start: Start, limit: usize) -> Result<Begun, Gone> {
        let now = self.now();
        self.step(now);
        let found = self.map.find(name);
        let reading = match &found {
            Some(entry) => self.visit(entry, |state| self.look(entry, state, start, limit, now))?,
            None => look_at_nothing(self.origin(name), start)?,
        };
        if !reading.is_empty() || reading.closed {
            return Ok(Begun::Read(reading));
        }
        let entry = found.unwrap_or_else(|| self.map.enter(name));
        Ok(Begun::Wait(Wait::on(entry, self.clone(), reading.next, reading.content_type.is_some())))
    }

    /// What a channel is, without touching it: looking does not keep it alive. `None` if nobody has made it.
    pub(crate) fn peek(&self, name: &str) -> Result<Option<Peek>, Gone> {
        let Some(entry) = self.map.find(name) else { return Ok(None) };
        self.visit(&entry, |state| {
            let now = self.now();
            let Some(kept) = self.living(state, now) else { return Ok(None) };
            if kept.is_buried() {
                return Err(kept.log.gone(Reason::Deleted));
            }
            self.expire(kept, now);
            Ok(Some(Peek {
                content_type: kept.log.content_type().clone(),
                tail: kept.log.tail(),
                closed: kept.log.is_closed(),
                history: kept.log.len(),
                lifetime: kept.special().lifetime,
            }))
        })
    }

    /// The tail of a channel, also of one that nobody has made.
    pub(crate) fn tail(&self, name: &str) -> Offset {
        match self.peek(name) {
            Ok(Some(peek)) => peek.tail,
            Ok(None) => self.origin(name),
            Err(gone) => gone.tail(),
        }
    }

    /// What stands for the tail of a channel that nobody has made.
    pub(crate) fn origin(&self, name: &str) -> Offset {
        if self.remote.is_some() {
            // As far as is known here: the engine is asked by who goes by it.
            return self.map.find(name).map_or(Offset::ZERO, |entry| entry.lock().origin_elsewhere());
        }
        self.origins.of(Bucket::of(self.map.hash(name)))
    }

    /// [`read`](Self::read), for who holds the channel's lock.
    pub(super) fn look(
        &self,
        entry: &Arc<Entry>,
        state: &mut State,
        start: Start,
        limit: usize,
        now: u64,
    ) -> Result<Reading, Gone> {
        self.living(state, now);
        let Some(kept) = state.log.as_mut() else {
            let elsewhere = self.remote.is_some();
            let origin = if elsewhere { state.origin_elsewhere() } else { self.origin(entry.name()) };
            return look_at_nothing(origin, start);
        };
        if kept.is_buried() {
            return Err(kept.log.gone(Reason::Deleted));
        }
        kept.touched = now;
        self.expire(kept, now);
        let mut reading = kept.log.read(start, limit)?;
        reading.until = kept.special().until;
        Ok(reading)
    }
}

fn look_at_nothing(origin: Offset, start: Start) -> Result<Reading, Gone> {
    match start {
        Start::After(offset) if offset != origin => Err(Gone::new(Reason::Unknown, origin, origin)),
        _ => Ok(Reading::unknown(origin)),
    }
}

/// What comes of a read that may wait.
pub(crate) enum Begun {
    Read(Reading),
    Wait(Wait),
}

impl Begun {
    /// Whether somebody has made the channel.
    pub(crate) fn found(&self) -> bool {
        match self {
            Self::Read(reading) => reading.content_type.is_some(),
            Self::Wait(wait) => wait.existed(),
        }
    }
}

/// What a channel is.
#[derive(Debug)]
pub(crate) struct Peek {
    pub(crate) content_type: MediaType,
    pub(crate) tail: Offset,
    pub(crate) closed: bool,
    pub(crate) history: usize,
    pub(crate) lifetime: Lifetime,
}
