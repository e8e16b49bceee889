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
    registry::{Append, Appended, Creation, Registry, Woken, poll_sliced},
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
/// Until it is polled nothing has happened. With the logs in memory, the first poll makes the change, and the future is ready
/// then unless there are so many waiters that waking them would keep other tasks waiting: it wakes them over several polls
/// then, and a drop wakes those that are left. Only if a limit is reached, and more channels that have expired must be
/// evicted than one poll may, a later poll makes the change; dropped before that, it has changed nothing.
///
/// On Redis, one that is dropped while it is under way may have been made or not; a [`Producer`](crate::Producer) can make sure.
#[must_use = "nothing is changed until this is awaited, or waited for with `.wait()`"]
pub struct Change {
    registry: Arc<Registry>,
    name: Arc<str>,
    stage: Stage,
}

enum Stage {
    Begun(What),
    /// What was to be appended could not be encoded, or the content type is malformed.
    Refused(Error),
    /// Made in memory; some waiters are still to be woken.
    Waking(Woken, Offset),
    /// Under way to a remote engine, or until expired channels have been evicted.
    Running(Pin<Box<dyn Future<Output = Result<Offset, Error>> + Send>>),
    Done,
}

enum What {
    Append {
        /// Without it, the stream is only closed.
        batch: Option<Batch>,
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
        Self { registry, name, stage: Stage::Begun(what) }
    }

    pub(crate) fn append(registry: Arc<Registry>, name: Arc<str>, batch: Result<Batch, Error>) -> Self {
        let what = batch.map(|batch| What::Append { batch: Some(batch), close: false, stamp: None, again: false });
        Self { registry, name, stage: what.map_or_else(Stage::Refused, Stage::Begun) }
    }

    pub(crate) fn bytes(registry: Arc<Registry>, name: Arc<str>, bytes: Bytes) -> Self {
        Self::new(registry, name, What::Bytes(bytes))
    }

    pub(crate) fn close(registry: Arc<Registry>, name: Arc<str>) -> Self {
        Self::new(registry, name, What::Append { batch: None, close: true, stamp: None, again: false })
    }

    pub(crate) fn create(registry: Arc<Registry>, name: Arc<str>, creation: Result<Creation, Error>) -> Self {
        let what = creation.map(|creation| What::Create(Box::new(creation)));
        Self { registry, name, stage: what.map_or_else(Stage::Refused, Stage::Begun) }
    }

    pub(crate) fn delete(registry: Arc<Registry>, name: Arc<str>) -> Self {
        Self::new(registry, name, What::Delete)
    }

    /// The same, and the end of the stream with it.
    pub(crate) fn and_close(mut self) -> Self {
        if let Stage::Begun(What::Append { close, .. }) = &mut self.stage {
            *close = true;
        }
        self
    }

    /// The same, as a producer's message; `sent` if it was sent before, and what came of that is not known.
    pub(crate) fn stamped(mut self, by: Stamp, sent: bool) -> Self {
        if let Stage::Begun(What::Append { stamp, again, .. }) = &mut self.stage {
            (*stamp, *again) = (Some(by), sent);
        }
        self
    }

    /// Blocks the thread until it is done: for code outside a runtime. In a task, await it instead: this wakes all waiters
    /// before it returns, and on Redis it would keep the runtime from the connection that it waits for.
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
        assert_unlocked();
        let Self { registry, name, stage } = &mut *self;
        if let Stage::Begun(what) = stage {
            *stage = what.begin(registry, name).unwrap_or_else(Stage::Refused);
        }
        let done = match mem::replace(stage, Stage::Done) {
            Stage::Refused(error) => Err(error),
            Stage::Waking(mut woken, tail) => {
                if poll_sliced(cx, |slice| registry.finish(&mut woken, slice)).is_pending() {
                    *stage = Stage::Waking(woken, tail);
                    return Poll::Pending;
                }
                Ok(tail)
            }
            Stage::Running(mut running) => match running.as_mut().poll(cx) {
                Poll::Ready(done) => done,
                Poll::Pending => {
                    *stage = Stage::Running(running);
                    return Poll::Pending;
                }
            },
            Stage::Begun(_) | Stage::Done => panic!("`Change` polled after it was ready"),
        };
        Poll::Ready(done)
    }
}

impl What {
    /// Makes the change, if it can be made in memory and now.
    fn begin(&mut self, registry: &Arc<Registry>, name: &Arc<str>) -> Result<Stage, Error> {
        if registry.remote().is_none() {
            let now = registry.now();
            match self.make(registry, name) {
                Err(Error::Full(_)) if registry.may_have_room(now) => {}
                made => return made.map(|(tail, woken)| Stage::Waking(woken, tail)),
            }
        }
        let (registry, name, what) = (registry.clone(), name.clone(), mem::replace(self, Self::Delete));
        Ok(Stage::Running(Box::pin(async move { what.make_anywhere(&registry, &name).await })))
    }

    /// Makes the change in memory. What is refused can be tried again.
    fn make(&mut self, registry: &Registry, name: &str) -> Result<(Offset, Woken), Error> {
        match self {
            Self::Append { batch, close, stamp, again } => {
                let (create, stamp) = (Some(registry.json()), stamp.as_ref());
                let mut append = Append { batch: batch.take(), create, close: *close, stamp, ..Append::default() };
                let made = registry.append(name, &mut append);
                *batch = append.batch;
                let (appended, woken) = made?;
                Ok((accepted(&appended, stamp, *again)?, woken))
            }
            Self::Bytes(_) => unreachable!("the type of a channel in memory is known at once"),
            Self::Create(creation) => registry.create(name, creation).map(|(created, woken)| (created.tail, woken)),
            Self::Delete => registry.delete(name),
        }
    }

    async fn make_anywhere(self, registry: &Registry, name: &str) -> Result<Offset, Error> {
        match self {
            Self::Append { batch, close, stamp, again } => {
                append(registry, name, batch, close, stamp.as_ref(), again).await
            }
            Self::Bytes(bytes) => {
                let appended = match Batch::json(&bytes) {
                    Ok(batch) => append(registry, name, Some(batch), false, None, false).await,
                    Err(error) => Err(error),
                };
                // Most channels are JSON: whether this one is not is requested only when that was refused.
                let Err(Error::Json(_) | Error::Empty | Error::ContentType { .. }) = appended else { return appended };
                match registry.peek_anywhere(name).await? {
                    Some(known) if !is_json(&known.content_type) => {
                        append(registry, name, Some(Batch::copy(&bytes)?), false, None, false).await
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
    accepted(&registry.append_anywhere(name, append).await?, stamp, again)
}

/// The tail, unless another producer has the same id and epoch: in process nothing is sent twice but `again`.
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
            Stage::Begun(What::Append { .. } | What::Bytes(_)) => "append",
            Stage::Begun(What::Create(_)) => "create",
            Stage::Begun(What::Delete) => "delete",
            Stage::Refused(_) => "refused",
            Stage::Waking(..) => "waking",
            Stage::Running(_) => "running",
            Stage::Done => "done",
        };
        f.debug_struct("Change").field("channel", &self.name).field("stage", &stage).finish_non_exhaustive()
    }
}

/// Runs a future on this thread, which sleeps between two polls.
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
