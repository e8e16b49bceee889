//! `GET` with `live=long-poll`: wait for what comes (Durable Streams, section 5.7).

use http::HeaderValue;
use pin_project_lite::pin_project;
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{
    LayerResponse, Target,
    caller::Caller,
    cursor::{self, Cursor},
    deadline::deadline,
    headers,
    problem::Problem,
    query::ReadRequest,
    response::{self, finish},
};
use crate::{
    Outcome, OutcomeKind, Route,
    engine::{Reading, Start},
    registry::{Wait, WaitEnd},
};

/// What there is without a wait: messages, or the end of the stream.
pub(super) fn at_once(
    target: &Target,
    asked: &ReadRequest,
    reading: Reading,
    seen: Option<&HeaderValue>,
) -> Result<LayerResponse, Problem> {
    if reading.is_empty() {
        return Ok(response::nothing(&reading, OutcomeKind::Ended, None));
    }
    let (registry, route, from_tail) = (&target.registry, &target.route, asked.start == Start::Tail);
    let cursor = Some(cursor::header(asked.cursor));
    let answer = response::messages(registry, route, reading, from_tail, OutcomeKind::Delivered, seen, cursor)?;
    registry.usage().count_delivered();
    Ok(answer)
}

pin_project! {
    /// A parked request. Holds nothing of the request itself: one header would keep the connection's read buffer alive.
    pub(crate) struct LongPoll {
        #[pin]
        wait: Wait,
        // When the wait began, and its deadline, on the registry's clock.
        began: u64,
        until: u64,
        route: Arc<Route>,
        cursor: Option<Cursor>,
        // The seconds that were granted to the client's `Prefer: wait`.
        preferred: Option<u16>,
        caller: Caller,
        // Whether the wait began at the tail of that time.
        from_tail: bool,
    }
}

impl LongPoll {
    pub(super) fn new(target: &Target, asked: &ReadRequest, wait: Wait) -> Self {
        let max_wait = target.route.max_wait;
        let longest = asked.wait.map_or(max_wait, |wait| wait.min(max_wait));
        Self {
            wait,
            began: target.registry.now(),
            until: deadline(&target.registry, longest),
            route: Arc::clone(&target.route),
            cursor: asked.cursor,
            preferred: asked.preferred.map(|asked| granted(asked, max_wait)),
            caller: target.caller,
            from_tail: asked.start == Start::Tail,
        }
    }
}

impl LongPoll {
    pub(super) fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// Returns the answer to a request that is refused.
    pub(super) fn refuse(self: Pin<&mut Self>, problem: Problem) -> LayerResponse {
        let this = self.project();
        finish(this.wait.registry(), Some(this.route), *this.caller, problem.into_answer())
    }
}

impl Future for LongPoll {
    type Output = LayerResponse;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LayerResponse> {
        let mut this = self.project();
        let ended = ready!(this.wait.as_mut().poll(cx, *this.until, this.route.max_chunk.into()));
        let registry = this.wait.registry();
        let cursor = Some(cursor::header(*this.cursor));
        let mut answer = match ended {
            WaitEnd::Read(reading) if reading.is_empty() => response::nothing(&reading, OutcomeKind::Ended, cursor),
            WaitEnd::Read(reading) => {
                let (from_tail, outcome) = (*this.from_tail, OutcomeKind::Delivered);
                match response::messages(registry, this.route, reading, from_tail, outcome, None, cursor) {
                    Ok(answer) => {
                        registry.usage().count_delivered();
                        answer
                    }
                    Err(problem) => problem.into_answer(),
                }
            }
            WaitEnd::TimedOut(reading) => {
                registry.usage().count_timed_out();
                response::nothing(&reading, OutcomeKind::TimedOut, cursor)
            }
            WaitEnd::Released(reading) => response::nothing(&reading, OutcomeKind::Released, cursor),
            refused => Problem::from(refused).into_answer(),
        };
        if let Some(outcome) = answer.extensions_mut().get_mut::<Outcome>() {
            *outcome = outcome.after(Duration::from_millis(registry.now().saturating_sub(*this.began)));
        }
        if let Some(seconds) = this.preferred.filter(|_| answer.status().is_success()) {
            let applied = headers::ascii(format_args!("wait={seconds}"));
            answer.headers_mut().insert(headers::PREFERENCE_APPLIED, applied);
        }
        Poll::Ready(finish(registry, Some(this.route), *this.caller, answer))
    }
}

/// Returns how many whole seconds of a client's preference are granted.
fn granted(asked: u32, max_wait: Duration) -> u16 {
    u16::try_from(max_wait.as_secs().min(asked.into())).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_request_is_small() {
        let size = size_of::<LongPoll>();
        assert!(size <= 216, "{size} bytes");
    }
}
