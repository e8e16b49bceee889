//! What a fork takes over from its source: the same appends, not copies, at the same offsets.

use std::sync::Arc;

use super::{Batch, Log, MediaType, Offset, ResponseBytes, Start, history::Entry, stored::Logged};
use crate::Error;

/// What a fork begins with.
#[derive(Clone)]
pub(crate) struct Branch {
    pub(crate) content_type: MediaType,
    floor: Offset,
    entries: Vec<Entry>,
    /// The append that follows, and how much of its beginning is to be an append of the fork's own.
    part: Option<(Entry, u64)>,
    json: bool,
    counter: Arc<ResponseBytes>,
}

impl Log {
    /// What a fork of this log at a place begins with: everything that is kept up to there, and `part` of the
    /// append that follows, counted in messages or bytes (Durable Streams, section 4.2).
    ///
    /// That part is yet to be [cut](Branch::cut): it takes as long as the append is large, and this is called under a lock.
    pub(crate) fn branch(&self, at: Start, part: u64) -> Result<Branch, Error> {
        let end = self.index(at).map_err(|_| Error::ForkOffset)?;
        let mut branch = Branch {
            content_type: self.content_type.clone(),
            floor: self.floor,
            entries: self.history.from(0).take(end).cloned().collect(),
            part: None,
            json: self.json,
            counter: Arc::clone(&self.counter),
        };
        if part > 0 {
            let next = self.history.get(end).ok_or(Error::ForkOffset)?;
            branch.part = Some((next.clone(), part));
        }
        Ok(branch)
    }

    /// A log that begins with what another one held.
    pub(crate) fn forked(branch: Branch, now: u64) -> Self {
        let mut log = Self::new(branch.content_type, now, &branch.counter);
        log.floor = branch.floor;
        log.history = branch.entries.into_iter().collect();
        if let Some((mut part, _)) = branch.part {
            part.fingerprint = log.id;
            log.history.push(part);
        }
        log
    }
}

impl Branch {
    /// Cuts the append that only a part of is taken over.
    pub(crate) fn cut(mut self) -> Result<Self, Error> {
        let Some((next, part)) = self.part.take() else { return Ok(self) };
        let whole = Batch { data: next.data.bytes().clone(), messages: next.messages, json: self.json };
        if part == whole.parts() {
            self.entries.push(next);
        } else {
            let Batch { data, messages, .. } = whole.first(part).ok_or(Error::ForkOffset)?;
            let data = Logged::new(data, &self.counter);
            self.part = Some((Entry { data, messages, ..next }, part));
        }
        Ok(self)
    }
}
