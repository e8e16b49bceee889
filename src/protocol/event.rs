//! The events of a stream, as bytes. They are written a frame at a time, as what is written can be six times what was read, and a reader
//! that stops reading holds all of a frame.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use super::cursor::{self, Cursor};
use crate::{
    Offset,
    engine::{AppendBytes, Chunks, Reading},
    registry::{Cut, HeldAppends, Outgoing, Registry},
};

/// Room for all that is written beside the data.
const HEADS: usize = 320;

/// A data event, if there is data, and the control event that follows it.
pub(super) struct Event {
    /// Text before the first frame.
    head: String,
    data: Option<Data>,
    /// None when all is written.
    control: Option<Control>,
}

struct Data {
    text: Text,
    size: usize,
    base64: bool,
    /// How far it is written.
    at: usize,
    begun: bool,
    line_begun: bool,
}

/// The text of an event.
enum Text {
    New(Arc<AppendBytes>),
    /// It waits for the client to read on, and the registry can take it.
    Held(HeldAppends),
}

/// What follows every data event.
pub(super) struct Control {
    pub(super) next: Offset,
    /// None at the end of the stream.
    pub(super) cursor: Option<u64>,
    pub(super) up_to_date: bool,
}

impl Event {
    /// Nothing but where the reader is.
    pub(super) fn control(control: Control) -> Self {
        Self { head: String::new(), data: None, control: Some(control) }
    }

    /// What was read, if anything, and where that leaves the reader.
    pub(super) fn of(registry: &Arc<Registry>, reading: Reading, client: Option<Cursor>, base64: bool) -> Self {
        let cursor = (!reading.closed).then(|| cursor::next(client));
        let control = Control { next: reading.next, cursor, up_to_date: reading.up_to_date };
        if reading.is_empty() {
            return Self::control(control);
        }
        Self::new(reading.into_stored(registry.usage().responses()), base64, control)
    }

    fn new(text: Arc<AppendBytes>, base64: bool, control: Control) -> Self {
        let size = text.len();
        let data = Data { text: Text::New(text), size, base64, at: 0, begun: false, line_begun: false };
        Self { head: String::new(), data: Some(data), control: Some(control) }
    }

    /// Prepends `head` to the event.
    pub(super) fn after(self, head: String) -> Self {
        Self { head, ..self }
    }

    /// Returns the next frame; `None` when all is written, and after an error. The rest of the event is held between two
    /// frames.
    pub(super) fn poll_frame(
        &mut self,
        registry: &Arc<Registry>,
        outgoing: &mut Outgoing,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Cut>>> {
        if self.control.is_none() {
            return Poll::Ready(None);
        }
        let left = HEADS + self.data.as_ref().map_or(0, |data| data.size - data.at);
        let most = match outgoing.poll_ready(registry, left, self.data.as_ref().and_then(Data::held), cx) {
            Poll::Ready(most) => most,
            Poll::Pending => {
                self.hold(registry);
                return Poll::Pending;
            }
        };
        let frame = most.and_then(|most| self.write(most)).map(|text| {
            let capacity = text.capacity();
            outgoing.frame(registry, text, capacity)
        });
        match &frame {
            Ok(_) => self.hold(registry),
            Err(_) => (self.data, self.control) = (None, None),
        }
        Poll::Ready(Some(frame))
    }

    fn hold(&mut self, registry: &Arc<Registry>) {
        if let Some(data) = &mut self.data {
            data.hold(registry);
        }
    }

    /// About `frame` bytes of text, and up to `HEADS` more. Where a frame ends means nothing to clients.
    fn write(&mut self, frame: usize) -> Result<String, Cut> {
        let mut text = mem::take(&mut self.head);
        let Some(control) = &self.control else { return Ok(text) };
        if let Some(data) = &mut self.data
            && !data.write(&mut text, control.next, frame)?
        {
            return Ok(text);
        }
        control.write(&mut text);
        (self.data, self.control) = (None, None);
        Ok(text)
    }
}

impl Data {
    /// With an id of its own, and not only in the control event behind it: a browser's `EventSource` takes an event as soon
    /// as it is whole, and a connection that breaks between the two would have it told the same data again.
    ///
    /// Returns whether all is written.
    fn write(&mut self, text: &mut String, next: Offset, frame: usize) -> Result<bool, Cut> {
        let bytes = match &self.text {
            Text::New(stored) => stored.bytes().clone(),
            Text::Held(held) => held.peek()?,
        };
        text.reserve((bytes.len() - self.at).min(frame) + HEADS);
        if !self.begun {
            text.push_str(&format!("event: data\nid:{next}\n"));
            self.begun = true;
        }
        while self.at < bytes.len() && text.len() < frame {
            if self.base64 {
                self.write_base64(&bytes, text, frame);
            } else {
                self.write_text(&bytes, text, frame);
            }
        }
        let finished = self.at == bytes.len();
        if finished {
            self.begin_line(text);
            text.push_str("\n\n");
        }
        Ok(finished)
    }

    fn hold(&mut self, registry: &Arc<Registry>) {
        if let Text::New(stored) = &self.text {
            let parts = Chunks::one(Arc::clone(stored), registry.usage().responses());
            self.text = Text::Held(HeldAppends::new(registry, parts));
        }
    }

    fn held(&self) -> Option<&HeldAppends> {
        match &self.text {
            Text::New(_) => None,
            Text::Held(held) => Some(held),
        }
    }

    fn begin_line(&mut self, text: &mut String) {
        if !self.line_begun {
            text.push_str("data:");
            self.line_begun = true;
        }
    }

    /// A multiple of three bytes at a time, which become four characters each, so that only the end is padded.
    fn write_base64(&mut self, bytes: &[u8], text: &mut String, frame: usize) {
        self.begin_line(text);
        let end = bytes.len().min(self.at + (frame / 4).max(1) * 3);
        BASE64_STANDARD.encode_string(&bytes[self.at..end], text);
        self.at = end;
    }

    /// A line, or as much of it as goes into a frame. CRLF, LF and a lone CR all end one: somebody's text could forge an event with
    /// whichever was left out.
    fn write_text(&mut self, bytes: &[u8], text: &mut String, frame: usize) {
        let rest = &bytes[self.at..];
        if !self.line_begun && rest[0] == b' ' {
            // A reader takes one space off, if there is one.
            text.push_str("data: ");
            self.line_begun = true;
        }
        self.begin_line(text);
        // Room for one character at least.
        let most = rest.len().min(frame.saturating_sub(text.len()).max(4));
        let end = rest[..most].iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        let taken = end.unwrap_or_else(|| whole_characters(rest, most));
        text.push_str(&String::from_utf8_lossy(&rest[..taken]));
        self.at += taken;
        if end.is_some() {
            self.at += if rest[taken..].starts_with(b"\r\n") { 2 } else { 1 };
            text.push('\n');
            self.line_begun = false;
        }
    }
}

/// As many bytes, or a few less, so that no character is cut in two.
fn whole_characters(bytes: &[u8], most: usize) -> usize {
    let continues = |at: usize| bytes.get(at).is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000);
    (most.saturating_sub(3)..=most).rev().find(|at| !continues(*at)).filter(|at| *at > 0).unwrap_or(most)
}

impl Control {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAME: usize = 64 * 1024;

    fn frames(data: impl Into<Bytes>, base64: bool) -> Vec<Bytes> {
        let control = Control { next: Offset::ZERO, cursor: Some(1), up_to_date: true };
        let mut event = Event::new(AppendBytes::private(data.into(), &Arc::default()), base64, control);
        let mut frames = Vec::new();
        while event.control.is_some() {
            frames.push(event.write(FRAME).expect("not cut").into());
        }
        frames
    }

    /// The data of the data event, if it is one, and a control event follows it: as the WHATWG's algorithm reads it.
    fn read(frames: &[Bytes]) -> Option<String> {
        let text = String::from_utf8(frames.concat()).ok()?.replace("\r\n", "\n").replace('\r', "\n");
        let events: Vec<_> = text.split_terminator("\n\n").collect();
        let [data, control] = events[..] else { return None };
        let data = data.strip_prefix(&format!("event: data\nid:{}\n", Offset::ZERO))?;
        let lines = data.split('\n').map(|line| {
            let line = line.strip_prefix("data:")?;
            Some(line.strip_prefix(' ').unwrap_or(line))
        });
        control
            .starts_with("event: control\n")
            .then(|| lines.collect::<Option<Vec<_>>>())
            .flatten()
            .map(|all| all.join("\n"))
    }

    fn normal(text: &str) -> String {
        text.replace("\r\n", "\n").replace('\r', "\n")
    }

    #[test]
    fn every_kind_of_line_break_ends_a_line() {
        for text in ["a", "a\nb\rc\r\nd", "\n\r\n\r", "a\n", " a\n  b", "\n"] {
            assert_eq!(read(&frames(text, false)), Some(normal(text)), "{text:?}");
        }
    }

    #[test]
    fn what_is_written_larger_than_it_was_goes_a_frame_at_a_time() {
        for (data, base64) in [
            (vec![b'\n'; 1 << 20], false),
            (vec![0xff; 1 << 20], false),
            ("é\r".repeat(300_000).into_bytes(), false),
            (vec![b' '; 1 << 20], false),
            (vec![7; 1 << 20], true),
        ] {
            let frames = frames(data.clone(), base64);
            assert!(frames.len() > 10 && frames.iter().all(|frame| frame.len() < 5 * FRAME), "{}", frames.len());
            let expected = if base64 { BASE64_STANDARD.encode(&data) } else { normal(&String::from_utf8_lossy(&data)) };
            assert!(read(&frames) == Some(expected));
        }
    }

    proptest! {
        #[test]
        fn no_text_forges_an_event(text in "[a: \\n\\r]{1,30}|(event: control\ndata: x\n\n|[\\s\\S]){1,10}") {
            prop_assert_eq!(read(&frames(text.clone(), false)), Some(normal(&text)));
        }

        #[test]
        fn no_character_is_cut_in_two(before in 0..8usize, what in "[aé€😀]{1,4}") {
            let text = "x".repeat(FRAME - before) + &what.repeat(3);
            prop_assert!(read(&frames(text.clone(), false)) == Some(text));
        }
    }
}
