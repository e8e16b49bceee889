//! The task that tends to the channels that are followed: it hears what is published, reads what is in doubt, lets go of what nobody
//! wants any more, and begins anew when the connection is lost.

use std::{
    cmp::Reverse,
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
    entry::Entry,
    follow::{AskedQueue, CHECK, Stage},
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
    probe: Option<Work>,
    sent: u64,
    heard: (u64, Instant),
}

enum Event {
    Heard,
    Asked,
    Tick,
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
            probe: None,
            sent: 0,
            heard: (0, Instant::now()),
        }
    }

    /// Takes up all that was followed before the connection was lost, and goes on until this one is.
    async fn resume(mut self, registry: Arc<Registry>) -> End {
        std::mem::take(&mut *registry.asked.queue.lock());
        let mut entries: Vec<_> = registry.map.entries().filter(|entry| entry.lock().follow.is_some()).collect();
        // Where the most wait, first.
        entries.sort_by_cached_key(|entry| Reverse(entry.lock().waiters.len()));
        for entry in &entries {
            if let Some(follow) = &mut entry.lock().follow {
                follow.begin();
            }
        }
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
            registry.lose(why);
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
                    let AskedQueue { to_follow, to_read, .. } = std::mem::take(&mut *registry.asked.queue.lock());
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
                    let idle = registry.tend_to(&mut self.backlog);
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
        if self.remote.poll_lost(cx).is_ready() {
            return Poll::Ready(Event::End(End::Lost("the connection was lost")));
        }
        if self.tick.poll_tick(cx).is_ready() {
            return Poll::Ready(Event::Tick);
        }
        let Some(registry) = self.registry.upgrade() else { return Poll::Ready(Event::End(End::Gone)) };
        if registry.poll_asked(cx).is_ready() {
            return Poll::Ready(Event::Asked);
        }
        self.poll_work(&registry, cx);
        // Who is woken runs when this returns: so many, and then it looks around again.
        for _ in 0..HEARD {
            match ready!(self.feed.poll_next(cx)) {
                Some((_, Notice::Probe(number))) => self.heard = (self.heard.0.max(number), Instant::now()),
                Some((name, notice)) => registry.hear(&name, notice),
                None => return Poll::Ready(Event::End(End::Lost("the subscriber's connection was lost"))),
            }
        }
        Poll::Ready(Event::Heard)
    }

    fn poll_work(&mut self, registry: &Arc<Registry>, cx: &mut Context<'_>) {
        if self.probe.as_mut().is_some_and(|probe| probe.as_mut().poll(cx).is_ready()) {
            self.probe = None;
        }
        self.backlog.poll(registry, &self.remote, cx);
    }
}

impl Registry {
    fn poll_asked(&self, cx: &Context<'_>) -> Poll<()> {
        let mut queue = self.asked.queue.lock();
        if !queue.to_follow.is_empty() || !queue.to_read.is_empty() {
            return Poll::Ready(());
        }
        queue.tender = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Looks after all channels that are followed: lets go of those that nobody wants any more, whose names it returns; has those
    /// read that could not be, and those compared that have been quiet.
    fn tend_to(&self, backlog: &mut Backlog) -> Vec<String> {
        let now = self.now();
        // While those of before are not compared yet, no more are added.
        let compares = backlog.to_compare.is_empty() && self.faults.keep(Rule::Compare);
        // Nobody keeps others out by asking for names that nobody uses.
        let linger = if self.usage.followed() > self.limits.channels / 2 { LINGER / 10 } else { LINGER };
        let mut idle = Vec::new();
        for entry in self.map.entries() {
            let mut state = entry.lock();
            let waited_on = state.waiters.len() > 0;
            if waited_on && state.follow.is_none() {
                // It could not be followed when the wait began.
                let _ = self.follow(&entry, &mut state);
            }
            let Some(follow) = &mut state.follow else { continue };
            if waited_on {
                follow.wanted = now;
            }
            if follow.wanted + linger <= now && follow.stage != Stage::Reading {
                self.unfollow(&mut state);
                drop(state);
                idle.push(entry.name().to_owned());
                self.map.vacate(&entry);
                continue;
            }
            let check = match follow.idle {
                // In time for the engine to see that somebody waits.
                Some(window) if waited_on => CHECK.min(window / 3),
                _ => CHECK,
            };
            match follow.stage {
                Stage::Reading => {}
                // The engine is there, but has refused to read this one.
                Stage::Lost => {
                    follow.begin();
                    backlog.to_read.push_back(entry.clone());
                }
                Stage::Live if compares && follow.checked + check <= now => {
                    follow.checked = now;
                    backlog.to_compare.push_back(entry.clone());
                }
                Stage::Live => {}
            }
        }
        idle
    }

    /// Nothing is heard any more.
    fn lose(&self, why: &str) {
        self.health.lose(why.to_owned());
        // Before the walk, so that nobody who follows after it is forgotten; they are refused.
        std::mem::take(&mut *self.asked.queue.lock());
        for entry in self.map.entries() {
            let joining = entry.lock().follow.as_mut().map(|follow| follow.lose());
            joining.unwrap_or_else(Woken::nobody).wake();
        }
    }

    /// Takes what is held of a channel for all there is.
    fn assume(entry: &Entry) {
        if let Some(follow) = &mut entry.lock().follow {
            follow.stage = Stage::Live;
        }
    }
}
