//! Answers that carry what a channel holds.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use std::sync::Arc;

use super::{LayerBody, caller::Caller, headers, problem::Problem, text::Text};
use crate::{
    Outcome, OutcomeKind, Route,
    engine::{MediaType, Reading, is_inert, is_json},
    gate::Gate,
    registry::Registry,
};

/// An answer of the layer's own.
pub(crate) type LayerResponse = Response<LayerBody>;

/// Returns 200 with messages, or 304 if `seen` names them; 503 if the limit on what responses hold is reached. A live read
/// has a `cursor`.
///
/// A read that began at the tail has no entity tag, and no cache may store its response: the same request returns the next
/// message.
pub(super) fn messages(
    registry: &Arc<Registry>,
    route: &Route,
    reading: Reading,
    from_tail: bool,
    outcome: OutcomeKind,
    seen: Option<&HeaderValue>,
    cursor: Option<HeaderValue>,
) -> Result<LayerResponse, Problem> {
    if from_tail {
        return ok(registry, route, reading, outcome, None, cursor);
    }
    let tag = entity_tag(&reading);
    if seen.is_some_and(|seen| matches(seen, &tag)) {
        return Ok(not_modified(route, &reading, tag, cursor));
    }
    ok(registry, route, reading, outcome, Some(tag), cursor)
}

fn ok(
    registry: &Arc<Registry>,
    route: &Route,
    mut reading: Reading,
    outcome: OutcomeKind,
    tag: Option<HeaderValue>,
    cursor: Option<HeaderValue>,
) -> Result<LayerResponse, Problem> {
    let content_type = reading.content_type.take().unwrap_or_else(|| {
        reading.json = is_json(&route.content_type);
        route.content_type.clone()
    });
    let mut map = headers::safe();
    position(&mut map, &reading);
    of_type(&mut map, &content_type);
    if let Some(tag) = tag {
        cacheable(&mut map, route, &reading);
        map.insert(header::ETAG, tag);
    }
    map.extend(cursor.map(|cursor| (headers::CURSOR, cursor)));
    let content = registry.content(reading).map_err(Problem::full)?;
    let mut answer = Response::new(content.into());
    *answer.headers_mut() = map;
    answer.extensions_mut().insert(Outcome::new(outcome));
    Ok(answer)
}

/// 204: nothing came. The offset is where the wait began, so that the next one skips nothing.
pub(super) fn nothing(reading: &Reading, outcome: OutcomeKind, cursor: Option<HeaderValue>) -> LayerResponse {
    let mut answer = empty(StatusCode::NO_CONTENT, outcome);
    position(answer.headers_mut(), reading);
    answer.headers_mut().extend(cursor.map(|cursor| (headers::CURSOR, cursor)));
    answer
}

/// 304: the client has it, and may keep it as if it had been given it now (RFC 9110, section 15.4.5).
fn not_modified(route: &Route, reading: &Reading, tag: HeaderValue, cursor: Option<HeaderValue>) -> LayerResponse {
    let mut answer = empty(StatusCode::NOT_MODIFIED, OutcomeKind::Read);
    let map = answer.headers_mut();
    position(map, reading);
    cacheable(map, route, reading);
    map.insert(header::ETAG, tag);
    map.extend(cursor.map(|cursor| (headers::CURSOR, cursor)));
    answer
}

pub(super) fn empty(status: StatusCode, outcome: OutcomeKind) -> LayerResponse {
    let mut answer = Response::new(LayerBody::default());
    *answer.status_mut() = status;
    *answer.headers_mut() = headers::safe();
    answer.extensions_mut().insert(Outcome::new(outcome));
    answer
}

/// Lets caches keep messages, if the route does.
fn cacheable(map: &mut HeaderMap, route: &Route, reading: &Reading) {
    if let Some(max_age) = route.max_age.filter(|_| !reading.is_empty()) {
        // RFC 9111, section 5.2.2.7: what was shown to one reader is kept by that reader alone.
        let whose = if matches!(route.read, Gate::Open) { "public" } else { "private" };
        let seconds = max_age.as_secs();
        let control = headers::ascii(format_args!("{whose}, max-age={seconds}, stale-while-revalidate=300"));
        map.insert(header::CACHE_CONTROL, control);
        // A cache may reuse this response for a request from another origin.
        map.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, headers::exposed());
        if !route.strict {
            // With another `Accept` the answer is an event stream.
            map.insert(header::VARY, HeaderValue::from_static("accept"));
        }
    }
}

/// Where the answer ends. `Stream-Up-To-Date` and `Stream-Closed` are there or not, never `false`: clients test for
/// presence.
fn position(map: &mut HeaderMap, reading: &Reading) {
    map.insert(headers::NEXT_OFFSET, headers::offset(reading.next));
    if reading.up_to_date {
        map.insert(headers::UP_TO_DATE, headers::TRUE);
    }
    if reading.closed {
        map.insert(headers::CLOSED, headers::TRUE);
    }
}

/// What the content is; and, as it is somebody's, that it is not to act on the application's behalf.
pub(super) fn of_type(map: &mut HeaderMap, content_type: &MediaType) {
    map.insert(header::CONTENT_TYPE, headers::content_type(content_type));
    if !is_inert(content_type) {
        map.insert(HeaderName::from_static("content-security-policy"), HeaderValue::from_static("sandbox"));
    }
}

/// Which part of which log this is, and whether the stream has ended with it.
fn entity_tag(reading: &Reading) -> HeaderValue {
    let (start, end) = (reading.after.position(), reading.next.position());
    let text = Text::new().ascii("\"").hexadecimal(reading.log).ascii(":").number(start).ascii(":").number(end);
    text.ascii(if reading.closed { ":c\"" } else { "\"" }).value()
}

/// Whether an `If-None-Match` names this entity tag. The comparison is the weak one (RFC 9110, section 13.1.2).
fn matches(if_none_match: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(listed), Ok(tag)) = (if_none_match.to_str(), tag.to_str()) else { return false };
    // Our tags have no comma in them, so a list can be split at commas: parts of others match nothing.
    listed.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

/// Completes every response with the headers that depend on the request and not on its query, and with the route's pattern.
pub(super) fn finish(
    registry: &Registry,
    route: Option<&Route>,
    caller: Caller,
    mut answer: LayerResponse,
) -> LayerResponse {
    if let Some(pattern) = route.and_then(|route| route.pattern.clone()) {
        answer.extensions_mut().insert(pattern);
    }
    if caller.has_origin() {
        answer.headers_mut().insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, headers::exposed());
    }
    if !caller.is_http1() {
        // Forbidden there (RFC 9113, section 8.2.2).
        answer.headers_mut().remove(header::CONNECTION);
    } else if registry.is_closing() {
        // The client should not come back by the same connection, but to another node.
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}
