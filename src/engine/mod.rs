//! Where a channel's log lives: what was appended, which offsets are places to resume from, what is kept.
//!
//! Nothing here waits, locks or knows HTTP. The one engine so far keeps its logs in memory ([`Log`]); the
//! [`registry`](crate::registry) guards each with its channel's lock.

mod batch;
mod log;
mod offset;
mod retention;

pub(crate) use batch::Batch;
pub use log::{Gone, Reason};
pub(crate) use log::{Log, Reading, Start, is_json, same_type};
pub use offset::{Offset, ParseOffsetError};
pub use retention::Retention;
