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

/// The cursor to answer with: the number of the interval that now is, so that all clients share one URL in it;
/// and for a client that is there already, a later one, so that no cache answers it with what it has.
pub(super) fn next(client: Option<NonZeroU32>) -> u32 {
    next_at(SystemTime::now(), client.map(NonZeroU32::get))
}

/// The same, as a header's value.
pub(super) fn header(client: Option<NonZeroU32>) -> HeaderValue {
    Text::new().number(next(client).into()).value()
}

fn next_at(now: SystemTime, client: Option<u32>) -> u32 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(EPOCH);
    let interval = u32::try_from(since.as_secs() / INTERVAL.as_secs()).unwrap_or(u32::MAX);
    match client {
        Some(client) if client >= interval => {
            let jitter = fastrand::u64(1..=JITTER.as_secs()).div_ceil(INTERVAL.as_secs());
            client.saturating_add(u32::try_from(jitter).unwrap_or(1))
        }
        _ => interval,
    }
}

/// A cursor that a client sent. What is none counts as absent, and so do 0, which is long over, and one that has no room above
/// it: it was not ours.
pub(super) fn parse(text: &str) -> Option<NonZeroU32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|cursor: &NonZeroU32| digits && cursor.get() < u32::MAX - 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_twenty_seconds_and_a_client_ahead_goes_on() {
        let at = |seconds| UNIX_EPOCH + EPOCH + Duration::from_secs(seconds);
        for (seconds, client, expected) in
            [(0, None, 0), (19, None, 0), (20, None, 1), (2_000, None, 100), (2_000, Some(99), 100)]
        {
            assert_eq!(next_at(at(seconds), client), expected);
        }
        for client in [100, 101, 5_000_000] {
            for _ in 0..1_000 {
                let next = next_at(at(2_000), Some(client));
                assert!(next > client && next <= client + 180, "{client} {next}");
            }
        }
        assert_eq!(next_at(UNIX_EPOCH, None), 0, "a clock that is wrong");
    }

    #[test]
    fn garbage_is_no_cursor() {
        for text in ["", "0", "-1", "+1", "1.5", "x", "99999999999999999999", "4294967295", " 1"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(parse("3300000").map(NonZeroU32::get), Some(3_300_000));
    }
}
