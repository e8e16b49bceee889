//! One append, encoded once.

use bytes::Bytes;
use serde::{
    Serialize,
    de::{Deserializer as _, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use std::fmt;

use super::{MediaType, is_json, json};
use crate::Error;

/// What one append adds: one or more JSON messages, or bytes.
///
/// JSON is kept as the text of an array of its messages, `[1,{"a":2}]`: that is the answer to a reader
/// who missed just this append, so all who waited share these bytes; and a longer answer is the same
/// texts with the inner brackets left out.
#[derive(Clone)]
pub(crate) struct Batch {
    pub(super) data: Bytes,
    pub(super) messages: u32,
    pub(super) json: bool,
}

impl Batch {
    /// One JSON message out of a value.
    pub(crate) fn value<T: Serialize + ?Sized>(value: &T) -> Result<Self, Error> {
        let mut text = Vec::with_capacity(128);
        text.push(b'[');
        serde_json::to_writer(&mut text, value).map_err(|error| Error::Encode(error.into()))?;
        // A value can hold text that something else has written, such as a `RawValue`.
        json::check(&text[1..], json::DEPTH).map_err(|reason| Error::Encode(reason.into()))?;
        text.push(b']');
        // A copy of exactly its size. Shrinking the text instead would leave gaps of a hundred bytes in the heap, too
        // small to be used.
        Ok(Self { data: Bytes::copy_from_slice(&text), messages: 1, json: true })
    }

    /// JSON text as a client sends it: an array is flattened one level, anything else is one
    /// message (Durable Streams, section 9.1). An empty array is nothing to append.
    pub(crate) fn json(text: &[u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(text).map_err(|error| Error::Json(error.into()))?;
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        let is_array = text.starts_with('[');
        // The array of several messages is not part of any of them.
        let levels = json::DEPTH + usize::from(is_array);
        json::check(text.as_bytes(), levels).map_err(|reason| Error::Json(reason.into()))?;
        let mut json = serde_json::Deserializer::from_str(text);
        let (messages, data) = if is_array {
            let messages = json.deserialize_seq(CountElements).map_err(|error| Error::Json(error.into()))?;
            (messages, Bytes::copy_from_slice(text.as_bytes()))
        } else {
            json.deserialize_ignored_any(IgnoredAny).map_err(|error| Error::Json(error.into()))?;
            (1, Bytes::from(["[", text, "]"].concat().into_bytes().into_boxed_slice()))
        };
        json.end().map_err(|error| Error::Json(error.into()))?;
        if messages == 0 {
            return Err(Error::Empty);
        }
        Ok(Self { data, messages, json: true })
    }

    /// The content that a channel is created with, which may be none: no bytes, or an empty array.
    pub(crate) fn initial(bytes: Bytes, content_type: &MediaType) -> Result<Option<Self>, Error> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let batch = if is_json(content_type) { Self::json(&bytes) } else { Self::bytes(bytes) };
        match batch {
            Ok(batch) => Ok(Some(batch)),
            Err(Error::Empty) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How many parts it can be cut into: messages, or bytes.
    pub(super) fn parts(&self) -> u64 {
        if self.json { self.messages.into() } else { self.data.len() as u64 }
    }

    /// The first so many parts of it.
    pub(super) fn first(&self, parts: u64) -> Option<Self> {
        if parts > self.parts() {
            return None;
        }
        let parts = u32::try_from(parts).ok()?;
        let (data, messages) = if self.json {
            let text = std::str::from_utf8(&self.data).ok()?;
            let end = serde_json::Deserializer::from_str(text).deserialize_seq(PrefixEnd { text, parts }).ok()?;
            let text = [&text[..end], "]"].concat().into_bytes();
            (Bytes::from(text.into_boxed_slice()), parts)
        } else {
            // A copy: a slice would keep all of the source's append, and be counted as its part.
            (Bytes::copy_from_slice(&self.data[..parts as usize]), 1)
        };
        Some(Self { data, messages, json: self.json })
    }

    /// Copies bytes that the application owns. The history must own its bytes: a slice would keep the whole buffer
    /// alive, which is not counted, and dropping the application's `Bytes` may run the application's code, which must
    /// not happen under a lock.
    pub(crate) fn copy(bytes: &[u8]) -> Result<Self, Error> {
        Self::bytes(Bytes::copy_from_slice(bytes))
    }

    /// Takes bytes that nothing else references, and whose framing is the application's.
    pub(crate) fn bytes(data: Bytes) -> Result<Self, Error> {
        if data.is_empty() {
            return Err(Error::Empty);
        }
        Ok(Self { data, messages: 1, json: false })
    }

    /// Returns the number that the batch consists of, in the tests.
    #[cfg(all(test, feature = "redis", not(comet_loom)))]
    pub(crate) fn number(&self) -> u64 {
        serde_json::from_slice::<[u64; 1]>(&self.data).expect("a number")[0]
    }

    /// The bytes of the messages; the brackets of the array are ours.
    pub(crate) fn size(&self) -> usize {
        self.data.len() - if self.json { 2 } else { 0 }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("messages", &self.messages).field("bytes", &self.data.len()).finish()
    }
}

/// Counts the elements of an array without keeping any.
struct CountElements;

impl<'de> Visitor<'de> for CountElements {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<u32, A::Error> {
        let mut messages = 0u32;
        while array.next_element::<IgnoredAny>()?.is_some() {
            messages = messages.saturating_add(1);
        }
        Ok(messages)
    }
}

/// Finds where the first so many elements of an array end in its text.
struct PrefixEnd<'a> {
    text: &'a str,
    parts: u32,
}

impl<'de> Visitor<'de> for PrefixEnd<'de> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<usize, A::Error> {
        let mut end = 1;
        for _ in 0..self.parts {
            let Some(element) = array.next_element::<&RawValue>()? else { break };
            let element = element.get();
            // It is borrowed: a part of the text.
            end = element.as_ptr() as usize - self.text.as_ptr() as usize + element.len();
        }
        while array.next_element::<IgnoredAny>()?.is_some() {}
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn messages(batch: &Batch) -> Vec<Value> {
        serde_json::from_slice(&batch.data).expect("a batch is a JSON array")
    }

    #[test]
    fn arrays_are_flattened_exactly_one_level() {
        for (text, expected) in [
            ("1", json!([1])),
            (" {\"a\": [1, 2]}\r\n", json!([{"a": [1, 2]}])),
            ("[1, 2]", json!([1, 2])),
            ("\t[[1,2],[3]]\n", json!([[1, 2], [3]])),
            ("[[]]", json!([[]])),
            ("null", json!([null])),
            ("\"[1,2]\"", json!(["[1,2]"])),
        ] {
            let batch = Batch::json(text.as_bytes()).expect(text);
            assert_eq!(Value::from(messages(&batch)), expected, "{text:?}");
            assert_eq!(batch.messages as usize, messages(&batch).len(), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in ["", "  ", "{", "[1,", "[1,]", "1 2", "[1] [2]", "[1]]", "nul", "'a'", "\u{feff}1", "[1}", "NaN"] {
            assert!(matches!(Batch::json(text.as_bytes()), Err(Error::Json(_))), "{text:?}");
        }
        assert!(matches!(Batch::json(b"\"\xff\""), Err(Error::Json(_))), "UTF-8");
        assert!(matches!(Batch::json(b"[\"\xff\"]"), Err(Error::Json(_))), "UTF-8 in an array");
        assert!(matches!(Batch::json(b" [ ] "), Err(Error::Empty)));
    }

    #[test]
    fn a_part_is_a_copy_that_does_not_keep_the_whole() {
        let whole = Batch::copy(&[b'x'; 1_000]).unwrap();
        let part = whole.first(3).unwrap();
        assert_eq!(&part.data[..], b"xxx");
        assert!(!whole.data.as_ptr_range().contains(&part.data.as_ptr()));
    }

    #[test]
    fn an_append_in_process_does_not_keep_the_applications_bytes() {
        struct Owner {
            _alive: std::sync::Arc<()>,
        }

        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                b"a slice of something large"
            }
        }

        let alive = std::sync::Arc::new(());
        let comet = crate::Comet::new();
        let channel = comet.channel("/log");
        channel.create("text/plain").wait().unwrap();
        channel.append(Bytes::from_owner(Owner { _alive: alive.clone() }).slice(..7)).wait().unwrap();
        let content = Bytes::from_owner(Owner { _alive: alive.clone() });
        comet.channel("/other").create(crate::Create::new("text/plain").content(content)).wait().unwrap();
        assert_eq!(std::sync::Arc::strong_count(&alive), 1, "a destructor of the application's would run under a lock");
        assert_eq!(comet.stats().history_bytes, 128 + 7 + 128 + 26);
    }

    #[test]
    fn what_a_common_parser_could_not_read_is_refused_in_process_too() {
        for text in [&*"[".repeat(200), r#""\ud800""#, "1e999"] {
            assert!(matches!(Batch::json(text.as_bytes()), Err(Error::Json(_))), "{text}");
        }
        for text in [["[".repeat(127), "]".repeat(127)].concat(), r#""\ud800""#.to_owned(), "1e999".to_owned()] {
            let raw = RawValue::from_string(text).expect("JSON");
            assert!(matches!(Batch::value(&raw), Err(Error::Encode(_))), "{raw}");
        }
        let nested = ["[".repeat(126), "]".repeat(126)].concat();
        let one = Batch::value(&RawValue::from_string(nested).expect("JSON")).expect("it fits");
        assert!(serde_json::from_slice::<Value>(&one.data).is_ok(), "in the array of a response");
        for (sent, fits) in [(126, true), (127, false)] {
            let message =
                ["{\"a\":[".repeat(sent / 2), "[".repeat(sent % 2), "]".repeat(sent % 2), "]}".repeat(sent / 2)]
                    .concat();
            for text in [message.clone(), format!(" [{message}]"), format!("[1,{message}]")] {
                assert_eq!(Batch::json(text.as_bytes()).is_ok(), fits, "{text}");
            }
        }
    }

    #[test]
    fn a_published_array_is_one_message() {
        let batch = Batch::value(&json!([1, 2])).expect("JSON");
        assert_eq!((messages(&batch), batch.messages), (vec![json!([1, 2])], 1));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_and_stay_json(text in proptest::collection::vec(any::<u8>(), 0..64)) {
            let agreed: Option<Value> = serde_json::from_slice(&text).ok();
            match Batch::json(&text) {
                Ok(batch) => prop_assert_eq!(messages(&batch).len(), batch.messages as usize),
                Err(Error::Empty) => prop_assert_eq!(agreed, Some(json!([]))),
                Err(_) => prop_assert_eq!(agreed, None),
            }
        }

        #[test]
        fn json_like_text_is_read_as_serde_json_reads_it(text in r#"[\[\]{}:,"0-9a ]{0,12}"#) {
            let agreed: Option<Value> = serde_json::from_str(&text).ok();
            match (Batch::json(text.as_bytes()), agreed) {
                (Ok(batch), Some(Value::Array(values))) => prop_assert_eq!(messages(&batch), values),
                (Ok(batch), Some(value)) => prop_assert_eq!(messages(&batch), vec![value]),
                (Err(Error::Empty), Some(value)) => prop_assert_eq!(value, json!([])),
                (Err(_), None) => {}
                (got, agreed) => prop_assert!(false, "{:?} {:?}", got, agreed),
            }
        }
    }
}
