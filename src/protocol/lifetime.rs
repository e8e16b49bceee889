//! `Stream-TTL` and `Stream-Expires-At` (Durable Streams, section 7).

use http::{HeaderMap, HeaderValue};
use std::time::{Duration, SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{headers, problem::Problem};
use crate::registry::Lifetime;

/// What a `PUT` says of the lifetime; nothing is not the same as unbounded, as a fork may inherit one.
pub(super) fn parse(map: &HeaderMap) -> Result<Option<Lifetime>, Problem> {
    match (map.get(headers::TTL), map.get(headers::EXPIRES_AT)) {
        (None, None) => Ok(None),
        (Some(ttl), None) => parse_ttl(ttl).map(Some).ok_or_else(|| {
            Problem::bad_request("ttl", "`Stream-TTL` is a number of seconds, without a sign or leading zeros")
        }),
        (None, Some(at)) => parse_time(at)
            .map(Some)
            .ok_or_else(|| Problem::bad_request("expires-at", "`Stream-Expires-At` is a time as in RFC 3339")),
        (Some(_), Some(_)) => Err(Problem::bad_request("ttl", "either `Stream-TTL` or `Stream-Expires-At`, not both")),
    }
}

fn parse_ttl(value: &HeaderValue) -> Option<Lifetime> {
    let text = value.to_str().ok()?;
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let seconds: u32 = text.parse().ok().filter(|_| canonical)?;
    Some(Lifetime::Idle(Duration::from_secs(seconds.into())))
}

fn parse_time(value: &HeaderValue) -> Option<Lifetime> {
    let time = OffsetDateTime::parse(value.to_str().ok()?, &Rfc3339).ok()?;
    Some(Lifetime::Until(SystemTime::from(time)))
}

/// What a `HEAD` answers of it.
pub(super) fn describe(map: &mut HeaderMap, lifetime: Lifetime) {
    match lifetime {
        Lifetime::Unbounded => {}
        Lifetime::Idle(window) => {
            map.insert(headers::TTL, headers::ascii(window.as_secs()));
        }
        Lifetime::Until(end) => {
            if let Ok(text) = OffsetDateTime::from(end).format(&Rfc3339) {
                map.insert(headers::EXPIRES_AT, headers::ascii(text));
            }
        }
    }
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
        for (text, seconds) in [("1", Some(1)), ("3600", Some(3600)), ("0", Some(0))] {
            assert_eq!(parsed("stream-ttl", text), seconds.map(|s| Lifetime::Idle(Duration::from_secs(s))));
        }
        for text in ["", "-1", "+1", "01", "1.0", "1e3", " 1x", "99999999999", "abc"] {
            assert_eq!(parsed("stream-ttl", text), None, "{text:?}");
        }
    }

    #[test]
    fn a_time_is_that_of_rfc_3339() {
        let utc = parsed("stream-expires-at", "2030-01-01T12:00:00Z");
        assert!(utc.is_some());
        assert_eq!(utc, parsed("stream-expires-at", "2030-01-01T14:00:00+02:00"));
        for text in ["", "tomorrow", "2030-01-01", "2030-13-01T00:00:00Z", "1893456000"] {
            assert_eq!(parsed("stream-expires-at", text), None, "{text:?}");
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
