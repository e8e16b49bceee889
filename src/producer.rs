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
}

impl Producer {
    pub(crate) fn new(channel: Channel, id: &str, epoch: u64) -> Self {
        Self { channel, id: id.into(), epoch, next: 0 }
    }

    /// Appends a value as one JSON message, with the next number. Resolves to the offset just after it.
    ///
    /// The number is used up when the append was made, and not when it was refused.
    ///
    /// # Errors
    ///
    /// As for [`Channel::publish`]; [`Error::Fenced`] if a later epoch has taken over, [`Error::Gap`] if the channel does not
    /// remember the messages before this one: it was made anew, or too many others have published since.
    ///
    /// # Cancel safety
    ///
    /// Until it is polled nothing has happened. With the logs in memory, a poll does all of it.
    pub fn publish<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
    ) -> impl Future<Output = Result<Offset, Error>> + Send + use<'_, T> {
        let change = self.channel.publish(value);
        self.send(change)
    }

    async fn send(&mut self, change: Change) -> Result<Offset, Error> {
        let stamp = Stamp { id: self.id.clone(), epoch: self.epoch, seq: self.next };
        let tail = change.stamped(stamp).await?;
        self.next += 1;
        Ok(tail)
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
