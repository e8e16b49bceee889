//! The task that tends to the channels that are followed: it hears what is published, reads what is in doubt, lets go of what nobody
//! wants any more, and begins anew when the connection is lost.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};

use super::{
    Registry,
    backlog::Backlog,
    broadcast::Relay,
    entry::Entry,
    follow::{AskedQueue, CHECK, Stage},
    map::Walk,
    slice::{Slice, sliced},
    waiters::Woken,
};
use crate::{
    Error,
    engine::{Feed, Notice, Remote},
    faults::Rule,
};

/// How often what is done by the clock is done.
const TICK: Duration = Duration::from_secs(1);

/// How long nothing may be heard of the probes, one each tick: two that do not come back, and the connection is given up.
const PROBE: Duration = Duration::from_millis(1_800);

/// How long connecting may take, and subscribing to as many channels as go into one request.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long it is between two attempts to connect, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How many notices are taken in at a time.
const HEARD: usize = 64;

/// How many channels go into one request.
const BATCH: usize = 1_024;

/// How long a channel is followed after its last waiter, in milliseconds: a long-poll client is back within a few.
const LINGER: u64 = 15_000;

/// Connects, in good time or not at all.
pub(crate) async fn connect(remote: &dyn Remote) -> Result<Box<dyn Feed>, Error> {
    timeout(PATIENCE, remote.connect()).await.unwrap_or(Err(Error::Unreachable))
}

/// Tends to the channels of a registry until that is gone. `first` is a connection that is there already.
pub(crate) async fn tend(registry: Weak<Registry>, remote: Arc<dyn Remote>, mut first: Option<Box<dyn Feed>>) {
    let mut retry = RETRY.0;
    loop {
        let connected = match first.take() {
            Some(feed) => Ok(feed),
            None => connect(&*remote).await,
        };
        let Some(registry) = registry.upgrade() else { return };
        match connected {
            Ok(feed) => {
                retry = RETRY.0;
                let began = Instant::now();
                let tending = Tending::new(Arc::downgrade(&registry), remote.clone(), feed);
                if tending.resume(registry).await.is_gone() {
                    return;
                }
                if began.elapsed() > RETRY.1 {
                    continue;
                }
            }
            Err(_) => registry.health.lose("it does not answer, or not as it should".to_owned()),
        }
        // Not all processes in the same moment.
        sleep(retry.mul_f64(0.5 + fastrand::f64())).await;
        retry = (retry * 2).min(RETRY.1);
    }
}

/// How a connection ended.
enum End {
    Lost(&'static str),
    /// Nobody needs it any more.
    Gone,
}

impl End {
    fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One connection's time.
struct Tending {
    registry: Weak<Registry>,
    remote: Arc<dyn Remote>,
    feed: Box<dyn Feed>,
    tick: Interval,
    backlog: Backlog,
    relay: Relay,
    probe: Option<Work>,
    sent: u64,
    heard: (u64, Instant),
    /// Waiters of the last notice that have not been woken yet.
    woken: Woken,
    /// The current round. Each tick starts one, unless the last one is unfinished.
    round: Option<Round>,
}

/// A walk over all channels. It stops following those that are no longer used, queues those whose last read failed to
/// be read again, and queues those that have been quiet to be compared.
struct Round {
    walk: Walk,
    /// Whether this round queues channels to be compared: not while those of an earlier round are pending.
    compares: bool,
    /// The names of the channels that are no longer followed.
    idle: Vec<String>,
}

enum Event {
    Heard,
    Asked,
    Tick,
    /// A round is complete. Contains the names of the channels to unsubscribe from.
    Idle(Vec<String>),
    End(End),
}

impl Tending {
    fn new(registry: Weak<Registry>, remote: Arc<dyn Remote>, feed: Box<dyn Feed>) -> Self {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            registry,
            remote,
            feed,
            tick,
            backlog: Backlog::default(),
            relay: Relay::default(),
            probe: None,
            sent: 0,
            heard: (0, Instant::now()),
            woken: Woken::nobody(),
            round: None,
        }
    }

    /// Takes up all that was followed before the connection was lost, and goes on until this one is.
    async fn resume(mut self, registry: Arc<Registry>) -> End {
        drop(registry.asked.take());
        let entries = registry.begin_again().await;
        registry.health.find();
        drop(registry);
        let taken_up = self.take_up(entries).await;
        if self.registry.upgrade().is_some_and(|registry| !registry.faults.keep(Rule::ReadAgain)) {
            self.backlog.forget().for_each(|entry| Registry::assume(&entry));
        }
        let end = match taken_up {
            Ok(()) => self.run().await,
            Err(end) => end,
        };
        if let (End::Lost(why), Some(registry)) = (&end, self.registry.upgrade()) {
            registry.lose(why).await;
        }
        end
    }

    async fn run(&mut self) -> End {
        loop {
            let event = poll_fn(|cx| self.poll_event(cx)).await;
            let Some(registry) = self.registry.upgrade() else { return End::Gone };
            match event {
                Event::Heard => {}
                Event::Asked => {
                    let AskedQueue { to_follow, to_read, .. } = registry.asked.take();
                    drop(registry);
                    self.backlog.to_read.extend(to_read);
                    if let Err(end) = self.take_up(to_follow).await {
                        return end;
                    }
                }
                Event::Tick => {
                    let silent = self.heard.0 < self.sent && self.heard.1.elapsed() > PROBE;
                    if silent && registry.faults.keep(Rule::Probe) {
                        return End::Lost("what is published is not heard");
                    }
                    self.sent += 1;
                    let (remote, number) = (self.remote.clone(), self.sent);
                    // One that is stuck is not waited for: the next probe is another.
                    self.probe = Some(Box::pin(async move { drop(remote.probe(number).await) }));
                    if self.round.is_none() {
                        let compares = self.backlog.to_compare.is_empty() && registry.faults.keep(Rule::Compare);
                        self.round = Some(Round { walk: Walk::default(), compares, idle: Vec::new() });
                    }
                }
                Event::Idle(idle) => {
                    let idle = registry.still_idle(idle);
                    drop(registry);
                    for names in idle.chunks(BATCH) {
                        if !matches!(timeout(PATIENCE, self.feed.unsubscribe(names)).await, Ok(Ok(()))) {
                            return End::Lost("unsubscribing failed");
                        }
                    }
                }
                Event::End(end) => return end,
            }
        }
    }

    /// Subscribes to channels, and then reads them.
    async fn take_up(&mut self, entries: Vec<Arc<Entry>>) -> Result<(), End> {
        let Some(faults) = self.registry.upgrade().map(|registry| registry.faults) else { return Err(End::Gone) };
        for entries in entries.chunks(BATCH) {
            if !faults.keep(Rule::Order) {
                for entry in entries {
                    let Some(registry) = self.registry.upgrade() else { return Err(End::Gone) };
                    registry.read_up(&*self.remote, entry).await;
                }
            }
            let names: Vec<_> = entries.iter().map(|entry| entry.name().to_owned()).collect();
            match timeout(PATIENCE, self.feed.subscribe(&names)).await {
                Ok(Ok(())) if faults.keep(Rule::Order) => {
                    entries.iter().for_each(|entry| self.backlog.take_up(entry.clone()));
                }
                Ok(Ok(())) => {}
                _ => return Err(End::Lost("subscribing failed")),
            }
        }
        Ok(())
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut slice = Slice::new();
        let woken = self.woken.wake_some(&mut slice);
        if !woken {
            cx.waker().wake_by_ref();
        }
        if self.remote.poll_lost(cx).is_ready() {
            return Poll::Ready(Event::End(End::Lost("the connection was lost")));
        }
        if self.tick.poll_tick(cx).is_ready() {
            return Poll::Ready(Event::Tick);
        }
        let Some(registry) = self.registry.upgrade() else { return Poll::Ready(Event::End(End::Gone)) };
        // Subscribing takes a round trip. The waiters of the last notice are woken before it.
        if woken && registry.poll_asked(cx).is_ready() {
            return Poll::Ready(Event::Asked);
        }
        self.poll_work(&registry, &mut slice, cx);
        if let Some(mut round) = self.round.take() {
            if registry.tend_to(&mut round, &mut self.backlog, &mut slice) {
                return Poll::Ready(Event::Idle(round.idle));
            }
            self.round = Some(round);
            cx.waker().wake_by_ref();
        }
        // Woken tasks may have to wait until this returns, so it stops after `HEARD` notices, and everything else is
        // polled again.
        for _ in 0..HEARD {
            if !self.woken.wake_some(&mut slice) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match ready!(self.feed.poll_next(cx)) {
                Some((_, Notice::Probe(number))) => self.heard = (self.heard.0.max(number), Instant::now()),
                Some((_, Notice::Broadcast(broadcast))) => {
                    self.relay.push(broadcast, registry.now());
                    // Poll again at once, to start it.
                    cx.waker().wake_by_ref();
                }
                Some((name, notice)) => self.woken = registry.hear(&name, notice).contain(),
                None => return Poll::Ready(Event::End(End::Lost("the subscriber's connection was lost"))),
            }
        }
        Poll::Ready(Event::Heard)
    }

    fn poll_work(&mut self, registry: &Arc<Registry>, slice: &mut Slice, cx: &mut Context<'_>) {
        if self.probe.as_mut().is_some_and(|probe| probe.as_mut().poll(cx).is_ready()) {
            self.probe = None;
        }
        self.backlog.poll(registry, &self.remote, cx);
        self.relay.poll(registry, slice, cx);
    }
}

impl Registry {
    fn poll_asked(&self, cx: &Context<'_>) -> Poll<()> {
        let tender = cx.waker().clone();
        // Declared before the lock is taken, so dropped after it is released.
        let _replaced;
        let mut queue = self.asked.queue.lock();
        if !queue.to_follow.is_empty() || !queue.to_read.is_empty() {
            return Poll::Ready(());
        }
        _replaced = queue.tender.replace(tender);
        Poll::Pending
    }

    /// Returns all followed channels, to be subscribed to and read again, those with the most waiters first.
    async fn begin_again(&self) -> Vec<Arc<Entry>> {
        // Ordered by the logarithm of the number of waiters, which is exact enough and needs no sort of all channels.
        let (mut by_waiters, mut walk) = (BTreeMap::<_, Vec<_>>::new(), Walk::default());
        sliced(|slice| {
            while let Some(entry) = self.map.next(&mut walk) {
                let mut state = entry.lock();
                let waiters = state.waiters.len();
                let followed = state.follow.as_mut().map(|follow| follow.begin()).is_some();
                drop(state);
                if followed {
                    by_waiters.entry(Reverse(waiters.checked_ilog2())).or_default().push(entry);
                }
                if slice.step() {
                    return false;
                }
            }
            true
        })
        .await;
        by_waiters.into_values().flatten().collect()
    }

    /// Continues a round. Returns whether it is complete.
    fn tend_to(&self, round: &mut Round, backlog: &mut Backlog, slice: &mut Slice) -> bool {
        while let Some(entry) = self.map.next(&mut round.walk) {
            self.tend_to_one(&entry, round, backlog);
            if slice.step() {
                return false;
            }
        }
        true
    }

    fn tend_to_one(&self, entry: &Arc<Entry>, round: &mut Round, backlog: &mut Backlog) {
        let now = self.now();
        // Nobody keeps others out by asking for names that nobody uses.
        let linger = if self.usage.followed() > self.limits.channels / 2 { LINGER / 10 } else { LINGER };
        // Declared before the lock is taken, so dropped after it is released.
        let _tender;
        let mut state = entry.lock();
        let waited_on = state.waiters.len() > 0;
        if waited_on && state.follow.is_none() {
            // Following the channel failed when the wait began.
            _tender = self.follow(entry, &mut state);
        }
        let Some(follow) = &mut state.follow else { return };
        if waited_on {
            follow.wanted = now;
        }
        if follow.wanted + linger <= now && follow.stage != Stage::Reading {
            let joining = self.unfollow(entry, &mut state);
            drop(state);
            joining.contain().wake();
            round.idle.push(entry.name().to_owned());
            return self.map.vacate(entry);
        }
        let check = match follow.idle {
            // Often enough that the engine does not expire a channel that has a waiter.
            Some(window) if waited_on => CHECK.min(window / 3),
            _ => CHECK,
        };
        match follow.stage {
            Stage::Reading => {}
            // The engine is reachable, but the last read of this channel failed.
            Stage::Lost => {
                follow.begin();
                backlog.to_read.push_back(entry.clone());
            }
            Stage::Live if round.compares && follow.checked + check <= now => {
                follow.checked = now;
                backlog.to_compare.push_back(entry.clone());
            }
            Stage::Live => {}
        }
    }

    /// Marks all followed channels as lost, and wakes the tasks that wait for one of them to become live.
    async fn lose(&self, why: &str) {
        self.health.lose(why.to_owned());
        // Emptied before the walk, so that no channel is dropped that is followed after it. Until the next connection,
        // following is refused.
        drop(self.asked.take());
        let (mut walk, mut joining) = (Walk::default(), Woken::nobody());
        sliced(|slice| {
            loop {
                if !joining.wake_some(slice) {
                    return false;
                }
                let Some(entry) = self.map.next(&mut walk) else { return true };
                joining = entry.lock().follow.as_mut().map_or_else(Woken::nobody, |follow| follow.lose()).contain();
                if slice.step() {
                    return false;
                }
            }
        })
        .await;
    }

    /// Returns the names that are still not followed. A request may have begun to wait on one since the round stopped
    /// following it, and its new subscription must not be cancelled.
    pub(super) fn still_idle(&self, mut names: Vec<String>) -> Vec<String> {
        names.retain(|name| self.map.find(name).is_none_or(|entry| entry.lock().follow.is_none()));
        names
    }

    /// Takes what is held of a channel for all there is.
    fn assume(entry: &Entry) {
        if let Some(follow) = &mut entry.lock().follow {
            follow.stage = Stage::Live;
        }
    }
}
