//! Reading a channel in process.

use futures_core::Stream;
use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use crate::{
    Error, Gone, Message, Offset,
    engine::{Reading, Reason, Start},
    message::Unread,
    registry::{NEVER, ReadOrWait, Registry, Wait, WaitEnd},
    sync::Mutex,
};

/// Reads a channel in process: the same log and the same wake-ups as over HTTP.
///
/// It holds an offset, and one append at a time: a slow subscription costs the channel no memory, and no publisher any time. If
/// the channel does not keep the next message any more, [`recv`](Self::recv) returns an error.
///
/// It is also a [`Stream`](futures_core::Stream) of messages.
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
pub struct Subscription {
    registry: Arc<Registry>,
    name: Arc<str>,
    /// Where the next append is read from.
    place: Start,
    /// The append that was read last, if not all of its messages have been returned.
    append: Option<Unread>,
    /// The offset of the last message that was returned.
    last: Option<Offset>,
    step: Step,
}

/// What the next message waits for.
enum Step {
    Idle,
    /// A read that the remote engine has not answered yet. The mutex is never locked: it makes this `Sync` without making the
    /// engine's futures so.
    Reading(Mutex<Read>),
    Waiting(Pin<Box<Wait>>),
    /// The channel is closed, and all of it has been returned.
    Ended,
}

type Read = Pin<Box<dyn Future<Output = Result<ReadOrWait, Error>> + Send>>;

/// The least that a read returns is one append.
const ONE: usize = 0;

impl Subscription {
    pub(crate) fn new(registry: Arc<Registry>, name: Arc<str>, start: Start) -> Self {
        // "From now" is decided here and not when `recv` is called. A remote engine has to be asked for it.
        let place = registry.resolve_now(&name, start);
        Self { registry, name, place, append: None, last: None, step: Step::Idle }
    }

    /// Returns the next message; `None` when the channel is closed and all of its messages have been returned.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] if the channel does not keep the next messages any more, or was deleted. The subscription then continues
    /// at the earliest message that is kept.
    /// [`Error::ShutDown`] after [`Comet::close`](crate::Comet::close), when it would have to wait.
    /// [`Error::Name`] if no channel can have the name. The limits on waits are for requests, not for this. On Redis also
    /// [`Error::Unreachable`], [`Error::Engine`], [`Error::Layout`], and [`Error::Full`] if this process follows as many channels as
    /// [`max_channels`](crate::CometBuilder::max_channels) allows: try again after a while.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its timer, if it has to wait on a channel whose lifetime has a fixed end.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a message is taken when it is returned, not before.
    pub async fn recv(&mut self) -> Result<Option<Message>, Error> {
        let parked = Parked(self);
        poll_fn(|cx| parked.0.poll_recv(cx)).await
    }

    /// Returns the next message without waiting for one; `None` if there is none now. [`is_ended`](Self::is_ended) tells whether there
    /// will be none.
    ///
    /// On Redis, a message that this process has not cached is requested, and a later call returns it: call this again after a while, or
    /// [`recv`](Self::recv).
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// let news = Comet::new().channel("/news");
    /// let mut reader = news.subscribe();
    /// assert!(reader.try_recv()?.is_none());
    /// news.publish("hello").wait()?;
    /// assert_eq!(reader.try_recv()?.expect("a message").json::<String>()?, "hello");
    ///
    /// news.close().wait()?;
    /// assert!(reader.try_recv()?.is_none() && reader.is_ended());
    /// # Ok::<(), Error>(())
    /// ```
    pub fn try_recv(&mut self) -> Result<Option<Message>, Error> {
        let parked = Parked(self);
        match parked.0.poll_recv(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(received) => received,
            Poll::Pending => Ok(None),
        }
    }

    /// Whether the channel is closed and all of its messages have been returned.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.step, Step::Ended)
    }

    /// Returns the offset to resume from after the last message that was returned: see [`Message::offset`]. Before the first message,
    /// it is the offset where the subscription began, or `None` if that is the earliest message, or on Redis the tail.
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// let news = Comet::new().channel("/news");
    /// let first = news.publish("first").wait()?;
    /// let mut reader = news.subscribe();
    /// assert_eq!(reader.offset(), Some(first));
    /// let second = news.publish("second").wait()?;
    /// reader.try_recv()?;
    /// assert_eq!(reader.offset(), Some(second));
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn offset(&self) -> Option<Offset> {
        self.last.or(match self.place {
            Start::After(offset) => Some(offset),
            _ => None,
        })
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, Error>> {
        loop {
            if let Some(message) = self.append.as_mut().and_then(Unread::next) {
                self.last = Some(message.offset());
                return Poll::Ready(Ok(Some(message)));
            }
            self.append = None;
            let reading = match ready!(self.poll_append(cx)) {
                Ok(Some(reading)) => reading,
                Ok(None) => return Poll::Ready(Ok(None)),
                Err(error) => {
                    if matches!(error, Error::Gone(_)) {
                        (self.place, self.last) = (Start::Earliest, None);
                    }
                    return Poll::Ready(Err(error));
                }
            };
            self.place = Start::After(reading.next);
            self.append = Some(Unread::new(reading));
        }
    }

    /// Polls for the next append; `None` at the end of the stream.
    fn poll_append(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Reading>, Error>> {
        loop {
            match &mut self.step {
                Step::Ended => return Poll::Ready(Ok(None)),
                Step::Idle => {
                    self.registry.check_name(&self.name)?;
                    let (registry, name, place) = (self.registry.clone(), self.name.clone(), self.place);
                    let read = async move { registry.read_or_wait(&name, place, ONE.into()).await };
                    self.step = Step::Reading(Mutex::new(Box::pin(read)));
                }
                Step::Reading(read) => {
                    let begun = ready!(read.get_mut().as_mut().poll(cx));
                    self.step = Step::Idle;
                    match begun? {
                        ReadOrWait::Read(reading) => return Poll::Ready(Ok(self.read(reading))),
                        ReadOrWait::Wait(mut wait) => {
                            self.place = Start::After(wait.after());
                            if self.registry.is_closing() {
                                return Poll::Ready(Err(Error::ShutDown));
                            }
                            wait.admit_always();
                            self.step = Step::Waiting(Box::pin(wait));
                        }
                    }
                }
                Step::Waiting(wait) => {
                    let ended = ready!(wait.as_mut().poll(cx, NEVER, ONE.into()));
                    self.unpark();
                    return Poll::Ready(match ended {
                        WaitEnd::Read(reading) => Ok(self.read(reading)),
                        WaitEnd::Gone(gone) => Err(Error::Gone(gone)),
                        WaitEnd::Deleted => {
                            let tail = self.registry.tail(&self.name);
                            Err(Error::Gone(Gone::new(Reason::Deleted, tail, tail)))
                        }
                        WaitEnd::Refused(error) => Err(error),
                        WaitEnd::Released(_) => Err(Error::ShutDown),
                        // The deadline is never.
                        WaitEnd::TimedOut(_) => continue,
                    });
                }
            }
        }
    }

    fn read(&mut self, reading: Reading) -> Option<Reading> {
        if reading.is_empty() {
            self.step = Step::Ended;
            return None;
        }
        Some(reading)
    }

    /// Drops the wait, if there is one. The next one continues where it was.
    fn unpark(&mut self) {
        if let Step::Waiting(wait) = &self.step {
            self.place = Start::After(wait.resume_at());
            self.step = Step::Idle;
        }
    }
}

/// The messages, or the errors of [`recv`](Subscription::recv), after which the stream continues if the next call of `recv` would.
/// It ends when the channel is closed and all of its messages have been returned.
///
/// Between two polls, a stream that has returned [`Pending`](Poll::Pending) counts as a waiter.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use tokio_stream::StreamExt;
/// use tower_comet::Comet;
///
/// let numbers = Comet::new().channel("/numbers");
/// numbers.append("[1, 2, 3]").await?;
/// numbers.close().await?;
/// let messages: Vec<_> = numbers.subscribe_earliest().collect().await;
/// assert_eq!(messages.len(), 3);
/// assert_eq!(messages[2].as_ref().unwrap().json::<i32>()?, 3);
/// # Ok::<(), tower_comet::Error>(())
/// # }).unwrap();
/// ```
impl Stream for Subscription {
    type Item = Result<Message, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_recv(cx).map(Result::transpose)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("channel", &self.name).field("from", &self.place).finish_non_exhaustive()
    }
}

/// A call of `recv`. When it ends or is dropped, the subscription does not wait any more.
struct Parked<'a>(&'a mut Subscription);

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.unpark();
    }
}
