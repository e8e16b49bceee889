//! Push to clients over plain HTTP, from the axum, tonic or hyper service that you already have.
//!
//! A client sends two kinds of request: one that *sends data*, and one that *waits*. This crate is the second
//! kind, done once: it turns requests on the routes you name into waits on named channels. The routes are mounted in a
//! framework's router, or put around any tower service as a layer, which passes every other request through untouched. You
//! publish by calling a method; a waiting client receives the message at once, and a client between two polls with its next.
//!
//! There are two main types: [`Comet`], the channels, and [`CometLayer`], the routes. [Placement](placement) has how to
//! put the routes into an application and how to guard them.
//!
//! # A tour
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! use axum::{Router, body::{Body, to_bytes}, http::Request, routing::get};
//! use tower::ServiceExt;
//! use tower_comet::{Comet, CometLayer, Route};
//!
//! let comet = Comet::new();
//!
//! // `/events/news` is a channel, and so is `/events/anything`. Anyone may read them.
//! let channels = CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone()).into_service();
//! let app: Router = Router::new()
//!     .route("/", get(|| async { "an ordinary handler" }))
//!     .route_service("/events/{channel}", channels);
//!
//! // A bare GET waits for the next message ...
//! let waiting = tokio::spawn(app.clone().oneshot(Request::get("/events/news").body(Body::empty())?));
//! while comet.waiters() == 0 {
//!     tokio::task::yield_now().await;
//! }
//!
//! // ... which is anything that serde can write. A channel is named by the path that it is read at.
//! let news = comet.channel("/events/news");
//! news.publish("first").await?;
//!
//! let answer = waiting.await??;
//! let offset = answer.headers()["stream-next-offset"].to_str()?.to_owned();
//! assert_eq!(to_bytes(answer.into_body(), 1024).await?, r#"["first"]"#);
//!
//! // The client is between two polls. What is published now waits for it ...
//! news.publish("second").await?;
//! news.publish("third").await?;
//!
//! // ... at the offset that the last answer gave.
//! let uri = format!("/events/news?offset={offset}&live=long-poll");
//! let answer = app.oneshot(Request::get(uri).body(Body::empty())?).await?;
//! assert_eq!(to_bytes(answer.into_body(), 1024).await?, r#"["second","third"]"#);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! # What it does
//!
//! * **Nothing is lost between two polls.** A channel is a log; [`Retention`] bounds it. A client whose next message was trimmed
//!   receives an error (410, [`Error::Gone`]); no message is skipped silently.
//! * **Plain HTTP.** The wire format is [Durable Streams 1.0](https://github.com/durable-streams/durable-streams): curl,
//!   `fetch` and its clients can use it.
//! * **Bounded.** Everything that a request can make grow has a limit: see [`CometBuilder`] and [`Route`].
//! * **Closed by default.** A [`Route`] must name its readers; otherwise the layer panics at start-up. Writing is off until
//!   the route names its writers: see [`Authorize`].
//! * **Shuts down.** [`Comet::close_on`] ends all waits, so that a graceful shutdown does not hang on them.
//! * **Out of the way.** As a layer, it costs a request that is on no route a look-up of its path: no lock, no allocation.
//!
//! # What it does not do
//!
//! * Without Redis the logs are in memory, in one process; a restart empties them, and clients receive 410.
//! * Of Durable Streams it leaves out the subscriptions below `__ds`: 501 on a strict route.
//! * No WebSockets, no presence, no acknowledgements.
//!
//! # Reading, over HTTP
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /events/news` | waits for the next message |
//! | `GET …?offset=-1` | what there is, from the start |
//! | `GET …?offset=now` | nothing, and where the tail is |
//! | `GET …?offset=OFFSET` | what there is after the offset |
//! | `GET …?offset=OFFSET&live=long-poll` | the same, and waits if there is nothing |
//! | `GET …?offset=OFFSET&live=sse` | the same as an event stream |
//! | `GET …` with `Accept: text/event-stream` | an event stream, unless the route is strict |
//! | `HEAD …` | type, tail and lifetime |
//!
//! | status | |
//! | --- | --- |
//! | 200 | messages: a JSON array, or the bytes of a channel of another type |
//! | 204 | nothing came in time; or, with `Stream-Closed: true`, nothing will |
//! | 304 | what `If-None-Match` names is still what there is |
//! | 400 | a malformed offset, query, path or content type |
//! | 401, 403, 404 | the route's [`Authorize`] hook denied the request; 404 also if the channel was deleted during a wait |
//! | 410 | the channel does not keep what follows the offset: start over at `-1`, or at `Stream-Earliest-Offset` |
//! | 429 | the client has as many waits as [`Route::max_waits_per`] allows, or [`Denied::too_many_requests`]: try again after `Retry-After` |
//! | 500 | the route's [`Authorize`] hook panicked, or the key function of [`Route::max_waits_per`] |
//! | 503 | a limit is reached, the server is closing, the hook exceeded [`Route::hook_timeout`], or [`Denied::unavailable`]: try again after `Retry-After` |
//!
//! A route that allows it also takes `POST` (append, and with `Stream-Closed: true` the end of the stream), `PUT` (create) and
//! `DELETE`. A [strict](Route::strict) route follows the protocol to the letter, and passes all 332 tests of its suite.
//!
//! `Stream-Next-Offset` is where to go on from. `Stream-Up-To-Date` and `Stream-Closed` are there or not there, never
//! `false`. A wait takes up to [`Route::max_wait`]; a client asks for less with `Prefer: wait=10` or `?timeout=10`, in
//! seconds. On a bare `GET` the client does not say where it was, so what is published before its next bare `GET` is not
//! for it.
//!
//! # Past one machine
//!
//! With the feature `redis` the logs are on Redis or Valkey: `Comet::builder().redis("redis://…").connect().await`. Any node takes a
//! publish, any node holds the wait; nothing else changes.
//!
//! # Beside other layers
//!
//! Tracing, CORS, authentication and compression go outside of the channels; time-outs and concurrency limits inside,
//! where they see the application's requests and not the waits. The extensions of responses to requests on a
//! route have an [`Outcome`] and the [`RoutePattern`], for outer layers. [Placement](placement) has tables for axum and for the common layers, and which
//! arrangements of authentication guard the channels.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod access;
mod body;
mod broadcast;
mod builder;
mod change;
mod channel;
mod channel_info;
mod comet;
mod create;
mod denied;
mod engine;
mod error;
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "without an engine elsewhere there are no such rules"))]
mod fault_injection;
mod future;
mod gate;
mod layer;
mod message;
mod name;
mod outcome;
mod producer;
mod protocol;
#[cfg(feature = "redis")]
mod redis;
mod registry;
mod route;
mod route_pattern;
mod routes;
mod service;
mod subscription;
mod sync;

pub use access::{Access, Action, Authorize, Grant};
pub use body::{BodyError, NoBody, ResponseBody};
pub use broadcast::Broadcast;
pub use builder::CometBuilder;
pub use change::Change;
pub use channel::Channel;
pub use channel_info::ChannelInfo;
pub use comet::{Comet, Stats};
pub use create::Create;
pub use denied::Denied;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use engine::RedisError;
pub use engine::{Gone, Offset, ParseOffsetError, Reason, Retention};
pub use error::{Error, Limit};
#[cfg(comet_faults)]
#[doc(hidden)]
pub use fault_injection::Invariant;
pub use future::ResponseFuture;
pub use layer::{CometLayer, RouteError};
pub use message::Message;
pub use outcome::{Outcome, OutcomeKind};
pub use producer::{Producer, ProducerChange};
pub use protocol::{CORS_REQUEST_HEADERS, CORS_RESPONSE_HEADERS};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use redis::RedisBuilder;
pub use registry::{Loss, Unhealthy};
pub use route::Route;
pub use route_pattern::RoutePattern;
pub use service::{CometRoutes, CometService};
pub use subscription::Subscription;

#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
#[doc = include_str!("../docs/redis.md")]
pub mod on_redis {}

#[doc = include_str!("../docs/placement.md")]
pub mod placement {}

#[doc = include_str!("../docs/deploying.md")]
pub mod deploying {}

/// The code in the README is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// What users put into tasks, state and statics.
const _: () = {
    const fn is_shared<T: Send + Sync + 'static>() {}
    is_shared::<Comet>();
    is_shared::<Channel>();
    is_shared::<Subscription>();
    is_shared::<Message>();
    is_shared::<CometLayer>();
    is_shared::<CometService<()>>();
    is_shared::<CometRoutes>();
    is_shared::<ResponseBody<()>>();
    is_shared::<ResponseBody>();
    is_shared::<Error>();
    const fn is_sent<T: Send + 'static>() {}
    is_sent::<Change>();
    is_sent::<Broadcast>();
    is_sent::<ResponseFuture<()>>();
};
