//! What one route does.

use http::{Method, request::Parts};
use std::{hash::Hash, sync::Arc, time::Duration};

use crate::{Action, Authorize, RoutePattern, engine::MediaType, gate::Gate, name::Slashes, protocol::Clients};

/// What a [`CometLayer`](crate::CometLayer) does with requests on one path pattern.
///
/// A route must name its readers: by [`read_by`](Route::read_by), by [`read_by_anyone`](Route::read_by_anyone), or by
/// [`CometLayer::read_by`](crate::CometLayer::read_by) for every route that names none. If a route has no readers,
/// applying the layer panics. Writing is off until the route names its writers.
///
/// * [`Route::new`] is a *comet* route: a bare `GET` waits for the next message, waiting on a
///   channel that does not exist yet is allowed, and methods that the route does not serve go to the inner
///   service, so that an application can have its own `POST` handler on the path.
/// * [`Route::strict`] follows Durable Streams 1.0 to the letter: a bare `GET` reads from the start, an unknown channel
///   is 404, and the route owns its path: other methods are 405, except `OPTIONS` and `CONNECT`, which go to the inner service.
///
/// Without an inner service ([`CometLayer::into_service`](crate::CometLayer::into_service)) other methods are 405 on both,
/// and `OPTIONS` is 204.
///
/// ```
/// use std::time::Duration;
/// use tower_comet::{Comet, CometLayer, Route};
///
/// let layer = CometLayer::new(Comet::new())
///     .route("/events/{channel}", Route::new().read_by_anyone().max_wait(Duration::from_secs(50)))
///     .route("/rooms/{room}", Route::new().read_by_anyone().append_by_anyone())
///     .route("/v1/stream/{*path}", Route::strict().read_by_anyone());
/// assert!(layer.check().is_ok());
/// ```
#[derive(Clone, Debug)]
#[must_use = "a route does nothing until a layer has it"]
pub struct Route {
    pub(crate) strict: bool,
    pub(crate) content_type: MediaType,
    pub(crate) max_wait: Duration,
    pub(crate) max_chunk: usize,
    pub(crate) body_timeout: Duration,
    pub(crate) hook_timeout: Duration,
    pub(crate) channel: Option<String>,
    pub(crate) slashes: Slashes,
    /// `Shut` if the route names no readers. Then the layer's hook applies.
    pub(crate) read: Gate,
    pub(crate) append: Gate,
    pub(crate) create: Gate,
    pub(crate) close: Gate,
    pub(crate) delete: Gate,
    pub(crate) max_age: Option<Duration>,
    pub(crate) clients: Option<Arc<Clients>>,
    /// Its pattern, once a layer has the route.
    pub(crate) pattern: Option<RoutePattern>,
}

impl Route {
    /// A comet route: see [`Route`].
    pub fn new() -> Self {
        Self {
            strict: false,
            content_type: MediaType::Json,
            max_wait: Duration::from_secs(25),
            max_chunk: 1024 * 1024,
            body_timeout: Duration::from_secs(10),
            hook_timeout: Duration::from_secs(10),
            channel: None,
            slashes: Slashes::Refused,
            read: Gate::Shut,
            append: Gate::Shut,
            create: Gate::Shut,
            close: Gate::Shut,
            delete: Gate::Shut,
            max_age: None,
            clients: None,
            pattern: None,
        }
    }

    /// A strict route: see [`Route`].
    pub fn strict() -> Self {
        Self { strict: true, ..Self::new().content_type("application/octet-stream") }
    }

    /// Names the channel by a template over the parameters of the route's pattern, `"{room}"`, instead of by the
    /// path: for two routes that are to share channels, or for shorter names in the code.
    ///
    /// ```
    /// use tower_comet::{Comet, CometLayer, Route};
    ///
    /// let comet = Comet::new();
    /// let layer = CometLayer::new(comet.clone())
    ///     .route("/rooms/{room}", Route::new().read_by_anyone().channel("room:{room}"))
    ///     .route("/v2/rooms/{room}/messages", Route::new().read_by_anyone().channel("room:{room}"));
    /// // Both routes read what is published here:
    /// let room = comet.channel("room:42");
    /// # let _ = (layer, room);
    /// ```
    ///
    /// Two requests have one channel if their names are equal, so separate parameters by a character that no parameter
    /// contains: `{a}-{b}` makes `x-y-z` of the paths `x-y/z` and `x/y-z`. A `/` is safe, because a parameter of one segment
    /// has none. A template that can only make invalid names is refused by [`CometLayer::route`](crate::CometLayer::route).
    pub fn channel(mut self, template: impl Into<String>) -> Self {
        self.channel = Some(template.into());
        self
    }

    /// Accepts an encoded `/` (`%2F`) in a parameter. It stays encoded in the channel's name, in upper case, and so does an
    /// encoded `%`, so that different paths have different names. By default a path with `%2F` is refused with 400, because
    /// proxies and frameworks disagree on what it means: some decode it, and take it for a separator.
    ///
    /// The same applies to sources of forks on this route. In process, the name is the encoded one.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// use axum::{body::{Body, to_bytes}, http::Request};
    /// use tower::ServiceExt;
    /// use tower_comet::{Comet, CometLayer, Route};
    ///
    /// let comet = Comet::new();
    /// comet.channel("/runs/chat%2F42").publish("hello").await?;
    /// let runs = CometLayer::new(comet).route("/runs/{run}", Route::new().read_by_anyone().escaped_slashes()).into_service();
    ///
    /// let response = runs.oneshot(Request::get("/runs/chat%2f42?offset=-1").body(Body::empty())?).await?;
    /// assert_eq!(&to_bytes(Body::new(response.into_body()), 100).await?[..], br#"["hello"]"#);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn escaped_slashes(mut self) -> Self {
        self.slashes = Slashes::Escaped;
        self
    }

    /// The content type of channels that are made on this route, and of those that nobody has made yet. Default
    /// `application/json`; on a strict route `application/octet-stream`, where a `PUT` may say another.
    ///
    /// # Panics
    ///
    /// If it is malformed: see [`Error::MediaType`](crate::Error::MediaType).
    #[track_caller]
    pub fn content_type(mut self, content_type: &str) -> Self {
        match content_type.parse() {
            Ok(content_type) => self.content_type = content_type,
            Err(error) => panic!("{content_type:?}: {error}"),
        }
        self
    }

    /// How long a request may wait. Default 25 s.
    ///
    /// A client may ask for less (`Prefer: wait=10` or `?timeout=10`, in seconds), never for more. Up to a sixteenth is taken off
    /// at random, so that time-outs do not march in step. Stay below 55 s: proxies cut connections that are silent for 60.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// The bytes of messages in one answer, cut between appends; an append that is larger by itself goes whole.
    /// Default 1 MiB. A client that is not told `Stream-Up-To-Date` asks for the rest. In an event stream it is 64 KiB an event, if
    /// this is not less.
    ///
    /// What a client holds that stops reading is 64 KiB of its own, whatever this is, and beside that what it shares with the history.
    pub fn max_chunk(mut self, bytes: usize) -> Self {
        self.max_chunk = bytes;
        self
    }

    /// How long the body of a request may take to arrive as a whole. Default 10 s. Beyond: 408.
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.body_timeout = timeout;
        self
    }

    /// Bounds the time that an [`Authorize`] hook of this route takes to decide. Default 10 s. A hook that exceeds it is
    /// dropped, and the request is answered with 503, `Retry-After` and the reason `hook-timeout`.
    ///
    /// The limit applies to each call of a hook. A `POST` that appends and closes calls two hooks, and a fork calls one
    /// for the channel and one for its source, with the limit of the source's route. A hook that blocks its thread
    /// instead of returning `Poll::Pending` cannot be timed out.
    ///
    /// [`Stats::hook_timeouts`](crate::Stats::hook_timeouts) counts the hooks that exceeded it.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
    /// use axum::{Router, body::Body, http::Request};
    /// use std::{future::pending, time::Duration};
    /// use tower::ServiceExt;
    /// use tower_comet::{Access, Comet, CometLayer, Denied, Route};
    ///
    /// let comet = Comet::new();
    /// let route = Route::new().hook_timeout(Duration::from_secs(2)).read_by(|_: Access| pending::<Result<(), Denied>>());
    /// let app = Router::<()>::new().layer(CometLayer::new(comet.clone()).route("/rooms/{room}", route));
    ///
    /// let response = app.oneshot(Request::get("/rooms/42").body(Body::empty())?).await?;
    /// assert_eq!(response.status(), 503);
    /// assert_eq!(comet.stats().hook_timeouts, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn hook_timeout(mut self, timeout: Duration) -> Self {
        self.hook_timeout = timeout;
        self
    }

    /// Limits the waits of each client: parked requests and event streams, on all channels of this route together.
    /// Beyond: 429 with `Retry-After` and the reason `waits-per-client`,
    /// [`Limit::WaitsPerClient`](crate::Limit::WaitsPerClient). Off by default, so one client can use up all of
    /// [`max_waits`](crate::CometBuilder::max_waits).
    ///
    /// `key` identifies the client from the head of a request, which includes the extensions that outer layers have
    /// set: by the user's id, an API key or the IP address. A request for which it returns `None` is not limited. The
    /// layer calls it once for each `GET` that may wait, before the [`Authorize`] hook. A request that is answered at
    /// once does not count.
    ///
    /// Each route has its own count, which clones of the `Route` and of the layer share. Only clients that have a wait
    /// are stored, each as 128 bits of a keyed hash of its key, so there are at most as many as waits.
    ///
    /// A `key` that panics, in the call or in the key's `Hash` or `Drop`, fails its own request with 500 and the reason
    /// `key-panicked`, and counts in [`Stats::hook_panics`](crate::Stats::hook_panics).
    ///
    /// # What it cannot do
    ///
    /// A wait counts until it ends, and it ends early only if the server notices that its client is gone. On HTTP/2
    /// hyper notices at once. On HTTP/1.1 it notices at once if the client has sent nothing after its request; but
    /// after a single byte of a next request hyper reads nothing more from the connection until it has sent the
    /// response. A layer has the request and its body, not the connection, so it cannot notice either. A client can
    /// therefore connect, send a request and one more byte, disconnect and repeat this: each of these waits stays
    /// parked until it times out, after [`max_wait`](Self::max_wait) at most, although the client has no connection.
    /// This limit bounds the number of these waits, and a shorter `max_wait` their duration. An event stream ends when
    /// hyper fails to write to the closed connection: with one of its next two comments, 15 to 30 s later.
    ///
    /// The body of a `GET` has no meaning, but an unread body would hide the disconnect in the same way. So on HTTP/1.1
    /// the layer reads the body while the request waits: up to 64 KiB, otherwise 400, and within
    /// [`body_timeout`](Self::body_timeout), otherwise 408.
    ///
    /// The limit does not bound connections, requests that do not wait, or clients that can get many keys.
    ///
    /// # Which key
    ///
    /// Clients behind one NAT or one company's proxy share an address, so a limit by address must leave room for them:
    /// a user's id is better where there is one. Behind a proxy of your own, the peer is the proxy; take the address
    /// from the header that the proxy *sets* (not one that it passes on), and only if nothing else can reach the
    /// server. Use only the first 64 bits of an IPv6 address, because one client usually has all addresses that begin
    /// with them.
    ///
    /// ```
    /// use axum::extract::ConnectInfo;
    /// use http::request::Parts;
    /// use std::net::{IpAddr, SocketAddr};
    /// use tower_comet::Route;
    ///
    /// // axum puts it into the extensions: `app.into_make_service_with_connect_info::<SocketAddr>()`.
    /// let by_peer = Route::new().read_by_anyone().max_waits_per(100, |request: &Parts| {
    ///     let ConnectInfo(peer) = request.extensions.get::<ConnectInfo<SocketAddr>>()?;
    ///     Some(match peer.ip() {
    ///         IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & !0 << 64).into()),
    ///         ip => ip,
    ///     })
    /// });
    ///
    /// // Behind a proxy that is known to overwrite the header.
    /// let by_proxy = Route::new().read_by_anyone().max_waits_per(100, |request: &Parts| request.headers.get("x-real-ip").cloned());
    /// # let _ = (by_peer, by_proxy);
    /// ```
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
    /// use axum::{Router, body::Body, http::{Request, request::Parts}};
    /// use std::time::Duration;
    /// use tower::ServiceExt;
    /// use tower_comet::{Comet, CometLayer, Route};
    ///
    /// // Set by a layer outside, which authenticates the request.
    /// #[derive(Clone, Hash)]
    /// struct User(u64);
    ///
    /// let route = Route::new().read_by_anyone().max_waits_per(2, |request: &Parts| request.extensions.get::<User>().cloned());
    /// let app = Router::<()>::new().layer(CometLayer::new(Comet::new()).route("/events/{channel}", route));
    /// let get = |user| app.clone().oneshot(Request::get("/events/news").extension(User(user)).body(Body::empty()).unwrap());
    ///
    /// let parked = [tokio::spawn(get(1)), tokio::spawn(get(1))];
    /// tokio::time::sleep(Duration::from_secs(1)).await;
    /// assert_eq!(get(1).await?.status(), 429);
    /// assert_eq!(get(2).await?.status(), 204, "another user's wait, which times out");
    /// # drop(parked);
    /// # Ok::<(), std::convert::Infallible>(())
    /// # }).unwrap();
    /// ```
    pub fn max_waits_per<K: Hash>(
        mut self,
        waits: usize,
        key: impl Fn(&Parts) -> Option<K> + Send + Sync + 'static,
    ) -> Self {
        self.clients = Some(Arc::new(Clients::new(waits, key)));
        self
    }

    /// Sets the hook that authorizes reading and waiting. It replaces an earlier choice, and takes precedence over
    /// [`CometLayer::read_by`](crate::CometLayer::read_by).
    pub fn read_by(mut self, authorize: impl Authorize) -> Self {
        self.read = Gate::ask(authorize);
        self
    }

    /// Allows anyone who can reach the server to read and wait. It replaces an earlier choice, and takes precedence
    /// over [`CometLayer::read_by`](crate::CometLayer::read_by).
    ///
    /// Authentication in front of the route still applies. [Placement](crate::placement) lists the arrangements of
    /// layers that put it there.
    pub fn read_by_anyone(mut self) -> Self {
        self.read = Gate::Open;
        self
    }

    /// Allows appending by `POST`, and asks who may.
    pub fn append_by(mut self, authorize: impl Authorize) -> Self {
        self.append = Gate::ask(authorize);
        self
    }

    /// Allows appending by `POST` to anyone who can reach the server.
    ///
    /// A body is bounded in [size](crate::CometBuilder::max_append) and [time](Self::body_timeout), and all bodies
    /// together in [memory](crate::CometBuilder::max_receiving). The layer does not bound the number of concurrent
    /// requests.
    pub fn append_by_anyone(mut self) -> Self {
        self.append = Gate::Open;
        self
    }

    /// Allows creating by `PUT`, and sets the hook that authorizes it. For a fork the layer also calls the hook of the
    /// source's route for [`Action::Read`]. It does not call a guard in front of that route: see [placement](crate::placement).
    pub fn create_by(mut self, authorize: impl Authorize) -> Self {
        self.create = Gate::ask(authorize);
        self
    }

    /// Allows anyone who can reach the server to create by `PUT`. Forks are authorized as with
    /// [`create_by`](Self::create_by).
    pub fn create_by_anyone(mut self) -> Self {
        self.create = Gate::Open;
        self
    }

    /// Allows ending the stream, by `POST` with `Stream-Closed: true`, and asks who may. An append that ends the stream with
    /// it must be allowed both.
    pub fn close_by(mut self, authorize: impl Authorize) -> Self {
        self.close = Gate::ask(authorize);
        self
    }

    /// Allows ending the stream to anyone who can reach the server.
    pub fn close_by_anyone(mut self) -> Self {
        self.close = Gate::Open;
        self
    }

    /// Allows deleting by `DELETE`, and asks who may.
    pub fn delete_by(mut self, authorize: impl Authorize) -> Self {
        self.delete = Gate::ask(authorize);
        self
    }

    /// Allows deleting to anyone who can reach the server.
    pub fn delete_by_anyone(mut self) -> Self {
        self.delete = Gate::Open;
        self
    }

    /// Lets caches keep what was read, for so long: for channels that many read from the same place. Off by default:
    /// everything is `no-store`.
    ///
    /// Only answers with messages in them are kept; `private` ones, by the client alone, if the route asks who may read. An
    /// empty answer, a time-out and a refusal never are.
    pub fn cache_for(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// Whether the layer answers this method, rather than the inner service.
    pub(crate) fn serves(&self, method: &Method) -> bool {
        match *method {
            // What a CORS layer or an upgrade is for.
            Method::OPTIONS | Method::CONNECT => false,
            Method::GET | Method::HEAD => true,
            Method::POST if !self.append.is_shut() || !self.close.is_shut() => true,
            Method::PUT if !self.create.is_shut() => true,
            Method::DELETE if !self.delete.is_shut() => true,
            _ => self.strict,
        }
    }

    pub(crate) fn gate(&self, action: Action) -> &Gate {
        match action {
            Action::Read => &self.read,
            Action::Append => &self.append,
            Action::Create => &self.create,
            Action::Close => &self.close,
            Action::Delete => &self.delete,
        }
    }
}

impl Default for Route {
    fn default() -> Self {
        Self::new()
    }
}
