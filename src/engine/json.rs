//! Limits on valid JSON that common parsers cannot read.
//!
//! A response is one array of messages from many senders. One message that a reader's parser refuses would keep the reader
//! from all of them.

/// How deep the arrays and objects of a message may be nested (RFC 8259, section 9). Many parsers accept 128, and a response is
/// an array of messages, which adds one level.
pub(super) const DEPTH: usize = 126;

/// How many digits a number may have. Python refuses to convert more than 4,300, other parsers fewer.
const DIGITS: usize = 1_000;

/// Checks JSON text against the limits, with arrays and objects nested at most `levels` deep. Text that is not JSON may pass.
pub(super) fn check(text: &[u8], levels: usize) -> Result<(), String> {
    let (mut at, mut depth) = (0, 0usize);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                at = string(text, at + 1)?;
                continue;
            }
            b'-' | b'0'..=b'9' => {
                at = number(text, at)?;
                continue;
            }
            b'[' | b'{' if depth == levels => return Err(format!("a message is nested deeper than {DEPTH}")),
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Checks a string whose content begins at `at`. Returns where the text goes on.
fn string(text: &[u8], mut at: usize) -> Result<usize, String> {
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return Ok(at + 1),
            b'\\' => {
                let Some(first) = surrogate(text, at) else {
                    at += 2;
                    continue;
                };
                let second = surrogate(text, at + 6);
                if !(first < 0xdc00 && second.is_some_and(|second| second >= 0xdc00)) {
                    return Err(format!("a string has `\\u{first:04x}`, half of a character"));
                }
                at += 12;
            }
            _ => at += 1,
        }
    }
    Ok(at)
}

/// The surrogate (RFC 8259, section 7) that is escaped at `at`.
fn surrogate(text: &[u8], at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
    let unit = u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    (0xd800..0xe000).contains(&unit).then_some(unit)
}

/// Checks the number that begins at `at`. Returns where the text goes on.
fn number(text: &[u8], at: usize) -> Result<usize, String> {
    let rest = &text[at..];
    let length = rest.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
    let number = &rest[..length.unwrap_or(rest.len())];
    // A short one without an exponent is finite.
    if number.len() > 300 || number.iter().any(|byte| matches!(byte, b'e' | b'E')) {
        if number.iter().filter(|byte| byte.is_ascii_digit()).count() > DIGITS {
            return Err(format!("a number has more than {DIGITS} digits"));
        }
        let parsed = std::str::from_utf8(number).ok().and_then(|number| number.parse::<f64>().ok());
        if parsed.is_some_and(f64::is_infinite) {
            return Err("a number is too large for a double (IEEE 754)".to_owned());
        }
    }
    Ok(at + number.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn what_common_parsers_cannot_read_is_refused() {
        let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
        for (text, fits) in [
            (nested(DEPTH), true),
            (nested(DEPTH + 1), false),
            (nested(500_000), false),
            ("[".repeat(1_000_000), false),
            (format!("{}1{}", "{\"a\":".repeat(DEPTH + 1), "}".repeat(DEPTH + 1)), false),
            (format!("[\"{}\", \"\\\"{}\"]", "[".repeat(1_000), "{".repeat(1_000)), true),
            (format!("[{}]", vec!["[1]"; 1_000].join(",")), true),
            (r#""\ud83d\ude00""#.to_owned(), true),
            (r#"{"\uD83D\uDE00": "\u0041\\ud800"}"#.to_owned(), true),
            (r#""\ud83d""#.to_owned(), false),
            (r#""\ud83dx\ude00""#.to_owned(), false),
            (r#""\ude00\ud83d""#.to_owned(), false),
            (r#""\ud83d\ud83d\ude00""#.to_owned(), false),
            (r#"{"\uDFFF": 1}"#.to_owned(), false),
            ("1e308".to_owned(), true),
            ("-1.7976931348623157E+308".to_owned(), true),
            ("1e309".to_owned(), false),
            ("[1, -1e400]".to_owned(), false),
            ("1e-400".to_owned(), true),
            ("\"1e400\"".to_owned(), true),
            ("9".repeat(308), true),
            ("9".repeat(400), false),
            (format!("0.{}", "3".repeat(999)), true),
            (format!("[0.{}]", "3".repeat(1_000)), false),
        ] {
            let shown: String = text.chars().take(300).collect();
            assert_eq!(check(text.as_bytes(), DEPTH).is_ok(), fits, "{shown}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(text in proptest::collection::vec(any::<u8>(), 0..64), like in r#"[\[\]{}:,"\\ud8e0-9.+-]{0,40}"#) {
            let _ = (check(&text, DEPTH), check(like.as_bytes(), DEPTH));
        }

        /// serde_json reads a string into Unicode and a number into a double, so what it reads passes.
        #[test]
        fn what_serde_json_reads_passes(text in r#"("(\\u[dD][8-9a-f][0-9a-f]{2}|\\n|a){0,6}"|-?[1-9][0-9]{0,3}(\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?)"#) {
            prop_assert_eq!(check(text.as_bytes(), DEPTH).is_ok(), serde_json::from_str::<Value>(&text).is_ok(), "{}", text);
        }
    }
}
