//! Durable Streams 1.0, on the types of the `http` crate. No locks in here.
//!
//! A request comes in as a route, a name and an `http::Request`, and leaves as a [`Reply`]: an answer
//! that is there, a wait, or work that must be done first (asking who may, reading a body).
//!
//! | file | |
//! | --- | --- |
//! | `read`, `long_poll`, `head`, `append` | one operation each |
//! | `query` | what a read asks for: offset, live, cursor, how long |
//! | `answer`, `problem`, `headers`, `cursor` | what answers are made of |

mod answer;
mod append;
mod cursor;
mod head;
mod headers;
mod long_poll;
mod problem;
mod query;
mod read;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version, header, request::Parts};
use http_body::Body;
use http_body_util::Full;
use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use crate::{Access, Action, Route, access::Gate, name::NameError, registry::Registry};
use long_poll::LongPoll;
use problem::Problem;

/// An answer of the layer's own.
pub(crate) type Answer = Response<Full<Bytes>>;

/// An answer, now or later.
pub(crate) enum Reply {
    Now(Option<Box<Answer>>),
    /// All that a parked request is: its head is gone, its body was never read.
    Wait(Pin<Box<LongPoll>>),
    Later(Pin<Box<dyn Future<Output = Reply> + Send>>),
}

/// Where a request is addressed to, and what answering it needs of it.
#[derive(Clone)]
struct Target {
    registry: Arc<Registry>,
    route: Arc<Route>,
    name: String,
    http1: bool,
}

/// Answers a request on a route.
pub(crate) fn reply<B>(
    registry: Arc<Registry>,
    route: Arc<Route>,
    name: Result<String, NameError>,
    request: Request<B>,
) -> Reply
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let http1 = request.version() <= Version::HTTP_11;
    let name = match name {
        Ok(name) if registry.check_name(&name).is_ok() => name,
        Ok(_) => return Problem::bad_name("it is too long").reply(&registry, http1),
        Err(error) => return Problem::bad_name(error.as_str()).reply(&registry, http1),
    };
    let target = Target { registry, route, name, http1 };
    match *request.method() {
        Method::GET => {
            let (parts, _) = request.into_parts();
            let asked = query::Asked::parse(&parts, target.route.strict);
            let seen = parts.headers.get(header::IF_NONE_MATCH).cloned();
            target.permitted(Action::Read, parts, move |target| match asked {
                Ok(asked) => read::reply(&target, &asked, seen.as_ref()),
                Err(problem) => target.refuse(problem),
            })
        }
        Method::HEAD => {
            let (parts, _) = request.into_parts();
            target.permitted(Action::Read, parts, |target| head::reply(&target))
        }
        Method::POST if !target.route.append.is_shut() => {
            let (parts, body) = request.into_parts();
            let headers = append::Headers::parse(&parts);
            target.permitted(Action::Append, parts, move |target| {
                Reply::Later(Box::pin(append::reply(target, headers, body)))
            })
        }
        _ => target.refuse(Problem::method_not_allowed(&target.route)),
    }
}

impl Target {
    /// Goes on if the route lets this request do what it asks for, on the channel that it grants.
    fn permitted(mut self, action: Action, parts: Parts, go_on: impl FnOnce(Self) -> Reply + Send + 'static) -> Reply {
        let gate = match action {
            Action::Read => &self.route.read,
            Action::Append => &self.route.append,
        };
        let ask = match gate {
            Gate::Open => return go_on(self),
            Gate::Shut => return self.refuse(Problem::method_not_allowed(&self.route)),
            Gate::Ask(ask) => ask.clone(),
        };
        Reply::Later(Box::pin(async move {
            let access = Access::new(self.name.clone(), action, parts);
            match ask.ask(access).await {
                Err(denied) => return self.refuse(Problem::denied(denied)),
                Ok(grant) => {
                    if let Some(name) = grant.into_channel() {
                        self.name = name;
                    }
                }
            }
            match self.registry.check_name(&self.name) {
                Ok(()) => go_on(self),
                Err(error) => self.refuse(error.into()),
            }
        }))
    }

    fn refuse(&self, problem: Problem) -> Reply {
        problem.reply(&self.registry, self.http1)
    }

    fn reply(&self, answer: Answer) -> Reply {
        Reply::now(&self.registry, self.http1, answer)
    }
}

/// The last touch to every answer: a client whose node is closing should not come back by the same connection.
fn finish(registry: &Registry, http1: bool, mut answer: Answer) -> Answer {
    // HTTP/2 says it with a GOAWAY, and forbids the header (RFC 9113, section 8.2.2).
    if http1 && registry.is_closing() {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

impl Reply {
    fn now(registry: &Registry, http1: bool, answer: Answer) -> Self {
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

/// Whether a media type's text is what a browser would not run as a page of this origin.
fn is_inert(content_type: &str) -> bool {
    ["application/json", "text/plain", "application/octet-stream"]
        .iter()
        .any(|inert| crate::engine::same_type(content_type, inert))
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|item| item.trim().eq_ignore_ascii_case(token)))
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
