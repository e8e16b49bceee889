//! A log in memory: the history of one channel.

use bytes::{Bytes, BytesMut};
use std::{collections::VecDeque, error::Error, fmt, sync::Arc};

use super::{Batch, Offset, Retention};

/// What an append costs beside its bytes; counted, so that a flood of tiny messages is bounded too.
const ENTRY_COST: usize = 64;

/// Where a read starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At the earliest message that is kept: `-1`.
    Earliest,
    /// At the tail: `now`.
    Tail,
    /// Before anything that was ever appended: a wait that began when nobody had made the channel.
    Origin,
    /// Just after what the offset names.
    After(Offset),
}

/// The history of a channel, in memory.
pub(crate) struct Log {
    /// Tells this log from every other, also from an earlier one of the same name.
    id: u64,
    content_type: Arc<str>,
    json: bool,
    /// The place that stood for "before anything" while this channel was unknown.
    origin: Offset,
    /// The position just before the first kept entry. The tail of an empty log.
    floor: Offset,
    entries: VecDeque<Entry>,
    /// The payload bytes of `entries`.
    bytes: usize,
    closed: bool,
}

struct Entry {
    data: Bytes,
    messages: u32,
    /// Says which append this was. The log's own id, save where a fork inherits.
    fingerprint: u64,
    /// Milliseconds on the registry's clock.
    at: u64,
}

impl Log {
    pub(crate) fn new(content_type: Arc<str>, origin: Offset) -> Self {
        let id = fastrand::u64(1..);
        Self {
            id,
            json: is_json(&content_type),
            content_type,
            origin,
            floor: Offset::new(0, id),
            entries: VecDeque::new(),
            bytes: 0,
            closed: false,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn content_type(&self) -> &Arc<str> {
        &self.content_type
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Ends the stream: nothing is appended from here on.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// How many appends are kept.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// When the newest append that is kept was made.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.entries.back().map(|entry| entry.at)
    }

    /// What the log holds, in the measure of the limit on all history.
    pub(crate) fn cost(&self) -> usize {
        self.bytes + self.entries.len() * ENTRY_COST
    }

    /// The offset just after the last append.
    pub(crate) fn tail(&self) -> Offset {
        match self.entries.back() {
            Some(last) => Offset::new(self.floor.position() + self.entries.len() as u64, last.fingerprint),
            None => self.floor,
        }
    }

    /// Whether these bytes are of the kind that this log holds.
    pub(crate) fn takes(&self, batch: &Batch) -> bool {
        self.json == batch.json
    }

    /// What an append would change: the cost that it adds, and how many entries retention lets go
    /// to make room, with the cost that this gives back.
    pub(crate) fn weigh(&self, batch: &Batch, retention: &Retention) -> Weight {
        let mut weight = Weight { adds: batch.data.len() + ENTRY_COST, surplus: 0, frees: 0 };
        let (mut kept, mut bytes) = (self.entries.len() + 1, self.bytes + batch.data.len());
        for entry in &self.entries {
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
        self.bytes += batch.data.len();
        self.entries.push_back(Entry { data: batch.data, messages: batch.messages, fingerprint: self.id, at: now });
        self.tail()
    }

    /// Lets go of what was appended before `oldest`, and says how much cost this gives back.
    pub(crate) fn expire(&mut self, oldest: u64) -> usize {
        let before = self.cost();
        self.drop_oldest(self.entries.iter().take_while(|entry| entry.at < oldest).count());
        before - self.cost()
    }

    fn drop_oldest(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        self.floor = Offset::new(self.floor.position() + count as u64, self.entries[count - 1].fingerprint);
        self.bytes -= self.entries.drain(..count).map(|entry| entry.data.len()).sum::<usize>();
        // A burst that has aged out gives its memory back.
        if self.entries.capacity() > 32 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    /// What there is from `start`, at most `limit` bytes of messages, cut between appends; the
    /// first append goes whole, however large.
    pub(crate) fn read(&self, start: Start, limit: usize) -> Result<Reading, Gone> {
        let first = match start {
            Start::Earliest => 0,
            Start::Tail => self.entries.len(),
            Start::Origin if self.floor.position() == 0 => 0,
            Start::Origin => return Err(self.gone(Reason::Trimmed)),
            Start::After(offset) => self.locate(offset).map_err(|reason| self.gone(reason))?,
        };
        let mut bytes = 0;
        let taken = self
            .entries
            .range(first..)
            .enumerate()
            .take_while(|(nth, entry)| {
                bytes += entry.data.len();
                *nth == 0 || bytes <= limit
            })
            .count();
        let chosen = self.entries.range(first..first + taken);
        let reaches_tail = first + taken == self.entries.len();
        Ok(Reading {
            content_type: Some(self.content_type.clone()),
            json: self.json,
            log: self.id,
            after: self.offset_before(first),
            next: self.offset_before(first + taken),
            up_to_date: reaches_tail,
            closed: reaches_tail && self.closed,
            messages: chosen.clone().map(|entry| entry.messages as usize).sum(),
            pieces: match taken {
                0 => Pieces::None,
                1 => Pieces::One(self.entries[first].data.clone()),
                _ => Pieces::Many(chosen.map(|entry| entry.data.clone()).collect()),
            },
        })
    }

    /// The offset just before the entry at `index`, which is the one just after its predecessor.
    fn offset_before(&self, index: usize) -> Offset {
        match index.checked_sub(1) {
            None => self.floor,
            Some(previous) => Offset::new(self.floor.position() + index as u64, self.entries[previous].fingerprint),
        }
    }

    /// The index of the first entry after `offset`, if everything after it is still held.
    fn locate(&self, offset: Offset) -> Result<usize, Reason> {
        let untrimmed = self.floor.position() == 0;
        if offset == self.floor || (offset == self.origin && untrimmed) {
            return Ok(0);
        }
        let ours = offset.fingerprint() == self.id || offset == self.origin;
        match offset.position().checked_sub(self.floor.position()) {
            // Below the floor, where the fingerprints of the entries are no longer known.
            None | Some(0) if ours => Err(Reason::Trimmed),
            None | Some(0) => Err(Reason::OtherLog),
            Some(ahead) => match self.entries.get(usize::try_from(ahead - 1).unwrap_or(usize::MAX)) {
                Some(entry) if entry.fingerprint == offset.fingerprint() => Ok(ahead as usize),
                None if ours => Err(Reason::Ahead),
                _ => Err(Reason::OtherLog),
            },
        }
    }

    pub(crate) fn gone(&self, reason: Reason) -> Gone {
        Gone { reason, tail: self.tail(), earliest: self.floor }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("content_type", &self.content_type)
            .field("floor", &self.floor)
            .field("appends", &self.entries.len())
            .field("bytes", &self.bytes)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

/// What an append will change.
#[derive(Debug)]
pub(crate) struct Weight {
    pub(crate) adds: usize,
    pub(crate) frees: usize,
    surplus: usize,
}

/// What a read found.
#[derive(Debug)]
pub(crate) struct Reading {
    /// `None` for a channel that nobody has made; its type is whatever the reader takes it for.
    pub(crate) content_type: Option<Arc<str>>,
    pub(crate) json: bool,
    /// The log's id; 0 for a channel that nobody has made.
    pub(crate) log: u64,
    /// The place that was asked for.
    pub(crate) after: Offset,
    /// The place just after what was found.
    pub(crate) next: Offset,
    pub(crate) up_to_date: bool,
    /// The stream has ended, and this is its end.
    pub(crate) closed: bool,
    pub(crate) messages: usize,
    pieces: Pieces,
}

enum Pieces {
    None,
    One(Bytes),
    Many(Vec<Bytes>),
}

impl Reading {
    /// A channel that nobody has made: nothing at `origin`, for now.
    pub(crate) fn unknown(origin: Offset) -> Self {
        Self {
            content_type: None,
            json: false,
            log: 0,
            after: origin,
            next: origin,
            up_to_date: true,
            closed: false,
            messages: 0,
            pieces: Pieces::None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.pieces, Pieces::None)
    }

    /// All messages in one piece: a JSON array, or the bytes one after the other.
    ///
    /// Called without a lock: joining a megabyte takes longer than an append.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self.pieces {
            Pieces::None if self.json => Bytes::from_static(b"[]"),
            Pieces::None => Bytes::new(),
            Pieces::One(data) => data,
            Pieces::Many(pieces) => {
                let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
                for piece in &pieces {
                    if !self.json {
                        joined.extend_from_slice(piece);
                    } else if joined.is_empty() {
                        joined.extend_from_slice(&piece[..piece.len() - 1]);
                    } else {
                        joined.extend_from_slice(b",");
                        joined.extend_from_slice(&piece[1..piece.len() - 1]);
                    }
                }
                if self.json {
                    joined.extend_from_slice(b"]");
                }
                joined.freeze()
            }
        }
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::One(data) => write!(f, "One({} bytes)", data.len()),
            Self::Many(pieces) => write!(f, "Many({} appends)", pieces.len()),
        }
    }
}

/// Why an offset is no place to resume from: something after it cannot be given any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    reason: Reason,
    tail: Offset,
    earliest: Offset,
}

impl Gone {
    pub(crate) fn new(reason: Reason, tail: Offset, earliest: Offset) -> Self {
        Self { reason, tail, earliest }
    }

    /// What became of it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Where the channel ends now.
    #[must_use]
    pub fn tail(&self) -> Offset {
        self.tail
    }

    /// The earliest place that can be resumed from now.
    #[must_use]
    pub fn earliest(&self) -> Offset {
        self.earliest
    }
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            Reason::Unknown => "the channel of this offset is gone",
            Reason::OtherLog => "the offset is of another log: the channel was made anew since",
            Reason::Ahead => "the offset is past the end of the log",
            Reason::Trimmed => "messages after this offset are no longer kept",
            Reason::Deleted => "the channel was deleted",
        })
    }
}

impl Error for Gone {}

/// What became of an offset: see [`Gone`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Nobody has made the channel, or its history has aged out and it was forgotten: `gone`.
    Unknown,
    /// The offset is of another log: `other-log`.
    OtherLog,
    /// The offset is past the end of the log: `ahead`.
    Ahead,
    /// Some of what follows the offset is no longer kept: `trimmed`.
    Trimmed,
    /// The channel was deleted: `deleted`.
    Deleted,
}

impl Reason {
    /// The word for it in a 410's problem document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "gone",
            Self::OtherLog => "other-log",
            Self::Ahead => "ahead",
            Self::Trimmed => "trimmed",
            Self::Deleted => "deleted",
        }
    }
}

/// Whether a media type is `application/json`, whatever its case and parameters.
pub(crate) fn is_json(content_type: &str) -> bool {
    same_type(content_type, "application/json")
}

/// Whether two media types are the same; case and parameters such as `charset` do not count.
pub(crate) fn same_type(a: &str, b: &str) -> bool {
    let essence = |text: &str| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence(a) == essence(b)
}
