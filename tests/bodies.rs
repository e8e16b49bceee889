//! Bodies that are too large, too slow or broken off: refused with an answer that an ordinary client comes to read.

mod support;

use bytes::Bytes;
use http::Request;
use http_body_util::Channel as ChannelBody;
use std::{io, net::SocketAddr, pin::pin, time::Duration};
use support::{Client, Server, Teapot, Untouchable, post, send_with};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, timeout},
};
use tower_comet::{Comet, CometLayer, OutcomeKind, Route};
use tower_layer::Layer;

const BYTES: &str = "application/octet-stream";
const MIB: usize = 1024 * 1024;
/// What is read of a body that is refused, at most.
const DISCARD: usize = 16 * MIB;
const HASTE: Duration = Duration::from_millis(300);

fn layer(comet: &Comet) -> CometLayer {
    let route = || Route::new().read_by_anyone().content_type(BYTES).append_by_anyone().create_by_anyone();
    CometLayer::new(comet.clone())
        .route("/bytes/{channel}", route())
        .route("/hasty/{channel}", route().body_timeout(HASTE))
}

async fn serve() -> (Comet, Server) {
    let comet = Comet::new();
    let server = Server::start(layer(&comet).layer(Teapot)).await;
    (comet, server)
}

/// The head of a request; `framing` is what says how long the body is.
fn head(path: &str, framing: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {BYTES}\r\n{framing}\r\n\r\n")
}

/// A connection on which bytes are written as a test likes, and what is answered on it.
async fn connect(addr: SocketAddr) -> (Answers, OwnedWriteHalf) {
    let (read, write) = TcpStream::connect(addr).await.expect("the server listens").into_split();
    (Answers { read, buffer: String::new() }, write)
}

struct Answers {
    read: OwnedReadHalf,
    buffer: String,
}

impl Answers {
    /// The next answer to its end, and no more.
    async fn next(&mut self) -> String {
        let length = loop {
            if let Some((head, _)) = self.buffer.split_once("\r\n\r\n") {
                let lines = head.lines().filter_map(|line| line.split_once(": "));
                let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
                break head.len() + 4 + lengths.next().map_or(0, |(_, length)| length.parse().expect("a number"));
            }
            self.more().await;
        };
        while self.buffer.len() < length {
            self.more().await;
        }
        let rest = self.buffer.split_off(length);
        std::mem::replace(&mut self.buffer, rest)
    }

    async fn more(&mut self) {
        let mut bytes = Vec::new();
        let got = timeout(Duration::from_secs(20), self.read.read_buf(&mut bytes)).await.expect("an answer");
        assert!(got.expect("no reset") > 0, "the connection was closed after {:?}", self.buffer);
        self.buffer.push_str(std::str::from_utf8(&bytes).expect("ASCII"));
    }

    /// What there is until the connection ends.
    async fn rest(mut self) -> io::Result<String> {
        timeout(Duration::from_secs(20), self.read.read_to_string(&mut self.buffer)).await.expect("an end")?;
        Ok(self.buffer)
    }
}

#[tokio::test(start_paused = true)]
async fn a_length_that_is_too_large_is_known_before_anything_is_read() {
    /// Says how long it is, and may not be looked into.
    #[derive(Debug)]
    struct Long;
    impl http_body::Body for Long {
        type Data = Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            pin!(Untouchable).poll_frame(cx)
        }
        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(MIB as u64 + 1)
        }
    }
    let comet = Comet::new();
    let request = Request::post("/bytes/x").header("content-type", BYTES).header("expect", "100-continue");
    let seen = send_with(&layer(&comet), request.body(Long).unwrap()).await;
    assert_eq!((seen.status.as_u16(), seen.outcome), (413, Some(OutcomeKind::Refused)));
    assert_eq!(seen.header("connection"), Some("close"), "there is a body on it that nobody has asked for");
}

#[tokio::test]
async fn who_expects_a_100_continue_is_told_before_sending_anything() {
    let (comet, server) = serve().await;
    let (answers, mut write) = connect(server.addr).await;
    let framing = "Content-Length: 1048577\r\nExpect: 100-continue";
    write.write_all(head("/bytes/x", framing).as_bytes()).await.expect("read");
    let all = answers.rest().await.expect("an answer, and no reset");
    assert!(all.starts_with("HTTP/1.1 413 ") && !all.contains("100 Continue"), "{all}");

    let (mut answers, mut write) = connect(server.addr).await;
    let framing = "Content-Length: 5\r\nExpect: 100-continue";
    write.write_all(head("/bytes/x", framing).as_bytes()).await.expect("read");
    assert_eq!(answers.next().await, "HTTP/1.1 100 Continue\r\n\r\n");
    write.write_all(b"hello").await.expect("read");
    assert!(answers.next().await.starts_with("HTTP/1.1 204 "));
    assert_eq!(comet.channel("/bytes/x").history(), 1);
}

#[tokio::test]
async fn a_client_that_sends_it_all_first_reads_the_answer_and_goes_on_on_the_same_connection() {
    let (comet, server) = serve().await;
    let body = vec![b'x'; 10 * MIB];
    let chunked = [b"a00000\r\n".as_slice(), &body, b"\r\n0\r\n\r\n"].concat();
    for (framing, body) in
        [(format!("Content-Length: {}", body.len()), &body), ("Transfer-Encoding: chunked".into(), &chunked)]
    {
        let (mut answers, mut write) = connect(server.addr).await;
        for _ in 0..3 {
            write.write_all(head("/bytes/x", &framing).as_bytes()).await.expect("read");
            write.write_all(body).await.expect("read to its end");
            let answer = answers.next().await;
            assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with('}'), "{answer}");
            assert!(!answer.contains("connection"), "{answer}");
        }
        write.write_all(head("/bytes/x", "Content-Length: 5").as_bytes()).await.expect("read");
        write.write_all(b"hello").await.expect("read");
        let answer = answers.next().await;
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    }
    assert_eq!(comet.channel("/bytes/x").history(), 2);
}

#[tokio::test]
async fn hypers_client_reads_the_answer_in_both_versions_of_http() {
    let (comet, server) = serve().await;
    for round in 0..20 {
        for mut client in [Client::http1(server.addr).await, Client::http2(server.addr).await] {
            let seen = client.send(post("/bytes/x", BYTES, vec![b'x'; 10 * MIB])).await;
            let seen = seen.unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert_eq!((seen.status.as_u16(), &*seen.reason()), (413, "too-large"));
        }
    }
    assert_eq!(comet.channels().count(), 0);
}

#[tokio::test]
async fn curl_reads_the_answer() {
    let (_, server) = serve().await;
    let file = std::env::temp_dir().join(format!("tower-comet-{}", std::process::id()));
    std::fs::write(&file, vec![b'x'; 10 * MIB]).expect("a file");
    let mut ran = 0;
    for arguments in [&[][..], &["-H", "Expect:"], &["-H", "Transfer-Encoding: chunked"], &["--http2-prior-knowledge"]]
    {
        let curl = tokio::process::Command::new("curl")
            .args(["-s", "-S", "-H", &format!("Content-Type: {BYTES}"), "-w", " %{http_code}"])
            .args(["--data-binary", &format!("@{}", file.display())])
            .args(arguments)
            .arg(format!("http://{}/bytes/x", server.addr))
            .output()
            .await;
        // Where there is no curl there is nothing to see; `tests/run` has one.
        let Ok(curl) = curl else { break };
        let (out, err) = (String::from_utf8_lossy(&curl.stdout), String::from_utf8_lossy(&curl.stderr));
        assert!(curl.status.success() && out.ends_with("} 413"), "{arguments:?}: {out} {err}");
        ran += 1;
    }
    std::fs::remove_file(&file).expect("the file");
    assert!(ran == 0 || ran == 4);
}

#[tokio::test]
async fn a_body_without_an_end_is_not_read_for_ever() {
    let (_, server) = serve().await;
    let (_answers, mut write) = connect(server.addr).await;
    write.write_all(head("/bytes/x", "Transfer-Encoding: chunked").as_bytes()).await.expect("read");
    let chunk = [b"100000\r\n".as_slice(), &vec![b'x'; MIB], b"\r\n"].concat();
    let (mut sent, began) = (0, Instant::now());
    while write.write_all(&chunk).await.is_ok() {
        sent += MIB;
        assert!(sent < 4 * DISCARD, "{sent} bytes were read");
    }
    // More than that by what the kernel holds in between.
    assert!(sent >= DISCARD, "{sent}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_body_that_stalls_or_trickles_is_408_in_its_time() {
    let (comet, server) = serve().await;
    for (framing, piece) in [("Content-Length: 1000", "x"), ("Transfer-Encoding: chunked", "1\r\nx\r\n")] {
        for trickles in [false, true] {
            let (mut answers, mut write) = connect(server.addr).await;
            write.write_all(head("/hasty/x", framing).as_bytes()).await.expect("read");
            let began = Instant::now();
            let sending = tokio::spawn(async move {
                while write.write_all(piece.as_bytes()).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(if trickles { 20 } else { 60_000 })).await;
                }
            });
            let answer = answers.next().await;
            assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains(r#""reason":"timeout""#), "{answer}");
            assert!(answer.contains("connection: close"), "{answer}");
            let took = began.elapsed();
            assert!(took >= HASTE - Duration::from_millis(5) && took < Duration::from_secs(10), "{took:?}");
            sending.abort();
        }
    }
    assert_eq!(comet.channels().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn ten_seconds_are_the_default() {
    let comet = Comet::new();
    let (_sender, never) = ChannelBody::<Bytes>::new(1);
    let request = Request::post("/bytes/x").header("content-type", BYTES).body(never).unwrap();
    let began = Instant::now();
    let seen = send_with(&layer(&comet), request).await;
    assert_eq!((seen.status.as_u16(), seen.outcome), (408, Some(OutcomeKind::Refused)));
    assert_eq!(began.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_comes_in_pieces_counts_as_a_whole() {
    let comet = Comet::new();
    for (pieces, status) in [(MIB / 1024, 204), (MIB / 1024 + 1, 413)] {
        let (mut sender, body) = ChannelBody::<Bytes>::new(1);
        let sending = tokio::spawn(async move {
            for _ in 0..pieces {
                sender.send_data(Bytes::from(vec![b'x'; 1024])).await.expect("read");
            }
        });
        let request = Request::post("/bytes/x").header("content-type", BYTES).body(body).unwrap();
        assert_eq!(send_with(&layer(&comet), request).await.status.as_u16(), status);
        sending.await.unwrap();
    }
    assert_eq!(comet.channel("/bytes/x").history(), 1);
}

#[tokio::test]
async fn a_body_that_breaks_off_changes_nothing() {
    let (comet, server) = serve().await;
    for (framing, part) in [("Content-Length: 10", "half"), ("Transfer-Encoding: chunked", "4\r\nhalf\r\n")] {
        let (answers, mut write) = connect(server.addr).await;
        write.write_all(head("/bytes/x", framing).as_bytes()).await.expect("read");
        write.write_all(part.as_bytes()).await.expect("read");
        write.shutdown().await.expect("half closed");
        // The server has let go of it by the end of the connection.
        let answer = answers.rest().await.unwrap_or_default();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!((comet.stats().appends, comet.channels().count()), (0, 0));
}
