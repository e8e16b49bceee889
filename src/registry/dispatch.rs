//! The operations on channels. Each goes to the log in memory, or to the remote engine that keeps it.
//!
//! A name without a suffix dispatches. `*_local` acts on this process alone.

use std::sync::Arc;

use super::{
    Append, Appended, Created, Creation, Peek, ReadOrWait, Registry, Wait,
    acknowledged::Sent,
    authority::{Authority, Local},
    lifetime::ends_in,
    slice::{Slice, sliced, yield_now},
    waiters::WakeList,
};
use crate::{
    Error,
    engine::{Extent, MediaType, Offset, Page, ReadFrom, Reading, Remote, RemoteRead, Start, Touch},
    fault_injection::Invariant,
};

impl Registry {
    /// Appends, closes, or both in one step.
    pub(crate) async fn append(&self, name: &str, mut append: Append<'_>) -> Result<Appended, Error> {
        let remote = match &self.authority {
            Authority::Local(local) => return self.locally(|| self.append_local(*local, name, &mut append)).await,
            Authority::Remote(remote) => remote,
        };
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

    /// Creates a channel, also as a fork.
    pub(crate) async fn create(&self, name: &str, creation: &Creation) -> Result<Created, Error> {
        let remote = match (&self.authority, &creation.fork) {
            (Authority::Local(local), Some(fork)) => return self.fork_local(*local, name, creation, fork).await,
            (Authority::Local(local), None) => {
                return self.locally(|| self.create_local(*local, name, creation)).await;
            }
            (Authority::Remote(remote), _) => remote,
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

    /// Deletes a channel. Returns where it ended.
    pub(crate) async fn delete(&self, name: &str) -> Result<Offset, Error> {
        let remote = match &self.authority {
            Authority::Local(local) => return self.locally(|| self.delete_local(*local, name)).await,
            Authority::Remote(remote) => remote,
        };
        self.check_name(name)?;
        let tail = remote.delete(name).await?;
        self.acknowledged.forget(name);
        Ok(tail)
    }

    /// Returns what a channel is, without renewing its lifetime. `None` if it does not exist.
    pub(crate) async fn peek(&self, name: &str) -> Result<Option<Peek>, Error> {
        let Some(remote) = self.remote() else { return self.peek_local(name).map_err(Error::Gone) };
        match remote.read(name, ReadFrom::From(Start::Tail), 0, Touch::No).await? {
            RemoteRead::Nothing(_) => Ok(None),
            RemoteRead::Page(Page { content_type, tail, closed, kept: history, lifetime, .. }) => {
                Ok(Some(Peek { content_type, tail, closed, history, lifetime }))
            }
        }
    }

    /// Reads a channel. A remote engine returns all that was acknowledged before, whatever is cached here.
    pub(crate) async fn read(&self, name: &str, start: Start, extent: Extent) -> Result<Reading, Error> {
        let Some(remote) = self.remote() else { return self.read_local(name, start, extent).map_err(Error::Gone) };
        match read_remote(&**remote, name, start, extent).await? {
            RemoteRead::Page(page) => Ok(self.reading(page, extent)),
            RemoteRead::Nothing(origin) => Ok(Reading::unknown(origin)),
        }
    }

    /// Reads a channel for a live read, which waits if there is nothing to read. With a remote engine, the channel is followed
    /// from then on, and the cached entries are read. If the channel has an idle lifetime, the engine is read, at most
    /// once in an eighth of it, because that renews it.
    pub(crate) async fn read_and_follow(&self, name: &str, start: Start, extent: Extent) -> Result<Reading, Error> {
        if self.remote().is_none() {
            return self.read_local(name, start, extent).map_err(Error::Gone);
        }
        let followed = self.followed(name).await;
        let renews = followed.as_ref().is_ok_and(|entry| self.claim_renewal(entry));
        let cached = match self.read_local(name, start, extent) {
            // The cached entries are correct even when the engine is unreachable, but they may be incomplete.
            Ok(mut reading) if followed.is_ok() || !reading.is_empty() || reading.closed => {
                reading.up_to_date &= followed.is_ok() || reading.closed;
                if !renews {
                    return Ok(reading);
                }
                Some(reading)
            }
            Err(gone) if !self.faults.holds(Invariant::Ahead) => return Err(Error::Gone(gone)),
            _ => None,
        };
        let entry = match followed {
            // The engine is reachable, but could not read this channel. Read it again, to return the cause.
            Err(Error::Unreachable) if !self.health.is_lost() => {
                self.read(name, start, extent).await?;
                return Err(Error::Unreachable);
            }
            followed => followed?,
        };
        let read = self.read(name, start, extent).await;
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
        let tender = if differs { self.mark_stale(&entry, &mut state) } else { WakeList::nobody() };
        drop(state);
        tender.wake();
        match (read, cached) {
            // Renewing the lifetime failed, which is no reason to refuse what is cached.
            (Err(error), Some(reading)) if !matches!(error, Error::Gone(_)) => Ok(reading),
            (read, _) => read,
        }
    }

    /// Reads a channel, and begins a wait if there is nothing to read.
    pub(crate) async fn read_or_wait(
        self: &Arc<Self>,
        name: &str,
        start: Start,
        extent: Extent,
    ) -> Result<ReadOrWait, Error> {
        if self.remote().is_none() {
            return self.read_or_wait_local(name, start, extent).map_err(Error::Gone);
        }
        let reading = self.read_and_follow(name, start, extent).await?;
        if !reading.is_empty() || reading.closed {
            return Ok(ReadOrWait::Read(reading));
        }
        Ok(ReadOrWait::Wait(Wait::new(self.clone(), name, reading.next, reading.content_type.is_some())))
    }

    /// Makes a change at once, if the logs are in memory. Returns `None` if the change must be awaited: a remote engine keeps the
    /// logs, or more expired channels must be evicted than one slice allows.
    pub(crate) fn at_once<T>(&self, change: impl FnOnce(Local) -> Result<T, Error>) -> Option<Result<T, Error>> {
        let (local, now) = (self.local()?, self.now());
        match change(local) {
            Err(Error::Full(_)) if self.may_have_room(now) => None,
            made => Some(made),
        }
    }

    /// Begins a read at once, if the logs are in memory.
    pub(crate) fn begin_read_at_once(
        self: &Arc<Self>,
        name: &str,
        start: Start,
        extent: Extent,
        live: LiveRead,
    ) -> Option<Result<ReadOrWait, Error>> {
        self.local()?;
        let begun = match live {
            LiveRead::Wait => self.read_or_wait_local(name, start, extent),
            LiveRead::Follow | LiveRead::None => self.read_local(name, start, extent).map(ReadOrWait::Read),
        };
        Some(begun.map_err(Error::Gone))
    }

    /// Begins a read.
    pub(crate) async fn begin_read(
        self: &Arc<Self>,
        name: &str,
        start: Start,
        extent: Extent,
        live: LiveRead,
    ) -> Result<ReadOrWait, Error> {
        match live {
            LiveRead::Wait => self.read_or_wait(name, start, extent).await,
            LiveRead::Follow => self.read_and_follow(name, start, extent).await.map(ReadOrWait::Read),
            LiveRead::None => self.read(name, start, extent).await.map(ReadOrWait::Read),
        }
    }

    /// Returns the content type of a channel, or the one that its first append gives it. `None` if a remote engine would have to be
    /// asked.
    pub(crate) fn content_type_now(&self, name: &str) -> Option<MediaType> {
        self.local()?;
        let known = self.peek_local(name).ok().flatten();
        Some(known.map_or_else(|| self.json.clone(), |known| known.content_type))
    }

    /// Returns the offset of `start`, if that is the tail and the logs are in memory.
    pub(crate) fn resolve_now(&self, name: &str, start: Start) -> Start {
        match start {
            Start::Tail if self.local().is_some() => Start::After(self.tail(name)),
            start => start,
        }
    }

    /// Makes a change in memory and wakes the waiters. The first poll makes the change, unless more expired channels
    /// must be evicted first than one slice allows.
    ///
    /// # Cancel safety
    ///
    /// If this future is dropped after the change was made, it wakes the remaining waiters.
    async fn locally<T>(&self, change: impl FnMut() -> Result<(T, WakeList), Error>) -> Result<T, Error> {
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
    pub(crate) fn finish(&self, woken: &mut WakeList, slice: &mut Slice) -> bool {
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

/// How a read goes on if there is nothing to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LiveRead {
    /// It returns nothing.
    None,
    /// It returns nothing, and the caller waits: an event stream.
    Follow,
    /// It becomes a wait.
    Wait,
}

/// Reads from the remote engine. If a read of whole characters ends within one, reads more: the rest is in the next appends.
pub(super) async fn read_remote(
    remote: &dyn Remote,
    name: &str,
    start: Start,
    extent: Extent,
) -> Result<RemoteRead, Error> {
    let mut limit = extent.bytes;
    loop {
        match remote.read(name, ReadFrom::From(start), limit, Touch::Yes).await? {
            RemoteRead::Page(page) if extent.whole_characters && page.lacks_character_end() => {
                let size = page.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
                limit = limit.max(size).saturating_mul(2);
            }
            found => return Ok(found),
        }
    }
}
