//! Durable Streams 1.0, on the types of the `http` crate. No locks in here.
//!
//! A request comes in as a route, a name and an `http::Request`, and leaves as a [`Reply`]: an answer
//! that is there, a wait, or work that must be done first (asking who may, reading a body).
//!
//! | file | |
//! | --- | --- |
//! | `read`, `long_poll`, `sse`, `head`, `append`, `create`, `delete` | one operation each |
//! | `query`, `lifetime`, `producer`, `receive` | what requests say: query, headers, body |
//! | `answer`, `payload`, `problem`, `headers`, `cursor` | what answers are made of |

mod answer;
mod append;
mod create;
mod cursor;
mod delete;
mod head;
mod headers;
mod lifetime;
mod long_poll;
mod payload;
mod problem;
mod producer;
mod query;
mod read;
mod receive;
mod sse;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version, header, request::Parts};
use http_body::Body;
use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use crate::{
    Access, Action, Denied, Route, access::Gate, engine::same_type, name::NameError, registry::Registry, routes::Routes,
};
use long_poll::LongPoll;
pub(crate) use payload::Payload;
use problem::Problem;

/// An answer of the layer's own.
pub(crate) type Answer = Response<Payload>;

/// An answer, now or later.
pub(crate) enum Reply {
    Now(Option<Box<Answer>>),
    /// All that a parked request is: its head is gone, its body was never read.
    Wait(Pin<Box<LongPoll>>),
    Later(Pin<Box<dyn Future<Output = Reply> + Send>>),
}

/// What a request is addressed to.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) registry: Arc<Registry>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) route: Arc<Route>,
    pub(crate) name: String,
    /// HTTP/1.1 or 1.0, where a connection can be closed by a header.
    pub(crate) http1: bool,
}

/// Answers a request on a route.
pub(crate) fn reply<B>(
    registry: &Arc<Registry>,
    routes: &Arc<Routes>,
    (route, name): (Arc<Route>, Result<String, NameError>),
    request: Request<B>,
) -> Reply
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let (registry, routes) = (registry.clone(), routes.clone());
    let mut target =
        Target { registry, routes, route, name: String::new(), http1: request.version() <= Version::HTTP_11 };
    match name {
        Ok(name) if target.registry.check_name(&name).is_ok() => target.name = name,
        Ok(_) => return target.refuse(Problem::bad_name("it is too long")),
        Err(error) => return target.refuse(Problem::bad_name(error.as_str())),
    }
    if target.route.strict && target.routes.is_reserved(request.uri().path()) {
        return target.refuse(Problem::not_implemented());
    }
    let (parts, body) = request.into_parts();
    match parts.method {
        Method::GET => {
            let asked = query::Asked::parse(&parts, target.route.strict);
            let seen = parts.headers.get(header::IF_NONE_MATCH).cloned();
            target.permitted(&[Action::Read], parts, move |target| match asked {
                Ok(asked) => read::reply(&target, &asked, seen.as_ref()),
                Err(problem) => target.refuse(problem),
            })
        }
        Method::HEAD => target.permitted(&[Action::Read], parts, |target| head::reply(&target)),
        Method::POST if !target.route.append.is_shut() || !target.route.close.is_shut() => {
            let asked = append::Asked::parse(&parts.headers);
            let actions = append::actions(&parts.headers, &body);
            target.permitted(actions, parts, move |target| Reply::Later(Box::pin(append::reply(target, asked, body))))
        }
        Method::PUT if !target.route.create.is_shut() => {
            let asked = create::Asked::parse(&parts);
            let kept = parts.clone();
            target.permitted(&[Action::Create], parts, move |target| {
                Reply::Later(Box::pin(create::reply(target, asked, kept, body)))
            })
        }
        Method::DELETE if !target.route.delete.is_shut() => {
            target.permitted(&[Action::Delete], parts, |target| delete::reply(&target))
        }
        _ => target.refuse(Problem::method_not_allowed(&target.route)),
    }
}

impl Target {
    /// Goes on if the route lets this request do what it asks for, on the channel that it grants.
    fn permitted(
        self,
        actions: &'static [Action],
        parts: Parts,
        go_on: impl FnOnce(Self) -> Reply + Send + 'static,
    ) -> Reply {
        if actions.iter().all(|action| matches!(self.route.gate(*action), Gate::Open)) {
            return go_on(self);
        }
        let (registry, http1) = (self.registry.clone(), self.http1);
        Reply::Later(Box::pin(async move {
            match self.ask(actions, parts).await {
                Ok(target) => go_on(target),
                Err(problem) => problem.reply(&registry, http1),
            }
        }))
    }

    /// Asks whoever decides, for one action after the other.
    async fn ask(mut self, actions: &[Action], parts: Parts) -> Result<Self, Problem> {
        for &action in actions {
            let ask = match self.route.gate(action) {
                Gate::Open => continue,
                Gate::Shut => return Err(Problem::denied(Denied::forbidden())),
                Gate::Ask(ask) => ask.clone(),
            };
            let access = Access::new(self.name.clone(), action, parts.clone());
            if let Some(name) = ask.ask(access).await.map_err(Problem::denied)?.into_channel() {
                self.registry.check_name(&name)?;
                self.name = name;
            }
        }
        Ok(self)
    }

    fn refuse(&self, problem: impl Into<Problem>) -> Reply {
        problem.into().reply(&self.registry, self.http1)
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

/// Whether a browser would show this type rather than run it as a page of this origin.
fn is_inert(content_type: &str) -> bool {
    ["application/json", "text/plain", "application/octet-stream"].iter().any(|inert| same_type(content_type, inert))
}

/// Whether a header says `true`, in whatever case; anything else counts as absent (Durable Streams, section 5).
fn is_true(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get(name).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
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
