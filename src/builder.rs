//! The limits that a `Comet` is made with.

use std::sync::Arc;

use crate::{
    Comet, Retention,
    registry::{Limits, Registry},
};

/// Limits for a [`Comet`]: everything that a stranger's request can make grow has one.
///
/// What was acknowledged is never thrown away to stay within them; new appends and waits are refused instead.
///
/// All are limits of one process. On Redis, where the logs are not in it, [`max_history`](Self::max_history) and
/// [`max_channels`](Self::max_channels) are about what it holds of them for those who wait: beyond the first it holds no more than
/// the last append of each, beyond the second it refuses to wait on yet another channel.
///
/// ```
/// use tower_comet::{Comet, Error, Limit};
///
/// let comet = Comet::builder().max_channels(1).build();
/// comet.channel("/a").publish("fits").wait()?;
/// let refused = comet.channel("/b").publish("does not").wait();
/// assert!(matches!(refused, Err(Error::Full(Limit::Channels))));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder makes nothing until `build`"]
pub struct CometBuilder {
    limits: Limits,
    retention: Retention,
}

impl CometBuilder {
    /// How much history each channel keeps. Default 1,000 appends, 1 MiB and 1 hour.
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// The bytes of one append: the body of a `POST`, a published value as JSON. Default 1 MiB. Beyond:
    /// 413, [`Error::TooLarge`](crate::Error::TooLarge).
    pub fn max_append(mut self, bytes: usize) -> Self {
        self.limits.append = bytes;
        self
    }

    /// Sets the limit on the bytes of all history together, including 128 for each append and 64 for each remembered
    /// producer. A fork counts in full, also while it is being made. Default 256 MiB. Beyond: 503, [`Limit::History`](crate::Limit::History).
    pub fn max_history(mut self, bytes: usize) -> Self {
        self.limits.history = bytes;
        self
    }

    /// Sets the limit on the memory for request bodies, in bytes. It applies to all `POST`s and `PUT`s on the layer's
    /// routes together, while their bodies are being received. Default 64 MiB. Beyond: 503 with `Retry-After`,
    /// [`Limit::Receiving`](crate::Limit::Receiving).
    ///
    /// A body counts with the memory that is allocated for it, from its first byte until it is appended or the request
    /// is refused, times out or is dropped. Appended bytes then count for [`max_history`](Self::max_history). Memory is
    /// allocated as bytes arrive, and at most twice as much as has arrived; a `Content-Length` allocates nothing. A
    /// request whose `Content-Length` exceeds the rest of the limit is refused before its body is read, any other
    /// request at the byte that exceeds it. [`Stats::receiving_bytes`](crate::Stats::receiving_bytes) is the memory in
    /// use.
    ///
    /// All clients share this limit. Clients that send large bodies without finishing them can use it up, each body for
    /// [`Route::body_timeout`](crate::Route::body_timeout), and meanwhile `POST`s of others are refused. Reads, waits
    /// and publishing in process are not affected. If the value is below [`max_append`](Self::max_append), larger
    /// appends are always refused. The server's own read buffers are not counted: hyper has one for each connection.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// use axum::{Router, body::Body, http::Request};
    /// use tower::ServiceExt;
    /// use tower_comet::{Comet, CometLayer, Route};
    ///
    /// let comet = Comet::builder().max_receiving(10).build();
    /// let layer = CometLayer::new(comet.clone()).route("/rooms/{room}", Route::new().read_by_anyone().append_by_anyone());
    /// let app = Router::<()>::new().layer(layer);
    ///
    /// let post = |json| Request::post("/rooms/42").header("content-type", "application/json").body(Body::from(json));
    /// assert_eq!(app.clone().oneshot(post("[1, 2]")?).await?.status(), 204);
    /// assert_eq!(app.oneshot(post("[1, 2, 3, 4, 5]")?).await?.status(), 503);
    /// assert_eq!(comet.stats().receiving_bytes, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn max_receiving(mut self, bytes: usize) -> Self {
        self.limits.receiving = bytes;
        self
    }

    /// Sets the limit on the memory that responses hold in addition to the channels' history, in bytes. Default 256 MiB, at
    /// least 256 KiB.
    ///
    /// It counts, for all responses of the layer together:
    ///
    /// * appends that a response is still to send and that the channel does not keep any more, each once, however many
    ///   responses hold it. (A broadcast is one append for each channel.)
    /// * frames, the parts of responses that were handed to the server, until the server drops them. hyper buffers up to
    ///   400 KiB for each HTTP/1.1 connection and each HTTP/2 stream if the client does not read.
    ///
    /// Responses of up to 1 KiB are neither counted nor refused, but events of any size are counted. Messages that the
    /// application holds are not counted, nor are the buffers of layers outside of this one and of servers that copy frames.
    ///
    /// While half of the limit is in use, frames have 4 KiB instead of 64 KiB, and a response of which the server holds more
    /// than 64 KiB *pauses*. At the limit, responses are *cut*: the layer releases the appends that a response holds, first
    /// those of the response whose last frame was sent longest ago. A response that still has no room for its next frame
    /// pauses until there is some. One that has paused for 5 s is cut.
    ///
    /// The body of a response that is cut returns a [`BodyError`](crate::BodyError) instead of its rest, so the client receives
    /// an incomplete response and knows it, on HTTP/1.1, on HTTP/2, and behind a layer that compresses responses. Event streams
    /// end in the same way. The client requests the same offset again, and is answered 410 if the channel does not keep what
    /// follows it any more.
    ///
    /// If there is nothing left to cut, because the server holds all of it, reads of more than 1 KiB are refused: 503 with
    /// `Retry-After`, [`Limit::Reading`](crate::Limit::Reading). [`Stats::reading_bytes`](crate::Stats::reading_bytes) is the
    /// memory in use, [`Stats::cut_responses`](crate::Stats::cut_responses) the number of responses that were cut.
    ///
    /// Responses can hold more than the limit:
    ///
    /// * half of it again: an append of up to 64 KiB that is a response by itself is lent to the server without a copy, up to
    ///   half of the limit, and counts once the channel does not keep it any more.
    /// * 4 KiB for each response: one that would free less is not cut.
    /// * 5 KiB for each event stream, for frames of up to 1 KiB, which need no room. So an idle stream goes on at the limit.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// use axum::{Router, body::{Body, to_bytes}, http::Request};
    /// use tower::ServiceExt;
    /// use tower_comet::{Comet, CometLayer, Retention, Route};
    ///
    /// let comet = Comet::builder().max_reading(1_000_000).retention(Retention::default().appends(1)).build();
    /// let layer = CometLayer::new(comet.clone()).route("/files/{file}", Route::new().read_by_anyone());
    /// let app = Router::<()>::new().layer(layer);
    ///
    /// // Ten clients request a file that is replaced every time, and do not read the response.
    /// let mut responses = Vec::new();
    /// for _ in 0..10 {
    ///     comet.channel("/files/1").publish("x".repeat(300_000)).await?;
    ///     responses.push(app.clone().oneshot(Request::get("/files/1?offset=-1").body(Body::empty())?).await?);
    /// }
    /// assert!(comet.stats().reading_bytes <= 1_000_000);
    /// assert!(comet.stats().cut_responses >= 5);
    ///
    /// assert!(to_bytes(responses.remove(0).into_body(), usize::MAX).await.is_err(), "cut");
    /// let last = responses.remove(8);
    /// drop(responses);
    /// assert_eq!(to_bytes(last.into_body(), usize::MAX).await?.len(), 300_004);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn max_reading(mut self, bytes: usize) -> Self {
        self.limits.reading = bytes.max(256 * 1024);
        self
    }

    /// Sets the limit on the number of channels that have a log. Default 100,000. Beyond: 503,
    /// [`Limit::Channels`](crate::Limit::Channels).
    ///
    /// Two kinds of names do not count. Names that only have waiters have no log, and are removed with their last
    /// waiter. Channels that a [broadcast](Comet::broadcast) created for such waiters never prevent another channel
    /// from being created: they are evicted when all channels together exceed this limit, and
    /// [`max_waits`](Self::max_waits) or this limit, whichever is larger, bounds their number.
    pub fn max_channels(mut self, channels: usize) -> Self {
        self.limits.channels = channels;
        self
    }

    /// The number of waits on all channels together. Default 100,000. Beyond: 503, [`Limit::Waits`](crate::Limit::Waits).
    /// [`Subscription`](crate::Subscription)s are never refused, but do count.
    pub fn max_waits(mut self, waits: usize) -> Self {
        self.limits.waits = waits;
        self
    }

    /// Sets the limit on the number of waits on one channel. Default 100,000. Beyond: 503,
    /// [`Limit::WaitsPerChannel`](crate::Limit::WaitsPerChannel).
    ///
    /// A poll counts from when it parks until it is answered, an event stream from its start to its end, even while it
    /// sends an event. [`Subscription`](crate::Subscription)s are never refused, but count while they wait in `recv`. A
    /// poll that was woken counts until it is answered.
    pub fn max_waits_per_channel(mut self, waits: usize) -> Self {
        self.limits.waits_per_channel = waits;
        self
    }

    /// Sets the number of producers that a channel remembers: those that appended last. Default 256. The next message of
    /// one that was evicted is refused, with 403 or [`Error::UnknownProducer`](crate::Error::UnknownProducer).
    pub fn max_producers(mut self, producers: usize) -> Self {
        self.limits.producers = producers.max(1);
        self
    }

    /// The bytes of a channel's name, decoded. Default 255. Beyond: 400, [`Error::Name`](crate::Error::Name).
    pub fn max_name(mut self, bytes: usize) -> Self {
        self.limits.name = bytes;
        self
    }

    /// Keeps the logs on Redis or Valkey, by a URL: `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS with the
    /// feature `redis-rustls`. For `rediss://` the application installs a cryptography provider of rustls: see
    /// [`on_redis`](crate::on_redis).
    ///
    /// Several processes with one Redis have the same channels: see [`RedisBuilder`](crate::RedisBuilder).
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub fn redis(self, url: &str) -> crate::RedisBuilder {
        crate::RedisBuilder::new(self.limits, self.retention, url)
    }

    /// Makes the channels.
    #[must_use]
    pub fn build(self) -> Comet {
        Comet::with(Arc::new(Registry::new(self.limits, self.retention)))
    }
}
