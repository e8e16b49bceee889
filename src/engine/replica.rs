//! The end of a log that is kept elsewhere, as far as this process holds it.

use bytes::Bytes;
use std::sync::Arc;

use super::{Log, Offset, Page, ResponseBytes, history::HistoryEntry, stored::LoggedBytes};

/// What is in common to the fingerprints of one log.
pub(super) const SHARED: u64 = !0 << 32;

impl Log {
    /// A log that begins where a page begins.
    pub(crate) fn replica(page: Page, now: u64, counter: &Arc<ResponseBytes>) -> Self {
        let mut log = Self::new(page.content_type.clone(), now, counter);
        log.id = page.log;
        log.replica = true;
        log.floor = page.after;
        log.extend(page, now);
        log
    }

    /// Adds what a page has read from this log's tail on.
    pub(crate) fn extend(&mut self, page: Page, now: u64) {
        debug_assert_eq!(self.tail(), page.after, "a page goes on where the log ends");
        if page.is_up_to_date() && page.closed {
            self.close(now);
        }
        for entry in page.entries {
            self.history.push(HistoryEntry {
                data: LoggedBytes::new(entry.data, &self.counter),
                messages: entry.messages,
                fingerprint: entry.fingerprint,
                at: now,
            });
        }
    }

    /// Adds an append that follows the last one.
    pub(crate) fn follow(&mut self, at: Offset, messages: u32, data: Bytes, now: u64) {
        let data = LoggedBytes::new(data, &self.counter);
        self.history.push(HistoryEntry { data, messages, fingerprint: at.fingerprint(), at: now });
    }

    /// Lets go of the oldest, but for the newest: they are kept elsewhere.
    pub(crate) fn shorten(&mut self, appends: usize, bytes: usize) {
        let mut surplus = 0;
        let mut left = self.history.bytes();
        for entry in self.history.from(0).take(self.len().saturating_sub(1)) {
            if self.len() - surplus <= appends && left <= bytes {
                break;
            }
            surplus += 1;
            left -= entry.data.len();
        }
        if surplus > 0 {
            self.drop_oldest(surplus);
        }
    }

    /// Whether this append is in the log. `None` if that was too long ago to tell.
    pub(crate) fn has(&self, at: Offset) -> Option<bool> {
        match at.position().checked_sub(self.floor.position()) {
            None if (at.fingerprint() ^ self.id) & SHARED != 0 => Some(false),
            None => None,
            Some(0) => Some(at == self.floor),
            Some(nth) => {
                let entry = usize::try_from(nth - 1).ok().and_then(|nth| self.history.get(nth));
                Some(entry.is_some_and(|entry| entry.fingerprint == at.fingerprint()))
            }
        }
    }
}
