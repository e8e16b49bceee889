//! Bare hyper 1, over HTTP/1.1 and HTTP/2.

mod support;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{
    body::Incoming,
    client::conn::http2::SendRequest,
    ext::Protocol,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::{Future, Ready, ready},
    marker::PhantomData,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll},
};
use support::{Client, Seen, Server, Teapot, get, read_until, request, settle, soon, until, write};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::{Layer, Service, ServiceExt};
use tower_comet::{Comet, CometLayer, Route};

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone())
}

/// An inner service that is not `Clone`, not `Send` and not `'static`, and whose error is its own.
struct Bound<'a> {
    calls: &'a Cell<usize>,
    nowhere_else: PhantomData<Rc<()>>,
}

#[derive(Debug, PartialEq)]
struct Mine(&'static str);

impl std::fmt::Display for Mine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Mine {}

impl<B> Service<Request<B>> for Bound<'_> {
    type Response = Response<Full<Bytes>>;
    type Error = Mine;
    type Future = Ready<Result<Self::Response, Mine>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Mine>> {
        Poll::Ready(if self.calls.get() < 3 { Ok(()) } else { Err(Mine("worn out")) })
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.calls.set(self.calls.get() + 1);
        ready(match request.uri().path() {
            "/fails" => Err(Mine("as it is")),
            _ => Ok(Response::new(Full::from("inner"))),
        })
    }
}

/// [`ServiceExt::ready`], of a service that takes requests with many kinds of body.
async fn on_ready<S: Service<Request<Full<Bytes>>>>(service: &mut S) -> Result<&mut S, S::Error> {
    service.ready().await
}

#[tokio::test(start_paused = true)]
async fn the_inner_service_is_asked_for_nothing_and_its_errors_are_its_own() {
    let comet = Comet::new();
    let calls = Cell::new(0);
    let mut service = layer(&comet).layer(Bound { calls: &calls, nowhere_else: PhantomData });

    let response = on_ready(&mut service).await.unwrap().call(get("/")).await.unwrap();
    assert_eq!(Seen::read(response).await.unwrap().text(), "inner");
    assert_eq!(on_ready(&mut service).await.unwrap().call(get("/fails")).await.unwrap_err(), Mine("as it is"));

    // The service is free again while a request waits, and the wait is none of its calls.
    let waiting = on_ready(&mut service).await.unwrap().call(get("/events/news"));
    let news = comet.channel("/events/news");
    let publish = async {
        settle().await;
        on_ready(&mut service).await.unwrap().call(get("/")).await.unwrap();
        assert_eq!(comet.waiters(), 1);
        news.publish("new").await.unwrap();
    };
    let (response, ()) = tokio::join!(waiting, publish);
    assert_eq!(Seen::read(response.unwrap()).await.unwrap().text(), r#"["new"]"#);
    assert_eq!(calls.get(), 3);

    // Not ready is not ready, for waits too.
    assert_eq!(on_ready(&mut service).await.err(), Some(Mine("worn out")));
}

#[tokio::test]
async fn a_service_bound_to_its_stack_frame_serves_a_connection() {
    let comet = Comet::new();
    let calls = Cell::new(0);
    let service = RefCell::new(layer(&comet).layer(Bound { calls: &calls, nowhere_else: PhantomData }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();

    let server = async {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(|request| service.borrow_mut().call(request));
        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
    };
    let client = async {
        let mut client = Client::http1(addr).await;
        assert_eq!(client.send(get("/")).await.unwrap().text(), "inner");
        let publish = async {
            until("the wait is parked", || comet.waiters() == 1).await;
            comet.channel("/events/news").publish("new").await.unwrap();
        };
        let (seen, ()) = tokio::join!(client.send(get("/events/news")), publish);
        assert_eq!(seen.unwrap().text(), r#"["new"]"#);
        // hyper ends the connection on an error of the service's; that it is the service's, it says.
        assert!(client.send(get("/fails")).await.is_err());
    };
    let (ended, ()) = soon(async { tokio::join!(server, client) }).await;
    let error = ended.unwrap_err();
    assert_eq!(std::error::Error::source(&error).and_then(|source| source.downcast_ref()), Some(&Mine("as it is")));
    assert_eq!(calls.get(), 2);
}

/// Serves one kind of connection, and says where.
async fn serve<F>(connection: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output: Send> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream));
        }
    });
    addr
}

#[tokio::test]
async fn every_kind_of_connection_waits_and_passes_through() {
    let comet = Comet::new();
    let news = comet.channel("/events/news");
    let service = TowerToHyperService::new(layer(&comet).layer(Teapot));

    let inner = service.clone();
    let only_http1 = serve(move |stream| {
        let inner = inner.clone();
        http1::Builder::new().serve_connection(TokioIo::new(stream), inner)
    })
    .await;
    let inner = service.clone();
    let only_http2 = serve(move |stream| {
        let inner = inner.clone();
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), inner)
    })
    .await;
    let either = serve(move |stream| {
        let connection = auto::Builder::new(TokioExecutor::new());
        connection.serve_connection(TokioIo::new(stream), service.clone()).into_owned()
    })
    .await;

    for (what, mut client) in [
        ("HTTP/1.1", Client::http1(only_http1).await),
        ("HTTP/2, prior knowledge", Client::http2(only_http2).await),
        ("HTTP/1.1, of either", Client::http1(either).await),
        ("HTTP/2, of either", Client::http2(either).await),
    ] {
        let seen = soon(client.send(get("/"))).await.unwrap();
        assert_eq!((seen.status, seen.text()), (StatusCode::IM_A_TEAPOT, "inner"), "{what}");

        let waiting = tokio::spawn(client.send(get("/events/news")));
        until("the wait is parked", || news.waiters() == 1).await;
        let tail = news.publish(what).await.unwrap();
        let seen = soon(waiting).await.unwrap().unwrap();
        assert_eq!((seen.json(), seen.offset()), (serde_json::json!([what]), tail));

        let uri = format!("/events/news?offset={tail}&live=long-poll&timeout=0.05");
        let seen = soon(client.send(get(&uri))).await.unwrap();
        assert_eq!((seen.status, seen.offset()), (StatusCode::NO_CONTENT, tail), "{what}");
        let seen = soon(client.send(request(http::Method::HEAD, "/events/news"))).await.unwrap();
        assert_eq!((seen.status, seen.offset(), seen.body.len()), (StatusCode::OK, tail, 0), "{what}");
    }
}

#[tokio::test]
async fn a_thousand_waits_share_one_http2_connection() {
    const WAITS: usize = 1_000;
    let comet = Comet::new();
    let server = Server::start(layer(&comet).layer(Teapot)).await;
    let mut client = Client::http2(server.addr).await;
    // A hundred channels, so that one publish is for ten of them.
    let waits: Vec<_> = (0..WAITS).map(|i| tokio::spawn(client.send(get(&format!("/events/{}", i % 100))))).collect();
    until("all are parked", || comet.waiters() == WAITS).await;
    assert_eq!(comet.channel("/events/7").waiters(), 10);

    let seen = soon(client.send(get("/"))).await.unwrap();
    assert_eq!((seen.status, comet.waiters()), (StatusCode::IM_A_TEAPOT, WAITS), "others get through");

    comet.channel("/events/7").publish(7).await.unwrap();
    until("ten are answered", || comet.waiters() == WAITS - 10).await;
    assert_eq!(comet.broadcast("/events/{channel}", "all").await.unwrap(), 100);
    for (i, wait) in waits.into_iter().enumerate() {
        let seen = soon(wait).await.unwrap().unwrap();
        assert_eq!(seen.text(), if i % 100 == 7 { "[7]" } else { r#"["all"]"# }, "{i}");
    }
}

/// hyper's default of `max_concurrent_streams`: for who parks requests, a number to raise.
#[tokio::test]
async fn two_hundred_waits_fill_an_http2_connection_that_has_hypers_defaults() {
    let comet = Comet::new();
    let service = TowerToHyperService::new(layer(&comet).layer(Teapot));
    let connection = http2::Builder::new(TokioExecutor::new());
    let addr = serve(move |stream| connection.clone().serve_connection(TokioIo::new(stream), service.clone())).await;

    let mut client = Client::http2(addr).await;
    // One answer, and the client knows the server's settings.
    soon(client.send(get("/"))).await.unwrap();
    let waits: Vec<_> = (0..200).map(|_| tokio::spawn(client.send(get("/events/news")))).collect();
    until("all are parked", || comet.waiters() == 200).await;
    let mut stuck = tokio::spawn(client.send(get("/")));
    let in_time = tokio::time::timeout(std::time::Duration::from_millis(200), &mut stuck).await;
    assert!(in_time.is_err(), "{in_time:?}");

    comet.channel("/events/news").publish("new").await.unwrap();
    assert_eq!(soon(stuck).await.unwrap().unwrap().text(), "inner");
    for wait in waits {
        assert_eq!(soon(wait).await.unwrap().unwrap().text(), r#"["new"]"#);
    }
}

#[tokio::test]
async fn requests_that_are_pipelined_behind_a_wait_are_answered_after_it_in_order() {
    let comet = Comet::new();
    let news = comet.channel("/events/news");
    let server = Server::start(layer(&comet).layer(Teapot)).await;
    let mut stream = server.connect().await;
    let line = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    let all = [line("/events/news"), line("/first"), line("/events/news?offset=-1"), line("/last")].concat();
    write(&mut stream, all).await;

    until("the wait is parked", || news.waiters() == 1).await;
    let early = tokio::time::timeout(std::time::Duration::from_millis(50), stream.read_u8()).await;
    assert!(early.is_err(), "nothing comes before it: {early:?}");
    news.publish("new").await.unwrap();
    for (status, body) in [("200", r#"["new"]"#), ("418", "inner"), ("200", r#"["new"]"#), ("418", "inner")] {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        assert_eq!(read_until(&mut stream, body).await, body);
    }
}

/// An extended CONNECT (RFC 8441) has a path, and may be one of ours: it is the application's all the same.
#[tokio::test]
async fn a_tunnel_through_http2_goes_inward_even_on_the_path_of_a_route() {
    async fn tunnel(mut request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
        assert_eq!(request.extensions().get::<Protocol>().map(Protocol::as_str), Some("echo"));
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.expect("a tunnel")));
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        Ok(Response::new(Empty::new()))
    }
    let comet = Comet::new();
    let server = Server::start(layer(&comet).layer(tower::service_fn(tunnel))).await;
    let stream = server.connect().await;
    let (mut client, connection): (SendRequest<Empty<Bytes>>, _) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);

    // The server allows it once its settings are here: an answer comes after them.
    let first = Request::get("http://x/events/news?offset=-1").body(Empty::new()).unwrap();
    let first = soon(client.send_request(first)).await.unwrap();
    assert_eq!(soon(first.into_body().collect()).await.unwrap().to_bytes(), "[]");

    let connect =
        Request::connect("http://x/events/news").version(Version::HTTP_2).extension(Protocol::from_static("echo"));
    let response = soon(client.send_request(connect.body(Empty::new()).unwrap())).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut tunnel = TokioIo::new(soon(hyper::upgrade::on(response)).await.unwrap());
    let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    tunnel.write_all(&bytes).await.unwrap();
    let mut came = vec![0; bytes.len()];
    soon(tunnel.read_exact(&mut came)).await.unwrap();
    assert!(came == bytes, "byte for byte");
}
