//! One channel, from the inside.

use bytes::Bytes;
use serde::Serialize;
use std::{fmt, sync::Arc};

use crate::{
    Change, ChannelInfo, Create, Error, Offset, Producer, Subscription,
    engine::{Batch, Start, is_json},
    registry::Registry,
};

/// A channel, by name: what a server publishes to.
///
/// It is a handle, cheap to clone, and makes nothing by itself. A channel comes to be with its
/// first append or [`create`](Self::create). One that was not created explicitly is forgotten when its history has aged out
/// and nobody waits on it.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use tower_comet::Comet;
///
/// let comet = Comet::new();
/// let news = comet.channel("/events/news");
/// let mut reader = news.subscribe();
///
/// news.publish(["any", "value", "of", "serde"]).await?;
///
/// let message = reader.recv().await?.expect("not closed yet");
/// assert_eq!(&message.data()[..], br#"["any","value","of","serde"]"#);
/// # Ok::<(), tower_comet::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Channel {
    registry: Arc<Registry>,
    name: Arc<str>,
}

impl Channel {
    pub(crate) fn new(registry: Arc<Registry>, name: &str) -> Self {
        Self { registry, name: name.into() }
    }

    /// The name: on a route without a name of its own, the path that the channel is read at.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is a channel of this registry.
    pub(crate) fn is_of(&self, registry: &Arc<Registry>) -> bool {
        Arc::ptr_eq(&self.registry, registry)
    }

    /// Appends a value as one JSON message, and wakes everybody who waits. Resolves to the offset just after it.
    /// Takes the value itself or a reference to it.
    ///
    /// The value is encoded now; the append is made when the returned future is first polled, and never waits for a
    /// subscriber. Outside a runtime, [`wait`](Change::wait) for it.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::Error::Encode) if the value cannot be JSON, [`TooLarge`](crate::Error::TooLarge) beyond
    /// [`max_append`](crate::CometBuilder::max_append), [`ContentType`](crate::Error::ContentType) if the channel holds
    /// another type, [`Closed`](crate::Error::Closed) if its stream has ended, [`Full`](crate::Error::Full) if there is no
    /// room, [`Name`](crate::Error::Name) if no channel can have the name. On Redis also
    /// [`Unreachable`](crate::Error::Unreachable), [`Engine`](crate::Error::Engine), [`Layout`](crate::Error::Layout) and
    /// [`Uncertain`](crate::Error::Uncertain), as for every other change of a channel.
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// let scores = Comet::new().channel("/scores");
    /// let after = scores.publish((3, 1)).wait()?;
    /// assert_eq!(scores.tail(), after);
    ///
    /// drop(scores.publish((3, 2)));
    /// assert_eq!(scores.history(), 1, "nobody has polled it");
    /// # Ok::<(), Error>(())
    /// ```
    pub fn publish<T: Serialize>(&self, value: T) -> Change {
        Change::append(self.registry.clone(), self.name.clone(), Batch::value(&value))
    }

    /// Appends bytes of the channel's content type, and wakes everybody who waits. Resolves to the offset just after them.
    ///
    /// On a JSON channel (which an unknown one becomes) the bytes must be JSON, and an array is flattened one
    /// level: its elements are messages of one append. On any other channel the bytes are stored as they are. They
    /// are copied, so that history holds what it counts and not all of a buffer that they may be a slice of.
    ///
    /// # Errors
    ///
    /// As for [`publish`](Self::publish), with [`Json`](crate::Error::Json) if a JSON channel is given something else and
    /// [`Empty`](crate::Error::Empty) if there is nothing to append.
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// let comet = Comet::new();
    /// let log = comet.channel("/build/42");
    /// log.create("text/plain").wait()?;
    /// log.append("compiling…\n").wait()?;
    ///
    /// let numbers = comet.channel("/numbers");
    /// numbers.append("[1, 2, 3]").wait()?;
    /// assert!(matches!(numbers.append("[1, 2").wait(), Err(Error::Json(_))));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn append(&self, bytes: impl Into<Bytes>) -> Change {
        let bytes = bytes.into();
        // The bytes are parsed now, so the type is read now. The append checks that the channel still has it.
        match self.registry.content_type_now(&self.name) {
            None => Change::bytes(self.registry.clone(), self.name.clone(), bytes),
            Some(content_type) => {
                let batch = if is_json(&content_type) { Batch::json(&bytes) } else { Batch::copy(&bytes) };
                Change::append(self.registry.clone(), self.name.clone(), batch)
            }
        }
    }

    /// Appends a value as one JSON message and ends the stream, in one step: who waits is given both. Resolves to the
    /// final offset.
    ///
    /// # Errors
    ///
    /// As for [`publish`](Self::publish).
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// let job = Comet::new().channel("/jobs/7");
    /// job.publish("half of it").wait()?;
    /// job.publish_last("done").wait()?;
    /// assert_eq!((job.history(), job.is_closed()), (2, true));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn publish_last<T: Serialize>(&self, value: T) -> Change {
        self.publish(value).and_close()
    }

    /// Publishes under a name of its own, so that nothing is there twice: see [`Producer`].
    ///
    /// The channel remembers the id, which must be 1 to 255 printable ASCII characters, without a space at either end. The
    /// epoch must be at most 2^53 - 1. Otherwise [`Producer::publish`] returns [`Error::Invalid`](crate::Error::Invalid).
    pub fn producer(&self, id: &str, epoch: u64) -> Producer {
        Producer::new(self.clone(), id, epoch)
    }

    /// Creates the channel, which stays until it is [`delete`](Self::delete)d or its lifetime ends. Resolves to its tail.
    ///
    /// Takes a content type, or a [`Create`] that also sets a lifetime, the first content, or the source of a fork.
    /// Creating the channel again in the same way changes nothing.
    ///
    /// # Errors
    ///
    /// [`Conflict`](crate::Error::Conflict) if the channel exists and was created in another way;
    /// [`MediaType`](crate::Error::MediaType) if the content type is malformed; of a fork,
    /// [`Unknown`](crate::Error::Unknown) if the source does not exist, [`Conflict`](crate::Error::Conflict) if it was
    /// deleted and its name is still taken, and [`ForkOffset`](crate::Error::ForkOffset) if it does not retain the offset to
    /// fork at; [`Full`](crate::Error::Full), [`Name`](crate::Error::Name).
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// let log = Comet::new().channel("/build/42");
    /// log.create("text/plain").wait()?;
    /// log.create("text/plain").wait()?;
    /// assert!(matches!(log.create("text/html").wait(), Err(Error::Conflict)));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn create(&self, how: impl Into<Create>) -> Change {
        Change::create(self.registry.clone(), self.name.clone(), how.into().into_creation(&self.registry))
    }

    /// Ends the stream: everybody who waits is told at once, later readers when they reach the end, and nothing
    /// is appended any more. Resolves to the final offset.
    ///
    /// A channel that nobody has made is made, closed: who waits on it is told too. Closing again changes nothing.
    ///
    /// # Errors
    ///
    /// [`Full`](crate::Error::Full), [`Name`](crate::Error::Name).
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// let job = Comet::new().channel("/jobs/7");
    /// job.publish("done").wait()?;
    /// job.close().wait()?;
    /// assert!(job.is_closed());
    /// assert!(matches!(job.publish("more").wait(), Err(Error::Closed)));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn close(&self) -> Change {
        Change::close(self.registry.clone(), self.name.clone())
    }

    /// Deletes the channel with all that it holds; everybody who waits is told at once (404). Resolves to the
    /// offset where it ended.
    ///
    /// A channel of the same name that is made later never takes an offset of this one.
    ///
    /// # Errors
    ///
    /// [`Unknown`](crate::Error::Unknown) if there is none, [`Gone`](crate::Error::Gone) if it was deleted and its forks keep its
    /// name taken, [`Name`](crate::Error::Name).
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let room = Comet::new().channel("/rooms/42");
    /// let before = room.publish("hello").await?;
    /// room.delete().await?;
    ///
    /// room.publish("the same room?").await?;
    /// assert!(matches!(room.subscribe_after(before).recv().await, Err(Error::Gone(_))));
    /// # Ok::<(), Error>(())
    /// # }).unwrap();
    /// ```
    pub fn delete(&self) -> Change {
        Change::delete(self.registry.clone(), self.name.clone())
    }

    /// Reads along in process, from now on: from when this is called. On Redis, somebody has to be asked where that is, and it is when
    /// [`recv`](Subscription::recv) has first found the tail.
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let news = Comet::new().channel("/news");
    /// news.publish("old").await?;
    /// let mut reader = news.subscribe();
    /// news.publish("new").await?;
    /// assert_eq!(reader.recv().await?.expect("a message").json::<String>()?, "new");
    /// # Ok::<(), Error>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.subscription(Start::Tail)
    }

    /// Reads along in process, from just after an offset: one that [`publish`](Self::publish) returned, a
    /// [`Message`](crate::Message) carried, or a client sent.
    ///
    /// Whether it is still a place to resume from, the first [`recv`](Subscription::recv) says.
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let news = Comet::new().channel("/news");
    /// let first = news.publish("first").await?;
    /// news.publish("second").await?;
    /// let mut reader = news.subscribe_after(first);
    /// assert_eq!(reader.recv().await?.expect("a message").json::<String>()?, "second");
    /// # Ok::<(), Error>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn subscribe_after(&self, offset: Offset) -> Subscription {
        self.subscription(Start::After(offset))
    }

    /// Reads along in process, from the earliest message that is kept.
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let news = Comet::new().channel("/news");
    /// news.publish("first").await?;
    /// let mut reader = news.subscribe_earliest();
    /// assert_eq!(reader.recv().await?.expect("a message").json::<String>()?, "first");
    /// # Ok::<(), Error>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn subscribe_earliest(&self) -> Subscription {
        self.subscription(Start::Earliest)
    }

    fn subscription(&self, start: Start) -> Subscription {
        Subscription::new(self.registry.clone(), self.name.clone(), start)
    }

    /// Returns what the channel is, or `None` if it does not exist. On Redis, this asks Redis. It does not renew an idle lifetime.
    ///
    /// # Errors
    ///
    /// [`Gone`](crate::Error::Gone) if the channel was deleted and its forks keep its name taken. On Redis also
    /// [`Unreachable`](crate::Error::Unreachable), [`Engine`](crate::Error::Engine) and [`Layout`](crate::Error::Layout).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is changed.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// # use tower_comet::{Comet, Error};
    /// let log = Comet::new().channel("/build/42");
    /// assert!(log.info().await?.is_none());
    ///
    /// log.create("text/plain").await?;
    /// let end = log.append("compiling…\n").await?;
    /// let info = log.info().await?.expect("it exists");
    /// assert_eq!((info.content_type(), info.tail(), info.appends(), info.is_closed()), ("text/plain", end, 1, false));
    /// # Ok::<(), Error>(())
    /// # }).unwrap();
    /// ```
    pub async fn info(&self) -> Result<Option<ChannelInfo>, Error> {
        Ok(self.registry.peek(&self.name).await?.map(ChannelInfo))
    }

    /// The offset just after the last append.
    ///
    /// On Redis this asks nobody. It is what this process knows, and it knows the channels that are waited on here: of
    /// others this says all zeros, which is no place to resume from. What [`publish`](Self::publish) resolves to is.
    #[must_use]
    pub fn tail(&self) -> Offset {
        self.registry.tail(&self.name)
    }

    /// How many wait: parked requests, event streams, and subscriptions in `recv`. On Redis, those of this process.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.registry.waiters(&self.name)
    }

    /// How many appends are kept. On Redis, by this process: see [`tail`](Self::tail).
    #[must_use]
    pub fn history(&self) -> usize {
        self.registry.peek_local(&self.name).ok().flatten().map_or(0, |peek| peek.history)
    }

    /// Whether the stream has ended: see [`close`](Self::close). On Redis, as far as this process knows: see [`tail`](Self::tail).
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.registry.peek_local(&self.name).ok().flatten().is_some_and(|peek| peek.closed)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("name", &self.name).finish_non_exhaustive()
    }
}
