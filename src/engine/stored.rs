//! The bytes of one append, shared by the logs that keep it and the responses that send it, and the count of the bytes
//! that only responses hold.

use bytes::Bytes;
use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Relaxed},
        },
    },
};

/// The memory that an append takes in addition to its bytes, when only responses hold it.
const OVERHEAD: usize = 96;

/// Counts the bytes that responses hold and no log does: see [`CometBuilder::max_reading`](crate::CometBuilder::max_reading).
#[derive(Debug, Default)]
pub(crate) struct ResponseBytes(AtomicUsize);

impl ResponseBytes {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// The bytes of one append.
#[derive(Debug)]
pub(crate) struct AppendBytes {
    bytes: Bytes,
    /// How many logs keep it: more than one if channels were forked. Once this is zero it stays zero, and the bytes
    /// count as those of responses until the last response releases them.
    logs: AtomicUsize,
    counter: Arc<ResponseBytes>,
}

/// In place of the number of logs: no response held it when the last log dropped it, so it was never counted.
const UNSHARED: usize = usize::MAX;

impl AppendBytes {
    fn new(bytes: Bytes, logs: usize, counter: &Arc<ResponseBytes>) -> Self {
        Self { bytes, logs: AtomicUsize::new(logs), counter: Arc::clone(counter) }
    }

    /// Bytes that were made for a response and that no log keeps.
    pub(crate) fn private(bytes: Bytes, counter: &Arc<ResponseBytes>) -> Arc<Self> {
        let stored = Self::new(bytes, 0, counter);
        stored.count();
        Arc::new(stored)
    }

    /// The bytes, without the count. Whoever keeps them beyond this `Stored` must count them in another way, or be the
    /// application, which no limit applies to.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The share of one response in the counted memory: none, while a log keeps the append.
    pub(crate) fn share_of(this: &Arc<Self>) -> usize {
        if this.logs.load(Relaxed) == 0 { this.size() / Arc::strong_count(this) } else { 0 }
    }

    fn size(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }

    fn count(&self) {
        self.counter.0.fetch_add(self.size(), Relaxed);
    }
}

impl Drop for AppendBytes {
    fn drop(&mut self) {
        if *self.logs.get_mut() != UNSHARED {
            // The last log counted it when it dropped it.
            self.counter.0.fetch_sub(self.size(), Relaxed);
        }
    }
}

impl Deref for AppendBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The reference of a log to one of its appends.
#[derive(Debug)]
pub(super) struct LoggedBytes(Arc<AppendBytes>);

impl LoggedBytes {
    pub(super) fn new(bytes: Bytes, counter: &Arc<ResponseBytes>) -> Self {
        Self(Arc::new(AppendBytes::new(bytes, 1, counter)))
    }

    /// A reference for a response.
    pub(super) fn share(&self) -> Arc<AppendBytes> {
        Arc::clone(&self.0)
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.0.bytes.len()
    }
}

impl Clone for LoggedBytes {
    fn clone(&self) -> Self {
        self.0.logs.fetch_add(1, Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for LoggedBytes {
    fn drop(&mut self) {
        if let Some(stored) = Arc::get_mut(&mut self.0) {
            *stored.logs.get_mut() = UNSHARED;
        } else if self.0.logs.fetch_sub(1, AcqRel) == 1 {
            // Before the reference goes: if it is the last one, `Stored` takes this off again.
            self.0.count();
        }
    }
}

/// Counts memory of a response, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    bytes: usize,
    counter: Arc<ResponseBytes>,
}

impl Share {
    pub(crate) fn new(bytes: usize, counter: &Arc<ResponseBytes>) -> Self {
        counter.0.fetch_add(bytes, Relaxed);
        Self { bytes, counter: Arc::clone(counter) }
    }

    pub(crate) fn size(&self) -> usize {
        self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.counter.0.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_append_counts_once_from_the_last_log_that_drops_it_to_the_last_response_that_does() {
        let counter = Arc::default();
        let log = LoggedBytes::new(Bytes::from(vec![b'x'; 1000]), &counter);
        let fork = log.clone();
        let (first, second) = (log.share(), log.share());
        drop(log);
        assert_eq!((counter.get(), AppendBytes::share_of(&first)), (0, 0), "the fork keeps it");
        drop(fork);
        let all = 1000 + OVERHEAD;
        assert_eq!((counter.get(), AppendBytes::share_of(&first)), (all, all / 2), "once for both responses");
        drop(first);
        assert_eq!((counter.get(), AppendBytes::share_of(&second)), (all, all));
        drop(second);
        assert_eq!(counter.get(), 0);
    }

    #[test]
    fn an_append_that_no_response_holds_does_not_count_when_it_is_dropped() {
        let counter = Arc::default();
        drop(LoggedBytes::new(Bytes::from_static(b"x"), &counter));
        assert_eq!(counter.get(), 0);
    }

    #[test]
    fn private_bytes_count_until_they_are_dropped() {
        let counter = Arc::default();
        let private = AppendBytes::private(Bytes::from_static(b"hello"), &counter);
        let share = Share::new(7, &counter);
        assert_eq!(counter.get(), 5 + OVERHEAD + 7);
        drop((private, share));
        assert_eq!(counter.get(), 0);
    }
}
