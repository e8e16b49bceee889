//! What stands for the tail of a channel that nobody has made.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::engine::Offset;

const BUCKETS: u16 = 4096;

/// "Before anything", for each name: all zeros, until a channel of that name has been forgotten.
///
/// Nothing is stored for a channel that nobody has made, so a client that waits on one gets an offset
/// that fits whatever comes first. But if something came, and was forgotten or deleted while the
/// client was away, that offset must not fit any more, or the client would never learn that it missed
/// something. So each such channel advances a count, and the count is in the fingerprint.
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

    pub(super) fn of(&self, bucket: Bucket) -> Offset {
        match self.forgotten.get().map_or(0, |counts| counts[bucket.index()].load(Relaxed)) {
            0 => Offset::ZERO,
            count => Offset::new(0, mix(self.seed ^ mix(u64::from(bucket.0) << 32 | u64::from(count)))),
        }
    }

    pub(super) fn forget(&self, bucket: Bucket) {
        let counts = self.forgotten.get_or_init(|| (0..BUCKETS).map(|_| AtomicU32::new(0)).collect());
        counts[bucket.index()].fetch_add(1, Relaxed);
    }
}

/// Which count a name has a share in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket(u16);

impl Bucket {
    pub(super) fn of(hash: u64) -> Self {
        Self((hash >> 20) as u16 % BUCKETS)
    }

    fn index(self) -> usize {
        self.0.into()
    }
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
        let (origins, name) = (Origins::new(), Bucket::of(7 << 20));
        assert_eq!(origins.of(name), Offset::ZERO);
        origins.forget(name);
        let second = origins.of(name);
        origins.forget(name);
        let third = origins.of(name);
        assert!(second != Offset::ZERO && third != Offset::ZERO && second != third);
        assert_eq!(second.position(), 0);
        assert_eq!(origins.of(Bucket::of(8 << 20)), Offset::ZERO, "another bucket is untouched");
    }
}
