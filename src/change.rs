//! What is to be done to a channel, as a future.

use bytes::Bytes;
use matchit::Router;
use serde::Serialize;
use std::{
    fmt,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use crate::{
    Error, Offset,
    engine::{Batch, Stamp, is_json},
    registry::{Append, Appended, Creation, Registry},
};

/// A change to a channel: [`publish`](crate::Channel::publish), [`append`](crate::Channel::append),
/// [`create`](crate::Channel::create), [`close`](crate::Channel::close) or [`delete`](crate::Channel::delete).
///
/// A future of the offset where the channel ends when it is done. `Send + 'static`, so that it can be
/// spawned, and without a borrow of what was published. With the logs in memory it is ready when it is first
/// polled and needs no runtime.
///
/// # Cancel safety
///
/// Until it is polled nothing has happened. With the logs in memory, a poll does all of it. On Redis, one that is dropped on
/// its way may have been made or not; a [`Producer`](crate::Producer) can make sure.
#[must_use = "nothing is changed until this is awaited, or waited for with `.wait()`"]
pub struct Change {
    registry: Arc<Registry>,
    name: Arc<str>,
    what: Option<What>,
    /// On its way to an engine elsewhere.
    running: Option<Pin<Box<dyn Future<Output = Result<Offset, Error>> + Send>>>,
}

enum What {
    Append {
        batch: Result<Option<Batch>, Error>,
        close: bool,
        stamp: Option<Stamp>,
        /// It may have been made before, by this process.
        again: bool,
    },
    /// Bytes for a channel whose type is not known before it is asked for.
    Bytes(Bytes),
    Create(Box<Creation>),
    Delete,
}

impl Change {
    fn new(registry: Arc<Registry>, name: Arc<str>, what: What) -> Self {
        Self { registry, name, what: Some(what), running: None }
    }

    pub(crate) fn append(registry: Arc<Registry>, name: Arc<str>, batch: Result<Batch, Error>) -> Self {
        Self::new(registry, name, What::Append { batch: batch.map(Some), close: false, stamp: None, again: false })
    }

    pub(crate) fn bytes(registry: Arc<Registry>, name: Arc<str>, bytes: Bytes) -> Self {
        Self::new(registry, name, What::Bytes(bytes))
    }

    pub(crate) fn close(registry: Arc<Registry>, name: Arc<str>) -> Self {
        Self::new(registry, name, What::Append { batch: Ok(None), close: true, stamp: None, again: false })
    }

    pub(crate) fn create(registry: Arc<Registry>, name: Arc<str>, creation: Creation) -> Self {
        Self::new(registry, name, What::Create(Box::new(creation)))
    }

    pub(crate) fn delete(registry: Arc<Registry>, name: Arc<str>) -> Self {
        Self::new(registry, name, What::Delete)
    }

    /// The same, and the end of the stream with it.
    pub(crate) fn and_close(mut self) -> Self {
        if let Some(What::Append { close, .. }) = &mut self.what {
            *close = true;
        }
        self
    }

    /// The same, as a producer's message; `sent` if it was sent before, and what came of that is not known.
    pub(crate) fn stamped(mut self, by: Stamp, sent: bool) -> Self {
        if let Some(What::Append { stamp, again, .. }) = &mut self.what {
            (*stamp, *again) = (Some(by), sent);
        }
        self
    }

    /// Blocks the thread until it is done: for code outside a runtime. In a task, await it instead: on Redis, this would keep the
    /// runtime from the connection that it waits for.
    ///
    /// ```
    /// use tower_comet::Comet;
    ///
    /// let comet = Comet::new();
    /// let sensor = comet.channel("/sensor");
    /// std::thread::spawn(move || sensor.publish(&21.5).wait()).join().unwrap()?;
    /// assert_eq!(comet.channel("/sensor").history(), 1);
    /// # Ok::<(), tower_comet::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of what is done.
    pub fn wait(self) -> Result<Offset, Error> {
        block_on(self)
    }
}

impl Future for Change {
    type Output = Result<Offset, Error>;

    /// # Panics
    ///
    /// If polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(running) = &mut this.running {
            return running.as_mut().poll(cx);
        }
        let what = this.what.take().expect("`Change` polled after it was ready");
        if this.registry.remote().is_none() {
            // All of it is done in one poll.
            return pin!(what.make(&this.registry, &this.name)).poll(cx);
        }
        let (registry, name) = (this.registry.clone(), this.name.clone());
        let change = async move { what.make(&registry, &name).await };
        this.running.insert(Box::pin(change)).as_mut().poll(cx)
    }
}

impl What {
    async fn make(self, registry: &Registry, name: &str) -> Result<Offset, Error> {
        match self {
            Self::Append { batch, close, stamp, again } => {
                append(registry, name, batch?, close, stamp.as_ref(), again).await
            }
            Self::Bytes(bytes) => {
                let appended = match Batch::json(&bytes) {
                    Ok(batch) => append(registry, name, Some(batch), false, None, false).await,
                    Err(error) => Err(error),
                };
                // Most channels are JSON: whether this one is not is asked only when that was refused.
                let Err(Error::Json(_) | Error::Empty | Error::ContentType { .. }) = appended else { return appended };
                match registry.peek_anywhere(name).await? {
                    Some(known) if !is_json(&known.content_type) => {
                        append(registry, name, Some(Batch::bytes(bytes)?), false, None, false).await
                    }
                    _ => appended,
                }
            }
            Self::Create(creation) => registry.create_anywhere(name, &creation).await.map(|created| created.tail),
            Self::Delete => registry.delete_anywhere(name).await,
        }
    }
}

async fn append(
    registry: &Registry,
    name: &str,
    batch: Option<Batch>,
    close: bool,
    stamp: Option<&Stamp>,
    again: bool,
) -> Result<Offset, Error> {
    let append = Append { batch, create: Some(registry.json()), close, stamp, ..Append::default() };
    match registry.append_anywhere(name, append).await? {
        // Nothing else is sent twice in process: somebody has the same id and epoch.
        Appended { duplicate: true, accepted: Some((epoch, seq)), .. }
            if !again || stamp.is_some_and(|stamp| stamp.seq != seq) =>
        {
            Err(Error::Fenced { epoch })
        }
        appended => Ok(appended.tail),
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.what {
            Some(What::Append { .. } | What::Bytes(_)) => "append",
            Some(What::Create(_)) => "create",
            Some(What::Delete) => "delete",
            None => "done",
        };
        f.debug_struct("Change").field("channel", &self.name).field("what", &what).finish_non_exhaustive()
    }
}

/// A message to many channels: see [`Comet::broadcast`](crate::Comet::broadcast). A future of how many have it.
///
/// # Cancel safety
///
/// Until it is polled nothing has happened. With the logs in memory, a poll does all of it. On Redis, one that is dropped on
/// its way has been published to some channels and not to others.
#[must_use = "nothing is published until this is awaited, or waited for with `.wait()`"]
pub struct Broadcast {
    registry: Arc<Registry>,
    ready: Option<Result<(Router<()>, Batch), Error>>,
    running: Option<Pin<Box<dyn Future<Output = Result<usize, Error>> + Send>>>,
}

impl Broadcast {
    pub(crate) fn new<T: Serialize + ?Sized>(registry: Arc<Registry>, pattern: &str, value: &T) -> Self {
        let mut router = Router::new();
        let inserted = router.insert(pattern, ()).map_err(|error| Error::Pattern(error.into()));
        let ready = inserted.and_then(|()| Ok((router, Batch::value(value)?)));
        Self { registry, ready: Some(ready), running: None }
    }

    /// Blocks the thread until it is done, as [`Change::wait`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Comet::broadcast`](crate::Comet::broadcast).
    pub fn wait(self) -> Result<usize, Error> {
        block_on(self)
    }
}

impl Future for Broadcast {
    type Output = Result<usize, Error>;

    /// # Panics
    ///
    /// If polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(running) = &mut this.running {
            return running.as_mut().poll(cx);
        }
        let ready = this.ready.take().expect("`Broadcast` polled after it was ready");
        let broadcast = broadcast(this.registry.clone(), ready);
        this.running.insert(Box::pin(broadcast)).as_mut().poll(cx)
    }
}

async fn broadcast(registry: Arc<Registry>, ready: Result<(Router<()>, Batch), Error>) -> Result<usize, Error> {
    let (pattern, batch) = ready?;
    let (mut reached, mut full) = (0, None);
    for name in registry.names_anywhere().await?.iter().filter(|name| pattern.at(name).is_ok()) {
        let create = Some(registry.json());
        let append = Append { batch: Some(batch.clone()), create, ..Append::default() };
        match registry.append_anywhere(name, append).await {
            Ok(_) => reached += 1,
            // Not meant, or too late.
            Err(Error::Closed | Error::ContentType { .. } | Error::Gone(_)) => {}
            Err(Error::Full(limit)) => full = Some(limit),
            Err(error) => return Err(error),
        }
    }
    full.map_or(Ok(reached), |limit| Err(Error::Full(limit)))
}

impl fmt::Debug for Broadcast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broadcast").finish_non_exhaustive()
    }
}

/// Runs a future on this thread, which sleeps between two polls. In memory there is but one.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let mut future = pin!(future);
    if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        return output;
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
