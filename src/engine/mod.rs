//! Where a channel's log lives: what was appended, which offsets are places to resume from, what is kept.
//!
//! No HTTP in here, and nobody waits. A [`Log`] is in memory, and the [`registry`](crate::registry) guards each with its channel's
//! lock. A [`Remote`] is asked, and answers in its time.
//!
//! | file | |
//! | --- | --- |
//! | `log`, `fork`, `replica` | a log in memory; what a fork inherits; the cached end of a remote log |
//! | `history` | the appends that a log in memory keeps |
//! | `stored` | the bytes of one append, shared by logs and responses, and the count of what only responses hold |
//! | `batch`, `producers`, `retention` | what one append adds, who sent it, how much is kept |
//! | `json` | JSON that is refused because common parsers cannot read it |
//! | `offset`, `gone`, `reading`, `chunks` | an offset in a log, why it cannot be read from, what a read found there, and that in parts |
//! | `request` | what any engine is asked to do, and what it says was done |
//! | `remote` | the engines outside of this process: the one place where they differ |
//! | `redis` | Redis or Valkey |
//! | `media_type`, `utf8` | content types: parsed once, and compared by their essence; where characters are split |

mod batch;
mod chunks;
mod fork;
mod gone;
mod history;
mod json;
mod log;
mod media_type;
mod offset;
mod producers;
mod reading;
#[cfg(feature = "redis")]
mod redis;
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "without an engine elsewhere nothing is asked of one"))]
mod remote;
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "and nothing is held of what it keeps"))]
mod replica;
mod request;
mod retention;
mod stored;
mod utf8;

pub(crate) use batch::Batch;
pub(crate) use chunks::Chunks;
pub(crate) use fork::{Copied, DroppedEntries, ForkCopy};
pub use gone::{Gone, Reason};
#[cfg(feature = "redis")]
pub(crate) use log::READ;
pub(crate) use log::{Log, cost_of};
pub(crate) use media_type::{MediaType, is_inert, is_json, is_text, is_utf8, same_type};
pub(crate) use offset::hexadecimal;
pub use offset::{Offset, ParseOffsetError};
pub(crate) use producers::{ProducerCheck, Producers, Stamp};
pub(crate) use reading::{Extent, Reading, Start};
#[cfg(feature = "redis")]
pub use redis::RedisError;
#[cfg(feature = "redis")]
pub(crate) use redis::{Credentials, Redis};
pub(crate) use remote::{AppendFate, Notice, Page, ReadFrom, Remote, RemoteFuture, RemoteRead, Touch};
#[cfg(feature = "redis")]
pub(crate) use remote::{CachedTail, Comparison, Feed, Listed, Names, PageEntry};
pub(crate) use request::{Announcement, Append, Appended, Created, Creation, Fork, Lifetime};
pub use retention::Retention;
pub(crate) use stored::{AppendBytes, ResponseBytes, Share};
