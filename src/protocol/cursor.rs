//! The cursor of live reads (Durable Streams, section 10.1).

use http::HeaderValue;
use std::{
    num::NonZeroU32,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::text::Text;

/// 2024-10-09T00:00:00Z, from which intervals are counted.
const EPOCH: Duration = Duration::from_secs(1_728_432_000);
const INTERVAL: Duration = Duration::from_secs(20);
/// A client that is ahead is sent up to an hour further.
const JITTER: Duration = Duration::from_secs(3_600);

/// The largest accepted cursor. JavaScript represents integers up to 2^53 exactly.
const MOST: u64 = 1 << 53;

/// A cursor that a client sent, in the four bytes that a parked request has for it. From 2^31 on it is rounded up, to 25
/// significant bits: the client is sent a greater one anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor(NonZeroU32);

impl Cursor {
    const ROUNDED: u32 = 1 << 31;
    const SHIFT: u32 = 26;

    /// Parses a cursor. A malformed one counts as absent, and so do 0, which is long over, and one above 2^53.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let cursor: u64 = text.parse().ok().filter(|cursor| digits && *cursor <= MOST)?;
        let packed = if cursor < Self::ROUNDED.into() {
            cursor
        } else {
            let shift = (u64::BITS - cursor.leading_zeros()) - 25;
            u64::from(Self::ROUNDED | shift << Self::SHIFT) | cursor.div_ceil(1 << shift)
        };
        NonZeroU32::new(u32::try_from(packed).ok()?).map(Self)
    }

    /// The client's cursor, or a slightly greater one.
    fn get(self) -> u64 {
        let packed = self.0.get();
        if packed & Self::ROUNDED == 0 {
            return packed.into();
        }
        let shift = (packed ^ Self::ROUNDED) >> Self::SHIFT;
        u64::from(packed & ((1 << Self::SHIFT) - 1)) << shift
    }
}

/// The cursor to answer with: the number of the present interval, so that all clients share one URL in it. For a client that
/// has it already, a later one, so that no cache answers it with what it has.
pub(super) fn next(client: Option<Cursor>) -> u64 {
    next_at(SystemTime::now(), client.map(Cursor::get))
}

/// The same, as a header's value.
pub(super) fn header(client: Option<Cursor>) -> HeaderValue {
    Text::new().number(next(client)).value()
}

fn next_at(now: SystemTime, client: Option<u64>) -> u64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(EPOCH);
    let interval = since.as_secs() / INTERVAL.as_secs();
    match client {
        Some(client) if client >= interval => {
            let jitter = fastrand::u64(1..=JITTER.as_secs()).div_ceil(INTERVAL.as_secs());
            client.saturating_add(jitter)
        }
        _ => interval,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_interval_is_twenty_seconds_and_a_client_ahead_goes_on() {
        let at = |seconds| UNIX_EPOCH + EPOCH + Duration::from_secs(seconds);
        for (seconds, client, expected) in
            [(0, None, 0), (19, None, 0), (20, None, 1), (2_000, None, 100), (2_000, Some(99), 100)]
        {
            assert_eq!(next_at(at(seconds), client), expected);
        }
        for client in [100, 101, 5_000_000, u64::from(u32::MAX), MOST] {
            for _ in 0..1_000 {
                let next = next_at(at(2_000), Some(client));
                assert!(next > client && next <= client + 180, "{client} {next}");
            }
        }
        assert_eq!(next_at(UNIX_EPOCH, None), 0, "a clock that is wrong");
    }

    #[test]
    fn garbage_is_no_cursor() {
        for text in ["", "0", "-1", "+1", "1.5", "x", "99999999999999999999", "9007199254740993", " 1"] {
            assert_eq!(Cursor::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_is_kept_or_rounded_up_a_little(cursor in (0..=53u32).prop_flat_map(|bits| 1..=1u64 << bits)) {
            let kept = Cursor::parse(&cursor.to_string()).expect("a cursor").get();
            prop_assert!(kept >= cursor && kept - cursor <= cursor >> 24, "{cursor} {kept}");
            prop_assert!(kept == cursor || cursor >= 1 << 31);
            prop_assert!(next_at(UNIX_EPOCH, Some(kept)) > cursor);
        }
    }
}
