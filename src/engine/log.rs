//! A log in memory: the history of one channel.

use std::{fmt, sync::Arc};

use super::{
    Batch, Gone, MediaType, Offset, Reading, Reason, ResponseBytes, Retention, Start, Writers,
    history::{Entry, History},
    is_json,
    reading::Pieces,
    replica,
    stored::Logged,
};

/// The memory that an append takes in addition to its bytes, so that a flood of tiny messages is bounded too: 32 bytes
/// in the history, which grows by doubling, 64 that responses share, and the allocator's overhead.
pub(super) const ENTRY_COST: usize = 128;

/// The number of appends that a read returns at most, however small they are, because it visits each under the channel's
/// lock. A remote engine, which serves one command at a time, has the same limit.
pub(crate) const READ: usize = 2_048;

/// The history of a channel, in memory.
pub(crate) struct Log {
    /// Tells this log from every other, also from an earlier one of the same name.
    pub(super) id: u64,
    pub(super) content_type: MediaType,
    pub(super) json: bool,
    /// The position just before the first kept entry. The tail of an empty log.
    pub(super) floor: Offset,
    pub(super) history: History,
    closed: bool,
    /// When it was last appended to, closed, or made.
    written: u64,
    writers: Option<Box<Writers>>,
    /// Counts the appends that the log has dropped and responses still hold.
    pub(super) counter: Arc<ResponseBytes>,
    /// It is kept elsewhere, and this is what this process holds of it.
    pub(super) replica: bool,
}

impl Log {
    pub(crate) fn new(content_type: MediaType, now: u64, counter: &Arc<ResponseBytes>) -> Self {
        let id = fastrand::u64(1..);
        Self {
            id,
            json: is_json(&content_type),
            content_type,
            floor: Offset::new(0, id),
            history: History::new(),
            closed: false,
            written: now,
            writers: None,
            counter: Arc::clone(counter),
            replica: false,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn content_type(&self) -> &MediaType {
        &self.content_type
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// What is remembered of who wrote.
    pub(crate) fn writers(&self) -> Option<&Writers> {
        self.writers.as_deref()
    }

    pub(crate) fn writers_mut(&mut self) -> &mut Writers {
        self.writers.get_or_insert_default()
    }

    /// Ends the stream: nothing is appended from here on.
    pub(crate) fn close(&mut self, now: u64) {
        self.closed = true;
        self.written = now;
    }

    /// How many appends are kept.
    pub(crate) fn len(&self) -> usize {
        self.history.len()
    }

    /// When the newest append that is kept was made.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.history.newest().map(|entry| entry.at)
    }

    /// When it was last appended to, closed, or made.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// What the log holds, in the measure of the limit on all history.
    pub(crate) fn cost(&self) -> usize {
        let writers = self.writers.as_ref().map_or(0, |writers| writers.cost());
        self.history.bytes() + self.len() * ENTRY_COST + writers
    }

    /// The offset just after the last append.
    pub(crate) fn tail(&self) -> Offset {
        match self.history.newest() {
            Some(last) => Offset::new(self.floor.position() + self.len() as u64, last.fingerprint),
            None => self.floor,
        }
    }

    /// Whether these bytes are of the kind that this log holds.
    pub(crate) fn takes(&self, batch: &Batch) -> bool {
        self.json == batch.json
    }

    /// Returns what an append would change: the cost that it adds, and how many entries retention would trim for it,
    /// with the cost that this frees.
    pub(crate) fn weigh(&self, batch: &Batch, retention: &Retention) -> Weight {
        self.weigh_some(batch, retention, usize::MAX)
    }

    /// The same, with at most `most` entries to trim.
    pub(super) fn weigh_some(&self, batch: &Batch, retention: &Retention, most: usize) -> Weight {
        let mut weight = Weight { adds: cost_of(batch), surplus: 0, frees: 0 };
        let (mut kept, mut bytes) = (self.len() + 1, self.history.bytes() + batch.data.len());
        for entry in self.history.from(0).take(most) {
            if kept <= retention.appends && bytes <= retention.bytes {
                break;
            }
            kept -= 1;
            bytes -= entry.data.len();
            weight.surplus += 1;
            weight.frees += entry.data.len() + ENTRY_COST;
        }
        weight
    }

    /// Appends, letting go of the surplus that [`weigh`](Self::weigh) found.
    pub(crate) fn append(&mut self, batch: Batch, weight: &Weight, now: u64) -> Offset {
        debug_assert!(self.takes(&batch) && !self.closed, "the registry has checked");
        self.drop_oldest(weight.surplus);
        self.written = now;
        let data = Logged::new(batch.data, &self.counter);
        self.history.push(Entry { data, messages: batch.messages, fingerprint: self.id, at: now });
        self.tail()
    }

    /// Lets go of what was appended before `oldest`, and says how much cost this gives back.
    pub(crate) fn expire(&mut self, oldest: u64) -> usize {
        let before = self.cost();
        self.drop_oldest(self.history.from(0).take_while(|entry| entry.at < oldest).count());
        before - self.cost()
    }

    /// Lets go of everything, and says how much cost this gives back.
    pub(crate) fn clear(&mut self) -> usize {
        let before = self.cost();
        self.drop_oldest(self.len());
        self.writers = None;
        before
    }

    pub(super) fn drop_oldest(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        self.floor = self.offset_before(count);
        self.history.drop_oldest(count);
    }

    /// What there is from `start`, at most `limit` bytes of messages and 2,048 appends, cut between appends; the
    /// first append goes whole, however large.
    pub(crate) fn read(&self, start: Start, limit: usize) -> Result<Reading, Gone> {
        let first = self.index(start).map_err(|reason| self.gone(reason))?;
        let mut bytes = 0;
        let taken = self
            .history
            .from(first)
            .enumerate()
            .take_while(|(nth, entry)| {
                bytes += entry.data.len();
                *nth == 0 || (bytes <= limit && *nth < READ)
            })
            .count();
        let chosen = self.history.from(first).take(taken);
        let reaches_tail = first + taken == self.len();
        Ok(Reading {
            content_type: Some(self.content_type.clone()),
            json: self.json,
            log: self.id,
            after: self.offset_before(first),
            next: self.offset_before(first + taken),
            up_to_date: reaches_tail,
            closed: reaches_tail && self.closed,
            messages: chosen.clone().map(|entry| entry.messages as usize).sum(),
            until: None,
            pieces: Pieces::of(chosen.map(|entry| &entry.data), self.json),
        })
    }

    /// The offset just before the entry at `index`, which is the one just after its predecessor.
    pub(super) fn offset_before(&self, index: usize) -> Offset {
        let previous = index.checked_sub(1).and_then(|previous| self.history.get(previous));
        previous.map_or(self.floor, |previous| Offset::new(self.floor.position() + index as u64, previous.fingerprint))
    }

    /// The index of the first entry from `start` on.
    pub(super) fn index(&self, start: Start) -> Result<usize, Reason> {
        match start {
            // The earliest that is held is not the earliest that there is.
            Start::Earliest if self.replica && self.floor.position() > 0 => Err(Reason::Trimmed),
            Start::Earliest => Ok(0),
            Start::Tail => Ok(self.len()),
            Start::Origin if self.floor.position() == 0 => Ok(0),
            Start::Origin => Err(Reason::Trimmed),
            Start::After(offset) => self.locate(offset),
        }
    }

    /// The index of the first entry after `offset`, if everything after it is still held.
    fn locate(&self, offset: Offset) -> Result<usize, Reason> {
        if offset == self.floor {
            return Ok(0);
        }
        let alike = if self.replica { replica::SHARED } else { !0 };
        let ours = (offset.fingerprint() ^ self.id) & alike == 0;
        match offset.position().checked_sub(self.floor.position()) {
            // Below the floor, where the fingerprints of the entries are no longer known.
            None | Some(0) if ours => Err(Reason::Trimmed),
            None | Some(0) => Err(Reason::OtherLog),
            Some(ahead) => match self.history.get(usize::try_from(ahead - 1).unwrap_or(usize::MAX)) {
                Some(entry) if entry.fingerprint == offset.fingerprint() => Ok(ahead as usize),
                None if ours => Err(Reason::Ahead),
                _ => Err(Reason::OtherLog),
            },
        }
    }

    pub(crate) fn gone(&self, reason: Reason) -> Gone {
        Gone::new(reason, self.tail(), self.floor)
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("content_type", &self.content_type)
            .field("floor", &self.floor)
            .field("appends", &self.len())
            .field("bytes", &self.history.bytes())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

/// What an append will change.
#[derive(Debug)]
pub(crate) struct Weight {
    pub(crate) adds: usize,
    pub(crate) frees: usize,
    pub(super) surplus: usize,
}

/// Returns the cost that an append of this batch adds, in the measure of the limit on all history.
pub(crate) fn cost_of(batch: &Batch) -> usize {
    batch.data.len() + ENTRY_COST
}
