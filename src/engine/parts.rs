//! What a read found, a part at a time.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Reading, reading::Pieces};

/// What is joined at a time. An append of this size or more goes as it is.
const PART: usize = 64 * 1024;

/// All messages as [`Reading::into_bytes`] joins them, a part at a time: who reads slowly holds one part of its own, and otherwise
/// what is shared with the log.
#[derive(Debug)]
pub(crate) struct Parts {
    pieces: std::vec::IntoIter<Bytes>,
    json: bool,
    begun: bool,
    /// To go as it is, after the part before it.
    whole: Option<Bytes>,
    left: usize,
}

impl Reading {
    /// Whether it would be much to join all messages at once.
    pub(crate) fn is_much(&self) -> bool {
        matches!(&self.pieces, Pieces::Many(pieces) if pieces.iter().map(Bytes::len).sum::<usize>() > PART)
    }

    pub(crate) fn into_parts(self) -> Parts {
        let json = self.json;
        let pieces = match self.pieces {
            Pieces::None => Vec::new(),
            Pieces::One(piece) => vec![piece],
            Pieces::Many(pieces) => pieces,
        };
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        // Of JSON, each array but one gives one bracket for a comma, and the other away.
        let left = if json { bytes - pieces.len().saturating_sub(1) } else { bytes };
        Parts { pieces: pieces.into_iter(), json, begun: false, whole: None, left }
    }
}

impl Parts {
    /// The bytes that are still to come.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    fn part(&mut self) -> Option<Bytes> {
        if let Some(whole) = self.whole.take() {
            return Some(whole);
        }
        let mut part = BytesMut::new();
        for piece in self.pieces.by_ref() {
            let mut content = piece;
            if self.json {
                part.put_u8(if self.begun { b',' } else { b'[' });
                self.begun = true;
                content = content.slice(1..content.len() - 1);
            }
            if content.len() >= PART {
                self.whole = Some(content);
                break;
            }
            part.extend_from_slice(&content);
            if part.len() >= PART {
                break;
            }
        }
        if self.json && self.begun && self.whole.is_none() && self.pieces.as_slice().is_empty() {
            part.put_u8(b']');
            self.begun = false;
        }
        if part.is_empty() { self.whole.take() } else { Some(part.freeze()) }
    }
}

impl Iterator for Parts {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let part = self.part()?;
        self.left -= part.len();
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Batch, Log, Retention, Start};
    use proptest::prelude::*;

    /// A log of appends of these sizes.
    fn log(sizes: &[usize], json: bool) -> Log {
        let mut log = Log::new(if json { "application/json" } else { "text/plain" }.parse().expect("a type"), 0);
        for size in sizes {
            let text = "x".repeat(*size);
            let batch = if json { Batch::value(&text) } else { Batch::bytes((text + "y").into()) }.unwrap();
            let weight = log.weigh(&batch, &Retention::unbounded());
            log.append(batch, &weight, 0);
        }
        log
    }

    fn read(log: &Log) -> Reading {
        log.read(Start::Earliest, usize::MAX).unwrap()
    }

    #[test]
    fn what_is_large_is_not_copied_and_what_is_small_is_one_part() {
        let log = log(&[10, PART, 2 * PART, 10, 10], true);
        let sizes: Vec<_> = read(&log).into_parts().map(|part| part.len()).collect();
        assert_eq!(sizes, [14, PART + 2, 1, 2 * PART + 2, 27]);
        assert!(read(&log).is_much());
        assert!(!read(&self::log(&[PART / 4; 3], true)).is_much());
        assert!(!read(&self::log(&[10 * PART], true)).is_much(), "it is shared as it is");
    }

    proptest! {
        #[test]
        fn the_parts_are_the_whole(
            sizes in proptest::collection::vec(prop_oneof![0..200usize, PART - 3..PART + 3, Just(3 * PART)], 2..40),
            json: bool,
        ) {
            let log = log(&sizes, json);
            let whole = read(&log).into_bytes();
            let (mut parts, mut joined) = (read(&log).into_parts(), Vec::new());
            prop_assert_eq!(parts.left(), whole.len());
            while let Some(part) = parts.next() {
                prop_assert!(!part.is_empty());
                joined.extend_from_slice(&part);
                prop_assert_eq!(parts.left(), whole.len() - joined.len());
            }
            prop_assert!(joined == whole);
        }
    }
}
