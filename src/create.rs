//! How a channel is created.

use bytes::Bytes;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    Channel, Error, Offset,
    engine::Start,
    registry::{Creation, Fork, Lifetime, Registry},
};

/// How a channel is [created](Channel::create): its type, its lifetime, what it begins with.
///
/// ```
/// use std::time::Duration;
/// use tower_comet::{Comet, Create};
///
/// let comet = Comet::new();
/// let draft = comet.channel("/drafts/1");
/// draft.create(Create::new("text/plain").idle(Duration::from_secs(600)).content("Dear ")).wait()?;
/// let greeting = draft.append("Ann").wait()?;
/// draft.append(", never mind").wait()?;
///
/// // A fork has what its source had up to a place, and goes its own way from there.
/// let other = comet.channel("/drafts/2");
/// other.create(Create::fork_of(&draft).at(greeting)).wait()?;
/// other.append(", how are you?").wait()?;
/// assert_eq!((draft.history(), other.history()), (3, 3));
/// # Ok::<(), tower_comet::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "this says how; `Channel::create` does it"]
pub struct Create {
    creation: Creation,
    /// The channel that is forked.
    source: Option<Channel>,
    /// What `Channel::create` returns instead.
    invalid: Option<Invalid>,
}

#[derive(Clone, Copy, Debug)]
enum Invalid {
    MediaType,
    AtWithoutFork,
}

impl Create {
    /// A channel of this content type. [`Channel::create`] returns [`Error::MediaType`] if it is malformed.
    pub fn new(content_type: &str) -> Self {
        let content_type = content_type.parse().ok();
        let invalid = content_type.is_none().then_some(Invalid::MediaType);
        Self { creation: Creation { content_type, ..Creation::default() }, source: None, invalid }
    }

    /// A fork: a channel that begins with the messages of another one of the same [`Comet`](crate::Comet), at the same
    /// offsets. The messages are shared, not copied. A fork has its source's content type, and its lifetime unless another
    /// is set.
    ///
    /// Later appends to the source do not change the fork. The source can be deleted, but its name stays taken until its
    /// last fork is deleted.
    ///
    /// With the logs in memory, a fork inherits up to 1,024 appends in each poll of its
    /// [`Change`](crate::Change). Each inherited append counts for
    /// [`max_history`](crate::CometBuilder::max_history), with its payload. On Redis, the messages are copied through the node, 500 or
    /// 256 KiB at a time.
    pub fn fork_of(source: &Channel) -> Self {
        let fork = Fork { source: source.name().into(), at: None, part: 0 };
        let creation = Creation { fork: Some(fork), ..Creation::default() };
        Self { creation, source: Some(source.clone()), invalid: None }
    }

    /// Forks at this offset of the source, instead of at its tail. [`Channel::create`] returns [`Error::Invalid`] for a channel
    /// that is no fork.
    pub fn at(mut self, offset: Offset) -> Self {
        match &mut self.creation.fork {
            Some(fork) => fork.at = Some(Start::After(offset)),
            None => self.invalid = self.invalid.or(Some(Invalid::AtWithoutFork)),
        }
        self
    }

    /// Deletes the channel when it has not been read, waited on or written for this long. Clients receive it as `Stream-TTL`, in whole
    /// seconds. Replaces [`until`](Self::until). By default a channel has no lifetime.
    ///
    /// On Redis, a channel whose lifetime is less than 100 ms can expire although it has a waiter.
    pub fn idle(mut self, window: Duration) -> Self {
        self.creation.lifetime = Some(Lifetime::Idle(window));
        self
    }

    /// Deletes the channel at this time on the wall clock, also if that is corrected, or the machine is suspended meanwhile. A wait
    /// that is parked on the channel then ends within 30 s. Replaces [`idle`](Self::idle). Clients receive the time as
    /// `Stream-Expires-At`. On Redis, Redis's clock decides.
    pub fn until(mut self, end: SystemTime) -> Self {
        self.creation.lifetime = Some(Lifetime::Until(end));
        self
    }

    /// Begins with this content, of the channel's type, as if it were [appended](Channel::append). A channel that is there already is
    /// left as it is.
    pub fn content(mut self, content: impl Into<Bytes>) -> Self {
        // A copy, as `Channel::append` makes one.
        self.creation.content = Bytes::copy_from_slice(&content.into());
        self
    }

    /// Ends the stream with what it begins with.
    pub fn closed(mut self) -> Self {
        self.creation.closed = true;
        self
    }

    pub(crate) fn into_creation(self, registry: &Arc<Registry>) -> Result<Creation, Error> {
        match (self.invalid, &self.source) {
            (Some(Invalid::MediaType), _) => Err(Error::MediaType),
            (Some(Invalid::AtWithoutFork), _) => Err(Error::Invalid("`Create::at` is for forks only")),
            (None, Some(source)) if !source.is_of(registry) => {
                Err(Error::Invalid("a fork must be of a channel of the same `Comet`"))
            }
            _ => Ok(self.creation),
        }
    }
}

/// A channel of this content type.
impl From<&str> for Create {
    fn from(content_type: &str) -> Self {
        Self::new(content_type)
    }
}
