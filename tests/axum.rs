//! axum 0.8: where in a router the layer is seen, and what goes through it untouched.

mod support;

use axum::{
    Router,
    body::Body,
    extract::{
        Request,
        ws::{WebSocket, WebSocketUpgrade},
    },
    http::{HeaderMap, Method, StatusCode},
    middleware::ResponseAxumBodyLayer,
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use bytes::Bytes;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Empty, Full, channel::Channel};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{convert::Infallible, net::SocketAddr};
use support::{Client, Seen, read_until, request, soon, until, write};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};
use tower::{Service, ServiceBuilder, ServiceExt, make::Shared};
use tower_comet::{Comet, CometLayer, OutcomeKind, Route};
use tower_layer::Layer;

/// The application, wherever it answers.
async fn own() -> (StatusCode, &'static str) {
    (StatusCode::IM_A_TEAPOT, "the application's own")
}

/// Every channel holds its own name, so that an answer says which path the layer has seen.
async fn layer(comet: &Comet) -> CometLayer {
    for name in ["/events/a", "/api/events/a"] {
        comet.channel(name).publish(name).await.unwrap();
    }
    let layer = CometLayer::new(comet.clone());
    layer
        .route("/events/{channel}", Route::new().read_by_anyone())
        .route("/api/events/{channel}", Route::new().read_by_anyone())
}

async fn serve<S>(app: S) -> SocketAddr
where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Shared::new(app)).await });
    addr
}

#[tokio::test]
async fn where_in_a_router_the_layer_is_seen() {
    /// What becomes of `GET …?offset=-1`.
    #[derive(Debug, PartialEq)]
    enum Answer {
        /// The layer's, and the path that it has seen.
        Channel(String),
        /// The application's: the layer is on another way.
        Bypassed,
        /// axum's: nobody was asked.
        NotFound,
    }
    use Answer::{Bypassed, Channel, NotFound};

    let comet = Comet::new();
    let comet = layer(&comet).await;
    let leaf = || Router::new().route("/", get(own));
    let channel = |path: &str| Channel(path.to_owned());

    for (what, app, path, answer) in [
        ("leaf.layer(comet)", leaf().layer(comet.clone()), "/events/a", channel("/events/a")),
        ("leaf.route_layer(comet)", leaf().route_layer(comet.clone()), "/events/a", NotFound),
        ("leaf.layer(comet).fallback(f)", leaf().layer(comet.clone()).fallback(own), "/events/a", Bypassed),
        ("leaf.fallback(f).layer(comet)", leaf().fallback(own).layer(comet.clone()), "/events/a", channel("/events/a")),
        (
            "leaf.layer(comet).route(..)",
            leaf().layer(comet.clone()).route("/events/{x}", get(own)),
            "/events/a",
            Bypassed,
        ),
        (
            "leaf.route(..).layer(comet)",
            leaf().route("/events/{x}", get(own)).layer(comet.clone()),
            "/events/a",
            channel("/events/a"),
        ),
        ("nest(leaf.layer(comet))", Router::new().nest("/api", leaf().layer(comet.clone())), "/api/events/a", NotFound),
        (
            "nest(leaf.fallback(f).layer(comet))",
            Router::new().nest("/api", leaf().fallback(own).layer(comet.clone())),
            "/api/events/a",
            channel("/events/a"),
        ),
        (
            "nest_service(leaf.layer(comet))",
            Router::new().nest_service("/api", leaf().layer(comet.clone())),
            "/api/events/a",
            channel("/events/a"),
        ),
        (
            "nest(leaf).layer(comet)",
            Router::new().nest("/api", leaf()).layer(comet.clone()),
            "/api/events/a",
            channel("/api/events/a"),
        ),
        (
            "leaf.layer(comet).merge(other)",
            leaf().layer(comet.clone()).merge(Router::new().route("/other", get(own))),
            "/events/a",
            NotFound,
        ),
        (
            "merge(leaf.layer(comet))",
            Router::new().merge(leaf().layer(comet.clone())),
            "/events/a",
            channel("/events/a"),
        ),
        (
            "route_service(comet.layer(..))",
            Router::new().route_service("/events/{channel}", comet.layer(any(own))),
            "/events/a",
            channel("/events/a"),
        ),
    ] {
        // The table holds whether the router is called or served.
        let get = || Request::get(format!("{path}?offset=-1")).body(Body::empty()).unwrap();
        let called = Seen::read(app.clone().oneshot(get()).await.unwrap()).await.unwrap();
        let addr = serve(app).await;
        let served = Client::http1(addr).await.send(support::get(&get().uri().to_string())).await.unwrap();
        assert_eq!(called.outcome.is_some(), matches!(answer, Channel(_)), "{what}: {called:?}");
        for seen in [called, served] {
            let got = match seen.status.as_u16() {
                200 => Channel(seen.json()[0].as_str().unwrap().to_owned()),
                418 => Bypassed,
                404 => NotFound,
                _ => panic!("{what}: {seen:?}"),
            };
            assert_eq!(got, answer, "{what}");
        }
    }
}

#[tokio::test]
async fn a_whole_router_is_served_inside_of_the_layer() {
    let comet = Comet::new();
    let app = ServiceBuilder::new()
        // `axum::serve` takes axum's body and no other.
        .layer(ResponseAxumBodyLayer)
        .layer(layer(&comet).await)
        .service(Router::new().route("/", get(own)).fallback(own));
    let addr = serve(app).await;

    let mut client = Client::http1(addr).await;
    let seen = soon(client.send(support::get("/events/a?offset=-1"))).await.unwrap();
    assert_eq!((seen.status.as_u16(), seen.text()), (200, r#"["/events/a"]"#));
    let seen = soon(client.send(support::get("/anything/else"))).await.unwrap();
    assert_eq!((seen.status.as_u16(), seen.text()), (418, "the application's own"));

    let waiting = tokio::spawn(client.send(support::get("/events/a")));
    until("the wait is parked", || comet.waiters() == 1).await;
    comet.channel("/events/a").publish("new").await.unwrap();
    assert_eq!(soon(waiting).await.unwrap().unwrap().text(), r#"["new"]"#);
}

#[tokio::test]
async fn methods_that_the_route_does_not_serve_are_the_applications() {
    let comet = Comet::new();
    let room = comet.channel("/rooms/1");
    let say = move |said: String| async move {
        room.publish(format!("said: {said}")).await.unwrap();
        StatusCode::CREATED
    };
    let open = Route::new().read_by_anyone().append_by_anyone().create_by_anyone().close_by_anyone().delete_by_anyone();
    let app = Router::new().route("/rooms/{room}", post(say).fallback(own)).fallback(own).layer(
        CometLayer::new(comet.clone())
            .route("/rooms/{room}", Route::new().read_by_anyone())
            .route("/open/{x}", open)
            .route("/strict/{x}", Route::strict().read_by_anyone()),
    );

    let hello = support::post("/rooms/1", "text/plain", "hello");
    let seen = Seen::read(app.clone().oneshot(hello).await.unwrap()).await.unwrap();
    assert_eq!((seen.status.as_u16(), seen.outcome), (201, None));
    let seen = Seen::read(app.clone().oneshot(support::get("/rooms/1?offset=-1")).await.unwrap()).await.unwrap();
    assert_eq!((seen.text(), seen.outcome), (r#"["said: hello"]"#, Some(OutcomeKind::Read)));
    assert_eq!(seen.offset(), comet.channel("/rooms/1").tail());

    for (method, path, own) in [
        (Method::PUT, "/rooms/1", true),
        (Method::DELETE, "/rooms/1", true),
        (Method::PATCH, "/rooms/1", true),
        (Method::OPTIONS, "/rooms/1", true),
        (Method::CONNECT, "/rooms/1", true),
        (Method::HEAD, "/rooms/1", false),
        // What is turned on is the layer's, and the rest stays the application's.
        (Method::POST, "/open/1", false),
        (Method::PUT, "/open/1", false),
        (Method::DELETE, "/open/1", false),
        (Method::PATCH, "/open/1", true),
        (Method::OPTIONS, "/open/1", true),
        (Method::CONNECT, "/open/1", true),
        // A strict route owns its path, but for these two.
        (Method::POST, "/strict/1", false),
        (Method::PUT, "/strict/1", false),
        (Method::DELETE, "/strict/1", false),
        (Method::PATCH, "/strict/1", false),
        (Method::OPTIONS, "/strict/1", true),
        (Method::CONNECT, "/strict/1", true),
    ] {
        let response = app.clone().oneshot(request(method.clone(), path)).await.unwrap();
        let seen = Seen::read(response).await.unwrap();
        let is_own = seen.status == StatusCode::IM_A_TEAPOT;
        assert_eq!((is_own, seen.outcome.is_none()), (own, own), "{method} {path}: {seen:?}");
    }
}

#[tokio::test]
async fn an_absolute_form_target_matches_by_its_path() {
    let comet = Comet::new();
    let addr = serve(Router::new().fallback(own).layer(layer(&comet).await)).await;
    for (target, status) in [
        ("http://elsewhere.example/events/a?offset=-1", "200 OK"),
        ("http://elsewhere.example/other?x=/events/a", "418 "),
        ("http://elsewhere.example", "418 "),
        ("/events/a?offset=-1", "200 OK"),
    ] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        write(&mut stream, format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{target}: {head}");
    }
}

#[tokio::test]
async fn a_web_socket_works_byte_for_byte_beside_the_channels() {
    async fn echo(mut socket: WebSocket) {
        while let Some(Ok(message)) = socket.recv().await {
            let _ = socket.send(message).await;
        }
    }
    let comet = Comet::new();
    let upgrade = |upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(echo) };
    let app = Router::new().route("/socket", any(upgrade)).layer(layer(&comet).await);
    let mut stream = TcpStream::connect(serve(app).await).await.unwrap();

    // A channel, and then a socket, on one connection. The handshake is the one of RFC 6455, section 1.3.
    write(&mut stream, "GET /events/a?offset=-1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    read_until(&mut stream, r#"["/events/a"]"#).await;
    write(
        &mut stream,
        "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await;
    let head = read_until(&mut stream, "\r\n\r\n").await.to_lowercase();
    assert!(head.starts_with("http/1.1 101 switching protocols\r\n"), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{head}");

    // The masked "Hello" of section 5.7, and every byte there is as one binary message.
    write(&mut stream, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58").await;
    let mut hello = [0; 7];
    soon(stream.read_exact(&mut hello)).await.unwrap();
    assert_eq!(&hello, b"\x81\x05Hello");
    let bytes: Vec<u8> = (0..=255).collect();
    let sent = [b"\x82\xfe\x01\x00\x00\x00\x00\x00".as_slice(), &bytes].concat();
    write(&mut stream, sent).await;
    let mut came = vec![0; 4 + bytes.len()];
    soon(stream.read_exact(&mut came)).await.unwrap();
    assert_eq!(came, [b"\x82\x7e\x01\x00".as_slice(), &bytes].concat());
}

/// Answers with what comes, frame by frame: a head at once, and the trailers last.
async fn mirror(request: Request) -> impl IntoResponse {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
    let mut incoming = request.into_body();
    tokio::spawn(async move {
        while let Some(Ok(frame)) = incoming.frame().await {
            sender.send(frame).await.expect("the client reads");
        }
    });
    Body::new(body)
}

#[tokio::test]
async fn a_streamed_body_passes_frame_by_frame_with_its_trailers() {
    let comet = Comet::new();
    let app = Router::new().route("/mirror", any(mirror)).layer(layer(&comet).await);
    let stream = TcpStream::connect(serve(app).await).await.unwrap();
    let (mut client, connection) =
        http2::handshake::<_, _, Channel<Bytes, Infallible>>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);

    let (mut sender, body) = Channel::new(1);
    let request = http::Request::post("http://localhost/mirror").body(body).unwrap();
    let response = soon(client.send_request(request)).await.unwrap();
    let mut incoming: Incoming = response.into_body();
    // Each is here before the next is sent: nobody in between has kept it to see more.
    for text in ["one", "two", "three"] {
        sender.send_data(Bytes::from(text)).await.unwrap();
        let frame = soon(incoming.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", "42".parse().unwrap());
    sender.send(Frame::trailers(trailers.clone())).await.unwrap();
    drop(sender);
    assert_eq!(soon(incoming.frame()).await.unwrap().unwrap().into_trailers().unwrap(), trailers);
    assert!(soon(incoming.frame()).await.is_none() && incoming.is_end_stream());
}

#[tokio::test]
async fn the_length_of_a_body_is_known_outside_as_it_is_inside() {
    let comet = Comet::new();
    let app = Router::new()
        .route("/full", get(|| async { "12345" }))
        .route("/empty", get(|| async { Body::new(Empty::new()) }))
        .route("/mirror", any(mirror));
    let comet = layer(&comet).await;
    for (path, exact, end) in [
        ("/full", Some(5), false),
        ("/empty", Some(0), true),
        ("/mirror", None, false),
        ("/events/a?offset=-1", Some(13), false),
        ("/events/a?offset=now&live=sse", None, false),
        ("/events/a?offset=now&live=long-poll&timeout=0", Some(0), true),
    ] {
        // Outside of the router, so that axum's own boxes are inside.
        let mut service = comet.layer(app.clone().into_service::<Full<Bytes>>());
        let response = service.call(support::get(path)).await.unwrap();
        let (hint, body) = (response.body().size_hint(), response.body());
        assert_eq!((hint.exact(), body.is_end_stream()), (exact, end), "{path}");
        assert_eq!(hint.upper(), exact, "{path}");
    }

    // And so on the wire.
    let addr = serve(app.layer(comet)).await;
    let mut client = Client::http1(addr).await;
    for (path, length) in [("/full", "5"), ("/events/a?offset=-1", "13")] {
        let seen = soon(client.send(support::get(path))).await.unwrap();
        assert_eq!((seen.header("content-length"), seen.header("transfer-encoding")), (Some(length), None), "{path}");
    }
}
