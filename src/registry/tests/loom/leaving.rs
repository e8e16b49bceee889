//! The last waiter leaves, and with it the channel's entry in the map, just when somebody needs that.

use ::loom::thread;
use std::{sync::Arc, task::Poll};

use super::{ASLEEP, NAME, Registry, Task, WaitEnd, admitted_wait, outcomes, publish, registry, waiting};
use crate::{
    engine::Start,
    registry::{entry::Entry, map::Map},
    sync::RwLock,
};

/// Where the channel is looked for now is where it was, or not.
fn kept(registry: &Registry, entry: &Arc<Entry>) -> &'static str {
    match registry.map.find(NAME) {
        Some(found) if Arc::ptr_eq(&found, entry) => "in the same entry",
        Some(_) => "in a new entry",
        None => "in no entry",
    }
}

#[test]
fn a_message_is_kept_as_the_last_waiter_leaves() {
    let seen = outcomes(|| {
        let registry = registry();
        let mut leaving = waiting(&registry);
        assert!(leaving.run().is_pending());
        let entry = registry.map.find(NAME).unwrap();
        let leaver = thread::spawn(move || drop(leaving));
        publish(&registry);
        leaver.join().unwrap();
        match registry.read_local(NAME, Start::Earliest, 0.into()) {
            Ok(reading) if reading.messages == 1 => kept(&registry, &entry),
            _ => "lost",
        }
    });
    assert_eq!(seen, ["in a new entry", "in the same entry"]);
}

#[test]
fn a_wait_that_begins_as_the_last_one_leaves_is_woken() {
    let seen = outcomes(|| {
        let registry = registry();
        let mut leaving = waiting(&registry);
        assert!(leaving.run().is_pending());
        let entry = registry.map.find(NAME).unwrap();
        let leaver = thread::spawn(move || drop(leaving));
        let mut coming = waiting(&registry);
        let parked = coming.run();
        leaver.join().unwrap();
        let where_to = kept(&registry, &entry);
        publish(&registry);
        match coming.resume(parked) {
            Poll::Ready(WaitEnd::Read(_)) => where_to,
            Poll::Ready(_) => "ended otherwise",
            Poll::Pending => ASLEEP,
        }
    });
    assert_eq!(seen, ["in a new entry", "in the same entry"]);
}

/// An event stream is admitted before it parks: on the entry that the last waiter takes out of the map, or on a new one.
#[test]
fn a_wait_that_is_admitted_while_the_last_one_leaves_counts_in_the_entry_on_which_it_waits() {
    let seen = outcomes(|| {
        let registry = registry();
        let mut leaving = waiting(&registry);
        assert!(leaving.run().is_pending());
        let entry = registry.map.find(NAME).unwrap();
        let leaver = thread::spawn(move || drop(leaving));
        let coming = admitted_wait(&registry);
        leaver.join().unwrap();
        let admitted = registry.map.find(NAME).map_or(0, |entry| entry.lock().waiters.admitted());
        let where_to = kept(&registry, &entry);
        drop(coming);
        match (admitted, registry.names().next()) {
            (1, None) => where_to,
            (1, Some(_)) => "left behind",
            _ => "not counted",
        }
    });
    assert_eq!(seen, ["in a new entry", "in the same entry"]);
}

/// Who has found the entry already holds what leaves the map.
#[test]
fn a_wait_that_holds_the_entry_moves_to_the_new_one() {
    let seen = outcomes(|| {
        let registry = registry();
        let [mut leaving, mut coming] = [waiting(&registry), waiting(&registry)];
        assert!(leaving.run().is_pending());
        let entry = registry.map.find(NAME).unwrap();
        let leaver = thread::spawn(move || drop(leaving));
        let waiter = thread::spawn(move || (coming.run(), coming));
        publish(&registry);
        leaver.join().unwrap();
        let (ended, mut coming) = waiter.join().unwrap();
        match coming.resume(ended) {
            Poll::Ready(WaitEnd::Read(_)) => kept(&registry, &entry),
            Poll::Ready(_) => "ended otherwise",
            Poll::Pending => ASLEEP,
        }
    });
    assert_eq!(seen, ["in a new entry", "in the same entry"]);
}

#[test]
fn of_two_who_leave_together_one_takes_the_entry_along() {
    let seen = outcomes(|| {
        let registry = registry();
        let [mut one, mut other] = [waiting(&registry), waiting(&registry)];
        assert!(one.run().is_pending() && other.run().is_pending());
        let leaver = thread::spawn(move || drop(one));
        drop(other);
        leaver.join().unwrap();
        if registry.names().next().is_none() && registry.usage().waits() == 0 { "nothing stays" } else { "left behind" }
    });
    assert_eq!(seen, ["nothing stays"]);
}

/// The map, as far as one name needs it.
trait Directory: Send + Sync + 'static {
    fn new() -> Self;
    fn find(&self) -> Option<Arc<Entry>>;
    fn enter(&self) -> Arc<Entry>;
    fn vacate(&self, entry: &Arc<Entry>);
}

impl Directory for Map {
    fn new() -> Self {
        Map::new()
    }

    fn find(&self) -> Option<Arc<Entry>> {
        self.find(NAME)
    }

    fn enter(&self) -> Arc<Entry> {
        self.enter(NAME, |_| 0)
    }

    fn vacate(&self, entry: &Arc<Entry>) {
        self.vacate(entry);
    }
}

/// Looks again under both locks before it takes an entry out, or not; marks what it has taken out, or not.
struct Shelf<const LOOKS_AGAIN: bool, const MARKS: bool>(RwLock<Option<Arc<Entry>>>);

impl<const LOOKS_AGAIN: bool, const MARKS: bool> Directory for Shelf<LOOKS_AGAIN, MARKS> {
    fn new() -> Self {
        Self(RwLock::new(None))
    }

    fn find(&self) -> Option<Arc<Entry>> {
        self.0.read().clone()
    }

    fn enter(&self) -> Arc<Entry> {
        self.0.write().get_or_insert_with(|| Arc::new(Entry::new(NAME, 0))).clone()
    }

    fn vacate(&self, entry: &Arc<Entry>) {
        let mut shelf = self.0.write();
        let mut state = entry.lock();
        if state.vacated || LOOKS_AGAIN && !state.is_vacant() {
            return;
        }
        state.vacated = MARKS;
        *shelf = None;
    }
}

/// One leaves, another comes; then whoever is found by the name is woken.
fn one_leaves_as_another_comes<D: Directory>() -> &'static str {
    let map = Arc::new(D::new());
    let [leaving, coming] = [(); 2].map(|()| Task::new(|_| Poll::<()>::Pending));
    let entry = map.enter();
    let key = entry.lock().waiters.park(leaving.waker());
    let leaver = thread::spawn({
        let (map, entry) = (map.clone(), entry.clone());
        move || {
            let mut state = entry.lock();
            let _waker = state.waiters.remove(key);
            let vacant = state.is_vacant();
            drop(state);
            if vacant {
                map.vacate(&entry);
            }
        }
    });
    let moved = loop {
        let found = map.enter();
        let mut state = found.lock();
        if !state.vacated {
            state.waiters.park(coming.waker());
            break !Arc::ptr_eq(&found, &entry);
        }
    };
    leaver.join().unwrap();
    if let Some(found) = map.find() {
        let woken = found.lock().waiters.take();
        woken.wake();
    }
    match coming.was_woken() {
        true if moved => "in a new entry",
        true => "in the same entry",
        false => ASLEEP,
    }
}

#[test]
fn an_entry_leaves_the_map_only_if_it_is_vacant_still() {
    const KEPT: [&str; 2] = ["in a new entry", "in the same entry"];
    const LOST: [&str; 3] = [ASLEEP, KEPT[0], KEPT[1]];

    assert_eq!(outcomes(one_leaves_as_another_comes::<Map>), KEPT);
    assert_eq!(outcomes(one_leaves_as_another_comes::<Shelf<true, true>>), KEPT);
    assert_eq!(outcomes(one_leaves_as_another_comes::<Shelf<false, true>>), LOST, "not looked at again");
    assert_eq!(outcomes(one_leaves_as_another_comes::<Shelf<true, false>>), LOST, "not marked");
}
