//! The services: a layer's routes around an inner service, and the same routes without one.

use http::{Request, Response};
use http_body::Body;
use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::Pending,
    sync::Arc,
    task::{Context, Poll},
};
use tower::Service;

use crate::{NoBody, ResponseBody, ResponseFuture, protocol, routes::Routes};

/// The routes of a [`CometLayer`](crate::CometLayer) around an inner service, as `Layer::layer` returns it.
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

/// The routes of a [`CometLayer`](crate::CometLayer) as a service of its own, as
/// [`CometLayer::into_service`](crate::CometLayer::into_service) returns it: for the routes of a framework, or as the whole
/// of a server.
///
/// It answers every request itself:
///
/// | request | response |
/// | --- | --- |
/// | a path that no route serves | 404, a problem document with the reason `no-route` |
/// | a method that the route does not serve | 405 with `Allow`, a problem document with the reason `method` |
/// | `OPTIONS` on a route's path | 204 with `Allow`. A CORS layer outside answers preflight requests before |
/// | any other | the same as behind the layer |
///
/// It is always ready and never fails. Clones share the channels and the routes.
///
/// # Panics
///
/// Outside of a tokio runtime with its timer, when a request waits, has a body or calls an
/// [`Authorize`](crate::Authorize) hook: all three have a deadline.
#[derive(Clone)]
pub struct CometRoutes {
    routes: Arc<Routes>,
}

impl CometRoutes {
    pub(crate) fn new(routes: Arc<Routes>) -> Self {
        Self { routes }
    }
}

impl<B> Service<Request<B>> for CometRoutes
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    /// There is no inner service. Its future has this type, and is never created.
    type Future = ResponseFuture<Pending<Result<Response<NoBody>, Infallible>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ResponseFuture::own(match self.routes.find(request.uri().path(), request.method()) {
            None => protocol::unserved(&self.routes, &request),
            Some(found) => protocol::reply(&self.routes, found, request),
        })
    }
}

impl fmt::Debug for CometRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CometRoutes").field("routes", &self.routes).finish_non_exhaustive()
    }
}
