//! The channels.

use serde::Serialize;
use std::{fmt, future::Future, sync::Arc, time::Duration};

use crate::{
    Broadcast, Channel, CometBuilder, Loss, Unhealthy,
    registry::{Drained, Registry, Walk},
};

/// The channels: named, ordered logs of messages, and everybody who waits on them.
///
/// A `Comet` is made once and cloned freely; all clones are the same channels. It needs no HTTP: the
/// routes are a [`CometLayer`](crate::CometLayer)'s, and several layers may serve one `Comet`, say a public port that
/// reads and a private one that publishes.
///
/// ```
/// use tower_comet::Comet;
///
/// let comet = Comet::new();
/// comet.channel("/events/news").publish("it works").wait()?;
///
/// assert_eq!(comet.channels().count(), 1);
/// assert_eq!(comet.stats().waiters, 0);
/// # Ok::<(), tower_comet::Error>(())
/// ```
#[derive(Clone)]
pub struct Comet {
    registry: Arc<Registry>,
}

impl Comet {
    /// Channels with the default limits: see [`CometBuilder`].
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Sets other limits than the defaults.
    pub fn builder() -> CometBuilder {
        CometBuilder::default()
    }

    pub(crate) fn with(registry: Arc<Registry>) -> Self {
        Self { registry }
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The channel of this name: on a route without a name of its own, the path that it is read at.
    ///
    /// This makes nothing. The channel comes to be with its first append (or
    /// [`create`](Channel::create)); a name that no channel can have is an error of what is done then.
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// let comet = Comet::new();
    /// assert_eq!(comet.channel("/events/news").name(), "/events/news");
    /// assert_eq!(comet.channels().count(), 0, "nothing was made");
    /// assert!(matches!(comet.channel("").publish("hello").wait(), Err(Error::Name)));
    /// ```
    pub fn channel(&self, name: impl AsRef<str>) -> Channel {
        Channel::new(self.registry.clone(), name.as_ref())
    }

    /// All channels that hold something or are waited on, in no particular order.
    ///
    /// A walk, not a snapshot: channels that come and go meanwhile may or may not be met. On Redis, those that this process
    /// knows: what is waited on here.
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// let comet = Comet::new();
    /// for name in ["/rooms/1", "/rooms/2"] {
    ///     comet.channel(name).publish("hello").wait()?;
    /// }
    /// let mut names: Vec<_> = comet.channels().map(|channel| channel.name().to_owned()).collect();
    /// names.sort();
    /// assert_eq!(names, ["/rooms/1", "/rooms/2"]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn channels(&self) -> impl Iterator<Item = Channel> + use<'_> {
        self.registry.names().map(|name| self.channel(name))
    }

    /// Publishes a value, as one JSON message, to every channel whose name matches a pattern. The future resolves to the number of
    /// channels that have it.
    ///
    /// The pattern is like a route's: `/rooms/{room}` matches `/rooms/42`, `/rooms/{*rest}` matches everything below.
    /// Channels that are closed or hold another type than JSON are skipped.
    ///
    /// A broadcast also reaches waiters on a matching name that has no channel. It creates a *transient* channel for
    /// them, which is forgotten 60 s after its last reader. Any other append to it, or its [creation](Channel::create),
    /// turns it into an ordinary channel.
    ///
    /// # On Redis
    ///
    /// The broadcast is appended to every matching channel that Redis stores, and to the names without a channel that have
    /// waiters on any node; each channel has it once. The node that broadcasts announces it to the other nodes, and
    /// these append it for their own waiters. The number counts the channels in Redis, and the names that have
    /// waiters on this node; the future does not wait for the other nodes.
    ///
    /// The announcement reaches the nodes that are connected to Redis at that moment. A waiter on a name without a
    /// channel misses the broadcast if its node is not connected, reconnects before it has appended it, or has a
    /// backlog of 1,024 broadcasts or 64 MiB. Channels that exist are not affected. A transient channel is forgotten 40
    /// to 60 s after its last reader. While it has waiters, their node extends its life every 20 s; if that node cannot
    /// reach Redis for 40 s or more, the channel may expire, and its readers start over (410).
    ///
    /// # Errors
    ///
    /// [`Error::Pattern`](crate::Error::Pattern) if the pattern is malformed,
    /// [`Error::Encode`](crate::Error::Encode) and [`Error::TooLarge`](crate::Error::TooLarge) as in
    /// [`Channel::publish`]: nothing is published then. [`Error::Full`](crate::Error::Full) if some channel had no room;
    /// the others have the message. The same holds on Redis for [`Error::Engine`](crate::Error::Engine) and
    /// [`Error::Layout`](crate::Error::Layout), if some channel's keys cannot be used. [`Error::Unreachable`](crate::Error::Unreachable) or
    /// [`Error::Uncertain`](crate::Error::Uncertain) if the connection to Redis fails: some channels may have the message.
    ///
    /// ```
    /// # use tower_comet::Comet;
    /// let comet = Comet::new();
    /// comet.channel("/rooms/1").publish("hello").wait()?;
    /// comet.channel("/rooms/2").publish("hello").wait()?;
    /// comet.channel("/news").publish("hello").wait()?;
    ///
    /// assert_eq!(comet.broadcast("/rooms/{room}", "closing in five minutes").wait()?, 2);
    /// assert_eq!(comet.channel("/rooms/2").history(), 2);
    /// assert_eq!(comet.channel("/news").history(), 1);
    /// # Ok::<(), tower_comet::Error>(())
    /// ```
    pub fn broadcast<T: Serialize>(&self, pattern: &str, value: T) -> Broadcast {
        Broadcast::new(self.registry.clone(), pattern, &value)
    }

    /// How many wait on all channels together: parked requests, event streams, and [`Subscription`](crate::Subscription)s in
    /// `recv`. On Redis, those of this process.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.registry.usage().waits()
    }

    /// What is in use and what has been done, by this process, for metrics.
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// let comet = Comet::new();
    /// comet.channel("/news").publish("hello").wait()?;
    /// let stats = comet.stats();
    /// assert_eq!((stats.channels, stats.appends, stats.waiters), (1, 1, 0));
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        let usage = self.registry.usage();
        let (lost_appends, missing_channels) = self.registry.lost();
        Stats {
            channels: usage.channels(),
            waiters: usage.waits(),
            history_bytes: usage.history(),
            receiving_bytes: usage.receiving(),
            reading_bytes: usage.responses().get(),
            appends: usage.appends(),
            delivered: usage.delivered(),
            timed_out: usage.timed_out(),
            cut_responses: usage.cut(),
            hook_timeouts: usage.hook_timeouts(),
            hook_panics: usage.hook_panics(),
            invalid_grants: usage.invalid_grants(),
            engine_error: self.registry.engine_error().map(|why| why.to_string()),
            lost_appends,
            missing_channels,
        }
    }

    /// Whether the engine that keeps the logs can be reached, for a readiness probe. With the logs in memory it always can.
    ///
    /// Acknowledged appends that were lost do not make it unhealthy: see [`last_loss`](Self::last_loss).
    ///
    /// While it cannot, parked requests stay parked, the application's own requests pass through, and what needs the engine is
    /// answered 503 with a `Retry-After`.
    ///
    /// # Errors
    ///
    /// For how long it has been out of reach, and why.
    ///
    /// ```
    /// # use tower_comet::Comet;
    /// assert!(Comet::new().health().is_ok());
    /// ```
    pub fn health(&self) -> Result<(), Unhealthy> {
        self.registry.health()
    }

    /// Returns the last loss of acknowledged appends that this process has found, for an alert or a status page. `None` if there
    /// was none, and always with the logs in memory.
    ///
    /// After each reconnect the process verifies that Redis still has the appends that it acknowledged to it:
    /// [`Stats::lost_appends`](crate::Stats::lost_appends) and [`Stats::missing_channels`](crate::Stats::missing_channels) say what is
    /// counted. The loss is the sum of one reconnect, and stays until a later reconnect finds another one.
    ///
    /// It is no part of [`health`](Self::health), because a loss is an event: the process can serve requests after it. A readiness probe
    /// that failed would take all nodes out of the load balancer at once, and nothing would be recovered.
    ///
    /// ```
    /// # use tower_comet::Comet;
    /// let comet = Comet::new();
    /// if let Some(loss) = comet.last_loss() {
    ///     println!("{loss}");
    /// }
    /// assert!(comet.last_loss().is_none());
    /// ```
    #[must_use]
    pub fn last_loss(&self) -> Option<Loss> {
        self.registry.last_loss()
    }

    /// Ends all waits: what is parked is answered at once (204, at its own offset, so that nothing is
    /// lost), and later waits are refused (503 with a `Retry-After` that differs from client to client).
    ///
    /// Reading what there is, and publishing, go on; there is no way back. Answers given from now on
    /// carry `Connection: close` on HTTP/1.1, so that a client's next request reaches another node.
    ///
    /// Without it a server that shuts down gracefully waits for every parked request: see [`close_on`](Self::close_on).
    ///
    /// This wakes all waiters on the calling thread before it returns, which takes some milliseconds for 100,000. A
    /// server with that many should use [`close_over`](Self::close_over), which lets other tasks run in between.
    ///
    /// ```
    /// # use tower_comet::{Comet, Error};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let comet = Comet::new();
    /// let news = comet.channel("/news");
    /// let mut reader = news.subscribe();
    /// comet.close();
    ///
    /// news.publish("still taken").await?;
    /// assert!(reader.recv().await?.is_some(), "and read");
    /// assert!(matches!(reader.recv().await, Err(Error::ShutDown)), "but nothing waits");
    /// # Ok::<(), Error>(())
    /// # }).unwrap();
    /// ```
    pub fn close(&self) {
        self.registry.close();
    }

    /// Whether [`close`](Self::close) was called, or [`close_over`](Self::close_over) has begun.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.registry.is_closing()
    }

    /// Waits for a signal and then [`close`](Self::close)s: the future to hand to a server's graceful shutdown.
    ///
    /// ```
    /// # use tower_comet::Comet;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let comet = Comet::new();
    /// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    /// let closed = comet.close_on(stopped);
    /// // axum::serve(listener, app).with_graceful_shutdown(closed)
    /// stop.send(()).unwrap();
    /// closed.await;
    /// assert!(comet.is_closing());
    /// # });
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropped before the signal, nothing is closed.
    pub fn close_on<F: Future>(&self, signal: F) -> impl Future<Output = ()> + use<F> {
        let comet = self.clone();
        async move {
            signal.await;
            comet.close();
        }
    }

    /// Ends all waits, a few at a time, evenly over a duration, so that clients do not come back as one
    /// herd; new waits are refused from the start. Closes at the end, as [`close`](Self::close) does, except that other tasks run
    /// in between.
    ///
    /// # Cancel safety
    ///
    /// Dropped on the way, new waits stay refused and those that were not ended yet stay parked.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its timer, when it is polled.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
    /// # use std::time::Duration;
    /// # use tower_comet::Comet;
    /// let comet = Comet::new();
    /// comet.close_over(Duration::from_secs(10)).await;
    /// comet.drained().await;
    /// assert!(comet.is_closing() && comet.waiters() == 0);
    /// # });
    /// ```
    pub fn close_over(&self, duration: Duration) -> impl Future<Output = ()> + use<> {
        /// Short enough that no step is a herd of its own.
        const STEP: Duration = Duration::from_millis(10);
        let registry = self.registry.clone();
        async move {
            registry.drain();
            let waiting = registry.usage().waits() as u128;
            let steps = duration.as_millis() / STEP.as_millis();
            let (mut step, mut walk) = (tokio::time::interval(STEP), Walk::default());
            step.tick().await;
            for left in (0..steps).rev() {
                // A line from all to none: who leaves by another way is one less to release.
                let stay = usize::try_from(waiting * left / steps).unwrap_or(usize::MAX);
                registry.release(&mut walk, registry.usage().waits().saturating_sub(stay)).await;
                step.tick().await;
            }
            registry.close_sliced().await;
        }
    }

    /// Resolves when nothing is parked. It closes nothing: call [`close`](Self::close) first, or it may take as long
    /// as the longest wait, and for ever while clients come back.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn drained(&self) -> impl Future<Output = ()> + Send + use<> {
        Drained::new(self.registry.clone())
    }
}

impl Default for Comet {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Comet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Comet").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// What is in use and what has been done: see [`Comet::stats`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Channels that have a log, and forks that are being made.
    pub channels: usize,
    /// Parked requests, and subscriptions in `recv`.
    pub waiters: usize,
    /// Bytes of all history, as [`CometBuilder::max_history`] counts them.
    pub history_bytes: usize,
    /// Bytes of memory that request bodies use while they are being received, counted as for
    /// [`CometBuilder::max_receiving`].
    pub receiving_bytes: usize,
    /// Bytes that responses hold and no channel keeps, counted as for [`CometBuilder::max_reading`].
    pub reading_bytes: usize,
    /// Appends since the start.
    pub appends: u64,
    /// Waits over HTTP that were answered with messages since the start.
    pub delivered: u64,
    /// Waits over HTTP that timed out since the start.
    pub timed_out: u64,
    /// Responses that were cut since the start, because of [`CometBuilder::max_reading`].
    pub cut_responses: u64,
    /// Calls of an [`Authorize`](crate::Authorize) hook that exceeded
    /// [`Route::hook_timeout`](crate::Route::hook_timeout) since the start.
    pub hook_timeouts: u64,
    /// Calls of an [`Authorize`](crate::Authorize) hook, or of the key function of
    /// [`Route::max_waits_per`](crate::Route::max_waits_per), that panicked since the start.
    pub hook_panics: u64,
    /// Grants of an [`Authorize`](crate::Authorize) hook that named a channel with an invalid name, since the start. Each was
    /// answered with 500, reason `invalid-grant`: see [`Error::Name`](crate::Error::Name) for what is valid.
    pub invalid_grants: u64,
    /// Why the logs were last out of reach, or appends refused, in the words of Redis or of the network. It stays after
    /// [`Comet::health`] is well again. `None` with the logs in memory.
    pub engine_error: Option<String>,
    /// Appends that Redis had acknowledged to this process and has lost, since the start. Always 0 with the logs in memory.
    ///
    /// The process remembers the last acknowledged append of each of the last 10,000 channels that it has written to. After each reconnect
    /// it asks Redis for them. An append is lost if its channel exists and the log does not have it: Redis
    /// restarted from an older snapshot, a replica that lagged took over, or the log was evicted or replaced by another one. At
    /// most one append is counted for each channel and connection, so more may be lost.
    ///
    /// An append that was trimmed is not lost, and neither is one of a channel that was deleted or has expired.
    pub lost_appends: u64,
    /// Channels that this process has written to and that did not exist any more after a reconnect, since the start. Counted as
    /// [`lost_appends`](Self::lost_appends) are, and apart from them: the channel's keys were lost, evicted or deleted by hand.
    ///
    /// A channel is not missing if Redis shows that it was deleted or that its lifetime has ended, or if
    /// the last append is older than [`Retention::age`](crate::Retention::age).
    pub missing_channels: u64,
}
