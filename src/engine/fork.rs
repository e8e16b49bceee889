//! What a fork inherits from its source: the same appends, not copies, at the same offsets.

use std::{collections::VecDeque, mem, sync::Arc};

use super::{
    Batch, Log, MediaType, Offset, ResponseBytes, Retention, Start,
    history::{History, HistoryEntry},
    log::ENTRY_COST,
    stored::LoggedBytes,
};
use crate::{Error, Limit};

/// The number of entries that one step copies or trims, under one hold of a lock.
const STEP: usize = 1_024;

/// What a fork inherits, while it is being copied from its source.
///
/// Copying takes many steps, between which the source is not locked. Its entries never change, and the fork's end is
/// fixed before the first step, so later appends to the source do not matter. If retention trims an entry of the source
/// that is still to be copied, the fork [starts over](Self::restart).
pub(crate) struct ForkCopy {
    pub(crate) content_type: MediaType,
    json: bool,
    counter: Arc<ResponseBytes>,
    /// The offset just before the first entry.
    floor: Offset,
    /// The offset just after the last entry that is inherited whole.
    end: Offset,
    /// Whether the request named no offset: the fork begins at the source's tail.
    at_tail: bool,
    /// The entries that are copied so far.
    entries: VecDeque<HistoryEntry>,
    /// The bytes of their payload.
    bytes: usize,
    /// The append that follows, and how much of its beginning becomes an append of the fork's own.
    part: Option<(HistoryEntry, u64)>,
}

/// The result of one step of copying.
#[derive(Debug)]
pub(crate) enum Copied {
    All,
    Some,
    /// The source has trimmed the next entry. Contains its floor.
    Trimmed(Offset),
}

impl Log {
    /// Begins a fork of this log at `at`, which inherits all retained entries up to there, and `part` of the append that
    /// follows, in messages or bytes (Durable Streams, section 4.2). Copies no entry yet: see [`copy`](Self::copy).
    ///
    /// The part is yet to be [cut](ForkCopy::cut). That takes as long as the append is large, and the caller of this method
    /// holds a lock.
    pub(crate) fn branch(&self, at: Start, part: u64) -> Result<ForkCopy, Error> {
        let end = self.index(at).map_err(|_| Error::ForkOffset)?;
        let part = match part {
            0 => None,
            part => Some((self.history.get(end).ok_or(Error::ForkOffset)?.clone(), part)),
        };
        Ok(ForkCopy {
            content_type: self.content_type.clone(),
            json: self.json,
            counter: Arc::clone(&self.counter),
            floor: self.floor,
            end: self.offset_before(end),
            at_tail: at == Start::Tail && part.is_none(),
            entries: VecDeque::new(),
            bytes: 0,
            part,
        })
    }

    /// Copies the next entries of a fork, at most [`STEP`]. Before that, calls `admit` with the bytes of their payload.
    pub(crate) fn copy(
        &self,
        branch: &mut ForkCopy,
        admit: impl FnOnce(usize) -> Result<(), Limit>,
    ) -> Result<Copied, Limit> {
        let next = branch.floor.position() + branch.entries.len() as u64;
        let Some(first) = next.checked_sub(self.floor.position()) else { return Ok(Copied::Trimmed(self.floor)) };
        let missing = branch.missing();
        let entries = self.history.from(first as usize).take(missing.min(STEP));
        let bytes = entries.clone().map(|entry| entry.data.len()).sum();
        admit(bytes)?;
        branch.entries.extend(entries.cloned());
        branch.bytes += bytes;
        Ok(if missing > STEP { Copied::Some } else { Copied::All })
    }

    /// Drops up to [`STEP`] of the oldest entries, as far as retention does not keep them beside `batch`. Returns whether
    /// there may be more.
    pub(crate) fn trim_for(&mut self, batch: &Batch, retention: &Retention) -> bool {
        let surplus = self.weigh_some(batch, retention, STEP).surplus;
        self.drop_oldest(surplus);
        surplus == STEP
    }
}

impl ForkCopy {
    /// Cuts the append of which the fork inherits a part.
    pub(crate) fn cut(mut self) -> Result<Self, Error> {
        let Some((next, part)) = self.part.take() else { return Ok(self) };
        let whole = Batch { data: next.data.bytes().clone(), messages: next.messages, json: self.json };
        if part == whole.parts() {
            self.end = Offset::new(self.end.position() + 1, next.fingerprint);
        } else {
            let Batch { data, messages, .. } = whole.first(part).ok_or(Error::ForkOffset)?;
            let data = LoggedBytes::new(data, &self.counter);
            self.part = Some((HistoryEntry { data, messages, ..next }, part));
        }
        Ok(self)
    }

    /// What a log of this fork will cost, in the measure of the limit on all history, without the payload of the entries
    /// that are not copied yet.
    pub(crate) fn cost(&self) -> usize {
        let part = self.part.as_ref().map_or(0, |(part, _)| part.data.len() + ENTRY_COST);
        (self.entries.len() + self.missing()) * ENTRY_COST + self.bytes + part
    }

    /// Allocates the memory for all entries, and for as many `more`, so that neither a step of copying nor the first
    /// append moves those that are there already.
    pub(crate) fn allocate(&mut self, more: usize) {
        let entries = self.missing() + usize::from(self.part.is_some()) + more;
        if entries > 1 {
            // As much as a log of that length has, which doubles when it is full.
            self.entries.reserve(entries.next_power_of_two());
        }
    }

    /// Starts over at `floor`, the present floor of the source. Returns the copied entries, to be dropped.
    ///
    /// If the end of the fork is below the floor and the request named no offset, the fork begins at the floor, which
    /// was the source's tail at some time since the request. Otherwise this is an error, and changes nothing.
    pub(crate) fn restart(&mut self, floor: Offset) -> Result<DroppedEntries, Error> {
        if floor.position() > self.end.position() {
            if !self.at_tail {
                return Err(Error::ForkOffset);
            }
            self.end = floor;
        }
        self.floor = floor;
        self.bytes = 0;
        Ok(DroppedEntries(mem::take(&mut self.entries)))
    }

    /// Returns the log of the fork.
    pub(crate) fn into_log(mut self, now: u64) -> Log {
        debug_assert_eq!(self.missing(), 0, "all entries are copied");
        let mut log = Log::new(self.content_type, now, &self.counter);
        log.floor = self.floor;
        if self.entries.len() > 1 {
            log.history = History::Many { entries: self.entries, bytes: self.bytes };
        } else if let Some(entry) = self.entries.pop_front() {
            log.history.push(entry);
        }
        if let Some((mut part, _)) = self.part {
            part.fingerprint = log.id;
            log.history.push(part);
        }
        log
    }

    /// How many entries are still to be copied.
    pub(crate) fn missing(&self) -> usize {
        (self.end.position() - self.floor.position()) as usize - self.entries.len()
    }
}

/// The entries of a log or of a fork that was not made, to be dropped a few at a time: with very many, that takes long.
pub(crate) struct DroppedEntries(VecDeque<HistoryEntry>);

impl DroppedEntries {
    /// Drops up to 32 entries. Returns whether there are none left.
    pub(crate) fn drop_some(&mut self) -> bool {
        self.0.truncate(self.0.len().saturating_sub(32));
        self.0.is_empty()
    }
}

impl From<ForkCopy> for DroppedEntries {
    fn from(branch: ForkCopy) -> Self {
        Self(branch.entries)
    }
}

impl From<Log> for DroppedEntries {
    fn from(log: Log) -> Self {
        match log.history {
            History::One(_) => Self(VecDeque::new()),
            History::Many { entries, .. } => Self(entries),
        }
    }
}
