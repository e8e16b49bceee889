//! `DELETE` (Durable Streams, section 5.4).

use http::StatusCode;

use super::{Answer, Target, answer, problem::Problem};
use crate::OutcomeKind;

pub(super) async fn answer(target: &Target) -> Result<Answer, Problem> {
    let deleted = target.registry.delete(&target.name).await;
    deleted.map_err(|error| Problem::from(error).repeatable())?;
    Ok(answer::empty(StatusCode::NO_CONTENT, OutcomeKind::Deleted))
}
