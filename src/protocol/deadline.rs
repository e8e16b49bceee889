//! When a wait is over.

use std::time::Duration;

use crate::registry::{NEVER, Registry};

/// Longer is for ever.
const YEAR: u64 = 365 * 24 * 3_600 * 1_000;

/// When a wait that begins now is over, on the registry's clock: up to a sixteenth earlier, at random, as who began together need
/// not time out together.
pub(super) fn deadline(registry: &Registry, wait: Duration) -> u64 {
    let millis = u64::try_from(wait.as_millis()).unwrap_or(NEVER);
    if millis > YEAR { NEVER } else { early(registry.now(), millis) }
}

fn early(now: u64, millis: u64) -> u64 {
    let steps = millis / 16 / step(millis);
    after(now, millis) - fastrand::u64(0..steps.max(1)) * step(millis)
}

/// The moment so much later, or a little before: many share it, and with it a timer.
pub(super) fn after(now: u64, millis: u64) -> u64 {
    let step = step(millis);
    (now + millis) / step * step
}

/// A 256th or less, and a power of two, so that different waits share moments too.
fn step(millis: u64) -> u64 {
    (millis / 256).checked_ilog2().map_or(1, |bits| 1 << bits)
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_sixteenth_is_taken_off_at_most_and_moments_are_shared() {
        for (millis, most) in
            [(0, 1), (1, 1), (15, 1), (500, 31), (16_000, 32), (25_000, 32), (600_000, 32), (YEAR, 32)]
        {
            let moments: std::collections::BTreeSet<_> = (0..10_000).map(|nth| early(nth % 7, millis)).collect();
            for (nth, moment) in (0..7).map(|nth| (nth, early(nth, millis))) {
                assert!(
                    moment <= millis + nth && moment + millis / 16 >= millis + nth,
                    "{moment} of {millis} and {nth}"
                );
            }
            assert!(moments.len() <= most + 7, "{} moments of {millis}", moments.len());
        }
    }

    #[test]
    fn for_ever_is_no_moment() {
        let registry = Registry::new(Default::default(), Default::default());
        assert_eq!(deadline(&registry, Duration::MAX), NEVER);
        assert!(deadline(&registry, Duration::from_secs(25)) < NEVER);
    }
}
