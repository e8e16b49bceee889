//! The wall clock beside the registry's own.

use std::time::{Duration, Instant, SystemTime};

#[cfg(all(test, not(comet_loom)))]
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Measures how far the wall clock has moved away from the monotonic clock.
///
/// The registry's clock is monotonic: it stands still while the machine is suspended, and follows no correction of the
/// wall clock. A `Stream-Expires-At` follows the wall clock. So such an end is stored on a time line of its own, the
/// registry's clock plus this drift: see [`Registry::wall`](super::Registry::wall).
pub(super) struct Clock {
    wall: SystemTime,
    monotonic: Instant,
    /// Moves the wall clock, in milliseconds.
    #[cfg(all(test, not(comet_loom)))]
    shift: AtomicI64,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            wall: SystemTime::now(),
            monotonic: Instant::now(),
            #[cfg(all(test, not(comet_loom)))]
            shift: AtomicI64::new(0),
        }
    }

    /// Returns how long it is until a time on the wall clock.
    pub(super) fn left_until(&self, end: SystemTime) -> Duration {
        end.duration_since(self.now()).unwrap_or_default()
    }

    /// Returns by how many milliseconds the wall clock has moved further than the monotonic one since this was created.
    pub(super) fn drift(&self) -> i64 {
        let wall = match self.now().duration_since(self.wall) {
            Ok(since) => signed(since),
            Err(before) => signed(before.duration()).saturating_neg(),
        };
        wall.saturating_sub(signed(self.monotonic.elapsed()))
    }

    #[cfg(not(all(test, not(comet_loom))))]
    #[allow(clippy::unused_self, reason = "tests move the clock")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    #[cfg(all(test, not(comet_loom)))]
    fn now(&self) -> SystemTime {
        let shift = self.shift.load(Relaxed);
        let (now, by) = (SystemTime::now(), Duration::from_millis(shift.unsigned_abs()));
        let moved = if shift < 0 { now.checked_sub(by) } else { now.checked_add(by) };
        moved.expect("a time that the clock can show")
    }

    /// Moves the wall clock, as a correction or the end of a suspension does.
    #[cfg(all(test, not(comet_loom)))]
    pub(super) fn shift(&self, millis: i64) {
        self.shift.fetch_add(millis, Relaxed);
    }
}

fn signed(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
