//! Reading a channel in process.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::{fmt, future::poll_fn, pin::Pin, sync::Arc};

use crate::{
    Error, Gone, Offset,
    engine::{Reading, Reason, Start},
    registry::{Begun, Ended, NEVER, Registry, Wait},
};

/// Reads a channel in process: the same log and the same wake-ups as over HTTP.
///
/// It holds a place in the log and nothing else: however slow it is, it costs the channel no memory and no publisher
/// any time. If it falls behind what the channel keeps, it is told.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use tower_comet::Comet;
///
/// let comet = Comet::new();
/// let numbers = comet.channel("/numbers");
/// let mut reader = numbers.subscribe();
/// numbers.append("[1, 2]").await?;
/// numbers.close().await?;
///
/// let mut sum = 0;
/// while let Some(message) = reader.recv().await? {
///     sum += message.json::<i32>()?;
/// }
/// assert_eq!(sum, 3);
/// # Ok::<(), tower_comet::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Subscription {
    registry: Arc<Registry>,
    name: Arc<str>,
    place: Start,
    /// The append that was read last, if not all of its messages have been returned.
    append: Option<Unread>,
}

impl Subscription {
    pub(crate) fn new(registry: Arc<Registry>, name: Arc<str>, start: Start) -> Self {
        // "From now" is decided now, not when `recv` is called; unless somebody else has to be asked what now is.
        let place = match start {
            Start::Tail if registry.remote().is_none() => Start::After(registry.tail(&name)),
            start => start,
        };
        Self { registry, name, place, append: None }
    }

    /// The next message; `None` when the stream has ended and all of it has been read.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] if messages that come next are not kept any more, or the channel was deleted. It is told once; after it
    /// the subscription goes on at the earliest message that is kept.
    /// [`Error::ShutDown`] after [`Comet::close`](crate::Comet::close), when it would have to wait.
    /// [`Error::Name`] if no channel can have the name. The limits on waits are for requests, not for this. On Redis also
    /// [`Error::Unreachable`], [`Error::Engine`], [`Error::Layout`], and [`Error::Full`] if this process follows as many channels as
    /// [`max_channels`](crate::CometBuilder::max_channels) says: try again after a while.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its timer, if it has to wait on a channel whose lifetime has a fixed end.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a message is taken when it is returned, not before.
    pub async fn recv(&mut self) -> Result<Option<Message>, Error> {
        self.registry.check_name(&self.name)?;
        loop {
            if let Some(message) = self.append.as_mut().and_then(Unread::next) {
                return Ok(Some(message));
            }
            self.append = None;
            let reading = match self.next_append().await {
                Ok(Some(reading)) => reading,
                Ok(None) => continue,
                Err(error) => {
                    if matches!(error, Error::Gone(_)) {
                        self.place = Start::Earliest;
                    }
                    return Err(error);
                }
            };
            if reading.is_empty() {
                return Ok(None);
            }
            self.place = Start::After(reading.next);
            self.append = Some(Unread::new(reading));
        }
    }

    /// One append, or the end of the stream as an empty reading; `None` to look again.
    async fn next_append(&mut self) -> Result<Option<Reading>, Error> {
        // The least that a read gives is one append.
        const ONE: usize = 0;
        let mut wait = match self.registry.read_or_wait_anywhere(&self.name, self.place, ONE.into()).await? {
            Begun::Read(reading) => return Ok(Some(reading)),
            Begun::Wait(wait) => wait,
        };
        self.place = Start::After(wait.after());
        if self.registry.is_closing() {
            return Err(Error::ShutDown);
        }
        wait.admit_always();
        // Only a channel whose end is fixed needs a clock, and with it a runtime.
        let mut parked = Parked { wait: Box::pin(wait), place: &mut self.place };
        let ended = poll_fn(|cx| parked.wait.as_mut().poll(cx, NEVER, ONE.into())).await;
        drop(parked);
        match ended {
            Ended::Read(reading) => Ok(Some(reading)),
            Ended::Gone(gone) => Err(Error::Gone(gone)),
            Ended::Deleted => {
                let tail = self.registry.tail(&self.name);
                Err(Error::Gone(Gone::new(Reason::Deleted, tail, tail)))
            }
            Ended::Refused(error) => Err(error),
            Ended::Released(_) => Err(Error::ShutDown),
            // There is no such time.
            Ended::TimedOut(_) => Ok(None),
        }
    }
}

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

/// A wait of `recv`. If that is dropped and called again, it goes on from where this was.
struct Parked<'a> {
    wait: Pin<Box<Wait>>,
    place: &'a mut Start,
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        *self.place = Start::After(self.wait.resume_at());
    }
}

/// One append, of which a message is taken at a time: there may be half a million of them in a megabyte.
#[derive(Debug)]
struct Unread {
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
    fn new(reading: Reading) -> Self {
        let (json, left, after, next) = (reading.json, reading.messages, reading.after, reading.next);
        Self { data: reading.into_bytes(), json, at: 1, left, after, next }
    }

    fn next(&mut self) -> Option<Message> {
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
