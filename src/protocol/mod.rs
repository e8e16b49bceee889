//! Durable Streams 1.0, on the types of the `http` crate. No locks in here.
//!
//! A request comes in as a route, a name and an `http::Request`, and leaves as a [`Pending`]: an answer
//! that is there, a wait, or work that must be done first (asking who may, reading a body).
//!
//! | file | |
//! | --- | --- |
//! | `read`, `long_poll`, `sse`, `head`, `append`, `create`, `delete` | one operation each |
//! | `target`, `hook` | what a request is addressed to, and whether it may; running the hook that decides |
//! | `caller` | what an answer depends on after its request is gone: HTTP/1.1, an `Origin` |
//! | `client` | how many waits each client has |
//! | `query`, `lifetime`, `producer`, `receive`, `drain` | what requests say: query, headers, body |
//! | `pending`, `response`, `body`, `event`, `problem`, `headers`, `text`, `cursor`, `deadline` | what answers are made of |

mod append;
mod body;
mod caller;
mod client;
mod create;
mod cursor;
mod deadline;
mod delete;
mod drain;
mod event;
mod head;
mod headers;
mod hook;
mod lifetime;
mod long_poll;
mod pending;
mod problem;
mod producer;
mod query;
mod read;
mod receive;
mod response;
mod sse;
mod target;
mod text;

use http::{Method, Request, StatusCode, header};
use http_body::Body;
use std::{error::Error as StdError, sync::Arc};

use crate::{Action, OutcomeKind, Route, name::NameError, routes::Routes};
pub(crate) use body::LayerBody;
use caller::Caller;
pub(crate) use client::Clients;
pub use headers::{CORS_REQUEST_HEADERS, CORS_RESPONSE_HEADERS};
pub(crate) use pending::Pending;
use problem::Problem;
use response::LayerResponse;
use target::Target;

/// Answers a request on a route.
pub(crate) fn reply<B>(
    routes: &Arc<Routes>,
    (route, name): (&Arc<Route>, Result<String, NameError>),
    request: Request<B>,
) -> Pending
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let (registry, routes, route) = (Arc::clone(routes.registry()), Arc::clone(routes), Arc::clone(route));
    let caller = Caller::of(&request);
    let head = request.method() == Method::HEAD;
    let mut target = Target { registry, routes, route, name: String::new(), caller, head };
    match name {
        Ok(name) if target.registry.check_name(&name).is_ok() => target.name = name,
        Ok(_) => return target.reply(Err(Problem::bad_name("it is empty or too long"))),
        Err(error) => return target.reply(Err(Problem::bad_name(error.as_str()))),
    }
    if target.route.strict && target.routes.is_reserved(request.uri().path()) {
        return target.reply(Err(Problem::not_implemented()));
    }
    let (parts, body) = request.into_parts();
    if let Some(name) = headers::repeated(&parts.headers) {
        return target.reply(Err(Problem::bad_request("repeated-header", format!("the header `{name}` occurs twice"))));
    }
    match parts.method {
        Method::GET => {
            let asked = query::ReadRequest::parse(&parts, &target.route).and_then(|mut asked| {
                if asked.live.is_some() {
                    asked.client = target.client(&parts)?;
                }
                Ok(asked)
            });
            let seen = headers::list(&parts.headers, &header::IF_NONE_MATCH);
            let unread = (caller.is_http1() && !body.is_end_stream()).then_some(body);
            target.permitted(&[Action::Read], parts, move |target| match (asked, unread) {
                (Ok(asked), None) => read::reply(target, asked, seen),
                (Ok(asked), Some(body)) => drain::beside(read::reply(target.clone(), asked, seen), body, target),
                (Err(problem), _) => target.reply(Err(problem)),
            })
        }
        Method::HEAD => target.permitted(&[Action::Read], parts, |target| {
            Pending::Later(Box::pin(async move { target.reply(head::answer(&target).await) }))
        }),
        Method::POST if !target.route.append.is_shut() || !target.route.close.is_shut() => {
            let asked = append::AppendRequest::parse(&parts.headers);
            let actions = append::actions(&parts.headers, &body);
            target.permitted(actions, parts, move |target| {
                Pending::Later(Box::pin(async move { target.reply(append::answer(&target, asked, body).await) }))
            })
        }
        Method::PUT if !target.route.create.is_shut() => {
            let asked = create::CreateRequest::parse(&parts);
            let kept = parts.clone();
            target.permitted(&[Action::Create], parts, move |target| {
                Pending::Later(Box::pin(async move { target.reply(create::answer(&target, asked, kept, body).await) }))
            })
        }
        Method::DELETE if !target.route.delete.is_shut() => target.permitted(&[Action::Delete], parts, |target| {
            Pending::Later(Box::pin(async move { target.reply(delete::answer(&target).await) }))
        }),
        _ => target.reply(Err(Problem::method_not_allowed(&target.route))),
    }
}

/// Answers a request that no route serves and that has no inner service to go to: 404, 405, or `OPTIONS`.
pub(crate) fn unserved<B>(routes: &Routes, request: &Request<B>) -> Pending {
    let route = routes.at(request.uri().path());
    let answer = match route {
        None => Err(Problem::no_route()),
        Some(route) if request.method() == Method::OPTIONS => {
            let mut answer = response::empty(StatusCode::NO_CONTENT, OutcomeKind::Read);
            answer.headers_mut().insert(header::ALLOW, problem::allow(route));
            Ok(answer)
        }
        Some(route) => Err(Problem::method_not_allowed(route)),
    };
    Pending::now(routes.registry(), route, Caller::of(request), request.method() == Method::HEAD, answer)
}
