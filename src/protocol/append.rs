//! `POST`: append (Durable Streams, section 5.2).

use bytes::{Buf, Bytes};
use http::{StatusCode, header, request::Parts};
use http_body::Body;
use http_body_util::BodyExt;
use std::{
    error::Error as StdError,
    pin::{Pin, pin},
};
use tokio::time::timeout;

use super::{Answer, Reply, Target, answer, has_token, headers, problem::Problem};
use crate::{
    Error, Offset, Outcome,
    engine::{Batch, Start, check_media_type, is_json, same_type},
    registry::Terms,
};

/// How much of a body that is refused is read and thrown away, so that the client reads the answer; beyond it, or past the
/// time for reading a body, the connection is closed under it.
const DISCARD: u64 = 16 * 1024 * 1024;

/// What an append says about itself.
pub(super) struct Headers {
    content_type: Option<String>,
    /// The client waits to be told that its body is welcome (RFC 9110, section 10.1.1).
    expects_continue: bool,
}

impl Headers {
    pub(super) fn parse(parts: &Parts) -> Self {
        let content_type = parts.headers.get(header::CONTENT_TYPE);
        Self {
            content_type: content_type.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()),
            expects_continue: has_token(&parts.headers, &header::EXPECT, "100-continue"),
        }
    }
}

pub(super) async fn reply<B>(target: Target, headers: Headers, body: B) -> Reply
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let mut body = pin!(body);
    match receive(&target, &headers, body.as_mut()).await {
        Ok(bytes) => match append(&target, &headers, bytes) {
            Ok(tail) => target.reply(appended(tail)),
            Err(problem) => target.refuse(problem),
        },
        Err(refused) => {
            let read_on = async { refused.read_on && discard(body).await };
            let all_read = timeout(target.route.body_timeout, read_on).await.unwrap_or(false);
            if all_read { target.refuse(refused.problem) } else { target.refuse(refused.problem.closing()) }
        }
    }
}

/// A body that is not wanted.
struct Refused {
    problem: Problem,
    /// Whether the client should be let send the rest, so that it comes to read the answer.
    read_on: bool,
}

/// Reads the body as a whole, within the limits on its size and its time.
async fn receive<B>(target: &Target, headers: &Headers, body: Pin<&mut B>) -> Result<Bytes, Refused>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let limit = target.registry.limits().append;
    if body.size_hint().lower() > limit as u64 {
        // Who expects a "100 Continue" has sent nothing yet; reading would ask for it.
        return Err(Refused { problem: Problem::too_large(limit), read_on: !headers.expects_continue });
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
            data.advance(chunk.len());
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

/// Checks in the order of the protocol: closed, then the type, then the content. The registry checks the first two
/// once more, under its lock.
fn append(target: &Target, headers: &Headers, bytes: Bytes) -> Result<Offset, Problem> {
    let Target { registry, route, name, .. } = target;
    if bytes.is_empty() {
        return Err(Problem::bad_request("empty", "there is nothing to append"));
    }
    let Some(content_type) = &headers.content_type else {
        return Err(Problem::bad_request("content-type", "an append says its `Content-Type`"));
    };
    check_media_type(content_type)?;
    let closed = || Problem::closed(registry.tail(name));
    let now = registry.read(name, Start::Tail, 0).map_err(|gone| Problem::gone(&gone))?;
    if now.closed {
        return Err(closed());
    }
    let holds = now.content_type.as_ref().unwrap_or(&route.content_type);
    if !same_type(content_type, holds) {
        return Err(Error::ContentType { holds: holds.to_string() }.into());
    }
    let batch = if is_json(content_type) { Batch::json(&bytes) } else { Batch::bytes(bytes) }?;
    // A strict route appends to what was created; a comet route creates by appending.
    let create = (!route.strict).then_some(&route.content_type);
    let terms = Terms { content_type: Some(content_type), create };
    registry.append(name, &batch, &terms).map_err(|error| match error {
        Error::Closed => closed(),
        error => error.into(),
    })
}

fn appended(tail: Offset) -> Answer {
    let mut answer = answer::empty(StatusCode::NO_CONTENT, Outcome::Appended);
    answer.headers_mut().insert(headers::NEXT_OFFSET, headers::offset(tail));
    answer
}
