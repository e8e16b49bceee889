//! Broadcasts: one message to all channels whose names match a pattern.

use matchit::Router;
use std::sync::Arc;

use super::{
    Append, Registry, Walk,
    authority::{Authority, Local},
    slice::sliced,
    waiters::WakeList,
};
use crate::{Error, Limit, engine::Batch};

impl Registry {
    /// Appends a batch to all channels whose names match, and to matching names with waiters and no channel. Returns how many have it.
    pub(crate) async fn broadcast(
        self: &Arc<Self>,
        names: Router<()>,
        pattern: String,
        batch: Batch,
    ) -> Result<usize, Error> {
        let local = match &self.authority {
            Authority::Local(local) => *local,
            #[cfg(feature = "redis")]
            Authority::Remote(remote) => return super::relay::broadcast(self, remote, &names, pattern, batch).await,
            #[cfg(not(feature = "redis"))]
            Authority::Remote(_) => unreachable!("no remote engine was compiled: {pattern}"),
        };
        let registry = self.clone();
        let mut publishing = Publishing { registry, local, names, batch, reached: 0, full: None, failed: None };
        publishing.publish().await;
        if let Some(error) = publishing.failed {
            return Err(error);
        }
        publishing.full.map_or(Ok(publishing.reached), |limit| Err(Error::Full(limit)))
    }
}

/// The progress of a broadcast with the logs in memory.
struct Publishing {
    registry: Arc<Registry>,
    local: Local,
    names: Router<()>,
    batch: Batch,
    reached: usize,
    full: Option<Limit>,
    /// An error that stopped the broadcast, because no channel can store the message.
    failed: Option<Error>,
}

impl Publishing {
    /// Appends to the matching names of the map, one slice in each poll.
    async fn publish(&mut self) {
        let (registry, mut walk, mut woken) = (self.registry.clone(), Walk::default(), WakeList::nobody());
        let (now, mut retried) = (registry.now(), None);
        sliced(|slice| {
            loop {
                if !registry.finish(&mut woken, slice) {
                    return false;
                }
                let Some(name) = retried.take().or_else(|| registry.next_name(&mut walk)) else { return true };
                if self.names.at(&name).is_ok() {
                    let appended =
                        registry.append_local(self.local, &name, &mut self.append(&registry)).map(|(_, woken)| woken);
                    if matches!(appended, Err(Error::Full(_))) {
                        // The append has evicted expired channels for a slice, which did not make enough room.
                        if registry.may_have_room(now) {
                            retried = Some(name);
                        } else {
                            self.note(appended).wake();
                        }
                        return false;
                    }
                    woken = self.note(appended);
                    if self.failed.is_some() {
                        return true;
                    }
                }
                if slice.step() {
                    return false;
                }
            }
        })
        .await;
    }

    fn append<'a>(&self, registry: &'a Registry) -> Append<'a> {
        let create = Some(registry.json());
        // In memory, a broadcast appends to each channel once, so the id is not compared.
        Append { batch: Some(self.batch.clone()), create, broadcast: Some(0), ..Append::default() }
    }

    fn note(&mut self, appended: Result<WakeList, Error>) -> WakeList {
        match appended {
            Ok(woken) => {
                self.reached += 1;
                return woken;
            }
            Err(Error::Full(limit)) => self.full = Some(limit),
            // The channel is closed, has another type, was deleted, or has no waiters any more.
            Err(Error::Closed | Error::ContentType { .. } | Error::Gone(_) | Error::Unknown) => {}
            Err(error) => self.failed = Some(error),
        }
        WakeList::nobody()
    }
}
