//! The deadline of a wait.

use std::time::Duration;

use crate::registry::{NEVER, Registry};

/// A wait that may last longer than this does not time out.
const YEAR: u64 = 365 * 24 * 3_600 * 1_000;

/// Returns the deadline of a wait that begins now, on the registry's clock. The deadline is up to a sixteenth early, at
/// random, so that waits that begin together do not time out together.
pub(super) fn deadline(registry: &Registry, wait: Duration) -> u64 {
    let millis = u64::try_from(wait.as_millis()).unwrap_or(NEVER);
    if millis > YEAR { NEVER } else { registry.now() + early(millis) }
}

fn early(millis: u64) -> u64 {
    millis - fastrand::u64(..=millis / 16)
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn deadlines_are_spread_over_at_most_the_last_sixteenth() {
        for millis in [0, 1, 15, 500, 16_000, 25_000, 600_000, YEAR] {
            let all: BTreeSet<_> = (0..10_000).map(|_| early(millis)).collect();
            assert!(all.iter().all(|early| *early <= millis && *early >= millis - millis / 16), "{millis}");
            assert!(all.len() as u64 > (millis / 16).min(1_000) / 2, "{} deadlines of {millis}", all.len());
        }
    }

    #[test]
    fn a_wait_of_more_than_a_year_does_not_time_out() {
        let registry = Registry::new(Default::default(), Default::default());
        assert_eq!(deadline(&registry, Duration::MAX), NEVER);
        assert!(deadline(&registry, Duration::from_secs(25)) < NEVER);
    }
}
