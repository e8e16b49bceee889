//! Where a channel's log lives: what was appended, which offsets are places to resume from, what is kept.
//!
//! Nothing here waits, locks or knows HTTP. The one engine so far keeps its logs in memory ([`Log`]); the
//! [`registry`](crate::registry) guards each with its channel's lock.

mod batch;
mod branch;
mod gone;
mod log;
mod media_type;
mod offset;
mod parts;
mod reading;
#[cfg(feature = "redis")]
mod redis;
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "without an engine elsewhere nothing is asked of one"))]
mod remote;
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "and nothing is held of what it keeps"))]
mod replica;
mod request;
mod retention;
mod writers;

pub(crate) use batch::Batch;
pub(crate) use branch::Branch;
pub use gone::{Gone, Reason};
pub(crate) use log::Log;
pub(crate) use media_type::{check_media_type, is_inert, is_json, is_text, same_type};
pub use offset::{Offset, ParseOffsetError};
pub(crate) use parts::Parts;
pub(crate) use reading::{Reading, Start};
#[cfg(feature = "redis")]
pub(crate) use redis::Redis;
#[cfg(feature = "redis")]
pub use redis::RedisError;
pub(crate) use remote::{Answer, Found, Notice, Page, Place, Remote, Touch};
#[cfg(feature = "redis")]
pub(crate) use remote::{Feed, PageEntry};
pub(crate) use request::{Append, Appended, Created, Creation, Fork, Lifetime};
pub use retention::Retention;
pub(crate) use writers::{Admission, Stamp, Writers};
