//! Clients that stop reading hold memory within a limit of its own. At the limit, the slowest response is cut, and its client
//! knows.

mod support;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    error::Error,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use support::{Seen, Server, Teapot, get, open_to_all, send, soon, until};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tower::{ServiceBuilder, ServiceExt};
use tower_comet::{BodyError, Comet, CometLayer, ResponseBody, Retention};
use tower_http::compression::CompressionLayer;
use tower_layer::Layer;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Bytes that do not compress.
fn random(bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(fastrand::alphanumeric).map(|char| char as u8).take(bytes).collect()
}

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/s/{*path}", open_to_all())
}

/// Sends a request and returns the response without reading its body.
async fn begin(
    server: &Server,
    http2: bool,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, hyper::Error> {
    let io = TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
    if http2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let (mut parts, body) = request.into_parts();
        parts.uri = format!("http://x{}", parts.uri).parse().unwrap();
        sender.send_request(Request::from_parts(parts, body)).await
    } else {
        let (mut sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let mut request = request;
        request.headers_mut().insert(header::HOST, "x".parse().unwrap());
        sender.send_request(request).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_response_is_cut_receives_an_error_on_both_protocols_also_behind_compression() {
    const APPEND: usize = 8 * MIB;
    const LIMIT: usize = 20 * MIB;
    let comet = Comet::builder()
        .max_append(APPEND)
        .max_reading(LIMIT)
        .retention(Retention::default().appends(1).bytes(usize::MAX))
        .build();
    let service = ServiceBuilder::new().layer(CompressionLayer::new()).layer(layer(&comet)).service(Teapot);
    let server = Server::start(service).await;
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();

    // Each client requests another append, which the next one replaces, and does not read the response.
    let mut stopped = Vec::new();
    for (http2, encoding) in [(false, "identity"), (false, "gzip"), (true, "identity"), (true, "gzip")] {
        channel.append(random(APPEND)).await.unwrap();
        let mut request = get("/s/a?offset=-1");
        request.headers_mut().insert(header::ACCEPT_ENCODING, encoding.parse().unwrap());
        let response = begin(&server, http2, request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let zipped = response.headers().get(header::CONTENT_ENCODING).is_some_and(|value| value == "gzip");
        assert_eq!(zipped, encoding == "gzip");
        stopped.push((http2, encoding, response));
        assert!(comet.stats().reading_bytes <= LIMIT, "{:?}", comet.stats());
    }
    // Three more of the same kind, and all of those are cut.
    let mut last = Vec::new();
    for _ in 0..3 {
        let data = random(APPEND);
        channel.append(data.clone()).await.unwrap();
        last.push((data, begin(&server, last.len() == 1, get("/s/a?offset=-1")).await.unwrap()));
    }
    channel.append("x").await.unwrap();
    assert_eq!(comet.channel("/s/a").history(), 1);
    until("the first four are cut", || comet.stats().cut_responses >= 4).await;
    assert!(comet.stats().reading_bytes <= LIMIT, "{:?}", comet.stats());

    for (http2, encoding, response) in stopped {
        let read = soon(response.into_body().collect()).await;
        assert!(read.is_err(), "HTTP/2: {http2}, {encoding}: a response that was cut looks complete");
    }
    let (data, response) = last.pop().unwrap();
    let read = soon(response.into_body().collect()).await.expect("it was not cut").to_bytes();
    assert!(read == data);
    drop(last);
    until("nothing is held", || comet.stats().reading_bytes == 0).await;
}

#[tokio::test]
async fn the_response_that_was_polled_longest_ago_is_cut_first() {
    const APPEND: usize = 300 * KIB;
    let comet = Comet::builder().max_reading(MIB).retention(Retention::default().appends(1)).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    let mut bodies = Vec::new();
    for _ in 0..3 {
        channel.append(random(APPEND)).await.unwrap();
        let response = layer.layer(Teapot).oneshot(get("/s/a?offset=-1")).await.unwrap();
        bodies.push(response.into_body());
    }
    // The first reads on.
    let frame = bodies[0].frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(frame.len() <= 64 * KIB, "{} bytes", frame.len());
    drop(frame);
    channel.append(random(APPEND)).await.unwrap();
    let response = layer.layer(Teapot).oneshot(get("/s/a?offset=-1")).await.unwrap();
    bodies.push(response.into_body());
    channel.append("x").await.unwrap();

    assert_eq!(comet.stats().cut_responses, 1, "{:?}", comet.stats());
    let mut cut = Vec::new();
    for mut body in bodies {
        let mut error: Option<BodyError> = None;
        while let Some(frame) = body.frame().await {
            error = frame.err();
        }
        cut.push(error.is_some_and(|error| error.is_cut() && error.source().is_none()));
    }
    assert_eq!(cut, [false, true, false, false]);
    assert_eq!(comet.stats().reading_bytes, 0);
}

#[tokio::test]
async fn an_append_that_many_responses_hold_counts_once() {
    const APPEND: usize = 100 * KIB;
    let comet = Comet::builder().max_reading(MIB).retention(Retention::default().appends(1)).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    let data = random(APPEND);
    channel.append(data.clone()).await.unwrap();
    let mut bodies = Vec::new();
    for _ in 0..100 {
        bodies.push(layer.layer(Teapot).oneshot(get("/s/a?offset=-1")).await.unwrap().into_body());
    }
    assert!(comet.stats().reading_bytes < 10 * KIB, "the channel keeps it: {:?}", comet.stats());
    channel.append("x").await.unwrap();
    assert!((APPEND..2 * APPEND).contains(&comet.stats().reading_bytes), "{:?}", comet.stats());
    for body in bodies {
        assert!(body.collect().await.unwrap().to_bytes() == data);
    }
    assert_eq!((comet.stats().cut_responses, comet.stats().reading_bytes), (0, 0));
}

#[tokio::test]
async fn messages_that_the_application_holds_do_not_count() {
    let comet = Comet::builder().max_reading(MIB).retention(Retention::default().appends(1)).build();
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    let mut subscription = channel.subscribe();
    let mut messages = Vec::new();
    for _ in 0..20 {
        channel.append(random(100 * KIB)).await.unwrap();
        messages.push(subscription.recv().await.unwrap().unwrap());
    }
    assert_eq!(comet.stats().reading_bytes, 0);
    assert!(messages.iter().all(|message| message.data().len() == 100 * KIB));
}

/// Reads a body frame by frame, until it ends or fails, and returns the frames.
async fn frames(layer: &CometLayer, uri: &str) -> (Vec<Bytes>, Option<BodyError>) {
    let mut body = layer.layer(Teapot).oneshot(get(uri)).await.unwrap().into_body();
    let mut frames = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => frames.push(frame.into_data().unwrap()),
            Err(error) => return (frames, Some(error)),
        }
    }
    (frames, None)
}

/// Takes all of the limit but 1 KiB, as a server does that holds the frames of clients which do not read.
async fn fill(comet: &Comet, layer: &CometLayer) -> Vec<Vec<Bytes>> {
    let mut held = Vec::new();
    for size in [MIB, 70 * KIB, KIB + 1] {
        let channel = comet.channel(format!("/s/fill/{size}"));
        channel.create("application/octet-stream").await.unwrap();
        channel.append(random(size)).await.unwrap();
        let uri = format!("/s/fill/{size}?offset=-1");
        while send_head(layer, &uri).await.status() == StatusCode::OK {
            assert!(held.len() < 100);
            held.push(frames(layer, &uri).await.0);
        }
    }
    assert!(comet.stats().reading_bytes > comet.stats().reading_bytes.next_multiple_of(MIB) - 2 * KIB);
    held
}

/// A comet with a limit of 1 MiB, all of which the server holds.
async fn full() -> (Comet, CometLayer, Vec<Vec<Bytes>>) {
    let comet = Comet::builder().max_reading(MIB).retention(Retention::default().appends(1)).build();
    let layer = layer(&comet);
    let held = fill(&comet, &layer).await;
    (comet, layer, held)
}

#[tokio::test(start_paused = true)]
async fn a_response_without_room_waits_until_there_is_some() {
    let comet = Comet::builder().max_reading(MIB).retention(Retention::default().appends(1)).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    let data = random(200 * KIB);
    channel.append(data.clone()).await.unwrap();
    let mut body = send_head(&layer, "/s/a?offset=-1").await.into_body();
    let held = fill(&comet, &layer).await;
    let cut = comet.stats().cut_responses;
    assert!(timeout(Duration::from_secs(2), body.frame()).await.is_err(), "there is no room");
    drop(held);
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        read.extend_from_slice(frame.expect("it is not cut").data_ref().unwrap());
    }
    assert!(read == data);
    assert_eq!((comet.stats().cut_responses, comet.stats().reading_bytes), (cut, 0));
}

#[tokio::test(start_paused = true)]
async fn a_response_is_not_cut_for_its_own_next_frame() {
    let comet = Comet::builder().max_reading(256 * KIB).retention(Retention::default().appends(1)).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    channel.append(random(200 * KIB)).await.unwrap();
    let mut body = send_head(&layer, "/s/a?offset=-1").await.into_body();
    let mut frames = Vec::new();
    // The response alone holds the append from here on.
    channel.append("x").await.unwrap();
    while let Ok(frame) = timeout(Duration::from_secs(1), body.frame()).await {
        frames.push(frame.unwrap().expect("it is not cut"));
    }
    assert!(comet.stats().reading_bytes > 250 * KIB, "{:?}", comet.stats());
    frames.clear();
    while let Some(frame) = body.frame().await {
        assert!(frame.is_ok(), "{:?}", comet.stats());
    }
    assert_eq!(comet.stats().cut_responses, 0);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_was_cut_while_it_waits_fails_at_once_and_counts_once() {
    let (comet, layer, _held) = full().await;
    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    channel.append(random(30 * KIB)).await.unwrap();
    let mut body = send_head(&layer, "/s/a?offset=-1&live=sse").await.into_body();
    assert!(timeout(Duration::from_secs(1), body.frame()).await.is_err(), "there is no room");
    let cut = comet.stats().cut_responses;
    // Now the response alone holds it, so it is over the limit.
    channel.append("x").await.unwrap();
    send(&layer, get("/s/a?offset=now")).await;
    assert_eq!(comet.stats().cut_responses, cut + 1);
    let error = timeout(Duration::ZERO, body.frame()).await.expect("at once").unwrap().unwrap_err();
    assert!(error.is_cut());
    assert!(body.frame().await.is_none());
    assert_eq!(comet.stats().cut_responses, cut + 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_event_stream_with_small_events_is_not_cut_at_the_limit() {
    let comet = Comet::builder().max_reading(MIB).retention(Retention::default().appends(1)).build();
    let layer = layer(&comet);
    let lent = comet.channel("/s/lent");
    lent.create("text/plain").await.unwrap();
    lent.append(random(60 * KIB)).await.unwrap();
    let frame = send_head(&layer, "/s/lent?offset=-1").await.into_body().frame().await.unwrap().unwrap();
    let held = fill(&comet, &layer).await;
    // This append counts from here on, beyond the limit.
    lent.append("x").await.unwrap();
    assert!(comet.stats().reading_bytes > MIB + 50 * KIB, "{:?}", comet.stats());

    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    let mut body = send_head(&layer, "/s/a?offset=now&live=sse").await.into_body();
    let cut = comet.stats().cut_responses;
    for at in 0..5 {
        channel.append(format!("event {at}")).await.unwrap();
        let started = tokio::time::Instant::now();
        let mut text = String::new();
        while !text.contains(&format!("event {at}")) {
            let frame = body.frame().await.unwrap().expect("it is not cut").into_data().unwrap();
            text.push_str(std::str::from_utf8(&frame).unwrap());
        }
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert!(timeout(Duration::from_secs(7), body.frame()).await.is_err(), "nothing else is sent");
    }
    assert_eq!(comet.stats().cut_responses, cut);
    drop((held, frame));
}

#[tokio::test(start_paused = true)]
async fn a_large_event_waits_for_room() {
    let (comet, layer, held) = full().await;
    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    let mut body = send_head(&layer, "/s/a?offset=now&live=sse").await.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    let data = random(30 * KIB);
    channel.append(data.clone()).await.unwrap();
    assert!(timeout(Duration::from_secs(3), body.frame()).await.is_err(), "there is no room");
    drop(held);
    let mut text = String::new();
    while !text.contains("event: control") {
        let frame = body.frame().await.unwrap().expect("it is not cut").into_data().unwrap();
        text.push_str(std::str::from_utf8(&frame).unwrap());
    }
    assert!(text.contains(std::str::from_utf8(&data).unwrap()));
}

#[tokio::test(start_paused = true)]
async fn small_events_that_nobody_reads_are_bounded_at_the_limit() {
    const STREAMS: usize = 20;
    let (comet, layer, _held) = full().await;
    let before = comet.stats().reading_bytes;
    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    let mut bodies = Vec::new();
    for _ in 0..STREAMS {
        bodies.push((send_head(&layer, "/s/a?offset=now&live=sse").await.into_body(), Vec::new()));
    }
    for at in 0..200 {
        channel.append(format!("event {at}")).await.unwrap();
        for (body, hoarded) in &mut bodies {
            while let Ok(Some(Ok(frame))) = timeout(Duration::ZERO, body.frame()).await {
                hoarded.push(frame);
            }
        }
    }
    let held = comet.stats().reading_bytes - before;
    assert!(held > STREAMS * 2 * KIB && held < STREAMS * 6 * KIB, "{held} bytes");
}

#[tokio::test]
async fn a_response_that_is_cut_releases_its_references_to_appends_that_the_channel_keeps() {
    let comet = Comet::builder().max_reading(256 * KIB).retention(Retention::unbounded()).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    for _ in 0..2_000 {
        channel.append(random(40)).await.unwrap();
    }
    // Each has 2,000 references of 8 bytes: sixteen fit.
    let mut responses = Vec::new();
    for _ in 0..32 {
        responses.push(send_head(&layer, "/s/a?offset=-1").await);
    }
    let stats = comet.stats();
    assert!(stats.reading_bytes <= 256 * KIB && stats.reading_bytes > 128 * KIB, "{stats:?}");
    assert!(stats.cut_responses >= 16 && stats.cut_responses <= 24, "{stats:?}");
    let last = responses.pop().unwrap();
    drop(responses);
    assert_eq!(last.into_body().collect().await.unwrap().to_bytes().len(), 80_000);
    assert_eq!(comet.stats().reading_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn large_reads_are_refused_while_the_server_holds_all_that_the_limit_allows() {
    let comet = Comet::builder().max_reading(MIB).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    channel.append(random(MIB)).await.unwrap();
    let mut held = Vec::new();
    let refused = loop {
        let response = send_head(&layer, "/s/a?offset=-1").await;
        if response.status() != StatusCode::OK {
            break Seen::read(response).await.unwrap();
        }
        let (read, error) = frames(&layer, "/s/a?offset=-1").await;
        assert!(error.expect("it is as large as the limit").is_cut());
        assert!(held.len() < 20, "{:?}", comet.stats());
        held.push(read);
    };
    assert!(comet.stats().reading_bytes > MIB - 64 * KIB, "{:?}", comet.stats());
    assert!(comet.stats().reading_bytes <= MIB, "{:?}", comet.stats());
    let sizes: Vec<usize> = held.iter().map(|frames| frames.last().map_or(0, Bytes::len)).collect();
    assert_eq!((held[0][0].len(), *sizes.last().unwrap()), (64 * KIB, 4 * KIB), "frames shrink: {sizes:?}");

    assert_eq!((refused.status, refused.reason().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "full"));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let tail = format!("/s/a?offset={}", channel.tail());
    assert_eq!(send(&layer, get(&tail)).await.status, StatusCode::OK, "small responses are not refused");
    let refused = send(&layer, get("/s/a?offset=-1&live=long-poll")).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(comet.stats().delivered, 0);

    drop(held);
    assert_eq!(comet.stats().reading_bytes, 0);
    let mut body = send_head(&layer, "/s/a?offset=-1").await.into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame.unwrap().data_ref().unwrap().len();
    }
    assert_eq!(read, MIB);
}

/// Sends a request to the layer and returns the response without reading its body.
async fn send_head(layer: &CometLayer, uri: &str) -> Response<ResponseBody<Full<Bytes>>> {
    layer.layer(Teapot).oneshot(get(uri)).await.unwrap()
}

#[tokio::test]
async fn a_client_that_resumes_where_the_channel_keeps_nothing_any_more_is_told() {
    const APPEND: usize = 600 * KIB;
    let comet = Comet::builder().max_reading(MIB).retention(Retention::default().appends(1)).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    let start = channel.tail();
    let mut responses = Vec::new();
    for _ in 0..3 {
        channel.append(random(APPEND)).await.unwrap();
        responses.push(send_head(&layer, "/s/a?offset=-1").await);
    }
    assert_eq!(comet.stats().cut_responses, 1);
    assert!(responses.remove(0).into_body().collect().await.is_err());
    let again = send(&layer, get(&format!("/s/a?offset={start}"))).await;
    assert_eq!((again.status, again.reason().as_str()), (StatusCode::GONE, "trimmed"));
}

#[tokio::test(start_paused = true)]
async fn responses_that_share_an_append_with_many_others_are_not_cut_for_the_little_that_it_frees() {
    let comet = Comet::builder().max_reading(MIB).retention(Retention::default().appends(1)).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    channel.append(random(100 * KIB)).await.unwrap();
    let mut sharing = Vec::new();
    for _ in 0..100 {
        sharing.push(send_head(&layer, "/s/a?offset=-1").await);
    }
    let mut alone = Vec::new();
    for _ in 0..40 {
        channel.append(random(100 * KIB)).await.unwrap();
        alone.push(send_head(&layer, "/s/a?offset=-1").await);
    }
    channel.append("x").await.unwrap();
    // One operation examines a few of them.
    for _ in 0..20 {
        send(&layer, get("/s/a?offset=now")).await;
    }
    assert!(comet.stats().reading_bytes <= MIB, "{:?}", comet.stats());
    drop(alone);
    for response in sharing {
        assert!(response.into_body().collect().await.is_ok());
    }
}

#[tokio::test]
async fn an_event_stream_that_is_cut_ends_with_one_error() {
    let comet = Comet::builder().max_reading(MIB).retention(Retention::default().appends(1)).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..4 {
        channel.append(random(400 * KIB)).await.unwrap();
        let mut body = send_head(&layer, "/s/a?offset=-1&live=sse").await.into_body();
        assert!(body.frame().await.unwrap().is_ok());
        streams.push(body);
    }
    channel.append("x").await.unwrap();
    send(&layer, get("/s/a?offset=now")).await;
    assert!(comet.stats().cut_responses >= 1, "{:?}", comet.stats());
    let mut first = streams.remove(0);
    let error = soon(first.frame()).await.unwrap().unwrap_err();
    assert!(error.is_cut(), "{error}");
    assert!(soon(first.frame()).await.is_none());
}

/// A socket that stops reading.
struct Stalled {
    socket: TcpStream,
    stop: Arc<AtomicBool>,
}

impl AsyncRead for Stalled {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.stop.load(Relaxed) { Poll::Pending } else { Pin::new(&mut self.socket).poll_read(cx, buf) }
    }
}

impl AsyncWrite for Stalled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_http2_connection_with_large_windows_leaves_room_for_others() {
    const LIMIT: usize = 16 * MIB;
    let comet = Comet::builder().max_reading(LIMIT).build();
    let server = Server::start(layer(&comet).layer(Teapot)).await;
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    let data = random(MIB);
    channel.append(data.clone()).await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let socket = Stalled { socket: TcpStream::connect(server.addr).await.unwrap(), stop: stop.clone() };
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let (mut sender, connection) = builder.handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(get("http://x/s/none?offset=-1")).await.unwrap();
    stop.store(true, Relaxed);
    // Enough to take the whole limit, at 400 KiB each.
    let requests: Vec<_> = (0..90).map(|_| tokio::spawn(sender.send_request(get("http://x/s/a?offset=-1")))).collect();
    until("they have all that they get, and the first is cut", || {
        assert!(comet.stats().reading_bytes <= LIMIT, "{:?}", comet.stats());
        comet.stats().cut_responses > 0
    })
    .await;
    println!("{:?}", comet.stats());
    assert!(comet.stats().reading_bytes > LIMIT / 2, "{:?}", comet.stats());

    for http2 in [false, true] {
        let response = begin(&server, http2, get("/s/a?offset=-1")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(soon(response.into_body().collect()).await.expect("it is read to its end").to_bytes() == data);
    }
    requests.iter().for_each(|request| request.abort());
}

#[tokio::test]
async fn a_head_request_and_a_response_that_is_dropped_hold_nothing() {
    let comet = Comet::builder().retention(Retention::default().appends(1)).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    channel.append(random(MIB)).await.unwrap();
    let mut head = get("/s/a?offset=-1");
    *head.method_mut() = http::Method::HEAD;
    let head = layer.layer(Teapot).oneshot(head).await.unwrap();
    let mut body = layer.layer(Teapot).oneshot(get("/s/a?offset=-1")).await.unwrap().into_body();
    let frame = body.frame().await.unwrap().unwrap();
    channel.append("x").await.unwrap();
    assert!(comet.stats().reading_bytes > MIB);
    drop(body);
    let frame_bytes = frame.data_ref().unwrap().len();
    assert!((frame_bytes..frame_bytes + KIB).contains(&comet.stats().reading_bytes), "the frame is the server's");
    drop((head, frame));
    assert_eq!(comet.stats().reading_bytes, 0);
}

/// Reads a body to its end or to an error. A hoarder keeps all frames until then, as a server does whose client does not read.
async fn read_body(response: Response<ResponseBody<Full<Bytes>>>, hoard: bool) -> (Vec<u8>, bool) {
    let (mut body, mut read, mut hoarded) = (response.into_body(), Vec::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return (read, false) };
        let frame = frame.into_data().unwrap();
        read.extend_from_slice(&frame);
        hoarded.extend(hoard.then_some(frame));
    }
    (read, true)
}

/// Reads a stream to its end. Every other attempt hoards.
async fn read_by_chunks(layer: &CometLayer) -> (Vec<u8>, usize) {
    let (mut read, mut offset, mut errors) = (Vec::new(), "-1".to_owned(), 0);
    for attempt in 0.. {
        let response = send_head(layer, &format!("/s/a?offset={offset}")).await;
        assert_eq!(response.status(), StatusCode::OK);
        let head = response.headers().clone();
        let (body, complete) = read_body(response, attempt % 2 == 0).await;
        if !complete {
            errors += 1;
            continue;
        }
        read.extend_from_slice(&body);
        offset = head["stream-next-offset"].to_str().unwrap().to_owned();
        if head.contains_key("stream-closed") {
            break;
        }
    }
    (read, errors)
}

/// Reads a stream as events, from the last id after every error. Every other attempt hoards.
async fn read_by_events(layer: &CometLayer) -> (Vec<u8>, usize) {
    let (mut read, mut offset, mut errors) = (Vec::new(), "-1".to_owned(), 0);
    for attempt in 0.. {
        let response = send_head(layer, &format!("/s/a?offset={offset}&live=sse")).await;
        let (body, complete) = read_body(response, attempt % 2 == 0).await;
        errors += usize::from(!complete);
        let text = String::from_utf8(body).unwrap();
        // What follows the last blank line is not an event.
        let whole = text.rfind("\n\n").map_or("", |end| &text[..end + 2]);
        for event in whole.split_terminator("\n\n") {
            let Some((head, data)) = event.split_once("\ndata:") else { continue };
            if head.starts_with("event: data") {
                read.extend_from_slice(data.as_bytes());
                offset = head.split_once("id:").unwrap().1.to_owned();
            }
        }
        if whole.contains("streamClosed") {
            break;
        }
    }
    (read, errors)
}

#[tokio::test(start_paused = true)]
async fn clients_that_resume_after_an_error_have_every_byte() {
    let comet = Comet::builder().max_reading(MIB).retention(Retention::unbounded()).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    let mut written = Vec::new();
    while written.len() < 6 * MIB {
        // From tiny ones, which are joined, to one that takes several frames.
        let data = random([10, 1_000, 30_000, 200_000][fastrand::usize(..4)]);
        written.extend_from_slice(&data);
        channel.append(data).await.unwrap();
    }
    channel.close().await.unwrap();
    for (read, errors) in [read_by_chunks(&layer).await, read_by_events(&layer).await] {
        println!("{errors} errors");
        assert!(errors > 0, "nothing was cut: {:?}", comet.stats());
        assert!(read == written, "{} of {} bytes", read.len(), written.len());
    }
    assert_eq!(comet.stats().reading_bytes, 0);
}

#[tokio::test]
async fn appends_that_are_lent_to_the_server_stay_within_half_of_the_limit_above_it() {
    let comet = Comet::builder().max_reading(MIB).retention(Retention::default().appends(1)).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    let mut frames = Vec::new();
    for _ in 0..100 {
        channel.append(random(40 * KIB)).await.unwrap();
        let mut body = send_head(&layer, "/s/a?offset=-1").await.into_body();
        // As a server does: the frame outlives the body.
        frames.extend(body.frame().await.and_then(Result::ok));
    }
    channel.append("x").await.unwrap();
    assert!(frames.len() > 20, "{} frames", frames.len());
    assert!(comet.stats().reading_bytes <= MIB + MIB / 2, "{:?}", comet.stats());
    drop(frames);
    assert_eq!(comet.stats().reading_bytes, 0);
}
