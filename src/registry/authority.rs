//! Who keeps the logs: this process, or a remote engine.

use std::sync::Arc;

use super::Registry;
use crate::engine::Remote;

pub(super) enum Authority {
    Local(Local),
    /// The entries of this process are a cache.
    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "no remote engine is compiled"))]
    Remote(Arc<dyn Remote>),
}

/// Proof that this process keeps the logs. What changes a log in memory takes one, so that a change of a cached log does not
/// compile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local(());

impl Authority {
    pub(super) fn local() -> Self {
        Self::Local(Local(()))
    }
}

impl Registry {
    /// Returns the proof that this process keeps the logs, if it does.
    pub(super) fn local(&self) -> Option<Local> {
        match self.authority {
            Authority::Local(local) => Some(local),
            Authority::Remote(_) => None,
        }
    }

    /// Returns the remote engine, if that keeps the logs.
    pub(super) fn remote(&self) -> Option<&Arc<dyn Remote>> {
        match &self.authority {
            Authority::Local(_) => None,
            Authority::Remote(remote) => Some(remote),
        }
    }

    /// For tests of registries in memory.
    #[cfg(test)]
    pub(crate) fn assert_local(&self) -> Local {
        self.local().expect("a registry in memory")
    }
}
