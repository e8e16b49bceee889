//! `DELETE` (Durable Streams, section 5.4).

use http::StatusCode;

use super::{Reply, Target, answer};
use crate::Outcome;

pub(super) fn reply(target: &Target) -> Reply {
    match target.registry.delete(&target.name) {
        Ok(_) => target.reply(answer::empty(StatusCode::NO_CONTENT, Outcome::Deleted)),
        Err(error) => target.refuse(error),
    }
}
