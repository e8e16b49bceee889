//! What a read asks for, and what it found.

use bytes::{Bytes, BytesMut};
use std::{fmt, sync::Arc};

use super::{AppendBytes, MediaType, Offset, ResponseBytes, stored::LoggedBytes};

/// Where a read starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At the earliest message that is kept: `-1`.
    Earliest,
    /// At the tail: `now`.
    Tail,
    /// Before anything that was ever appended.
    AbsentTail,
    /// Just after what the offset names.
    After(Offset),
}

/// How much a read returns. It ends between two appends, and returns at least one, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The bytes of messages.
    pub(crate) bytes: usize,
    /// Whether to return only appends up to one that ends with a whole character of UTF-8, for a reader that decodes each piece
    /// by itself. An append that ends within a character is held back until the next one. Retention may drop it meanwhile.
    pub(crate) whole_characters: bool,
}

impl From<usize> for Extent {
    fn from(bytes: usize) -> Self {
        Self { bytes, whole_characters: false }
    }
}

/// What a read found.
#[derive(Debug)]
pub(crate) struct Reading {
    /// `None` for a channel that nobody has made; its type is whatever the reader takes it for.
    pub(crate) content_type: Option<MediaType>,
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
    /// When the channel's lifetime ends, if that is fixed, on the registry's clock.
    pub(crate) until: Option<u64>,
    pub(super) pieces: Pieces,
}

/// The appends that were found.
pub(super) enum Pieces {
    None,
    /// Shared with the log.
    One(Arc<AppendBytes>),
    Many(Vec<Arc<AppendBytes>>),
    /// A copy of several, joined.
    Joined(Bytes),
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
            until: None,
            pieces: Pieces::None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.pieces, Pieces::None)
    }

    /// The bytes of all messages together, as a response sends them.
    pub(crate) fn size(&self) -> usize {
        match &self.pieces {
            Pieces::None => 0,
            Pieces::One(data) => data.len(),
            Pieces::Many(pieces) => joined_size(pieces.iter().map(|piece| &***piece), self.json),
            Pieces::Joined(bytes) => bytes.len(),
        }
    }

    /// All messages in one piece: a JSON array, or the bytes one after the other. They do not count as bytes that a
    /// response holds: this is for few bytes, and for the application.
    ///
    /// Called without a lock: joining a megabyte takes longer than an append.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self.pieces {
            Pieces::None if self.json => Bytes::from_static(b"[]"),
            Pieces::None => Bytes::new(),
            Pieces::One(data) => data.bytes().clone(),
            Pieces::Many(pieces) => join(pieces.iter().map(|piece| &***piece), self.json),
            Pieces::Joined(bytes) => bytes,
        }
    }

    /// The append, if it is a single one, or else a copy of all messages that does not count.
    pub(crate) fn into_append(self) -> Result<Arc<AppendBytes>, Bytes> {
        match self.pieces {
            Pieces::One(data) => Ok(data),
            _ => Err(self.into_bytes()),
        }
    }

    /// All messages in one piece. A copy counts as bytes that a response holds; an append does as it always does.
    pub(crate) fn into_stored(self, counter: &Arc<ResponseBytes>) -> Arc<AppendBytes> {
        match self.pieces {
            Pieces::One(data) => data,
            _ => AppendBytes::private(self.into_bytes(), counter),
        }
    }
}

impl Pieces {
    /// The appends of a reading: shared with the log, unless they are so small that references to them would take more memory
    /// than a copy.
    pub(super) fn of<'a>(mut appends: impl Iterator<Item = &'a LoggedBytes> + Clone, json: bool) -> Self {
        /// About what a reference keeps alive besides the bytes.
        const SMALL: usize = 32;
        let (count, bytes) = appends.clone().fold((0, 0), |(count, bytes), data| (count + 1, bytes + data.len()));
        match count {
            0 => Self::None,
            1 => appends.next().map_or(Self::None, |data| Self::One(data.share())),
            _ if bytes < count * SMALL => Self::Joined(join(appends.map(|data| &data.bytes()[..]), json)),
            _ => Self::Many(appends.map(LoggedBytes::share).collect()),
        }
    }
}

/// Joins appends into one JSON array, or concatenates their bytes.
fn join<'a>(appends: impl Iterator<Item = &'a [u8]> + Clone, json: bool) -> Bytes {
    let mut joined = BytesMut::with_capacity(joined_size(appends.clone(), json));
    for data in appends {
        if !json {
            joined.extend_from_slice(data);
        } else if joined.is_empty() {
            joined.extend_from_slice(&data[..data.len() - 1]);
        } else {
            joined.extend_from_slice(b",");
            joined.extend_from_slice(&data[1..data.len() - 1]);
        }
    }
    if json {
        joined.extend_from_slice(b"]");
    }
    joined.freeze()
}

fn joined_size<'a>(appends: impl Iterator<Item = &'a [u8]>, json: bool) -> usize {
    let (count, bytes) = appends.fold((0usize, 0), |(count, bytes), data| (count + 1, bytes + data.len()));
    // Where two JSON arrays are joined, a comma replaces two brackets.
    if json { bytes - count.saturating_sub(1) } else { bytes }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::One(data) => write!(f, "One({} bytes)", data.len()),
            Self::Many(pieces) => write!(f, "Many({} appends)", pieces.len()),
            Self::Joined(bytes) => write!(f, "Joined({} bytes)", bytes.len()),
        }
    }
}
