//! The service that the layer makes: is this request ours?

use http::{Request, Response};
use http_body::Body;
use std::{
    error::Error,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};
use tower::Service;

use crate::{ResponseBody, ResponseFuture, protocol, routes::Routes};

/// A service behind the routes of a [`CometLayer`](crate::CometLayer).
///
/// It asks nothing of the inner service but that it answers requests: not `Clone`, not `Send`, not
/// `'static`. Its errors are the inner service's own; whatever the layer refuses is a response.
///
/// # Panics
///
/// Outside of a tokio runtime with its timer, when a request on a route waits, has a body or calls an
/// [`Authorize`](crate::Authorize) hook: all three have a deadline. A request that goes to the inner service needs no runtime.
#[derive(Clone)]
pub struct CometService<S> {
    inner: S,
    routes: Arc<Routes>,
}

impl<S> CometService<S> {
    pub(crate) fn new(inner: S, routes: Arc<Routes>) -> Self {
        Self { inner, routes }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for CometService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ReqBody: Body + Send + 'static,
    ReqBody::Data: Send,
    ReqBody::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        match self.routes.find(request.uri().path(), request.method()) {
            None => ResponseFuture::inner(self.inner.call(request)),
            Some(found) => ResponseFuture::own(protocol::reply(&self.routes, found, request)),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for CometService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CometService").field("inner", &self.inner).field("routes", &self.routes).finish_non_exhaustive()
    }
}
