//! The pattern of a route, and the parameters that it finds in a path.

use matchit::{InsertError, Params, Router};
use std::{fmt, sync::Arc};

use crate::name::{self, NameError, Slashes};

/// The pattern of the route that a request was served on, such as `/rooms/{room}`: in the extensions of every response of
/// the layer. Responses of the inner service have none, nor has the 404 of [`CometRoutes`](crate::CometRoutes) for a path on no route.
///
/// Metrics are labelled with it instead of with the path, which has as many values as clients send.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use http::Request;
/// use http_body_util::Empty;
/// use tower::ServiceExt;
/// use tower_comet::{Comet, CometLayer, Route, RoutePattern};
///
/// let rooms = CometLayer::new(Comet::new()).route("/rooms/{room}", Route::new().read_by_anyone()).into_service();
/// let request = Request::get("/rooms/42?offset=-1").body(Empty::<bytes::Bytes>::new()).unwrap();
/// let response = rooms.oneshot(request).await?;
/// assert_eq!(response.extensions().get::<RoutePattern>().unwrap().as_str(), "/rooms/{room}");
/// # Ok::<(), std::convert::Infallible>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoutePattern(Arc<str>);

impl RoutePattern {
    pub(crate) fn new(pattern: &str) -> Self {
        Self(pattern.into())
    }

    /// Returns the pattern as it was given to [`CometLayer::route`](crate::CometLayer::route).
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the parameters of a path, or `None` if the pattern does not match it.
    pub(crate) fn params(&self, path: &str) -> Result<Option<RouteParams>, InsertError> {
        let mut router = Router::new();
        router.insert(self.as_str(), ())?;
        Ok(router.at(path).ok().and_then(|found| RouteParams::decode(&found.params, Slashes::Refused).ok()))
    }
}

impl fmt::Display for RoutePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The parameters that a pattern has found in a path, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RouteParams(Vec<(String, String)>);

impl RouteParams {
    pub(crate) fn decode(params: &Params<'_, '_>, slashes: Slashes) -> Result<Self, NameError> {
        let decoded =
            |(key, value): (&str, &str)| Ok((key.to_owned(), name::decode_segment(value, slashes)?.into_owned()));
        params.iter().map(decoded).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }
}
