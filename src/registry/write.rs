//! Changing a channel: append, create, close, delete.

use std::sync::Arc;

use super::{
    Registry,
    entry::{Entry, Kept, State},
    waiters::Woken,
};
use crate::{
    Error,
    engine::{Batch, Log, Offset, check_media_type, same_type},
};

/// On which terms something is appended.
#[derive(Debug, Default)]
pub(crate) struct Terms<'a> {
    /// The type that the sender says the content has. In process nothing is said: the channel's is meant.
    pub(crate) content_type: Option<&'a str>,
    /// The type to make an unknown channel with. Without it, unknown is an error.
    pub(crate) create: Option<&'a Arc<str>>,
}

impl Registry {
    /// Appends a batch, and wakes whoever waits.
    pub(crate) fn append(&self, name: &str, batch: &Batch, terms: &Terms<'_>) -> Result<Offset, Error> {
        self.check_name(name)?;
        if batch.size() > self.limits.append {
            return Err(Error::TooLarge { limit: self.limits.append });
        }
        self.change(name, |registry, entry, state| {
            let kept = registry.log(entry, state, terms.create, false)?;
            if kept.log.is_closed() {
                return Err(Error::Closed);
            }
            let typed = terms.content_type.is_none_or(|said| same_type(said, kept.log.content_type()));
            if !typed || !kept.log.takes(batch) {
                return Err(Error::ContentType { holds: kept.log.content_type().to_string() });
            }
            let now = registry.now();
            registry.expire(kept, now);
            let weight = kept.log.weigh(batch, &registry.retention);
            registry.usage.admit_history(&registry.limits, weight.adds, weight.frees).map_err(Error::Full)?;
            let tail = kept.log.append(batch.clone(), &weight, now);
            kept.touched = now;
            registry.queue(kept, now, entry);
            registry.usage.count_append();
            Ok((tail, state.waiters.take()))
        })
    }

    /// Makes a channel that stays until it is deleted. One that is there already must be of the same type.
    pub(crate) fn create(&self, name: &str, content_type: &Arc<str>) -> Result<Offset, Error> {
        self.check_name(name)?;
        check_media_type(content_type)?;
        self.change(name, |registry, entry, state| {
            let kept = registry.log(entry, state, Some(content_type), true)?;
            if !same_type(kept.log.content_type(), content_type) {
                return Err(Error::ContentType { holds: kept.log.content_type().to_string() });
            }
            kept.explicit = true;
            Ok((kept.log.tail(), Woken::nobody()))
        })
    }

    /// Ends a channel's stream, and lets whoever waits know. Closing again changes nothing.
    pub(crate) fn close_channel(&self, name: &str, create: Option<&Arc<str>>) -> Result<Offset, Error> {
        self.check_name(name)?;
        self.change(name, |registry, entry, state| {
            let kept = registry.log(entry, state, create, false)?;
            kept.log.close();
            kept.touched = registry.now();
            Ok((kept.log.tail(), state.waiters.take()))
        })
    }

    /// Deletes a channel with all that it holds, and lets whoever waits know. Returns where it ended.
    pub(crate) fn delete(&self, name: &str) -> Result<Offset, Error> {
        self.check_name(name)?;
        self.change(name, |registry, _, state| {
            let kept = registry.forget(state).ok_or(Error::Unknown)?;
            Ok((kept.log.tail(), state.waiters.take()))
        })
    }

    /// Makes a change under the channel's lock, and wakes who is to be woken when it is released.
    fn change(
        &self,
        name: &str,
        change: impl Fn(&Self, &Arc<Entry>, &mut State) -> Result<(Offset, Woken), Error>,
    ) -> Result<Offset, Error> {
        let attempt = || {
            self.edit(name, |entry, state| {
                let fresh = state.log.is_none();
                let changed = change(self, entry, state);
                if changed.is_err() && fresh {
                    // Made for what then could not be done.
                    self.forget(state);
                }
                changed
            })
        };
        self.step(self.now());
        let mut changed = attempt();
        if matches!(changed, Err(Error::Full(_))) {
            // There is room after all if something has aged out that nobody has looked after yet.
            self.sweep(self.now());
            changed = attempt();
        }
        let (tail, woken) = changed?;
        woken.wake();
        Ok(tail)
    }

    /// The log of a channel, made if there is none and `create` gives its type.
    fn log<'a>(
        &self,
        entry: &Arc<Entry>,
        state: &'a mut State,
        create: Option<&Arc<str>>,
        explicit: bool,
    ) -> Result<&'a mut Kept, Error> {
        if state.log.is_none() {
            let content_type = create.ok_or(Error::Unknown)?;
            self.usage.admit_channel(&self.limits).map_err(Error::Full)?;
            let origin = self.origins.of(self.map.hash(entry.name()));
            let log = Log::new(content_type.clone(), origin);
            let mut kept = Box::new(Kept { log, explicit, touched: self.now(), due: None });
            let touched = kept.touched;
            self.queue(&mut kept, touched, entry);
            state.log = Some(kept);
        }
        Ok(state.log.as_mut().expect("made just now if not before"))
    }
}
