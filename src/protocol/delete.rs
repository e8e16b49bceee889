//! `DELETE` (Durable Streams, section 5.4).

use http::StatusCode;

use super::{Answer, Target, answer, problem::Problem};
use crate::Outcome;

pub(super) async fn answer(target: &Target<'_>) -> Result<Answer, Problem> {
    target.registry.delete_anywhere(&target.name).await?;
    Ok(answer::empty(StatusCode::NO_CONTENT, Outcome::Deleted))
}
