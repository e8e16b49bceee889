//! Whether the engine that keeps the logs can be reached.

use std::{fmt, time::Duration};
use tokio::time::Instant;

use super::Registry;
use crate::sync::Mutex;

/// Whether the engine is in reach, and why not. Without one, all is well always.
pub(super) struct Health {
    lost: Mutex<Option<(Instant, String)>>,
}

impl Health {
    pub(super) fn well() -> Self {
        Self { lost: Mutex::new(None) }
    }

    #[cfg(feature = "redis")]
    pub(super) fn unknown() -> Self {
        let health = Self::well();
        health.lose("it was not connected yet".to_owned());
        health
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.lock().is_some()
    }

    #[cfg(feature = "redis")]
    pub(super) fn lose(&self, why: String) {
        let mut lost = self.lost.lock();
        let since = lost.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *lost = Some((since, why));
    }

    #[cfg(feature = "redis")]
    pub(super) fn find(&self) {
        *self.lost.lock() = None;
    }
}

impl Registry {
    /// The engine was reached just now.
    #[cfg(feature = "redis")]
    pub(crate) fn is_reached(&self) {
        self.health.find();
    }

    pub(crate) fn health(&self) -> Result<(), Unhealthy> {
        match &*self.health.lost.lock() {
            None => Ok(()),
            Some((since, why)) => Err(Unhealthy { since: since.elapsed(), why: why.clone() }),
        }
    }
}

/// The engine that keeps the logs is out of reach: see [`Comet::health`](crate::Comet::health).
#[derive(Clone, Debug)]
pub struct Unhealthy {
    since: Duration,
    why: String,
}

impl Unhealthy {
    /// For how long it has been.
    #[must_use]
    pub fn since(&self) -> Duration {
        self.since
    }
}

impl fmt::Display for Unhealthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the logs have been out of reach for {:.1?}: {}", self.since, self.why)
    }
}

impl std::error::Error for Unhealthy {}
