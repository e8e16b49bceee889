//! Waiting for a channel to go on.

use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{
    Registry,
    dispatch::read_remote,
    entry::{ChannelState, Entry},
    follow::ReplicaStage,
    timer::{NEVER, Timer},
    waiters::{Key, WaiterStatus, WakeList, discard},
};
use crate::{
    Error, Limit,
    engine::{Extent, Gone, Offset, Reading, Reason, RemoteFuture, RemoteRead, Start},
    fault_injection::Invariant,
    sync::{Mutex, assert_unlocked},
};

pin_project! {
    /// A wait for messages after an offset. The deadline is an argument of each poll.
    ///
    /// Dropping it removes its waker from the list of waiters in constant time, and the channel from the map if nothing else
    /// keeps it there.
    pub(crate) struct Wait {
        waiter: Waiter,
        #[pin]
        timer: Timer,
    }
}

/// A wait without its timer.
struct Waiter {
    registry: Arc<Registry>,
    entry: Arc<Entry>,
    after: Offset,
    /// The place on the list of waiters.
    key: Option<Key>,
    /// Whether the channel existed when the wait began.
    existed: bool,
    admission: WaitAdmission,
    /// Off the list, of a channel that is not to vanish with this wait.
    left: bool,
    /// A pending read from the remote engine. Started if the offset could not be resolved against the cached entries.
    question: Option<Box<RemoteQuery>>,
}

/// Which counts include a wait: the count of all waits ([`Usage`](super::Usage)), and that of its channel (the entry's
/// list of waiters).
///
/// The channel's count changes under the channel's lock. A counted wait keeps its entry in the map, so it always leaves
/// the count of the entry that counted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitAdmission {
    /// Neither count.
    None,
    /// Both counts, until the wait is answered: a poll or a subscription.
    Once,
    /// Both counts, until the wait is dropped: an event stream.
    Lasting,
    /// Only the count of all waits, because the wait was answered. It leaves that count when it is dropped and not
    /// earlier: the last wait to leave wakes tasks, which must not happen under the lock.
    Answered,
}

/// Never locked: it makes a wait `Sync` without making the engine's futures so.
struct RemoteQuery(Mutex<RemoteFuture<'static, RemoteRead>>);

/// What a poll does once the channel's lock is released.
enum NextStep {
    End(WaitEnd),
    Sleep {
        /// On the registry's clock.
        until: u64,
        /// Whether the same task was parked already.
        again: bool,
    },
    /// Clones the waker, which is foreign code, and checks again.
    CloneWaker,
    /// Looks the channel up again: this entry has left the map.
    Reenter,
    /// Reads from the remote engine.
    Ask,
}

/// How a wait ended.
#[derive(Debug)]
pub(crate) enum WaitEnd {
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
    /// Creates a wait for messages after an offset that a reading returned. `existed` is whether that reading found a
    /// channel.
    pub(crate) fn new(registry: Arc<Registry>, name: &str, after: Offset, existed: bool) -> Self {
        Self::on(registry.enter(name), registry, after, existed)
    }

    /// Creates a wait on an entry that the caller has looked up. The entry may have left the map meanwhile.
    pub(super) fn on(entry: Arc<Entry>, registry: Arc<Registry>, after: Offset, existed: bool) -> Self {
        let (key, admission, left, question) = (None, WaitAdmission::None, false, None);
        let waiter = Waiter { registry, entry, after, key, existed, admission, left, question };
        Self { waiter, timer: Timer::new() }
    }

    /// Whether the channel existed when the wait began.
    pub(crate) fn existed(&self) -> bool {
        self.waiter.existed
    }

    /// Goes on after what a poll of it has found.
    pub(crate) fn go_on(self: Pin<&mut Self>, reading: &Reading) {
        let waiter = self.project().waiter;
        waiter.after = reading.next;
        waiter.existed = true;
    }

    /// Returns the offset after which the wait continues. While the channel does not exist, a poll moves it to the
    /// current absent tail.
    pub(crate) fn after(&self) -> Offset {
        self.waiter.after
    }

    /// Returns the offset from which to resume when this wait is dropped. A wait that is parked on a channel that does not
    /// exist has missed nothing, so this is the current absent tail, which stays valid longer than the one it parked with.
    pub(crate) fn resume_at(&self) -> Offset {
        let Waiter { registry, entry, after, .. } = &self.waiter;
        let state = entry.lock();
        let parked = self.waiter.key.is_some_and(|key| state.waiters.standing(key) == WaiterStatus::Parked);
        let absent = after.position() == 0 && state.log.is_none() && self.waiter.question.is_none();
        match (registry.remote(), parked && absent) {
            (None, true) => registry.absent_tails.tail(registry.map.hash(entry.name())),
            (Some(_), true) if state.replica.as_ref().is_some_and(|follow| follow.stage == ReplicaStage::Live) => {
                state.remote_absent_tail()
            }
            _ => *after,
        }
    }

    /// Counts this wait against the limits for as long as it lives, also between its answers: for an event stream, which can
    /// no longer be refused when it is polled.
    pub(crate) fn admit(&mut self) -> Result<(), Error> {
        let Waiter { registry, entry, admission, .. } = &mut self.waiter;
        *admission = registry.admitted(entry, |state| registry.admit(state, WaitAdmission::Lasting))?;
        Ok(())
    }

    /// Counts this wait without checking the limits, which bound HTTP clients only. For a subscription of the
    /// application.
    pub(crate) fn admit_always(&mut self) {
        let Waiter { registry, entry, admission, .. } = &mut self.waiter;
        *admission = registry.admitted(entry, |state| {
            registry.usage.count_wait();
            state.waiters.count_admitted();
            WaitAdmission::Once
        });
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.waiter.registry
    }

    /// Reads the channel, and parks if there is nothing to read. The task is woken when the channel changes, and at the
    /// deadline `until`, which is on the registry's clock. `extent` is as for [`Registry::read`]. A wait that has timed
    /// out can be polled again.
    ///
    /// This reads the clock first, then the log, and checks the deadline last. So a message that is appended just
    /// before the deadline is returned, and a time-out never skips it.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its timer, if it parks with a deadline.
    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, until: u64, extent: Extent) -> Poll<WaitEnd> {
        self.poll_by(false, cx, until, extent)
    }

    /// Like [`poll`](Self::poll), for a caller that knows whether the same task polled last. Then the timer need not be
    /// reset.
    pub(crate) fn poll_by(
        self: Pin<&mut Self>,
        same_task: bool,
        cx: &mut Context<'_>,
        until: u64,
        extent: Extent,
    ) -> Poll<WaitEnd> {
        assert_unlocked();
        let this = self.project();
        let waiter = this.waiter;
        if let Some(ended) = waiter.poll_question(extent, cx) {
            return Poll::Ready(ended);
        }
        let now = waiter.registry.now();
        // Cloned before the lock is taken, if this poll is likely to park: a first poll usually does, one after a
        // wake-up seldom.
        let mut waker = waiter.key.is_none().then(|| cx.waker().clone());
        loop {
            match waiter.check(cx.waker(), &mut waker, (until, now), extent) {
                NextStep::End(ended) => return Poll::Ready(ended),
                NextStep::Sleep { until: NEVER, .. } => this.timer.clear(),
                NextStep::Sleep { until, again } => {
                    this.timer.set(waiter.registry.moment(until), again || same_task, cx)
                }
                NextStep::CloneWaker => {
                    waker = Some(cx.waker().clone());
                    continue;
                }
                // With a remote engine, a vacated entry means only that this process has stopped following the channel.
                NextStep::Reenter if waiter.existed && waiter.registry.remote().is_none() => {
                    return Poll::Ready(WaitEnd::Deleted);
                }
                NextStep::Reenter => {
                    waiter.reenter();
                    waker.get_or_insert_with(|| cx.waker().clone());
                    continue;
                }
                NextStep::Ask => {
                    waiter.ask(extent);
                    if let Some(ended) = waiter.poll_question(extent, cx) {
                        return Poll::Ready(ended);
                    }
                    continue;
                }
            }
            return Poll::Pending;
        }
    }
}

impl Waiter {
    /// Does everything that needs the channel's lock: reads, and parks if there is nothing to read. `waker` is a clone
    /// of the task's waker, if the caller has made one.
    fn check(&mut self, task: &Waker, waker: &mut Option<Waker>, (until, now): (u64, u64), extent: Extent) -> NextStep {
        // Declared before the lock is taken, so dropped after it is released.
        let (_replaced, _tender, _renewer);
        let mut state = self.entry.lock();
        if state.vacated {
            return NextStep::Reenter;
        }
        if self.registry.remote().is_some() {
            // If the engine is unreachable, the channel is not followed, and the wait times out at its own offset.
            _tender = self.registry.follow(&self.entry, &mut state);
        }
        let reading = match self.registry.read_entry(&self.entry, &mut state, Start::After(self.after), extent, now) {
            Ok(reading) if reading.is_empty() && !reading.closed => reading,
            Ok(reading) => {
                // The log keeps the entry in the map, and whatever removes the log vacates the entry. If the list has
                // been taken too, this wait need not take the lock again to leave.
                self.left = self.admission != WaitAdmission::Lasting
                    && self.key.is_none_or(|key| state.waiters.standing(key) == WaiterStatus::Woken);
                if self.left {
                    self.admission.leave_channel(&mut state);
                }
                return NextStep::End(WaitEnd::Read(reading));
            }
            Err(gone) if self.registry.remote().is_none() || !self.registry.faults.holds(Invariant::Ahead) => {
                return NextStep::End(self.ended_by(gone));
            }
            Err(_) => {
                // The offset cannot be resolved against the cached entries. If these are complete, read from the
                // engine.
                let live = state.replica.as_ref().is_some_and(|follow| follow.stage == ReplicaStage::Live);
                if live && self.question.is_none() {
                    return NextStep::Ask;
                }
                // Otherwise the cached entries are being read again; wake all waiters after that.
                if let Some(follow) = state.replica.as_mut().filter(|_| !live) {
                    follow.stale = true;
                }
                Reading::unknown(self.after)
            }
        };
        if reading.content_type.is_none() {
            // An absent tail is accepted for a limited time only. This one has just been accepted: move on to the
            // current one.
            self.after = reading.next;
        }
        let standing = self.key.map(|key| state.waiters.standing(key));
        let released = match standing {
            Some(WaiterStatus::Released) => true,
            // Woken without a message, for example by a creation. The wait may have been released before that, in a
            // slot that no longer exists, so it must not park again while the registry is closing.
            Some(WaiterStatus::Woken) => self.registry.is_closing(),
            Some(WaiterStatus::Parked) | None => self.admission != WaitAdmission::None && self.registry.is_closed(),
        };
        if released {
            return NextStep::End(WaitEnd::Released(reading));
        }
        if until <= now {
            return NextStep::End(WaitEnd::TimedOut(reading));
        }
        if self.admission == WaitAdmission::None {
            match self.registry.admit(&mut state, WaitAdmission::Once) {
                Ok(admission) => self.admission = admission,
                Err(error) => return NextStep::End(WaitEnd::Refused(error)),
            }
        }
        let until = until.min(reading.until.unwrap_or(NEVER));
        let parked = self.key.filter(|_| standing == Some(WaiterStatus::Parked));
        if parked.is_some_and(|key| state.waiters.wakes(key, task)) {
            return NextStep::Sleep { until, again: true };
        }
        let Some(waker) = waker.take() else { return NextStep::CloneWaker };
        match parked {
            Some(key) => _replaced = state.waiters.refresh(key, waker),
            None => {
                (self.key, self.left) = (Some(state.waiters.park(waker)), false);
            }
        }
        if self.registry.remote().is_some() {
            _renewer = self.registry.queue_renewal(&self.entry, &mut state);
        }
        NextStep::Sleep { until, again: false }
    }

    /// Continues with the entry that is in the map now. A vacated entry has no parked and no counted waits, so this
    /// wait was neither, and misses no message.
    fn reenter(&mut self) {
        self.key = None;
        self.entry = self.registry.enter(self.entry.name());
    }

    /// Starts a read from the remote engine.
    fn ask(&mut self, extent: Extent) {
        let Some(remote) = self.registry.remote().cloned() else { return };
        let (name, start) = (self.entry.name().to_owned(), Start::After(self.after));
        let answer = async move { read_remote(&*remote, &name, start, extent).await };
        self.question = Some(Box::new(RemoteQuery(Mutex::new(Box::pin(answer)))));
    }

    /// Polls the read from the remote engine. Returns how the wait has ended, if it has.
    fn poll_question(&mut self, extent: Extent, cx: &mut Context<'_>) -> Option<WaitEnd> {
        let question = self.question.as_mut()?;
        let Poll::Ready(answer) = question.0.get_mut().as_mut().poll(cx) else { return None };
        self.question = None;
        match answer {
            Ok(RemoteRead::Page(page)) => {
                let reading = self.registry.reading(page, extent);
                if !reading.is_empty() || reading.closed {
                    return Some(WaitEnd::Read(reading));
                }
            }
            Err(Error::Gone(gone)) => return Some(self.ended_by(gone)),
            // The engine accepted the offset as an absent tail, and returned the current one.
            Ok(RemoteRead::Nothing(absent_tail)) => self.after = absent_tail,
            Err(_) => {}
        }
        // The log ends at the offset of this wait, and the cached entries do not: read them again.
        let mut state = self.entry.lock();
        let tender = self.registry.mark_stale(&self.entry, &mut state);
        drop(state);
        tender.wake();
        None
    }

    /// Removes the waker from the list of waiters, and the entry from the map if it is vacant.
    fn leave(&mut self) {
        let mut state = self.entry.lock();
        let waker = self.key.and_then(|key| state.waiters.remove(key));
        self.key = None;
        self.admission.leave_channel(&mut state);
        if let (Some(kept), Some(_)) = (&mut state.log, &waker) {
            // A parked wait counts as a reader until it leaves.
            kept.touched = self.registry.now();
        }
        let vacant = !state.vacated && state.is_vacant();
        // Not while `close_over` ends waits a few at a time: a woken wait would end too.
        let woken = if self.registry.is_closing() { WakeList::nobody() } else { state.waiters.regroup() };
        drop(state);
        // This runs in a drop, which must get as far as to count the wait out.
        discard(waker);
        woken.contain().wake();
        if vacant {
            self.registry.map.vacate(&self.entry);
        }
    }

    /// A log that was there when the wait began and is not any more was deleted. One that is kept elsewhere may have been lost,
    /// or rolled back.
    fn ended_by(&self, gone: Gone) -> WaitEnd {
        match gone.reason() {
            Reason::Unknown | Reason::Deleted if self.existed => WaitEnd::Deleted,
            Reason::OtherLog if self.existed && self.registry.remote().is_none() => WaitEnd::Deleted,
            _ => WaitEnd::Gone(gone),
        }
    }
}

impl Registry {
    /// Counts one more wait, or refuses it.
    fn admit(&self, state: &mut ChannelState, admission: WaitAdmission) -> Result<WaitAdmission, Error> {
        if self.is_closing() {
            return Err(Error::ShutDown);
        }
        if state.waiters.admitted() >= self.limits.waits_per_channel {
            return Err(Error::Full(Limit::WaitsPerChannel));
        }
        self.usage.admit_wait(&self.limits).map_err(Error::Full)?;
        state.waiters.count_admitted();
        Ok(admission)
    }

    /// Runs `admit` under the lock of an entry that is in the map. If `entry` has left the map, replaces it by the
    /// current one.
    fn admitted<T>(&self, entry: &mut Arc<Entry>, admit: impl FnOnce(&mut ChannelState) -> T) -> T {
        loop {
            let mut state = entry.lock();
            if !state.vacated {
                return admit(&mut state);
            }
            drop(state);
            let current = self.enter(entry.name());
            *entry = current;
        }
    }
}

impl WaitAdmission {
    /// Leaves the channel's count, if that includes the wait.
    fn leave_channel(&mut self, state: &mut ChannelState) {
        if let Self::Once | Self::Lasting = self {
            state.waiters.leave_admitted();
            *self = Self::Answered;
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if !self.left {
            self.leave();
        }
        if self.admission != WaitAdmission::None && self.registry.usage.leave_wait() {
            self.registry.nobody_waits();
        }
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Waiter { entry, after, .. } = &self.waiter;
        f.debug_struct("Wait").field("channel", &entry.name()).field("after", after).finish_non_exhaustive()
    }
}
