//! Creating a channel, also as a fork of another (Durable Streams, sections 5.1 and 4.2).

use std::sync::Arc;

use super::{
    Created, Creation, Fork, Lifetime, Registry,
    entry::{Entry, Kept, Origin, Parent, State},
    waiters::Woken,
};
use crate::{
    Error,
    engine::{Batch, Branch, Log, MediaType, Start, same_type},
};

impl Registry {
    /// Makes a channel that stays until it is deleted or its lifetime is over. One that is there already must have been
    /// created in the same way; its content is not compared, and nothing is appended to it.
    pub(crate) fn create(&self, name: &str, creation: &Creation) -> Result<(Created, Woken), Error> {
        self.check_name(name)?;
        // Compared before the source is asked for, which may be gone by now.
        if let Some(found) = self.created(name, creation)? {
            return Ok((found, Woken::nobody()));
        }
        let source = creation.fork.as_ref().map(|fork| self.source(fork)).transpose()?;
        let content_type = content_type(creation, source.as_ref())?;
        let mut content = Batch::initial(creation.content.clone(), &content_type)?;
        if content.as_ref().is_some_and(|content| content.size() > self.limits.append) {
            return Err(Error::TooLarge { limit: self.limits.append });
        }
        let inherited = source.as_ref().map(|source| source.lifetime);
        let lifetime = creation.lifetime.or(inherited).unwrap_or_default();
        self.change(name, |entry, state, now| {
            if let Some(kept) = self.living(entry, state, now) {
                kept.compare(creation)?;
                self.keep_transient(kept, entry, now)?;
                kept.explicit = true;
                return Ok((kept.describe(), Woken::nobody()));
            }
            let log = match &source {
                Some(source) => Log::forked(source.branch.clone(), now),
                None => Log::new(content_type.clone(), now, self.usage.responses()),
            };
            let kept = self.make(entry, state, false, now, log)?;
            kept.explicit = true;
            kept.set_lifetime(lifetime, self.end_of(lifetime));
            self.add(kept, &mut content, now)?;
            if creation.closed {
                kept.log.close(now);
            }
            if let (Some(fork), Some(source)) = (&creation.fork, &source) {
                source.parent.keep();
                kept.special_mut().origin = Some(Origin { fork: fork.clone(), parent: source.parent.parent() });
            }
            self.requeue(kept, entry, now);
            let created = Created { fresh: true, ..kept.describe() };
            Ok((created, state.waiters.take()))
        })
    }

    /// Returns the channel, if it exists and was created in the same way.
    fn created(&self, name: &str, creation: &Creation) -> Result<Option<Created>, Error> {
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

    /// Puts a log into a channel that has none.
    pub(super) fn make<'a>(
        &self,
        entry: &Arc<Entry>,
        state: &'a mut State,
        transient: bool,
        now: u64,
        log: Log,
    ) -> Result<&'a mut Kept, Error> {
        if transient {
            self.usage.admit_transient(&self.limits).map_err(Error::Full)?;
        } else {
            self.usage.admit_channel(&self.limits).map_err(Error::Full)?;
        }
        if let Err(limit) = self.usage.admit_history(&self.limits, log.cost(), 0) {
            self.usage.leave_channel(transient);
            return Err(Error::Full(limit));
        }
        let kept = state.log.insert(Kept::new(log, transient, now));
        self.queue(kept, entry, now);
        Ok(kept)
    }

    /// What a fork begins with; its source counts it from now on.
    fn source(&self, fork: &Fork) -> Result<Source<'_>, Error> {
        let entry = self.map.find(&fork.source).ok_or(Error::Unknown)?;
        let source = self.visit(&entry, |state| {
            let at = self.resolve(&entry, state, fork.at.unwrap_or(Start::Tail));
            let kept = self.living(&entry, state, self.now()).ok_or(Error::Unknown)?;
            if kept.is_buried() {
                return Err(Error::Conflict);
            }
            let branch = kept.log.branch(at, fork.part)?;
            kept.special_mut().forks += 1;
            let parent = Parent { entry: entry.clone(), log: kept.log.id() };
            let parent = Counted { registry: self, parent, kept: false.into() };
            Ok(Source { branch, lifetime: kept.special().lifetime, parent })
        })?;
        Ok(Source { branch: source.branch.cut()?, ..source })
    }
}

/// The type that a new channel has.
fn content_type(creation: &Creation, source: Option<&Source<'_>>) -> Result<MediaType, Error> {
    match (&creation.content_type, source.map(|source| &source.branch.content_type)) {
        (Some(said), Some(holds)) if !same_type(said, holds) => Err(Error::ContentType { holds: holds.to_string() }),
        (_, Some(inherited)) => Ok(inherited.clone()),
        (Some(said), None) => Ok(said.clone()),
        (None, None) => Err(Error::MediaType),
    }
}

/// The source of a fork that is being made.
struct Source<'a> {
    branch: Branch,
    lifetime: Lifetime,
    parent: Counted<'a>,
}

/// A fork that is counted by its parent; no more, if it is not made after all.
struct Counted<'a> {
    registry: &'a Registry,
    parent: Parent,
    kept: std::cell::Cell<bool>,
}

impl Counted<'_> {
    fn keep(&self) {
        self.kept.set(true);
    }

    fn parent(&self) -> Parent {
        self.parent.clone()
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.kept.get() {
            self.registry.orphans.push(self.parent.clone());
        }
    }
}

impl Kept {
    fn describe(&self) -> Created {
        let content_type = self.log.content_type().clone();
        Created { tail: self.log.tail(), closed: self.log.is_closed(), content_type, fresh: false }
    }

    /// Whether it was created like this: the type, the lifetime, whether it is closed now, and what it is a fork of.
    fn compare(&self, creation: &Creation) -> Result<(), Error> {
        let special = self.special();
        let same = !special.buried
            && creation.content_type.as_ref().is_none_or(|said| same_type(said, self.log.content_type()))
            && creation
                .lifetime
                .map_or(creation.fork.is_some() || special.lifetime == Lifetime::Unbounded, |lifetime| {
                    lifetime == special.lifetime
                })
            && creation.closed == self.log.is_closed()
            && creation.fork.as_ref() == special.origin.as_ref().map(|origin| &origin.fork);
        if same { Ok(()) } else { Err(Error::Conflict) }
    }
}
