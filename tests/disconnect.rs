//! Clients that go, stall or dawdle: nothing of theirs stays, and nobody else notices.

mod support;

use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use support::{BoxError, Client, Seen, Server, Teapot, get, post, read_until, soon, until, write};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tower::{Layer, Service, service_fn};
use tower_comet::{Access, Comet, CometLayer, Retention, Route};

/// Longer than any of these tests: what ends earlier was not a time-out.
const WAIT: Duration = Duration::from_secs(50);

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone().max_wait(WAIT))
}

async fn serve(comet: &Comet) -> Server {
    Server::start(layer(comet).layer(Teapot)).await
}

/// A parked request that somebody else makes: it stays, whatever happens to the others.
async fn bystander(server: &Server, comet: &Comet) -> JoinHandle<Result<Seen, BoxError>> {
    let waiting = tokio::spawn(Client::http1(server.addr).await.send(get("/events/bystander")));
    until("the bystander is parked", || comet.channel("/events/bystander").waiters() == 1).await;
    waiting
}

async fn unharmed(comet: &Comet, bystander: JoinHandle<Result<Seen, BoxError>>) {
    comet.channel("/events/bystander").publish("for you").await.unwrap();
    assert_eq!(soon(bystander).await.unwrap().unwrap().text(), r#"["for you"]"#);
}

#[tokio::test]
async fn a_wait_ends_when_its_client_goes_in_any_way_there_is() {
    #[derive(Clone, Copy, Debug)]
    enum Gone {
        Http1Closed,
        Http1HalfClosed,
        Http2Reset,
        Http2Lost,
    }
    let comet = Comet::new();
    let server = serve(&comet).await;
    let bystander = bystander(&server, &comet).await;
    for uri in ["/events/news", "/events/news?offset=now&live=sse"] {
        for gone in [Gone::Http1Closed, Gone::Http1HalfClosed, Gone::Http2Reset, Gone::Http2Lost] {
            let what = format!("{uri}, {gone:?}");
            let news = comet.channel("/events/news");
            match gone {
                Gone::Http1Closed | Gone::Http1HalfClosed => {
                    let mut stream = server.connect().await;
                    write(&mut stream, format!("GET {uri} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
                    until("it is parked", || news.waiters() == 1).await;
                    if let Gone::Http1HalfClosed = gone {
                        stream.shutdown().await.unwrap();
                        until(&what, || news.waiters() == 0).await;
                    }
                    drop(stream);
                }
                Gone::Http2Reset => {
                    let mut client = Client::http2(server.addr).await;
                    let stays = tokio::spawn(client.send(get("/events/news")));
                    let goes = tokio::spawn(client.send(get(uri)));
                    until("both are parked", || news.waiters() == 2).await;
                    goes.abort();
                    until(&what, || news.waiters() == 1).await;
                    news.publish("one stream of many").await.unwrap();
                    assert_eq!(soon(stays).await.unwrap().unwrap().text(), r#"["one stream of many"]"#);
                }
                Gone::Http2Lost => {
                    // The client itself knows nothing of it: its packets go nowhere.
                    let (near, mut far) = tokio::io::duplex(64 * 1024);
                    let mut stream = server.connect().await;
                    let wire = tokio::spawn(async move { copy_bidirectional(&mut far, &mut stream).await });
                    let (client, connection) =
                        http2::handshake(TokioExecutor::new(), TokioIo::new(near)).await.unwrap();
                    tokio::spawn(connection);
                    let mut client = Client::Http2(client);
                    let waits: Vec<_> = (0..10).map(|_| tokio::spawn(client.send(get(uri)))).collect();
                    until("all are parked", || news.waiters() == 10).await;
                    wire.abort();
                    until(&what, || news.waiters() == 0).await;
                    drop(waits);
                }
            }
            until(&what, || news.waiters() == 0).await;
        }
    }
    assert_eq!(comet.waiters(), 1, "the bystander");
    unharmed(&comet, bystander).await;
}

/// hyper reads no further than the next request, so it does not see the end behind it. This is why every wait is finite.
#[tokio::test]
async fn a_request_that_is_pipelined_behind_a_wait_hides_that_the_client_is_gone() {
    let comet = Comet::new();
    let layer = CometLayer::new(comet.clone())
        .route("/events/{channel}", Route::new().read_by_anyone().max_wait(Duration::from_secs(1)));
    let server = Server::start(layer.layer(Teapot)).await;
    let mut stream = server.connect().await;
    write(&mut stream, "GET /events/news HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2)).await;
    until("it is parked", || comet.waiters() == 1).await;
    drop(stream);
    // It would never time out if hyper saw that the client is gone: if it does now, say so in the documentation. And nobody is there
    // to be waited for once more.
    until("its time is over", || comet.stats().timed_out == 1).await;
    until("nothing is left", || comet.waiters() == 0).await;
    assert_eq!(comet.channels().count(), 0);
}

/// The body of a `GET` has no meaning. The layer reads it during the wait, because hyper stops reading the connection
/// if the body is not read, and would not notice the disconnect.
#[tokio::test]
async fn the_body_of_a_get_that_waits_does_not_hide_a_disconnect() {
    let comet = Comet::new();
    let route = Route::new().read_by_anyone().max_wait(WAIT).body_timeout(WAIT);
    let server = Server::start(CometLayer::new(comet.clone()).route("/events/{channel}", route).layer(Teapot)).await;
    for (framing, later) in [
        ("Content-Length: 5\r\n\r\n", ""),
        ("Content-Length: 5\r\n\r\nab", ""),
        ("Content-Length: 5\r\n\r\nabcde", ""),
        ("Content-Length: 5\r\n\r\n", "abcde"),
        ("Content-Length: 5\r\nExpect: 100-continue\r\n\r\n", ""),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", ""),
        ("Transfer-Encoding: chunked\r\n\r\n", "5\r\nabcde\r\n0\r\n\r\n"),
    ] {
        for reset in [false, true] {
            let what = format!("{framing:?}, then {later:?}, reset: {reset}");
            let mut stream = server.connect().await;
            write(&mut stream, format!("GET /events/news HTTP/1.1\r\nHost: x\r\n{framing}")).await;
            until("it is parked", || comet.waiters() == 1).await;
            write(&mut stream, later).await;
            // hyper has read all of it.
            sleep(Duration::from_millis(20)).await;
            if reset {
                stream.set_zero_linger().unwrap();
            }
            let left = Instant::now();
            drop(stream);
            until(&what, || comet.waiters() == 0).await;
            assert!(left.elapsed() < WAIT / 2, "{what}: it timed out");
        }
    }
    assert_eq!((comet.stats().timed_out, comet.channels().count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_parked_future_holds_neither_the_service_nor_the_request_and_dropped_leaves_nothing() {
    let comet = Comet::new();
    let guarded = Route::new().read_by(|_: Access| std::future::ready(Ok(())));
    let layer = layer(&comet).route("/guarded/{channel}", guarded);
    for uri in ["/events/news", "/events/news?offset=now&live=long-poll", "/events/a%20name", "/guarded/news"] {
        let (in_service, in_request) = (Arc::new(()), Arc::new(()));
        let held = in_service.clone();
        let inner = service_fn(move |_| {
            let _held = &held;
            std::future::ready(Ok::<_, BoxError>(http::Response::new(Full::<bytes::Bytes>::default())))
        });
        let mut service = layer.layer(inner);
        let request = Request::get(uri).extension(in_request.clone()).body(Full::<bytes::Bytes>::default());
        let mut parked = Box::pin(service.call(request.unwrap()));
        assert!(timeout(Duration::from_secs(1), &mut parked).await.is_err());
        assert_eq!((comet.waiters(), comet.channels().count()), (1, 1));
        drop(service);
        assert_eq!((Arc::strong_count(&in_service), Arc::strong_count(&in_request)), (1, 1), "{uri}");
        drop(parked);
        assert_eq!((comet.waiters(), comet.channels().count()), (0, 0), "{uri}");
    }
}

/// A client with the smallest buffer that there is, so that the server's answer does not fit into the system's.
async fn connect_narrowly(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(server.addr).await.unwrap()
}

#[tokio::test]
async fn a_client_that_stops_reading_in_the_middle_of_an_answer_holds_up_nobody() {
    const SIZE: usize = 32 * 1024 * 1024;
    let comet = Comet::builder().max_append(SIZE).retention(Retention::default().bytes(2 * SIZE)).build();
    let server = serve(&comet).await;
    let large = comet.channel("/events/large");
    large.create("text/plain").await.unwrap();
    large.append("0123456789abcdef".repeat(SIZE / 16)).await.unwrap();
    let bystander = bystander(&server, &comet).await;

    let mut stalled = Vec::new();
    for _ in 0..3 {
        let mut stream = connect_narrowly(&server).await;
        write(&mut stream, "GET /events/large?offset=-1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.contains(&format!("content-length: {SIZE}\r\n")), "{head}");
        stalled.push(stream);
    }

    // Whoever waits is answered, whoever publishes does not wait, and others read the same answer whole.
    let mut client = Client::http1(server.addr).await;
    for i in 0..10 {
        let tail = large.tail();
        let uri = format!("/events/large?offset={tail}&live=long-poll");
        let waiting = tokio::spawn(client.send(get(&uri)));
        until("it is parked", || large.waiters() == 1).await;
        let began = Instant::now();
        large.append("more").await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1), "{i}: {:?}", began.elapsed());
        assert_eq!(soon(waiting).await.unwrap().unwrap().text(), "more", "{i}");
    }
    let seen = soon(client.send(get("/events/large?offset=-1"))).await.unwrap();
    assert!(seen.body.len() >= SIZE, "{}", seen.body.len());

    // One goes on in the end, and has missed nothing; the others are gone.
    let mut last = stalled.pop().unwrap();
    drop(stalled);
    let mut rest = vec![0; SIZE];
    soon(last.read_exact(&mut rest)).await.unwrap();
    assert!(rest.chunks(16).all(|chunk| chunk == b"0123456789abcdef"));
    unharmed(&comet, bystander).await;
}

/// It holds a place in the log, and one piece of it; when the log has moved on past that, its stream ends.
#[tokio::test]
async fn an_event_stream_that_nobody_reads_holds_no_messages_and_ends() {
    let comet = Comet::builder().retention(Retention::default().appends(10)).build();
    let server = serve(&comet).await;
    let bystander = bystander(&server, &comet).await;
    let news = comet.channel("/events/news");
    let mut stream = connect_narrowly(&server).await;
    write(&mut stream, "GET /events/news?offset=now&live=sse HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    read_until(&mut stream, "\n\n\r\n").await;

    // More than there are buffers in between.
    let text = "x".repeat(100_000);
    for i in 0..300 {
        news.publish((i, &text)).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(news.history(), 10);
    assert!(comet.stats().history_bytes < 2_000_000, "{}", comet.stats().history_bytes);
    assert_eq!(comet.waiters(), 2, "hyper asks for no more while nobody takes what there is");

    // Who reads on gets the first of them, whole and in order, and then an end instead of a gap.
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    let rest = String::from_utf8(rest).unwrap();
    let rest = without_chunks(&rest).expect("the body is complete");
    let numbers = rest.split('[').filter_map(|message| message.split_once(",\"x")?.0.parse().ok());
    let numbers: Vec<usize> = numbers.collect();
    assert!(numbers.iter().copied().eq(0..numbers.len()) && (1..300).contains(&numbers.len()), "{numbers:?}");
    assert_eq!(rest.matches(&format!("\"{text}\"")).count(), numbers.len());
    until("only the bystander is left", || comet.waiters() == 1).await;
    unharmed(&comet, bystander).await;
}

/// A body out of its chunks (RFC 9112, section 7.1), if it is there to its end: an event may be in several.
fn without_chunks(mut text: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, rest) = text.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        body.push_str(rest.get(..size)?);
        text = rest[size..].strip_prefix("\r\n")?;
        if size == 0 {
            return text.is_empty().then_some(body);
        }
    }
}

#[tokio::test]
async fn a_body_that_dribbles_in_is_cut_off_after_its_time() {
    let comet = Comet::new();
    let route = Route::new().read_by_anyone().append_by_anyone().body_timeout(Duration::from_millis(500));
    let layer = CometLayer::new(comet.clone()).route("/events/{channel}", route);
    let server = Server::start(layer.layer(Teapot)).await;
    for framing in ["Content-Length: 1000", "Transfer-Encoding: chunked"] {
        let mut stream = server.connect().await;
        let head =
            format!("POST /events/news HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}\r\n\r\n");
        write(&mut stream, head).await;
        let (mut read, mut send) = stream.into_split();
        // Each byte comes well within the time; all of them never would.
        let dribble = tokio::spawn(async move {
            let piece: &[u8] = if framing.starts_with('C') { b"1" } else { b"1\r\n1\r\n" };
            while send.write_all(piece).await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        });
        let began = Instant::now();
        // Others append meanwhile.
        let mut client = Client::http1(server.addr).await;
        let seen = soon(client.send(post("/events/news", "application/json", "1"))).await.unwrap();
        assert_eq!(seen.status, StatusCode::NO_CONTENT);

        let mut answer = Vec::new();
        soon(read.read_to_end(&mut answer)).await.ok();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{framing}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{framing}: {answer}");
        assert!(answer.contains(r#""reason":"timeout""#), "{framing}: {answer}");
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(10), "{took:?}");
        soon(dribble).await.unwrap();
    }
    assert_eq!(comet.channel("/events/news").history(), 2, "of theirs, nothing");
}

#[tokio::test]
async fn an_append_that_breaks_off_appends_nothing() {
    let comet = Comet::new();
    let layer =
        CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone().append_by_anyone());
    let server = Server::start(layer.layer(Teapot)).await;
    let news = comet.channel("/events/news");
    for i in 0..20 {
        let mut stream = server.connect().await;
        let head = "POST /events/news HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
        // JSON as far as it goes: only the length says that there was to be more.
        write(&mut stream, format!("{head}Content-Length: 10\r\n\r\n[1]")).await;
        if i % 2 == 0 {
            stream.shutdown().await.unwrap();
        }
        drop(stream);
    }
    let mut client = Client::http1(server.addr).await;
    let seen = soon(client.send(post("/events/news", "application/json", "[2]"))).await.unwrap();
    assert_eq!(seen.status, StatusCode::NO_CONTENT);
    // All of them have ended then.
    drop(client);
    soon(server.shut_down()).await;
    assert_eq!(news.history(), 1);
}
