//! `GET`: what a channel holds (Durable Streams, sections 5.6 and 5.7).

use http::HeaderValue;

use super::{
    Reply, Target, answer,
    long_poll::{self, LongPoll},
    problem::Problem,
    query::{Asked, Live},
    sse,
};
use crate::{
    Outcome,
    engine::{Gone, Reason, Start},
};

pub(super) fn reply(target: &Target, asked: &Asked, seen: Option<&HeaderValue>) -> Reply {
    let reading = match target.registry.read(&target.name, asked.start, target.route.max_chunk) {
        Ok(reading) if reading.content_type.is_none() && target.route.strict => {
            return target.reply(Err(Problem::not_found()));
        }
        Ok(reading) => reading,
        Err(gone) => return target.reply(Err(gone_or_unknown(target, &gone))),
    };
    match asked.live {
        Some(Live::LongPoll) if reading.is_empty() && !reading.closed => {
            Reply::Wait(Box::pin(LongPoll::new(target, asked, &reading)))
        }
        Some(Live::LongPoll) => target.reply(Ok(long_poll::at_once(target, asked, reading, seen))),
        Some(Live::Sse) => target.reply(sse::answer(target, asked, &reading)),
        // Where "now" is changes with time, so what is read from there has no name to be cached under.
        None if asked.start == Start::Tail => target.reply(Ok(answer::messages(&target.route, reading, Outcome::Read))),
        None => target.reply(Ok(answer::tagged(&target.route, reading, Outcome::Read, seen))),
    }
}

/// On a strict route a channel that nobody has made is 404, whatever the offset.
fn gone_or_unknown(target: &Target, gone: &Gone) -> Problem {
    match gone.reason() {
        Reason::Unknown if target.route.strict => Problem::not_found(),
        _ => Problem::gone(gone),
    }
}
