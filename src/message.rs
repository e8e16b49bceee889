//! A message of a channel, and taking an append apart into its messages.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::fmt;

use crate::{Error, Offset, engine::Reading};

/// One message of a channel.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// # use tower_comet::{Comet, Error};
/// let numbers = Comet::new().channel("/numbers");
/// let end = numbers.append("[20, 22]").await?;
/// let mut reader = numbers.subscribe_earliest();
/// let (first, last) = (reader.recv().await?.expect("20"), reader.recv().await?.expect("22"));
/// assert_eq!((&first.data()[..], last.json::<u8>()?), (&b"20"[..], 22));
///
/// // Both are of one append. Who has only the first resumes before it.
/// assert_eq!((first.offset() < end, last.offset()), (true, end));
/// # Ok::<(), Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    data: Bytes,
    offset: Offset,
}

/// One append, of which a message is taken at a time: there may be half a million of them in a megabyte.
#[derive(Debug)]
pub(crate) struct Unread {
    data: Bytes,
    json: bool,
    /// Where the next message of a JSON array begins.
    at: usize,
    /// How many messages are left.
    left: usize,
    after: Offset,
    next: Offset,
}

impl Unread {
    pub(crate) fn new(reading: Reading) -> Self {
        let (json, left, after, next) = (reading.json, reading.messages, reading.after, reading.next);
        Self { data: reading.into_bytes(), json, at: 1, left, after, next }
    }

    pub(crate) fn next(&mut self) -> Option<Message> {
        self.left = self.left.checked_sub(1)?;
        let offset = if self.left == 0 { self.next } else { self.after };
        if !self.json {
            return Some(Message { data: self.data.clone(), offset });
        }
        let mut texts = serde_json::Deserializer::from_slice(&self.data[self.at..]).into_iter::<&RawValue>();
        let text = texts.next().and_then(Result::ok).expect("a JSON batch is an array of messages: it was checked");
        let data = self.data.slice_ref(text.get().as_bytes());
        let end = self.at + texts.byte_offset();
        // After the comma, or the bracket that ends the array.
        self.at = end + self.data[end..].iter().position(|byte| matches!(byte, b',' | b']')).map_or(0, |at| at + 1);
        Some(Message { data, offset })
    }
}

impl Message {
    /// The message: the text of a JSON value, or bytes.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The message as a value.
    ///
    /// # Errors
    ///
    /// [`Error::Json`] if it is not JSON, or not of this type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.data).map_err(|error| Error::Json(error.into()))
    }

    /// Where to resume from after this message without losing one.
    ///
    /// Messages of one append share an offset: the last of them carries it, those before carry the one
    /// before, so that resuming from any of them repeats rather than skips.
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.offset
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("bytes", &self.data.len()).field("offset", &self.offset).finish()
    }
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use crate::Comet;
    use proptest::prelude::*;

    fn messages(text: &str) -> Vec<String> {
        let channel = Comet::new().channel("/x");
        channel.append(text.to_owned()).wait().unwrap();
        let mut reader = channel.subscribe_earliest();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        channel.close().wait().unwrap();
        runtime.block_on(async {
            let mut messages = Vec::new();
            while let Some(message) = reader.recv().await.unwrap() {
                messages.push(String::from_utf8(message.data().to_vec()).unwrap());
            }
            messages
        })
    }

    #[test]
    fn messages_of_one_append_are_taken_one_by_one() {
        for (text, expected) in [
            ("1", &["1"][..]),
            ("[1]", &["1"]),
            ("[1,2]", &["1", "2"]),
            (" [ 1 , 2\n,\t3 ] ", &["1", "2", "3"]),
            (r#"[ "a,]" , [1,[2]] , {"b":",]"} , null ]"#, &[r#""a,]""#, "[1,[2]]", r#"{"b":",]"}"#, "null"]),
            ("[[],[]]", &["[]", "[]"]),
        ] {
            assert_eq!(messages(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn messages_are_those_that_serde_json_parses(numbers in prop::collection::vec(any::<(i32, String)>(), 1..20)) {
            let text = serde_json::to_string_pretty(&numbers).unwrap();
            let parsed: Vec<(i32, String)> =
                messages(&text).iter().map(|text| serde_json::from_str(text).unwrap()).collect();
            prop_assert_eq!(parsed, numbers);
        }
    }
}
