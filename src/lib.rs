//! Push to clients over plain HTTP.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod access;
mod body;
mod change;
mod channel;
mod comet;
mod engine;
mod error;
mod future;
mod layer;
mod name;
mod outcome;
mod protocol;
mod registry;
mod route;
mod routes;
mod service;
mod subscription;
mod sync;

pub use access::{Access, Action, Authorize, Denied, Grant};
pub use body::ResponseBody;
pub use change::{Broadcast, Change};
pub use channel::Channel;
pub use comet::{Comet, CometBuilder, Stats};
pub use engine::{Gone, Offset, ParseOffsetError, Reason, Retention};
pub use error::{Error, Limit};
pub use future::ResponseFuture;
pub use layer::{CometLayer, RouteError};
pub use outcome::Outcome;
pub use route::Route;
pub use service::CometService;
pub use subscription::{Message, Subscription};
