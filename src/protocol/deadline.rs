//! When a wait is over.

use std::{pin::Pin, time::Duration};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// The end of a wait or of the channel's lifetime, whichever comes first; none for no wait at all.
pub(super) fn deadline(wait: Duration, until: Option<Instant>) -> Option<Sleep> {
    if wait.is_zero() {
        return None;
    }
    let wait = jittered(wait);
    Some(match until {
        Some(until) if until.saturating_duration_since(Instant::now()) < wait => sleep_until(until),
        _ => sleep(wait),
    })
}

/// Brings a deadline forward to the end of the channel's lifetime, which may not have been known when the wait began;
/// says whether that was to be done.
pub(super) fn bring_forward(deadline: Option<Pin<&mut Sleep>>, until: Option<Instant>) -> bool {
    match (deadline, until) {
        (Some(deadline), Some(until)) if until < deadline.deadline() => {
            deadline.reset(until);
            true
        }
        _ => false,
    }
}

/// Up to a sixteenth less, at random: who started together need not time out together.
fn jittered(wait: Duration) -> Duration {
    wait - wait.mul_f64(fastrand::f64() / 16.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_takes_a_sixteenth_at_most() {
        for _ in 0..1_000 {
            let jittered = jittered(Duration::from_secs(16));
            assert!(jittered > Duration::from_secs(15) && jittered <= Duration::from_secs(16), "{jittered:?}");
        }
        let _ = jittered(Duration::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_the_channel_and_not_after_it() {
        let now = Instant::now();
        let soon = now + Duration::from_millis(1_500);
        assert!(deadline(Duration::ZERO, Some(soon)).is_none());
        assert_eq!(deadline(Duration::from_secs(25), Some(soon)).expect("a wait").deadline(), soon);
        assert!(deadline(Duration::from_secs(1), Some(soon)).expect("a wait").deadline() < soon);
        assert!(deadline(Duration::MAX, Some(soon)).is_some() && deadline(Duration::MAX, None).is_some());
    }
}
