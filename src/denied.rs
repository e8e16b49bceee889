//! The response to a request that a hook denies.

use bytes::Bytes;
use http::HeaderValue;
use std::{error::Error, fmt, time::Duration};

use crate::engine::MediaType;

/// The response to a request that an [`Authorize`](crate::Authorize) hook denies: a problem document, unless it has a
/// [body of the application's](Self::with_body).
///
/// ```
/// use std::time::Duration;
/// use tower_comet::Denied;
///
/// assert_eq!(Denied::unauthorized("Bearer").to_string(), "authentication required");
/// assert_eq!(Denied::too_many_requests(Duration::from_secs(2)).to_string(), "too many requests");
/// assert_ne!(Denied::forbidden(), Denied::not_found());
/// ```
///
/// # Without a challenge
///
/// A 401 must have a challenge, but browsers ask for a password only if they know its scheme, such as `Basic`. An application that
/// keeps its login in a cookie names a scheme of its own, and its pages show the form:
///
/// ```
/// use std::{collections::HashMap, sync::Arc};
/// use tokio::sync::RwLock;
/// use tower_comet::{Access, Denied, Grant, Route};
///
/// /// The users by the ids of their sessions.
/// type Sessions = Arc<RwLock<HashMap<String, String>>>;
///
/// fn session(access: &Access) -> Option<&str> {
///     let cookies = access.headers().get_all("cookie").iter().filter_map(|value| value.to_str().ok());
///     cookies.flat_map(|line| line.split("; ")).find_map(|cookie| cookie.strip_prefix("session="))
/// }
///
/// let sessions = Sessions::default();
/// let inbox = Route::new().read_by(move |access: Access| {
///     let sessions = sessions.clone();
///     async move {
///         let sessions = sessions.read().await;
///         match session(&access).and_then(|id| sessions.get(id)) {
///             Some(user) => Ok(Grant::channel(format!("/inboxes/{user}"))),
///             None => Err(Denied::unauthorized("Session")),
///         }
///     }
/// });
/// # let _ = inbox;
/// ```
///
/// # With a database
///
/// A database that cannot be reached is no reason to tell a client that it may not read. The client retries a 503:
///
/// ```
/// use std::time::Duration;
/// use tower_comet::{Access, Denied, Route};
///
/// #[derive(Clone)]
/// struct Database;
///
/// impl Database {
///     async fn is_member(&self, room: &str) -> Result<bool, std::io::Error> {
/// #       let _ = room;
///         // SELECT …
///         Ok(true)
///     }
/// }
///
/// let database = Database;
/// let room = Route::new().read_by(move |access: Access| {
///     let database = database.clone();
///     async move {
///         match database.is_member(access.param("room").unwrap_or_default()).await {
///             Ok(true) => Ok(()),
///             Ok(false) => Err(Denied::forbidden()),
///             Err(_) => Err(Denied::unavailable(Duration::from_secs(1))),
///         }
///     }
/// });
/// # let _ = room;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    pub(crate) kind: DeniedKind,
    /// In place of the problem document.
    pub(crate) body: Option<(MediaType, Bytes)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeniedKind {
    Unauthorized(HeaderValue),
    Forbidden,
    NotFound,
    TooManyRequests(Duration),
    Unavailable(Duration),
}

impl Denied {
    fn new(kind: DeniedKind) -> Self {
        Self { kind, body: None }
    }

    /// 401: authentication is required. The challenge is the `WWW-Authenticate` that a 401 must carry (RFC 9110,
    /// section 11.6.1), such as `Bearer` or `Basic realm="chat"`.
    ///
    /// # Panics
    ///
    /// If the challenge has characters in it that no header may carry.
    #[must_use]
    #[track_caller]
    pub fn unauthorized(challenge: &str) -> Self {
        let challenge = HeaderValue::from_str(challenge).expect("a challenge is a header's value");
        Self::new(DeniedKind::Unauthorized(challenge))
    }

    /// 403: the client is known and not allowed to do this.
    #[must_use]
    pub fn forbidden() -> Self {
        Self::new(DeniedKind::Forbidden)
    }

    /// 404: the client must not learn that the channel exists.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(DeniedKind::NotFound)
    }

    /// 429: the client has sent too many requests. `Retry-After` has the time in seconds, rounded up, and at least 1.
    #[must_use]
    pub fn too_many_requests(retry_after: Duration) -> Self {
        Self::new(DeniedKind::TooManyRequests(retry_after))
    }

    /// 503: the hook cannot decide at the moment. `Retry-After` has the time in seconds, rounded up, and at least 1.
    #[must_use]
    pub fn unavailable(retry_after: Duration) -> Self {
        Self::new(DeniedKind::Unavailable(retry_after))
    }

    /// Sets the body of the response, in place of the problem document.
    ///
    /// Content that a browser would run as a page of the application's origin is sent with `Content-Security-Policy: sandbox`, as all
    /// content of the layer is.
    ///
    /// # Panics
    ///
    /// If the content type is malformed: see [`Error::MediaType`](crate::Error::MediaType).
    ///
    /// ```
    /// use tower_comet::Denied;
    ///
    /// let denied = Denied::forbidden().with_body("application/json", r#"{"error": "members only"}"#);
    /// assert_eq!(denied.to_string(), "not allowed");
    /// ```
    #[must_use]
    #[track_caller]
    pub fn with_body(self, content_type: &str, body: impl Into<Bytes>) -> Self {
        let content_type: MediaType = content_type.parse().unwrap_or_else(|error| panic!("{content_type:?}: {error}"));
        Self { body: Some((content_type, body.into())), ..self }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            DeniedKind::Unauthorized(_) => "authentication required",
            DeniedKind::Forbidden => "not allowed",
            DeniedKind::NotFound => "no such channel",
            DeniedKind::TooManyRequests(_) => "too many requests",
            DeniedKind::Unavailable(_) => "the server cannot decide at the moment whether this is allowed",
        })
    }
}

impl Error for Denied {}
