//! `HEAD`: what a channel is (Durable Streams, section 5.5). Answered at once, never parked.

use http::StatusCode;

use super::{LayerResponse, Target, headers, lifetime, problem::Problem, response};
use crate::{OutcomeKind, engine::Start};

pub(super) async fn answer(target: &Target) -> Result<LayerResponse, Problem> {
    let channel = target.registry.peek(&target.name).await?;
    let mut answer = response::empty(StatusCode::OK, OutcomeKind::Read);
    let map = answer.headers_mut();
    match channel {
        Some(channel) => {
            response::of_type(map, &channel.content_type);
            map.insert(headers::NEXT_OFFSET, headers::offset(channel.tail));
            if channel.closed {
                map.insert(headers::CLOSED, headers::TRUE);
            }
            lifetime::describe(map, channel.lifetime);
        }
        None if target.route.strict => return Err(Problem::not_found()),
        None => {
            response::of_type(map, &target.route.content_type);
            let nothing = target.registry.read(&target.name, Start::Tail, 0.into()).await?;
            map.insert(headers::NEXT_OFFSET, headers::offset(nothing.next));
        }
    }
    Ok(answer)
}
