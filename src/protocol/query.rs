//! What a read asks for: the query, and how long it would wait.

use http::{HeaderMap, header, request::Parts};
use std::{borrow::Cow, time::Duration};

use super::{client::Client, cursor::Cursor, headers, problem::Problem};
use crate::{Route, engine::Start};

/// What a `GET` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadRequest {
    pub(super) start: Start,
    pub(super) live: Option<Live>,
    pub(super) cursor: Option<Cursor>,
    /// Wait no longer than this; shorter than the route would.
    pub(super) wait: Option<Duration>,
    /// The whole seconds of `Prefer: wait=…`, to be answered with `Preference-Applied`.
    pub(super) preferred: Option<u32>,
    /// The client, on a route that limits the waits of each client. Not part of the query.
    pub(super) client: Option<Client>,
}

/// How a read goes on when there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Live {
    LongPoll,
    Sse,
}

impl ReadRequest {
    pub(super) fn parse(parts: &Parts, route: &Route) -> Result<Self, Problem> {
        let mut query = Query::parse(parts.uri.query().unwrap_or_default())?;
        if !route.strict && query.live.is_none() && prefers_events(&parts.headers, route.content_type.essence()) {
            query.live = Some(Live::Sse);
            query.offset.get_or_insert("now".into());
        }
        let (start, live) = match (query.offset, query.live) {
            // The two kinds of route differ here and nowhere else in reading.
            (None, None) if route.strict => (Start::Earliest, None),
            (None, None) => (Start::Tail, Some(Live::LongPoll)),
            (None, Some(_)) => {
                return Err(Problem::bad_request(
                    "offset",
                    "`live` needs an `offset`; `-1` is the start, `now` the tail",
                ));
            }
            (Some(offset), Some(Live::Sse)) => {
                // A browser's `EventSource` reconnects with its first URL and the id of the last event. Before the first event,
                // the id may be empty.
                let last = parts.headers.get(headers::LAST_EVENT_ID).filter(|id| !id.is_empty());
                let last = last.map(|id| id.to_str().unwrap_or("not ASCII"));
                (parse_offset(last.unwrap_or(&offset))?, Some(Live::Sse))
            }
            (Some(offset), live) => (parse_offset(&offset)?, live),
        };
        let preferred = preferred_wait(&parts.headers);
        let wait = match (query.timeout, preferred.map(|seconds| Duration::from_secs(seconds.into()))) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let cursor = query.cursor.as_deref().and_then(Cursor::parse);
        Ok(Self { start, live, cursor, wait, preferred, client: None })
    }
}

pub(super) fn parse_offset(text: &str) -> Result<Start, Problem> {
    match text {
        "-1" => Ok(Start::Earliest),
        "now" => Ok(Start::Tail),
        text => text
            .parse()
            .map(Start::After)
            .map_err(|error| Problem::bad_request("offset", format!("{error}; `-1` is the start, `now` the tail"))),
    }
}

/// Returns whether a request prefers an event stream to the content itself (`Accept`; RFC 9110, section 12.5.1), as that of an
/// `EventSource` does. Only if it names the type of event streams: `*/*` is what clients send that have no preference.
fn prefers_events(headers: &HeaderMap, content_type: &str) -> bool {
    let ranges = || {
        let lines = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        lines.flat_map(|line| line.split(',')).map(media_range)
    };
    let Some((_, events)) = ranges().find(|(range, _)| range.eq_ignore_ascii_case("text/event-stream")) else {
        return false;
    };
    // The most specific range applies. Between equal qualities, the type that is named comes before a wildcard.
    let of_content = |range: &str| match range.split_once('/') {
        _ if range.eq_ignore_ascii_case(content_type) => Some(2),
        Some((main, "*")) if content_type.split('/').next().is_some_and(|other| main.eq_ignore_ascii_case(other)) => {
            Some(1)
        }
        _ if range == "*/*" => Some(0),
        _ => None,
    };
    let content = ranges().filter_map(|(range, quality)| Some((of_content(range)?, quality)));
    let (specificity, content) = content.max_by_key(|(specificity, _)| *specificity).unwrap_or((0, 0.0));
    events > content || (events == content && events > 0.0 && specificity < 2)
}

/// Splits a media range into its type and its quality, which is 1 if it has none.
fn media_range(text: &str) -> (&str, f32) {
    let mut parts = text.split(';').map(str::trim);
    let range = parts.next().unwrap_or_default();
    let quality = parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    (range, quality.map_or(1.0, |(_, value)| value.trim().parse().unwrap_or(0.0)))
}

/// The parameters that mean something, undone of their encoding. Others are ignored (Durable Streams, section 11.1).
#[derive(Default)]
struct Query<'a> {
    offset: Option<Cow<'a, str>>,
    live: Option<Live>,
    cursor: Option<Cow<'a, str>>,
    timeout: Option<Duration>,
}

impl<'a> Query<'a> {
    fn parse(text: &'a str) -> Result<Self, Problem> {
        let mut query = Self::default();
        for (key, value) in pairs(text) {
            let twice = match &*key {
                "offset" => query.offset.replace(value).is_some(),
                "live" if value == "long-poll" => query.live.replace(Live::LongPoll).is_some(),
                "live" if value == "sse" => query.live.replace(Live::Sse).is_some(),
                "live" => return Err(Problem::bad_request("live", "`live` is `long-poll` or `sse`, or absent")),
                "timeout" => query.timeout.replace(parse_timeout(&value)?).is_some(),
                "cursor" => {
                    query.cursor = Some(value);
                    false
                }
                _ => false,
            };
            if twice {
                return Err(Problem::bad_request("query", format!("`{key}` is there twice")));
            }
        }
        Ok(query)
    }
}

/// The pairs of a query. Most have nothing that is encoded, and need not be undone of it byte by byte.
fn pairs(text: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    let encoded = text.contains('%') || text.contains('+');
    text.split('&').filter_map(move |pair| {
        if encoded {
            return form_urlencoded::parse(pair.as_bytes()).next();
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (!pair.is_empty()).then_some((key.into(), value.into()))
    })
}

/// `timeout=10`, `timeout=0.5`: seconds.
fn parse_timeout(text: &str) -> Result<Duration, Problem> {
    let plain = !text.is_empty() && text.len() <= 20 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse()
        .ok()
        .filter(|_| plain)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| Problem::bad_request("timeout", "`timeout` is a number of seconds"))
}

/// The `wait` preference (RFC 7240, section 4.3), in seconds. What is malformed or unknown is ignored, as the RFC asks.
fn preferred_wait(headers: &HeaderMap) -> Option<u32> {
    headers
        .get_all(headers::PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|preference| {
            let (name, value) = preference.split(';').next()?.split_once('=')?;
            let value = value.trim().trim_matches('"');
            let digits = value.bytes().all(|byte| byte.is_ascii_digit());
            (name.trim().eq_ignore_ascii_case("wait") && digits).then(|| value.parse().ok())?
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;

    fn parse(query: &str, strict: bool) -> Result<ReadRequest, Problem> {
        let uri = format!("/x?{query}");
        let parts = Request::get(uri).body(()).expect("a request").into_parts().0;
        ReadRequest::parse(&parts, &if strict { Route::strict() } else { Route::new() })
    }

    #[test]
    fn a_bare_get_waits_on_a_comet_route_and_reads_on_a_strict_one() {
        let comet = parse("", false).expect("fine");
        assert_eq!((comet.start, comet.live), (Start::Tail, Some(Live::LongPoll)));
        let strict = parse("", true).expect("fine");
        assert_eq!((strict.start, strict.live), (Start::Earliest, None));
    }

    #[test]
    fn queries_that_are_malformed_are_refused_on_both() {
        for query in [
            "offset=",
            "offset=-2",
            "offset=NOW",
            "offset=1",
            "offset=a%20b",
            "offset=0000000000000000_x000000000000000g",
            "offset=-1&offset=-1",
            "offset=-1&offset=now",
            "live=long-poll",
            "live=sse",
            "live=",
            "offset=-1&live=",
            "offset=-1&live=true",
            "offset=-1&live=long-poll&live=long-poll",
            "timeout=x",
            "timeout=",
            "timeout=-1",
            "timeout=1e9",
            "timeout=inf",
            "timeout=99999999999999999999",
            "timeout=1&timeout=2",
        ] {
            assert!(parse(query, false).is_err(), "{query}");
            assert!(parse(query, true).is_err(), "{query}");
        }
    }

    #[test]
    fn what_is_unknown_is_ignored() {
        let asked = parse("x=1&offset=%2D1&live=long-poll&Offset=now&cursor=zzz&y", false).expect("fine");
        assert_eq!((asked.start, asked.live, asked.cursor), (Start::Earliest, Some(Live::LongPoll), None));
    }

    #[test]
    fn the_shorter_wait_is_meant() {
        let request = Request::get("/x?timeout=0.5").header("prefer", "respond-async, wait=10").body(());
        let asked = ReadRequest::parse(&request.expect("a request").into_parts().0, &Route::new()).expect("fine");
        assert_eq!((asked.wait, asked.preferred), (Some(Duration::from_millis(500)), Some(10)));
        for (prefer, seconds) in [
            ("wait=10", Some(10)),
            ("Wait = 7 ; x=y", Some(7)),
            ("wait=\"3\"", Some(3)),
            ("wait=0", Some(0)),
            ("wait", None),
            ("wait=", None),
            ("wait=-1", None),
            ("wait=+1", None),
            ("wait=99999999999", None),
            ("waiting=3", None),
        ] {
            let request = Request::get("/x").header("prefer", prefer).body(()).expect("a request");
            assert_eq!(preferred_wait(request.headers()), seconds, "{prefer}");
        }
    }

    #[test]
    fn an_event_stream_must_be_preferred_to_the_content() {
        for (accept, preferred) in [
            ("text/event-stream", true),
            ("Text/Event-Stream; q=0.2", true),
            ("text/html, text/event-stream;q=0.5", true),
            ("text/event-stream, */*", true),
            ("text/event-stream, application/*", true),
            ("application/json;q=0.5, text/event-stream", true),
            ("*/*, application/json;q=0.1, text/event-stream;q=0.5", true),
            ("*/*", false),
            ("text/*", false),
            ("", false),
            ("text/event-stream;q=0", false),
            ("text/event-stream;q=0, */*;q=0", false),
            ("text/event-stream;q=x", false),
            ("application/json, text/event-stream", false),
            ("text/event-stream;q=0.5, application/*;q=0.6", false),
            ("text/event-stream;q=0.5, */*", false),
        ] {
            let request = Request::get("/x").header("accept", accept).body(()).expect("a request");
            assert_eq!(prefers_events(request.headers(), "application/json"), preferred, "{accept}");
        }
    }

    proptest! {
        #[test]
        fn pairs_are_those_of_a_form(query in "[a-c=&%+2]{0,20}") {
            let expected: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
            prop_assert_eq!(pairs(&query).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn hostile_queries_never_panic(query in "[a-z0-9=&%_.+-]{0,60}") {
            let _ = parse(&query, false);
            let _ = parse(&format!("offset={query}&timeout={query}&cursor={query}"), true);
        }

        #[test]
        fn hostile_preferences_never_panic(text in "[ -~]{0,40}") {
            let mut headers = HeaderMap::new();
            headers.insert(headers::PREFER, text.parse().expect("visible ASCII"));
            let _ = preferred_wait(&headers);
        }
    }
}
