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

/// How much of a body that is refused is read and thrown away, so that the client reads the answer; beyond it, or past the
/// time for reading a body, the connection is closed under it.
const DISCARD: u64 = 16 * 1024 * 1024;

/// Whether a client waits to be told that its body is welcome (RFC 9110, section 10.1.1).
pub(super) fn expects_continue(headers: &HeaderMap) -> bool {
    has_token(headers, &header::EXPECT, "100-continue")
}

/// The whole body, or why not; by then the client has been let send what it had to.
pub(super) async fn receive<B>(target: &Target<'_>, expects_continue: bool, body: B) -> Result<Bytes, Problem>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let mut body = pin!(body);
    let refused = match within_limits(target, expects_continue, body.as_mut()).await {
        Ok(bytes) => return Ok(bytes),
        Err(refused) => refused,
    };
    let read_on = async { refused.read_on && discard(body).await };
    let all_read = timeout(target.route.body_timeout, read_on).await.unwrap_or(false);
    Err(if all_read { refused.problem } else { refused.problem.closing() })
}

/// A body that is not wanted.
struct Refused {
    problem: Problem,
    /// Whether the client should be let send the rest, so that it comes to read the answer.
    read_on: bool,
}

async fn within_limits<B>(target: &Target<'_>, expects_continue: bool, body: Pin<&mut B>) -> Result<Bytes, Refused>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let limit = target.registry.limits().append;
    if body.size_hint().lower() > limit as u64 {
        // Who expects a "100 Continue" has sent nothing yet; reading would ask for it.
        return Err(Refused { problem: Problem::too_large(limit), read_on: !expects_continue });
    }
    match timeout(target.route.body_timeout, collect(body, limit)).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err(Refused { problem: Problem::too_large(limit), read_on: true }),
        Ok(Err(error)) => {
            let detail = format!("the request's body broke off: {}", error.into());
            Err(Refused { problem: Problem::bad_request("body", detail), read_on: false })
        }
        Err(_) => Err(Refused { problem: Problem::body_timeout(), read_on: false }),
    }
}

/// The body in one piece that is just as large as it, or `None` if it is too large: a piece of the
/// connection's read buffer in the history would keep all of that.
async fn collect<B: Body>(mut body: Pin<&mut B>, limit: usize) -> Result<Option<Bytes>, B::Error> {
    let mut collected = Vec::with_capacity(usize::try_from(body.size_hint().lower()).unwrap_or(0).min(limit));
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame?.into_data() else { continue };
        if collected.len() + data.remaining() > limit {
            return Ok(None);
        }
        while data.has_remaining() {
            let chunk = data.chunk();
            collected.extend_from_slice(chunk);
            let read = chunk.len();
            data.advance(read);
        }
    }
    Ok(Some(Bytes::from(collected.into_boxed_slice())))
}

/// Reads on and keeps nothing; whether the end was reached.
async fn discard<B: Body>(mut body: Pin<&mut B>) -> bool {
    let mut left = DISCARD;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let size = frame.data_ref().map_or(0, |data| data.remaining() as u64);
        let Some(rest) = left.checked_sub(size) else { return false };
        left = rest;
    }
    true
}
