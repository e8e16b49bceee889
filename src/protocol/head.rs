//! `HEAD`: what a channel is (Durable Streams, section 5.5). Answered at once, never parked.

use http::StatusCode;

use super::{Reply, Target, answer, headers, problem::Problem};
use crate::{Outcome, engine::Start};

pub(super) fn reply(target: &Target) -> Reply {
    let reading = match target.registry.read(&target.name, Start::Tail, 0) {
        Ok(reading) => reading,
        Err(gone) => return target.refuse(Problem::gone(&gone)),
    };
    if reading.content_type.is_none() && target.route.strict {
        return target.refuse(Problem::not_found());
    }
    let content_type = reading.content_type.as_ref().unwrap_or(&target.route.content_type);
    let mut answer = answer::empty(StatusCode::OK, Outcome::Read);
    let map = answer.headers_mut();
    map.insert(headers::NEXT_OFFSET, headers::offset(reading.next));
    if reading.closed {
        map.insert(headers::CLOSED, headers::TRUE);
    }
    answer::of_type(map, content_type);
    target.reply(answer)
}
