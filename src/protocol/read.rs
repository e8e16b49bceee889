//! `GET`: what a channel holds (Durable Streams, sections 5.6 and 5.7).

use http::{HeaderValue, header};

use super::{
    Reply, Target, answer, long_poll,
    problem::Problem,
    query::{Asked, Live},
    sse,
};
use crate::{
    Outcome,
    engine::{Gone, Reading, Reason, Start},
};

pub(super) fn reply(target: &Target, asked: &Asked, seen: Option<&HeaderValue>) -> Reply {
    let reading = match target.registry.read(&target.name, asked.start, target.route.max_chunk) {
        Ok(reading) if reading.content_type.is_none() && target.route.strict => {
            return target.refuse(Problem::not_found());
        }
        Ok(reading) => reading,
        Err(gone) => return target.refuse(gone_or_unknown(target, &gone)),
    };
    match asked.live {
        Some(Live::LongPoll) => return long_poll::reply(target, asked, reading, seen),
        Some(Live::Sse) => return sse::reply(target, asked, &reading),
        None => {}
    }
    // Where "now" is changes with time, so what is read from there has no name to be cached under.
    let tag = (asked.start != Start::Tail).then(|| answer::entity_tag(&reading));
    target.reply(tagged(target, reading, Outcome::Read, tag, seen))
}

/// 200, or 304 if the client has seen it.
pub(super) fn tagged(
    target: &Target,
    reading: Reading,
    outcome: Outcome,
    tag: Option<HeaderValue>,
    seen: Option<&HeaderValue>,
) -> super::Answer {
    let Some(tag) = tag else {
        return answer::messages(&target.route, reading, outcome);
    };
    if seen.is_some_and(|seen| answer::matches(seen, &tag)) {
        return answer::not_modified(&reading, tag);
    }
    let mut answer = answer::messages(&target.route, reading, outcome);
    answer.headers_mut().insert(header::ETAG, tag);
    answer
}

/// On a strict route a channel that nobody has made is 404, whatever the offset.
fn gone_or_unknown(target: &Target, gone: &Gone) -> Problem {
    match gone.reason() {
        Reason::Unknown if target.route.strict => Problem::not_found(),
        _ => Problem::gone(gone),
    }
}
