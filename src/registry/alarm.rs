//! Waking waits when their time is over.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Wake, Waker},
};
use tokio::time::{Instant, Sleep, sleep_until};

use super::waiters::{Key, Standing, Waiters};
use crate::sync::Mutex;

/// A moment that does not come.
pub(crate) const NEVER: u64 = u64::MAX;

/// By the moment, so that waits that began together meet at different ones.
const SHARDS: u64 = if cfg!(comet_loom) { 1 } else { 16 };

/// Who is to be woken when: the timers of all waits.
///
/// A timer of tokio's is 112 bytes, and takes the lock of its driver to be set and again to be dropped. Waits end at moments
/// that many share, so there is one timer for each moment, which wakes all who share it; no task polls it. It belongs to the
/// runtime of whoever came first. When that shuts down, its timers go off: who is woken too early by that comes again, on a
/// runtime that lives.
pub(super) struct Alarms {
    shards: [Mutex<Shard>; SHARDS as usize],
}

#[derive(Default)]
struct Shard {
    bells: BTreeMap<u64, Bell>,
    /// Counts the bells, so that none is taken for an earlier one of the same moment.
    hung: u64,
}

/// Goes off at one moment, for all who sleep until then.
struct Bell {
    sleepers: Waiters,
    timer: Pin<Box<Sleep>>,
}

/// A place among those who sleep until a moment.
#[derive(Clone, Copy)]
pub(super) struct Alarm {
    at: u64,
    key: Key,
}

impl Alarms {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { shards: std::array::from_fn(|_| Mutex::new(Shard::default())) })
    }

    /// Sets an alarm for a moment, in milliseconds on the registry's clock and on tokio's. One that is set for an earlier moment
    /// stays: who puts it off again and again, as an event stream does with each event, pays for that once, and is woken once too often.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its timer, if nobody else sleeps until then.
    pub(super) fn set(self: &Arc<Self>, alarm: &mut Option<Alarm>, (at, moment): (u64, Instant), waker: &Waker) {
        // Declared before the lock is taken, so dropped after it is released: see `Waiters`.
        let _replaced;
        if let Some(set) = alarm.filter(|set| set.at <= at) {
            let mut shard = self.shard(set.at).lock();
            let sleepers = shard.bells.get_mut(&set.at).map(|bell| &mut bell.sleepers);
            if let Some(sleepers) = sleepers.filter(|sleepers| sleepers.standing(set.key) == Standing::Parked) {
                _replaced = sleepers.refresh(set.key, waker);
                return;
            }
        }
        self.clear(alarm);
        let mut shard = self.shard(at).lock();
        if !shard.bells.contains_key(&at) {
            let mut timer = Box::pin(sleep_until(moment));
            let ringer = Waker::from(Arc::new(Ringer { alarms: self.clone(), at }));
            if timer.as_mut().poll(&mut Context::from_waker(&ringer)).is_ready() {
                drop(shard);
                return waker.wake_by_ref();
            }
            shard.hung += 1;
            let sleepers = Waiters::of_round(shard.hung);
            shard.bells.insert(at, Bell { sleepers, timer });
        }
        let key = shard.bells.get_mut(&at).map(|bell| bell.sleepers.park(waker.clone()));
        *alarm = key.map(|key| Alarm { at, key });
    }

    /// Takes back an alarm, unless it went off.
    pub(super) fn clear(&self, alarm: &mut Option<Alarm>) {
        let Some(Alarm { at, key }) = alarm.take() else { return };
        let mut shard = self.shard(at).lock();
        let Some(bell) = shard.bells.get_mut(&at) else { return };
        let waker = bell.sleepers.remove(key);
        let silent = if bell.sleepers.len() == 0 { shard.bells.remove(&at) } else { None };
        drop(shard);
        drop((waker, silent));
    }

    /// A moment has come, or the runtime that was to say so is gone.
    fn ring(&self, at: u64) {
        let Some(mut bell) = self.shard(at).lock().bells.remove(&at) else { return };
        bell.sleepers.take().wake();
        drop(bell.timer);
    }

    fn shard(&self, at: u64) -> &Mutex<Shard> {
        // Moments are multiples of powers of two.
        &self.shards[(at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60 & (SHARDS - 1)) as usize]
    }
}

/// What a timer wakes: all who sleep until then.
struct Ringer {
    alarms: Arc<Alarms>,
    at: u64,
}

impl Wake for Ringer {
    fn wake(self: Arc<Self>) {
        self.alarms.ring(self.at);
    }
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use super::*;
    use std::{
        sync::{
            Mutex as StdMutex,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        time::Duration,
    };

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    impl Woken {
        fn times(&self) -> usize {
            self.0.load(Relaxed)
        }
    }

    /// Alarms, a task to be woken, and a moment of so many milliseconds from when they began.
    fn begin() -> (Arc<Alarms>, Arc<Woken>, impl Fn(u64) -> (u64, Instant)) {
        let began = Instant::now();
        (Alarms::new(), Arc::default(), move |at| (at, began + Duration::from_millis(at)))
    }

    fn bells(alarms: &Alarms) -> usize {
        alarms.shards.iter().map(|shard| shard.lock().bells.len()).sum()
    }

    /// Lets the clock go on, and the timers go off.
    async fn pass(millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_shares_a_moment_shares_a_timer_and_is_woken_then() {
        let (alarms, woken, moment) = begin();
        let waker = Waker::from(woken.clone());
        let mut set = [None; 100];
        for (nth, alarm) in set.iter_mut().enumerate() {
            alarms.set(alarm, moment(if nth < 60 { 1_000 } else { 2_000 }), &waker);
        }
        assert_eq!(bells(&alarms), 2);
        pass(999).await;
        assert_eq!(woken.times(), 0);
        pass(2).await;
        assert_eq!((woken.times(), bells(&alarms)), (60, 1));
        pass(1_000).await;
        assert_eq!((woken.times(), bells(&alarms)), (100, 0));
        set.iter_mut().for_each(|alarm| alarms.clear(alarm));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_it_back_is_not_woken_and_leaves_nothing() {
        let (alarms, woken, moment) = begin();
        let (waker, mut set) = (Waker::from(woken.clone()), [None; 3]);
        set.iter_mut().for_each(|alarm| alarms.set(alarm, moment(1_000), &waker));
        alarms.clear(&mut set[0]);
        // An earlier moment instead of a later one, not the other way round.
        alarms.set(&mut set[1], moment(800), &waker);
        alarms.set(&mut set[2], moment(3_000), &waker);
        assert_eq!(bells(&alarms), 2);
        pass(900).await;
        assert_eq!(woken.times(), 1);
        pass(200).await;
        assert_eq!(woken.times(), 2);
        alarms.set(&mut set[2], moment(3_000), &waker);
        alarms.clear(&mut set[2]);
        assert_eq!((bells(&alarms), Arc::strong_count(&alarms)), (0, 1));
        pass(3_000).await;
        assert_eq!(woken.times(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_that_has_passed_wakes_at_once() {
        let (alarms, woken, moment) = begin();
        pass(10).await;
        let mut alarm = None;
        alarms.set(&mut alarm, moment(10), &Waker::from(woken.clone()));
        assert!(alarm.is_none() && bells(&alarms) == 0);
        assert_eq!(woken.times(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn another_waker_takes_the_place_of_the_first() {
        let (alarms, first, moment) = begin();
        let (second, mut alarm) = (Arc::<Woken>::default(), None);
        alarms.set(&mut alarm, moment(1_000), &Waker::from(first.clone()));
        alarms.set(&mut alarm, moment(1_000), &Waker::from(second.clone()));
        assert_eq!(Arc::strong_count(&first), 1, "it is let go");
        pass(1_001).await;
        assert_eq!((first.times(), second.times()), (0, 1));
    }

    #[test]
    fn a_runtime_that_shuts_down_leaves_nobody_asleep() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (one, other) = (runtime(), runtime());
        let (alarms, woken, moment) = begin();
        let (waker, set) = (Waker::from(woken.clone()), StdMutex::new([None; 2]));
        let set_both = || set.lock().unwrap().iter_mut().for_each(|alarm| alarms.set(alarm, moment(50), &waker));
        one.block_on(async { set_both() });
        drop(one);
        assert_eq!((woken.times(), bells(&alarms)), (2, 0));
        // Whose key is of the bell that is gone takes nobody's place on the next one.
        other.block_on(async {
            let mut stale = set.lock().unwrap()[0];
            set_both();
            alarms.clear(&mut stale);
            pass(60).await;
        });
        assert_eq!(woken.times(), 4);
    }
}
