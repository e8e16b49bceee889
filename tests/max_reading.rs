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
    until("half of the limit is in use", || comet.stats().reading_bytes > LIMIT / 2).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    println!("{:?}", comet.stats());
    assert!(comet.stats().reading_bytes <= LIMIT, "{:?}", comet.stats());

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
