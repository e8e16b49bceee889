//! `GET` with `live=sse`: a channel as an event stream (Durable Streams, section 5.8).

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, header};
use pin_project_lite::pin_project;
use std::{
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};

use super::{
    Answer, Payload, Target, cursor,
    deadline::{bring_forward, deadline},
    headers,
    problem::Problem,
    query::Asked,
};
use crate::{
    Offset, Outcome, Route,
    engine::{Reading, is_json, is_text},
    registry::{Ended, Wait},
};

/// A connection ends after about this long, and the client comes back: to another node, with a fresh login, past
/// whatever in between lost track of it.
const LIFE: Duration = Duration::from_secs(60);

/// The bytes of messages in one event: what a reader that stops reading holds by itself.
const EVENT: usize = 64 * 1024;

/// A line after so much silence shows both ends that the other is there.
const BEAT: Duration = Duration::from_secs(15);

/// Begins an event stream where a reading began.
pub(super) fn answer(target: &Target<'_>, asked: &Asked, reading: &Reading) -> Result<Answer, Problem> {
    let content_type = reading.content_type.as_ref().unwrap_or(&target.route.content_type);
    let base64 = is_base64(content_type);
    let mut wait = Wait::new(Arc::clone(&target.registry), &target.name, reading.after, reading.content_type.is_some());
    wait.admit()?;
    let until = reading.until.map(|until| target.registry.moment(until));
    let mut answer = Response::new(Payload::Events(Box::pin(EventStream {
        wait,
        route: Arc::clone(&target.route),
        base64,
        cursor: asked.cursor,
        told: false,
        finished: false,
        beat: sleep(BEAT),
        life: deadline(LIFE, until),
    })));
    let map = answer.headers_mut();
    *map = headers::safe();
    map.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    map.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
    // nginx holds answers back otherwise.
    map.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    if base64 {
        map.insert(headers::SSE_DATA_ENCODING, HeaderValue::from_static("base64"));
    }
    answer.extensions_mut().insert(Outcome::Streamed);
    Ok(answer)
}

pin_project! {
    /// A reader of an event stream. It holds a place in the log and one piece of it at most: how slow its client is
    /// costs the channel nothing.
    pub(crate) struct EventStream {
        wait: Wait,
        route: Arc<Route>,
        base64: bool,
        cursor: Option<NonZeroU32>,
        // The client knows where the tail is.
        told: bool,
        finished: bool,
        #[pin]
        beat: Sleep,
        #[pin]
        life: Option<Sleep>,
    }
}

impl EventStream {
    pub(super) fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut this = self.project();
        if *this.finished {
            return Poll::Ready(None);
        }
        let mut over = this.life.as_mut().as_pin_mut().is_none_or(|life| life.poll(cx).is_ready());
        let most = this.route.max_chunk.min(EVENT);
        let mut polled = this.wait.poll(cx, over, most);
        if polled.is_pending() && bring_forward(this.life.as_mut().as_pin_mut(), this.wait.until()) {
            over = this.life.as_mut().as_pin_mut().is_none_or(|life| life.poll(cx).is_ready());
            polled = this.wait.poll(cx, over, most);
        }
        let text = match polled {
            // The channel was made since, and not of the type that it was taken for: that is in the head of the next answer.
            Poll::Ready(Ended::Read(reading))
                if reading.content_type.as_ref().is_some_and(|made| is_base64(made) != *this.base64) =>
            {
                *this.finished = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Ended::Read(reading)) => {
                this.wait.go_on(&reading);
                // Who is behind all the time would never see a quiet moment to end in.
                *this.finished = reading.closed || over;
                *this.told = reading.up_to_date;
                let mut text = String::new();
                let control = Control::new(&reading, *this.cursor);
                if !reading.is_empty() {
                    write_data(&mut text, control.next, reading.into_bytes(), *this.base64);
                }
                control.write(&mut text);
                text
            }
            // Even if it is over at once: who asked for "now" comes back to there, and misses nothing.
            ended @ (Poll::Pending | Poll::Ready(Ended::TimedOut(_) | Ended::Released(_))) if !*this.told => {
                *this.finished = ended.is_ready();
                *this.told = true;
                let mut text = String::new();
                let next = this.wait.after();
                Control { next, cursor: Some(cursor::next(*this.cursor)), up_to_date: true }.write(&mut text);
                text
            }
            // The client comes back, and is told then.
            Poll::Ready(_) => {
                *this.finished = true;
                return Poll::Ready(None);
            }
            Poll::Pending if this.beat.as_mut().poll(cx).is_ready() => ":\n\n".to_owned(),
            Poll::Pending => return Poll::Pending,
        };
        this.beat.reset(Instant::now() + BEAT);
        Poll::Ready(Some(text.into()))
    }
}

/// Whether an event stream carries content of this type as base64, because it is no text.
fn is_base64(content_type: &str) -> bool {
    !is_json(content_type) && !is_text(content_type)
}

/// What follows every data event.
struct Control {
    next: Offset,
    /// None at the end of the stream.
    cursor: Option<u32>,
    up_to_date: bool,
}

impl Control {
    fn new(reading: &Reading, client: Option<NonZeroU32>) -> Self {
        let cursor = (!reading.closed).then(|| cursor::next(client));
        Self { next: reading.next, cursor, up_to_date: reading.up_to_date }
    }

    fn write(&self, text: &mut String) {
        let mut control = serde_json::json!({ "streamNextOffset": self.next.to_string() });
        match self.cursor {
            Some(cursor) => control["streamCursor"] = cursor.to_string().into(),
            None => control["streamClosed"] = true.into(),
        }
        if self.up_to_date {
            control["upToDate"] = true.into();
        }
        text.push_str(&format!("event: control\ndata:{control}\nid:{}\n\n", self.next));
    }
}

/// With an id of its own, and not only in the control event behind it: a browser's `EventSource` takes an event as soon
/// as it is whole, and a connection that breaks between the two would have it told the same data again.
fn write_data(text: &mut String, next: Offset, data: Bytes, base64: bool) {
    text.push_str(&format!("event: data\nid:{next}\n"));
    if base64 {
        text.push_str("data:");
        BASE64_STANDARD.encode_string(&data, text);
        text.push('\n');
    } else {
        for line in lines(&String::from_utf8_lossy(&data)) {
            // A reader takes one space off, if there is one.
            text.push_str(if line.starts_with(' ') { "data: " } else { "data:" });
            text.push_str(line);
            text.push('\n');
        }
    }
    text.push('\n');
}

/// The lines of a text as an event stream counts them: CRLF, LF and a lone CR all end one. Somebody's text
/// could forge an event with whichever was left out.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\r', '\n']) else {
            rest = None;
            return Some(text);
        };
        let width = if text[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = Some(&text[end + width..]);
        Some(&text[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_of_line_break_ends_a_line() {
        for (text, expected) in [
            ("", vec![""]),
            ("a", vec!["a"]),
            ("a\nb\rc\r\nd", vec!["a", "b", "c", "d"]),
            ("\n\r\n\r", vec!["", "", "", ""]),
            ("a\n", vec!["a", ""]),
        ] {
            assert_eq!(lines(text).collect::<Vec<_>>(), expected, "{text:?}");
        }
    }

    proptest! {
        /// Read as the WHATWG's algorithm reads it, an event is one event with the text that went in.
        #[test]
        fn no_text_forges_an_event(text in "[a: \\n\\r]{0,30}|(event: control\ndata: x\n\n|[\\s\\S]){0,10}") {
            let mut written = String::new();
            write_data(&mut written, Offset::ZERO, Bytes::from(text.clone()), false);
            let normal = written.replace("\r\n", "\n").replace('\r', "\n");
            let events: Vec<_> = normal.split_terminator("\n\n").collect();
            prop_assert_eq!(events.len(), 1);
            let mut seen = events[0].split('\n');
            prop_assert_eq!(seen.next(), Some("event: data"));
            let id = format!("id:{}", Offset::ZERO);
            prop_assert_eq!(seen.next(), Some(&*id));
            let data: Vec<_> = seen
                .map(|line| line.strip_prefix("data:").expect("a data line"))
                .map(|line| line.strip_prefix(' ').unwrap_or(line))
                .collect();
            prop_assert_eq!(data.join("\n"), text.replace("\r\n", "\n").replace('\r', "\n"));
        }
    }
}
