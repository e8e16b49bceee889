//! Rules of following a log that is kept elsewhere, which the tests take out one at a time to see that they would notice: by
//! themselves, or with `RUSTFLAGS="--cfg comet_faults"`. Otherwise all of them hold, and this is nothing.

/// A rule that what is acknowledged depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
#[allow(missing_docs, reason = "not for use")]
#[cfg_attr(not(comet_faults), expect(unreachable_pub, reason = "it is, with faults"))]
pub enum Invariant {
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
    pub(crate) without: Option<Invariant>,
    /// A fork on Redis stops for ever after so many steps.
    #[cfg(any(test, comet_faults))]
    pub(crate) fork_steps: Option<u32>,
    /// How long a fork on Redis pins its source.
    #[cfg(any(test, comet_faults))]
    pub(crate) fork_pin: Option<std::time::Duration>,
}

impl Faults {
    /// Whether a rule holds.
    #[cfg(any(test, comet_faults))]
    pub(crate) fn holds(self, rule: Invariant) -> bool {
        self.without != Some(rule)
    }

    /// Whether a rule holds.
    #[cfg(not(any(test, comet_faults)))]
    #[expect(clippy::unused_self, reason = "there is something in it with faults")]
    pub(crate) const fn holds(self, _: Invariant) -> bool {
        true
    }

    /// Whether a fork takes its step of this number.
    #[cfg(any(test, comet_faults))]
    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only forks on Redis have steps"))]
    pub(crate) fn allows(self, step: u32) -> bool {
        self.fork_steps.is_none_or(|steps| step <= steps)
    }

    /// How long a fork pins its source, if that is set.
    #[cfg(any(test, comet_faults))]
    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only forks on Redis pin their sources"))]
    pub(crate) fn pin(self) -> Option<std::time::Duration> {
        self.fork_pin
    }

    /// Whether a fork takes its step of this number.
    #[cfg(not(any(test, comet_faults)))]
    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only forks on Redis have steps"))]
    #[expect(clippy::unused_self, reason = "there is something in it with faults")]
    pub(crate) const fn allows(self, _: u32) -> bool {
        true
    }

    /// How long a fork pins its source, if that is set.
    #[cfg(not(any(test, comet_faults)))]
    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only forks on Redis pin their sources"))]
    #[expect(clippy::unused_self, reason = "there is something in it with faults")]
    pub(crate) const fn pin(self) -> Option<std::time::Duration> {
        None
    }
}
