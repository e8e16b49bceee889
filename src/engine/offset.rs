//! `{position:016}_x{fingerprint:016x}`: where in a log, and in which one.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::Visitor};
use std::{error::Error, fmt, str::FromStr};

/// A place in a channel's log: the position just after an append.
///
/// It is what a client sends as `offset=…` to go on from where it was, and what `Stream-Next-Offset`
/// tells it (Durable Streams, section 6). Its text is 34 characters, safe in a URL, and sorts in the order of
/// the log; beyond that it is opaque.
///
/// It implements serde's `Serialize` and `Deserialize` as its text.
///
/// Next to a dense count it holds a fingerprint of the append itself. An offset of another log
/// (the server was restarted, the channel deleted and made again) is therefore *recognised* and
/// refused, never mistaken for a place in this one.
///
/// ```
/// use tower_comet::{Comet, Offset};
///
/// let comet = Comet::new();
/// let first = comet.channel("/news").publish("one").wait()?;
/// let second = comet.channel("/news").publish("two").wait()?;
/// assert!(first < second);
///
/// let text = first.to_string();
/// assert_eq!(text.len(), 34);
/// assert_eq!(text.parse::<Offset>()?, first);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Offset {
    position: u64,
    fingerprint: u64,
}

impl Offset {
    /// Before anything: the tail of a channel that nobody has made.
    pub(crate) const ZERO: Self = Self::new(0, 0);

    /// The length of an offset's text.
    pub(crate) const LEN: usize = 34;

    pub(crate) const fn new(position: u64, fingerprint: u64) -> Self {
        Self { position, fingerprint }
    }

    /// Returns the text, which is ASCII. Written without `std::fmt`, because every response has an offset.
    ///
    /// The letter keeps programs from taking the digits after the `_` for a byte position and doing arithmetic with them, as
    /// Yjs's server does with an offset of digits alone.
    pub(crate) fn text(self) -> [u8; Self::LEN] {
        let mut text = *b"0000000000000000_x0000000000000000";
        let (mut position, mut digits) = (self.position, 16);
        while position > 0 && digits > 0 {
            digits -= 1;
            text[digits] += (position % 10) as u8;
            position /= 10;
        }
        text[18..].copy_from_slice(&hexadecimal(self.fingerprint));
        text
    }

    pub(crate) const fn position(self) -> u64 {
        self.position
    }

    pub(crate) const fn fingerprint(self) -> u64 {
        self.fingerprint
    }
}

/// Returns the sixteen digits of a number, in lower case.
pub(crate) fn hexadecimal(number: u64) -> [u8; 16] {
    std::array::from_fn(|nth| b"0123456789abcdef"[(number >> (60 - 4 * nth)) as usize & 15])
}

/// What clients of Durable Streams send for the start of a stream without having received it.
const START: &str = "0000000000000000_0000000000000000";

impl FromStr for Offset {
    type Err = ParseOffsetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // One text for each offset, so that equal offsets are equal URLs: no sign, no upper case, no missing zero, all of
        // which `parse` and `from_str_radix` accept. The exception is `START`, a second text for the offset zero.
        let parse = || {
            if text == START {
                return Some(Self::ZERO);
            }
            let text: &[u8; Self::LEN] = text.as_bytes().try_into().ok()?;
            let (mut position, mut fingerprint) = (0, 0);
            for byte in &text[..16] {
                position = position * 10 + u64::from(byte.is_ascii_digit().then(|| byte - b'0')?);
            }
            for byte in &text[18..] {
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    b'a'..=b'f' => byte - b'a' + 10,
                    _ => return None,
                };
                fingerprint = fingerprint << 4 | u64::from(digit);
            }
            text[16..].starts_with(b"_x").then(|| Self::new(position, fingerprint))
        };
        parse().ok_or(ParseOffsetError(()))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&self.text()).expect("ASCII"))
    }
}

/// As its text.
impl Serialize for Offset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// From its text.
impl<'de> Deserialize<'de> for Offset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Offset;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the text of an offset")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Offset, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Offset({self})")
    }
}

/// The text is not an [`Offset`].
///
/// ```
/// use tower_comet::Offset;
///
/// let error = "12".parse::<Offset>().unwrap_err();
/// assert_eq!(error.to_string(), "an offset is 16 digits, `_x` and 16 lower-case hexadecimal digits");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseOffsetError(());

impl fmt::Display for ParseOffsetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an offset is 16 digits, `_x` and 16 lower-case hexadecimal digits")
    }
}

impl Error for ParseOffsetError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_offset_is_serialized_as_its_text() {
        let offset = Offset::new(7, 0xab);
        let json = serde_json::to_string(&offset).expect("JSON");
        assert_eq!(json, r#""0000000000000007_x00000000000000ab""#);
        assert_eq!(serde_json::from_str::<Offset>(&json).expect("an offset"), offset);
        assert_eq!(serde_json::from_value::<Offset>(serde_json::json!(START)).expect("an offset"), Offset::ZERO);
        for text in ["7", r#""7""#, "null", r#""-1""#] {
            assert!(serde_json::from_str::<Offset>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_the_canonical_text_parses() {
        for bad in [
            "",
            "-1",
            "now",
            "0",
            "0000000000000000_x000000000000000",
            "0000000000000000_x00000000000000000",
            "0000000000000000_00000000000000000",
            "0000000000000001_0000000000000000",
            "0000000000000000-x0000000000000000",
            "0000000000000000_X0000000000000000",
            "+000000000000001_x0000000000000000",
            "0000000000000001_x+000000000000000",
            "0000000000000001_x000000000000000A",
            "000000000000000a_x0000000000000000",
            " 000000000000001_x0000000000000000",
            "00000000000000\u{e9}_x0000000000000000",
        ] {
            assert!(bad.parse::<Offset>().is_err(), "{bad:?}");
        }
        for start in [START, "0000000000000000_x0000000000000000"] {
            assert_eq!(start.parse(), Ok(Offset::ZERO));
        }
        assert!("9999999999999999_x9999999999999999".parse::<Offset>().is_ok());
    }

    proptest! {
        #[test]
        fn text_and_offset_agree_in_value_and_order(
            a in (0..10u64.pow(16), any::<u64>()),
            b in (0..10u64.pow(16), any::<u64>()),
        ) {
            let (a, b) = (Offset::new(a.0, a.1), Offset::new(b.0, b.1));
            prop_assert_eq!(a.to_string().parse(), Ok(a));
            prop_assert_eq!(a.to_string(), format!("{:016}_x{:016x}", a.position, a.fingerprint));
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
        }

        #[test]
        fn hostile_text_never_panics_and_round_trips_if_it_parses(text in ".{0,40}") {
            if let Some(offset) = text.parse::<Offset>().ok().filter(|_| text != START) {
                prop_assert_eq!(offset.to_string(), text);
            }
        }
    }
}
