//! The headers of the protocol (Durable Streams, section 5), and those that every answer carries.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::Offset;

pub(super) const NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
pub(super) const UP_TO_DATE: HeaderName = HeaderName::from_static("stream-up-to-date");
pub(super) const CLOSED: HeaderName = HeaderName::from_static("stream-closed");
pub(super) const CURSOR: HeaderName = HeaderName::from_static("stream-cursor");
/// Not of the protocol: on a 410, where a client could start over.
pub(super) const EARLIEST_OFFSET: HeaderName = HeaderName::from_static("stream-earliest-offset");
/// RFC 7240.
pub(super) const PREFER: HeaderName = HeaderName::from_static("prefer");
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

pub(super) const TRUE: HeaderValue = HeaderValue::from_static("true");

pub(super) fn offset(offset: Offset) -> HeaderValue {
    ascii(offset)
}

/// A value of ours, of digits, letters and punctuation.
pub(super) fn ascii(text: impl ToString) -> HeaderValue {
    HeaderValue::try_from(text.to_string()).expect("what is made of ASCII here is a header's value")
}

/// A content type: checked when the channel was made.
pub(super) fn content_type(text: &str) -> HeaderValue {
    match text {
        "application/json" => HeaderValue::from_static("application/json"),
        text => HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("application/octet-stream")),
    }
}

/// What every answer carries: it is somebody's text on the application's origin, not to be sniffed, not to
/// be embedded elsewhere, and, as no cache knows when a channel goes on, not to be stored.
pub(super) fn safe(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
}
