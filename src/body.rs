//! The body of an answer.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    convert::Infallible,
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use crate::{protocol::LayerBody, registry::Cut};

pin_project! {
    /// The body of a response: the inner service's, or the layer's own. A service without an inner one,
    /// [`CometRoutes`](crate::CometRoutes), has only its own, and `B` is [`NoBody`].
    ///
    /// It can be made from nothing or from bytes too, so that an outer layer that answers by itself can make one.
    ///
    /// ```
    /// use http_body::Body;
    /// use tower_comet::ResponseBody;
    ///
    /// type Inner = http_body_util::Empty<bytes::Bytes>;
    /// assert!(ResponseBody::<Inner>::default().is_end_stream());
    /// assert_eq!(ResponseBody::<Inner>::from("denied").size_hint().exact(), Some(6));
    /// ```
    pub struct ResponseBody<B = NoBody> {
        #[pin]
        kind: BodyKind<B>,
    }
}

pin_project! {
    #[project = KindProjection]
    enum BodyKind<B> {
        Inner { #[pin] body: B },
        Own { body: LayerBody },
    }
}

impl<B> ResponseBody<B> {
    pub(crate) fn inner(body: B) -> Self {
        Self { kind: BodyKind::Inner { body } }
    }

    pub(crate) fn own(body: LayerBody) -> Self {
        Self { kind: BodyKind::Own { body } }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.project().kind.project() {
            KindProjection::Inner { body } => body.poll_frame(cx).map_err(|error| BodyError(error.into())),
            KindProjection::Own { body } => Pin::new(body).poll_frame(cx).map_err(|cut| BodyError(cut.into())),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            BodyKind::Inner { body } => body.is_end_stream(),
            BodyKind::Own { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::Inner { body } => body.size_hint(),
            BodyKind::Own { body } => body.size_hint(),
        }
    }
}

/// Why a [`ResponseBody`] ended before its end: the inner service's body failed, or the layer cut its own response because
/// of [`CometBuilder::max_reading`](crate::CometBuilder::max_reading).
///
/// A server that gets this error closes the connection, or resets the stream on HTTP/2, so that the client knows that the
/// response is incomplete.
///
/// Its [`source`](Error::source) is the error of the inner service's body, if that failed.
#[derive(Debug)]
pub struct BodyError(Box<dyn Error + Send + Sync>);

impl BodyError {
    /// Whether the layer cut the response, because responses held as much memory as
    /// [`CometBuilder::max_reading`](crate::CometBuilder::max_reading) allows. The client can request the same offset again; if the channel does not keep what follows it any more, the answer is 410.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.0.is::<Cut>()
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_cut() {
            fmt::Display::fmt(&self.0, f)
        } else {
            f.write_str("the body of the inner service's response failed")
        }
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        if self.is_cut() { None } else { Some(&*self.0) }
    }
}

/// An empty body.
impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::own(LayerBody::default())
    }
}

impl<B> From<Bytes> for ResponseBody<B> {
    fn from(bytes: Bytes) -> Self {
        Self::own(bytes.into())
    }
}

impl<B> From<&'static str> for ResponseBody<B> {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

/// The body of an inner service that does not exist: see [`CometRoutes`](crate::CometRoutes). No value of this type
/// exists either.
#[derive(Clone, Copy, Debug)]
pub struct NoBody(Infallible);

impl Body for NoBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0 {}
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            BodyKind::Inner { .. } => "inner",
            BodyKind::Own { .. } => "own",
        };
        f.debug_struct("ResponseBody").field("kind", &kind).finish_non_exhaustive()
    }
}
