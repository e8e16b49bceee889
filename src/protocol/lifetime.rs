//! `Stream-TTL` and `Stream-Expires-At` (Durable Streams, section 7).

use http::{HeaderMap, HeaderValue};
use std::time::{Duration, SystemTime};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use super::{headers, problem::Problem};
use crate::registry::Lifetime;

/// What a `PUT` says of the lifetime; nothing is not the same as unbounded, as a fork may inherit one.
pub(super) fn parse(map: &HeaderMap) -> Result<Option<Lifetime>, Problem> {
    match (map.get(headers::TTL), map.get(headers::EXPIRES_AT)) {
        (None, None) => Ok(None),
        (Some(ttl), None) => parse_ttl(ttl).map(Some).ok_or_else(|| {
            Problem::bad_request(
                "ttl",
                "`Stream-TTL` is a number of seconds up to 2^53, without a sign or leading zeros",
            )
        }),
        (None, Some(at)) => parse_time(at)
            .map(Some)
            .ok_or_else(|| Problem::bad_request("expires-at", "`Stream-Expires-At` is a time as in RFC 3339")),
        (Some(_), Some(_)) => Err(Problem::bad_request("ttl", "either `Stream-TTL` or `Stream-Expires-At`, not both")),
    }
}

/// The largest accepted `Stream-TTL`, in seconds. JavaScript represents integers up to 2^53 exactly.
const MOST: u64 = 1 << 53;

fn parse_ttl(value: &HeaderValue) -> Option<Lifetime> {
    let text = value.to_str().ok()?;
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let seconds: u64 = text.parse().ok().filter(|seconds| canonical && *seconds <= MOST)?;
    Some(Lifetime::Idle(Duration::from_secs(seconds)))
}

fn parse_time(value: &HeaderValue) -> Option<Lifetime> {
    let time = OffsetDateTime::parse(value.to_str().ok()?, &Rfc3339).ok()?;
    // The last hours of the year 9999 are in the year 10000 elsewhere, which RFC 3339 has no words for.
    let utc = time.checked_to_offset(UtcOffset::UTC)?;
    // Windows has no times before 1601. All of those are over.
    let since = std::time::Duration::try_from(utc - OffsetDateTime::UNIX_EPOCH).unwrap_or_default();
    Some(Lifetime::Until(SystemTime::UNIX_EPOCH.checked_add(since)?))
}

/// What a `HEAD` answers of it.
pub(super) fn describe(map: &mut HeaderMap, lifetime: Lifetime) {
    match lifetime {
        Lifetime::Unbounded => {}
        Lifetime::Idle(window) => {
            map.insert(headers::TTL, headers::ascii(window.as_secs()));
        }
        Lifetime::Until(end) => {
            if let Some(text) = rfc_3339(end) {
                map.insert(headers::EXPIRES_AT, headers::ascii(text));
            }
        }
    }
}

/// `None` for a time that RFC 3339 has no words for, which an application may have meant for "never".
fn rfc_3339(time: SystemTime) -> Option<String> {
    let utc = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => OffsetDateTime::UNIX_EPOCH.checked_add(since.try_into().ok()?),
        Err(before) => OffsetDateTime::UNIX_EPOCH.checked_sub(before.duration().try_into().ok()?),
    };
    utc?.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(name: &'static str, text: &str) -> Option<Lifetime> {
        let mut map = HeaderMap::new();
        map.insert(name, text.parse().expect("a header"));
        parse(&map).ok().flatten()
    }

    #[test]
    fn a_ttl_is_plain_digits() {
        for (text, seconds) in [("1", Some(1)), ("3600", Some(3600)), ("0", Some(0)), ("9007199254740992", Some(MOST))]
        {
            assert_eq!(parsed("stream-ttl", text), seconds.map(|s| Lifetime::Idle(Duration::from_secs(s))));
        }
        for text in ["", "-1", "+1", "01", "1.0", "1e3", " 1x", "9007199254740993", "99999999999999999999", "abc"] {
            assert_eq!(parsed("stream-ttl", text), None, "{text:?}");
        }
    }

    #[test]
    fn a_time_is_that_of_rfc_3339() {
        let utc = parsed("stream-expires-at", "2030-01-01T12:00:00Z");
        assert!(utc.is_some());
        assert_eq!(utc, parsed("stream-expires-at", "2030-01-01T14:00:00+02:00"));
        assert_eq!(
            parsed("stream-expires-at", "9999-12-31T23:59:59Z"),
            parsed("stream-expires-at", "9999-12-31T22:59:59-01:00")
        );
        let long_ago = Some(Lifetime::Until(SystemTime::UNIX_EPOCH));
        for text in ["1969-12-31T23:59:59Z", "1600-01-01T00:00:00Z", "0000-01-01T00:00:00Z"] {
            assert_eq!(parsed("stream-expires-at", text), long_ago, "{text}: over, and a time on every platform");
        }
        for text in ["", "tomorrow", "9999-12-31T23:59:59-00:01", "2030-01-01", "2030-13-01T00:00:00Z", "1893456000"] {
            assert_eq!(parsed("stream-expires-at", text), None, "{text:?}");
        }
    }

    /// Windows has fewer times than these.
    #[cfg(unix)]
    #[test]
    fn whatever_time_an_application_means_it_is_described_or_left_out() {
        for (end, shown) in [
            (SystemTime::UNIX_EPOCH, Some("1970-01-01T00:00:00Z")),
            (SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799), Some("9999-12-31T23:59:59Z")),
            (SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800), None),
            (SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64), None),
            (SystemTime::UNIX_EPOCH - Duration::from_secs(1), Some("1969-12-31T23:59:59Z")),
            (SystemTime::UNIX_EPOCH - Duration::from_secs(1 << 50), None),
        ] {
            let mut map = HeaderMap::new();
            describe(&mut map, Lifetime::Until(end));
            assert_eq!(map.get(headers::EXPIRES_AT).map(|at| at.to_str().expect("ASCII")), shown, "{end:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_times_never_panic(text in "[ -~]{0,40}", digits in "[0-9T:Z+.-]{0,30}") {
            for text in [&text, &digits] {
                let _ = parsed("stream-ttl", text);
                if let Some(lifetime) = parsed("stream-expires-at", text) {
                    describe(&mut HeaderMap::new(), lifetime);
                }
            }
        }
    }
}
