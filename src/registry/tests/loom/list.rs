//! The list of wakers by itself, and what would be lost with a simpler one.

use ::loom::thread;
use std::{
    sync::Arc,
    task::{Poll, Waker},
};

use super::{ASLEEP, Task, outcomes};
use crate::{
    registry::waiters::{Key, Waiters},
    sync::Mutex,
};

trait List: Default + Send + 'static {
    type Key: Send + 'static;

    fn park(&mut self, waker: Waker) -> Self::Key;
    fn remove(&mut self, key: Self::Key);
    fn wake_all(&mut self);
}

impl List for Waiters {
    type Key = Key;

    fn park(&mut self, waker: Waker) -> Key {
        Waiters::park(self, waker)
    }

    fn remove(&mut self, key: Key) {
        drop(Waiters::remove(self, key));
    }

    fn wake_all(&mut self) {
        self.take().wake();
    }
}

/// A place on this list is a slot and no more; with `rounds`, a key of an earlier round is no key.
#[derive(Default)]
struct Slots<const ROUNDS: bool> {
    wakers: Vec<Option<Waker>>,
    round: usize,
}

impl<const ROUNDS: bool> List for Slots<ROUNDS> {
    type Key = (usize, usize);

    fn park(&mut self, waker: Waker) -> Self::Key {
        let slot = self.wakers.iter().position(Option::is_none).unwrap_or(self.wakers.len());
        self.wakers.resize(self.wakers.len().max(slot + 1), None);
        self.wakers[slot] = Some(waker);
        (self.round, slot)
    }

    fn remove(&mut self, (round, slot): Self::Key) {
        if !ROUNDS || round == self.round {
            self.wakers[slot] = None;
        }
    }

    fn wake_all(&mut self) {
        self.round += 1;
        self.wakers.iter_mut().filter_map(Option::take).for_each(Waker::wake);
    }
}

/// One leaves while everybody is woken and another comes, perhaps to the same slot.
fn a_slot_is_used_again<L: List>() -> &'static str {
    let list = Arc::new(Mutex::new(L::default()));
    let [leaving, coming] = [(); 2].map(|()| Task::new(|_| Poll::<()>::Pending));
    let key = list.lock().park(leaving.waker());
    let leaver = thread::spawn({
        let list = list.clone();
        move || list.lock().remove(key)
    });
    list.lock().wake_all();
    list.lock().park(coming.waker());
    list.lock().wake_all();
    leaver.join().unwrap();
    match (coming.was_woken(), leaving.was_woken()) {
        (true, true) => "both woken",
        (true, false) => "one had left",
        (false, _) => ASLEEP,
    }
}

#[test]
fn a_key_of_an_earlier_round_removes_nobody() {
    assert_eq!(outcomes(a_slot_is_used_again::<Waiters>), ["both woken", "one had left"]);
    assert_eq!(outcomes(a_slot_is_used_again::<Slots<true>>), ["both woken", "one had left"]);
    assert_eq!(outcomes(a_slot_is_used_again::<Slots<false>>), [ASLEEP, "both woken", "one had left"]);
}
