//! Publishing exactly once.

use bytes::Bytes;
use serde::Serialize;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use crate::{Change, Channel, Error, Offset, change::block_on, engine::Stamp};

/// Publishes to a channel with a number on each message, so that a message that is sent again is not there twice, and one
/// that is missing is noticed (Durable Streams, section 5.2.1).
///
/// A producer is known by its id, across restarts; whoever takes it over does so with a higher epoch, which
/// [fences](Error::Fenced) off the one before. Numbers begin at 0 in each epoch. A channel remembers
/// [so many](crate::CometBuilder::max_producers) producers, those that published last.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use tower_comet::{Comet, Error};
///
/// let orders = Comet::new().channel("/orders");
/// let mut before = orders.producer("billing", 1);
/// before.publish("order 1").await?;
///
/// let mut now = orders.producer("billing", 2);
/// now.publish("order 2").await?;
/// assert!(matches!(before.publish("order 1, late").await, Err(Error::Fenced { epoch: 2 })));
/// assert_eq!(orders.history(), 2);
/// # Ok::<(), Error>(())
/// # }).unwrap();
/// ```
pub struct Producer {
    channel: Channel,
    id: Arc<str>,
    epoch: u64,
    next: u64,
    /// The next message was sent before, and what came of that is not known.
    sent: bool,
}

impl Producer {
    pub(crate) fn new(channel: Channel, id: &str, epoch: u64) -> Self {
        Self { channel, id: id.into(), epoch, next: 0, sent: false }
    }

    /// Appends a value as one JSON message, with the next number. Takes the value itself or a reference to it.
    ///
    /// # Errors
    ///
    /// Those of [`ProducerChange`], and those of [`Channel::publish`].
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// let orders = Comet::new().channel("/orders");
    /// let mut producer = orders.producer("billing", 1);
    /// producer.publish("order 1").wait()?;
    /// let end = producer.publish_last("order 2").wait()?;
    /// assert_eq!(orders.tail(), end);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn publish<T: Serialize>(&mut self, value: T) -> ProducerChange<'_> {
        let change = self.channel.publish(value);
        self.stamp(change)
    }

    /// Appends bytes of the channel's content type, with the next number: see [`Channel::append`].
    ///
    /// # Errors
    ///
    /// Those of [`ProducerChange`], and those of [`Channel::append`].
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// let log = Comet::new().channel("/build/42");
    /// log.create("text/plain").wait()?;
    /// let mut producer = log.producer("compiler", 0);
    /// producer.append("compiling…\n").wait()?;
    /// producer.close().wait()?;
    /// assert_eq!((log.history(), log.is_closed()), (1, true));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn append(&mut self, bytes: impl Into<Bytes>) -> ProducerChange<'_> {
        let change = self.channel.append(bytes);
        self.stamp(change)
    }

    /// Appends a value as one JSON message and closes the channel, in one step, with the next number.
    ///
    /// # Errors
    ///
    /// Those of [`ProducerChange`], and those of [`Channel::publish_last`].
    pub fn publish_last<T: Serialize>(&mut self, value: T) -> ProducerChange<'_> {
        let change = self.channel.publish_last(value);
        self.stamp(change)
    }

    /// Closes the channel, with the next number.
    ///
    /// # Errors
    ///
    /// Those of [`ProducerChange`], and those of [`Channel::close`].
    pub fn close(&mut self) -> ProducerChange<'_> {
        let change = self.channel.close();
        self.stamp(change)
    }

    fn stamp(&mut self, change: Change) -> ProducerChange<'_> {
        let change = match Stamp::new(self.id.clone(), self.epoch, self.next) {
            Ok(stamp) => Ok(change.stamped(stamp, self.sent)),
            Err(reason) => Err(Some(Error::Invalid(reason))),
        };
        let sent_before = self.sent;
        ProducerChange { producer: self, change, sent_before }
    }
}

/// A change to a channel by a [`Producer`]. Resolves to the offset where the channel ends when it is made.
///
/// The number is used up when the change was made, and not when it was refused.
///
/// # Errors
///
/// As for [`Channel::publish`]; [`Error::Invalid`] if the id or the epoch is invalid: see [`Channel::producer`];
/// [`Error::Fenced`] if a later epoch has taken over; [`Error::UnknownProducer`] if the channel does not know the
/// producer any more, because it was created anew or too many others have published since; on Redis, [`Error::Gap`] if
/// the channel has lost the latest messages of the producer.
///
/// On Redis also [`Error::Unreachable`], [`Error::Engine`], [`Error::Layout`], and [`Error::Uncertain`] if it may have been made. Publish the same value again then,
/// until this resolves: it is there once. Another value in its place would be taken for it, and be lost if it was made.
///
/// # Cancel safety
///
/// Nothing happens before the first poll. With the logs in memory, a poll makes the change. On Redis, a change that is dropped while
/// it is in flight may have been made: as after [`Error::Uncertain`], make the same change again.
///
/// # Panics
///
/// If polled again after it was ready.
#[must_use = "nothing is changed until this is awaited, or waited for with `.wait()`"]
pub struct ProducerChange<'a> {
    producer: &'a mut Producer,
    /// Or that the id or the epoch is invalid.
    change: Result<Change, Option<Error>>,
    /// Whether a change with this number was sent before, and its outcome is unknown.
    sent_before: bool,
}

impl ProducerChange<'_> {
    /// Blocks the thread until the change is made: see [`Change::wait`].
    ///
    /// # Errors
    ///
    /// Those of the change.
    pub fn wait(self) -> Result<Offset, Error> {
        block_on(self)
    }
}

impl Future for ProducerChange<'_> {
    type Output = Result<Offset, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { producer, change, sent_before } = &mut *self;
        let change = match change {
            Ok(change) => change,
            Err(error) => return Poll::Ready(Err(error.take().expect("`ProducerChange` polled after it was ready"))),
        };
        // Set while the change is in flight, because this may be dropped then.
        producer.sent = true;
        let made = ready!(Pin::new(change).poll(cx));
        match &made {
            Ok(_) => {
                producer.next += 1;
                producer.sent = false;
            }
            Err(error) => producer.sent = *sent_before || matches!(error, Error::Uncertain),
        }
        Poll::Ready(made)
    }
}

impl fmt::Debug for ProducerChange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProducerChange").field("producer", &self.producer).finish_non_exhaustive()
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("channel", &self.channel.name())
            .field("id", &self.id)
            .field("epoch", &self.epoch)
            .field("next", &self.next)
            .finish()
    }
}

#[cfg(all(test, feature = "redis", not(comet_loom)))]
mod tests {
    use std::{
        future::{pending, ready},
        pin::pin,
        sync::atomic::{AtomicU8, Ordering::Relaxed},
        task::{Context, Poll, Waker},
    };

    use super::*;
    use crate::{
        Comet, Retention,
        engine::{
            Announcement, Append, AppendFate, Appended, CachedTail, Comparison, Created, Creation, Feed, Listed, Names,
            ReadFrom, Remote, RemoteFuture, RemoteRead, Touch,
        },
        fault_injection::Faults,
        registry::{Limits, Registry},
    };

    const ANSWERS: u8 = 0;
    /// It does what it is asked to, and nobody hears of it.
    const IS_LOST: u8 = 1;
    const NEVER_ANSWERS: u8 = 2;

    #[derive(Debug)]
    struct Engine {
        logs: Registry,
        how: AtomicU8,
    }

    impl Remote for Engine {
        fn append<'a>(&'a self, name: &'a str, append: &'a Append<'a>) -> RemoteFuture<'a, Appended> {
            let done =
                self.logs.append_local(self.logs.assert_local(), name, &mut append.clone()).map(|(done, _)| done);
            match self.how.load(Relaxed) {
                ANSWERS => Box::pin(ready(done)),
                IS_LOST => Box::pin(ready(Err(Error::Uncertain))),
                _ => Box::pin(pending()),
            }
        }

        fn create<'a>(&'a self, name: &'a str, creation: &'a Creation) -> RemoteFuture<'a, Created> {
            Box::pin(ready(
                self.logs.create_local(self.logs.assert_local(), name, creation).map(|(created, _)| created),
            ))
        }

        fn delete<'a>(&'a self, name: &'a str) -> RemoteFuture<'a, Offset> {
            Box::pin(ready(self.logs.delete_local(self.logs.assert_local(), name).map(|(tail, _)| tail)))
        }

        fn append_each<'a>(
            &'a self,
            _: &'a [String],
            _: &'a Append<'a>,
        ) -> RemoteFuture<'a, Vec<Result<Appended, Error>>> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn names(&self) -> Box<dyn Names + '_> {
            unreachable!("nothing is broadcast")
        }

        fn forget<'a>(&'a self, _: &'a [Listed]) -> RemoteFuture<'a, ()> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn read<'a>(&'a self, _: &'a str, _: ReadFrom, _: usize, _: Touch) -> RemoteFuture<'a, RemoteRead> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn compare<'a>(&'a self, _: &'a [CachedTail<'a>]) -> RemoteFuture<'a, Vec<Comparison>> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn verify<'a>(&'a self, _: &'a [(Arc<str>, Offset)]) -> RemoteFuture<'a, Vec<AppendFate>> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn connect(&self) -> RemoteFuture<'_, Box<dyn Feed>> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn poll_lost(&self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }

        fn announce<'a>(&'a self, _: &'a Announcement) -> RemoteFuture<'a, ()> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn trial(&self) -> RemoteFuture<'_, ()> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn probe(&self, _: u64) -> RemoteFuture<'_, ()> {
            Box::pin(ready(Err(Error::Unreachable)))
        }
    }

    #[tokio::test]
    async fn a_message_whose_fate_is_not_known_is_there_once_when_it_is_sent_again() {
        let logs = Registry::new(Limits::default(), Retention::default());
        let engine = Arc::new(Engine { logs, how: ANSWERS.into() });
        let comet = Comet::with(Arc::new(Registry::elsewhere(
            Limits::default(),
            Retention::default(),
            engine.clone(),
            Faults::default(),
        )));
        let appends = || engine.logs.peek_local("/orders").unwrap().unwrap().history;
        let mut producer = comet.channel("/orders").producer("till", 1);
        producer.publish("one").await.unwrap();

        engine.how.store(IS_LOST, Relaxed);
        for _ in 0..2 {
            assert!(matches!(producer.publish("two").await, Err(Error::Uncertain)));
        }
        engine.how.store(ANSWERS, Relaxed);
        producer.publish("two").await.expect("it was made, by this one");
        assert_eq!(appends(), 2);

        engine.how.store(NEVER_ANSWERS, Relaxed);
        assert!(pin!(producer.publish("three")).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        engine.how.store(ANSWERS, Relaxed);
        producer.publish("three").await.expect("it was made, by the one that was dropped");
        assert_eq!(appends(), 3);

        // One that has been told what came of its message takes nobody else's for it.
        let mut other = comet.channel("/orders").producer("till", 1);
        assert!(matches!(other.publish("one, of another").await, Err(Error::Fenced { epoch: 1 })));
        producer.publish("four").await.unwrap();
        assert_eq!(appends(), 4);
    }
}
