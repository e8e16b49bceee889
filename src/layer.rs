//! The routes, as a layer.

use std::{error::Error, fmt, sync::Arc};
use tower_layer::Layer;

use crate::{Comet, CometService, Route, routes::Routes};

/// Turns requests on its routes into reads of, and waits on, the channels of a [`Comet`]; every other request reaches
/// the inner service untouched.
///
/// The layer is its own builder. Paths are patterns with axum's syntax: `{name}` for a segment,
/// `{*name}` for the rest; of two that match, the more specific wins. Unless the route
/// [says otherwise](Route::channel), a channel is named by the path that it is read at, percent-decoded once.
///
/// In axum, add it last, to the outermost router: what is inside of it is then untouched, and the paths are
/// the full ones.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use axum::{Router, body::Body, http::Request, routing::get};
/// use tower::ServiceExt;
/// use tower_comet::{Comet, CometLayer, Route};
///
/// let comet = Comet::new();
/// let app: Router = Router::new()
///     .route("/", get(|| async { "the application's own" }))
///     .layer(CometLayer::new(comet.clone()).route("/events/{channel}", Route::new()));
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
#[derive(Clone)]
pub struct CometLayer {
    routes: Arc<Routes>,
}

impl CometLayer {
    /// A layer without routes: everything reaches the inner service.
    #[must_use]
    pub fn new(comet: Comet) -> Self {
        Self { routes: Arc::new(Routes::new(comet)) }
    }

    /// Adds a route.
    ///
    /// # Panics
    ///
    /// Where [`try_route`](Self::try_route) is an error.
    #[must_use]
    #[track_caller]
    pub fn route(self, pattern: &str, route: Route) -> Self {
        match self.try_route(pattern, route) {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// Adds a route, whose pattern is not known to be right.
    ///
    /// # Errors
    ///
    /// If the pattern is malformed or conflicts with one that is there, or the route's
    /// [template](Route::channel) is malformed or names a parameter that the pattern does not have.
    ///
    /// ```
    /// use tower_comet::{Comet, CometLayer, Route};
    ///
    /// let layer = CometLayer::new(Comet::new()).route("/rooms/{room}", Route::new());
    /// assert!(layer.clone().try_route("/rooms/{id}", Route::new()).is_err(), "a conflict");
    /// assert!(layer.clone().try_route("rooms", Route::new()).is_err(), "no slash");
    /// assert!(layer.try_route("/r/{room}", Route::new().channel("{id}")).is_err(), "no such parameter");
    /// ```
    pub fn try_route(mut self, pattern: &str, route: Route) -> Result<Self, RouteError> {
        Arc::make_mut(&mut self.routes).insert(pattern, route)?;
        Ok(self)
    }

    /// Where the routes are as the outside sees them, `https://example.com` or `https://example.com/api`: what `Location`
    /// begins with after a `PUT`. A slash at its end does not count. Default: `http` and the host that the request was sent to.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// use axum::{Router, body::Body, http::Request};
    /// use tower::ServiceExt;
    /// use tower_comet::{Comet, CometLayer, Route};
    ///
    /// let layer = CometLayer::new(Comet::new())
    ///     .route("/rooms/{room}", Route::new().create_by_anyone())
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

    fn layer(&self, inner: S) -> Self::Service {
        CometService::new(inner, self.routes.clone())
    }
}

impl fmt::Debug for CometLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CometLayer").field("routes", &self.routes).finish_non_exhaustive()
    }
}

/// A route that cannot be: see [`CometLayer::try_route`].
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
