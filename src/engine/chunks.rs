//! A read's result, a part at a time.

use bytes::{Bytes, BytesMut};
use std::{collections::VecDeque, sync::Arc};

use super::{AppendBytes, Reading, ResponseBytes, Share, reading::Pieces};

/// What [`Reading::into_bytes`] returns, copied out in parts. An append is released once all of it is copied.
#[derive(Debug)]
pub(crate) struct Chunks {
    pieces: VecDeque<Arc<AppendBytes>>,
    /// Where the rest of the first piece begins.
    at: usize,
    json: bool,
    left: usize,
    /// Counts the memory of the references to the appends.
    references: Share,
}

impl Reading {
    /// Returns the messages in parts. Bytes that the reading does not share with the log count from here on.
    pub(crate) fn into_parts(self, counter: &Arc<ResponseBytes>) -> Chunks {
        let (json, left) = (self.json, self.size());
        let pieces = match self.pieces {
            Pieces::None => VecDeque::new(),
            Pieces::One(piece) => [piece].into(),
            Pieces::Many(pieces) => pieces.into(),
            Pieces::Joined(bytes) => [AppendBytes::private(bytes, counter)].into(),
        };
        Chunks::new(pieces, json, left, counter)
    }
}

impl Chunks {
    fn new(pieces: VecDeque<Arc<AppendBytes>>, json: bool, left: usize, counter: &Arc<ResponseBytes>) -> Self {
        let references = Share::new(pieces.capacity() * size_of::<Arc<AppendBytes>>(), counter);
        Self { pieces, at: 0, json, left, references }
    }

    /// All of one append.
    pub(crate) fn one(append: Arc<AppendBytes>, counter: &Arc<ResponseBytes>) -> Self {
        let left = append.len();
        Self::new([append].into(), false, left, counter)
    }

    /// How many bytes are still to come.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// The first append of which anything is still to come.
    pub(crate) fn first(&self) -> Option<Bytes> {
        self.pieces.front().map(|piece| piece.bytes().clone())
    }

    /// Returns the number of appends, of which the first may be copied in part.
    pub(crate) fn appends(&self) -> usize {
        self.pieces.len()
    }

    /// Whether dropping these parts frees at least `worth` bytes. Logs drop their oldest appends first, so the first ones
    /// tell.
    pub(crate) fn frees(&self, worth: usize) -> bool {
        let mut freed = self.references.size();
        for piece in &self.pieces {
            let share = AppendBytes::share_of(piece);
            freed += share;
            if share == 0 || freed >= worth {
                break;
            }
        }
        freed >= worth
    }

    /// Copies out the next part, at most `most` bytes. Empty at the end.
    pub(crate) fn next(&mut self, most: usize) -> Bytes {
        let mut part = BytesMut::with_capacity(most.min(self.left));
        while part.len() < most {
            let Some(piece) = self.pieces.front() else { break };
            let end = piece.len().min(self.at + most - part.len());
            part.extend_from_slice(&piece[self.at..end]);
            self.at = end;
            if end < piece.len() {
                break;
            }
            self.pieces.pop_front();
            self.at = 0;
            if self.json && !self.pieces.is_empty() {
                // Where two JSON arrays are joined, a comma replaces two brackets.
                if let Some(bracket) = part.last_mut() {
                    *bracket = b',';
                }
                self.at = 1;
            }
        }
        self.left -= part.len();
        part.freeze()
    }
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use super::*;
    use crate::engine::{Batch, Log, Retention, Start};
    use proptest::prelude::*;

    const PART: usize = 64 * 1024;

    /// A log of appends of these sizes.
    fn log(sizes: &[usize], json: bool) -> (Log, Arc<ResponseBytes>) {
        let counter = Arc::default();
        let content_type = if json { "application/json" } else { "text/plain" }.parse().expect("a type");
        let mut log = Log::new(content_type, 0, &counter);
        for size in sizes {
            let text = "x".repeat(*size);
            let batch = if json { Batch::value(&text) } else { Batch::bytes((text + "y").into()) }.unwrap();
            let weight = log.weigh(&batch, &Retention::unbounded());
            log.append(batch, &weight, 0);
        }
        (log, counter)
    }

    fn read(log: &Log) -> Reading {
        log.read(Start::Earliest, usize::MAX.into()).unwrap()
    }

    #[test]
    fn an_append_is_released_once_all_of_it_is_copied() {
        let (mut log, counter) = log(&[PART, PART], true);
        let mut parts = read(&log).into_parts(&counter);
        log.clear();
        let (all, references) = (counter.get(), parts.references.size());
        assert!(parts.frees(all) && !parts.frees(all + 1));
        assert_eq!(parts.next(PART).len(), PART);
        assert_eq!(counter.get(), all);
        assert_eq!(parts.next(PART).len(), PART);
        assert_eq!(counter.get(), references + (all - references) / 2);
    }

    proptest! {
        #[test]
        fn the_parts_are_the_whole(
            sizes in proptest::collection::vec(prop_oneof![0..200usize, PART - 3..PART + 3, Just(3 * PART)], 1..40),
            most in prop_oneof![1..20usize, PART - 2..PART + 2],
            json: bool,
        ) {
            let (log, counter) = log(&sizes, json);
            let whole = read(&log).into_bytes();
            let (mut parts, mut joined) = (read(&log).into_parts(&counter), Vec::new());
            prop_assert_eq!(parts.left(), whole.len());
            while parts.left() > 0 {
                let part = parts.next(most);
                prop_assert!(part.len() == most || parts.left() == 0);
                joined.extend_from_slice(&part);
                prop_assert_eq!(parts.left(), whole.len() - joined.len());
            }
            prop_assert!(joined == whole);
            prop_assert!(parts.next(most).is_empty());
        }
    }
}
