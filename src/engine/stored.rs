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
pub(crate) struct Stored {
    bytes: Bytes,
    /// How many logs keep it: more than one if channels were forked. Once this is zero it stays zero, and the bytes
    /// count as those of responses until the last response releases them.
    logs: AtomicUsize,
    counter: Arc<ResponseBytes>,
}

impl Stored {
    /// Bytes that were made for a response and that no log keeps.
    pub(crate) fn private(bytes: Bytes, counter: &Arc<ResponseBytes>) -> Arc<Self> {
        let stored = Self { bytes, logs: AtomicUsize::new(0), counter: Arc::clone(counter) };
        stored.count();
        Arc::new(stored)
    }

    /// The bytes, without the count. Whoever keeps them beyond this `Stored` must count them in another way, or be the
    /// application, which no limit applies to.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The memory that dropping this reference may free: none, while a log keeps the append.
    pub(crate) fn counted(&self) -> usize {
        if self.logs.load(Relaxed) == 0 { self.size() } else { 0 }
    }

    fn size(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }

    fn count(&self) {
        self.counter.0.fetch_add(self.size(), Relaxed);
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        // The last log counted it when it dropped it.
        self.counter.0.fetch_sub(self.size(), Relaxed);
    }
}

impl Deref for Stored {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The reference of a log to one of its appends.
#[derive(Debug)]
pub(super) struct Logged(Arc<Stored>);

impl Logged {
    pub(super) fn new(bytes: Bytes, counter: &Arc<ResponseBytes>) -> Self {
        Self(Arc::new(Stored { bytes, logs: AtomicUsize::new(1), counter: Arc::clone(counter) }))
    }

    /// A reference for a response.
    pub(super) fn share(&self) -> Arc<Stored> {
        Arc::clone(&self.0)
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.0.bytes.len()
    }
}

impl Clone for Logged {
    fn clone(&self) -> Self {
        self.0.logs.fetch_add(1, Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        if self.0.logs.fetch_sub(1, AcqRel) == 1 {
            // Before the reference goes: if it is the last one, `Stored` takes this off again.
            self.0.count();
        }
    }
}

/// Bytes of a response that it shares with nobody, counted until they are dropped.
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
}

impl Drop for Share {
    fn drop(&mut self) {
        self.counter.0.fetch_sub(self.bytes, Relaxed);
    }
}

/// Returns bytes that count until their last clone is dropped, whoever holds it: the server holds what it has not sent.
pub(crate) fn counted(bytes: Bytes, counter: &Arc<ResponseBytes>) -> Bytes {
    struct Counted(Bytes, #[allow(dead_code, reason = "dropped with the bytes")] Share);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    let share = Share::new(bytes.len(), counter);
    Bytes::from_owner(Counted(bytes, share))
}

/// Returns the bytes of an append for a response to send. They count once no log keeps them.
pub(crate) fn shared(stored: Arc<Stored>) -> Bytes {
    struct Shared(Arc<Stored>);

    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    Bytes::from_owner(Shared(stored))
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_append_counts_once_from_the_last_log_that_drops_it_to_the_last_response_that_does() {
        let counter = Arc::default();
        let log = Logged::new(Bytes::from(vec![b'x'; 1000]), &counter);
        let fork = log.clone();
        let (first, second) = (log.share(), shared(log.share()));
        drop(log);
        assert_eq!((counter.get(), first.counted()), (0, 0), "the fork keeps it");
        drop(fork);
        assert_eq!((counter.get(), first.counted()), (1000 + OVERHEAD, 1000 + OVERHEAD), "once for both responses");
        drop(first);
        assert_eq!(counter.get(), 1000 + OVERHEAD);
        let frame = second.slice(..10);
        drop(second);
        assert_eq!(counter.get(), 1000 + OVERHEAD, "a part of it holds all of it");
        drop(frame);
        assert_eq!(counter.get(), 0);
    }

    #[test]
    fn an_append_that_no_response_holds_does_not_count_when_it_is_dropped() {
        let counter = Arc::default();
        drop(Logged::new(Bytes::from_static(b"x"), &counter));
        assert_eq!(counter.get(), 0);
    }

    #[test]
    fn bytes_of_a_response_count_until_their_last_clone_is_dropped() {
        let counter = Arc::default();
        let bytes = counted(Bytes::from_static(b"hello"), &counter);
        let private = Stored::private(Bytes::from_static(b"hello"), &counter);
        assert_eq!(counter.get(), 5 + 5 + OVERHEAD);
        let clone = bytes.clone();
        drop((bytes, private));
        assert_eq!((counter.get(), &clone[..]), (5, &b"hello"[..]));
        drop(clone);
        assert_eq!(counter.get(), 0);
    }
}
