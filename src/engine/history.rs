//! The appends that a log keeps, oldest first.

use std::{
    collections::{VecDeque, vec_deque},
    iter::Chain,
    option,
};

use super::stored::LoggedBytes;

/// One append that is kept.
#[derive(Clone)]
pub(super) struct HistoryEntry {
    pub(super) data: LoggedBytes,
    pub(super) messages: u32,
    /// Says which append this was. The log's own id, save where a fork inherits.
    pub(super) fingerprint: u64,
    /// Milliseconds on the registry's clock.
    pub(super) at: u64,
}

/// Many channels hold one append and never more: that one lies in the log itself.
pub(super) enum History {
    One(HistoryEntry),
    /// Or none.
    Many {
        entries: VecDeque<HistoryEntry>,
        /// Of all of them.
        bytes: usize,
    },
}

impl History {
    pub(super) const fn new() -> Self {
        Self::Many { entries: VecDeque::new(), bytes: 0 }
    }

    /// How many appends.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many { entries, .. } => entries.len(),
        }
    }

    /// The bytes of their payload.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::One(entry) => entry.data.len(),
            Self::Many { bytes, .. } => *bytes,
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<&HistoryEntry> {
        match self {
            Self::One(entry) => (index == 0).then_some(entry),
            Self::Many { entries, .. } => entries.get(index),
        }
    }

    pub(super) fn newest(&self) -> Option<&HistoryEntry> {
        match self {
            Self::One(entry) => Some(entry),
            Self::Many { entries, .. } => entries.back(),
        }
    }

    /// Those from an index on.
    pub(super) fn from(
        &self,
        first: usize,
    ) -> Chain<option::IntoIter<&HistoryEntry>, vec_deque::Iter<'_, HistoryEntry>> {
        const NONE: &VecDeque<HistoryEntry> = &VecDeque::new();
        match self {
            Self::One(entry) => (first == 0).then_some(entry).into_iter().chain(NONE),
            Self::Many { entries, .. } => None.into_iter().chain(entries.range(first..)),
        }
    }

    pub(super) fn push(&mut self, entry: HistoryEntry) {
        match self {
            Self::Many { entries, bytes } if !entries.is_empty() => {
                *bytes += entry.data.len();
                entries.push_back(entry);
            }
            _ => match std::mem::replace(self, Self::new()) {
                Self::One(first) => {
                    let bytes = first.data.len() + entry.data.len();
                    *self = Self::Many { entries: VecDeque::from([first, entry]), bytes };
                }
                Self::Many { .. } => *self = Self::One(entry),
            },
        }
    }

    /// Lets go of so many of the oldest.
    pub(super) fn drop_oldest(&mut self, count: usize) {
        match self {
            Self::One(_) if count > 0 => *self = Self::new(),
            Self::One(_) => {}
            Self::Many { entries, bytes } => {
                for entry in std::iter::from_fn(|| entries.pop_front()).take(count) {
                    *bytes -= entry.data.len();
                }
                // A burst that has aged out gives its memory back.
                if entries.capacity() > 32 && entries.len() < entries.capacity() / 4 {
                    entries.shrink_to(entries.len() * 2);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::{collection::vec, prelude::*};
    use std::sync::Arc;

    #[test]
    fn it_is_little_larger_than_one_append() {
        assert_eq!((size_of::<History>(), size_of::<HistoryEntry>()), (40, 32));
    }

    proptest! {
        #[test]
        fn it_does_what_a_deque_would(steps in vec((any::<bool>(), 0..5usize), 0..60)) {
            let (mut history, mut model) = (History::new(), VecDeque::new());
            for (at, (push, count)) in (0u64..).zip(steps) {
                if push {
                    let data = LoggedBytes::new(Bytes::from(vec![b'x'; count]), &Arc::default());
                    history.push(HistoryEntry { data, messages: 1, fingerprint: 1, at });
                    model.push_back((at, count));
                } else {
                    history.drop_oldest(count);
                    model.drain(..count.min(model.len()));
                }
                prop_assert_eq!(history.len(), model.len());
                prop_assert_eq!(history.bytes(), model.iter().map(|(_, bytes)| bytes).sum::<usize>());
                prop_assert_eq!(history.newest().map(|entry| entry.at), model.back().map(|(at, _)| *at));
                for first in 0..=model.len() {
                    let from: Vec<_> = history.from(first).map(|entry| entry.at).collect();
                    prop_assert_eq!(from, model.range(first..).map(|(at, _)| *at).collect::<Vec<_>>());
                    prop_assert_eq!(history.get(first).map(|entry| entry.at), model.get(first).map(|(at, _)| *at));
                }
            }
        }
    }
}
