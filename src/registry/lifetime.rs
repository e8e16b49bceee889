//! How long a channel lives by itself (Durable Streams, section 7).

use std::time::Duration;

use super::{
    Lifetime, Registry,
    entry::{ChannelState, Entry, StoredLog},
    millis,
};

impl Registry {
    /// Returns the log of a channel, unless it has expired.
    ///
    /// No waiter need be woken here: a wait on a channel that expires at a fixed time has set its timer to that time, or
    /// to half a minute if that is earlier, and an idle channel has no waiters.
    pub(super) fn living<'a>(&self, entry: &Entry, state: &'a mut ChannelState, now: u64) -> Option<&'a mut StoredLog> {
        let waited_on = state.waiters.len() > 0;
        if state.log.as_ref().is_some_and(|kept| !kept.is_tombstoned() && self.is_over(kept, waited_on, now)) {
            self.tombstone(entry, state);
        }
        state.log.as_mut()
    }

    /// The end of a lifetime on the time line of [`wall`](Self::wall), if it is fixed.
    pub(super) fn end_of(&self, lifetime: Lifetime) -> Option<u64> {
        match lifetime {
            Lifetime::Until(end) => Some(ends_in(self.clock.left_until(end), self.wall(self.now()))),
            Lifetime::Unbounded | Lifetime::Idle(_) => None,
        }
    }

    /// Whether the lifetime of a channel is over.
    pub(super) fn is_over(&self, kept: &StoredLog, waited_on: bool, now: u64) -> bool {
        match kept.rare().lifetime {
            Lifetime::Unbounded => false,
            Lifetime::Idle(window) => !waited_on && kept.touched.saturating_add(millis(window)) <= now,
            Lifetime::Until(_) => kept.rare().until.is_some_and(|until| until <= self.wall(now)),
        }
    }

    /// When a wait on the channel has to be polled again because its lifetime may be over: at a fixed end, and before that
    /// each half a minute, because a timer does not follow the wall clock.
    pub(super) fn look_again_at(&self, kept: &StoredLog, now: u64) -> Option<u64> {
        let until = kept.rare().until?;
        if self.remote().is_some() {
            return Some(until);
        }
        let left = until.saturating_sub(self.wall(now));
        Some(now.saturating_add(left.min(LOOK_AGAIN)))
    }
}

/// See [`Registry::look_again_at`].
const LOOK_AGAIN: u64 = 30_000;

/// The end of a lifetime of which so much is left: a millisecond later, as what is left was rounded down.
pub(super) fn ends_in(left: Duration, now: u64) -> u64 {
    now.saturating_add(millis(left)).saturating_add(1)
}

impl StoredLog {
    /// When the lifetime ends if it is idle and nobody touches the channel meanwhile.
    pub(super) fn idles_at(&self) -> Option<u64> {
        match self.rare().lifetime {
            Lifetime::Idle(window) => Some(self.touched.saturating_add(millis(window))),
            Lifetime::Unbounded | Lifetime::Until(_) => None,
        }
    }
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use std::{future::poll_fn, pin::pin, sync::Arc, time::SystemTime};
    use tokio::time::{advance, timeout};

    use super::*;
    use crate::{
        Limit,
        engine::{Creation, Retention, Start},
        registry::{Limits, NEVER, ReadOrWait, WaitEnd, slice::Slice},
    };

    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;

    fn registry() -> Arc<Registry> {
        Arc::new(Registry::new(Limits::default(), Retention::unbounded()))
    }

    /// Creates a channel that expires so many milliseconds after the real time.
    fn create(registry: &Registry, name: &str, left: u64) {
        let end = SystemTime::now() + Duration::from_millis(left);
        let (content_type, lifetime) = (Some(registry.json().clone()), Some(Lifetime::Until(end)));
        let creation = Creation { content_type, lifetime, ..Creation::default() };
        registry.create_local(registry.assert_local(), name, &creation).expect("it is created").1.wake();
    }

    fn exists(registry: &Registry, name: &str) -> bool {
        registry.peek_local(name).expect("it has no forks").is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_fixed_end_comes_with_the_wall_clock_after_a_suspension() {
        let registry = registry();
        create(&registry, "/x", HOUR);
        registry.clock.shift(59 * MINUTE as i64);
        assert!(exists(&registry, "/x"));
        registry.clock.shift(2 * MINUTE as i64);
        let reading = registry.read_local("/x", Start::Earliest, usize::MAX.into()).expect("nothing");
        assert!(reading.content_type.is_none() && !exists(&registry, "/x"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fixed_end_waits_for_a_wall_clock_that_was_set_back() {
        let registry = registry();
        create(&registry, "/x", HOUR);
        registry.clock.shift(-(HOUR as i64));
        // Created since, for the time that is two hours away by now.
        create(&registry, "/y", HOUR);
        advance(Duration::from_millis(119 * MINUTE)).await;
        assert!(exists(&registry, "/x") && exists(&registry, "/y"));
        let now = registry.now();
        while registry.make_room(Limit::Channels, now, &mut Slice::new()) {}
        assert!(!registry.may_have_room(now) && registry.usage().channels() == 2);
        advance(Duration::from_millis(2 * MINUTE)).await;
        assert!(!exists(&registry, "/x") && !exists(&registry, "/y"));
    }

    #[tokio::test(start_paused = true)]
    async fn channels_that_nobody_uses_are_evicted_by_the_wall_clock() {
        let registry = registry();
        for name in ["/x", "/y", "/z"] {
            create(&registry, name, HOUR);
        }
        let step = || registry.step(registry.now());
        step();
        registry.clock.shift(2 * HOUR as i64);
        assert_eq!(registry.usage().channels(), 3);
        step();
        assert_eq!(registry.usage().channels(), 1, "two in each step");
        step();
        assert_eq!(registry.usage().channels(), 0);
        assert!(registry.ends.is_empty());

        // Deleted before its end, a channel leaves the queue.
        create(&registry, "/x", HOUR);
        registry.delete_local(registry.assert_local(), "/x").expect("it exists").1.wake();
        assert!(registry.ends.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_parked_wait_ends_within_half_a_minute_of_a_clock_that_jumps() {
        let registry = registry();
        create(&registry, "/x", HOUR);
        let begun = registry.read_or_wait_local("/x", Start::Tail, usize::MAX.into()).expect("it exists");
        let ReadOrWait::Wait(wait) = begun else { panic!("there is nothing to read") };
        let mut wait = pin!(wait);
        let mut ended = pin!(poll_fn(|cx| wait.as_mut().poll(cx, NEVER, usize::MAX.into())));
        assert!(timeout(Duration::from_secs(45), ended.as_mut()).await.is_err());
        registry.clock.shift(2 * HOUR as i64);
        let ended = timeout(Duration::from_secs(31), ended).await;
        assert!(matches!(ended, Ok(WaitEnd::Deleted)), "{ended:?}");
    }
}
