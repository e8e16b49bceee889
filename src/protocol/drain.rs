//! Reads and discards the body of a `GET` that waits.

use http_body::Body;
use std::{
    error::Error as StdError,
    future::{Future, poll_fn},
    pin::pin,
    task::{Poll, ready},
};
use tokio::time::timeout;

use super::{Pending, Target, problem::Problem, receive::discard};

/// How many bytes of the body are read at most. The body of a `GET` has no meaning (RFC 9110, section 9.3.1).
const MOST: u64 = 64 * 1024;

/// Reads the body of a `GET` on HTTP/1.1 to its end and discards it, while the request waits.
///
/// If the body is dropped unread, hyper stops reading the connection. Then hyper does not notice that the client closes
/// it, and the request stays parked until it times out. Once the body has been read to its end, hyper watches the
/// connection again. Refusing every `GET` with a body would have the same effect, but it would break clients that send
/// one with every request. On HTTP/2 hyper always reads the connection.
///
/// # Cancel safety
///
/// Dropping the reply drops the wait and the body.
pub(super) fn beside<B>(reply: Pending, body: B, target: Target) -> Pending
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    if let Pending::Now(_) = reply {
        return reply;
    }
    Pending::Later(Box::pin(async move {
        let mut waiting = Some(reply);
        let body = pin!(body);
        let mut reading = pin!(timeout(target.route.body_timeout, discard(body, MOST)));
        let refused = poll_fn(|cx| {
            if let Some(reply) = &mut waiting {
                if let Poll::Ready(answer) = reply.poll(cx) {
                    waiting = Some(answer.into());
                    return Poll::Ready(None);
                }
            }
            Poll::Ready(match ready!(reading.as_mut().poll(cx)) {
                Ok(true) => None,
                Ok(false) => Some(Problem::body_of_get(MOST)),
                Err(_) => Some(Problem::body_timeout()),
            })
        });
        match (refused.await, waiting) {
            (None, Some(reply)) => reply,
            // The wait is dropped with this future.
            (refused, _) => {
                let problem = refused.unwrap_or_else(|| Problem::body_of_get(MOST));
                target.reply(Err(problem.closing()))
            }
        }
    }))
}
