//! Content types: what is one, and which are the same.

use std::{fmt, ops::Deref, sync::Arc};

use crate::Error;

/// A content type. Every answer has one, and nearly all have the same: that one is not counted by all threads at once. Another is two
/// steps away, so that all are of one word.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) enum MediaType {
    #[default]
    Json,
    Other(Arc<Box<str>>),
}

impl MediaType {
    const JSON: &str = "application/json";
}

impl Deref for MediaType {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Json => Self::JSON,
            Self::Other(text) => text,
        }
    }
}

impl From<&str> for MediaType {
    fn from(text: &str) -> Self {
        if text == Self::JSON { Self::Json } else { Self::Other(Arc::new(text.into())) }
    }
}

impl From<String> for MediaType {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl fmt::Debug for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// The longest content type: a channel keeps it.
const LEN: usize = 255;

/// Whether a text can be a `Content-Type`: it will be a header.
pub(crate) fn check_media_type(text: &str) -> Result<(), Error> {
    let fits = text.len() <= LEN && text.contains('/') && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if fits { Ok(()) } else { Err(Error::MediaType) }
}

/// Whether a media type is `application/json`, whatever its case and parameters.
pub(crate) fn is_json(content_type: &str) -> bool {
    same_type(content_type, MediaType::JSON)
}

/// Whether two media types are the same; case and parameters such as `charset` do not count.
pub(crate) fn same_type(a: &str, b: &str) -> bool {
    fn essence(text: &str) -> &str {
        text.split(';').next().unwrap_or_default().trim()
    }
    a == b || essence(a).eq_ignore_ascii_case(essence(b))
}

/// Whether content of this type is text, which an event stream carries as it is.
pub(crate) fn is_text(content_type: &str) -> bool {
    content_type.trim_start().get(..5).is_some_and(|start| start.eq_ignore_ascii_case("text/"))
}

/// Whether a browser would show this type rather than run it as a page of this origin.
pub(crate) fn is_inert(content_type: &str) -> bool {
    ["application/json", "text/plain", "application/octet-stream"].iter().any(|inert| same_type(content_type, inert))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_parameters_do_not_tell_types_apart() {
        for (a, b, same) in [
            ("application/json", "Application/JSON; charset=utf-8", true),
            ("text/plain ;x=y", " text/plain", true),
            ("text/plain", "text/html", false),
            ("application/json", "application/json-seq", false),
        ] {
            assert_eq!(same_type(a, b), same, "{a} {b}");
        }
        assert!(is_text("Text/html") && !is_text("text") && !is_text("application/json"));
        assert!(is_inert("text/plain;charset=utf-8") && !is_inert("text/html") && !is_inert("image/svg+xml"));
    }

    #[test]
    fn what_is_no_header_is_no_type() {
        let long = format!("text/{}", "x".repeat(251));
        for text in ["", "text", "text/plain\r\nx: y", "text/pl\u{e4}in", &long] {
            assert!(check_media_type(text).is_err(), "{text:?}");
        }
        assert!(check_media_type(&long[..255]).is_ok());
    }
}
