//! What an engine is asked to do, and what it says was done: the same for every engine.

use bytes::Bytes;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Batch, MediaType, Offset, Stamp, Start};

/// What is to be appended, and on which terms.
#[derive(Clone, Debug, Default)]
pub(crate) struct Append<'a> {
    /// Without it, the stream is only closed.
    pub(crate) batch: Option<Batch>,
    /// The type that the sender says the content has. In process nothing is said: the channel's is meant.
    pub(crate) content_type: Option<&'a MediaType>,
    /// The type to make an unknown channel with. Without it, unknown is an error.
    pub(crate) create: Option<&'a MediaType>,
    /// End the stream with this.
    pub(crate) close: bool,
    /// `Stream-Seq`.
    pub(crate) seq: Option<&'a str>,
    /// Which message of which producer this is.
    pub(crate) stamp: Option<&'a Stamp>,
    /// The id of the broadcast that this is part of. A channel that such an append creates is transient: it exists for
    /// the waiters on that name only. A remote engine appends a broadcast to each channel once.
    pub(crate) broadcast: Option<u64>,
}

/// A broadcast, as its node announces it to the other nodes.
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "without a remote engine there are no other nodes"))]
#[derive(Clone, Debug)]
pub(crate) struct Announcement {
    pub(crate) id: u64,
    /// The pattern of the names to append to.
    pub(crate) pattern: String,
    pub(crate) batch: Batch,
}

/// An append that was made, now or before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appended {
    /// Where the channel ends.
    pub(crate) tail: Offset,
    pub(crate) closed: bool,
    /// The highest epoch and number that were accepted of the producer.
    pub(crate) accepted: Option<(u64, u64)>,
    /// It was made before: nothing was done now.
    pub(crate) duplicate: bool,
}

/// How a channel is to be created.
#[derive(Clone, Debug, Default)]
pub(crate) struct Creation {
    /// A fork may leave it to its source.
    pub(crate) content_type: Option<MediaType>,
    /// A fork may leave it to its source.
    pub(crate) lifetime: Option<Lifetime>,
    pub(crate) closed: bool,
    pub(crate) content: Bytes,
    pub(crate) fork: Option<Fork>,
}

/// What a fork begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fork {
    pub(crate) source: Arc<str>,
    /// The source's tail, if it is not said.
    pub(crate) at: Option<Start>,
    /// How much of the append that follows, in messages or bytes.
    pub(crate) part: u64,
}

/// A channel that is there now.
#[derive(Clone, Debug)]
pub(crate) struct Created {
    pub(crate) tail: Offset,
    pub(crate) closed: bool,
    pub(crate) content_type: MediaType,
    /// It was not there before.
    pub(crate) fresh: bool,
}

/// How long a channel lives by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lifetime {
    #[default]
    Unbounded,
    /// Until nobody has read, waited on or written it for so long: `Stream-TTL`.
    Idle(Duration),
    /// Until then: `Stream-Expires-At`.
    Until(SystemTime),
}
