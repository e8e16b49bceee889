//! What a response sends for a reading: one frame, or a transfer of several.

use bytes::Bytes;
use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    Registry,
    outgoing::{FRAME, Outgoing, TINY},
    transfers::{Cut, HeldAppends},
};
use crate::{
    Limit,
    engine::{AppendBytes, Reading, Share},
};

/// The content of a response.
pub(crate) enum Content {
    Whole(Bytes),
    Transfer(Box<Transfer>),
}

impl Registry {
    /// Returns what a response sends for a reading, or an error if it does not fit the limit on what responses hold. A tiny
    /// response is neither counted nor refused.
    pub(crate) fn content(self: &Arc<Self>, reading: Reading) -> Result<Content, Limit> {
        let size = reading.size();
        if size <= TINY {
            return Ok(Content::Whole(reading.into_bytes()));
        }
        // Even if frames are small now: a response that could not go on after its first frame would be of no use.
        if !self.make_room_to_read(size.min(FRAME), None) {
            return Err(Limit::Reading);
        }
        if size <= FRAME && !self.is_half_read() {
            return Ok(Content::Whole(self.one_frame(reading, size)));
        }
        Ok(Content::Transfer(Box::new(Transfer::new(self, reading))))
    }

    /// Returns a response of one frame. An append is lent to the server without a copy while no more than half of the limit is
    /// lent: it counts when no log keeps it any more, and is not cut then.
    fn one_frame(&self, reading: Reading, size: usize) -> Bytes {
        let lent = self.usage.lent();
        let copied = |bytes| Lent { bytes: AppendBytes::private(bytes, self.usage.responses()), _share: None };
        Bytes::from_owner(match reading.into_append() {
            Ok(append) if lent.get() < self.limits.reading / 2 => {
                Lent { bytes: append, _share: Some(Share::new(size, lent)) }
            }
            Ok(append) => copied(Bytes::copy_from_slice(&append)),
            Err(copy) => copied(copy),
        })
    }
}

/// Bytes that the server holds, and what counts them.
struct Lent {
    bytes: Arc<AppendBytes>,
    _share: Option<Share>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A response that is sent in frames.
pub(crate) struct Transfer {
    held: HeldAppends,
    left: usize,
    outgoing: Outgoing,
}

impl Transfer {
    fn new(registry: &Arc<Registry>, reading: Reading) -> Self {
        let parts = reading.into_parts(registry.usage.responses());
        Self { left: parts.left(), held: HeldAppends::new(registry, parts), outgoing: Outgoing::new() }
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
        let registry = self.held.registry();
        let most = ready!(self.outgoing.poll_ready(registry, self.left, Some(&self.held), cx));
        let frame = most.and_then(|most| self.held.take(most)).map(|(part, left)| {
            let size = part.len();
            (self.outgoing.frame(registry, part, size), left)
        });
        self.left = frame.as_ref().map_or(0, |(_, left)| *left);
        Poll::Ready(Some(frame.map(|(frame, _)| frame)))
    }
}
