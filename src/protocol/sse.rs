//! `GET` with `live=sse`: a channel as an event stream (Durable Streams, section 5.8).

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, header};
use pin_project_lite::pin_project;
use std::{
    ops::RangeInclusive,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use super::{
    LayerBody, LayerResponse, Target,
    client::Admitted,
    cursor::{self, Cursor},
    deadline::deadline,
    event::{Control, Event},
    headers,
    problem::Problem,
    query::ReadRequest,
};
use crate::{
    Error, Outcome, OutcomeKind, Route,
    engine::{Extent, MediaType, Offset, Reading, is_json, is_text, is_utf8},
    registry::{Cut, Outgoing, Wait, WaitEnd},
};

/// A connection ends after about this long, and the client comes back: to another node, with a fresh login, past
/// whatever in between lost track of it.
const LIFE: Duration = Duration::from_secs(60);

/// The bytes of messages in one event: what a reader that stops reading holds by itself.
const EVENT: usize = 64 * 1024;

/// A line after about so many milliseconds of silence shows both ends that the other is there.
const BEAT: u64 = 15_000;

/// Begins an event stream where a reading began.
pub(super) fn answer(target: &Target, asked: &ReadRequest, reading: &Reading) -> Result<LayerResponse, Problem> {
    let content_type = reading.content_type.as_ref().unwrap_or(&target.route.content_type);
    let base64 = is_base64(content_type);
    let mut wait = Wait::new(Arc::clone(&target.registry), &target.name, reading.after, reading.content_type.is_some());
    let admitted = target.admit(asked.client)?;
    match wait.admit() {
        Ok(()) => {}
        // An `EventSource` gives up for good at any status but 200. With this it comes back, to another node.
        Err(Error::ShutDown) => {
            return Ok(begin(LayerBody::from(Bytes::from(retry(1_000..=5_000))), OutcomeKind::Released, base64));
        }
        Err(error) => return Err(error.into()),
    }
    let stream = LayerBody::Events(Box::pin(EventStream {
        wait,
        route: Arc::clone(&target.route),
        base64,
        whole_characters: is_utf8(content_type),
        cursor: asked.cursor,
        event: None,
        outgoing: Outgoing::new(),
        told: None,
        finished: false,
        beat: target.registry.now() + BEAT,
        end: deadline(&target.registry, LIFE),
        task: None,
        begun: false,
        admitted,
    }));
    Ok(begin(stream, OutcomeKind::Streamed, base64))
}

/// Returns an answer with the head of an event stream.
fn begin(body: LayerBody, outcome: OutcomeKind, base64: bool) -> LayerResponse {
    let mut answer = Response::new(body);
    let map = answer.headers_mut();
    *map = headers::safe();
    map.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    map.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, no-transform"));
    // Proxies that compress hold events back: those of Node and Traefik without `no-transform`, nginx without this.
    map.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    if base64 {
        map.insert(headers::SSE_DATA_ENCODING, HeaderValue::from_static("base64"));
    }
    answer.extensions_mut().insert(Outcome::new(outcome));
    answer
}

/// Tells an `EventSource` to come back after a random time in milliseconds. Its default is three seconds.
fn retry(millis: RangeInclusive<u32>) -> String {
    format!("retry:{}\n\n", fastrand::u32(millis))
}

pin_project! {
    /// An event stream. It has an offset, and holds at most one chunk of the log, which the registry can take: then the stream
    /// ends with an error.
    pub(crate) struct EventStream {
        #[pin]
        wait: Wait,
        route: Arc<Route>,
        base64: bool,
        // Text in UTF-8, which may split a character over two appends.
        whole_characters: bool,
        cursor: Option<Cursor>,
        // The event that is being sent.
        event: Option<Event>,
        outgoing: Outgoing,
        // Whether an event was begun, with `retry` before it.
        begun: bool,
        // The tail that the client was sent last.
        told: Option<Offset>,
        finished: bool,
        // When the next comment is due.
        beat: u64,
        end: u64,
        // The task that polled last. While it stays the same, the timer is not reset with each event.
        task: Option<Waker>,
        // Counts for its client. Boxed, so that it takes little space in the streams of other routes.
        admitted: Option<Box<Admitted>>,
    }
}

impl EventStream {
    pub(super) fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        let mut this = self.project();
        loop {
            if let Some(event) = this.event {
                if let Some(frame) = ready!(event.poll_frame(this.wait.registry(), this.outgoing, cx)) {
                    *this.beat = this.wait.registry().now() + BEAT;
                    *this.finished |= frame.is_err();
                    return Poll::Ready(Some(frame));
                }
                *this.event = None;
            }
            if *this.finished {
                return Poll::Ready(None);
            }
            let now = this.wait.registry().now();
            let over = *this.end <= now;
            let same_task = this.task.as_ref().is_some_and(|task| task.will_wake(cx.waker()));
            if !same_task {
                *this.task = Some(cx.waker().clone());
            }
            let extent = Extent { bytes: this.route.max_chunk.min(EVENT), whole_characters: *this.whole_characters };
            let polled = this.wait.as_mut().poll_by(same_task, cx, (*this.end).min(*this.beat), extent);
            let moved = this.told.is_none() || (polled.is_ready() && *this.told != Some(this.wait.after()));
            let event = match polled {
                // The channel was made since, and not of the type that it was taken for: that is in the head of the next answer.
                Poll::Ready(WaitEnd::Read(reading))
                    if reading.content_type.as_ref().is_some_and(|made| is_base64(made) != *this.base64) =>
                {
                    *this.finished = true;
                    return Poll::Ready(None);
                }
                Poll::Ready(WaitEnd::Read(reading)) => {
                    this.wait.as_mut().go_on(&reading);
                    // Who is behind all the time would never see a quiet moment to end in.
                    *this.finished = reading.closed || over;
                    *this.told = reading.up_to_date.then_some(reading.next);
                    Event::of(this.wait.registry(), reading, *this.cursor, *this.base64)
                }
                // Even if it is over at once: a client that requested "now" resumes from there, and misses nothing. And again with a
                // beat and at the end, if the channel does not exist and its absent tail has moved on.
                ended @ (Poll::Pending | Poll::Ready(WaitEnd::TimedOut(_) | WaitEnd::Released(_))) if moved => {
                    *this.finished = over || matches!(ended, Poll::Ready(WaitEnd::Released(_)));
                    *this.told = Some(this.wait.after());
                    let cursor = Some(cursor::next(*this.cursor));
                    Event::control(Control { next: this.wait.after(), cursor, up_to_date: true })
                }
                Poll::Ready(WaitEnd::TimedOut(_)) if !over => {
                    *this.beat = now + BEAT;
                    return Poll::Ready(Some(Ok(Bytes::from_static(b":\n\n"))));
                }
                // The client comes back, and is told then.
                Poll::Ready(_) => {
                    *this.finished = true;
                    return Poll::Ready(None);
                }
                Poll::Pending => return Poll::Pending,
            };
            let event = if std::mem::replace(this.begun, true) { event } else { event.after(retry(100..=1_000)) };
            *this.event = Some(event);
        }
    }
}

/// Returns whether an event stream carries content of this type as base64: any type that is neither JSON nor text.
fn is_base64(content_type: &MediaType) -> bool {
    !is_json(content_type) && !is_text(content_type)
}
