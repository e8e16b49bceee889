//! A log in memory: the history of one channel.

use std::{fmt, sync::Arc};

use super::{
    Batch, Extent, Gone, MediaType, Offset, Producers, Reading, Reason, ResponseBytes, Retention, Start,
    history::{History, HistoryEntry},
    is_json,
    reading::Pieces,
    replica,
    stored::LoggedBytes,
    utf8::is_within_character,
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
    producers: Option<Box<Producers>>,
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
            producers: None,
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
    pub(crate) fn producers(&self) -> Option<&Producers> {
        self.producers.as_deref()
    }

    pub(crate) fn producers_mut(&mut self) -> &mut Producers {
        self.producers.get_or_insert_default()
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
        let writers = self.producers.as_ref().map_or(0, |writers| writers.cost());
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
        let data = LoggedBytes::new(batch.data, &self.counter);
        self.history.push(HistoryEntry { data, messages: batch.messages, fingerprint: self.id, at: now });
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
        self.producers = None;
        before
    }

    pub(super) fn drop_oldest(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        self.floor = self.offset_before(count);
        self.history.drop_oldest(count);
    }

    /// What there is from `start`, as much as `extent` says, and at most 2,048 appends.
    pub(crate) fn read(&self, start: Start, extent: Extent) -> Result<Reading, Gone> {
        let first = self.index(start).map_err(|reason| self.gone(reason))?;
        let mut bytes = 0;
        let within_extent = |(nth, entry): &(usize, &HistoryEntry)| {
            bytes += entry.data.len();
            *nth == 0 || (bytes <= extent.bytes && *nth < READ)
        };
        let mut taken = self.history.from(first).enumerate().take_while(within_extent).count();
        let (mut reaches_tail, mut held_back) = (first + taken == self.len(), false);
        if extent.whole_characters {
            let whole = self.whole_characters(first, taken);
            // Report up-to-date: reading again before the next append returns nothing.
            held_back = whole < taken && (reaches_tail || whole == 0);
            reaches_tail = first + whole == self.len();
            taken = whole;
        }
        let chosen = self.history.from(first).take(taken);
        Ok(Reading {
            content_type: Some(self.content_type.clone()),
            json: self.json,
            log: self.id,
            after: self.offset_before(first),
            next: self.offset_before(first + taken),
            up_to_date: reaches_tail || held_back,
            closed: reaches_tail && self.closed,
            messages: chosen.clone().map(|entry| entry.messages as usize).sum(),
            until: None,
            pieces: Pieces::of(chosen.map(|entry| &entry.data), self.json),
        })
    }

    /// Returns how many entries from `first` on end with a whole character: at most `taken`, or a few more if all of
    /// those end within one.
    fn whole_characters(&self, first: usize, taken: usize) -> usize {
        let fewer = (1..=taken).rev().find(|count| !self.is_within_character(first, first + count));
        let more = || (taken + 1..=self.len() - first).find(|count| !self.is_within_character(first, first + count));
        fewer.or_else(more).unwrap_or(0)
    }

    /// Whether the bytes of the entries from `first` to `end` end within a character that the next byte continues, or may
    /// continue because the channel is not closed and nothing follows yet.
    fn is_within_character(&self, first: usize, end: usize) -> bool {
        let before = (first..end).rev().filter_map(|index| self.history.get(index));
        let last = before.flat_map(|entry| entry.data.bytes().iter().rev());
        let next = self.history.get(end).and_then(|entry| entry.data.bytes().first().copied());
        (next.is_some() || !self.closed) && is_within_character(last, next)
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
            Start::AbsentTail if self.floor.position() == 0 => Ok(0),
            Start::AbsentTail => Err(Reason::Trimmed),
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

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    /// Appends the pieces one by one, and after each reads what there is in whole characters. Returns what was read.
    fn read_along(pieces: &[Vec<u8>], bytes: usize, read_every: usize) -> Vec<Vec<u8>> {
        let mut log = Log::new("text/plain".parse().expect("a type"), 0, &Arc::default());
        let (mut after, mut read) = (Start::AbsentTail, Vec::new());
        for nth in 0..=pieces.len() {
            match pieces.get(nth) {
                Some(piece) => {
                    let batch = Batch::copy(piece).expect("not empty");
                    let weight = log.weigh(&batch, &Retention::unbounded());
                    log.append(batch, &weight, 0);
                    if nth % read_every != 0 {
                        continue;
                    }
                }
                None => log.close(0),
            }
            loop {
                let reading = log.read(after, Extent { bytes, whole_characters: true }).expect("an offset of this log");
                if reading.is_empty() {
                    assert_eq!((reading.up_to_date, reading.closed), (true, log.is_closed()));
                    break;
                }
                after = Start::After(reading.next);
                read.push(reading.into_bytes().to_vec());
            }
        }
        read
    }

    #[test]
    fn an_append_that_ends_within_a_character_is_held_back_until_the_next_one() {
        let read = |pieces: &[&[u8]]| {
            let pieces: Vec<_> = pieces.iter().map(|piece| piece.to_vec()).collect();
            read_along(&pieces, 1_000, 1)
        };
        assert_eq!(read(&[b"a", b"b"]), [b"a", b"b"]);
        assert_eq!(read(&[b"a\xe2", b"\x82\xacb", b"c"]), [&b"a\xe2\x82\xacb"[..], b"c"]);
        assert_eq!(read(&[b"\xf0", b"\x9f", b"\x98", b"\x80"]), [b"\xf0\x9f\x98\x80"], "held back three times");
        assert_eq!(read(&[b"a\xe2\x82", b"b"]), [b"a\xe2\x82b"], "the next byte does not continue it");
        assert_eq!(read(&[b"a\xe2\x82"]), [b"a\xe2\x82"], "the channel closes");
        assert_eq!(read(&[b"\x80\xff\xc0", b"\xf8"]), [&b"\x80\xff\xc0"[..], b"\xf8"], "no character begins there");
    }

    proptest! {
        #[test]
        fn pieces_that_are_decoded_one_by_one_are_the_text(
            text in "[aé€😀]{0,30}",
            garbage in vec(prop_oneof![any::<u8>(), 0x80..0xc0u8, 0xe0..0xf5u8], 0..30),
            sizes in vec(1..5usize, 80),
            bytes in 0..10usize,
            read_every in 1..4usize,
        ) {
            for mut rest in [text.as_bytes(), &garbage] {
                let whole = rest;
                let mut pieces = Vec::new();
                for size in &sizes {
                    let (piece, after) = rest.split_at(rest.len().min(*size));
                    pieces.extend((!piece.is_empty()).then(|| piece.to_vec()));
                    rest = after;
                }
                let decoded: String =
                    read_along(&pieces, bytes, read_every).iter().map(|piece| String::from_utf8_lossy(piece)).collect();
                prop_assert_eq!(decoded, String::from_utf8_lossy(&whole[..whole.len() - rest.len()]));
            }
        }
    }
}
