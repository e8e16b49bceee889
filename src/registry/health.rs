//! Whether the engine that keeps the logs can be reached.

use std::{fmt, sync::Arc, time::Duration};
use tokio::time::Instant;

use super::Registry;
use crate::sync::Mutex;

/// Whether the engine is in reach and does what channels need. Without one, all is well always.
pub(super) struct Health {
    state: Mutex<HealthState>,
}

#[derive(Default)]
struct HealthState {
    /// Since when the connection is lost, and why.
    lost: Option<(Instant, Arc<str>)>,
    /// Since when the engine refuses what channels need although it is connected, and why.
    failing: Option<(Instant, Arc<str>)>,
    /// An operation was refused since the last trial.
    suspect: bool,
    /// The last cause of either.
    last: Option<Arc<str>>,
}

impl Health {
    pub(super) fn well() -> Self {
        Self { state: Mutex::default() }
    }

    #[cfg(feature = "redis")]
    pub(super) fn unknown() -> Self {
        let health = Self::well();
        health.state.lock().lost = Some((Instant::now(), "it was not connected yet".into()));
        health
    }

    pub(super) fn is_lost(&self) -> bool {
        self.state.lock().lost.is_some()
    }

    #[cfg(feature = "redis")]
    pub(super) fn lose(&self, why: &str) {
        let why: Arc<str> = why.into();
        let mut state = self.state.lock();
        let since = state.lost.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        state.lost = Some((since, Arc::clone(&why)));
        state.last = Some(why);
    }

    #[cfg(feature = "redis")]
    pub(super) fn find(&self) {
        // A connection is used once a trial has succeeded.
        let mut state = self.state.lock();
        (state.lost, state.failing, state.suspect) = (None, None, false);
    }

    /// Notes that the engine refused an operation, which may be the fault of one channel or of the engine: a trial tells.
    pub(super) fn suspect(&self) {
        self.state.lock().suspect = true;
    }

    /// Whether a trial is to be made, now.
    #[cfg(feature = "redis")]
    pub(super) fn wants_trial(&self) -> bool {
        let mut state = self.state.lock();
        std::mem::take(&mut state.suspect) || state.failing.is_some()
    }

    #[cfg(feature = "redis")]
    pub(super) fn note_trial(&self, failed: Option<&str>) {
        let mut state = self.state.lock();
        let Some(why) = failed else {
            state.failing = None;
            return;
        };
        let why: Arc<str> = why.into();
        let since = state.failing.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        state.failing = Some((since, Arc::clone(&why)));
        state.last = Some(why);
    }

    pub(super) fn last(&self) -> Option<Arc<str>> {
        self.state.lock().last.clone()
    }
}

impl Registry {
    /// The engine was reached just now.
    #[cfg(feature = "redis")]
    pub(crate) fn is_reached(&self) {
        self.health.find();
    }

    pub(crate) fn health(&self) -> Result<(), Unhealthy> {
        let state = self.health.state.lock();
        match state.lost.as_ref().or(state.failing.as_ref()) {
            None => Ok(()),
            Some((since, why)) => {
                Err(Unhealthy { since: since.elapsed(), why: Arc::clone(why), lost: state.lost.is_some() })
            }
        }
    }

    /// The last cause for which the engine was unhealthy.
    pub(crate) fn engine_error(&self) -> Option<Arc<str>> {
        self.health.last()
    }
}

/// The engine that keeps the logs is out of reach: see [`Comet::health`](crate::Comet::health).
#[derive(Clone, Debug)]
pub struct Unhealthy {
    since: Duration,
    why: Arc<str>,
    lost: bool,
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
        let what = if self.lost { "the logs have been out of reach" } else { "the engine has refused appends" };
        write!(f, "{what} for {:.1?}: {}", self.since, self.why)
    }
}

impl std::error::Error for Unhealthy {}
