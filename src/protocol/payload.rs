//! The body of an answer of the layer's own.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use super::sse::EventStream;

pub(crate) enum Payload {
    Piece(Full<Bytes>),
    Events(Pin<Box<EventStream>>),
}

impl Default for Payload {
    fn default() -> Self {
        Self::Piece(Full::default())
    }
}

impl<T: Into<Bytes>> From<T> for Payload {
    fn from(bytes: T) -> Self {
        Self::Piece(Full::new(bytes.into()))
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Piece(piece) => Pin::new(piece).poll_frame(cx),
            Self::Events(events) => events.as_mut().poll_next(cx).map(|event| event.map(|data| Ok(Frame::data(data)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Piece(piece) => piece.is_end_stream(),
            Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Piece(piece) => piece.size_hint(),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
