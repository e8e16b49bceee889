//! The body of an answer of the layer's own.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

use super::sse::EventStream;
use crate::registry::{Content, Cut, Transfer};

pub(crate) enum LayerBody {
    Piece(Full<Bytes>),
    Transfer(Box<Transfer>),
    Events(Pin<Box<EventStream>>),
}

impl Default for LayerBody {
    fn default() -> Self {
        Self::Piece(Full::default())
    }
}

impl From<Bytes> for LayerBody {
    fn from(bytes: Bytes) -> Self {
        Self::Piece(Full::new(bytes))
    }
}

impl From<Content> for LayerBody {
    fn from(content: Content) -> Self {
        match content {
            Content::Whole(bytes) => bytes.into(),
            Content::Transfer(transfer) => Self::Transfer(transfer),
        }
    }
}

impl Body for LayerBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Self::Piece(piece) => Pin::new(piece).poll_frame(cx).map_err(|never| match never {}),
            Self::Transfer(transfer) => transfer.poll_next(cx).map(|part| part.map(|part| part.map(Frame::data))),
            Self::Events(events) => events.as_mut().poll_next(cx).map(|event| event.map(|data| data.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Piece(piece) => piece.is_end_stream(),
            Self::Transfer(transfer) => transfer.left() == 0,
            Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Piece(piece) => piece.size_hint(),
            Self::Transfer(transfer) => SizeHint::with_exact(transfer.left() as u64),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
