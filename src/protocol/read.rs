//! `GET`: what a channel holds (Durable Streams, sections 5.6 and 5.7).

use http::HeaderValue;

use super::{
    Pending, Target,
    client::counted,
    long_poll::{self, LongPoll},
    problem::Problem,
    query::{Live, ReadRequest},
    response, sse,
};
use crate::{
    Error, OutcomeKind,
    engine::{Gone, Reason, Start},
    registry::{LiveRead, ReadOrWait},
};

pub(super) fn reply(target: Target, asked: ReadRequest, seen: Option<HeaderValue>) -> Pending {
    let live = match asked.live {
        Some(Live::LongPoll) => LiveRead::Wait,
        Some(Live::Sse) => LiveRead::Follow,
        None => LiveRead::None,
    };
    let (start, extent) = (asked.start, target.route.max_chunk.into());
    if let Some(begun) = target.registry.begin_read_at_once(&target.name, start, extent, live) {
        return go_on(&target, &asked, begun, seen.as_ref());
    }
    Pending::Later(Box::pin(async move {
        let begun = target.registry.begin_read(&target.name, start, extent, live).await;
        go_on(&target, &asked, begun, seen.as_ref())
    }))
}

fn go_on(
    target: &Target,
    asked: &ReadRequest,
    begun: Result<ReadOrWait, Error>,
    seen: Option<&HeaderValue>,
) -> Pending {
    let reading = match begun {
        Ok(begun) if target.route.strict && !begun.found() => return target.reply(Err(Problem::not_found())),
        Ok(ReadOrWait::Wait(wait)) => return counted(LongPoll::new(target, asked, wait), asked.client),
        Ok(ReadOrWait::Read(reading)) => reading,
        Err(Error::Gone(gone)) => return target.reply(Err(gone_or_unknown(target, &gone))),
        Err(error) => return target.reply(Err(error.into())),
    };
    match asked.live {
        Some(Live::LongPoll) => target.reply(long_poll::at_once(target, asked, reading, seen)),
        Some(Live::Sse) => target.reply(sse::answer(target, asked, &reading)),
        None => {
            let (registry, route, from_tail) = (&target.registry, &target.route, asked.start == Start::Tail);
            target.reply(response::messages(registry, route, reading, from_tail, OutcomeKind::Read, seen, None))
        }
    }
}

/// On a strict route a channel that nobody has made is 404, whatever the offset.
fn gone_or_unknown(target: &Target, gone: &Gone) -> Problem {
    match gone.reason() {
        Reason::Unknown if target.route.strict => Problem::not_found(),
        _ => Problem::gone(gone),
    }
}
