//! Content types: parsed once, and compared by their essence.

use std::{fmt, ops::Deref, str::FromStr, sync::Arc};

use crate::Error;

/// A content type that matches the grammar of RFC 9110, section 8.3.1. It dereferences to its text.
///
/// Everything that depends on the type (JSON or bytes, text or base64, sandboxed or not) is decided from this one
/// parsed value. Nearly all channels have `application/json`, which needs no reference count. Any other type is behind
/// two pointers, so that a `MediaType` has the size of one.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) enum MediaType {
    #[default]
    Json,
    Other(Arc<Parsed>),
}

#[derive(PartialEq, Eq)]
pub(crate) struct Parsed {
    text: Box<str>,
    /// The length of `type/subtype` at the start of the text.
    essence: usize,
    kind: MediaKind,
    /// Whether its `charset` is UTF-8, which is the default.
    utf8: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MediaKind {
    /// `application/json`
    Json,
    /// `text/plain`
    Plain,
    /// `text/*`
    Text,
    /// `application/octet-stream`
    Bytes,
    Other,
}

/// The longest content type, in bytes. It is limited because a channel stores it.
const LEN: usize = 255;

impl MediaType {
    const JSON: &str = "application/json";
    const BYTES: &str = "application/octet-stream";

    /// Returns the type that a log on a remote engine was stored with. This process has not checked it: a text that
    /// does not parse becomes `application/octet-stream`, which is sandboxed, because the content may be anything.
    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only a remote engine stores text"))]
    pub(crate) fn stored(text: &str) -> Self {
        text.parse().unwrap_or_else(|_| {
            let (text, essence) = (Self::BYTES.into(), Self::BYTES.len());
            Self::Other(Arc::new(Parsed { text, essence, kind: MediaKind::Other, utf8: false }))
        })
    }

    /// Returns `type/subtype`, as it was written.
    pub(crate) fn essence(&self) -> &str {
        match self {
            Self::Json => Self::JSON,
            Self::Other(parsed) => &parsed.text[..parsed.essence],
        }
    }

    fn kind(&self) -> MediaKind {
        match self {
            Self::Json => MediaKind::Json,
            Self::Other(parsed) => parsed.kind,
        }
    }
}

/// # Errors
///
/// [`Error::MediaType`] if the text is longer than 255 bytes, does not match the grammar, or contains a comma or a
/// character outside of ASCII.
impl FromStr for MediaType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == Self::JSON {
            return Ok(Self::Json);
        }
        let (essence, charset) = Some(text).filter(|text| text.len() <= LEN).and_then(parts).ok_or(Error::MediaType)?;
        let is = |other| essence.eq_ignore_ascii_case(other);
        let kind = match essence.split_once('/') {
            _ if is(Self::JSON) => MediaKind::Json,
            _ if is(Self::BYTES) => MediaKind::Bytes,
            _ if is("text/plain") => MediaKind::Plain,
            Some((main, _)) if main.eq_ignore_ascii_case("text") => MediaKind::Text,
            _ => MediaKind::Other,
        };
        let utf8 = charset.is_none_or(|charset| charset.trim_matches('"').eq_ignore_ascii_case("utf-8"));
        Ok(Self::Other(Arc::new(Parsed { text: text.into(), essence: essence.len(), kind, utf8 })))
    }
}

impl Deref for MediaType {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Json => Self::JSON,
            Self::Other(parsed) => &parsed.text,
        }
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

/// Whether two types are the same apart from case and parameters such as `charset`.
///
/// `helpers.lua` compares in the same way: for a type that parses, its `essence` is this one in lower case.
pub(crate) fn same_type(a: &MediaType, b: &MediaType) -> bool {
    a.essence().eq_ignore_ascii_case(b.essence())
}

/// Whether content of this type is JSON, whatever the parameters.
pub(crate) fn is_json(content_type: &MediaType) -> bool {
    content_type.kind() == MediaKind::Json
}

/// Whether content of this type is text, which an event stream carries as it is.
pub(crate) fn is_text(content_type: &MediaType) -> bool {
    matches!(content_type.kind(), MediaKind::Plain | MediaKind::Text)
}

/// Whether content of this type is text in UTF-8.
pub(crate) fn is_utf8(content_type: &MediaType) -> bool {
    is_text(content_type) && matches!(content_type, MediaType::Other(parsed) if parsed.utf8)
}

/// Whether a browser shows or saves content of this type and never runs it as a page of this origin.
pub(crate) fn is_inert(content_type: &MediaType) -> bool {
    matches!(content_type.kind(), MediaKind::Json | MediaKind::Plain | MediaKind::Bytes)
}

/// Returns the `type/subtype` and the `charset` of a text that is a media type as a whole (RFC 9110, section 8.3.1):
///
/// ```text
/// media-type = type "/" subtype parameters
/// parameters = *( OWS ";" OWS [ parameter ] )
/// parameter  = token "=" ( token / quoted-string )
/// ```
///
/// A comma is refused even inside of a quoted string, where the grammar allows it. Browsers join the `Content-Type`
/// fields of a response with commas, split the result at commas and take the last type that they know (Fetch,
/// "extract a MIME type"). They disagree about quoted strings there, so `text/plain;x=",text/html"` could be a page to one
/// of them. No registered type needs a comma. Characters outside of ASCII (`obs-text`) are refused as well.
fn parts(text: &str) -> Option<(&str, Option<&str>)> {
    let rest = token(text)?.strip_prefix('/')?;
    let mut rest = token(rest)?;
    let (essence, mut charset) = (&text[..text.len() - rest.len()], None);
    while !rest.is_empty() {
        rest = rest.trim_start_matches(OWS).strip_prefix(';')?.trim_start_matches(OWS);
        if rest.is_empty() || rest.starts_with(';') {
            continue;
        }
        let value = token(rest)?.strip_prefix('=')?;
        let name = &rest[..rest.len() - value.len() - 1];
        rest = match value.strip_prefix('"') {
            Some(quoted) => after_quoted(quoted)?,
            None => token(value)?,
        };
        if name.eq_ignore_ascii_case("charset") {
            charset.get_or_insert(&value[..value.len() - rest.len()]);
        }
    }
    Some((essence, charset))
}

const OWS: [char; 2] = [' ', '\t'];

/// Returns what follows a token of at least one character (RFC 9110, section 5.6.2).
fn token(text: &str) -> Option<&str> {
    let in_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let rest = text.trim_start_matches(in_token);
    (rest.len() < text.len()).then_some(rest)
}

/// Returns what follows the closing quote of a quoted string (RFC 9110, section 5.6.4), without commas.
fn after_quoted(text: &str) -> Option<&str> {
    let mut chars = text.chars();
    loop {
        let c = match chars.next()? {
            '"' => return Some(chars.as_str()),
            '\\' => chars.next()?,
            c => c,
        };
        if c == ',' || !matches!(c, '\t' | ' '..='~') {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> MediaType {
        text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn a_media_type_has_the_grammar_of_the_rfc() {
        // The text, its essence if it parses, and whether it is JSON, text and inert.
        let (json, text, plain, bytes, other) = (
            (true, false, true),
            (false, true, false),
            (false, true, true),
            (false, false, true),
            (false, false, false),
        );
        for (written, essence, kind) in [
            ("application/json", "application/json", json),
            ("Application/JSON; charset=utf-8", "Application/JSON", json),
            ("application/json;", "application/json", json),
            ("text/plain", "text/plain", plain),
            ("text/plain ;\t charset=utf-8", "text/plain", plain),
            ("text/plain;;; ;x=y ; ", "text/plain", plain),
            ("text/plain;x=\"\"", "text/plain", plain),
            ("text/plain;x=\"a;b\\\"\\\\ \tc\";y=z", "text/plain", plain),
            ("Text/html", "Text/html", text),
            ("text/markdown;variant=GFM", "text/markdown", text),
            ("application/octet-stream", "application/octet-stream", bytes),
            ("APPLICATION/octet-stream;a=b", "APPLICATION/octet-stream", bytes),
            ("application/json-seq", "application/json-seq", other),
            ("application/problem+json", "application/problem+json", other),
            ("image/svg+xml", "image/svg+xml", other),
            ("x!#$%&'*+-.^_`|~/1", "x!#$%&'*+-.^_`|~/1", other),
            ("textual/html", "textual/html", other),
        ] {
            let parsed = parsed(written);
            assert_eq!((&*parsed, parsed.essence()), (written, essence));
            assert_eq!((is_json(&parsed), is_text(&parsed), is_inert(&parsed)), kind, "{written}");
        }
    }

    #[test]
    fn text_is_utf8_unless_its_charset_is_another() {
        for (written, utf8) in [
            ("text/plain", true),
            ("text/html;Charset=UTF-8", true),
            ("text/plain; x=\"charset=latin1;\"; charset=\"utf-8\"", true),
            ("text/plain;charset=iso-8859-1", false),
            ("text/plain;charset=utf-16;charset=utf-8", false),
            ("application/json", false),
            ("image/svg+xml;charset=utf-8", false),
        ] {
            assert_eq!(is_utf8(&parsed(written)), utf8, "{written}");
        }
    }

    #[test]
    fn anything_outside_of_the_grammar_is_no_media_type() {
        let long = format!("text/{}", "x".repeat(251));
        for text in [
            // What Chromium has run as a page.
            "text/plain;,text/html",
            "application/octet-stream;,text/html",
            "application/json;,text/html",
            // Commas elsewhere.
            "text/plain,text/html",
            "text/plain, text/html",
            "text/plain;x=y,text/html",
            "text/plain;x=\",text/html\"",
            "text/plain;x=\"\\,text/html\"",
            ",text/html",
            "text/plain,",
            // No type or subtype.
            "",
            "/",
            "text",
            "text/",
            "/plain",
            "text/plain/html",
            ";text/plain",
            // Whitespace where there is none.
            " text/plain",
            "text/plain ",
            "\ttext/plain",
            "text /plain",
            "text/ plain",
            "text/plain text/html",
            "text/plain;x =y",
            "text/plain;x= y",
            // Parameters that are none.
            "text/plain;x",
            "text/plain;=y",
            "text/plain;x=",
            "text/plain;x=y z",
            "text/plain;x=y=z",
            "text/plain;x=(y)",
            "text/plain;x=\"y",
            "text/plain;x=\"y\\\"",
            "text/plain;x=\"y\\",
            "text/plain;x=\"y\"z",
            "text/plain;\"x\"=y",
            // Control characters and what is no ASCII.
            "text/plain\r\nx: y",
            "text/plain\0",
            "text/plain;x=\"\n\"",
            "text/plain;x=\"\\\n\"",
            "text/plain;x=\"\x7f\"",
            "text/pl\u{e4}in",
            "text/plain;x=\u{e4}",
            "text/plain;x=\"\u{e4}\"",
            "text/plain;\u{a0}x=y",
            &long,
        ] {
            assert!(text.parse::<MediaType>().is_err(), "{text:?}");
        }
        assert!(long[..255].parse::<MediaType>().is_ok());
    }

    #[test]
    fn case_and_parameters_do_not_tell_types_apart() {
        for (a, b, same) in [
            ("application/json", "Application/JSON; charset=utf-8", true),
            ("text/plain ;x=y", "TEXT/plain", true),
            ("text/plain", "text/html", false),
            ("application/json", "application/json-seq", false),
        ] {
            assert_eq!(same_type(&parsed(a), &parsed(b)), same, "{a} {b}");
        }
    }

    #[test]
    fn a_stored_type_that_does_not_parse_is_bytes_in_a_sandbox() {
        for text in ["", "text", "text/plain;,text/html", "application/json;,text/html", " application/json"] {
            let stored = MediaType::stored(text);
            assert_eq!(&*stored, "application/octet-stream", "{text:?}");
            assert!(!is_json(&stored) && !is_text(&stored) && !is_inert(&stored), "{text:?}");
        }
        assert_eq!(MediaType::stored("application/json"), MediaType::Json);
        assert_eq!(MediaType::stored("text/html;x=y"), parsed("text/html;x=y"));
    }

    #[test]
    fn a_media_type_has_the_size_of_a_pointer() {
        assert_eq!(size_of::<MediaType>(), size_of::<usize>());
    }

    /// What a browser reads at the worst: the last type that it can find in any part between commas, up to a `;`.
    fn as_a_browser_may_read(text: &str) -> Vec<String> {
        text.split(',').map(|part| part.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()).collect()
    }

    proptest! {
        #[test]
        fn a_type_that_is_inert_here_is_inert_in_a_browser(
            start in prop::sample::select(vec!["text/plain", "application/json", "application/octet-stream", "text/x"]),
            rest in "[;, \t\"\\\\=/a-bth]{0,16}(,? ?text/html)?[;,\" ]{0,2}",
        ) {
            let text = start.to_owned() + &rest;
            if let Ok(parsed) = text.parse::<MediaType>() {
                let essence = parsed.essence().to_ascii_lowercase();
                prop_assert_eq!(as_a_browser_may_read(&text), [essence], "{}", text);
            }
        }

        #[test]
        fn a_type_made_of_the_grammars_parts_parses(
            essence in "[a-zA-Z0-9!#$&^_.+-]{1,20}/[a-zA-Z0-9!#$&^_.+-]{1,20}",
            parameters in prop::collection::vec(
                "[ \t]{0,2};[ \t]{0,2}([a-z!|~]{1,5}=([A-Z0-9*'%]{1,5}|\"([ -!#-+\\--\\[\\]-~\t]|\\\\[ -+\\--~])*\"))?",
                0..4,
            ),
        ) {
            let text = essence.clone() + &parameters.concat();
            prop_assume!(text.len() <= LEN);
            let parsed = text.parse::<MediaType>();
            prop_assert!(parsed.is_ok(), "{:?}", text);
            let parsed = parsed.expect("checked");
            prop_assert_eq!(parsed.essence(), &*essence);
            prop_assert_eq!(is_json(&parsed), essence.eq_ignore_ascii_case("application/json"));
        }

        #[test]
        fn hostile_types_never_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<MediaType>();
            let _ = MediaType::stored(&text);
        }
    }
}
