//! The routes of an application: a layer, and its own builder.

use std::{error::Error, fmt, sync::Arc};
use tower_layer::Layer;

use crate::{Authorize, Comet, CometRoutes, CometService, Route, gate::Gate, routes::Routes};

/// Answers requests on its routes from the channels of a [`Comet`]: reads, waits, and the writes that a [`Route`] allows.
///
/// The layer is its own builder. Paths are patterns with axum's syntax: `{name}` for a segment,
/// `{*name}` for the rest; of two that match, the more specific wins. Unless the route
/// [names it in another way](Route::channel), a channel is named by the path of its requests, percent-decoded once.
///
/// There are two ways to put the routes into an application. [Placement](crate::placement) has tables of both, and of which
/// arrangements guard a channel.
///
/// # As routes of the application
///
/// [`into_service`](Self::into_service) returns a service that a framework mounts as routes of its own. In axum this is the
/// first choice: `layer`, `route_layer`, `merge`, `nest` and `fallback` do to these routes what they do to any other, so
/// authentication that guards the application's routes guards the channels.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use axum::{Router, body::Body, http::Request, routing::get};
/// use tower::ServiceExt;
/// use tower_comet::{Comet, CometLayer, Route};
///
/// let comet = Comet::new();
/// let channels = CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone()).into_service();
/// let app: Router = Router::new()
///     .route("/", get(|| async { "an ordinary handler" }))
///     .route_service("/events/{channel}", channels);
///
/// comet.channel("/events/news").publish("it works").await?;
///
/// let request = Request::get("/events/news?offset=-1").body(Body::empty())?;
/// let response = app.oneshot(request).await?;
/// let body = axum::body::to_bytes(response.into_body(), 1024).await?;
/// assert_eq!(&body[..], br#"["it works"]"#);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
///
/// # As a layer
///
/// Around any service, of axum, tonic, hyper or tower alone, the layer answers the requests on its routes and passes every
/// other request to the *inner* service untouched. A layer *outside* of it processes all requests, those on the routes
/// included; a layer *inside* of it processes only what the routes do not answer. With `Router::layer` the last call is the
/// outermost, with [`ServiceBuilder`](tower::ServiceBuilder) the first. Put authentication outside:
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use axum::{
///     Router,
///     body::Body,
///     extract::Request,
///     http::StatusCode,
///     middleware::{Next, from_fn},
///     response::Response,
///     routing::get,
/// };
/// use tower::{ServiceBuilder, ServiceExt};
/// use tower_comet::{Comet, CometLayer, Route};
///
/// async fn log_in(request: Request, next: Next) -> Result<Response, StatusCode> {
///     if request.headers().contains_key("authorization") { Ok(next.run(request).await) } else { Err(StatusCode::UNAUTHORIZED) }
/// }
///
/// let comet = CometLayer::new(Comet::new()).route("/events/{channel}", Route::new().read_by_anyone());
/// let app = Router::new().route("/", get(|| async { "an ordinary handler" }));
///
/// let with_calls: Router = app.clone().layer(comet.clone()).layer(from_fn(log_in));
/// let with_a_builder: Router = app.layer(ServiceBuilder::new().layer(from_fn(log_in)).layer(comet));
/// for app in [with_calls, with_a_builder] {
///     let request = Request::get("/events/news?offset=-1").body(Body::empty())?;
///     assert_eq!(app.oneshot(request).await?.status(), StatusCode::UNAUTHORIZED);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
///
/// # Readers
///
/// Every route names its readers, by [`Route::read_by`] or [`Route::read_by_anyone`], or the layer names them for all routes
/// that name none, by [`CometLayer::read_by`]. Otherwise [`into_service`](Self::into_service) and `Layer::layer` panic:
/// see [`check`](Self::check).
#[derive(Clone)]
pub struct CometLayer {
    routes: Arc<Routes>,
}

impl CometLayer {
    /// Returns a layer without routes: every request reaches the inner service.
    #[must_use]
    pub fn new(comet: Comet) -> Self {
        Self { routes: Arc::new(Routes::new(comet)) }
    }

    /// Adds a route.
    ///
    /// # Panics
    ///
    /// If [`try_route`](Self::try_route) returns an error.
    #[must_use]
    #[track_caller]
    pub fn route(self, pattern: &str, route: Route) -> Self {
        match self.try_route(pattern, route) {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// Adds a route, or returns an error if its pattern or its template is wrong.
    ///
    /// # Errors
    ///
    /// If the pattern is malformed or conflicts with an earlier one, or the route's
    /// [template](Route::channel) is malformed or names a parameter that the pattern does not have.
    ///
    /// ```
    /// use tower_comet::{Comet, CometLayer, Route};
    ///
    /// let open = || Route::new().read_by_anyone();
    /// let layer = CometLayer::new(Comet::new()).route("/rooms/{room}", open());
    /// assert!(layer.clone().try_route("/rooms/{id}", open()).is_err(), "a conflict");
    /// assert!(layer.clone().try_route("rooms", open()).is_err(), "no slash");
    /// assert!(layer.try_route("/r/{room}", open().channel("{id}")).is_err(), "no such parameter");
    /// ```
    ///
    /// A route that names no readers is not an error here, because [`CometLayer::read_by`] can follow: see
    /// [`check`](Self::check).
    pub fn try_route(mut self, pattern: &str, route: Route) -> Result<Self, RouteError> {
        Arc::make_mut(&mut self.routes).insert(pattern, route)?;
        Ok(self)
    }

    /// Sets the hook that authorizes reading and waiting on every route that names no readers itself, by
    /// [`Route::read_by`] or [`Route::read_by_anyone`]. The order of the calls does not matter: it applies to routes that are
    /// added before and after. The last call replaces the hooks of earlier ones.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// use axum::{Router, body::Body, http::Request};
    /// use std::future::ready;
    /// use tower::ServiceExt;
    /// use tower_comet::{Access, Comet, CometLayer, Denied, Route};
    ///
    /// #[derive(Clone)]
    /// struct User;
    ///
    /// let users = |access: Access| {
    ///     ready(access.extensions().get::<User>().map(|_| ()).ok_or_else(|| Denied::unauthorized("Bearer")))
    /// };
    /// let channels = CometLayer::new(Comet::new())
    ///     .route("/orders/{id}", Route::new())
    ///     .route("/news", Route::new().read_by_anyone())
    ///     .read_by(users)
    ///     .into_service();
    ///
    /// for (path, status) in [("/orders/1?offset=-1", 401), ("/news?offset=-1", 200)] {
    ///     let request = Request::get(path).body(Body::empty())?;
    ///     assert_eq!(channels.clone().oneshot(request).await?.status(), status, "{path}");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn read_by(mut self, authorize: impl Authorize) -> Self {
        Arc::make_mut(&mut self.routes).set_reader(Gate::ask(authorize));
        self
    }

    /// Checks that every route names its readers, or the layer does. An application can call it at start-up to handle
    /// the error itself; otherwise the layer panics when it is applied to a service.
    ///
    /// # Errors
    ///
    /// If a route neither calls [`Route::read_by`] nor [`Route::read_by_anyone`], and the layer does not call
    /// [`CometLayer::read_by`]. The error names the route.
    ///
    /// ```
    /// use tower_comet::{Comet, CometLayer, Route};
    ///
    /// let layer = CometLayer::new(Comet::new()).route("/events/{channel}", Route::new());
    /// let error = layer.check().unwrap_err();
    /// assert!(error.to_string().starts_with("comet route \"/events/{channel}\": the route does not name its readers"));
    ///
    /// let layer = CometLayer::new(Comet::new()).route("/events/{channel}", Route::new().read_by_anyone());
    /// assert!(layer.check().is_ok());
    /// ```
    pub fn check(&self) -> Result<(), RouteError> {
        self.routes.check()
    }

    /// Returns the routes as a service of their own, without an inner service: to be mounted by axum's
    /// `Router::route_service`, or to be the whole server.
    ///
    /// Clone it to mount it at several paths. Mount it under the same patterns as its routes: it answers a path that is
    /// on none of its routes with 404. The layer's routes match the path that the service receives: inside of axum's
    /// `nest` or `nest_service` that is the path without the prefix, and so is the channel's name.
    /// [Placement](crate::placement) shows how to read and publish under one name there. See
    /// [`public_url`](Self::public_url) for `Location`.
    ///
    /// For another method on the same path, add a handler to the same `MethodRouter`:
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// use axum::{Router, body::Body, extract::{Path, State}, http::{Request, StatusCode}, routing::get_service};
    /// use tower::ServiceExt;
    /// use tower_comet::{Comet, CometLayer, Route};
    ///
    /// async fn say(State(comet): State<Comet>, Path(room): Path<String>, text: String) -> StatusCode {
    ///     let said = comet.channel(format!("/rooms/{room}")).publish(text).await;
    ///     if said.is_ok() { StatusCode::NO_CONTENT } else { StatusCode::SERVICE_UNAVAILABLE }
    /// }
    ///
    /// let comet = Comet::new();
    /// let channels = CometLayer::new(comet.clone()).route("/rooms/{room}", Route::new().read_by_anyone()).into_service();
    /// let app = Router::new().route("/rooms/{room}", get_service(channels).post(say)).with_state(comet);
    ///
    /// let response = app.clone().oneshot(Request::post("/rooms/42").body(Body::from("hello"))?).await?;
    /// assert_eq!(response.status(), 204);
    /// let response = app.oneshot(Request::get("/rooms/42?offset=-1").body(Body::empty())?).await?;
    /// assert_eq!(axum::body::to_bytes(response.into_body(), 1024).await?, r#"["hello"]"#);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Panics
    ///
    /// If [`check`](Self::check) returns an error.
    #[must_use]
    #[track_caller]
    pub fn into_service(self) -> CometRoutes {
        self.assert_complete();
        CometRoutes::new(self.routes)
    }

    #[track_caller]
    fn assert_complete(&self) {
        if let Err(error) = self.check() {
            panic!("{error}");
        }
    }

    /// Sets the base of `Location` after a `PUT`: `https://example.com`, or `https://example.com/api` if the routes receive
    /// paths without that prefix. A slash at its end is ignored. Default: `http` and the host of the request.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// use axum::{Router, body::Body, http::Request};
    /// use tower::ServiceExt;
    /// use tower_comet::{Comet, CometLayer, Route};
    ///
    /// let layer = CometLayer::new(Comet::new())
    ///     .route("/rooms/{room}", Route::new().read_by_anyone().create_by_anyone())
    ///     .public_url("https://example.com/api");
    /// let request = Request::put("/rooms/42").body(Body::empty())?;
    /// let response = Router::<()>::new().layer(layer).oneshot(request).await?;
    /// assert_eq!(response.headers()["location"], "https://example.com/api/rooms/42");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn public_url(mut self, url: &str) -> Self {
        Arc::make_mut(&mut self.routes).set_public_url(url);
        self
    }
}

impl<S> Layer<S> for CometLayer {
    type Service = CometService<S>;

    /// Puts the routes around a service.
    ///
    /// # Panics
    ///
    /// If [`check`](CometLayer::check) returns an error. With axum, `Router::layer` panics.
    #[track_caller]
    fn layer(&self, inner: S) -> Self::Service {
        self.assert_complete();
        CometService::new(inner, self.routes.clone())
    }
}

impl fmt::Debug for CometLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CometLayer").field("routes", &self.routes).finish_non_exhaustive()
    }
}

/// A route that is not valid ([`CometLayer::try_route`]) or not complete ([`CometLayer::check`]).
#[derive(Debug)]
pub struct RouteError {
    pattern: String,
    reason: String,
}

impl RouteError {
    pub(crate) fn new(pattern: &str, reason: impl fmt::Display) -> Self {
        Self { pattern: pattern.to_owned(), reason: reason.to_string() }
    }
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "comet route {:?}: {}", self.pattern, self.reason)
    }
}

impl Error for RouteError {}
