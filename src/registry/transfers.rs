//! Responses that hold appends until the client has received them, and the limit on what they hold together.
//!
//! A server does not poll the body of a response whose client does not read. So when the limit is reached, the registry
//! itself takes the appends from a response that was not polled for long. The body fails when it is polled next.

use bytes::Bytes;
use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

use super::Registry;
use crate::{
    Limit,
    engine::{Parts, Reading, Share, Stored},
    sync::{Mutex, assert_unlocked},
};

/// The size of a frame that is handed to the server, which holds it until the client reads: it cannot be taken back.
const FRAME: usize = 64 * 1024;

/// The size of a frame while half of the limit is in use.
const SMALL_FRAME: usize = 4 * 1024;

/// How much of one response the server may hold while half of the limit is in use. hyper takes 16 frames for each HTTP/1.1
/// connection, and 400 KiB for each HTTP/2 stream.
const OUTSTANDING: usize = 64 * 1024;

/// A response of which the server holds too much looks again after each pause, and is cut after so many. If it waited
/// without a bound until the server drops a frame, a layer that collects whole bodies would hang.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSES: u8 = 250;

/// A response of up to this size is not counted, nor refused. For its head the server holds about as much.
const UNCOUNTED: usize = 1024;

/// The memory of a frame in addition to its bytes.
const FRAME_OVERHEAD: usize = 96;

/// The number of transfers that are examined at a time to find those to cut, and the number of appends that are dropped.
const EXAMINED: usize = 16;
const DROPPED: usize = 2_048;

/// A transfer is worth cutting if that frees so many bytes.
const WORTH: usize = SMALL_FRAME;

/// The content of a response.
pub(crate) enum Content {
    Whole(Bytes),
    Transfer(Box<Transfer>),
}

impl Registry {
    /// Returns what a response sends for a reading, or an error if it does not fit the limit on what responses hold.
    pub(crate) fn content(self: &Arc<Self>, reading: Reading) -> Result<Content, Limit> {
        let size = reading.size();
        if size <= UNCOUNTED {
            return Ok(Content::Whole(reading.into_bytes()));
        }
        // Even if frames are small now: a response that could not go on after its first frame would be of no use.
        if !self.make_room_to_read(size.min(FRAME)) {
            return Err(Limit::Reading);
        }
        if size <= FRAME && !self.is_half_read() {
            return Ok(Content::Whole(self.one_frame(reading, size)));
        }
        let parts = reading.into_parts(self.usage.responses());
        Ok(Content::Transfer(Box::new(Transfer::new(self, parts))))
    }

    /// A response of one frame. An append is lent to the server without a copy, while no more than half of the limit is lent:
    /// it counts when no log keeps it any more, and is not cut then.
    fn one_frame(&self, reading: Reading, size: usize) -> Bytes {
        let lent = self.usage.lent();
        match reading.into_append() {
            Ok(append) if lent.get() < self.limits.reading / 2 => {
                Bytes::from_owner(Counted { bytes: append, _share: Share::new(size, lent) })
            }
            Ok(append) => self.counted(Bytes::copy_from_slice(&append)),
            Err(copy) => self.counted(copy),
        }
    }

    fn counted(&self, bytes: Bytes) -> Bytes {
        let share = Share::new(bytes.len() + FRAME_OVERHEAD, self.usage.responses());
        Bytes::from_owner(Counted { bytes, _share: share })
    }

    /// Cuts transfers until `bytes` more fit the limit, and returns whether they do. Examines a limited number of
    /// transfers.
    pub(crate) fn make_room_to_read(&self, bytes: usize) -> bool {
        if self.has_room_to_read(bytes) {
            return true;
        }
        assert_unlocked();
        let mut dropped = 0;
        for _ in 0..EXAMINED {
            let Some(slot) = self.transfers.rotate() else { break };
            if let Some(parts) = slot.take_unless_polled() {
                self.transfers.remove(&slot);
                self.usage.count_cut();
                dropped += parts.appends();
                drop(parts);
            }
            if self.has_room_to_read(bytes) {
                return true;
            }
            if dropped >= DROPPED {
                break;
            }
        }
        self.has_room_to_read(bytes)
    }

    fn has_room_to_read(&self, bytes: usize) -> bool {
        self.usage.responses().get().saturating_add(bytes) <= self.limits.reading
    }

    fn is_half_read(&self) -> bool {
        self.usage.responses().get() >= self.limits.reading / 2
    }
}

/// Bytes that count until they are dropped.
struct Counted<T> {
    bytes: T,
    _share: Share,
}

impl AsRef<[u8]> for Counted<Arc<Stored>> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Counted<Bytes> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The frames of one response that the server holds.
pub(crate) struct Outgoing {
    bytes: Arc<AtomicUsize>,
    /// How often the response has paused, and the pause that it is in.
    pauses: u8,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Outgoing {
    pub(crate) fn new() -> Self {
        Self { bytes: Arc::default(), pauses: 0, pause: None }
    }

    /// Returns how large the next frame is to be, if the server may be handed one of at most `left` bytes. Otherwise
    /// waits, and fails if that lasts for [`PAUSES`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its timer, if it has to wait.
    pub(crate) fn poll_ready(
        &mut self,
        registry: &Registry,
        left: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, Cut>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let half = registry.is_half_read();
            let frame = if half { SMALL_FRAME } else { FRAME };
            let held_back = half && self.bytes.load(Relaxed) > OUTSTANDING;
            if !held_back && registry.make_room_to_read(frame.min(left)) {
                self.pauses = 0;
                return Poll::Ready(Ok(frame));
            }
            if self.pauses == PAUSES {
                registry.usage.count_cut();
                return Poll::Ready(Err(Cut));
            }
            self.pauses += 1;
            self.pause = Some(Box::pin(sleep(PAUSE)));
        }
    }

    /// Counts a frame, which has `capacity` bytes of memory, until the server drops it.
    fn frame<T>(&self, registry: &Registry, bytes: T, capacity: usize) -> Bytes
    where
        T: AsRef<[u8]> + Send + 'static,
    {
        struct Frame<T> {
            bytes: T,
            share: Share,
            outstanding: Arc<AtomicUsize>,
        }

        impl<T: AsRef<[u8]>> AsRef<[u8]> for Frame<T> {
            fn as_ref(&self) -> &[u8] {
                self.bytes.as_ref()
            }
        }

        impl<T> Drop for Frame<T> {
            fn drop(&mut self) {
                self.outstanding.fetch_sub(self.share.size(), Relaxed);
            }
        }

        let share = Share::new(capacity + FRAME_OVERHEAD, registry.usage.responses());
        self.bytes.fetch_add(share.size(), Relaxed);
        Bytes::from_owner(Frame { bytes, share, outstanding: Arc::clone(&self.bytes) })
    }

    /// The same for a frame of an event stream. Fails if a large one does not fit the limit: the stream can end at any
    /// event.
    pub(crate) fn event(&self, registry: &Registry, text: String) -> Result<Bytes, Cut> {
        let capacity = text.capacity();
        if capacity > UNCOUNTED && !registry.make_room_to_read(capacity) {
            registry.usage.count_cut();
            return Err(Cut);
        }
        Ok(self.frame(registry, text, capacity))
    }
}

/// A response that is sent in frames.
pub(crate) struct Transfer {
    registry: Arc<Registry>,
    slot: Arc<Slot>,
    left: usize,
    outgoing: Outgoing,
    /// Counts the memory of the references to appends.
    _references: Share,
}

impl Transfer {
    fn new(registry: &Arc<Registry>, parts: Parts) -> Self {
        let left = parts.left();
        let references = Share::new(parts.references(), registry.usage.responses());
        let slot = registry.transfers.add(parts);
        Self { registry: Arc::clone(registry), slot, left, outgoing: Outgoing::new(), _references: references }
    }

    /// Holds the rest of an event between two polls of its stream.
    pub(crate) fn hold(registry: &Arc<Registry>, stored: Arc<Stored>) -> Self {
        Self::new(registry, stored.into())
    }

    /// How many bytes are still to come.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Returns the next frame; `None` at the end, and after an error.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.slot.polled.store(true, Relaxed);
        let most = ready!(self.outgoing.poll_ready(&self.registry, self.left, cx));
        let frame = most.and_then(|most| self.take(most)).map(|part| {
            let size = part.len();
            self.outgoing.frame(&self.registry, part, size)
        });
        if frame.is_err() {
            self.left = 0;
            self.release();
        }
        Poll::Ready(Some(frame))
    }

    fn take(&mut self, most: usize) -> Result<Bytes, Cut> {
        let (part, finished) = {
            let mut held = self.slot.parts.lock();
            let parts = held.as_mut().ok_or(Cut)?;
            let part = parts.next(most);
            self.left = parts.left();
            (part, held.take_if(|parts| parts.left() == 0))
        };
        drop(finished);
        Ok(part)
    }

    /// What [`hold`](Self::hold) was given. To be dropped before the next poll.
    pub(crate) fn peek(&self) -> Result<Bytes, Cut> {
        self.slot.polled.store(true, Relaxed);
        self.slot.parts.lock().as_ref().and_then(Parts::first).ok_or(Cut)
    }

    fn release(&self) {
        self.registry.transfers.remove(&self.slot);
        let parts = self.slot.parts.lock().take();
        drop(parts);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.release();
    }
}

/// What a transfer holds, where the registry can take it.
struct Slot {
    /// `None` once it was cut, or all of it was sent.
    parts: Mutex<Option<Parts>>,
    /// Whether it was polled since the registry last examined it.
    polled: AtomicBool,
    /// Its key in the list of transfers. Changes under the list's lock.
    number: AtomicU64,
}

impl Slot {
    /// Takes what is held, unless the transfer was polled since the last call, or little would be freed because logs or
    /// other responses hold the appends too.
    fn take_unless_polled(&self) -> Option<Parts> {
        if self.polled.swap(false, Relaxed) {
            return None;
        }
        self.parts.lock().take_if(|parts| parts.frees(WORTH))
    }
}

/// All transfers of a registry, in the order in which they are examined. One that was polled moves to the end then, so those
/// at the front were not polled for the longest time, by and large.
pub(super) struct Transfers {
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    slots: BTreeMap<u64, Arc<Slot>>,
    next: u64,
}

impl List {
    fn insert(&mut self, slot: Arc<Slot>) {
        slot.number.store(self.next, Relaxed);
        self.slots.insert(self.next, slot);
        self.next += 1;
    }
}

impl Transfers {
    pub(super) fn new() -> Self {
        Self { list: Mutex::new(List::default()) }
    }

    fn add(&self, parts: Parts) -> Arc<Slot> {
        let parts = Mutex::new(Some(parts));
        let slot = Arc::new(Slot { parts, polled: AtomicBool::new(false), number: AtomicU64::new(0) });
        self.list.lock().insert(Arc::clone(&slot));
        slot
    }

    /// Moves the first transfer to the end, and returns it.
    fn rotate(&self) -> Option<Arc<Slot>> {
        let mut list = self.list.lock();
        let (_, slot) = list.slots.pop_first()?;
        list.insert(Arc::clone(&slot));
        Some(slot)
    }

    fn remove(&self, slot: &Slot) {
        let removed = {
            let mut list = self.list.lock();
            list.slots.remove(&slot.number.load(Relaxed))
        };
        drop(removed);
    }
}

/// The registry took what the response was to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the response was cut: the limit on the bytes that responses hold is reached, and this client is slow to read")
    }
}

impl Error for Cut {}
