//! `Producer-Id`, `Producer-Epoch` and `Producer-Seq` (Durable Streams, section 5.2.1).

use http::{HeaderMap, HeaderName};

use super::{headers, problem::Problem};
use crate::engine::Stamp;

/// All three headers, or none.
pub(super) fn parse(map: &HeaderMap) -> Result<Option<Stamp>, Problem> {
    let id = map.get(headers::PRODUCER_ID);
    let (epoch, seq) = (map.get(headers::PRODUCER_EPOCH), map.get(headers::PRODUCER_SEQ));
    let (Some(id), Some(_), Some(_)) = (id, epoch, seq) else {
        return if id.is_none() && epoch.is_none() && seq.is_none() {
            Ok(None)
        } else {
            Err(bad("`Producer-Id`, `Producer-Epoch` and `Producer-Seq` go together"))
        };
    };
    let id = id.to_str().map_err(|_| bad("`Producer-Id` is not ASCII"))?;
    let (epoch, seq) = (number(map, &headers::PRODUCER_EPOCH)?, number(map, &headers::PRODUCER_SEQ)?);
    Stamp::new(id.into(), epoch, seq).map(Some).map_err(bad)
}

fn number(map: &HeaderMap, name: &HeaderName) -> Result<u64, Problem> {
    let text = map.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| bad("`Producer-Epoch` and `Producer-Seq` must be digits, at most 2^53 - 1"))
}

fn bad(detail: &'static str) -> Problem {
    Problem::bad_request("producer", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    #[test]
    fn all_three_or_none_and_nothing_but_digits() {
        let parsed = |id: Option<&str>, epoch: Option<&str>, seq: Option<&str>| {
            let mut map = HeaderMap::new();
            for (name, value) in [("producer-id", id), ("producer-epoch", epoch), ("producer-seq", seq)] {
                if let Some(value) = value {
                    map.insert(name, value.parse().expect("a header"));
                }
            }
            parse(&map).map(|stamp| stamp.map(|stamp| (stamp.epoch, stamp.seq))).map_err(drop)
        };
        assert_eq!(parsed(None, None, None), Ok(None));
        assert_eq!(parsed(Some("a"), Some("0"), Some("9007199254740991")), Ok(Some((0, Stamp::MOST))));
        let long = "x".repeat(256);
        for (id, epoch, seq) in [
            (Some("a"), None, None),
            (None, Some("0"), Some("0")),
            (Some("a"), Some("0"), None),
            (Some(""), Some("0"), Some("0")),
            (Some(&*long), Some("0"), Some("0")),
            (Some("a"), Some(""), Some("0")),
            (Some("a"), Some("-1"), Some("0")),
            (Some("a"), Some("+1"), Some("0")),
            (Some("a"), Some("1.0"), Some("0")),
            (Some("a"), Some("0x1"), Some("0")),
            (Some("a"), Some("0"), Some("9007199254740992")),
        ] {
            assert_eq!(parsed(id, epoch, seq), Err(()), "{id:?} {epoch:?} {seq:?}");
        }
    }

    proptest! {
        /// What is taken for a number reads the same when it is written again, save for zeros before it.
        #[test]
        fn hostile_headers_never_panic(id in prop::collection::vec(any::<u8>(), 0..300), epoch in "[0-9+-]{0,20}|[ -~]{0,8}", seq in "[0-9]{0,18}") {
            let mut map = HeaderMap::new();
            for (name, value) in [(headers::PRODUCER_ID, &id[..]), (headers::PRODUCER_EPOCH, epoch.as_bytes()), (headers::PRODUCER_SEQ, seq.as_bytes())] {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    map.insert(name, value);
                }
            }
            if let Ok(Some(stamp)) = parse(&map) {
                prop_assert_eq!(stamp.id.as_bytes(), &id[..]);
                for (number, text) in [(stamp.epoch, &epoch), (stamp.seq, &seq)] {
                    prop_assert!(number <= Stamp::MOST);
                    let zeros = if number == 0 { text.len() - 1 } else { text.len() - text.trim_start_matches('0').len() };
                    prop_assert_eq!(&number.to_string(), &text[zeros..]);
                }
            }
        }
    }
}
