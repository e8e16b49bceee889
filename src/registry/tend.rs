//! The maintenance task of a registry with a remote engine: it receives what is published, subscribes to channels and
//! unsubscribes from them, reads channels whose cached entries may be incomplete, and reconnects.
//!
//! No poll waits for a round trip. Each one continues every kind of work, and each kind has a part of the time of its
//! own (see [`slice`](super::slice)), so that none delays the others: channels that are subscribed to do not delay
//! messages, and messages do not delay subscriptions.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    future::{Future, poll_fn},
    mem,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    task::unconstrained,
    time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep, sleep_until, timeout},
};

use super::{
    Registry,
    audit::Audit,
    backlog::Backlog,
    entry::Entry,
    follow::ReplicaStage,
    map::Walk,
    relay::Relay,
    round::Round,
    slice::{Slice, sliced},
    subscriptions::Subscriptions,
    waiters::WakeList,
};
use crate::{
    Error,
    engine::{Feed, Notice, Remote},
    fault_injection::Invariant,
};

/// The interval of the probes and of the rounds.
const TICK: Duration = Duration::from_secs(1);

/// How long no probe may come back, of which one is sent each tick: if two are missing, the connection is dropped.
///
/// This also bounds what the client library queues, which has no limit of its own. A probe is received after everything
/// that was published before it, so a connection with more than two seconds of messages in its queue is dropped with
/// them, and the channels are read.
const PROBE: Duration = Duration::from_millis(1_800);

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long it is between two attempts to connect, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The parts of one poll's time: half of it to receive notices, because they are queued without a limit, and a twelfth
/// for each of the other six kinds of work.
const RECEIVE: u32 = 2;
const OTHER: u32 = 12;

/// Connects, in good time or not at all.
pub(crate) async fn connect(remote: &dyn Remote) -> Result<Box<dyn Feed>, Error> {
    timeout(PATIENCE, remote.connect()).await.unwrap_or(Err(Error::Unreachable))
}

/// Runs the maintenance task until the registry is dropped. `first` is a connection that exists already.
pub(crate) async fn maintain_remote(
    registry: Weak<Registry>,
    remote: Arc<dyn Remote>,
    mut first: Option<Box<dyn Feed>>,
) {
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
                let tending = MaintenanceTask::new(&registry, remote.clone(), feed);
                if matches!(tending.run(registry).await, ConnectionEnd::Gone) {
                    return;
                }
                if began.elapsed() > RETRY.1 {
                    continue;
                }
            }
            Err(error) => registry.health.lose(&why(&error)),
        }
        // Not all processes in the same moment.
        sleep(retry.mul_f64(0.5 + fastrand::f64())).await;
        retry = (retry * 2).min(RETRY.1);
    }
}

/// Why the engine cannot be used: in its own words, if it has said something.
fn why(error: &Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| "it did not answer in time".to_owned(), ToString::to_string)
}

/// How a connection ended.
enum ConnectionEnd {
    Lost(&'static str),
    /// The registry was dropped.
    Gone,
}

/// The work of the maintenance task on one connection.
struct MaintenanceTask {
    registry: Weak<Registry>,
    remote: Arc<dyn Remote>,
    feed: Box<dyn Feed>,
    tick: Interval,
    subscriptions: Subscriptions,
    backlog: Backlog,
    relay: Relay,
    audit: Audit,
    probe: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Whether the engine still does what channels need, after it refused something.
    trial: Option<Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>>,
    /// The number of the last probe that was sent.
    sent: u64,
    /// The number of the last probe that was received, and when.
    heard: (u64, Instant),
    /// Waiters of received notices that have not been woken yet. Receiving does not wait for them. A waiter is on the
    /// list of one channel at most, so this does not grow beyond the number of waiters.
    woken: VecDeque<WakeList>,
    /// The current round. Each tick starts one, unless the last one is unfinished.
    round: Option<Round>,
    /// Elapses when the next channel is due to be renewed.
    renewal: Option<Pin<Box<Sleep>>>,
}

impl MaintenanceTask {
    fn new(registry: &Arc<Registry>, remote: Arc<dyn Remote>, feed: Box<dyn Feed>) -> Self {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            registry: Arc::downgrade(registry),
            remote,
            feed,
            tick,
            subscriptions: Subscriptions::default(),
            backlog: Backlog::default(),
            relay: Relay::default(),
            audit: Audit::begin(registry),
            probe: None,
            trial: None,
            sent: 0,
            heard: (0, Instant::now()),
            woken: VecDeque::new(),
            round: None,
            renewal: None,
        }
    }

    /// Subscribes again to all channels that were followed before the connection was lost, and continues until this
    /// connection is lost.
    async fn run(mut self, registry: Arc<Registry>) -> ConnectionEnd {
        drop(registry.interest.take());
        self.subscriptions.join(registry.resubscribe().await);
        registry.health.find();
        drop(registry);
        // Each poll limits its own work. Tokio's cooperative budget would be used up by the feed.
        let end = unconstrained(poll_fn(|cx| self.poll(cx))).await;
        sliced(|slice| self.wake_some(slice)).await;
        if let (ConnectionEnd::Lost(why), Some(registry)) = (&end, self.registry.upgrade()) {
            registry.lose(why).await;
        }
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionEnd> {
        let Some(registry) = self.registry.upgrade() else { return Poll::Ready(ConnectionEnd::Gone) };
        match self.advance(&registry, cx) {
            Ok(()) => Poll::Pending,
            Err(why) => Poll::Ready(ConnectionEnd::Lost(why)),
        }
    }

    /// Continues every kind of work. Returns why the connection is lost, if it is.
    fn advance(&mut self, registry: &Arc<Registry>, cx: &mut Context<'_>) -> Result<(), &'static str> {
        if self.remote.poll_lost(cx).is_ready() {
            return Err("the connection was lost");
        }
        // Before the tick: a probe that has come back while this task was not polled is not missing.
        self.receive(registry, cx)?;
        if !self.wake_some(&mut Slice::part(OTHER)) {
            cx.waker().wake_by_ref();
        }
        while self.tick.poll_tick(cx).is_ready() {
            self.note_tick(registry)?;
        }
        if self.probe.as_mut().is_some_and(|probe| probe.as_mut().poll(cx).is_ready()) {
            self.probe = None;
        }
        if let Some(Poll::Ready(tried)) = self.trial.as_mut().map(|trial| trial.as_mut().poll(cx)) {
            self.trial = None;
            registry.health.note_trial(tried.err().map(|error| why(&error)).as_deref());
        }
        // Responses may hold appends that were dropped to take in new ones.
        registry.make_room_to_read(0, None);
        let (to_follow, to_read) = registry.take_asked(cx);
        self.subscriptions.join(to_follow);
        self.backlog.to_read.extend(to_read);
        let backlog = &mut self.backlog;
        let joined = |entry| backlog.joined(registry, entry);
        self.subscriptions.poll(&*self.feed, registry, joined, &mut Slice::part(OTHER), cx)?;
        self.backlog.poll(registry, &self.remote, &mut Slice::part(OTHER), cx);
        self.renew(registry, &mut Slice::part(OTHER), cx);
        self.audit.poll(registry, &self.remote, &mut Slice::part(OTHER), cx);
        let mut walks = Slice::part(OTHER);
        self.relay.poll(registry, &mut walks, cx);
        self.continue_round(registry, &mut walks, cx);
        Ok(())
    }

    /// Applies the notices that the feed has queued, as many as the slice allows.
    fn receive(&mut self, registry: &Registry, cx: &mut Context<'_>) -> Result<(), &'static str> {
        let mut slice = Slice::part(RECEIVE);
        while let Poll::Ready(received) = self.feed.poll_next(cx) {
            match received {
                Some((_, Notice::Probe(number))) => self.heard = (self.heard.0.max(number), Instant::now()),
                Some((_, Notice::Broadcast(broadcast))) => self.relay.push(broadcast, registry.now()),
                Some((name, notice)) => {
                    let woken = registry.apply_notice(&name, notice).contain();
                    if woken.len() > 0 {
                        self.woken.push_back(woken);
                    }
                }
                None => return Err("the subscriber's connection was lost"),
            }
            if slice.step() {
                cx.waker().wake_by_ref();
                break;
            }
        }
        Ok(())
    }

    /// Wakes waiters of received notices. Returns whether all have been woken.
    fn wake_some(&mut self, slice: &mut Slice) -> bool {
        while let Some(woken) = self.woken.front_mut() {
            if !woken.wake_some(slice) {
                return false;
            }
            self.woken.pop_front();
            if slice.is_over() {
                return self.woken.is_empty();
            }
        }
        true
    }

    /// Sends a probe and starts a round, unless the probes do not come back.
    fn note_tick(&mut self, registry: &Registry) -> Result<(), &'static str> {
        let silent = self.heard.0 < self.sent && self.heard.1.elapsed() > PROBE;
        if silent && registry.faults.holds(Invariant::Probe) {
            return Err("what is published is not heard");
        }
        self.sent += 1;
        let (remote, number) = (self.remote.clone(), self.sent);
        self.audit.retry();
        // A probe that does not return is replaced by the next one.
        self.probe = Some(Box::pin(async move { drop(remote.probe(number).await) }));
        if self.trial.is_none() && registry.health.wants_trial() {
            let remote = self.remote.clone();
            self.trial = Some(Box::pin(async move { remote.trial().await }));
        }
        if self.round.is_none() {
            self.round =
                Some(Round::new(self.backlog.to_compare.is_empty() && registry.faults.holds(Invariant::Compare)));
        }
        Ok(())
    }

    /// Queues the channels that are due to be renewed, and sets the timer for the next ones. Queues none while earlier ones have
    /// not been sent, so that the queue does not grow if the engine is slow.
    fn renew(&mut self, registry: &Registry, slice: &mut Slice, cx: &mut Context<'_>) {
        if !self.backlog.to_renew.is_empty() {
            return;
        }
        let Some(next) = registry.take_renewals(&mut self.backlog.to_renew, slice) else {
            self.renewal = None;
            return;
        };
        let next = registry.moment(next);
        let timer = self.renewal.get_or_insert_with(|| Box::pin(sleep_until(next)));
        if timer.deadline() != next {
            timer.as_mut().reset(next);
        }
        // Either more are due, or those that were queued are to be sent.
        if timer.as_mut().poll(cx).is_ready() || !self.backlog.to_renew.is_empty() {
            cx.waker().wake_by_ref();
        }
    }

    fn continue_round(&mut self, registry: &Registry, slice: &mut Slice, cx: &Context<'_>) {
        let Some(round) = &mut self.round else { return };
        if registry.continue_round(round, &mut self.subscriptions, &mut self.backlog, slice) {
            self.round = None;
        }
        // Either the rest of the round or what it has queued is left.
        cx.waker().wake_by_ref();
    }
}

impl Registry {
    /// Takes the channels that requests have queued since the last call: those to subscribe to, and those to read again.
    /// Registers the waker for the next ones.
    fn take_asked(&self, cx: &Context<'_>) -> (Vec<Arc<Entry>>, Vec<Arc<Entry>>) {
        let tender = cx.waker().clone();
        // Declared before the lock is taken, so dropped after it is released.
        let _replaced;
        let mut queue = self.interest.queue.lock();
        _replaced = queue.tender.replace(tender);
        (mem::take(&mut queue.to_follow), mem::take(&mut queue.to_read))
    }

    /// Returns all followed channels, to be subscribed to and read again, those with the most waiters first.
    async fn resubscribe(&self) -> Vec<Arc<Entry>> {
        // Ordered by the logarithm of the number of waiters, which is exact enough and needs no sort of all channels.
        let (mut by_waiters, mut walk) = (BTreeMap::<_, Vec<_>>::new(), Walk::default());
        sliced(|slice| {
            while let Some(entry) = self.map.next(&mut walk) {
                let mut state = entry.lock();
                let waiters = state.waiters.len();
                let followed = state.replica.as_mut().map(|follow| follow.begin()).is_some();
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

    /// Marks all followed channels as lost, and wakes the tasks that wait for one of them to become live.
    async fn lose(&self, why: &str) {
        self.health.lose(why);
        // Emptied before the walk, so that no channel is dropped that is followed after it. Until the next connection,
        // following is refused.
        drop(self.interest.take());
        let (mut walk, mut joining) = (Walk::default(), WakeList::nobody());
        sliced(|slice| {
            loop {
                if !joining.wake_some(slice) {
                    return false;
                }
                let Some(entry) = self.map.next(&mut walk) else { return true };
                joining = entry.lock().replica.as_mut().map_or_else(WakeList::nobody, |follow| follow.lose()).contain();
                if slice.step() {
                    return false;
                }
            }
        })
        .await;
    }

    /// Takes the cached entries of a channel for complete.
    pub(super) fn assume(entry: &Entry) {
        if let Some(follow) = &mut entry.lock().replica {
            follow.stage = ReplicaStage::Live;
        }
    }
}
