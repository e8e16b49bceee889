//! Waiting for a channel to go on.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    Registry,
    alarm::{Alarm, NEVER},
    entry::Entry,
    follow::Stage,
    waiters::{Key, Standing, Woken},
};
use crate::{
    Error, Limit,
    engine::{Answer, Found, Gone, Offset, Place, Reading, Reason, Start, Touch},
    faults::Rule,
    sync::Mutex,
};

/// A wait for whatever comes after an offset. Who polls it says until when.
///
/// Dropping it takes it off the list of waiters in constant time, and takes the channel out of the
/// map if that was all that kept it there.
pub(crate) struct Wait {
    registry: Arc<Registry>,
    entry: Arc<Entry>,
    after: Offset,
    key: Option<Key>,
    /// Whether somebody had made the channel when the wait began.
    existed: bool,
    /// Counted among all waits.
    admitted: bool,
    /// Off the list, of a channel that is not to vanish with this wait.
    left: bool,
    /// When its time is over, or the channel's.
    alarm: Option<Alarm>,
    /// What the engine that keeps the log is asked, if what is held here does not tell.
    question: Option<Box<Question>>,
}

/// Never locked: it makes a wait `Sync` without making the engine's futures so.
struct Question(Mutex<Answer<'static, Found>>);

/// How a wait ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// There are messages, or the end of the stream, or both.
    Read(Reading),
    /// The time is over and nothing came; the place is where the wait began.
    TimedOut(Reading),
    /// All waits are being ended, and nothing came before.
    Released(Reading),
    /// The history has moved on past the place.
    Gone(Gone),
    /// The channel was deleted.
    Deleted,
    /// It did not begin: there are too many already ([`Error::Full`]), or nothing waits any more ([`Error::ShutDown`]).
    Refused(Error),
}

impl Wait {
    /// A wait for what comes after a place that a reading gave; `existed` says whether that found a channel.
    pub(crate) fn new(registry: Arc<Registry>, name: &str, after: Offset, existed: bool) -> Self {
        Self::on(registry.map.enter(name), registry, after, existed)
    }

    /// The same, for who has the entry at hand. It may have left the map meanwhile.
    pub(super) fn on(entry: Arc<Entry>, registry: Arc<Registry>, after: Offset, existed: bool) -> Self {
        let (key, alarm, question) = (None, None, None);
        Self { registry, entry, after, key, existed, admitted: false, left: false, alarm, question }
    }

    /// Whether somebody had made the channel when it began.
    pub(crate) fn existed(&self) -> bool {
        self.existed
    }

    /// Goes on after what a poll of it has found.
    pub(crate) fn go_on(&mut self, reading: &Reading) {
        self.after = reading.next;
        self.existed = true;
    }

    pub(crate) fn after(&self) -> Offset {
        self.after
    }

    /// Takes a place among all waits before the first poll does: for who cannot refuse any more by then.
    pub(crate) fn admit(&mut self) -> Result<(), Error> {
        let parked = self.entry.lock().waiters.len();
        self.registry.admit(parked)?;
        self.admitted = true;
        Ok(())
    }

    /// Takes a place whatever the limits: they are for strangers, and this is the application itself.
    pub(crate) fn admit_always(&mut self) {
        self.registry.usage.count_wait();
        self.admitted = true;
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Looks at the channel, and parks if there is nothing, `until` a moment on the registry's clock, of which the task is woken
    /// too. `limit` is as for [`Registry::read`]. A wait that has timed out can be polled again.
    ///
    /// The clock is read first, and the log is looked at *before* the time is: what was appended in the microsecond before that was
    /// over is an answer, and a time-out never skips it.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its timer, if it parks until a moment that comes.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, until: u64, limit: usize) -> Poll<Ended> {
        if let Some(answered) = self.poll_question(cx) {
            return Poll::Ready(answered);
        }
        // Declared before the lock is taken, so dropped after it is released: see `Waiters`.
        let _replaced;
        let now = self.registry.now();
        loop {
            let mut state = self.entry.lock();
            if state.vacated {
                // Nobody was parked on it, this wait included: nothing is missed by moving on.
                drop(state);
                // What is kept elsewhere is only not followed here any more.
                if self.existed && self.registry.remote().is_none() {
                    return Poll::Ready(Ended::Deleted);
                }
                self.key = None;
                self.entry = self.registry.map.enter(self.entry.name());
                continue;
            }
            if self.registry.remote().is_some() {
                // Out of reach, it is not heard of; but then it times out at its own place.
                let _ = self.registry.follow(&self.entry, &mut state);
            }
            let reading = match self.registry.look(&self.entry, &mut state, Start::After(self.after), limit, now) {
                Ok(reading) if reading.is_empty() && !reading.closed => reading,
                Ok(reading) => {
                    // Its log keeps the channel in the map, and who takes that away looks after the rest: once the list
                    // has been taken too, this wait need not take the lock again to leave.
                    self.left = self.key.is_none_or(|key| state.waiters.standing(key) == Standing::Woken);
                    return Poll::Ready(Ended::Read(reading));
                }
                Err(gone) if self.registry.remote().is_none() || !self.registry.faults.keep(Rule::Ahead) => {
                    return Poll::Ready(self.ended_by(gone));
                }
                Err(_) => {
                    // What is held here does not tell. If that is all there was to hear, the engine will.
                    let live = state.follow.as_ref().is_some_and(|follow| follow.stage == Stage::Live);
                    if live && self.question.is_none() {
                        drop(state);
                        self.ask(limit);
                        if let Some(answered) = self.poll_question(cx) {
                            return Poll::Ready(answered);
                        }
                        continue;
                    }
                    // If not, it is told when what there is has been read.
                    if let Some(follow) = state.follow.as_mut().filter(|_| !live) {
                        follow.unsure = true;
                    }
                    Reading::unknown(self.after)
                }
            };
            let standing = self.key.map(|key| state.waiters.standing(key));
            let released = match standing {
                Some(Standing::Released) => true,
                // By a creation, say, and nothing came of it. Perhaps this one had been told to leave before that: its slot is
                // gone, and it must not park again.
                Some(Standing::Woken) => self.registry.is_closing(),
                Some(Standing::Parked) | None => self.admitted && self.registry.is_closed(),
            };
            if released {
                return Poll::Ready(Ended::Released(reading));
            }
            if until <= now {
                return Poll::Ready(Ended::TimedOut(reading));
            }
            if !self.admitted {
                if let Err(error) = self.registry.admit(state.waiters.len()) {
                    return Poll::Ready(Ended::Refused(error));
                }
                self.admitted = true;
            }
            match self.key.filter(|_| standing == Some(Standing::Parked)) {
                Some(key) => _replaced = state.waiters.refresh(key, cx.waker()),
                None => {
                    self.key = Some(state.waiters.park(cx.waker().clone()));
                    self.left = false;
                }
            }
            drop(state);
            self.sleep(cx, until.min(reading.until.unwrap_or(NEVER)));
            return Poll::Pending;
        }
    }

    /// Has the task woken at a moment too.
    fn sleep(&mut self, cx: &mut Context<'_>, at: u64) {
        let registry = &self.registry;
        match at {
            NEVER => registry.alarms.clear(&mut self.alarm),
            at => registry.alarms.set(&mut self.alarm, (at, registry.moment(at)), cx.waker()),
        }
    }

    /// Asks the engine what there is.
    fn ask(&mut self, limit: usize) {
        let Some(remote) = self.registry.remote().cloned() else { return };
        let (name, place) = (self.entry.name().to_owned(), Place::From(Start::After(self.after)));
        let answer = async move { remote.read(&name, place, limit, Touch::Yes).await };
        self.question = Some(Box::new(Question(Mutex::new(Box::pin(answer)))));
    }

    /// What the engine has answered, if that ends the wait.
    fn poll_question(&mut self, cx: &mut Context<'_>) -> Option<Ended> {
        let question = self.question.as_mut()?;
        let Poll::Ready(answer) = question.0.get_mut().as_mut().poll(cx) else { return None };
        self.question = None;
        match answer {
            Ok(Found::Page(page)) => {
                let reading = self.registry.reading(page);
                if !reading.is_empty() || reading.closed {
                    return Some(Ended::Read(reading));
                }
            }
            Err(Error::Gone(gone)) => return Some(self.ended_by(gone)),
            Ok(Found::Nothing(_)) | Err(_) => {}
        }
        // The log ends where this wait began, and what is held here does not: it is to be read.
        let mut state = self.entry.lock();
        self.registry.doubt(&self.entry, &mut state);
        None
    }

    /// Takes it off the list, and the channel out of the map if that was all that kept it there.
    fn leave(&mut self) {
        let mut state = self.entry.lock();
        let waker = self.key.take().and_then(|key| state.waiters.remove(key));
        if let (Some(kept), Some(_)) = (&mut state.log, &waker) {
            // It was read until now.
            kept.touched = self.registry.now();
        }
        let vacant = !state.vacated && state.is_vacant();
        // Not while waits are ended a few at a time: who is woken then is ended too.
        let woken = if self.registry.is_closing() { Woken::nobody() } else { state.waiters.regroup() };
        drop(state);
        drop(waker);
        woken.wake();
        if vacant {
            self.registry.map.vacate(&self.entry);
        }
    }

    /// A log that was there when the wait began and is not any more was deleted. One that is kept elsewhere may have been lost,
    /// or rolled back.
    fn ended_by(&self, gone: Gone) -> Ended {
        match gone.reason() {
            Reason::Unknown | Reason::Deleted if self.existed => Ended::Deleted,
            Reason::OtherLog if self.existed && self.registry.remote().is_none() => Ended::Deleted,
            _ => Ended::Gone(gone),
        }
    }
}

impl Registry {
    /// Counts one more wait, on a channel where so many are parked.
    fn admit(&self, parked: usize) -> Result<(), Error> {
        if self.is_closing() {
            return Err(Error::ShutDown);
        }
        if parked >= self.limits.waits_per_channel {
            return Err(Error::Full(Limit::WaitsPerChannel));
        }
        self.usage.admit_wait(&self.limits).map_err(Error::Full)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.registry.alarms.clear(&mut self.alarm);
        if !self.left {
            self.leave();
        }
        if self.admitted && self.registry.usage.leave_wait() {
            self.registry.nobody_waits();
        }
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("channel", &self.entry.name()).field("after", &self.after).finish_non_exhaustive()
    }
}
