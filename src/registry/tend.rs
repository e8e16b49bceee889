//! The task that tends to the channels that are followed: it hears what is published, reads what is in doubt, lets go of what nobody
//! wants any more, and begins anew when the connection is lost.

use std::{
    cmp::Reverse,
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};

use super::{
    Registry,
    entry::Entry,
    follow::{AskedQueue, Stage},
};
use crate::engine::{Feed, Notice, Remote};

/// How often what is done by the clock is done.
const TICK: Duration = Duration::from_secs(1);

/// How long a probe may take to come back: two that do not, and the connection is given up.
const PROBE: Duration = Duration::from_millis(2_500);

/// How long connecting may take, and subscribing to as many channels as go into one request.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long it is between two attempts to connect, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How many logs are read at a time.
const READS: usize = 64;

/// How many channels go into one request.
const BATCH: usize = 1_024;

/// How long a channel is followed after its last waiter, in milliseconds: a long-poll client is back within a few.
const LINGER: u64 = 15_000;

/// How often what is held of a quiet channel is compared with its log, in milliseconds.
const CHECK: u64 = 20_000;

/// Tends to the channels of a registry until that is gone. `first` is a connection that is there already.
pub(crate) async fn tend(registry: Weak<Registry>, remote: Arc<dyn Remote>, mut first: Option<Box<dyn Feed>>) {
    let mut retry = RETRY.0;
    loop {
        let connected = match first.take() {
            Some(feed) => Ok(Ok(feed)),
            None => timeout(PATIENCE, remote.connect()).await,
        };
        let Some(registry) = registry.upgrade() else { return };
        match connected {
            Ok(Ok(feed)) => {
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
            Ok(Err(error)) => registry.health.lose(error.to_string()),
            Err(_) => registry.health.lose("connecting took too long".to_owned()),
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
    /// To be read, in this order.
    to_read: VecDeque<Arc<Entry>>,
    /// Being read.
    reads: Vec<Work>,
    probe: Option<Work>,
    sent: u64,
    heard: (u64, Instant),
}

enum Event {
    Heard(String, Notice),
    Asked,
    Tick,
    End(End),
}

impl Tending {
    fn new(registry: Weak<Registry>, remote: Arc<dyn Remote>, feed: Box<dyn Feed>) -> Self {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (to_read, reads, probe) = (VecDeque::new(), Vec::new(), None);
        Self { registry, remote, feed, tick, to_read, reads, probe, sent: 0, heard: (0, Instant::now()) }
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
        let end = match self.take_up(entries).await {
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
                Event::Heard(_, Notice::Probe(number)) => self.heard = (self.heard.0.max(number), Instant::now()),
                Event::Heard(name, notice) => registry.hear(&name, notice),
                Event::Asked => {
                    let AskedQueue { to_follow, to_read, .. } = std::mem::take(&mut *registry.asked.queue.lock());
                    drop(registry);
                    self.to_read.extend(to_read);
                    if let Err(end) = self.take_up(to_follow).await {
                        return end;
                    }
                }
                Event::Tick => {
                    if self.heard.0 < self.sent && self.heard.1.elapsed() > PROBE {
                        return End::Lost("what is published is not heard");
                    }
                    self.sent += 1;
                    let (remote, number) = (self.remote.clone(), self.sent);
                    // One that is stuck is not waited for: the next probe is another.
                    self.probe = Some(Box::pin(async move { drop(remote.probe(number).await) }));
                    let idle = registry.tend_to(&mut self.to_read);
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
        for entries in entries.chunks(BATCH) {
            let names: Vec<_> = entries.iter().map(|entry| entry.name().to_owned()).collect();
            match timeout(PATIENCE, self.feed.subscribe(&names)).await {
                Ok(Ok(())) => self.to_read.extend(entries.iter().cloned()),
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
        match self.feed.poll_next(cx) {
            Poll::Ready(Some((name, notice))) => Poll::Ready(Event::Heard(name, notice)),
            Poll::Ready(None) => Poll::Ready(Event::End(End::Lost("the subscriber's connection was lost"))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_work(&mut self, registry: &Arc<Registry>, cx: &mut Context<'_>) {
        if self.probe.as_mut().is_some_and(|probe| probe.as_mut().poll(cx).is_ready()) {
            self.probe = None;
        }
        loop {
            self.reads.retain_mut(|read| read.as_mut().poll(cx).is_pending());
            if self.to_read.is_empty() || self.reads.len() == READS {
                return;
            }
            while self.reads.len() < READS {
                let Some(entry) = self.to_read.pop_front() else { break };
                let (registry, remote) = (registry.clone(), self.remote.clone());
                self.reads.push(Box::pin(async move { registry.read_up(&*remote, &entry).await }));
            }
        }
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

    /// Looks after all channels that are followed: lets go of those that nobody wants any more, whose names it returns, and has
    /// those read that are to be compared with their logs again.
    fn tend_to(&self, to_read: &mut VecDeque<Arc<Entry>>) -> Vec<String> {
        let now = self.now();
        let mut idle = Vec::new();
        for entry in self.map.entries() {
            let mut state = entry.lock();
            let waited_on = state.waiters.len() > 0;
            let Some(follow) = &mut state.follow else { continue };
            if waited_on {
                follow.wanted = now;
            }
            if follow.wanted + LINGER <= now && follow.stage != Stage::Reading {
                state.follow = None;
                self.usage.leave_followed();
                self.forget(&mut state);
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
            if follow.stage == Stage::Live && follow.checked + check <= now {
                follow.begin();
                to_read.push_back(entry.clone());
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
            joining.into_iter().flatten().for_each(Waker::wake);
        }
    }
}
