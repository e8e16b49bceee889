//! How a request on a route ended, for outer layers.

/// How a request on a comet route ended: in the extensions of the layer's own answers, for layers outside that trace
/// or count. Answers of the inner service have none.
///
/// A wait is not a slow request: whoever measures latency outside of the layer should leave out what
/// carries one of these.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use http::Request;
/// use http_body_util::Empty;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_comet::{Comet, CometLayer, Outcome, ResponseBody, Route};
///
/// let inner = service_fn(|_: Request<Empty<bytes::Bytes>>| async {
///     Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<bytes::Bytes>::new()))
/// });
/// let service = CometLayer::new(Comet::new()).route("/events/{channel}", Route::new().read_by_anyone()).layer(inner);
/// let request = Request::get("/events/news?offset=-1").body(Empty::new()).unwrap();
/// let response = service.oneshot(request).await?;
/// assert_eq!(response.extensions().get(), Some(&Outcome::Read));
/// # Ok::<(), std::convert::Infallible>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// A read or a look that did not wait.
    Read,
    /// An append, or the end of a stream.
    Appended,
    /// A channel was created, or was there.
    Created,
    /// A channel was deleted.
    Deleted,
    /// An event stream began.
    Streamed,
    /// A live read that found messages: at once, or after a wait.
    Delivered,
    /// A wait that found nothing in its time.
    TimedOut,
    /// A wait that ended because the stream has, or the channel was deleted.
    Ended,
    /// A wait that ended because all were: see [`Comet::close`](crate::Comet::close).
    Released,
    /// The offset was no place to resume from: 410.
    Gone,
    /// The route's [`Authorize`](crate::Authorize) said no.
    Denied,
    /// A limit was reached, the server is closing, or the route's [`Authorize`](crate::Authorize) hook exceeded
    /// [`Route::hook_timeout`](crate::Route::hook_timeout): 503, 429, 413, 408.
    Refused,
    /// The route's [`Authorize`](crate::Authorize) hook panicked, or the key function of
    /// [`Route::max_waits_per`](crate::Route::max_waits_per): 500.
    Failed,
    /// The request was no good: any other 4xx.
    Invalid,
}
