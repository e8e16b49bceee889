//! An answer, now or later.

use http::{HeaderValue, Response, header};
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use super::{Payload, long_poll::LongPoll};
use crate::registry::Registry;

/// An answer of the layer's own.
pub(crate) type Answer = Response<Payload>;

/// An answer, now or later.
pub(crate) enum Reply {
    Now(Option<Box<Answer>>),
    /// All that a parked request is: its head is gone, its body was never read.
    Wait(Pin<Box<LongPoll>>),
    Later(Pin<Box<dyn Future<Output = Reply> + Send>>),
}

impl Reply {
    pub(super) fn now(registry: &Registry, http1: bool, answer: Answer) -> Self {
        Self::Now(Some(Box::new(finish(registry, http1, answer))))
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        loop {
            match self {
                Self::Now(answer) => {
                    return Poll::Ready(*answer.take().expect("`ResponseFuture` polled after it was ready"));
                }
                Self::Wait(wait) => return wait.as_mut().poll(cx),
                Self::Later(work) => *self = ready!(work.as_mut().poll(cx)),
            }
        }
    }
}

/// The last touch to every answer: a client whose node is closing should not come back by the same connection.
pub(super) fn finish(registry: &Registry, http1: bool, mut answer: Answer) -> Answer {
    // HTTP/2 says it with a GOAWAY, and forbids the header (RFC 9113, section 8.2.2).
    if http1 && registry.is_closing() {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Wait(_) => "Wait",
            Self::Later(_) => "Later",
        })
    }
}
