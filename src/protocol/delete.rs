//! `DELETE` (Durable Streams, section 5.4).

use http::StatusCode;

use super::{LayerResponse, Target, problem::Problem, response};
use crate::OutcomeKind;

pub(super) async fn answer(target: &Target) -> Result<LayerResponse, Problem> {
    let deleted = target.registry.delete(&target.name).await;
    deleted.map_err(|error| Problem::from(error).repeatable())?;
    Ok(response::empty(StatusCode::NO_CONTENT, OutcomeKind::Deleted))
}
