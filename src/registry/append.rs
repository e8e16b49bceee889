//! Appending to a channel, and closing it.

use std::sync::Arc;

use super::{
    Append, Appended, Local, Registry,
    entry::{ChannelState, Entry, StoredLog},
    slice::Slice,
    waiters::WakeList,
};
use crate::{
    Error,
    engine::{Batch, Log, ProducerCheck, Producers, Reason, Stamp, same_type},
};

impl Registry {
    /// Appends, closes, or both in one step. Returns the waiters to wake. If the append is refused, its batch stays in
    /// `append`, so that the caller can retry.
    pub(crate) fn append_local(
        &self,
        _: Local,
        name: &str,
        append: &mut Append<'_>,
    ) -> Result<(Appended, WakeList), Error> {
        self.check_name(name)?;
        if append.batch.as_ref().is_some_and(|batch| batch.size() > self.limits.append) {
            return Err(Error::TooLarge { limit: self.limits.append });
        }
        self.change(name, |entry, state, now| {
            let kept = self.log(entry, state, append, now)?;
            let appended = self.append_to(entry, kept, append, now)?;
            kept.touched = now;
            if appended.duplicate {
                return Ok((appended, WakeList::nobody()));
            }
            self.queue(kept, entry, now);
            Ok((appended, state.waiters.take()))
        })
    }

    /// In the order of the protocol: closed, type, producer, sequence (Durable Streams, section 5.2). What is
    /// refused changes nothing, and leaves the batch to be tried again.
    fn append_to(
        &self,
        entry: &Arc<Entry>,
        kept: &mut StoredLog,
        append: &mut Append<'_>,
        now: u64,
    ) -> Result<Appended, Error> {
        if kept.log.is_closed() {
            return repeated(&kept.log, append);
        }
        // A channel that appends create may have existed before, as may one of a name that has ended.
        let may_be_lost = || append.create.is_some() || self.absent_tails.is_remembered(self.map.hash(entry.name()));
        if let Some(batch) = &append.batch {
            let typed = append.content_type.is_none_or(|said| same_type(said, kept.log.content_type()));
            if !typed || !kept.log.takes(batch) {
                return Err(Error::ContentType { holds: kept.log.content_type().to_string() });
            }
        }
        if let Some(stamp) = append.stamp {
            if let ProducerCheck::Duplicate { epoch, seq } = admit(&kept.log, stamp, may_be_lost)? {
                let (tail, accepted) = (kept.log.tail(), Some((epoch, seq)));
                return Ok(Appended { tail, closed: false, accepted, duplicate: true });
            }
        }
        if let (Some(seq), Some(writers)) = (append.seq, kept.log.producers()) {
            writers.check_seq(seq)?;
        }
        let transient = kept.transient && append.broadcast.is_none();
        if transient {
            self.keep_transient(kept, entry, now)?;
        }
        if let Err(error) = self.add(kept, &mut append.batch, now) {
            if transient {
                self.unkeep_transient(kept, entry, now);
            }
            return Err(error);
        }
        if let Some(seq) = append.seq {
            kept.log.producers_mut().note_seq(seq);
        }
        if let Some(stamp) = append.stamp {
            let before = kept.log.cost();
            kept.log.producers_mut().note(stamp, self.limits.producers);
            self.usage.adjust_history(before, kept.log.cost());
        }
        if append.close {
            kept.log.close(now);
            if append.stamp.is_some() {
                kept.log.producers_mut().note_close(append.stamp);
            }
        }
        let accepted = append.stamp.map(|stamp| (stamp.epoch, stamp.seq));
        Ok(Appended { tail: kept.log.tail(), closed: append.close, accepted, duplicate: false })
    }

    /// Adds a batch to a log, if there is one and within the limit on all history.
    ///
    /// It is moved, not shared: a text that nobody shares yet needs no count of who does.
    pub(super) fn add(&self, kept: &mut StoredLog, batch: &mut Option<Batch>, now: u64) -> Result<(), Error> {
        let Some(adds) = batch else { return Ok(()) };
        self.expire(kept, now);
        let weight = kept.log.weigh(adds, &self.retention);
        self.usage.admit_history(&self.limits, weight.adds, weight.frees).map_err(Error::Full)?;
        if let Some(batch) = batch.take() {
            kept.log.append(batch, &weight, now);
            self.usage.count_append();
        }
        Ok(())
    }

    /// Runs `change` under the channel's lock, with the current time. Returns its result and the waiters to wake.
    ///
    /// If a limit is reached, this evicts expired channels for up to one slice, and retries. If that was not enough and
    /// more channels [are due](Self::may_have_room), the caller retries in another poll.
    pub(super) fn change<T>(
        &self,
        name: &str,
        mut change: impl FnMut(&Arc<Entry>, &mut ChannelState, u64) -> Result<(T, WakeList), Error>,
    ) -> Result<(T, WakeList), Error> {
        let now = self.now();
        self.step(now);
        let changed = self.with_room(now, || {
            self.edit(name, |entry, state| {
                // One whose lifetime is over is none.
                let fresh = self.living(entry, state, now).is_none();
                let changed = change(entry, state, now);
                if changed.is_err() && fresh {
                    // The change that created the log was refused. No reader has seen the log, so this numbers no ending.
                    self.take_out(state);
                }
                changed
            })
        });
        // What retention has dropped may be held by responses.
        self.make_room_to_read(0, None);
        changed
    }

    /// Runs `attempt`. While a limit refuses it, evicts expired channels for up to one slice, and runs it again.
    ///
    /// If it is refused in the end, and more channels [are due](Self::may_have_room), the caller retries in another poll.
    pub(super) fn with_room<T>(&self, now: u64, mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        let (mut done, mut slice) = (attempt(), Slice::new());
        while let Err(Error::Full(lacking)) = done {
            if !self.make_room(lacking, now, &mut slice) {
                break;
            }
            done = attempt();
        }
        done
    }

    /// Returns the log of a channel. Creates it if there is none and the append has a type to create it with.
    fn log<'a>(
        &self,
        entry: &Arc<Entry>,
        state: &'a mut ChannelState,
        append: &Append<'_>,
        now: u64,
    ) -> Result<&'a mut StoredLog, Error> {
        if self.living(entry, state, now).is_none() {
            let content_type = append.create.ok_or(Error::Unknown)?;
            if append.broadcast.is_some() && !state.is_waited_on() {
                // The waiters for which the broadcast would create the channel have left.
                return Err(Error::Unknown);
            }
            self.make(entry, state, append.broadcast.is_some(), now, content_type.clone())?;
        }
        let kept = state.log.as_mut().expect("created above if there was none");
        if kept.is_tombstoned() {
            return Err(Error::Gone(kept.log.gone(Reason::Deleted)));
        }
        Ok(kept)
    }
}

/// An append to a stream that has ended is no append, but it may be the one that ended it, sent again.
fn repeated(log: &Log, append: &Append<'_>) -> Result<Appended, Error> {
    let done = |accepted, duplicate| Ok(Appended { tail: log.tail(), closed: true, accepted, duplicate });
    match append.stamp {
        None if append.close && append.batch.is_none() => done(None, true),
        Some(stamp) if log.producers().is_some_and(|writers| writers.closed_by(stamp)) => {
            done(Some((stamp.epoch, stamp.seq)), true)
        }
        // A producer that was fenced off is told that first: it has to stop, not to find another stream.
        Some(stamp) => match admit(log, stamp, || false) {
            Err(fenced @ Error::Fenced { .. }) => Err(fenced),
            _ => Err(Error::Closed),
        },
        None => Err(Error::Closed),
    }
}

fn admit(log: &Log, stamp: &Stamp, may_be_lost: impl FnOnce() -> bool) -> Result<ProducerCheck, Error> {
    match log.producers() {
        Some(writers) => writers.admit(stamp, may_be_lost),
        None => Producers::default().admit(stamp, may_be_lost),
    }
}
