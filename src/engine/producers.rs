//! What a log remembers of who wrote to it: sequences and producers.

use std::{collections::HashMap, sync::Arc};

use crate::Error;

/// Which message of which producer an append is (Durable Streams, section 5.2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) id: Arc<str>,
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
}

impl Stamp {
    /// The longest id, in bytes: the channel stores it.
    const ID: usize = 255;

    /// The largest integer that every client can count to, and Lua on Redis: 2^53 - 1.
    pub(crate) const MOST: u64 = (1 << 53) - 1;

    /// Returns the stamp, or what is wrong with it.
    ///
    /// An id is what a header can carry unchanged: HTTP removes spaces and tabs at the ends of a value, and some proxies
    /// replace a tab within it.
    pub(crate) fn new(id: Arc<str>, epoch: u64, seq: u64) -> Result<Self, &'static str> {
        let printable = id.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if !(1..=Self::ID).contains(&id.len()) || !printable || id.starts_with(' ') || id.ends_with(' ') {
            return Err("a producer's id must be 1 to 255 printable ASCII characters, without a space at either end");
        }
        if epoch > Self::MOST || seq > Self::MOST {
            return Err("a producer's epoch and sequence number must be at most 2^53 - 1");
        }
        Ok(Self { id, epoch, seq })
    }
}

/// What is to be done with a stamped append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProducerCheck {
    Accept,
    /// It was accepted before; the numbers are the highest that were.
    Duplicate {
        epoch: u64,
        seq: u64,
    },
}

/// Made when the first writer says who it is, and kept as long as the log.
#[derive(Default)]
pub(crate) struct Producers {
    last_seq: Option<Box<str>>,
    producers: HashMap<Arc<str>, ProducerState>,
    /// Counts appends of producers, to find the one that has been silent the longest.
    clock: u64,
    /// Who ended the stream: to recognise the same request when it is repeated.
    closed_by: Option<Stamp>,
    /// The bytes of the ids of `producers`.
    ids: usize,
    /// A producer was evicted, so a producer that is unknown now may have been known before.
    evicted: bool,
}

/// What a producer costs beside its id.
const PRODUCER_COST: usize = 64;

struct ProducerState {
    epoch: u64,
    seq: u64,
    heard: u64,
}

impl Producers {
    /// `Stream-Seq` is compared byte by byte, and must grow (section 5.2). Its scope is the channel.
    pub(crate) fn check_seq(&self, seq: &str) -> Result<(), Error> {
        match &self.last_seq {
            Some(last) if seq <= &**last => Err(Error::Sequence),
            _ => Ok(()),
        }
    }

    pub(crate) fn note_seq(&mut self, seq: &str) {
        self.last_seq = Some(seq.into());
    }

    /// Compares a stamp with the last one of its producer. For an unknown producer that does not begin at 0,
    /// `may_be_lost` tells whether the channel may have lost what it knew for another reason than an eviction.
    pub(crate) fn admit(&self, stamp: &Stamp, may_be_lost: impl FnOnce() -> bool) -> Result<ProducerCheck, Error> {
        let Some(known) = self.producers.get(&stamp.id) else {
            return match stamp.seq {
                0 => Ok(ProducerCheck::Accept),
                _ if self.evicted || may_be_lost() => Err(Error::UnknownProducer { epoch: stamp.epoch }),
                received => Err(Error::Gap { expected: 0, received }),
            };
        };
        if stamp.epoch < known.epoch {
            return Err(Error::Fenced { epoch: known.epoch });
        }
        if stamp.epoch > known.epoch {
            return if stamp.seq == 0 { Ok(ProducerCheck::Accept) } else { Err(Error::Epoch) };
        }
        if stamp.seq <= known.seq {
            return Ok(ProducerCheck::Duplicate { epoch: known.epoch, seq: known.seq });
        }
        match known.seq + 1 {
            expected if stamp.seq == expected => Ok(ProducerCheck::Accept),
            expected => Err(Error::Gap { expected, received: stamp.seq }),
        }
    }

    /// Remembers an append that was made; of more than `most` producers, the one silent the longest is forgotten.
    pub(crate) fn note(&mut self, stamp: &Stamp, most: usize) {
        self.clock += 1;
        if !self.producers.contains_key(&stamp.id) && self.producers.len() >= most {
            let silent = self.producers.iter().min_by_key(|(_, producer)| producer.heard);
            if let Some(silent) = silent.map(|(id, _)| id.clone()) {
                self.ids -= silent.len();
                self.producers.remove(&silent);
                self.evicted = true;
            }
        }
        let producer = ProducerState { epoch: stamp.epoch, seq: stamp.seq, heard: self.clock };
        if self.producers.insert(stamp.id.clone(), producer).is_none() {
            self.ids += stamp.id.len();
        }
    }

    /// What this holds, in the measure of the limit on all history.
    pub(crate) fn cost(&self) -> usize {
        self.ids + self.producers.len() * PRODUCER_COST
    }

    pub(crate) fn closed_by(&self, stamp: &Stamp) -> bool {
        self.closed_by.as_ref() == Some(stamp)
    }

    pub(crate) fn note_close(&mut self, stamp: Option<&Stamp>) {
        self.closed_by = stamp.cloned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(id: &str, epoch: u64, seq: u64) -> Stamp {
        Stamp { id: id.into(), epoch, seq }
    }

    #[test]
    fn an_id_is_printable_ascii_without_a_space_at_either_end() {
        let (longest, too_long) = ("x".repeat(255), "x".repeat(256));
        for (id, valid) in [
            ("a", true),
            ("till 7, floor 2", true),
            ("!~\"\\", true),
            (&*longest, true),
            (&*too_long, false),
            ("", false),
            (" ", false),
            (" a", false),
            ("a ", false),
            ("a\tb", false),
            ("\ta", false),
            ("a\n", false),
            ("a\0b", false),
            ("a\x7f", false),
            ("é", false),
        ] {
            assert_eq!(Stamp::new(id.into(), 0, 0).is_ok(), valid, "{id:?}");
        }
        assert!(Stamp::new("a".into(), Stamp::MOST, Stamp::MOST).is_ok());
        assert!(
            Stamp::new("a".into(), Stamp::MOST + 1, 0).is_err() && Stamp::new("a".into(), 0, Stamp::MOST + 1).is_err()
        );
    }

    #[test]
    fn a_producer_is_accepted_once_a_number_and_in_order() {
        let mut writers = Producers::default();
        let admit = |writers: &Producers, stamp| writers.admit(&stamp, || false);
        assert!(matches!(admit(&writers, stamp("a", 3, 1)), Err(Error::Gap { expected: 0, received: 1 })));
        for (epoch, seq) in [(3, 0), (3, 1), (5, 0)] {
            assert_eq!(admit(&writers, stamp("a", epoch, seq)).ok(), Some(ProducerCheck::Accept));
            writers.note(&stamp("a", epoch, seq), 10);
        }
        assert!(matches!(admit(&writers, stamp("a", 4, 9)), Err(Error::Fenced { epoch: 5 })));
        assert!(matches!(admit(&writers, stamp("a", 6, 1)), Err(Error::Epoch)));
        assert!(matches!(admit(&writers, stamp("a", 5, 2)), Err(Error::Gap { expected: 1, received: 2 })));
        assert_eq!(admit(&writers, stamp("a", 5, 0)).ok(), Some(ProducerCheck::Duplicate { epoch: 5, seq: 0 }));
        assert_eq!(admit(&writers, stamp("b", 0, 0)).ok(), Some(ProducerCheck::Accept), "another producer");
    }

    #[test]
    fn only_an_unknown_producer_is_refused_because_the_channel_may_have_lost_it() {
        let mut writers = Producers::default();
        writers.note(&stamp("a", 3, 0), 10);
        let admit = |id, epoch, seq| writers.admit(&stamp(id, epoch, seq), || true);
        assert!(matches!(admit("b", 7, 1), Err(Error::UnknownProducer { epoch: 7 })), "with its own epoch");
        assert_eq!(admit("b", 7, 0).ok(), Some(ProducerCheck::Accept));
        assert!(matches!(admit("a", 3, 2), Err(Error::Gap { expected: 1, received: 2 })));
        assert!(matches!(admit("a", 2, 9), Err(Error::Fenced { epoch: 3 })));
        assert!(matches!(admit("a", 4, 1), Err(Error::Epoch)));
    }

    #[test]
    fn of_too_many_producers_the_most_silent_is_forgotten() {
        let mut writers = Producers::default();
        for id in ["a", "b", "c"] {
            writers.note(&stamp(id, 0, 0), 3);
        }
        writers.note(&stamp("a", 0, 1), 3);
        writers.note(&stamp("d", 0, 0), 3);
        let admit = |id, seq| writers.admit(&stamp(id, 0, seq), || false);
        assert!(matches!(admit("b", 1), Err(Error::UnknownProducer { epoch: 0 })), "b is forgotten");
        assert_eq!(admit("a", 2).ok(), Some(ProducerCheck::Accept), "a is not");
        assert!(matches!(admit("a", 3), Err(Error::Gap { expected: 2, received: 3 })));
        assert_eq!((writers.producers.len(), writers.cost()), (3, 3 + 3 * PRODUCER_COST));
    }

    #[test]
    fn a_sequence_is_compared_as_text() {
        let mut writers = Producers::default();
        for (seq, fits) in
            [("09", true), ("09", false), ("10", true), ("2", true), ("10", false), ("a", true), ("B", false)]
        {
            assert_eq!(writers.check_seq(seq).is_ok(), fits, "{seq}");
            if fits {
                writers.note_seq(seq);
            }
        }
    }
}
