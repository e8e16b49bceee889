//! Responses that hold appends until the client has received them, and the limit on what they hold together.
//!
//! A server does not poll the body of a response whose client does not read. So when the limit is reached, the registry
//! itself takes the appends from the response that was polled longest ago. The body fails when it is polled next, and
//! the client resumes from its offset.

use bytes::Bytes;
use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::Registry;
use crate::{
    Limit,
    engine::{Parts, Reading, Share, counted},
    sync::Mutex,
};

/// A transfer hands the server so many bytes at a time, and `SMALL_FRAME` once half of the limit is in use: the server
/// holds them until the client reads, and they cannot be taken back. hyper takes about 400 KiB, or 16 frames, for each
/// HTTP/1.1 connection.
const FRAME: usize = 64 * 1024;
const SMALL_FRAME: usize = 4 * 1024;

/// Responses and frames of up to this size are not counted. For the head of a response the server holds about as much.
const UNCOUNTED: usize = 1024;

/// Limits how many transfers are examined at a time to find one to cut.
const EXAMINED: usize = 16;

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
        if size <= self.frame_size() {
            return Ok(Content::Whole(reading.into_counted_bytes(self.usage.responses())));
        }
        Ok(Content::Transfer(Box::new(Transfer::new(self, reading))))
    }

    /// Returns what an event stream holds of a reading while it sends the reading as events: all of it in one piece.
    pub(crate) fn content_in_one_piece(self: &Arc<Self>, reading: Reading) -> Content {
        if reading.size() <= UNCOUNTED {
            return Content::Whole(reading.into_bytes());
        }
        Content::Transfer(Box::new(Transfer::new(self, reading.joined())))
    }

    /// How large a frame is to be, which the server may hold until the client reads.
    pub(crate) fn frame_size(&self) -> usize {
        if self.usage.responses().get() < self.limits.reading / 2 { FRAME } else { SMALL_FRAME }
    }

    /// Counts a frame until the server has sent and dropped it, or fails if it does not fit the limit.
    pub(crate) fn frame(&self, bytes: Bytes) -> Result<Bytes, Cut> {
        if bytes.len() <= UNCOUNTED {
            return Ok(bytes);
        }
        if !self.make_room_to_read(bytes.len()) {
            self.usage.count_cut();
            return Err(Cut);
        }
        Ok(counted(bytes, self.usage.responses()))
    }

    /// Cuts transfers until `bytes` more fit the limit, and returns whether they do. Examines a limited number of
    /// transfers. Called without a lock.
    pub(super) fn make_room_to_read(&self, bytes: usize) -> bool {
        for _ in 0..EXAMINED {
            if self.has_room_to_read(bytes) {
                return true;
            }
            let Some(slot) = self.transfers.rotate() else { return false };
            if let Some(held) = slot.take_if_worth_it() {
                self.transfers.remove(&slot);
                self.usage.count_cut();
                drop(held);
            }
        }
        self.has_room_to_read(bytes)
    }

    fn has_room_to_read(&self, bytes: usize) -> bool {
        self.usage.responses().get().saturating_add(bytes) <= self.limits.reading
    }
}

/// A response that is sent in frames.
pub(crate) struct Transfer {
    registry: Arc<Registry>,
    slot: Arc<Slot>,
    left: usize,
}

impl Transfer {
    fn new(registry: &Arc<Registry>, reading: Reading) -> Self {
        let parts = reading.into_parts(registry.usage.responses());
        let left = parts.left();
        let references = Share::new(parts.references(), registry.usage.responses());
        let slot = registry.transfers.add(Held { parts, _references: references });
        Self { registry: Arc::clone(registry), slot, left }
    }

    /// How many bytes are still to come.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Returns the next frame; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Result<Bytes, Cut>> {
        if self.left == 0 {
            return None;
        }
        self.registry.transfers.touch(&self.slot);
        let frame = self.take(self.registry.frame_size());
        if frame.is_err() {
            self.left = 0;
        }
        Some(frame)
    }

    fn take(&mut self, most: usize) -> Result<Bytes, Cut> {
        let (part, finished) = {
            let mut held = self.slot.held.lock();
            let parts = &mut held.as_mut().ok_or(Cut)?.parts;
            let part = parts.next(most);
            self.left = parts.left();
            (part, held.take_if(|held| held.parts.left() == 0))
        };
        drop(finished);
        self.registry.frame(part)
    }

    /// All bytes that are still to come, uncounted and shared with this transfer: to be dropped before it.
    pub(crate) fn peek(&self) -> Result<Bytes, Cut> {
        self.registry.transfers.touch(&self.slot);
        self.slot.held.lock().as_ref().and_then(|held| held.parts.first()).ok_or(Cut)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.registry.transfers.remove(&self.slot);
    }
}

/// What a transfer holds, where the registry can take it.
struct Slot {
    /// `None` once it was cut, or all of it was taken.
    held: Mutex<Option<Held>>,
    /// Its key in the list of transfers. Changes under the list's lock.
    number: AtomicU64,
}

struct Held {
    parts: Parts,
    /// Counts the memory of the references to appends.
    _references: Share,
}

impl Slot {
    /// Takes what is held, unless dropping it would free little, because logs keep the appends.
    fn take_if_worth_it(&self) -> Option<Held> {
        self.held.lock().take_if(|held| held.parts.counted() >= SMALL_FRAME)
    }
}

/// All transfers of a registry, the one that was polled longest ago first.
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

    fn remove(&mut self, slot: &Slot) -> Option<Arc<Slot>> {
        self.slots.remove(&slot.number.load(Relaxed))
    }
}

impl Transfers {
    pub(super) fn new() -> Self {
        Self { list: Mutex::new(List::default()) }
    }

    fn add(&self, held: Held) -> Arc<Slot> {
        let slot = Arc::new(Slot { held: Mutex::new(Some(held)), number: AtomicU64::new(0) });
        self.list.lock().insert(Arc::clone(&slot));
        slot
    }

    /// Moves a transfer to the end of the list. One that was cut has left the list.
    fn touch(&self, slot: &Slot) {
        let mut list = self.list.lock();
        if let Some(slot) = list.remove(slot) {
            list.insert(slot);
        }
    }

    /// Moves the first transfer to the end of the list, and returns it.
    fn rotate(&self) -> Option<Arc<Slot>> {
        let mut list = self.list.lock();
        let (_, slot) = list.slots.pop_first()?;
        list.insert(Arc::clone(&slot));
        Some(slot)
    }

    fn remove(&self, slot: &Slot) {
        let removed = self.list.lock().remove(slot);
        drop(removed);
    }
}

/// The registry took what the response was to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the response was cut: the limit on the bytes that responses hold is reached, and this client was the slowest to read")
    }
}

impl Error for Cut {}
