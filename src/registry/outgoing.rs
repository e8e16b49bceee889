//! The frames of responses that the server holds. They cannot be taken back, so at the limit no more are handed to it.

use bytes::Bytes;
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

use super::{
    Registry,
    transfers::{Cut, HeldAppends},
};
use crate::engine::Share;

/// The size of a frame.
pub(super) const FRAME: usize = 64 * 1024;

/// The size of a frame while half of the limit is in use.
const SMALL_FRAME: usize = 4 * 1024;

/// While half of the limit is in use, a response of which the server holds more than this pauses. hyper takes 16 frames for
/// each HTTP/1.1 connection, and 400 KiB for each HTTP/2 stream.
const OUTSTANDING: usize = 64 * 1024;

/// A response that pauses looks again after this time, and is cut after so many times. If it paused without a bound until
/// the server drops a frame, a layer that collects whole bodies would hang.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSES: u8 = 250;

/// A frame of up to this size is sent even without room, if the server holds at most [`SMALL_FRAME`] of its response: about
/// as much as it holds for a head.
pub(super) const TINY: usize = 1024;

/// The memory of a frame in addition to its bytes.
const FRAME_OVERHEAD: usize = 96;

impl Registry {
    pub(super) fn is_half_read(&self) -> bool {
        self.usage.responses().get() >= self.limits.reading / 2
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

    /// Returns how large the next frame is to be, of a response that has `left` bytes to send. Waits while the server holds
    /// too much, and fails if that lasts for [`PAUSES`], or if `held`, the rest of the response, was cut.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its timer, if it has to wait.
    pub(crate) fn poll_ready(
        &mut self,
        registry: &Registry,
        left: usize,
        held: Option<&HeldAppends>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, Cut>> {
        loop {
            if held.is_some_and(HeldAppends::is_gone) {
                return Poll::Ready(Err(Cut));
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let frame = if registry.is_half_read() { SMALL_FRAME } else { FRAME };
            if self.has_room(registry, left.min(frame), held) {
                self.pauses = 0;
                return Poll::Ready(Ok(frame));
            }
            if self.pauses == PAUSES {
                if held.is_none_or(HeldAppends::release) {
                    registry.usage.count_cut();
                }
                return Poll::Ready(Err(Cut));
            }
            self.pauses += 1;
            self.pause = Some(Box::pin(sleep(PAUSE)));
        }
    }

    fn has_room(&self, registry: &Registry, bytes: usize, held: Option<&HeldAppends>) -> bool {
        let outstanding = self.bytes.load(Relaxed);
        if bytes <= TINY && outstanding <= SMALL_FRAME {
            return true;
        }
        (outstanding <= OUTSTANDING || !registry.is_half_read()) && registry.make_room_to_read(bytes, held)
    }

    /// Counts a frame, which has `capacity` bytes of memory, until the server drops it.
    pub(crate) fn frame<T>(&self, registry: &Registry, bytes: T, capacity: usize) -> Bytes
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
}
