//! The body of a request, within the limits on its size and its time.

use bytes::{Buf, Bytes};
use http::{HeaderMap, header};
use http_body::Body;
use http_body_util::BodyExt;
use std::{
    error::Error as StdError,
    pin::{Pin, pin},
};
use tokio::time::timeout;

use super::{Target, headers::has_token, problem::Problem};
use crate::{Limit, registry::Registry};

/// How much of a body that is refused is read and thrown away, so that the client reads the answer; beyond it, or past the
/// time for reading a body, the connection is closed under it.
const DISCARD: u64 = 16 * 1024 * 1024;

/// Whether a client waits to be told that its body is welcome (RFC 9110, section 10.1.1).
pub(super) fn expects_continue(headers: &HeaderMap) -> bool {
    has_token(headers, &header::EXPECT, "100-continue")
}

/// Returns the whole body, in one allocation of exactly its size, and its share of `Limits::receiving`. If the body
/// is refused, returns the problem after the client has had time to send the rest.
///
/// # Cancel safety
///
/// Dropping this future drops what was received and returns its share of the limit.
pub(super) async fn receive<'a, B>(
    target: &'a Target,
    expects_continue: bool,
    body: B,
) -> Result<(Bytes, Received<'a>), Problem>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let mut body = pin!(body);
    let refused = match within_limits(target, expects_continue, body.as_mut()).await {
        Ok(received) => return Ok(received),
        Err(refused) => refused,
    };
    let read_on = async { refused.read_on && discard(body, DISCARD).await };
    let all_read = timeout(target.route.body_timeout, read_on).await.unwrap_or(false);
    Err(if all_read { refused.problem } else { refused.problem.closing() })
}

/// A body that is not wanted.
struct Refused {
    problem: Problem,
    /// Whether to read the rest of the body, so that the client gets to read the response.
    read_on: bool,
}

async fn within_limits<'a, B>(
    target: &'a Target,
    expects_continue: bool,
    body: Pin<&mut B>,
) -> Result<(Bytes, Received<'a>), Refused>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let limits = target.registry.limits();
    let announced = body.size_hint().lower();
    let left = limits.receiving.saturating_sub(target.registry.usage().receiving());
    let problem = if announced > limits.append as u64 {
        Some(Problem::too_large(limits.append))
    } else if announced > left as u64 {
        Some(Problem::full(Limit::Receiving))
    } else {
        None
    };
    if let Some(problem) = problem {
        // A client that expects a "100 Continue" has sent nothing yet, and polling the body would make hyper send it
        // one.
        return Err(Refused { problem, read_on: !expects_continue });
    }
    match timeout(target.route.body_timeout, collect(&target.registry, body)).await {
        Ok(Ok(collected)) => Ok(collected.finish()),
        Ok(Err(Stopped::TooLarge)) => Err(Refused { problem: Problem::too_large(limits.append), read_on: true }),
        Ok(Err(Stopped::Full(limit))) => Err(Refused { problem: Problem::full(limit), read_on: true }),
        Ok(Err(Stopped::Broken(error))) => {
            let detail = format!("the request's body broke off: {}", error.into());
            Err(Refused { problem: Problem::bad_request("body", detail), read_on: false })
        }
        Err(_) => Err(Refused { problem: Problem::body_timeout(), read_on: false }),
    }
}

/// Why a body was not read to its end.
enum Stopped<E> {
    TooLarge,
    Full(Limit),
    Broken(E),
}

/// Copies the body into one allocation: a slice of the connection's read buffer in the history would keep the whole
/// buffer alive.
async fn collect<'a, B: Body>(
    registry: &'a Registry,
    mut body: Pin<&mut B>,
) -> Result<Collected<'a>, Stopped<B::Error>> {
    let limit = registry.limits().append;
    let mut collected = Collected { bytes: Vec::new(), received: Received { registry, bytes: 0 } };
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame.map_err(Stopped::Broken)?.into_data() else { continue };
        let length = collected.bytes.len().saturating_add(data.remaining());
        if length > limit {
            return Err(Stopped::TooLarge);
        }
        // The lower bound is what the client has announced and may not send. More than `limit` is never accepted.
        let announced = length.saturating_add(usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX));
        let most = if body.size_hint().exact().is_some() { announced.min(limit) } else { limit };
        collected.reserve(length, most).map_err(Stopped::Full)?;
        while data.has_remaining() {
            let chunk = data.chunk();
            collected.bytes.extend_from_slice(chunk);
            let read = chunk.len();
            data.advance(read);
        }
    }
    Ok(collected)
}

/// The part of a body that has arrived, and its share of the limit.
struct Collected<'a> {
    // Dropped first: the memory is freed before its share is returned.
    bytes: Vec<u8>,
    received: Received<'a>,
}

impl<'a> Collected<'a> {
    /// Reserves a capacity of at least `length` bytes. The capacity doubles, up to `most`, if the limit on all bodies
    /// allows that. Otherwise it grows by an eighth, so that the cost of copying stays linear.
    fn reserve(&mut self, length: usize, most: usize) -> Result<(), Limit> {
        let capacity = self.bytes.capacity();
        if length <= capacity {
            return Ok(());
        }
        let grown = |by: usize| length.max(capacity.saturating_add(by).min(most));
        let wanted = [grown(capacity), grown(capacity / 8)];
        let mut refused = None;
        for wanted in wanted {
            match self.received.admit(wanted - capacity) {
                Ok(()) => {
                    self.bytes.reserve_exact(wanted - self.bytes.len());
                    return Ok(());
                }
                Err(limit) => refused = Some(limit),
            }
        }
        Err(refused.unwrap_or(Limit::Receiving))
    }

    /// Frees the capacity that the body did not fill.
    fn finish(mut self) -> (Bytes, Received<'a>) {
        let bytes = Bytes::from(self.bytes.into_boxed_slice());
        self.received.shrink_to(bytes.len());
        (bytes, self.received)
    }
}

/// One body's share of the limit on all bodies, until this is dropped.
pub(super) struct Received<'a> {
    registry: &'a Registry,
    bytes: usize,
}

impl Received<'_> {
    fn admit(&mut self, more: usize) -> Result<(), Limit> {
        self.registry.usage().admit_receiving(self.registry.limits(), more)?;
        self.bytes += more;
        Ok(())
    }

    fn shrink_to(&mut self, bytes: usize) {
        self.registry.usage().leave_receiving(self.bytes.saturating_sub(bytes));
        self.bytes = self.bytes.min(bytes);
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// Reads the rest of a body, up to `most` bytes, and stores nothing. Returns whether the end was reached.
pub(super) async fn discard<B: Body>(mut body: Pin<&mut B>, most: u64) -> bool {
    let mut left = most;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let size = frame.data_ref().map_or(0, |data| data.remaining() as u64);
        let Some(rest) = left.checked_sub(size) else { return false };
        left = rest;
    }
    true
}
