//! Absent tails: the offsets that stand for the tail of a channel that does not exist.

use std::{
    collections::BTreeMap,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Release},
    },
};

use crate::{engine::Offset, sync::Mutex};

/// How many names of ended channels are remembered. They take less than 5 MiB.
const NAMES: usize = 65_536;

/// The channels that have ended: deleted, expired or evicted after something was appended to them.
///
/// Nothing is stored for a channel that does not exist, but a client that waits for its first message needs an offset:
/// the *absent tail*, which precedes the first append. If a channel of that name is created and ends while the client
/// is away, the client has missed messages, and its offset must be refused. Therefore endings are numbered, an absent
/// tail carries the number of the last ending before it was returned, and it is refused if a channel of its name has
/// ended since.
///
/// The registry remembers the number of the last ending for the 65,536 names that ended last. It also refuses an absent
/// tail that is older than all of these, because it can no longer tell whether a channel of that name has ended since.
/// An entry of the map remembers the number for its own name, so a parked request is never refused for this reason.
pub(super) struct AbsentTails {
    /// Encodes the number of an ending into a fingerprint, together with the hash of the name, so that no client can
    /// guess one.
    seed: u64,
    /// The number of the last ending, read without the lock.
    last: AtomicU64,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    /// The number of the last ending, by the hash of the name. A tree, because a hash table moves all of its entries at
    /// once when it grows.
    numbers: BTreeMap<u64, u64>,
    /// The hash of the name, by the number of its last ending: the oldest is first.
    names: BTreeMap<u64, u64>,
    /// The number of the last ending that is no longer remembered.
    forgotten: u64,
}

impl AbsentTails {
    pub(super) fn new() -> Self {
        Self { seed: fastrand::u64(..), last: AtomicU64::new(0), recent: Mutex::default() }
    }

    /// Returns the absent tail of a name. It is all zeros until a channel has ended.
    pub(super) fn tail(&self, name: u64) -> Offset {
        Offset::new(0, self.seal(self.last.load(Acquire), name))
    }

    /// Numbers the ending of a channel. Called under the lock of the channel.
    pub(super) fn note(&self, name: u64) -> u64 {
        let mut recent = self.recent.lock();
        let number = self.last.load(Acquire) + 1;
        if let Some(before) = recent.numbers.insert(name, number) {
            recent.names.remove(&before);
        }
        recent.names.insert(number, name);
        if recent.names.len() > NAMES {
            if let Some((oldest, name)) = recent.names.pop_first() {
                recent.numbers.remove(&name);
                recent.forgotten = oldest;
            }
        }
        self.last.store(number, Release);
        number
    }

    /// Returns the number of the last ending of this name, or of the last forgotten ending if this name has none that
    /// is remembered. No channel of this name has ended after it.
    pub(super) fn since(&self, name: u64) -> u64 {
        if self.last.load(Acquire) == 0 {
            return 0;
        }
        let recent = self.recent.lock();
        recent.numbers.get(&name).copied().unwrap_or(recent.forgotten)
    }

    /// Returns whether an ending of this name is among those that are remembered.
    pub(super) fn is_remembered(&self, name: u64) -> bool {
        self.last.load(Acquire) > 0 && self.recent.lock().numbers.contains_key(&name)
    }

    /// Returns whether an offset is an absent tail of this name that was returned after the ending numbered `since`:
    /// see [`since`](Self::since).
    pub(super) fn is_tail(&self, offset: Offset, name: u64, since: u64) -> bool {
        let number = self.open(offset.fingerprint(), name);
        offset.position() == 0 && (since..=self.last.load(Acquire)).contains(&number)
    }

    fn seal(&self, number: u64, name: u64) -> u64 {
        if number == 0 { 0 } else { mix(mix(number ^ self.seed) ^ name) }
    }

    fn open(&self, fingerprint: u64, name: u64) -> u64 {
        if fingerprint == 0 { 0 } else { unmix(unmix(fingerprint) ^ name) ^ self.seed }
    }
}

/// The finaliser of SplitMix64: every bit of the input affects every bit of the output, and no two inputs have the same
/// output.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// The inverse of [`mix`].
fn unmix(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 31 ^ bits >> 62).wrapping_mul(0x3196_42b2_d24d_8ec3);
    bits = (bits ^ bits >> 27 ^ bits >> 54).wrapping_mul(0x96de_1b17_3f11_9089);
    bits ^ bits >> 30 ^ bits >> 60
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns whether a tail that was returned earlier is still accepted.
    fn is_good(endings: &AbsentTails, tail: Offset, name: u64) -> bool {
        endings.is_tail(tail, name, endings.since(name))
    }

    #[test]
    fn a_tail_is_refused_after_a_channel_of_its_name_has_ended_and_only_then() {
        let (endings, ours, other) = (AbsentTails::new(), 7, 8);
        let first = endings.tail(ours);
        assert_eq!(first, Offset::ZERO);
        endings.note(other);
        assert!(is_good(&endings, first, ours));
        let second = endings.tail(ours);
        assert!(second != first && second.position() == 0 && is_good(&endings, second, ours));
        assert!(!is_good(&endings, second, other), "a tail of another name");
        endings.note(ours);
        assert!(!is_good(&endings, first, ours) && !is_good(&endings, second, ours));
        assert!(is_good(&endings, endings.tail(ours), ours));
        for made_up in [1, u64::MAX, second.fingerprint() + 1] {
            assert!(!is_good(&endings, Offset::new(0, made_up), ours), "{made_up}");
        }
        assert!(!is_good(&endings, Offset::new(1, endings.tail(ours).fingerprint()), ours), "not a tail");
    }

    #[test]
    fn a_tail_is_refused_once_the_endings_after_it_are_forgotten() {
        let (endings, ours) = (AbsentTails::new(), 7);
        let (tail, parked_since) = (endings.tail(ours), endings.since(ours));
        // A name that ends again and again occupies one slot.
        (0..200_000).for_each(|_| _ = endings.note(8));
        assert!(is_good(&endings, tail, ours));
        (0..NAMES as u64).for_each(|name| _ = endings.note(1_000 + name));
        assert!(!is_good(&endings, tail, ours));
        assert!(endings.is_tail(tail, ours, parked_since), "an entry that existed all the time remembers the number");
        assert!(is_good(&endings, endings.tail(ours), ours));
        let recent = endings.recent.lock();
        assert_eq!((recent.numbers.len(), recent.names.len()), (NAMES, NAMES));
    }

    proptest! {
        #[test]
        fn mixing_can_be_undone(bits: u64) {
            prop_assert_eq!(unmix(mix(bits)), bits);
        }
    }
}
