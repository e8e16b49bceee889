//! `GET` with `live=long-poll`: wait for what comes (Durable Streams, section 5.7).

use http::{HeaderValue, header};
use pin_project_lite::pin_project;
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::{Answer, Reply, Target, answer, cursor, headers, problem::Problem, query::Asked, read, reply::finish};
use crate::{
    Outcome, Route,
    engine::Reading,
    registry::{Ended, Wait},
};

/// Answers at once if there is something, and waits otherwise.
pub(super) fn reply(target: &Target, asked: &Asked, reading: Reading, seen: Option<&HeaderValue>) -> Reply {
    if reading.closed && reading.is_empty() {
        return target.reply(answer::nothing(&reading, Outcome::Ended));
    }
    let cursor = cursor::next(asked.cursor);
    if !reading.is_empty() {
        let tag = answer::entity_tag(&reading);
        target.registry.usage().count_delivered();
        let mut answer = read::tagged(target, reading, Outcome::Delivered, Some(tag), seen);
        answer.headers_mut().insert(headers::CURSOR, headers::ascii(cursor));
        return target.reply(answer);
    }
    let wait = asked.wait.map_or(target.route.max_wait, |wait| wait.min(target.route.max_wait));
    let existed = reading.content_type.is_some();
    Reply::Wait(Box::pin(LongPoll {
        wait: Wait::new(target.registry.clone(), &target.name, reading.next, existed),
        deadline: deadline(wait, reading.until.map(|until| target.registry.moment(until))),
        route: target.route.clone(),
        cursor: asked.cursor,
        preferred: asked.preferred.map(|asked| granted(asked, target.route.max_wait)),
        http1: target.http1,
    }))
}

pin_project! {
    /// A parked request. Nothing of the request itself is in here: one kept header would keep the
    /// connection's read buffer.
    pub(crate) struct LongPoll {
        wait: Wait,
        // None for a wait of no time at all.
        #[pin]
        deadline: Option<Sleep>,
        route: Arc<Route>,
        cursor: Option<u32>,
        preferred: Option<u16>,
        http1: bool,
    }
}

impl Future for LongPoll {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let mut this = self.project();
        // The clock first, then the log: the other way round, what is appended in between is skipped.
        let expired = this.deadline.as_mut().as_pin_mut().is_none_or(|deadline| deadline.poll(cx).is_ready());
        let ended = ready!(this.wait.poll(cx, expired, this.route.max_chunk));
        let registry = this.wait.registry();
        let mut answer = match ended {
            Ended::Read(reading) if reading.is_empty() => answer::nothing(&reading, Outcome::Ended),
            Ended::Read(reading) => {
                registry.usage().count_delivered();
                let tag = answer::entity_tag(&reading);
                let mut answer = answer::messages(this.route, reading, Outcome::Delivered);
                answer.headers_mut().insert(header::ETAG, tag);
                answer
            }
            Ended::TimedOut(reading) => {
                registry.usage().count_timed_out();
                answer::nothing(&reading, Outcome::TimedOut)
            }
            Ended::Released(reading) => answer::nothing(&reading, Outcome::Released),
            refused => Problem::from(refused).into_answer(),
        };
        if answer.status().is_success() {
            let map = answer.headers_mut();
            map.insert(headers::CURSOR, headers::ascii(cursor::next(*this.cursor)));
            if let Some(seconds) = this.preferred {
                map.insert(headers::PREFERENCE_APPLIED, headers::ascii(format_args!("wait={seconds}")));
            }
        }
        Poll::Ready(finish(registry, *this.http1, answer))
    }
}

/// The end of the wait or of the channel's lifetime, whichever comes first; none for no wait at all.
fn deadline(wait: Duration, until: Option<Instant>) -> Option<Sleep> {
    if wait.is_zero() {
        return None;
    }
    Some(match until {
        Some(until) if until < Instant::now() + wait => sleep_until(until),
        _ => sleep(jittered(wait)),
    })
}

/// Up to a sixteenth less, at random: who started together need not time out together.
pub(super) fn jittered(wait: Duration) -> Duration {
    wait - wait.mul_f64(fastrand::f64() / 16.0)
}

/// The whole seconds that a client's preference is granted of.
fn granted(asked: u32, max_wait: Duration) -> u16 {
    u16::try_from(max_wait.as_secs().min(asked.into())).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_request_is_small() {
        let size = size_of::<LongPoll>();
        assert!(size <= 192, "{size} bytes");
    }

    #[test]
    fn jitter_takes_a_sixteenth_at_most() {
        for _ in 0..1_000 {
            let jittered = jittered(Duration::from_secs(16));
            assert!(jittered > Duration::from_secs(15) && jittered <= Duration::from_secs(16), "{jittered:?}");
        }
        let _ = jittered(Duration::MAX);
    }
}
