//! Creating a channel (Durable Streams, section 5.1).

use std::sync::Arc;

use super::{
    Created, Creation, Lifetime, Local, Registry,
    entry::{ChannelState, Entry, StoredLog},
    waiters::WakeList,
};
use crate::{
    Error,
    engine::{Batch, Log, MediaType, same_type},
};

impl Registry {
    /// Creates a channel that is no [fork](Self::fork_local). It stays until it is deleted or its lifetime ends. One that
    /// exists must have been created in the same way; its content is not compared, and nothing is appended to it.
    pub(crate) fn create_local(&self, _: Local, name: &str, creation: &Creation) -> Result<(Created, WakeList), Error> {
        debug_assert!(creation.fork.is_none(), "a fork takes more than one poll");
        self.check_name(name)?;
        // A channel that exists is compared before the content of a new one is checked.
        if let Some(found) = self.created(name, creation)? {
            return Ok((found, WakeList::nobody()));
        }
        let content_type = content_type(creation, None)?;
        let mut content = self.initial(creation, &content_type)?;
        let lifetime = creation.lifetime.unwrap_or_default();
        self.change(name, |entry, state, now| {
            if let Some(kept) = self.living(entry, state, now) {
                kept.compare(creation)?;
                self.keep_transient(kept, entry, now)?;
                kept.explicit = true;
                return Ok((kept.describe(), WakeList::nobody()));
            }
            let kept = self.make(entry, state, false, now, content_type.clone())?;
            kept.explicit = true;
            kept.set_lifetime(lifetime, self.end_of(lifetime));
            self.add(kept, &mut content, now)?;
            if creation.closed {
                kept.log.close(now);
            }
            self.requeue(kept, entry, now);
            let created = Created { fresh: true, ..kept.describe() };
            Ok((created, state.waiters.take()))
        })
    }

    /// Checks the content that a channel is created with.
    pub(super) fn initial(&self, creation: &Creation, content_type: &MediaType) -> Result<Option<Batch>, Error> {
        let content = Batch::initial(creation.content.clone(), content_type)?;
        if content.as_ref().is_some_and(|content| content.size() > self.limits.append) {
            return Err(Error::TooLarge { limit: self.limits.append });
        }
        Ok(content)
    }

    /// Returns the channel, if it exists and was created in the same way.
    pub(super) fn created(&self, name: &str, creation: &Creation) -> Result<Option<Created>, Error> {
        let Some(entry) = self.map.find(name) else { return Ok(None) };
        self.visit(&entry, |state| match self.living(&entry, state, self.now()) {
            // If a broadcast created it, the caller turns it into an ordinary channel.
            Some(kept) if kept.transient => kept.compare(creation).map(|()| None),
            Some(kept) => {
                kept.compare(creation)?;
                kept.explicit = true;
                Ok(Some(kept.describe()))
            }
            None => Ok(None),
        })
    }

    /// Puts an empty log into a channel that has none.
    pub(super) fn make<'a>(
        &self,
        entry: &Arc<Entry>,
        state: &'a mut ChannelState,
        transient: bool,
        now: u64,
        content_type: MediaType,
    ) -> Result<&'a mut StoredLog, Error> {
        if transient {
            self.usage.admit_transient(&self.limits).map_err(Error::Full)?;
        } else {
            self.usage.admit_channel(&self.limits).map_err(Error::Full)?;
        }
        let kept =
            state.log.insert(StoredLog::new(Log::new(content_type, now, self.usage.responses()), transient, now));
        self.queue(kept, entry, now);
        Ok(kept)
    }
}

/// Returns the content type of a new channel, where `inherited` is that of a fork's source.
pub(super) fn content_type(creation: &Creation, inherited: Option<&MediaType>) -> Result<MediaType, Error> {
    match (&creation.content_type, inherited) {
        (Some(said), Some(holds)) if !same_type(said, holds) => Err(Error::ContentType { holds: holds.to_string() }),
        (_, Some(inherited)) => Ok(inherited.clone()),
        (Some(said), None) => Ok(said.clone()),
        (None, None) => Err(Error::MediaType),
    }
}

impl StoredLog {
    /// Describes a channel that exists.
    pub(super) fn describe(&self) -> Created {
        let content_type = self.log.content_type().clone();
        Created { tail: self.log.tail(), closed: self.log.is_closed(), content_type, fresh: false }
    }

    /// Compares how the channel was created: its content type, its lifetime, whether it is closed now, and its origin as a
    /// fork.
    pub(super) fn compare(&self, creation: &Creation) -> Result<(), Error> {
        let special = self.rare();
        let same = !special.tombstoned
            && creation.content_type.as_ref().is_none_or(|said| same_type(said, self.log.content_type()))
            && creation
                .lifetime
                .map_or(creation.fork.is_some() || special.lifetime == Lifetime::Unbounded, |lifetime| {
                    lifetime == special.lifetime
                })
            && creation.closed == self.log.is_closed()
            && creation.fork.as_ref() == special.fork_source.as_ref().map(|origin| &origin.fork);
        if same { Ok(()) } else { Err(Error::Conflict) }
    }
}
