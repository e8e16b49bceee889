//! The future of a change to one channel.

use bytes::Bytes;
use std::{
    fmt,
    future::Future,
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use crate::{
    Error, Offset,
    engine::{Batch, Stamp, is_json},
    registry::{Append, Appended, Creation, Local, Registry, WakeList, poll_sliced},
    sync::assert_unlocked,
};

/// A change to a channel: [`publish`](crate::Channel::publish), [`append`](crate::Channel::append),
/// [`create`](crate::Channel::create), [`close`](crate::Channel::close) or [`delete`](crate::Channel::delete).
///
/// A future of the offset where the channel ends when it is done. `Send + 'static`, so that it can be
/// spawned, and without a borrow of what was published. With the logs in memory it needs no runtime.
///
/// # Cancel safety
///
/// Nothing happens before the first poll. With the logs in memory, the first poll makes the change, and the future is
/// ready. If there are very many waiters, the future wakes them over several polls instead, and dropping it wakes the
/// remaining ones. A later poll makes the change only if a limit is reached and more expired channels must be evicted
/// than one poll may evict; a future that is dropped before that has changed nothing. A
/// [fork](crate::Create::fork_of) of a channel with more than 1,024 appends also takes several polls; a future that is
/// dropped before the fork exists leaves nothing.
///
/// On Redis, a change that is dropped while it is in flight may or may not have been made; what a fork has copied is removed. With a
/// [`Producer`](crate::Producer) the application can make sure.
#[must_use = "nothing is changed until this is awaited, or waited for with `.wait()`"]
pub struct Change {
    registry: Arc<Registry>,
    name: Arc<str>,
    stage: ChangeStage,
}

enum ChangeStage {
    Begun(ChangeKind),
    /// The message could not be encoded, or the content type is malformed.
    Refused(Error),
    /// The change was made in memory. Some waiters have not been woken yet.
    Waking(WakeList, Offset),
    /// The change is in flight to a remote engine, expired channels must be evicted before it can be made, or it is a
    /// fork, which is copied in slices.
    Running(Pin<Box<dyn Future<Output = Result<Offset, Error>> + Send>>),
    Done,
}

enum ChangeKind {
    Append {
        content: Content,
        close: bool,
        stamp: Option<Stamp>,
        /// It may have been made before, by this process.
        again: bool,
    },
    Create(Box<Creation>),
    Delete,
}

enum Content {
    /// None: the append only closes the channel.
    None,
    Batch(Batch),
    /// Bytes for a channel whose type is not known before it is requested.
    Bytes(Bytes),
}

impl ChangeKind {
    fn append(content: Content) -> Self {
        Self::Append { content, close: false, stamp: None, again: false }
    }
}

impl Change {
    fn new(registry: Arc<Registry>, name: Arc<str>, what: ChangeKind) -> Self {
        Self { registry, name, stage: ChangeStage::Begun(what) }
    }

    pub(crate) fn append(registry: Arc<Registry>, name: Arc<str>, batch: Result<Batch, Error>) -> Self {
        let what = batch.map(|batch| ChangeKind::append(Content::Batch(batch)));
        Self { registry, name, stage: what.map_or_else(ChangeStage::Refused, ChangeStage::Begun) }
    }

    pub(crate) fn bytes(registry: Arc<Registry>, name: Arc<str>, bytes: Bytes) -> Self {
        Self::new(registry, name, ChangeKind::append(Content::Bytes(bytes)))
    }

    pub(crate) fn close(registry: Arc<Registry>, name: Arc<str>) -> Self {
        Self::new(registry, name, ChangeKind::append(Content::None)).and_close()
    }

    pub(crate) fn create(registry: Arc<Registry>, name: Arc<str>, creation: Result<Creation, Error>) -> Self {
        let what = creation.map(|creation| ChangeKind::Create(Box::new(creation)));
        Self { registry, name, stage: what.map_or_else(ChangeStage::Refused, ChangeStage::Begun) }
    }

    pub(crate) fn delete(registry: Arc<Registry>, name: Arc<str>) -> Self {
        Self::new(registry, name, ChangeKind::Delete)
    }

    /// The same, and the end of the stream with it.
    pub(crate) fn and_close(mut self) -> Self {
        if let ChangeStage::Begun(ChangeKind::Append { close, .. }) = &mut self.stage {
            *close = true;
        }
        self
    }

    /// The same, as a producer's message; `sent` if it was sent before, and what came of that is not known.
    pub(crate) fn stamped(mut self, by: Stamp, sent: bool) -> Self {
        if let ChangeStage::Begun(ChangeKind::Append { stamp, again, .. }) = &mut self.stage {
            (*stamp, *again) = (Some(by), sent);
        }
        self
    }

    /// Blocks the thread until the change is done, for code outside a runtime. In a task, await the change instead:
    /// this method wakes all waiters before it returns, and on Redis it may block the runtime that drives the
    /// connection.
    ///
    /// ```
    /// use tower_comet::Comet;
    ///
    /// let comet = Comet::new();
    /// let sensor = comet.channel("/sensor");
    /// std::thread::spawn(move || sensor.publish(21.5).wait()).join().unwrap()?;
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
        assert_unlocked();
        let Self { registry, name, stage } = &mut *self;
        if let ChangeStage::Begun(what) = stage {
            *stage = what.begin(registry, name).unwrap_or_else(ChangeStage::Refused);
        }
        let done = match mem::replace(stage, ChangeStage::Done) {
            ChangeStage::Refused(error) => Err(error),
            ChangeStage::Waking(mut woken, tail) => {
                if poll_sliced(cx, |slice| registry.finish(&mut woken, slice)).is_pending() {
                    *stage = ChangeStage::Waking(woken, tail);
                    return Poll::Pending;
                }
                Ok(tail)
            }
            ChangeStage::Running(mut running) => match running.as_mut().poll(cx) {
                Poll::Ready(done) => done,
                Poll::Pending => {
                    *stage = ChangeStage::Running(running);
                    return Poll::Pending;
                }
            },
            ChangeStage::Begun(_) | ChangeStage::Done => panic!("`Change` polled after it was ready"),
        };
        Poll::Ready(done)
    }
}

impl ChangeKind {
    /// Makes the change if the logs are in memory, it is no fork, and no more channels have to be evicted first. Otherwise
    /// returns a future that makes it.
    fn begin(&mut self, registry: &Arc<Registry>, name: &Arc<str>) -> Result<ChangeStage, Error> {
        if !self.is_fork() {
            if let Some(made) = registry.at_once(|local| self.make(registry, local, name)) {
                return made.map(|(tail, woken)| ChangeStage::Waking(woken, tail));
            }
        }
        let (registry, name, what) = (registry.clone(), name.clone(), mem::replace(self, Self::Delete));
        Ok(ChangeStage::Running(Box::pin(async move { what.make_awaited(&registry, &name).await })))
    }

    fn is_fork(&self) -> bool {
        matches!(self, Self::Create(creation) if creation.fork.is_some())
    }

    /// Makes the change in memory, unless it is a fork. A refused change can be retried.
    fn make(&mut self, registry: &Registry, local: Local, name: &str) -> Result<(Offset, WakeList), Error> {
        match self {
            Self::Append { content, close, stamp, again } => {
                let (create, stamp) = (Some(registry.json()), stamp.as_ref());
                let batch = match mem::replace(content, Content::None) {
                    Content::None => None,
                    Content::Batch(batch) => Some(batch),
                    Content::Bytes(_) => unreachable!("the type of a channel in memory is known at once"),
                };
                let mut append = Append { batch, create, close: *close, stamp, ..Append::default() };
                let made = registry.append_local(local, name, &mut append);
                *content = append.batch.map_or(Content::None, Content::Batch);
                let (appended, woken) = made?;
                Ok((accepted(&appended, stamp, *again)?, woken))
            }
            Self::Create(creation) => {
                registry.create_local(local, name, creation).map(|(created, woken)| (created.tail, woken))
            }
            Self::Delete => registry.delete_local(local, name),
        }
    }

    async fn make_awaited(self, registry: &Registry, name: &str) -> Result<Offset, Error> {
        match self {
            Self::Append { content, close, stamp, again } => {
                let append = async |batch| append(registry, name, batch, close, stamp.as_ref(), again).await;
                let bytes = match content {
                    Content::None => return append(None).await,
                    Content::Batch(batch) => return append(Some(batch)).await,
                    Content::Bytes(bytes) => bytes,
                };
                let appended = match Batch::json(&bytes) {
                    Ok(batch) => append(Some(batch)).await,
                    Err(error) => Err(error),
                };
                // Most channels hold JSON, so the type is requested only after an append of JSON was refused.
                let Err(Error::Json(_) | Error::Empty | Error::ContentType { .. }) = appended else { return appended };
                match registry.peek(name).await? {
                    Some(known) if !is_json(&known.content_type) => append(Some(Batch::copy(&bytes)?)).await,
                    _ => appended,
                }
            }
            Self::Create(creation) => registry.create(name, &creation).await.map(|created| created.tail),
            Self::Delete => registry.delete(name).await,
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
    accepted(&registry.append(name, append).await?, stamp, again)
}

/// Returns the tail, or `Fenced` if another producer uses the same id and epoch. In process only an append with `again`
/// is sent twice, so any other duplicate is another producer's.
fn accepted(appended: &Appended, stamp: Option<&Stamp>, again: bool) -> Result<Offset, Error> {
    match *appended {
        Appended { duplicate: true, accepted: Some((epoch, seq)), .. }
            if !again || stamp.is_some_and(|stamp| stamp.seq != seq) =>
        {
            Err(Error::Fenced { epoch })
        }
        Appended { tail, .. } => Ok(tail),
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            ChangeStage::Begun(ChangeKind::Append { .. }) => "append",
            ChangeStage::Begun(ChangeKind::Create(_)) => "create",
            ChangeStage::Begun(ChangeKind::Delete) => "delete",
            ChangeStage::Refused(_) => "refused",
            ChangeStage::Waking(..) => "waking",
            ChangeStage::Running(_) => "running",
            ChangeStage::Done => "done",
        };
        f.debug_struct("Change").field("channel", &self.name).field("stage", &stage).finish_non_exhaustive()
    }
}

/// Runs a future to its end on this thread, which is parked between two polls.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
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
