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
use crate::engine::{Parts, Reading};

pub(crate) enum Payload {
    Piece(Full<Bytes>),
    Parts(Box<Parts>),
    Events(Pin<Box<EventStream>>),
}

impl Default for Payload {
    fn default() -> Self {
        Self::Piece(Full::default())
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self::Piece(Full::new(bytes))
    }
}

impl From<Reading> for Payload {
    fn from(reading: Reading) -> Self {
        if reading.is_much() { Self::Parts(Box::new(reading.into_parts())) } else { reading.into_bytes().into() }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Piece(piece) => Pin::new(piece).poll_frame(cx),
            Self::Parts(parts) => Poll::Ready(parts.next().map(|part| Ok(Frame::data(part)))),
            Self::Events(events) => events.as_mut().poll_next(cx).map(|event| event.map(|data| Ok(Frame::data(data)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Piece(piece) => piece.is_end_stream(),
            Self::Parts(parts) => parts.left() == 0,
            Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Piece(piece) => piece.size_hint(),
            Self::Parts(parts) => SizeHint::with_exact(parts.left() as u64),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
