//! Refusals, as problem documents (RFC 9457).

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use std::{borrow::Cow, error::Error as _, time::Duration};

use super::{LayerBody, LayerResponse, headers, response};
use crate::{
    Denied, Error, Gone, Limit, Offset, Outcome, OutcomeKind, Route, denied::DeniedKind, engine::MediaType,
    registry::WaitEnd,
};

/// Why a request is not served.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    /// A word for programs.
    reason: &'static str,
    /// A sentence for people.
    detail: Cow<'static, str>,
    headers: Vec<(HeaderName, HeaderValue)>,
    outcome: OutcomeKind,
    /// In place of the document.
    body: Option<(MediaType, Bytes)>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, reason: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, reason, detail: detail.into(), headers: Vec::new(), outcome: OutcomeKind::Invalid, body: None }
    }

    pub(super) fn bad_request(reason: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason, detail)
    }

    pub(super) fn bad_name(why: &'static str) -> Self {
        Self::bad_request("name", format!("this path names no channel: {why}"))
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "there is no such channel")
    }

    pub(super) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no-route", "no route serves this path")
    }

    pub(super) fn not_implemented() -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "subscriptions", "subscriptions are not served here")
    }

    pub(super) fn deleted() -> Self {
        let mut problem = Self::new(StatusCode::NOT_FOUND, "deleted", "the channel was deleted");
        problem.outcome = OutcomeKind::Ended;
        problem
    }

    pub(super) fn too_large(limit: usize) -> Self {
        let detail = format!("an append has at most {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail).refused()
    }

    pub(super) fn body_of_get(most: u64) -> Self {
        let detail = format!("the body of a GET must be complete and have at most {most} bytes");
        Self::bad_request("body", detail)
    }

    /// RFC 9110, section 15.5.16.
    pub(super) fn content_encoding() -> Self {
        let detail = "bodies with a `Content-Encoding` are not decoded: send the body as it is";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-encoding", detail)
            .with(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))
    }

    pub(super) fn body_timeout() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request's body did not arrive in time").refused()
    }

    /// An append to a stream that has ended there.
    pub(super) fn closed(end: Offset) -> Self {
        Self::from(Error::Closed).with(headers::NEXT_OFFSET, headers::offset(end))
    }

    pub(super) fn shut_down() -> Self {
        Self::unavailable("closing", "this server is closing; another one will answer")
    }

    pub(super) fn full(limit: Limit) -> Self {
        Self::unavailable("full", limit.to_string())
    }

    /// Adds a `Retry-After` if it is not known whether the request took effect, and the request is safe to repeat.
    pub(super) fn repeatable(self) -> Self {
        if self.reason == "uncertain" { self.later() } else { self }
    }

    pub(super) fn hook_timeout() -> Self {
        Self::unavailable("hook-timeout", "the server did not decide in time whether this request is allowed")
    }

    pub(super) fn waits_per_client() -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "waits-per-client", Limit::WaitsPerClient.to_string()).later()
    }

    /// Without the panic's payload, which may contain secrets.
    pub(super) fn key_panicked() -> Self {
        let detail = "the server failed to determine which client sent this request";
        let mut problem = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "key-panicked", detail);
        problem.outcome = OutcomeKind::Failed;
        problem
    }

    /// A hook has granted a name that no channel can have. Without the name, which may contain secrets.
    pub(super) fn invalid_grant() -> Self {
        let detail = "the server granted access to a channel whose name is invalid";
        let mut problem = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "invalid-grant", detail);
        problem.outcome = OutcomeKind::Failed;
        problem
    }

    /// Without the panic's payload, which may contain secrets.
    pub(super) fn hook_panicked() -> Self {
        let detail = "the server failed to decide whether this request is allowed";
        let mut problem = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "hook-panicked", detail);
        problem.outcome = OutcomeKind::Failed;
        problem
    }

    fn unavailable(reason: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason, detail).later()
    }

    /// Adds a random `Retry-After`, so that clients do not retry together.
    fn later(self) -> Self {
        self.with(header::RETRY_AFTER, HeaderValue::from(fastrand::u32(1..=5))).refused()
    }

    pub(super) fn gone(gone: &Gone) -> Self {
        let mut problem = Self::new(StatusCode::GONE, gone.reason().as_str(), format!("{gone}; start over"))
            .with(headers::NEXT_OFFSET, headers::offset(gone.tail()))
            .with(headers::EARLIEST_OFFSET, headers::offset(gone.earliest()));
        problem.outcome = OutcomeKind::Gone;
        problem
    }

    fn denied(denied: Denied) -> Self {
        let detail = denied.to_string();
        let mut problem = match denied.kind {
            DeniedKind::Unauthorized(challenge) => {
                Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).with(header::WWW_AUTHENTICATE, challenge)
            }
            DeniedKind::Forbidden => Self::new(StatusCode::FORBIDDEN, "forbidden", detail),
            DeniedKind::NotFound => Self::not_found(),
            DeniedKind::TooManyRequests(time) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail).after(time)
            }
            DeniedKind::Unavailable(time) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).after(time)
            }
        };
        problem.body = denied.body;
        problem.outcome = OutcomeKind::Denied;
        problem
    }

    pub(super) fn method_not_allowed(route: &Route) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method", "this route does not allow the method")
            .with(header::ALLOW, allow(route))
    }

    /// And nothing more on this connection: there is a body on it that nobody has read.
    pub(super) fn closing(self) -> Self {
        self.with(header::CONNECTION, HeaderValue::from_static("close"))
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Adds a `Retry-After` with this time.
    fn after(self, time: Duration) -> Self {
        let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
        self.with(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    fn refused(mut self) -> Self {
        self.outcome = OutcomeKind::Refused;
        self
    }

    pub(super) fn is_server_error(&self) -> bool {
        self.status.is_server_error()
    }

    pub(super) fn into_answer(self) -> LayerResponse {
        let mut map = headers::safe();
        let body = match self.body {
            Some((content_type, body)) => {
                response::of_type(&mut map, &content_type);
                body
            }
            None => {
                map.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
                let document = serde_json::json!({
                    "title": self.status.canonical_reason(),
                    "status": self.status.as_u16(),
                    "reason": self.reason,
                    "detail": self.detail,
                });
                document.to_string().into()
            }
        };
        map.extend(self.headers);
        let mut answer = Response::new(LayerBody::from(body));
        *answer.status_mut() = self.status;
        *answer.headers_mut() = map;
        answer.extensions_mut().insert(Outcome::new(self.outcome));
        answer
    }
}

/// The value of `Allow`: the methods that the route serves, and `OPTIONS`.
pub(super) fn allow(route: &Route) -> HeaderValue {
    let mut allow = "GET, HEAD, OPTIONS".to_owned();
    for (method, gates) in
        [("POST", &[&route.append, &route.close][..]), ("PUT", &[&route.create]), ("DELETE", &[&route.delete])]
    {
        if !gates.iter().all(|gate| gate.is_shut()) {
            allow.push_str(", ");
            allow.push_str(method);
        }
    }
    headers::ascii(allow)
}

/// What the registry refuses, as the wire says it.
impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
        match error {
            Error::Name => Self::bad_request("name", detail),
            Error::Json(_) => Self::bad_request("json", detail),
            Error::Empty => Self::bad_request("empty", detail),
            Error::TooLarge { limit } => Self::too_large(limit),
            Error::ContentType { .. } => Self::new(StatusCode::CONFLICT, "content-type", detail),
            Error::Closed => Self::new(StatusCode::CONFLICT, "closed", detail).with(headers::CLOSED, headers::TRUE),
            Error::Conflict => Self::new(StatusCode::CONFLICT, "conflict", detail),
            Error::Sequence => Self::new(StatusCode::CONFLICT, "sequence", detail),
            Error::Fenced { epoch } => {
                Self::new(StatusCode::FORBIDDEN, "fenced", detail).with(headers::PRODUCER_EPOCH, headers::ascii(epoch))
            }
            Error::Gap { expected, received } => Self::new(StatusCode::CONFLICT, "gap", detail)
                .with(headers::PRODUCER_EXPECTED_SEQ, headers::ascii(expected))
                .with(headers::PRODUCER_RECEIVED_SEQ, headers::ascii(received)),
            // Not 409: producers wait for their earlier messages, and then send this one again for ever.
            Error::UnknownProducer { epoch } => Self::new(StatusCode::FORBIDDEN, "unknown-producer", detail)
                .with(headers::PRODUCER_EPOCH, headers::ascii(epoch)),
            Error::Epoch => Self::bad_request("epoch", detail),
            Error::ForkOffset => Self::bad_request("fork-offset", detail),
            Error::Unknown => Self::not_found(),
            Error::Gone(gone) => Self::gone(&gone),
            Error::Full(limit) => Self::full(limit),
            Error::ShutDown => Self::shut_down(),
            Error::Unreachable => Self::unavailable("unreachable", detail),
            // Without the source: Redis's words are for the operator, not for clients.
            Error::Engine(_) => Self::unavailable("engine", error.to_string()),
            Error::Layout { .. } => Self::unavailable("layout", detail),
            // Without a `Retry-After`: generic clients would repeat what may have been done.
            Error::Uncertain => {
                let detail = format!(
                    "{detail}. Read the channel before you send this again. With producer headers, it is safe to send it again"
                );
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "uncertain", detail).refused()
            }
            Error::Invalid(_) | Error::Pattern(_) | Error::MediaType | Error::Encode(_) => {
                Self::bad_request("malformed", detail)
            }
        }
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        Self::denied(denied)
    }
}

/// What ended a wait without an answer.
impl From<WaitEnd> for Problem {
    fn from(ended: WaitEnd) -> Self {
        match ended {
            WaitEnd::Gone(gone) => Self::gone(&gone),
            WaitEnd::Refused(error) => error.into(),
            WaitEnd::Deleted => Self::deleted(),
            WaitEnd::Read(_) | WaitEnd::TimedOut(_) | WaitEnd::Released(_) => Self::shut_down(),
        }
    }
}
