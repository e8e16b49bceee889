//! What this process holds of a log that is kept elsewhere.
//!
//! What is published is a hint, and the log is the truth. So: *subscribe, confirmed; then read the log; then take in what came
//! meanwhile*; and what does not follow the last append that is held is never guessed at, but read from the log.

use std::sync::Arc;

use super::{
    Lifetime, Registry,
    entry::{ChannelState, Entry, StoredLog},
    follow::ReplicaStage,
    lifetime::ends_in,
    millis,
    waiters::WakeList,
};
use crate::{
    Error,
    engine::{Log, Notice, ReadFrom, Remote, RemoteRead, Start, Touch},
    fault_injection::Invariant,
};

/// How much of a log is held, at most. Who wants more has it from the engine.
const APPENDS: usize = 256;
const BYTES: usize = 256 * 1024;

/// How many notices are kept while the log is read; if there are more, it is read again.
const PENDING: usize = 256;

/// What a notice comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoticeEffect {
    Changed,
    Known,
    /// It does not follow what is held.
    Doubtful,
}

impl Registry {
    /// Applies a notice to the cached entries of a channel. Returns the tasks to wake.
    pub(super) fn apply_notice(&self, name: &str, notice: Notice) -> WakeList {
        let Some(entry) = self.map.find(name) else { return WakeList::nobody() };
        let mut state = entry.lock();
        let Some(follow) = &mut state.replica else { return WakeList::nobody() };
        match follow.stage {
            ReplicaStage::Lost => return WakeList::nobody(),
            ReplicaStage::Reading => {
                // One too many, and the oldest makes room: the newest then shows that something is missing.
                if follow.pending.len() == PENDING {
                    follow.pending.pop_front();
                }
                follow.pending.push_back(notice);
                return WakeList::nobody();
            }
            ReplicaStage::Live => {}
        }
        match self.apply(&mut state, notice) {
            NoticeEffect::Known => WakeList::nobody(),
            NoticeEffect::Doubtful => self.mark_stale(&entry, &mut state),
            NoticeEffect::Changed => state.waiters.take(),
        }
    }

    fn apply(&self, state: &mut ChannelState, notice: Notice) -> NoticeEffect {
        let now = self.now();
        let Some(kept) = state.log.as_mut() else { return NoticeEffect::Doubtful };
        let tail = kept.log.tail();
        match notice {
            Notice::Appended { at, .. } if at.position() <= tail.position() => match kept.log.has(at) {
                // So old that it is not held: heard late.
                None | Some(true) => NoticeEffect::Known,
                Some(false) => NoticeEffect::Doubtful,
            },
            Notice::Appended { at, before, messages, data: Some(data), closed } => {
                let next = at.position() == tail.position() + 1 && before == tail.fingerprint();
                if (!next && self.faults.holds(Invariant::Continuity)) || kept.log.is_closed() {
                    return NoticeEffect::Doubtful;
                }
                let cost = kept.log.cost();
                kept.log.follow(at, messages, data, now);
                if closed {
                    kept.log.close(now);
                }
                self.shorten(kept, cost);
                NoticeEffect::Changed
            }
            Notice::Closed { tail: at } if at == tail => {
                let known = kept.log.is_closed();
                kept.log.close(now);
                if known { NoticeEffect::Known } else { NoticeEffect::Changed }
            }
            // A deletion too: something else stands for the tail from then on.
            Notice::Appended { .. } | Notice::Closed { .. } | Notice::Deleted | Notice::Made => NoticeEffect::Doubtful,
            Notice::Probe(_) | Notice::Broadcast(_) => NoticeEffect::Known,
        }
    }

    /// Completes what is held of a channel from its log, and makes it live.
    pub(super) async fn refresh(&self, remote: &dyn Remote, entry: &Arc<Entry>) {
        match &mut entry.lock().replica {
            Some(follow) if !follow.busy => follow.busy = true,
            _ => return,
        }
        let mut behind = false;
        loop {
            let (tail, touch) = {
                let mut state = entry.lock();
                if state.replica.is_none() {
                    return;
                }
                (state.known_tail(), self.touch(&mut state))
            };
            let place = tail.filter(|_| !behind).map_or(ReadFrom::Window, |tail| ReadFrom::From(Start::After(tail)));
            let mut read = remote.read(entry.name(), place, BYTES, touch).await;
            if matches!(read, Err(Error::Gone(_))) {
                // It is not the log that is held, or has gone on by more than is kept.
                read = match remote.read(entry.name(), ReadFrom::Window, BYTES, touch).await {
                    // It was deleted, and its name is taken still.
                    Err(Error::Gone(gone)) => Ok(RemoteRead::Nothing(gone.tail())),
                    read => read,
                };
            }
            // So far behind that the rest is not read to be let go of at once: who needs it asks the engine.
            let ends = read.as_ref().is_ok_and(RemoteRead::is_up_to_date);
            let strange = behind && !ends;
            behind = !ends;
            match read {
                Ok(found) if !strange => {
                    let (done, woken) = self.put(entry, found);
                    woken.contain().spread().await;
                    if done {
                        return;
                    }
                }
                _ => {
                    let joining = entry.lock().replica.as_mut().map(|follow| follow.lose());
                    return joining.unwrap_or_else(WakeList::nobody).contain().spread().await;
                }
            }
        }
    }

    /// Adds what was read to the cached entries. Returns whether these are complete, and the tasks to wake.
    fn put(&self, entry: &Arc<Entry>, found: RemoteRead) -> (bool, WakeList) {
        let now = self.now();
        let mut state = entry.lock();
        let complete = found.is_up_to_date();
        let changed = self.replace(entry, &mut state, found, now);
        let Some(follow) = &mut state.replica else { return (true, WakeList::nobody()) };
        follow.note_check(now);
        // Before the waiters are taken. A lifetime that was not known when they parked is known now.
        let tender = self.queue_renewal(entry, &mut state);
        let (live, woken) = self.go_live(&mut state, changed, complete);
        (live, woken.and(tender))
    }

    /// Applies the notices that were received while the log was read, and makes the channel live if its cached entries
    /// are complete. Returns whether it is live, and the tasks to wake.
    pub(super) fn go_live(&self, state: &mut ChannelState, mut changed: bool, mut complete: bool) -> (bool, WakeList) {
        let Some(follow) = &mut state.replica else { return (true, WakeList::nobody()) };
        if complete {
            let pending = std::mem::take(&mut follow.pending);
            for notice in pending.into_iter().filter(|_| self.faults.holds(Invariant::Drain)) {
                match self.apply(state, notice) {
                    NoticeEffect::Known => {}
                    NoticeEffect::Changed => changed = true,
                    NoticeEffect::Doubtful => complete = false,
                }
            }
        }
        let mut woken = if changed { state.waiters.take() } else { WakeList::nobody() };
        if let Some(follow) = state.replica.as_mut().filter(|_| complete) {
            follow.stage = ReplicaStage::Live;
            follow.busy = false;
            follow.known = true;
            let (unsure, joining) = (std::mem::take(&mut follow.stale), follow.joining.take());
            if unsure {
                woken = woken.and(state.waiters.take());
            }
            woken = woken.and(joining);
        }
        (complete, woken)
    }

    /// Whether that changed anything.
    fn replace(&self, entry: &Arc<Entry>, state: &mut ChannelState, found: RemoteRead, now: u64) -> bool {
        let page = match found {
            RemoteRead::Page(page) => page,
            RemoteRead::Nothing(absent_tail) => {
                let moved = state.remote_absent_tail() != absent_tail;
                if let Some(follow) = &mut state.replica {
                    follow.absent_tail = absent_tail;
                    follow.idle = None;
                }
                return self.drop_log(entry, state) || moved;
            }
        };
        let until = page.left.map(|left| ends_in(left, now));
        let found = state.log.is_none().then_some(now);
        if let Some(follow) = &mut state.replica {
            follow.found = found.or(follow.found);
            follow.absent_tail = page.absent_tail;
            follow.idle = match page.lifetime {
                Lifetime::Idle(window) => Some(millis(window)),
                Lifetime::Unbounded | Lifetime::Until(_) => None,
            };
        }
        if let Some(kept) = state.log.as_mut().filter(|kept| kept.log.tail() == page.after) {
            let changed = !page.entries.is_empty() || (page.closed && !kept.log.is_closed());
            let cost = kept.log.cost();
            kept.set_lifetime(kept.rare().lifetime, until);
            kept.log.extend(page, now);
            self.shorten(kept, cost);
            return changed;
        }
        self.drop_log(entry, state);
        // An idle channel's end is the engine's to decide: others may read it elsewhere.
        let lifetime = if until.is_some() { page.lifetime } else { Lifetime::Unbounded };
        let log = Log::replica(page, now, self.usage.responses());
        self.usage.count_channel();
        let mut kept = StoredLog::new(log, false, now);
        kept.set_lifetime(lifetime, until);
        kept.explicit = true;
        self.shorten(&mut kept, 0);
        state.log = Some(kept);
        true
    }

    /// Keeps what is held of a log within bounds, and counts it. The newest append is kept for who waits for it, until that is too
    /// much as well.
    fn shorten(&self, kept: &mut StoredLog, before: usize) {
        let (held, most) = (self.usage.history(), self.limits.history);
        let appends = match held {
            // Nor more than is kept elsewhere.
            _ if held <= most => APPENDS.min(self.retention.appends.max(1)),
            _ if held / 2 <= most => 1,
            _ => 0,
        };
        kept.log.shorten(appends, BYTES.min(self.retention.bytes));
        self.usage.adjust_history(before, kept.log.cost());
    }

    /// Returns whether a request that is sent now keeps the channel alive: if it has a waiter, or a live read has begun and
    /// waits for the channel to become live. Not if this process has renewed the lifetime within its last eighth. Counts
    /// it as renewed if so.
    pub(super) fn touch(&self, state: &mut ChannelState) -> Touch {
        let (now, waited_on) = (self.now(), state.waiters.len() > 0);
        match &mut state.replica {
            Some(follow) if (waited_on || follow.joins() > 0) && follow.is_renewal_due(now) => {
                follow.renewed = Some(now);
                Touch::Yes
            }
            _ => Touch::No,
        }
    }
}
