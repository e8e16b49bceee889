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
use std::{error::Error, time::Duration};
use support::{Seen, Server, Teapot, get, open_to_all, send, soon, until};
use tokio::net::TcpStream;
use tower::{ServiceBuilder, ServiceExt};
use tower_comet::{BodyError, Comet, CometLayer, Retention};
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
    // Two more of the same kind, and all of those are cut.
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

#[tokio::test]
async fn large_reads_are_refused_while_the_server_holds_all_that_the_limit_allows() {
    let comet = Comet::builder().max_reading(200 * KIB).build();
    let layer = layer(&comet);
    let channel = comet.channel("/s/a");
    channel.create("application/octet-stream").await.unwrap();
    channel.append(random(MIB)).await.unwrap();
    let mut body = layer.layer(Teapot).oneshot(get("/s/a?offset=-1")).await.unwrap().into_body();
    let mut frames = Vec::new();
    let error = loop {
        match body.frame().await.expect("it is larger than the limit") {
            Ok(frame) => frames.push(frame.into_data().unwrap()),
            Err(error) => break error,
        }
    };
    assert!(error.is_cut(), "{error}");
    assert!(frames[0].len() > 10 * frames.last().unwrap().len(), "frames shrink");
    drop(body);

    let refused = send(&layer, get("/s/a?offset=-1")).await;
    assert_eq!((refused.status, refused.reason().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "full"));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let tail = format!("/s/a?offset={}", channel.tail());
    assert_eq!(send(&layer, get(&tail)).await.status, StatusCode::OK, "small responses are not refused");
    let refused = send(&layer, get("/s/a?offset=-1&live=long-poll")).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(comet.stats().delivered, 0);

    drop(frames);
    assert_eq!(comet.stats().reading_bytes, 0);
    let mut body = layer.layer(Teapot).oneshot(get("/s/a?offset=-1")).await.unwrap().into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame.unwrap().data_ref().unwrap().len();
    }
    assert_eq!(read, MIB);
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
    assert_eq!(comet.stats().reading_bytes, frame.data_ref().unwrap().len(), "the frame is the server's");
    drop((head, frame));
    assert_eq!(comet.stats().reading_bytes, 0);
}

/// Reads a stream by ordinary reads to its end, slowly, and again from the same offset after every error.
async fn read_by_chunks(server: &Server, http2: bool) -> (Vec<u8>, usize) {
    let (mut read, mut offset, mut errors) = (Vec::new(), "-1".to_owned(), 0);
    loop {
        let response = match begin(server, http2, get(&format!("/s/a?offset={offset}"))).await {
            Ok(response) if response.status() != StatusCode::SERVICE_UNAVAILABLE => response,
            // A response that is cut at its beginning is reset before its head is sent, on HTTP/2.
            _ => {
                errors += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        assert_eq!(response.status(), StatusCode::OK);
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..100))).await;
        let seen = match Seen::read(response).await {
            Ok(seen) => seen,
            Err(_) => {
                errors += 1;
                continue;
            }
        };
        read.extend_from_slice(&seen.body);
        offset = seen.offset().to_string();
        if seen.header("stream-closed").is_some() {
            return (read, errors);
        }
    }
}

/// Reads a stream as events to its end, slowly, and again from the last id after every error.
async fn read_by_events(server: &Server, http2: bool) -> (Vec<u8>, usize) {
    let (mut read, mut offset, mut errors) = (Vec::new(), "-1".to_owned(), 0);
    loop {
        let Ok(response) = begin(server, http2, get(&format!("/s/a?offset={offset}&live=sse"))).await else {
            errors += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut body = response.into_body();
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..100))).await;
        let mut text = String::new();
        let ended = loop {
            match body.frame().await {
                None => break true,
                Some(Ok(frame)) => text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap()),
                Some(Err(_)) => break false,
            }
        };
        errors += usize::from(!ended);
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
            return (read, errors);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_resume_after_an_error_have_every_byte() {
    const BYTES: usize = 4 * MIB;
    let comet = Comet::builder().max_reading(600 * KIB).retention(Retention::unbounded()).build();
    let server = Server::start(layer(&comet).layer(Teapot)).await;
    let channel = comet.channel("/s/a");
    channel.create("text/plain").await.unwrap();
    let mut written = Vec::new();
    while written.len() < BYTES {
        // From tiny ones, which are joined, to one that takes several frames.
        let data = random([10, 1_000, 30_000, 200_000][fastrand::usize(..4)]);
        written.extend_from_slice(&data);
        channel.append(data).await.unwrap();
    }
    channel.close().await.unwrap();

    // Clients that never read, and use up the limit.
    let mut stopped = Vec::new();
    for n in 0..6 {
        let uri = if n % 2 == 0 { "/s/a?offset=-1&live=sse" } else { "/s/a?offset=-1" };
        stopped.extend(begin(&server, n % 3 == 0, get(uri)).await);
    }
    let reading = async {
        let (a, b, c, d) = tokio::join!(
            read_by_chunks(&server, false),
            read_by_chunks(&server, true),
            read_by_events(&server, false),
            read_by_events(&server, true),
        );
        [a, b, c, d]
    };
    let leave = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let errors = comet.stats().cut_responses;
        drop(stopped);
        errors
    };
    let (all, cut) = tokio::join!(tokio::time::timeout(Duration::from_secs(60), reading), leave);
    for (read, errors) in all.expect("they come to the end") {
        println!("{errors} errors");
        assert!(read == written, "{} of {} bytes", read.len(), written.len());
    }
    println!("{cut} responses were cut");
    assert!(cut > 0, "the limit was not reached: {:?}", comet.stats());
    until("nothing is held", || comet.stats().reading_bytes == 0).await;
}
