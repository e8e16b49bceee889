//! What a channel is, wherever its log is.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use crate::{
    Offset,
    registry::{Lifetime, Peek},
};

/// What a channel is: see [`Channel::info`](crate::Channel::info).
#[derive(Clone)]
pub struct ChannelInfo(pub(crate) Peek);

impl ChannelInfo {
    /// Returns the offset just after the last append.
    #[must_use]
    pub fn tail(&self) -> Offset {
        self.0.tail
    }

    /// Returns the content type, as it was given when the channel was created.
    #[must_use]
    pub fn content_type(&self) -> &str {
        &self.0.content_type
    }

    /// Returns the number of appends that the channel keeps.
    #[must_use]
    pub fn appends(&self) -> usize {
        self.0.history
    }

    /// Whether the channel is closed: see [`Channel::close`](crate::Channel::close).
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.closed
    }

    /// Returns how long the channel may be neither read nor written before it expires: see [`Create::idle`](crate::Create).
    #[must_use]
    pub fn idle(&self) -> Option<Duration> {
        match self.0.lifetime {
            Lifetime::Idle(window) => Some(window),
            _ => None,
        }
    }

    /// Returns when the channel expires, if its lifetime has a fixed end.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        match self.0.lifetime {
            Lifetime::Until(end) => Some(end),
            _ => None,
        }
    }
}

impl fmt::Debug for ChannelInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelInfo")
            .field("tail", &self.tail())
            .field("content_type", &self.content_type())
            .field("appends", &self.appends())
            .field("is_closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
