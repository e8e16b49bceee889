//! Who may do what: the hook that a route asks.

use http::{Extensions, HeaderMap, Method, Uri, request::Parts};
use std::{fmt, future::Future};

use crate::{Denied, RoutePattern, route_pattern::RouteParams};

/// Decides whether a request may do what it asks for.
///
/// Any closure from an [`Access`] to a future of `Result<_, Denied>` is one; what need not wait returns
/// [`std::future::ready`]. It is asked before anything of a request's body is read.
///
/// The layer calls a hook once for each request and action, before the request waits. A reader whose access is revoked keeps
/// receiving until its response ends: up to [`Route::max_wait`](crate::Route::max_wait) (25 s by default) on a poll, up to 60 s on
/// an event stream. Its next request is denied.
///
/// A hook must decide within [`Route::hook_timeout`](crate::Route::hook_timeout); otherwise the layer drops its future
/// and answers 503. A hook that panics (in the call, in a poll of its future or in the drop of that future) denies its
/// own request with 500 and affects no other; with `panic = "abort"` the process ends, as with any panic. The response
/// contains nothing of the panic, which the process's panic hook prints as usual: see [`std::panic::set_hook`].
///
/// A hook needs to know the client: put the middleware that authenticates in front of the routes, and let it store the
/// user in the request's extensions. See [placement](crate::placement). A hook that denies requests without a user
/// guards the channel even if that middleware is in the wrong position.
///
/// ```
/// use std::future::ready;
/// use tower_comet::{Access, CometLayer, Comet, Denied, Route};
///
/// #[derive(Clone)]
/// struct User { admin: bool }
///
/// let admins = |access: Access| {
///     ready(match access.extensions().get::<User>() {
///         Some(user) if user.admin => Ok(()),
///         Some(_) => Err(Denied::forbidden()),
///         None => Err(Denied::unauthorized("Bearer")),
///     })
/// };
/// let layer = CometLayer::new(Comet::new())
///     .route("/audit/{channel}", Route::new().read_by(admins).append_by(admins));
/// # assert!(format!("{layer:?}").contains("/audit/{channel}"));
/// ```
pub trait Authorize: Send + Sync + 'static {
    /// Grants the requested channel or another one (see [`Grant`]), or denies.
    fn authorize(&self, access: Access) -> impl Future<Output = Result<Grant, Denied>> + Send;
}

impl<F, Fut, G> Authorize for F
where
    F: Fn(Access) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<G, Denied>> + Send,
    G: Into<Grant>,
{
    async fn authorize(&self, access: Access) -> Result<Grant, Denied> {
        self(access).await.map(Into::into)
    }
}

/// What a request asks for: an action on a channel, and everything of the request but its body.
///
/// ```
/// use std::future::ready;
/// use tower_comet::{Access, Action, Denied, Route};
///
/// // Anyone may read; writing takes a key.
/// let hook = |access: Access| {
///     let key = access.headers().get("x-key").is_some_and(|key| key == "open sesame");
///     ready(if access.action() == Action::Read || key { Ok(()) } else { Err(Denied::forbidden()) })
/// };
/// let route = Route::new().read_by(hook).append_by(hook);
/// # let _ = route;
/// ```
pub struct Access {
    channel: String,
    action: Action,
    parts: Parts,
    pattern: Option<RoutePattern>,
    params: RouteParams,
}

impl Access {
    /// Creates what the layer passes to a hook, for a test of the hook. It has no route: see
    /// [`with_route_pattern`](Self::with_route_pattern).
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// use http::Request;
    /// use tower_comet::{Access, Action, Authorize, Denied};
    ///
    /// async fn members(access: Access) -> Result<(), Denied> {
    ///     if access.param("room") == Some("lobby") { Ok(()) } else { Err(Denied::forbidden()) }
    /// }
    ///
    /// for (path, granted) in [("/rooms/lobby", true), ("/rooms/vault", false)] {
    ///     let (parts, ()) = Request::get(path).body(()).unwrap().into_parts();
    ///     let access = Access::new(path, Action::Read, parts).with_route_pattern("/rooms/{room}");
    ///     assert_eq!(members.authorize(access).await.is_ok(), granted, "{path}");
    /// }
    /// # });
    /// ```
    #[must_use]
    pub fn new(channel: impl Into<String>, action: Action, parts: Parts) -> Self {
        Self { channel: channel.into(), action, parts, pattern: None, params: RouteParams::default() }
    }

    /// Sets the route's pattern, and the parameters that it finds in the request's path. For a test of a hook.
    ///
    /// # Panics
    ///
    /// If the pattern is malformed or does not match the path.
    #[must_use]
    #[track_caller]
    pub fn with_route_pattern(self, pattern: &str) -> Self {
        let (pattern, path) = (RoutePattern::new(pattern), self.parts.uri.path());
        match pattern.params(path) {
            Ok(Some(params)) => self.on_route(Some(pattern), params),
            Ok(None) => panic!("the pattern {pattern} does not match the path {path}"),
            Err(error) => panic!("the pattern {pattern} is malformed: {error}"),
        }
    }

    pub(crate) fn on_route(self, pattern: Option<RoutePattern>, params: RouteParams) -> Self {
        Self { pattern, params, ..self }
    }

    /// The channel's name, as the route gives it: percent-decoded, and checked.
    #[must_use]
    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// What is to be done with it.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// Returns a parameter of the route's pattern: `room` of `/rooms/{room}`. It is percent-decoded, as the channel's name is.
    /// `None` if the pattern has no such parameter.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name)
    }

    /// Returns the pattern of the route, as it was given to [`CometLayer::route`](crate::CometLayer::route). `None` only in tests.
    #[must_use]
    pub fn route_pattern(&self) -> Option<&str> {
        self.pattern.as_ref().map(RoutePattern::as_str)
    }

    /// Returns the head of the request.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Returns the head of the request, for the application's own extractors. What is changed in it reaches nothing else.
    ///
    /// ```
    /// use axum::{extract::FromRequestParts, http::request::Parts};
    /// use tower_comet::{Access, Denied, Grant, Route};
    ///
    /// struct User { name: String }
    ///
    /// impl<S: Sync> FromRequestParts<S> for User {
    ///     type Rejection = ();
    ///
    ///     async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ()> {
    ///         let name = parts.headers.get("x-user").and_then(|name| name.to_str().ok()).ok_or(())?;
    ///         Ok(Self { name: name.to_owned() })
    ///     }
    /// }
    ///
    /// let inbox = Route::new().read_by(async |mut access: Access| {
    ///     let user = User::from_request_parts(access.parts_mut(), &()).await;
    ///     let user = user.map_err(|()| Denied::unauthorized("Bearer"))?;
    ///     Ok(Grant::channel(format!("/inboxes/{}", user.name)))
    /// });
    /// # let _ = inbox;
    /// ```
    pub fn parts_mut(&mut self) -> &mut Parts {
        &mut self.parts
    }

    /// What outer layers left with the request.
    #[must_use]
    pub fn extensions(&self) -> &Extensions {
        &self.parts.extensions
    }

    /// The request's headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// The request's target, as the layer sees it.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.parts.uri
    }

    /// The request's method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.parts.method
    }
}

/// Without the headers and the query: they are where secrets are.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("channel", &self.channel)
            .field("action", &self.action)
            .field("method", &self.parts.method)
            .field("path", &self.parts.uri.path())
            .finish_non_exhaustive()
    }
}

/// What can be done with a channel over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Reading, and waiting: `GET`, `HEAD`.
    Read,
    /// Appending: `POST` with a body.
    Append,
    /// Creating: `PUT`.
    Create,
    /// Ending the stream: `POST` with `Stream-Closed: true`.
    Close,
    /// Deleting: `DELETE`.
    Delete,
}

/// What an [`Authorize`] allows: the requested channel, or another in its place.
///
/// `()` converts into [`Grant::requested`], so that a hook can return `Ok(())`. `Grant` does not implement `Default`: the
/// `unwrap_or_default()` of a `Result<Grant, Denied>` would turn a denial into a grant.
///
/// ```compile_fail,E0277
/// # use tower_comet::{Denied, Grant};
/// let decision: Result<Grant, Denied> = Err(Denied::forbidden());
/// let grant = decision.unwrap_or_default();
/// ```
///
/// ```
/// use std::future::ready;
/// use tower_comet::{Access, Denied, Grant, Route};
///
/// #[derive(Clone)]
/// struct Tenant(String);
///
/// // `/inbox` is another channel for each tenant: the name comes from the login, not from the path.
/// let inbox = Route::new().read_by(|access: Access| {
///     ready(match access.extensions().get::<Tenant>() {
///         Some(Tenant(tenant)) => Ok(Grant::channel(format!("/tenants/{tenant}/inbox"))),
///         None => Err(Denied::unauthorized("Bearer")),
///     })
/// });
/// # let _ = inbox;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Grant {
    /// `None` for the requested channel.
    channel: Option<String>,
}

impl Grant {
    /// Allows the action on the channel that was requested.
    ///
    /// ```
    /// use tower_comet::Grant;
    ///
    /// assert_eq!(Grant::requested(), Grant::from(()));
    /// assert_ne!(Grant::requested(), Grant::channel("/rooms/42"));
    /// ```
    pub fn requested() -> Self {
        Self { channel: None }
    }

    /// Allows the action on this channel, in place of the requested one.
    pub fn channel(name: impl Into<String>) -> Self {
        Self { channel: Some(name.into()) }
    }

    pub(crate) fn into_channel(self) -> Option<String> {
        self.channel
    }
}

/// [`Grant::requested`].
impl From<()> for Grant {
    fn from((): ()) -> Self {
        Self::requested()
    }
}
