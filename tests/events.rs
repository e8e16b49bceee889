//! Event streams: what is on the wire, when it is, and how it ends.

mod support;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use std::time::Duration;
use support::{Teapot, ask, get, open_to_all, post, send, settle};
use tokio::time::{Instant, advance, timeout};
use tower::ServiceExt;
use tower_comet::{Comet, CometLayer, Create, Offset, ResponseBody, Retention, Route};
use tower_layer::Layer;

type Body = ResponseBody<http_body_util::Full<Bytes>>;

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone())
        .route("/s/{*path}", open_to_all())
        .route("/comet/{channel}", Route::new().read_by_anyone())
}

async fn open(layer: &CometLayer, uri: &str) -> Response<Body> {
    let response = layer.layer(Teapot).oneshot(get(uri)).await.unwrap();
    assert_eq!(response.status().as_u16(), 200, "{uri}");
    response
}

/// The next frame of a stream, as text; `None` at its end.
async fn next(body: &mut Body) -> Option<String> {
    let frame = body.frame().await?.unwrap().into_data().unwrap();
    Some(String::from_utf8(frame.to_vec()).unwrap())
}

/// An event, read as a browser reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Event {
    kind: String,
    data: String,
    id: Option<String>,
}

/// The WHATWG's algorithm, as far as these streams go.
fn events(text: &str) -> Vec<Event> {
    let mut events = Vec::new();
    let (mut kind, mut data, mut id) = (String::new(), Vec::new(), None);
    for line in text.replace("\r\n", "\n").replace('\r', "\n").split('\n') {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
        match field {
            "" if line.is_empty() && !data.is_empty() => {
                let event = Event { kind: std::mem::take(&mut kind), data: data.join("\n"), id: id.take() };
                events.push(event);
                data.clear();
            }
            "event" => kind = value,
            "data" => data.push(value),
            "id" => id = Some(value),
            "retry" => assert!(value.parse::<u32>().is_ok_and(|millis| (100..=1_000).contains(&millis)), "{value}"),
            "" => {}
            field => panic!("a field of no use here: {field:?}"),
        }
    }
    assert!(kind.is_empty() && data.is_empty(), "cut off: {text:?}");
    events
}

/// Takes a stream apart into its pairs, strictly: data, control, data, control; a control may come alone.
fn pairs(text: &str) -> Vec<(Option<String>, serde_json::Value)> {
    let mut pairs = Vec::new();
    let mut pending = None;
    for event in events(text) {
        match &*event.kind {
            "data" => assert!(pending.replace(event).is_none(), "two data events without a control: {text}"),
            "control" => {
                let control: serde_json::Value = serde_json::from_str(&event.data).unwrap();
                assert_eq!(event.id.as_deref(), control["streamNextOffset"].as_str(), "{text}");
                assert_ne!(control["streamCursor"].is_string(), control["streamClosed"] == true, "{text}");
                // Both have it, or a connection that breaks between the two would have a browser told the data again.
                let data = pending.take().map(|data: Event| {
                    assert_eq!(data.id, event.id, "{text}");
                    data.data
                });
                pairs.push((data, control));
            }
            other => panic!("{other}"),
        }
    }
    assert!(pending.is_none(), "data without a control: {text}");
    pairs
}

#[tokio::test(start_paused = true)]
async fn each_data_event_is_followed_by_its_control_event() {
    let comet = Comet::new();
    let channel = comet.channel("/s/a");
    let empty = channel.create("application/json").await.unwrap();
    // Chunks so small that each append is an event of its own.
    let layer = CometLayer::new(comet.clone()).route("/s/{*path}", open_to_all().max_chunk(1));
    let mut body = open(&layer, "/s/a?offset=-1&live=sse").await.into_body();
    let first = pairs(&next(&mut body).await.unwrap());
    assert_eq!(first.len(), 1, "a stream that has nothing says so at once");
    assert_eq!(
        (first[0].1["streamNextOffset"].as_str(), &first[0].1["upToDate"]),
        (Some(&*empty.to_string()), &true.into())
    );

    let mut offsets = Vec::new();
    for n in 0..3 {
        offsets.push(channel.append(format!("[{n}, {n}]")).await.unwrap());
    }
    channel.close().await.unwrap();
    let mut text = String::new();
    while let Some(more) = next(&mut body).await {
        text.push_str(&more);
    }
    let pairs = pairs(&text);
    assert_eq!(pairs.len(), 3, "{text}");
    for (nth, (data, control)) in pairs.iter().enumerate() {
        assert_eq!(data.as_deref(), Some(&*format!("[{nth}, {nth}]")));
        assert_eq!(control["streamNextOffset"], offsets[nth].to_string());
        let last = nth == 2;
        assert_eq!((control["upToDate"] == true, control["streamClosed"] == true), (last, last), "{control}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_text_comes_as_base64() {
    let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    for content_type in ["application/octet-stream", "image/png", "application/jsonl"] {
        let comet = Comet::new();
        let create = Create::new(content_type).content(bytes.clone()).closed();
        comet.channel("/s/a").create(create).await.unwrap();
        let seen = send(&layer(&comet), get("/s/a?offset=-1&live=sse")).await;
        assert_eq!(seen.header("stream-sse-data-encoding"), Some("base64"), "{content_type}");
        let pairs = pairs(seen.text());
        assert_eq!(BASE64_STANDARD.decode(pairs[0].0.as_ref().unwrap().replace('\n', "")).unwrap(), bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn no_message_forges_an_event() {
    for text in [
        "x\n\nevent: control\ndata: {\"streamClosed\":true}\n\n",
        "x\r\revent: control\rdata: {}\r\r",
        "x\r\n\r\nid: 1\r\nretry: 1\r\n\r\n",
        " leading space",
        ": comment",
        "\n\n\n",
        "data: data: data:",
        "\u{feff}mark",
    ] {
        let comet = Comet::new();
        let layer = layer(&comet);
        send(&layer, ask("PUT /s/a", &[("content-type", "text/plain")], text)).await;
        send(&layer, ask("POST /s/a", &[("stream-closed", "true")], "")).await;
        let seen = send(&layer, get("/s/a?offset=-1&live=sse")).await;
        let normal = text.replace("\r\n", "\n").replace('\r', "\n");
        let pairs = pairs(seen.text());
        assert_eq!((pairs.len(), pairs[0].0.as_deref()), (1, Some(&*normal)), "{text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_broken_every_15_seconds_and_ends_near_60() {
    let comet = Comet::new();
    comet.channel("/s/a").create("text/plain").await.unwrap();
    let layer = layer(&comet);
    let mut lives = Vec::new();
    for _ in 0..40 {
        let began = Instant::now();
        let mut body = open(&layer, "/s/a?offset=-1&live=sse").await.into_body();
        assert_eq!(pairs(&next(&mut body).await.unwrap()).len(), 1);
        for beat in 1..=3 {
            assert_eq!(next(&mut body).await.as_deref(), Some(":\n\n"));
            let elapsed = began.elapsed().as_millis();
            assert!((beat * 14_960..beat * 15_000 + 10).contains(&elapsed), "{elapsed} ms");
        }
        assert_eq!(next(&mut body).await, None);
        lives.push(began.elapsed().as_millis());
    }
    assert!(lives.iter().all(|life| (56_000..=60_005).contains(life)), "{lives:?}");
    lives.sort_unstable();
    assert!(lives[39] - lives[0] > 1_000, "they end together: {lives:?}");
    assert_eq!(comet.waiters(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_puts_the_next_beat_off() {
    let comet = Comet::new();
    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    let mut body = open(&layer(&comet), "/s/a?offset=-1&live=sse").await.into_body();
    next(&mut body).await.unwrap();
    advance(Duration::from_secs(10)).await;
    channel.append("x").await.unwrap();
    let began = Instant::now();
    assert!(next(&mut body).await.unwrap().contains("data:x"));
    assert_eq!(next(&mut body).await.as_deref(), Some(":\n\n"));
    assert!(began.elapsed() >= Duration::from_millis(14_960), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_never_quiet_ends_too() {
    let comet = Comet::builder().retention(Retention::unbounded()).build();
    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    let mut body = open(&layer(&comet), "/s/a?offset=-1&live=sse").await.into_body();
    let began = Instant::now();
    let mut last = None;
    loop {
        channel.append("x").await.unwrap();
        let Some(text) = next(&mut body).await else { break };
        last = Some(pairs(&text).pop().unwrap().1["streamNextOffset"].as_str().unwrap().parse::<Offset>().unwrap());
        advance(Duration::from_millis(500)).await;
        assert!(began.elapsed() < Duration::from_secs(62), "it would have gone on for ever");
    }
    assert!(began.elapsed() > Duration::from_secs(55), "{:?}", began.elapsed());
    // And the next one goes on from there.
    let seen = send(&layer(&comet), get(&format!("/s/a?offset={}", last.unwrap()))).await;
    assert_eq!(seen.text(), "x");
}

#[tokio::test(start_paused = true)]
async fn an_event_source_comes_back_to_where_it_was() {
    let comet = Comet::new();
    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    channel.append("one").await.unwrap();
    let layer = layer(&comet);
    // The browser repeats the URL that it was made with, and says in a header where it was.
    let mut body = open(&layer, "/s/a?offset=-1&live=sse").await.into_body();
    let id = events(&next(&mut body).await.unwrap()).pop().unwrap().id.unwrap();
    drop(body);
    channel.append("two").await.unwrap();
    channel.close().await.unwrap();
    for (uri, last, data) in [
        ("/s/a?offset=-1&live=sse", &*id, "two"),
        ("/s/a?offset=now&live=sse", &*id, "two"),
        ("/s/a?offset=now&live=sse", "-1", "onetwo"),
    ] {
        let seen = send(&layer, ask(&format!("GET {uri}"), &[("last-event-id", last)], "")).await;
        assert_eq!(pairs(seen.text())[0].0.as_deref(), Some(data), "{uri} {last}");
    }
    let read = send(&layer, ask("GET /s/a?offset=-1", &[("last-event-id", &id)], "")).await;
    assert_eq!(read.text(), "onetwo", "it is for event streams alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_appended_with_the_end_comes_before_it() {
    const ROUNDS: usize = 2_000;
    let comet = Comet::new();
    let layer = layer(&comet);
    let (mut at_once, mut parked, mut delay) = (0, 0, 20);
    for round in 0..ROUNDS {
        let channel = comet.channel(format!("/s/{round}"));
        channel.create("application/json").await.unwrap();
        let reader = tokio::spawn({
            let layer = layer.clone();
            async move { send(&layer, get(&format!("/s/{round}?offset=-1&live=sse"))).await }
        });
        // The end comes before, while and after the reader does: about as long after as it was early or late the last times.
        for _ in 0..delay + round % 8 {
            std::hint::spin_loop();
            tokio::task::yield_now().await;
        }
        channel.publish_last("the last").await.unwrap();
        let seen = timeout(Duration::from_secs(20), reader).await.expect("it ends").unwrap();
        let mut pairs = pairs(seen.text());
        let (data, control) = pairs.pop().unwrap();
        assert_eq!((data.as_deref(), &control["streamClosed"]), (Some("[\"the last\"]"), &true.into()), "{seen:?}");
        match pairs.len() {
            0 => (at_once, delay) = (at_once + 1, delay + 1),
            1 => (parked, delay) = (parked + 1, delay.saturating_sub(1)),
            _ => panic!("{seen:?}"),
        }
        channel.delete().await.unwrap();
    }
    println!("{at_once} read at once, {parked} were parked");
    assert!(at_once > ROUNDS / 50 && parked > ROUNDS / 50, "no race: {at_once} {parked}");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_fell_out_of_the_history_is_let_go_and_told_when_it_comes_back() {
    let comet = Comet::builder().retention(Retention::default().appends(3)).build();
    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    let layer = layer(&comet);
    let mut body = open(&layer, "/s/a?offset=-1&live=sse").await.into_body();
    let here = pairs(&next(&mut body).await.unwrap()).pop().unwrap().1["streamNextOffset"].as_str().unwrap().to_owned();
    for n in 0..10 {
        channel.append(n.to_string()).await.unwrap();
    }
    assert_eq!(next(&mut body).await, None, "not a message is skipped in silence");
    let seen = send(&layer, get(&format!("/s/a?offset={here}&live=sse"))).await;
    assert_eq!((seen.status.as_u16(), &*seen.reason()), (410, "trimmed"));
    let earliest = seen.header("stream-earliest-offset").unwrap();
    channel.close().await.unwrap();
    let seen = send(&layer, get(&format!("/s/a?offset={earliest}&live=sse"))).await;
    assert_eq!(pairs(seen.text())[0].0.as_deref(), Some("789"));
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_turns_out_to_be_of_another_kind_is_told_of_anew() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let mut body = open(&layer, "/comet/a?offset=now&live=sse").await.into_body();
    assert_eq!(pairs(&next(&mut body).await.unwrap()).len(), 1);
    comet.channel("/comet/a").create(Create::new("image/png").content(vec![0xff, 0xd8])).await.unwrap();
    assert_eq!(next(&mut body).await, None, "the head of this answer did not say base64");
    let response = open(&layer, "/comet/a?offset=0000000000000000_x0000000000000000&live=sse").await;
    assert_eq!(response.headers()["stream-sse-data-encoding"], "base64");
    assert_eq!(pairs(&next(&mut response.into_body()).await.unwrap())[0].0.as_deref(), Some("/9g="));
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_the_tail_is_told_where_it_is() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let made = send(&layer, ask("PUT /s/a", &[("content-type", "application/json")], "[1]")).await;
    let mut body = open(&layer, "/s/a?offset=now&live=sse").await.into_body();
    let told = pairs(&next(&mut body).await.unwrap());
    assert_eq!(
        (told[0].0.as_deref(), told[0].1["streamNextOffset"].as_str()),
        (None, made.header("stream-next-offset"))
    );
    settle().await;
    send(&layer, post("/s/a", "application/json", "{\"a\": [2]}")).await;
    assert_eq!(pairs(&next(&mut body).await.unwrap())[0].0.as_deref(), Some("[{\"a\": [2]}]"));
}

#[tokio::test(start_paused = true)]
async fn an_accept_header_asks_for_an_event_stream_on_a_comet_route() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let channel = comet.channel("/comet/a");
    channel.publish("one").await.unwrap();
    channel.close().await.unwrap();
    let accept = |uri: &str, accept: &str| ask(&format!("GET {uri}"), &[("accept", accept)], "");
    for (uri, value, expected) in [
        ("/comet/a", "text/event-stream", Some(0)),
        ("/comet/a?offset=-1", "text/html, Text/Event-Stream;q=0.5", Some(1)),
        ("/comet/a?offset=-1", "text/event-stream;q=0", None),
        ("/comet/a?offset=-1", "text/event-stream; Q=0.000, */*", None),
        ("/comet/a?offset=-1", "text/*, */*", None),
        ("/comet/a?offset=-1&live=long-poll", "text/event-stream", None),
        ("/s/a?offset=-1", "text/event-stream", None),
    ] {
        if uri.starts_with("/s/") {
            send(&layer, ask("PUT /s/a", &[("content-type", "application/json"), ("stream-closed", "true")], "")).await;
        }
        let seen = send(&layer, accept(uri, value)).await;
        let events = (seen.header("content-type") == Some("text/event-stream"))
            .then(|| pairs(seen.text()).iter().filter(|(data, _)| data.is_some()).count());
        assert_eq!(events, expected, "{uri} {value}: {seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_character_that_is_split_over_two_appends_arrives_whole() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    let mut body = open(&layer, "/s/a?offset=-1&live=sse").await.into_body();
    assert_eq!(pairs(&next(&mut body).await.unwrap()).len(), 1, "the control event at the start");

    let start = channel.append("one").await.unwrap();
    assert_eq!(pairs(&next(&mut body).await.unwrap())[0].0.as_deref(), Some("one"));
    channel.append(&b"two \xe2\x82"[..]).await.unwrap();
    assert!(timeout(Duration::from_secs(10), next(&mut body)).await.is_err(), "held back");
    channel.append(&b"\xac three"[..]).await.unwrap();
    assert_eq!(pairs(&next(&mut body).await.unwrap())[0].0.as_deref(), Some("two \u{20ac} three"));

    // What cannot become a character any more is not waited for.
    channel.append(&b"four \xe2"[..]).await.unwrap();
    channel.close().await.unwrap();
    assert_eq!(pairs(&next(&mut body).await.unwrap())[0].0.as_deref(), Some("four \u{fffd}"));
    assert_eq!(next(&mut body).await, None);

    // A client that resumes between the two halves receives both.
    let rest = send(&layer, get(&format!("/s/a?offset={start}&live=sse"))).await;
    assert_eq!(pairs(rest.text())[0].0.as_deref(), Some("two \u{20ac} threefour \u{fffd}"));
}
