//! An answer, now or later.

use http::request::Parts;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use super::{
    LayerBody, LayerResponse, Target, caller::Caller, long_poll::LongPoll, problem::Problem, response::finish,
};
use crate::{Action, Route, registry::Registry};

/// An answer, now or later.
pub(crate) enum Pending {
    Now(Option<Box<LayerResponse>>),
    /// All that a parked request is: its head is gone, its body was never read.
    Wait(Pin<Box<LongPoll>>),
    Later(Pin<Box<dyn Future<Output = Pending> + Send>>),
}

impl Pending {
    /// Returns a reply that is complete now. `head`: the request is a `HEAD`.
    pub(super) fn now(
        registry: &Registry,
        route: Option<&Route>,
        caller: Caller,
        head: bool,
        answer: Result<LayerResponse, Problem>,
    ) -> Self {
        let mut answer = answer.unwrap_or_else(Problem::into_answer);
        if head {
            // hyper would send the body on HTTP/2, and clients treat that as an error of the connection.
            *answer.body_mut() = LayerBody::default();
        }
        Self::Now(Some(Box::new(finish(registry, route, caller, answer))))
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LayerResponse> {
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

impl From<LayerResponse> for Pending {
    fn from(answer: LayerResponse) -> Self {
        Self::Now(Some(Box::new(answer)))
    }
}

impl Target {
    /// Goes on if the route lets this request do what it asks for, on the channel that it grants.
    pub(super) fn permitted(
        self,
        actions: &'static [Action],
        parts: Parts,
        go_on: impl FnOnce(Target) -> Pending + Send + 'static,
    ) -> Pending {
        if self.is_open(actions) {
            return go_on(self);
        }
        Pending::Later(Box::pin(async move {
            match self.clone().ask(actions, parts).await {
                Ok(target) => go_on(target),
                Err(problem) => self.reply(Err(problem)),
            }
        }))
    }

    pub(super) fn reply(&self, answer: Result<LayerResponse, Problem>) -> Pending {
        Pending::now(&self.registry, Some(&self.route), self.caller, self.head, answer)
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Wait(_) => "Wait",
            Self::Later(_) => "Later",
        })
    }
}
