//! Whether what is held of many channels is all there is: compared with their logs in few requests, and read only if it is not.

use std::{iter::repeat, sync::Arc};

use super::{
    Registry,
    entry::{Entry, State},
    follow::Stage,
    hold::touch,
    waiters::Woken,
};
use crate::{
    Error,
    engine::{Found, Held, Place, Remote, Seen, Start},
};

impl Registry {
    /// Makes channels live of which all there is is held, and returns the others: they are to be read. After a lost connection
    /// those are few.
    pub(super) async fn confirm(&self, remote: &dyn Remote, entries: Vec<Arc<Entry>>) -> Vec<Arc<Entry>> {
        let mut to_read = Vec::new();
        let begun = |entry: &Arc<Entry>| {
            let mut state = entry.lock();
            let follow = state.follow.as_mut().filter(|follow| follow.stage == Stage::Reading && !follow.busy);
            follow.map(|follow| follow.busy = true).is_some()
        };
        let entries: Vec<_> = entries.into_iter().filter(begun).collect();
        let held: Vec<_> = entries.iter().map(|entry| held(entry.name(), &entry.lock())).collect();
        let seen = remote.compare(&held).await.unwrap_or_default();
        let seen = seen.into_iter().chain(repeat(Seen::Other));
        for ((entry, held), seen) in entries.iter().zip(&held).zip(seen) {
            let Some((live, woken)) = self.confirm_one(entry, held, seen) else { continue };
            woken.contain().spread().await;
            if !live {
                to_read.push(entry.clone());
            }
        }
        to_read
    }

    /// Makes a channel live if its log matches the cached entries that were compared, and these have not changed since.
    /// Returns whether it is live, and the tasks to wake; `None` if the channel need not be confirmed any more.
    fn confirm_one(&self, entry: &Entry, held: &Held<'_>, seen: Seen) -> Option<(bool, Woken)> {
        let mut state = entry.lock();
        let (tail, now) = (self::held(entry.name(), &state).tail, self.now());
        let follow = state.follow.as_mut().filter(|follow| follow.stage == Stage::Reading)?;
        follow.note_check(now);
        // From here on nothing else reads it, or this does.
        follow.busy = false;
        if seen == Seen::Same && tail == held.tail {
            return Some(self.go_live(&mut state, false, true));
        }
        Some((false, Woken::nobody()))
    }

    /// Compares what is held of channels with their logs: they have gone on, or back, without a word if somebody has meddled with
    /// them. Meanwhile they are live.
    pub(super) async fn compare(&self, remote: &dyn Remote, entries: Vec<Arc<Entry>>) {
        // Where that keeps a channel alive, it is read.
        let (idle, entries): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| {
            let state = entry.lock();
            state.waiters.len() > 0 && state.follow.as_ref().is_some_and(|follow| follow.idle.is_some())
        });
        if !entries.is_empty() {
            let held: Vec<_> = entries.iter().map(|entry| held(entry.name(), &entry.lock())).collect();
            for (entry, seen) in entries.iter().zip(remote.compare(&held).await.unwrap_or_default()) {
                let mut state = entry.lock();
                let same = match seen {
                    Seen::Same => true,
                    // What was heard meanwhile may have gone beyond it.
                    Seen::At(tail) => state.log.as_ref().is_some_and(|kept| kept.log.has(tail) != Some(false)),
                    Seen::Other => false,
                };
                if !same {
                    let tender = self.doubt(entry, &mut state);
                    drop(state);
                    tender.wake();
                }
            }
        }
        for entry in &idle {
            self.compare_one(remote, entry).await;
        }
    }

    async fn compare_one(&self, remote: &dyn Remote, entry: &Arc<Entry>) {
        let touch = touch(&entry.lock());
        let found = match remote.read(entry.name(), Place::From(Start::Tail), 0, touch).await {
            Err(Error::Gone(gone)) => Found::Nothing(gone.tail()),
            Err(_) => return,
            Ok(found) => found,
        };
        let mut state = entry.lock();
        let same = match (&found, state.log.as_ref()) {
            (Found::Page(page), Some(kept)) => {
                // What was heard meanwhile may have gone beyond it.
                kept.log.has(page.tail) != Some(false) && (kept.log.is_closed() || !page.closed)
            }
            (Found::Nothing(absent_tail), None) => *absent_tail == state.remote_absent_tail(),
            _ => false,
        };
        if !same {
            let tender = self.doubt(entry, &mut state);
            drop(state);
            tender.wake();
        }
    }
}

fn held<'a>(name: &'a str, state: &State) -> Held<'a> {
    let (made, closed) = (state.log.is_some(), state.log.as_ref().is_some_and(|kept| kept.log.is_closed()));
    let tail = state.known_tail().unwrap_or_else(|| state.remote_absent_tail());
    Held { name, tail, made, closed, touch: touch(state) }
}
