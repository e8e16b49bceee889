//! `DELETE` (Durable Streams, section 5.4).

use http::StatusCode;

use super::{Answer, Target, answer, problem::Problem};
use crate::Outcome;

pub(super) fn answer(target: &Target) -> Result<Answer, Problem> {
    target.registry.delete(&target.name)?;
    Ok(answer::empty(StatusCode::NO_CONTENT, Outcome::Deleted))
}
