//! How a request on a route ended, for outer layers.

use std::{fmt, time::Duration};

/// How a request on a route ended, and how long it waited: in the extensions of every response of the layer, for outer layers
/// that trace or count. The inner service's responses have none.
///
/// A wait is not a slow request. A layer that measures latency subtracts [`waited`](Self::waited).
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// use http::Request;
/// use http_body_util::Empty;
/// use std::time::Duration;
/// use tower::ServiceExt;
/// use tower_comet::{Comet, CometLayer, Outcome, OutcomeKind, Route};
///
/// let events = CometLayer::new(Comet::new()).route("/events/{channel}", Route::new().read_by_anyone()).into_service();
/// let request = |uri| Request::get(uri).body(Empty::<bytes::Bytes>::new()).unwrap();
///
/// let response = events.clone().oneshot(request("/events/news?offset=-1")).await?;
/// let outcome: &Outcome = response.extensions().get().unwrap();
/// assert_eq!((outcome.kind(), outcome.waited()), (OutcomeKind::Read, Duration::ZERO));
///
/// let response = events.oneshot(request("/events/news?offset=now&live=long-poll&timeout=10")).await?;
/// let outcome: &Outcome = response.extensions().get().unwrap();
/// assert_eq!(outcome.as_str(), "timed-out");
/// assert!(outcome.waited() > Duration::from_secs(9));
/// # Ok::<(), std::convert::Infallible>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outcome {
    kind: OutcomeKind,
    waited: Duration,
}

impl Outcome {
    pub(crate) fn new(kind: OutcomeKind) -> Self {
        Self { kind, waited: Duration::ZERO }
    }

    pub(crate) fn after(self, waited: Duration) -> Self {
        Self { waited, ..self }
    }

    /// Returns how the request ended.
    #[must_use]
    pub fn kind(&self) -> OutcomeKind {
        self.kind
    }

    /// Returns how long the request waited for messages, to the millisecond. Zero if it was answered at once, and for event
    /// streams, whose response begins at once.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Returns a word for [`kind`](Self::kind), for metrics and logs: `delivered`, `timed-out`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        self.kind.as_str()
    }
}

/// How a request on a route ended: see [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutcomeKind {
    /// A `GET` or `HEAD` that did not wait.
    Read,
    /// An append, or the end of a stream.
    Appended,
    /// A channel was created, or existed.
    Created,
    /// A channel was deleted.
    Deleted,
    /// An event stream began.
    Streamed,
    /// A live read that found messages: at once, or after a wait.
    Delivered,
    /// A wait that timed out without messages.
    TimedOut,
    /// A wait that ended because the channel was closed or deleted.
    Ended,
    /// A wait that ended because the server is closing: see [`Comet::close`](crate::Comet::close).
    Released,
    /// The channel does not keep what follows the offset any more: 410.
    Gone,
    /// The route's [`Authorize`](crate::Authorize) hook denied the request.
    Denied,
    /// A limit was reached, the server is closing, or the route's [`Authorize`](crate::Authorize) hook exceeded
    /// [`Route::hook_timeout`](crate::Route::hook_timeout): 503, 429, 413, 408.
    Refused,
    /// The route's [`Authorize`](crate::Authorize) hook panicked, or the key function of
    /// [`Route::max_waits_per`](crate::Route::max_waits_per): 500.
    Failed,
    /// The request was invalid: any other 4xx.
    Invalid,
}

impl OutcomeKind {
    /// Returns a word for it, for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Appended => "appended",
            Self::Created => "created",
            Self::Deleted => "deleted",
            Self::Streamed => "streamed",
            Self::Delivered => "delivered",
            Self::TimedOut => "timed-out",
            Self::Ended => "ended",
            Self::Released => "released",
            Self::Gone => "gone",
            Self::Denied => "denied",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Invalid => "invalid",
        }
    }
}

impl fmt::Display for OutcomeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
