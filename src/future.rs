//! The future of an answer.

use http::Response;
use pin_project_lite::pin_project;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use crate::{ResponseBody, protocol::Pending};

pin_project! {
    /// The future of an answer: the inner service's, unboxed, or the layer's own.
    ///
    /// A parked wait holds neither the inner service nor anything of the request. Dropping it, as
    /// hyper does when the client goes, ends the wait and leaves nothing behind.
    ///
    /// # Panics
    ///
    /// If polled again after it was ready.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        kind: FutureKind<F>,
    }
}

pin_project! {
    #[project = KindProjection]
    enum FutureKind<F> {
        Inner { #[pin] future: F },
        Own { reply: Pending },
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) fn inner(future: F) -> Self {
        Self { kind: FutureKind::Inner { future } }
    }

    pub(crate) fn own(reply: Pending) -> Self {
        Self { kind: FutureKind::Own { reply } }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            KindProjection::Inner { future } => {
                let response = ready!(future.poll(cx))?;
                Poll::Ready(Ok(response.map(ResponseBody::inner)))
            }
            KindProjection::Own { reply } => {
                let response = ready!(reply.poll(cx));
                Poll::Ready(Ok(response.map(ResponseBody::own)))
            }
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FutureKind::Inner { .. } => "inner",
            FutureKind::Own { .. } => "own",
        };
        f.debug_struct("ResponseFuture").field("kind", &kind).finish_non_exhaustive()
    }
}
