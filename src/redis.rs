//! Channels whose logs are on Redis.

use std::{fmt, sync::Arc};

use crate::{
    Comet, RedisError, Retention,
    engine::{Credentials, Redis, Remote},
    fault_injection::Faults,
    registry::{Limits, Registry, connect, maintain_remote},
};

/// Connects a [`Comet`] to Redis or Valkey, version 6 or later, where the logs of its channels then are.
///
/// Any number of processes with one Redis and one prefix have the same channels: any of them takes a publish, any of them
/// holds the wait. Routes, layers and clients stay as they are.
///
/// * What was acknowledged is in Redis; how safe it is there is for Redis's persistence to say. A client that comes back to a log
///   which has lost something is told (410), never given what does not follow.
/// * While Redis is out of reach, parked requests stay parked, and what needs it is answered 503 with a `Retry-After`
///   ([`Error::Unreachable`](crate::Error::Unreachable)). An append whose answer was lost, or that failed in Redis after it was begun, is
///   [`Error::Uncertain`](crate::Error::Uncertain): it may have been made.
/// * If Redis refuses an operation on one channel, that is [`Error::Engine`](crate::Error::Engine), or
///   [`Error::Layout`](crate::Error::Layout) if another version has written the channel's keys. Other channels are not affected.
/// * What is counted and walked ([`Comet::waiters`], [`Comet::channels`], [`Channel::tail`](crate::Channel::tail) and its like) is
///   what this process knows.
/// * The limits on channels and history are of what this process follows and holds; what Redis holds is bounded by its `maxmemory`, with the
///   policy `noeviction`.
/// * How to run Redis, and what is promised when it fails: see [`on_redis`](crate::on_redis).
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_comet::Comet;
///
/// let comet = Comet::builder().redis("redis://127.0.0.1").prefix("shop").connect().await?;
/// comet.channel("/events/news").publish("every process has it").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "this connects nothing until `connect`"]
pub struct RedisBuilder {
    limits: Limits,
    retention: Retention,
    url: String,
    credentials: Option<Credentials>,
    prefix: String,
    faults: Faults,
}

impl RedisBuilder {
    pub(crate) fn new(limits: Limits, retention: Retention, url: &str) -> Self {
        Self {
            limits,
            retention,
            url: url.to_owned(),
            credentials: None,
            prefix: "comet".to_owned(),
            faults: Faults::default(),
        }
    }

    /// Sets the prefix of all keys and topics in Redis. Default `comet`. Processes with another prefix, or another database in their URL,
    /// have other channels.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets a function that returns the user's name (empty for the default user) and the password, in place of those in the URL. It is
    /// called for each new connection, so that a password can be changed without a restart: connections that exist stay, and the
    /// next one uses the new password. It must not block. If it panics, connecting fails, and is tried again.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// use std::sync::{Arc, RwLock};
    /// use tower_comet::Comet;
    ///
    /// let password = Arc::new(RwLock::new("first".to_owned()));
    /// let current = password.clone();
    /// let comet = Comet::builder()
    ///     .redis("redis://127.0.0.1:1")
    ///     .credentials(move || ("shop".to_owned(), current.read().unwrap().clone()))
    ///     .connect()
    ///     .await?;
    /// *password.write().unwrap() = "second".to_owned();
    /// # drop(comet);
    /// # Ok::<(), tower_comet::RedisError>(())
    /// # }).unwrap();
    /// ```
    pub fn credentials(mut self, credentials: impl Fn() -> (String, String) + Send + Sync + 'static) -> Self {
        self.credentials = Some(Arc::new(credentials));
        self
    }

    /// Takes a rule out: the tests are to notice.
    #[cfg(comet_faults)]
    #[doc(hidden)]
    pub fn without(mut self, rule: crate::Invariant) -> Self {
        self.faults.without = Some(rule);
        self
    }

    /// Has forks stop for ever after so many steps, if any, and pin their source for so long.
    #[cfg(comet_faults)]
    #[doc(hidden)]
    pub fn fork_steps(mut self, steps: Option<u32>, pin: std::time::Duration) -> Self {
        (self.faults.fork_steps, self.faults.fork_pin) = (steps, Some(pin));
        self
    }

    /// Connects, and begins to hear what other processes publish. Needs a tokio runtime with its clock and sockets, on which a task
    /// is spawned that ends with the last clone of the [`Comet`].
    ///
    /// It tries an append, a read, a publication and a subscription on keys and a topic of its own, which expire after 10 s. That Redis
    /// is out of reach, or refuses them for a reason that may pass (it loads, it has too few replicas, its disk is full), is no error: the
    /// application starts without it, and [`Comet::health`] has the cause.
    ///
    /// # Errors
    ///
    /// If the URL is malformed or does not lead to a Redis server of its own (but to a Redis Cluster, a Sentinel, or another server), or
    /// Redis refuses the password or a permission. The text and the source have Redis's own words, and never the password.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// use tower_comet::Comet;
    ///
    /// assert!(Comet::builder().redis("not a URL").connect().await.is_err());
    ///
    /// let nobody_there = Comet::builder().redis("redis://127.0.0.1:1").connect().await?;
    /// assert!(nobody_there.health().is_err());
    /// # Ok::<(), tower_comet::RedisError>(())
    /// # }).unwrap();
    /// ```
    pub async fn connect(self) -> Result<Comet, RedisError> {
        let redis = Redis::new(
            &self.url,
            self.credentials,
            &self.prefix,
            self.retention.clone(),
            self.limits.producers,
            self.faults,
        )?;
        let reached = redis.try_out().await?;
        let remote: Arc<dyn Remote> = Arc::new(redis);
        let first = if reached { connect(&*remote).await.ok() } else { None };
        let registry = Arc::new(Registry::elsewhere(self.limits, self.retention, remote.clone(), self.faults));
        if first.is_some() {
            registry.is_reached();
        }
        tokio::spawn(maintain_remote(Arc::downgrade(&registry), remote, first));
        Ok(Comet::with(registry))
    }
}

/// Without the URL: there is a password in it.
impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder")
            .field("prefix", &self.prefix)
            .field("limits", &self.limits)
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}
