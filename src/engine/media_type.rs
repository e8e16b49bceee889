//! Content types: what is one, and which are the same.

use crate::Error;

/// Whether a text can be a `Content-Type`: it will be a header.
pub(crate) fn check_media_type(text: &str) -> Result<(), Error> {
    let fits = text.contains('/') && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if fits { Ok(()) } else { Err(Error::MediaType) }
}

/// Whether a media type is `application/json`, whatever its case and parameters.
pub(crate) fn is_json(content_type: &str) -> bool {
    same_type(content_type, "application/json")
}

/// Whether two media types are the same; case and parameters such as `charset` do not count.
pub(crate) fn same_type(a: &str, b: &str) -> bool {
    let essence = |text: &str| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence(a) == essence(b)
}

/// Whether content of this type is text, which an event stream carries as it is.
pub(crate) fn is_text(content_type: &str) -> bool {
    content_type.trim_start().get(..5).is_some_and(|start| start.eq_ignore_ascii_case("text/"))
}

/// Whether a browser would show this type rather than run it as a page of this origin.
pub(crate) fn is_inert(content_type: &str) -> bool {
    ["application/json", "text/plain", "application/octet-stream"].iter().any(|inert| same_type(content_type, inert))
}
