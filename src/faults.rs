//! Rules of following a log that is kept elsewhere, which the tests take out one at a time to see that they would notice: by
//! themselves, or with `RUSTFLAGS="--cfg comet_faults"`. Otherwise all of them hold, and this is nothing.

/// A rule that what is acknowledged depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
#[allow(missing_docs, reason = "not for use")]
#[cfg_attr(not(comet_faults), expect(unreachable_pub, reason = "it is, with faults"))]
pub enum Rule {
    /// A channel is subscribed to first, and read then.
    Order,
    /// What was heard while it was read is taken in after it.
    Drain,
    /// What does not follow is not taken in.
    Continuity,
    /// After a connection was lost all is read again.
    ReadAgain,
    /// A place is where a certain append was, and not where any was.
    Fingerprint,
    /// A connection on which a probe is not heard is given up.
    Probe,
    /// Quiet channels are compared with their logs.
    Compare,
    /// A client that is ahead of this process is no stranger.
    Ahead,
}

/// The rule that is taken out, if any.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    #[cfg(any(test, comet_faults))]
    pub(crate) without: Option<Rule>,
}

impl Faults {
    /// Whether a rule holds.
    #[cfg(any(test, comet_faults))]
    pub(crate) fn keep(self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// Whether a rule holds.
    #[cfg(not(any(test, comet_faults)))]
    #[expect(clippy::unused_self, reason = "there is something in it with faults")]
    pub(crate) const fn keep(self, _: Rule) -> bool {
        true
    }
}
