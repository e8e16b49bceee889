//! From a path to the name of a channel: decoded once, strictly.

use http::{Uri, uri::PathAndQuery};
use matchit::Params;
use percent_encoding::percent_decode_str;
use std::{borrow::Cow, fmt};

/// How an encoded `/` in a path is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slashes {
    /// The path is refused.
    Refused,
    /// It stays encoded in the name, and so does `%`, so that no two paths have one name.
    Escaped,
}

impl Slashes {
    /// Encodes `%2F` and `%25` once more, so that decoding leaves them as they are, in upper case.
    fn keep(self, text: &str) -> Cow<'_, str> {
        if self == Self::Refused || !text.contains('%') {
            return Cow::Borrowed(text);
        }
        Cow::Owned(text.replace("%25", "%2525").replace("%2F", "%252F").replace("%2f", "%252F"))
    }
}

/// Decodes a path. What two readers could understand differently is refused rather than mended.
pub(crate) fn decode(path: &str, slashes: Slashes) -> Result<Cow<'_, str>, NameError> {
    if path != "/" {
        // As most paths are.
        let plain = |byte: &u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~');
        for segment in path.strip_prefix('/').unwrap_or(path).split('/') {
            if !segment.is_empty() && segment.as_bytes().iter().all(plain) {
                continue;
            }
            let segment = decode_segment(segment, slashes)?;
            if matches!(&*segment, "" | "." | "..") {
                return Err(NameError::Segment);
            }
        }
    }
    if path.contains('%') { decode_utf8(slashes.keep(path)) } else { Ok(Cow::Borrowed(path)) }
}

/// Returns whether a path can decode to this name, if it looks like one: it begins with `/`.
pub(crate) fn is_path_or_word(name: &str) -> bool {
    match name.strip_prefix('/') {
        None | Some("") => true,
        Some(path) => !path.split('/').any(|segment| matches!(segment, "" | "." | "..")),
    }
}

/// Decodes a segment, or several: what a parameter of a pattern has matched.
pub(crate) fn decode_segment(segment: &str, slashes: Slashes) -> Result<Cow<'_, str>, NameError> {
    // The decoder below passes malformed escapes through.
    let mut escapes = segment.split('%').skip(1);
    if !escapes.all(|rest| rest.len() >= 2 && rest.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit)) {
        return Err(NameError::Escape);
    }
    let decoded = decode_utf8(slashes.keep(segment))?;
    if decoded.matches('/').count() != segment.matches('/').count() {
        return Err(NameError::Slash);
    }
    if decoded.chars().any(char::is_control) {
        return Err(NameError::Control);
    }
    Ok(decoded)
}

fn decode_utf8(text: Cow<'_, str>) -> Result<Cow<'_, str>, NameError> {
    match text {
        Cow::Borrowed(text) => percent_decode_str(text).decode_utf8().map_err(|_| NameError::Utf8),
        Cow::Owned(text) => {
            let decoded = percent_decode_str(&text).decode_utf8().map_err(|_| NameError::Utf8)?;
            Ok(Cow::Owned(decoded.into_owned()))
        }
    }
}

/// A path that a client sends in a header, such as `Stream-Forked-From`. The channel's name and the URI that a hook sees are
/// both made from its bytes, so that the two cannot differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientPath(PathAndQuery);

impl ClientPath {
    /// Parses a path that has one leading slash, and neither a query, a fragment nor a control character.
    ///
    /// [`Uri`] splits a text at `?` and cuts it at `#`, and reads `//x/y` and `http://x/y` as an authority and a path; the
    /// router takes a text as it is. Whatever `Uri` does not return unchanged is refused.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let one_slash = text.starts_with('/') && !text.starts_with("//");
        let path = PathAndQuery::try_from(text).ok().filter(|_| one_slash)?;
        let unchanged = path.path() == text && path.query().is_none() && !text.contains(char::is_control);
        unchanged.then_some(Self(path))
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.path()
    }

    /// Returns the URI of this path with the scheme and the authority of `uri`.
    pub(crate) fn beside(self, uri: Uri) -> Uri {
        let mut parts = uri.into_parts();
        if parts.scheme.is_none() {
            // A CONNECT or a proxy's request: an authority without a scheme has no path.
            parts.authority = None;
        }
        let path = Uri::from(self.0.clone());
        parts.path_and_query = Some(self.0);
        Uri::from_parts(parts).unwrap_or(path)
    }
}

/// Why a path names no channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameError {
    Escape,
    Slash,
    Control,
    Utf8,
    Segment,
    Ambiguous,
}

impl NameError {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Escape => "a `%` in the path is not followed by two hexadecimal digits",
            Self::Slash => "an encoded `/` in the path",
            Self::Control => "a control character in the path",
            Self::Utf8 => "the path is not UTF-8",
            Self::Segment => "an empty, `.` or `..` segment in the path",
            Self::Ambiguous => "the path is another one when decoded; send it decoded",
        }
    }
}

/// A name made of a pattern's parameters: `room:{room}`.
#[derive(Clone, Debug)]
pub(crate) struct Template(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Literal(String),
    Parameter(String),
}

impl Template {
    pub(crate) fn parse(text: &str, pattern: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once('{') {
            if after.starts_with('{') {
                return Err(format!("{text:?} has `{{{{`: a brace cannot be escaped here"));
            }
            let (name, after) = after.split_once('}').ok_or_else(|| format!("{text:?} lacks a `}}`"))?;
            if !pattern.contains(&format!("{{{name}}}")) && !pattern.contains(&format!("{{*{name}}}")) {
                return Err(format!("{text:?} names a parameter that the pattern does not have: {name:?}"));
            }
            parts.push(Part::Literal(literal.to_owned()));
            parts.push(Part::Parameter(name.to_owned()));
            rest = after;
        }
        if rest.contains('}') {
            return Err(format!("{text:?} lacks a `{{`"));
        }
        parts.push(Part::Literal(rest.to_owned()));
        let example = parts.iter().map(|part| match part {
            Part::Literal(text) => text,
            Part::Parameter(_) => "x",
        });
        let example: String = example.collect();
        if example.is_empty() || example.contains(char::is_control) || !is_path_or_word(&example) {
            return Err(format!("{text:?} makes invalid names, such as {example:?}"));
        }
        Ok(Self(parts))
    }

    pub(crate) fn fill(&self, params: &Params<'_, '_>, slashes: Slashes) -> Result<String, NameError> {
        let mut name = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(text) => name.push_str(text),
                Part::Parameter(key) => name.push_str(&decode_segment(params.get(key).unwrap_or_default(), slashes)?),
            }
        }
        Ok(name)
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_is_decoded_once() {
        for (path, name) in [
            ("/events/news", "/events/news"),
            ("/caf%C3%A9", "/café"),
            ("/a%20b+c", "/a b+c"),
            ("/a%252Fb", "/a%2Fb"),
            ("/%7Etilde", "/~tilde"),
            ("/...", "/..."),
            ("/", "/"),
        ] {
            assert_eq!(decode(path, Slashes::Refused).as_deref(), Ok(name), "{path}");
        }
    }

    #[test]
    fn an_escaped_slash_stays_escaped_and_no_two_paths_have_one_name() {
        for (path, name) in [
            ("/runs/a%2Fb", "/runs/a%2Fb"),
            ("/runs/a%2fb%20c", "/runs/a%2Fb c"),
            ("/runs/a%252Fb", "/runs/a%252Fb"),
            ("/runs/100%25", "/runs/100%25"),
            ("/runs/plain%7E", "/runs/plain~"),
        ] {
            assert_eq!(decode(path, Slashes::Escaped).as_deref(), Ok(name), "{path}");
        }
        for path in ["/a%2", "/%00", "/%FF", "/a//b", "/%2e%2e/b"] {
            assert!(decode(path, Slashes::Escaped).is_err(), "{path}");
        }
    }

    proptest! {
        /// A path is a text with each of its bytes encoded or not. Two of one name are two spellings of one text.
        #[test]
        fn names_with_escaped_slashes_are_one_to_one(
            a in "(/[ab](a|b|%2F|%2f|%25|%41){0,4}){1,2}",
            b in "(/[ab](a|b|%2F|%2f|%25|%41){0,4}){1,2}",
        ) {
            let spelled = |path: &str| path.replace("%2f", "%2F").replace("%41", "A");
            let (one, other) = (decode(&a, Slashes::Escaped).unwrap(), decode(&b, Slashes::Escaped).unwrap());
            prop_assert_eq!(one == other, spelled(&a) == spelled(&b), "{} {}", a, b);
        }
    }

    #[test]
    fn what_could_be_understood_in_two_ways_is_refused() {
        for (path, error) in [
            ("/%zz", NameError::Escape),
            ("/a%2", NameError::Escape),
            ("/a%", NameError::Escape),
            ("/%+1", NameError::Escape),
            ("/rooms/42%2Fprivate", NameError::Slash),
            ("/rooms/42%2fprivate", NameError::Slash),
            ("/%2e%2e%2f", NameError::Slash),
            ("/a%00b", NameError::Control),
            ("/a%0d%0ab", NameError::Control),
            ("/a%C2%85b", NameError::Control),
            ("/%FF", NameError::Utf8),
            ("/%C3", NameError::Utf8),
            ("/a//b", NameError::Segment),
            ("/a/", NameError::Segment),
            ("/a/./b", NameError::Segment),
            ("/a/../b", NameError::Segment),
            ("/a/%2e%2E/b", NameError::Segment),
        ] {
            assert_eq!(decode(path, Slashes::Refused), Err(error), "{path}");
        }
    }

    #[test]
    fn a_clients_path_is_a_path_and_nothing_else() {
        for path in [
            "/",
            "/rooms/42",
            "/a/",
            "/a//b",
            "/a/../b",
            "/a%3Fb",
            "/a%23b",
            "/%2Fa",
            "/%00",
            "/a:b@c",
            "/a=b&c;d,e",
            "/%",
            "/caf%C3%A9",
            "/*",
        ] {
            let parsed = ClientPath::parse(path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(parsed.as_str(), path);
            for (uri, expected) in [
                ("/other?query", path.to_owned()),
                ("https://example.com:8443/other?query", format!("https://example.com:8443{path}")),
                ("example.com:443", path.to_owned()),
                ("*", path.to_owned()),
            ] {
                let uri = parsed.clone().beside(uri.parse().expect("a URI"));
                assert_eq!((uri.to_string(), uri.path(), uri.query()), (expected, path, None));
            }
        }
        for text in [
            "",
            "x",
            "x/y",
            "*",
            "?x",
            "#x",
            "//",
            "//x",
            "//x/y",
            "///x",
            "/x?",
            "/x?y",
            "/x#",
            "/x#y",
            "/x?y#z",
            "/?",
            "/#",
            "http://x/y",
            "http://x",
            "https://x",
            "http:///y",
            "x:y",
            "x:80",
            "/x y",
            " /x",
            "/x ",
            "/x\ty",
            "/x\n",
            "/x\0",
            "/x\x7f",
            "/x\u{85}",
            "\t/x",
            "./x",
            "../x",
            "%2Fx",
            "\\x",
        ] {
            assert_eq!(ClientPath::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_template_names_parameters_that_there_are() {
        for (text, pattern, fits) in [
            ("{room}", "/rooms/{room}", true),
            ("room:{room}/{rest}", "/rooms/{room}/{*rest}", true),
            ("fixed", "/rooms/{room}", true),
            ("{id}", "/rooms/{room}", false),
            ("{room", "/rooms/{room}", false),
            ("room}", "/rooms/{room}", false),
        ] {
            assert_eq!(Template::parse(text, pattern).is_ok(), fits, "{text} {pattern}");
        }
    }

    proptest! {
        #[test]
        fn a_uri_and_the_router_read_the_same_path(text in "[/?#%:@a-c.0-9 \\\\]{0,12}") {
            if let Some(path) = ClientPath::parse(&text) {
                let uri = path.clone().beside("http://x/y?z".parse().expect("a URI"));
                prop_assert_eq!((path.as_str(), uri.path(), uri.query()), (&*text, &*text, None));
            }
        }

        #[test]
        fn a_decoded_name_has_the_segments_of_its_path(path in "/[a-z%/.2eEfF0-9]{0,24}") {
            if let Ok(name) = decode(&path, Slashes::Refused) {
                prop_assert_eq!(name.matches('/').count(), path.matches('/').count());
                prop_assert!(!name.chars().any(char::is_control));
            }
        }
    }
}
