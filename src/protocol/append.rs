//! `POST`: append, close, or both (Durable Streams, sections 5.2 and 5.3).

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body::Body;
use std::error::Error as StdError;

use super::{
    LayerResponse, Target, headers,
    problem::Problem,
    producer,
    receive::{expects_continue, receive},
    response,
};
use crate::{
    Action, Error, OutcomeKind,
    engine::{Batch, MediaType, Stamp, is_json, same_type},
    registry::{Append, Appended},
};

/// The longest `Stream-Seq`: the channel keeps it.
const SEQ_LEN: usize = 255;

/// What a `POST` says about itself.
pub(super) struct AppendRequest {
    content_type: Option<MediaType>,
    close: bool,
    seq: Option<String>,
    stamp: Option<Stamp>,
    expects_continue: bool,
}

impl AppendRequest {
    pub(super) fn parse(map: &HeaderMap) -> Result<Self, Problem> {
        let seq = map.get(headers::SEQ).map(|value| {
            let text = value.to_str().ok().filter(|text| (1..=SEQ_LEN).contains(&text.len()));
            text.map(str::to_owned)
                .ok_or_else(|| Problem::bad_request("seq", "`Stream-Seq` is 1 to 255 characters of ASCII"))
        });
        Ok(Self {
            content_type: content_type(map)?,
            close: headers::is_true(map, &headers::CLOSED),
            seq: seq.transpose()?,
            stamp: producer::parse(map)?,
            expects_continue: expects_continue(map),
        })
    }
}

/// Parses the `Content-Type` of a body, which must not be encoded: nobody would decode it for its readers.
pub(super) fn content_type(map: &HeaderMap) -> Result<Option<MediaType>, Problem> {
    let encoded =
        map.get_all(header::CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
    if encoded {
        return Err(Problem::content_encoding());
    }
    let Some(value) = map.get(header::CONTENT_TYPE) else { return Ok(None) };
    let parsed = value.to_str().map_err(|_| Error::MediaType).and_then(str::parse);
    Ok(Some(parsed?))
}

/// What must be allowed: an append, an end, or both.
pub(super) fn actions(map: &HeaderMap, body: &impl Body) -> &'static [Action] {
    match (headers::is_true(map, &headers::CLOSED), body.size_hint().exact() == Some(0)) {
        (false, _) => &[Action::Append],
        (true, true) => &[Action::Close],
        (true, false) => &[Action::Append, Action::Close],
    }
}

pub(super) async fn answer<B>(
    target: &Target,
    asked: Result<AppendRequest, Problem>,
    body: B,
) -> Result<LayerResponse, Problem>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let expects_continue = asked.as_ref().is_ok_and(|asked| asked.expects_continue);
    // The memory of the body counts as received until the append is done: from then on it is history.
    let (bytes, _received) = receive(target, expects_continue, body).await?;
    append(target, &asked?, bytes).await
}

async fn append(target: &Target, asked: &AppendRequest, bytes: Bytes) -> Result<LayerResponse, Problem> {
    let Target { registry, route, name, .. } = target;
    let batch = if bytes.is_empty() && asked.close { None } else { Some(batch(target, asked, bytes).await?) };
    let content = batch.is_some();
    let append = Append {
        batch,
        content_type: asked.content_type.as_ref(),
        // A strict route appends to what was created; a comet route creates by appending.
        create: (!route.strict).then_some(&route.content_type),
        close: asked.close,
        seq: asked.seq.as_deref(),
        stamp: asked.stamp.as_ref(),
        broadcast: None,
    };
    match registry.append(name, append).await {
        Ok(done) => Ok(appended(&done, content)),
        Err(Error::Closed) => {
            let end = registry.peek(name).await?.map(|channel| channel.tail);
            Err(Problem::closed(end.unwrap_or_else(|| registry.absent_tail(name))))
        }
        Err(error) if asked.stamp.is_some() => Err(Problem::from(error).repeatable()),
        Err(error) => Err(error.into()),
    }
}

/// The content, if it is of the channel's type. That, and whether the stream has ended, is seen before the content is
/// looked into, and by the registry once more, in the same step as the append.
async fn batch(target: &Target, asked: &AppendRequest, bytes: Bytes) -> Result<Batch, Problem> {
    if bytes.is_empty() {
        return Err(Problem::bad_request("empty", "there is nothing to append"));
    }
    let Some(content_type) = &asked.content_type else {
        return Err(Problem::bad_request("content-type", "an append says its `Content-Type`"));
    };
    let batch = || if is_json(content_type) { Batch::json(&bytes) } else { Batch::bytes(bytes.clone()) };
    if target.registry.content_type_now(&target.name).is_none() {
        // A remote engine is asked for the channel's type only if there is something to object to.
        if let Ok(batch) = batch() {
            return Ok(batch);
        }
    }
    let channel = target.registry.peek(&target.name).await?;
    // Nothing is said of the content to a stream that has ended: the registry says that.
    if channel.as_ref().is_some_and(|channel| channel.closed) {
        return Ok(Batch::bytes(bytes)?);
    }
    let holds = match &channel {
        Some(channel) => &channel.content_type,
        None if target.route.strict => return Err(Problem::not_found()),
        None => &target.route.content_type,
    };
    if !same_type(content_type, holds) {
        return Err(Error::ContentType { holds: holds.to_string() }.into());
    }
    Ok(batch()?)
}

/// 200 for what a producer has appended now, 204 for everything else.
fn appended(appended: &Appended, content: bool) -> LayerResponse {
    let produced = appended.accepted.is_some() && content && !appended.duplicate;
    let status = if produced { StatusCode::OK } else { StatusCode::NO_CONTENT };
    let mut answer = response::empty(status, OutcomeKind::Appended);
    let map = answer.headers_mut();
    map.insert(headers::NEXT_OFFSET, headers::offset(appended.tail));
    if appended.closed {
        map.insert(headers::CLOSED, headers::TRUE);
    }
    if let Some((epoch, seq)) = appended.accepted {
        map.insert(headers::PRODUCER_EPOCH, headers::ascii(epoch));
        map.insert(headers::PRODUCER_SEQ, headers::ascii(seq));
    }
    answer
}
