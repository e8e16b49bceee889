//! What can be done with a channel, wherever its log is kept: here, in one step, or by an engine that is asked.

use std::sync::Arc;

use super::{
    Append, Appended, Begun, Created, Creation, Peek, Registry, Wait,
    acknowledged::Sent,
    lifetime::ends_in,
    slice::{Slice, sliced, yield_now},
    waiters::Woken,
};
use crate::{
    Error,
    engine::{Extent, Found, Offset, Page, Place, Reading, Remote, Start, Touch},
    faults::Rule,
};

impl Registry {
    /// [`append`](Self::append), wherever the log is.
    pub(crate) async fn append_anywhere(&self, name: &str, mut append: Append<'_>) -> Result<Appended, Error> {
        let Some(remote) = self.remote() else { return self.locally(|| self.append(name, &mut append)).await };
        self.check_name(name)?;
        if append.batch.as_ref().is_some_and(|batch| batch.size() > self.limits.append) {
            return Err(Error::TooLarge { limit: self.limits.append });
        }
        let sent = self.acknowledged.send(self.now());
        let appended = remote.append(name, &append).await;
        self.note_append(name, &append, sent, &appended);
        appended
    }

    /// Makes the same append to each of these channels on the remote engine, whose names were [checked](Self::check_name). Returns the
    /// result of each, in this order.
    #[cfg(feature = "redis")]
    pub(super) async fn append_each(
        &self,
        remote: &dyn Remote,
        names: &[String],
        append: &Append<'_>,
    ) -> Result<Vec<Result<Appended, Error>>, Error> {
        let sent = self.acknowledged.send(self.now());
        let appended = remote.append_each(names, append).await?;
        for (name, appended) in names.iter().zip(&appended) {
            self.note_append(name, append, sent, appended);
        }
        Ok(appended)
    }

    /// Notes the result of an append to a channel of a remote engine.
    fn note_append(&self, name: &str, append: &Append<'_>, sent: Sent, appended: &Result<Appended, Error>) {
        match appended {
            Ok(appended) if append.batch.is_some() => {
                self.acknowledged.note(name, appended.tail, sent);
                if !appended.duplicate {
                    self.usage.count_append();
                }
            }
            Err(Error::Engine(_) | Error::Uncertain) => self.health.suspect(),
            _ => {}
        }
    }

    /// Creates a channel, also as a [fork](Self::fork), in memory or on the remote engine.
    pub(crate) async fn create_anywhere(&self, name: &str, creation: &Creation) -> Result<Created, Error> {
        let Some(remote) = self.remote() else {
            return match &creation.fork {
                Some(fork) => self.fork(name, creation, fork).await,
                None => self.locally(|| self.create(name, creation)).await,
            };
        };
        self.check_name(name)?;
        if creation.content.len() > self.limits.append {
            return Err(Error::TooLarge { limit: self.limits.append });
        }
        let sent = self.acknowledged.send(self.now());
        let created = remote.create(name, creation).await?;
        if created.fresh && !creation.content.is_empty() {
            self.acknowledged.note(name, created.tail, sent);
        }
        if created.fresh && created.tail.position() > 0 && creation.fork.is_none() {
            self.usage.count_append();
        }
        Ok(created)
    }

    /// [`delete`](Self::delete), wherever the log is.
    pub(crate) async fn delete_anywhere(&self, name: &str) -> Result<Offset, Error> {
        let Some(remote) = self.remote() else { return self.locally(|| self.delete(name)).await };
        self.check_name(name)?;
        let tail = remote.delete(name).await?;
        self.acknowledged.forget(name);
        Ok(tail)
    }

    /// [`peek`](Self::peek), wherever the log is.
    pub(crate) async fn peek_anywhere(&self, name: &str) -> Result<Option<Peek>, Error> {
        let Some(remote) = self.remote() else { return self.peek(name).map_err(Error::Gone) };
        match remote.read(name, Place::From(Start::Tail), 0, Touch::No).await? {
            Found::Nothing(_) => Ok(None),
            Found::Page(Page { content_type, tail, closed, kept: history, lifetime, .. }) => {
                Ok(Some(Peek { content_type, tail, closed, history, lifetime }))
            }
        }
    }

    /// [`read`](Self::read), wherever the log is: all that was acknowledged before.
    pub(crate) async fn read_anywhere(&self, name: &str, start: Start, extent: Extent) -> Result<Reading, Error> {
        let Some(remote) = self.remote() else { return self.read(name, start, extent).map_err(Error::Gone) };
        match read_remote(&**remote, name, start, extent).await? {
            Found::Page(page) => Ok(self.reading(page, extent)),
            Found::Nothing(origin) => Ok(Reading::unknown(origin)),
        }
    }

    /// Reads a channel for a live read, which waits if there is nothing to read. With a remote engine, the channel is followed
    /// from then on, and the cached entries are read. If the channel has an idle lifetime, the engine is read, at most
    /// once in an eighth of it, because that renews it.
    pub(crate) async fn read_and_follow(&self, name: &str, start: Start, extent: Extent) -> Result<Reading, Error> {
        if self.remote().is_none() {
            return self.read(name, start, extent).map_err(Error::Gone);
        }
        let followed = self.followed(name).await;
        let renews = followed.as_ref().is_ok_and(|entry| self.claim_renewal(entry));
        let cached = match self.read(name, start, extent) {
            // The cached entries are correct even when the engine is unreachable, but they may be incomplete.
            Ok(mut reading) if followed.is_ok() || !reading.is_empty() || reading.closed => {
                reading.up_to_date &= followed.is_ok() || reading.closed;
                if !renews {
                    return Ok(reading);
                }
                Some(reading)
            }
            Err(gone) if !self.faults.keep(Rule::Ahead) => return Err(Error::Gone(gone)),
            _ => None,
        };
        let entry = match followed {
            // The engine is reachable, but could not read this channel. Read it again, to return the cause.
            Err(Error::Unreachable) if !self.health.is_lost() => {
                self.read_anywhere(name, start, extent).await?;
                return Err(Error::Unreachable);
            }
            followed => followed?,
        };
        let read = self.read_anywhere(name, start, extent).await;
        let mut state = entry.lock();
        let differs = match &read {
            // The client may have read more on another node, and the cached entries may have gone further meanwhile.
            Ok(reading) if reading.up_to_date => match &state.log {
                Some(kept) => reading.content_type.is_none() || kept.log.has(reading.next) == Some(false),
                None => true,
            },
            // The channel has expired, or its log was replaced.
            Err(Error::Gone(_)) => cached.is_some(),
            _ => false,
        };
        let tender = if differs { self.doubt(&entry, &mut state) } else { Woken::nobody() };
        drop(state);
        tender.wake();
        match (read, cached) {
            // Renewing the lifetime failed, which is no reason to refuse what is cached.
            (Err(error), Some(reading)) if !matches!(error, Error::Gone(_)) => Ok(reading),
            (read, _) => read,
        }
    }

    /// [`read_or_wait`](Self::read_or_wait), wherever the log is.
    pub(crate) async fn read_or_wait_anywhere(
        self: &Arc<Self>,
        name: &str,
        start: Start,
        extent: Extent,
    ) -> Result<Begun, Error> {
        if self.remote().is_none() {
            return self.read_or_wait(name, start, extent).map_err(Error::Gone);
        }
        let reading = self.read_and_follow(name, start, extent).await?;
        if !reading.is_empty() || reading.closed {
            return Ok(Begun::Read(reading));
        }
        Ok(Begun::Wait(Wait::new(self.clone(), name, reading.next, reading.content_type.is_some())))
    }

    /// Makes a change in memory and wakes the waiters. The first poll makes the change, unless more expired channels
    /// must be evicted first than one slice allows.
    ///
    /// # Cancel safety
    ///
    /// If this future is dropped after the change was made, it wakes the remaining waiters.
    async fn locally<T>(&self, change: impl FnMut() -> Result<(T, Woken), Error>) -> Result<T, Error> {
        let (done, mut woken) = self.retried(self.now(), change).await?;
        sliced(|slice| self.finish(&mut woken, slice)).await;
        Ok(done)
    }

    /// Runs `attempt`, and again in later polls while a limit refuses it and channels are due at `now`.
    ///
    /// This ends if each refused attempt evicts channels: see [`with_room`](Self::with_room).
    pub(super) async fn retried<T>(&self, now: u64, mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        loop {
            match attempt() {
                Err(Error::Full(_)) if self.may_have_room(now) => yield_now().await,
                done => return done,
            }
        }
    }

    /// Continues the work that follows a change: wakes waiters, settles forks and evicts transient channels. Returns
    /// whether all of it is done.
    pub(crate) fn finish(&self, woken: &mut Woken, slice: &mut Slice) -> bool {
        woken.wake_some(slice) && self.settle(slice) && self.evict_surplus(slice)
    }

    /// What an engine has read, on this registry's clock.
    pub(super) fn reading(&self, page: Page, extent: Extent) -> Reading {
        let until = page.left.map(|left| ends_in(left, self.now()));
        let mut reading = page.into_reading(extent, self.usage.responses());
        reading.until = until;
        reading
    }
}

/// Reads from the remote engine. If a read of whole characters ends within one, reads more: the rest is in the next appends.
pub(super) async fn read_remote(remote: &dyn Remote, name: &str, start: Start, extent: Extent) -> Result<Found, Error> {
    let mut limit = extent.bytes;
    loop {
        match remote.read(name, Place::From(start), limit, Touch::Yes).await? {
            Found::Page(page) if extent.whole_characters && page.lacks_character_end() => {
                let size = page.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
                limit = limit.max(size).saturating_mul(2);
            }
            found => return Ok(found),
        }
    }
}
