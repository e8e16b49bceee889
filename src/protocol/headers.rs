//! The headers of the protocol (Durable Streams, section 5), and those that every answer carries.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::sync::LazyLock;

use crate::Offset;

pub(super) const NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
pub(super) const UP_TO_DATE: HeaderName = HeaderName::from_static("stream-up-to-date");
pub(super) const CLOSED: HeaderName = HeaderName::from_static("stream-closed");
pub(super) const CURSOR: HeaderName = HeaderName::from_static("stream-cursor");
pub(super) const SEQ: HeaderName = HeaderName::from_static("stream-seq");
pub(super) const TTL: HeaderName = HeaderName::from_static("stream-ttl");
pub(super) const EXPIRES_AT: HeaderName = HeaderName::from_static("stream-expires-at");
pub(super) const FORKED_FROM: HeaderName = HeaderName::from_static("stream-forked-from");
pub(super) const FORK_OFFSET: HeaderName = HeaderName::from_static("stream-fork-offset");
pub(super) const FORK_SUB_OFFSET: HeaderName = HeaderName::from_static("stream-fork-sub-offset");
pub(super) const PRODUCER_ID: HeaderName = HeaderName::from_static("producer-id");
pub(super) const PRODUCER_EPOCH: HeaderName = HeaderName::from_static("producer-epoch");
pub(super) const PRODUCER_SEQ: HeaderName = HeaderName::from_static("producer-seq");
pub(super) const PRODUCER_EXPECTED_SEQ: HeaderName = HeaderName::from_static("producer-expected-seq");
pub(super) const PRODUCER_RECEIVED_SEQ: HeaderName = HeaderName::from_static("producer-received-seq");
pub(super) const SSE_DATA_ENCODING: HeaderName = HeaderName::from_static("stream-sse-data-encoding");
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Not of the protocol: on a 410, where a client could start over.
pub(super) const EARLIEST_OFFSET: HeaderName = HeaderName::from_static("stream-earliest-offset");
/// RFC 7240.
pub(super) const PREFER: HeaderName = HeaderName::from_static("prefer");
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

pub(super) const TRUE: HeaderValue = HeaderValue::from_static("true");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The headers of requests to the layer's routes that a browser asks permission for, before it sends them to another origin: what
/// a CORS layer allows. `Authorization` is among them, which the layer itself does not read.
///
/// ```
/// use tower_comet::{CORS_REQUEST_HEADERS, CORS_RESPONSE_HEADERS};
/// use tower_http::cors::{Any, CorsLayer};
///
/// let cors = CorsLayer::new()
///     .allow_origin(Any)
///     .allow_headers(CORS_REQUEST_HEADERS.to_vec())
///     .expose_headers(CORS_RESPONSE_HEADERS.to_vec());
/// # drop(cors);
/// assert!(CORS_REQUEST_HEADERS.contains(&http::header::IF_NONE_MATCH));
/// ```
pub static CORS_REQUEST_HEADERS: &[HeaderName] = &OF_REQUESTS;

static OF_REQUESTS: [HeaderName; 16] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::IF_NONE_MATCH,
    LAST_EVENT_ID,
    PREFER,
    SEQ,
    CLOSED,
    TTL,
    EXPIRES_AT,
    FORKED_FROM,
    FORK_OFFSET,
    FORK_SUB_OFFSET,
    PRODUCER_ID,
    PRODUCER_EPOCH,
    PRODUCER_SEQ,
    header::CACHE_CONTROL,
];

/// The headers of the layer's responses that a page of another origin needs to read. The layer itself sends
/// `Access-Control-Expose-Headers` with these names if the request has an `Origin`, and with every response that caches may
/// store. A CORS layer outside that exposes headers replaces the list: give it this one.
///
/// ```
/// assert!(tower_comet::CORS_RESPONSE_HEADERS.contains(&http::header::ETAG));
/// ```
pub static CORS_RESPONSE_HEADERS: &[HeaderName] = &OF_RESPONSES;

static OF_RESPONSES: [HeaderName; 16] = [
    NEXT_OFFSET,
    UP_TO_DATE,
    CLOSED,
    CURSOR,
    EARLIEST_OFFSET,
    SSE_DATA_ENCODING,
    TTL,
    EXPIRES_AT,
    PRODUCER_EPOCH,
    PRODUCER_SEQ,
    PRODUCER_EXPECTED_SEQ,
    PRODUCER_RECEIVED_SEQ,
    PREFERENCE_APPLIED,
    header::ETAG,
    header::LOCATION,
    header::RETRY_AFTER,
];

/// The value of `Access-Control-Expose-Headers`.
pub(super) fn exposed() -> HeaderValue {
    static EXPOSED: LazyLock<HeaderValue> = LazyLock::new(|| {
        let names: Vec<_> = CORS_RESPONSE_HEADERS.iter().map(HeaderName::as_str).collect();
        ascii(names.join(","))
    });
    EXPOSED.clone()
}

pub(super) fn offset(offset: Offset) -> HeaderValue {
    HeaderValue::from_bytes(&offset.text()).expect("visible ASCII")
}

/// Formats a header's value. What is formatted must be visible ASCII.
pub(super) fn ascii(text: impl ToString) -> HeaderValue {
    HeaderValue::try_from(text.to_string()).expect("visible ASCII")
}

/// A content type: checked when the channel was made.
pub(super) fn content_type(text: &str) -> HeaderValue {
    match text {
        "application/json" => JSON,
        text => HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("application/octet-stream")),
    }
}

/// Returns the headers of every response of the layer. The content is somebody's text on the application's origin, so browsers
/// must not guess its type or embed it in pages of other sites. No cache knows when a channel continues, so none may store it.
pub(super) fn safe() -> HeaderMap {
    // Room for all headers of a response with messages.
    let mut map = HeaderMap::with_capacity(12);
    map.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    map.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    map.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
    map
}

/// Returns the name of a header that occurs more than once and has one value by its definition: this server would read the
/// first value, and a proxy may have checked another one.
pub(super) fn repeated(headers: &HeaderMap) -> Option<&HeaderName> {
    if headers.len() == headers.keys_len() {
        return None;
    }
    headers.keys().find(|name| {
        let single = [header::CONTENT_TYPE, LAST_EVENT_ID].contains(name)
            || ["stream-", "producer-"].iter().any(|prefix| name.as_str().starts_with(prefix));
        single && headers.get_all(*name).iter().nth(1).is_some()
    })
}

/// The list of a header, which may be sent in several lines (RFC 9110, section 5.3).
pub(super) fn list(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    let (first, second) = (lines.next()?, lines.next());
    let Some(second) = second else { return Some(first.clone()) };
    let lines: Vec<_> = [first, second].into_iter().chain(lines).map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&lines.join(&b", "[..])).ok()
}

/// Whether a header says `true`, in whatever case; anything else counts as absent (Durable Streams, section 5).
pub(super) fn is_true(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get(name).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

pub(super) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}
