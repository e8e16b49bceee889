//! tonic 0.14: gRPC and channels on one port.

mod support;

use axum::Router;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use std::{net::SocketAddr, time::Duration};
use support::{Client, get, soon, until};
use tokio::{net::TcpListener, time::Instant};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code,
    service::Routes,
    transport::{Channel, Endpoint, Server},
};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_check_response::ServingStatus as Status, health_client::HealthClient},
    server::{HealthReporter, health_reporter},
};
use tower::{Layer, Service, ServiceBuilder};
use tower_comet::{Comet, CometLayer, Route};
use tower_http::timeout::TimeoutLayer;

/// The health service beside the channels, as `Server::layer` puts them on one port.
struct Host {
    comet: Comet,
    reporter: HealthReporter,
    addr: SocketAddr,
}

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone())
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

impl Host {
    async fn start(server: Server) -> Self {
        let comet = Comet::new();
        let (reporter, health) = health_reporter();
        let (listener, addr) = bind().await;
        let server = server.accept_http1(true).layer(layer(&comet)).add_service(health);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { comet, reporter, addr }
    }
}

async fn grpc(addr: SocketAddr) -> HealthClient<Channel> {
    HealthClient::new(Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap())
}

fn service(name: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: name.to_owned() }
}

#[tokio::test]
async fn calls_go_through_in_every_shape_while_others_wait_beside_them() {
    let host = Host::start(Server::builder()).await;
    host.reporter.set_service_status("shop", ServingStatus::Serving).await;

    // A wait on either kind of connection, and calls meanwhile.
    let mut http2 = Client::http2(host.addr).await;
    let mut http1 = Client::http1(host.addr).await;
    let waits = [tokio::spawn(http2.send(get("/events/news"))), tokio::spawn(http1.send(get("/events/news")))];
    until("both are parked", || host.comet.waiters() == 2).await;

    let mut client = grpc(host.addr).await;
    let answer = soon(client.check(service("shop"))).await.unwrap().into_inner();
    assert_eq!(answer.status(), Status::Serving);

    let error = soon(client.check(service("nothing"))).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "service not registered"));

    let mut stream = soon(client.watch(service("shop"))).await.unwrap().into_inner();
    assert_eq!(soon(stream.message()).await.unwrap().unwrap().status(), Status::Serving);
    for (set, seen) in [(ServingStatus::NotServing, Status::NotServing), (ServingStatus::Serving, Status::Serving)] {
        host.reporter.set_service_status("shop", set).await;
        assert_eq!(soon(stream.message()).await.unwrap().unwrap().status(), seen, "as it happens");
    }
    let mut reporter = host.reporter.clone();
    reporter.clear_service_status("shop").await;
    assert!(soon(stream.message()).await.unwrap().is_none());
    assert!(soon(stream.trailers()).await.unwrap().is_some(), "the status of a stream is its trailer");

    assert_eq!(host.comet.waiters(), 2, "nothing of that was theirs");
    host.comet.channel("/events/news").publish("new").await.unwrap();
    for wait in waits {
        assert_eq!(soon(wait).await.unwrap().unwrap().text(), r#"["new"]"#);
    }
}

/// What a gRPC client never shows: the frames themselves.
#[tokio::test]
async fn a_call_is_the_same_bytes_with_and_without_the_layer() {
    let check = |name: &str| {
        let length = u8::try_from(name.len()).unwrap();
        let message = [&[0, 0, 0, 0, length + 2, 10, length], name.as_bytes()].concat();
        let request = Request::post("http://x/grpc.health.v1.Health/Check");
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        request.body(tonic::body::Body::new(Full::from(message))).unwrap()
    };
    async fn bytes<S, B>(mut service: S, request: Request<tonic::body::Body>) -> String
    where
        S: Service<Request<tonic::body::Body>, Response = Response<B>, Error: std::fmt::Debug>,
        B: http_body::Body<Data = bytes::Bytes, Error: std::fmt::Debug> + Unpin,
    {
        let response = service.call(request).await.unwrap();
        let (head, mut body) = response.into_parts();
        let mut seen = format!("{} {:?}", head.status, head.headers);
        while let Some(frame) = body.frame().await {
            seen += &format!("\n{:?}", frame.unwrap());
        }
        seen
    }
    let (_reporter, health) = health_reporter();
    let comet = Comet::new();
    let mut seen = Vec::new();
    for name in ["", "nothing"] {
        let without = bytes(Routes::new(health.clone()).prepare(), check(name)).await;
        let with = bytes(layer(&comet).layer(Routes::new(health.clone()).prepare()), check(name)).await;
        assert_eq!(with, without, "{name:?}");
        seen.push(with);
    }
    assert!(seen[0].contains("grpc-status") && seen[0].contains(r"\0\0\0\0\x02\x08\x01"), "{}", seen[0]);
    assert!(seen[1].contains(r#""grpc-status": "5""#), "{}", seen[1]);
}

#[tokio::test]
async fn what_a_service_publishes_reaches_who_waits() {
    let comet = Comet::new();
    let (_reporter, health) = health_reporter();
    let calls = comet.channel("/events/calls");
    // An interceptor is code of the service's, on its way in.
    let told = tonic::service::InterceptorLayer::new(move |request: tonic::Request<()>| {
        calls.publish("somebody called").wait().map_err(|error| tonic::Status::internal(error.to_string()))?;
        Ok(request)
    });
    let (listener, addr) = bind().await;
    let server = Server::builder().layer(layer(&comet)).add_service(told.layer(health));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let mut http2 = Client::http2(addr).await;
    let waits: Vec<_> = (0..10).map(|_| tokio::spawn(http2.send(get("/events/calls")))).collect();
    until("all are parked", || comet.waiters() == 10).await;
    soon(grpc(addr).await.check(service(""))).await.unwrap();
    for wait in waits {
        assert_eq!(soon(wait).await.unwrap().unwrap().text(), r#"["somebody called"]"#);
    }
}

/// What the client asks for is its wait's time, and what a call's deadline is, is the call's.
fn hurried(uri: &str) -> Request<Full<bytes::Bytes>> {
    Request::get(uri).header("grpc-timeout", "50m").body(Full::default()).unwrap()
}

#[tokio::test]
async fn a_time_out_inside_of_the_layer_ends_calls_and_no_waits() {
    let comet = Comet::new();
    let (_reporter, health) = health_reporter();
    // tonic's own time-out is always outside of `Server::layer`: this is how to have one inside.
    let gateway = TimeoutLayer::with_status_code(http::StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(50));
    let routes: Router = Routes::new(health).into_axum_router();
    let slow = axum::routing::get(|| async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        "slow"
    });
    let app = routes.route("/slow", slow).layer(ServiceBuilder::new().layer(layer(&comet)).layer(gateway));
    let (listener, addr) = bind().await;
    tokio::spawn(async move { axum::serve(listener, app).await });

    let mut http2 = Client::http2(addr).await;
    let wait = tokio::spawn(http2.send(hurried("/events/news")));
    until("the wait is parked", || comet.waiters() == 1).await;
    assert_eq!(soon(http2.send(get("/slow"))).await.unwrap().status.as_u16(), 504);
    soon(grpc(addr).await.check(service(""))).await.unwrap();
    assert_eq!(comet.waiters(), 1, "longer than the time-out");
    comet.channel("/events/news").publish("new").await.unwrap();
    assert_eq!(soon(wait).await.unwrap().unwrap().text(), r#"["new"]"#);
}

#[tokio::test]
async fn tonics_own_time_out_is_outside_and_ends_waits_as_a_failed_call() {
    let short = Duration::from_millis(100);
    for (what, server, request) in [
        ("Server::timeout", Server::builder().timeout(short), get("/events/news")),
        ("grpc-timeout", Server::builder(), hurried("/events/news")),
    ] {
        let host = Host::start(server).await;
        let began = Instant::now();
        let seen = soon(Client::http2(host.addr).await.send(request)).await.unwrap();
        assert_eq!((seen.status.as_u16(), seen.outcome), (200, None), "{what}: {seen:?}");
        assert!(seen.header("grpc-status").is_some_and(|status| status != "0"), "{what}: {seen:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        until("nothing is left behind", || host.comet.waiters() == 0).await;
    }

    // The deadline of one call is nothing to the waits beside it.
    let host = Host::start(Server::builder()).await;
    let mut http2 = Client::http2(host.addr).await;
    let wait = tokio::spawn(http2.send(get("/events/news")));
    until("the wait is parked", || host.comet.waiters() == 1).await;
    let mut call = tonic::Request::new(service(""));
    call.set_timeout(Duration::from_millis(50));
    let mut stream = soon(grpc(host.addr).await.watch(call)).await.unwrap().into_inner();
    assert!(soon(stream.message()).await.unwrap().is_some());
    tokio::time::sleep(short).await;
    assert_eq!(host.comet.waiters(), 1);
    host.comet.channel("/events/news").publish("new").await.unwrap();
    assert_eq!(soon(wait).await.unwrap().unwrap().text(), r#"["new"]"#);
}
