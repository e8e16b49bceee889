//! The limit on the memory that responses hold, and how it is enforced: the registry takes the appends out of responses.
//!
//! It cannot wait until such a response is polled: a server does not poll the body of a response whose client does not read.
//! The body fails when it is polled next.

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
    engine::Chunks,
    sync::{Mutex, assert_unlocked},
};

/// How many responses one call examines to find those to cut, and how many appends it drops.
const EXAMINED: usize = 16;
const DROPPED: usize = 2_048;

/// A response is worth cutting if that frees so many bytes.
const WORTH: usize = 4 * 1024;

impl Registry {
    /// Cuts responses until `bytes` more fit the limit, and returns whether they do. Examines a limited number of
    /// responses, and never cuts `own`.
    pub(super) fn make_room_to_read(&self, bytes: usize, own: Option<&HeldAppends>) -> bool {
        if self.has_room_to_read(bytes) {
            return true;
        }
        assert_unlocked();
        let mut dropped = 0;
        for _ in 0..EXAMINED.min(self.transfers.len()) {
            let Some(slot) = self.transfers.next() else { break };
            if own.is_some_and(|own| Arc::ptr_eq(&own.slot, &slot)) {
                continue;
            }
            let parts = slot.parts.lock().take_if(|parts| parts.frees(WORTH));
            if let Some(parts) = parts {
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
        false
    }

    fn has_room_to_read(&self, bytes: usize) -> bool {
        self.usage.responses().get().saturating_add(bytes) <= self.limits.reading
    }
}

/// What a response is still to send, where the registry can take it.
pub(crate) struct HeldAppends {
    registry: Arc<Registry>,
    slot: Arc<TransferSlot>,
}

impl HeldAppends {
    pub(crate) fn new(registry: &Arc<Registry>, parts: Chunks) -> Self {
        Self { registry: Arc::clone(registry), slot: registry.transfers.add(parts) }
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whether the registry has taken it. Also true once all was sent.
    pub(super) fn is_gone(&self) -> bool {
        self.slot.parts.lock().is_none()
    }

    /// Copies out the next part, at most `most` bytes, and returns how many bytes are left after it.
    pub(super) fn take(&self, most: usize) -> Result<(Bytes, usize), Cut> {
        let (part, left) = {
            let mut held = self.slot.parts.lock();
            let parts = held.as_mut().ok_or(Cut)?;
            (parts.next(most), parts.left())
        };
        if left == 0 {
            self.release();
        } else {
            self.registry.transfers.touch(&self.slot);
        }
        Ok((part, left))
    }

    /// Returns the first append. The caller drops it before the next poll, as it is not counted beyond that.
    pub(crate) fn peek(&self) -> Result<Bytes, Cut> {
        self.registry.transfers.touch(&self.slot);
        self.slot.parts.lock().as_ref().and_then(Chunks::first).ok_or(Cut)
    }

    /// Releases what is held. Returns whether there was anything.
    pub(super) fn release(&self) -> bool {
        self.registry.transfers.remove(&self.slot);
        let parts = self.slot.parts.lock().take();
        parts.is_some()
    }
}

impl Drop for HeldAppends {
    fn drop(&mut self) {
        self.release();
    }
}

struct TransferSlot {
    parts: Mutex<Option<Chunks>>,
    /// Its key in the list. Changes under the list's lock.
    number: AtomicU64,
}

/// All responses of a registry that hold appends. They are examined in rounds, each from the response whose last frame was
/// sent longest ago to the one that was last when the round began.
pub(super) struct Transfers {
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    /// In the order of their last frames.
    slots: BTreeMap<u64, Arc<TransferSlot>>,
    next_number: u64,
    /// The rest of this round: the first number that is not examined yet, and the end.
    at: u64,
    end: u64,
}

impl List {
    fn push(&mut self, slot: Arc<TransferSlot>) {
        slot.number.store(self.next_number, Relaxed);
        self.slots.insert(self.next_number, slot);
        self.next_number += 1;
    }

    fn remove(&mut self, slot: &TransferSlot) -> Option<Arc<TransferSlot>> {
        self.slots.remove(&slot.number.load(Relaxed))
    }

    fn next_of_round(&mut self) -> Option<Arc<TransferSlot>> {
        let (number, slot) = self.slots.range(self.at..self.end).next()?;
        self.at = number + 1;
        Some(Arc::clone(slot))
    }
}

impl Transfers {
    pub(super) fn new() -> Self {
        Self { list: Mutex::new(List::default()) }
    }

    fn len(&self) -> usize {
        self.list.lock().slots.len()
    }

    fn add(&self, parts: Chunks) -> Arc<TransferSlot> {
        let slot = Arc::new(TransferSlot { parts: Mutex::new(Some(parts)), number: AtomicU64::new(0) });
        self.list.lock().push(Arc::clone(&slot));
        slot
    }

    /// Moves a response to the end, unless it was cut.
    fn touch(&self, slot: &TransferSlot) {
        let mut list = self.list.lock();
        if let Some(slot) = list.remove(slot) {
            list.push(slot);
        }
    }

    /// Returns the next response to examine.
    fn next(&self) -> Option<Arc<TransferSlot>> {
        let mut list = self.list.lock();
        list.next_of_round().or_else(|| {
            (list.at, list.end) = (0, list.next_number);
            list.next_of_round()
        })
    }

    fn remove(&self, slot: &TransferSlot) {
        let removed = self.list.lock().remove(slot);
        drop(removed);
    }
}

/// The registry took what the response was to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the response was cut: the limit on the memory that responses hold is reached")
    }
}

impl Error for Cut {}
