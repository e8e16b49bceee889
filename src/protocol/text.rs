//! Header values that are written without `std::fmt`.
//!
//! Every response with messages has three of them: offset, entity tag and cursor. With `std::fmt` they take 4,700 more instructions, of
//! about 12,000 for a read in process.

use http::HeaderValue;

use crate::engine::hexadecimal;

/// A short ASCII text on the stack.
pub(super) struct Text {
    bytes: [u8; Self::LEN],
    length: usize,
}

impl Text {
    /// The longest is an entity tag: 16 hexadecimal digits, two numbers of up to 20 digits, and 6 signs.
    const LEN: usize = 64;

    pub(super) fn new() -> Self {
        Self { bytes: [0; Self::LEN], length: 0 }
    }

    pub(super) fn ascii(mut self, text: &str) -> Self {
        self.bytes[self.length..][..text.len()].copy_from_slice(text.as_bytes());
        self.length += text.len();
        self
    }

    pub(super) fn number(mut self, number: u64) -> Self {
        let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
        let mut rest = number;
        for digit in self.bytes[self.length..][..digits].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.length += digits;
        self
    }

    pub(super) fn hexadecimal(self, number: u64) -> Self {
        self.ascii(std::str::from_utf8(&hexadecimal(number)).expect("hexadecimal digits are ASCII"))
    }

    pub(super) fn value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.bytes[..self.length]).expect("visible ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_text_is_what_the_formatter_would_write(number in any::<u64>(), bits in 0..64, fingerprint in any::<u64>()) {
            let number = number >> bits;
            let text = Text::new().ascii("\"").hexadecimal(fingerprint).ascii(":").number(number).ascii("\"");
            let (value, expected) = (text.value(), format!("\"{fingerprint:016x}:{number}\""));
            prop_assert_eq!(value.as_bytes(), expected.as_bytes());
        }
    }

    #[test]
    fn the_longest_text_fits() {
        let tag = Text::new().ascii("\"").hexadecimal(u64::MAX).ascii(":").number(u64::MAX);
        assert_eq!(tag.ascii(":").number(u64::MAX).ascii(":c\"").value().len(), 62);
        assert_eq!(Text::new().number(0).value(), "0");
    }
}
