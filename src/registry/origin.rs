//! What stands for the tail of a channel that nobody has made.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::engine::Offset;

const BUCKETS: usize = 4096;

/// "Before anything", for each name: all zeros, until a channel of that name has been forgotten.
///
/// Nothing is stored for a channel that nobody has made, so a client that waits on one gets an offset
/// that fits whatever comes first. But if something came, aged out and was forgotten while the
/// client was away, that offset must not fit any more, or the client would never learn that it missed
/// something. So each forgotten channel advances a count, and the count is in the fingerprint.
/// Names share counts: a collision tells a client to start over that need not have, and is harmless.
pub(super) struct Origins {
    /// 16 KiB, made when the first channel is forgotten.
    forgotten: OnceLock<Box<[AtomicU32]>>,
    seed: u64,
}

impl Origins {
    pub(super) fn new() -> Self {
        Self { forgotten: OnceLock::new(), seed: fastrand::u64(..) }
    }

    pub(super) fn of(&self, hash: u64) -> Offset {
        let bucket = bucket(hash);
        match self.forgotten.get().map_or(0, |counts| counts[bucket].load(Relaxed)) {
            0 => Offset::ZERO,
            count => Offset::new(0, mix(self.seed ^ mix((bucket as u64) << 32 | u64::from(count)))),
        }
    }

    pub(super) fn forget(&self, hash: u64) {
        let counts = self.forgotten.get_or_init(|| (0..BUCKETS).map(|_| AtomicU32::new(0)).collect());
        counts[bucket(hash)].fetch_add(1, Relaxed);
    }
}

fn bucket(hash: u64) -> usize {
    (hash >> 20) as usize % BUCKETS
}

/// The finaliser of SplitMix64: every bit of the input moves every bit of the output.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forgotten_name_begins_elsewhere_each_time() {
        let origins = Origins::new();
        assert_eq!(origins.of(7), Offset::ZERO);
        origins.forget(7);
        let second = origins.of(7);
        origins.forget(7);
        let third = origins.of(7);
        assert!(second != Offset::ZERO && third != Offset::ZERO && second != third);
        assert_eq!(second.position(), 0);
        assert_eq!(origins.of(7 + (1 << 20)), Offset::ZERO, "another bucket is untouched");
    }
}
