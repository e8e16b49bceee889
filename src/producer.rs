//! Publishing exactly once.

use serde::Serialize;
use std::{fmt, future::Future, sync::Arc};

use crate::{Change, Channel, Error, Offset, engine::Stamp};

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

    /// Appends a value as one JSON message, with the next number. Resolves to the offset just after it.
    ///
    /// The number is used up when the append was made, and not when it was refused.
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
    /// Until it is polled nothing has happened. With the logs in memory, a poll does all of it. On Redis, one that is dropped on its
    /// way may have been made: as after [`Error::Uncertain`], publish the same value again.
    pub fn publish<T: Serialize>(
        &mut self,
        value: T,
    ) -> impl Future<Output = Result<Offset, Error>> + Send + use<'_, T> {
        let change = self.channel.publish(value);
        self.send(change)
    }

    async fn send(&mut self, change: Change) -> Result<Offset, Error> {
        let stamp = Stamp::new(self.id.clone(), self.epoch, self.next).map_err(Error::Invalid)?;
        // Set for as long as it is on its way, as this may be dropped there.
        let before = std::mem::replace(&mut self.sent, true);
        let done = change.stamped(stamp, before).await;
        match &done {
            Ok(_) => {
                self.next += 1;
                self.sent = false;
            }
            Err(error) => self.sent = before || matches!(error, Error::Uncertain),
        }
        done
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
            Announcement, Answer, Append, Appended, Created, Creation, Fate, Feed, Found, Held, Listed, Names, Place,
            Remote, Seen, Touch,
        },
        faults::Faults,
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
        fn append<'a>(&'a self, name: &'a str, append: &'a Append<'a>) -> Answer<'a, Appended> {
            let done = self.logs.append(name, &mut append.clone()).map(|(done, _)| done);
            match self.how.load(Relaxed) {
                ANSWERS => Box::pin(ready(done)),
                IS_LOST => Box::pin(ready(Err(Error::Uncertain))),
                _ => Box::pin(pending()),
            }
        }

        fn create<'a>(&'a self, name: &'a str, creation: &'a Creation) -> Answer<'a, Created> {
            Box::pin(ready(self.logs.create(name, creation).map(|(created, _)| created)))
        }

        fn delete<'a>(&'a self, name: &'a str) -> Answer<'a, Offset> {
            Box::pin(ready(self.logs.delete(name).map(|(tail, _)| tail)))
        }

        fn append_each<'a>(&'a self, _: &'a [String], _: &'a Append<'a>) -> Answer<'a, Vec<Result<Appended, Error>>> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn names(&self) -> Box<dyn Names + '_> {
            unreachable!("nothing is broadcast")
        }

        fn forget<'a>(&'a self, _: &'a [Listed]) -> Answer<'a, ()> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn read<'a>(&'a self, _: &'a str, _: Place, _: usize, _: Touch) -> Answer<'a, Found> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn compare<'a>(&'a self, _: &'a [Held<'a>]) -> Answer<'a, Vec<Seen>> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn verify<'a>(&'a self, _: &'a [(Arc<str>, Offset)]) -> Answer<'a, Vec<Fate>> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn connect(&self) -> Answer<'_, Box<dyn Feed>> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn poll_lost(&self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }

        fn announce<'a>(&'a self, _: &'a Announcement) -> Answer<'a, ()> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn trial(&self) -> Answer<'_, ()> {
            Box::pin(ready(Err(Error::Unreachable)))
        }

        fn probe(&self, _: u64) -> Answer<'_, ()> {
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
        let appends = || engine.logs.peek("/orders").unwrap().unwrap().history;
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
