//! Reading a channel in process.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::{collections::VecDeque, fmt, future::poll_fn, pin::pin, sync::Arc};

use crate::{
    Error, Gone, Offset,
    engine::{Reading, Reason, Start},
    registry::{Begun, Ended, NEVER, Registry},
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
    /// Messages of the last append that was read, still to be given.
    pending: VecDeque<Message>,
}

impl Subscription {
    pub(crate) fn new(registry: Arc<Registry>, name: Arc<str>, start: Start) -> Self {
        // "From now" is decided now, not when `recv` is called; unless somebody else has to be asked what now is.
        let place = match start {
            Start::Tail if registry.remote().is_none() => Start::After(registry.tail(&name)),
            start => start,
        };
        Self { registry, name, place, pending: VecDeque::new() }
    }

    /// The next message; `None` when the stream has ended and all of it has been read.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] if messages that come next are not kept any more, or the channel was deleted. It is told once; after it
    /// the subscription goes on at the earliest message that is kept.
    /// [`Error::ShutDown`] after [`Comet::close`](crate::Comet::close), when it would have to wait.
    /// [`Error::Name`] if no channel can have the name. The limits on waits are for requests, not for this. On Redis also
    /// [`Error::Unreachable`], and [`Error::Full`] if this process follows as many channels as
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
            if let Some(message) = self.pending.pop_front() {
                return Ok(Some(message));
            }
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
            self.pending = Message::all(reading);
        }
    }

    /// One append, or the end of the stream as an empty reading; `None` to look again.
    async fn next_append(&mut self) -> Result<Option<Reading>, Error> {
        // The least that a read gives is one append.
        const ONE: usize = 0;
        let mut wait = match self.registry.read_or_wait_anywhere(&self.name, self.place, ONE).await? {
            Begun::Read(reading) => return Ok(Some(reading)),
            Begun::Wait(wait) => wait,
        };
        // If this is dropped and asked for again, it goes on from here.
        self.place = Start::After(wait.after());
        if self.registry.is_closing() {
            return Err(Error::ShutDown);
        }
        wait.admit_always();
        // Only a channel whose end is fixed needs a clock, and with it a runtime.
        let mut wait = pin!(wait);
        match poll_fn(|cx| wait.as_mut().poll(cx, NEVER, ONE)).await {
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

impl Message {
    /// The messages of one append.
    fn all(reading: Reading) -> VecDeque<Self> {
        let (after, next, json) = (reading.after, reading.next, reading.json);
        let mut left = reading.messages;
        let data = reading.into_bytes();
        if !json {
            return VecDeque::from([Self { data, offset: next }]);
        }
        if left == 1 {
            return VecDeque::from([Self { data: data.slice(1..data.len() - 1), offset: next }]);
        }
        let texts: Vec<&RawValue> = serde_json::from_slice(&data).expect("a JSON batch is an array: it was checked");
        let messages = texts.into_iter().map(|text| {
            left -= 1;
            let offset = if left == 0 { next } else { after };
            Self { data: data.slice_ref(text.get().as_bytes()), offset }
        });
        messages.collect()
    }

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
