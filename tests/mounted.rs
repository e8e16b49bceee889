//! The routes as a service of their own, mounted in axum and tonic, or alone on hyper.

mod support;

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request, State},
    middleware::{Next, from_fn, from_fn_with_state},
    response::Response,
    routing::get_service,
};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{Empty, Full, StreamBody};
use std::{
    convert::Infallible,
    future::ready,
    sync::{Arc, Mutex},
};
use support::{BoxError, Client, Seen, Server, Untouchable, get, open_to_all, post, request, settle, soon, until};
use tokio::net::TcpListener;
use tower::ServiceExt;
use tower_comet::{Access, Comet, CometLayer, CometRoutes, Denied, OutcomeKind, Route};

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone().append_by_anyone())
}

fn channels(comet: &Comet) -> CometRoutes {
    layer(comet).into_service()
}

async fn send<B>(service: &CometRoutes, request: http::Request<B>) -> Seen
where
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    Seen::read(service.clone().oneshot(request).await.unwrap()).await.unwrap()
}

async fn ask(app: &Router, request: http::Request<Full<Bytes>>) -> Seen {
    Seen::read(app.clone().oneshot(request.map(Body::new)).await.unwrap()).await.unwrap()
}

#[tokio::test]
async fn requests_that_no_route_serves_are_answered_without_an_inner_service() {
    let comet = Comet::new();
    let service = layer(&comet)
        .route("/quiet/{channel}", Route::new().read_by_anyone())
        .route("/all/{channel}", open_to_all())
        .route("/strict/{channel}", Route::strict().read_by_anyone())
        .into_service();
    let (reads, appends) = ("GET, HEAD, OPTIONS", "GET, HEAD, OPTIONS, POST");
    let all = "GET, HEAD, OPTIONS, POST, PUT, DELETE";
    for (method, path, status, allow, reason) in [
        (Method::GET, "/", 404, None, Some("no-route")),
        (Method::GET, "/events", 404, None, Some("no-route")),
        (Method::GET, "/events/a/b", 404, None, Some("no-route")),
        (Method::POST, "/other", 404, None, Some("no-route")),
        (Method::OPTIONS, "/other", 404, None, Some("no-route")),
        (Method::HEAD, "/other", 404, None, None),
        (Method::PUT, "/events/a", 405, Some(appends), Some("method")),
        (Method::PATCH, "/events/a", 405, Some(appends), Some("method")),
        (Method::TRACE, "/events/a", 405, Some(appends), Some("method")),
        (Method::CONNECT, "/events/a", 405, Some(appends), Some("method")),
        (Method::POST, "/quiet/a", 405, Some(reads), Some("method")),
        (Method::POST, "/strict/a", 405, Some(reads), Some("method")),
        (Method::PATCH, "/all/a", 405, Some(all), Some("method")),
        (Method::OPTIONS, "/events/a", 204, Some(appends), None),
        (Method::OPTIONS, "/quiet/a", 204, Some(reads), None),
        (Method::OPTIONS, "/strict/a", 204, Some(reads), None),
        (Method::OPTIONS, "/all/a", 204, Some(all), None),
    ] {
        let what = format!("{method} {path}");
        let seen = send(&service, request(method, path)).await;
        assert_eq!((seen.status.as_u16(), seen.header("allow")), (status, allow), "{what}");
        assert_eq!(
            (seen.header("x-content-type-options"), seen.header("cache-control")),
            (Some("nosniff"), Some("no-store"))
        );
        let outcome = if status == 204 { OutcomeKind::Read } else { OutcomeKind::Invalid };
        assert_eq!(seen.outcome, Some(outcome), "{what}");
        match reason {
            Some(reason) => {
                assert_eq!((seen.reason(), seen.json()["status"].as_u64()), (reason.to_owned(), Some(status.into())))
            }
            None => assert_eq!(seen.body, Bytes::new(), "{what}"),
        }
    }
}

#[tokio::test]
async fn a_closing_server_closes_the_connection_after_an_unserved_request_too() {
    let comet = Comet::new();
    let service = channels(&comet);
    comet.close();
    for (path, status) in [("/other", 404), ("/events/a", 204)] {
        let seen = send(&service, request(Method::OPTIONS, path)).await;
        assert_eq!((seen.status.as_u16(), seen.header("connection")), (status, Some("close")), "{path}");
    }
}

#[tokio::test]
async fn requests_have_bodies_of_any_type() {
    let comet = Comet::new();
    let service = channels(&comet);
    comet.channel("/events/a").publish("message").await.unwrap();
    let uri = "/events/a?offset=-1";
    let body = |text: &str| {
        StreamBody::new(tokio_stream::iter([Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(text.to_owned())))]))
    };
    for seen in [
        send(&service, http::Request::get(uri).body(String::new()).unwrap()).await,
        send(&service, http::Request::get(uri).body(Empty::<&'static [u8]>::new()).unwrap()).await,
        send(&service, http::Request::get(uri).body(Untouchable).unwrap()).await,
        send(&service, http::Request::get(uri).body(Body::empty()).unwrap()).await,
    ] {
        assert_eq!((seen.status, seen.text()), (StatusCode::OK, r#"["message"]"#));
    }
    let append = http::Request::post("/events/a").header("content-type", "application/json").body(body("1")).unwrap();
    assert_eq!(send(&service, append).await.status, StatusCode::NO_CONTENT);
    let unread = http::Request::put("/events/a").body(Untouchable).unwrap();
    assert_eq!(send(&service, unread).await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_mounted_route_reads_waits_and_appends() {
    let comet = Comet::new();
    let app = Router::new().route_service("/events/{channel}", channels(&comet));
    assert_eq!(ask(&app, post("/events/a", "application/json", "1")).await.status, StatusCode::NO_CONTENT);
    assert_eq!(ask(&app, get("/events/a?offset=-1")).await.text(), "[1]");

    let parked = app.clone();
    let waiting = tokio::spawn(async move { ask(&parked, get("/events/a")).await });
    settle().await;
    assert_eq!(comet.waiters(), 1);
    comet.channel("/events/a").publish(2).await.unwrap();
    assert_eq!(waiting.await.unwrap().text(), "[2]");

    let seen = ask(&app, request(Method::HEAD, "/events/a")).await;
    assert_eq!((seen.status, seen.body), (StatusCode::OK, Bytes::new()));
}

#[tokio::test]
async fn a_channel_is_named_by_the_path_that_the_service_receives_or_by_its_template() {
    let comet = Comet::new();
    let put = || Route::new().read_by_anyone().create_by_anyone();
    let channels = CometLayer::new(comet.clone())
        .route("/events/{channel}", put())
        .route("/rooms/{room}", put().channel("room:{room}"))
        .route("/{channel}", put())
        .public_url("https://example.com/api/")
        .into_service();
    let routes = Router::new()
        .route_service("/events/{channel}", channels.clone())
        .route_service("/rooms/{room}", channels.clone());
    let app = Router::new()
        .merge(routes.clone())
        .nest("/api", routes)
        .nest_service("/below", channels.clone())
        .fallback_service(channels);
    for (path, name, location) in [
        ("/events/a", "/events/a", "/events/a"),
        ("/api/events/b", "/events/b", "/events/b"),
        ("/rooms/1", "room:1", "/rooms/1"),
        ("/api/rooms/2", "room:2", "/rooms/2"),
        ("/below/c", "/c", "/c"),
        ("/below/rooms/3", "room:3", "/rooms/3"),
        ("/d", "/d", "/d"),
    ] {
        let seen = ask(&app, request(Method::PUT, path)).await;
        let location = format!("https://example.com/api{location}");
        assert_eq!((seen.status.as_u16(), seen.header("location")), (201, Some(&*location)), "{path}");
        comet.channel(name).publish(path).await.unwrap();
        let seen = ask(&app, get(&format!("{path}?offset=-1"))).await;
        assert_eq!(seen.json(), serde_json::json!([path]), "{path}");
    }
}

#[tokio::test]
async fn layers_of_axum_see_the_matched_path_of_a_mounted_route() {
    type Paths = Arc<Mutex<Vec<String>>>;
    async fn record(State(paths): State<Paths>, path: Option<MatchedPath>, request: Request, next: Next) -> Response {
        paths.lock().unwrap().push(path.map_or("none".to_owned(), |path| path.as_str().to_owned()));
        next.run(request).await
    }
    let (comet, paths) = (Comet::new(), Paths::default());
    let routes = Router::new().route_service("/events/{channel}", channels(&comet));
    let app =
        Router::new().nest("/api", routes.clone()).merge(routes).route_layer(from_fn_with_state(paths.clone(), record));
    for path in ["/events/a?offset=-1", "/api/events/a?offset=-1"] {
        assert_eq!(ask(&app, get(path)).await.status, StatusCode::OK);
    }
    assert_eq!(*paths.lock().unwrap(), ["/events/{channel}", "/api/events/{channel}"]);
}

#[tokio::test]
async fn a_method_router_has_handlers_beside_the_channel() {
    let comet = Comet::new();
    let say = || async { StatusCode::IM_A_TEAPOT };
    let app = Router::new().route("/events/{channel}", get_service(channels(&comet)).post(say));
    assert_eq!(ask(&app, post("/events/a", "application/json", "1")).await.status, StatusCode::IM_A_TEAPOT);
    assert_eq!(ask(&app, get("/events/a?offset=-1")).await.text(), "[]");
    assert_eq!(ask(&app, request(Method::HEAD, "/events/a")).await.outcome, Some(OutcomeKind::Read));
    assert_eq!(ask(&app, request(Method::PUT, "/events/a")).await.outcome, None);
}

#[tokio::test]
async fn a_fork_reads_its_source_past_a_guard_in_front_of_it_but_not_past_its_hook() {
    async fn deny() -> StatusCode {
        StatusCode::UNAUTHORIZED
    }
    let nobody = |_: Access| ready(Err::<(), _>(Denied::forbidden()));
    for (secret, status, text) in
        [(Route::new().read_by_anyone(), 201, r#"["secret"]"#), (Route::new().read_by(nobody), 404, "[]")]
    {
        let comet = Comet::new();
        comet.channel("/secret/1").publish("secret").await.unwrap();
        let channels = CometLayer::new(comet.clone())
            .route("/drafts/{draft}", Route::new().read_by_anyone().create_by_anyone())
            .route("/secret/{secret}", secret)
            .into_service();
        let guard = from_fn(|_: Request, _: Next| deny());
        let app = Router::new()
            .route_service("/secret/{secret}", channels.clone())
            .route_layer(guard)
            .route_service("/drafts/{draft}", channels);
        assert_eq!(ask(&app, get("/secret/1?offset=-1")).await.status, StatusCode::UNAUTHORIZED);
        let fork = support::with("stream-forked-from", "/secret/1", request(Method::PUT, "/drafts/1"));
        assert_eq!(ask(&app, fork).await.status, status);
        assert_eq!(ask(&app, get("/drafts/1?offset=-1")).await.text(), text);
    }
}

#[tokio::test]
async fn nest_service_serves_every_route_of_a_service_below_its_prefix() {
    let comet = Comet::new();
    comet.channel("/secret/1").publish("secret").await.unwrap();
    let channels = CometLayer::new(comet)
        .route("/{channel}", Route::new().read_by_anyone())
        .route("/secret/{secret}", Route::new().read_by_anyone())
        .into_service();
    let app = Router::new().nest_service("/public", channels);
    assert_eq!(ask(&app, get("/public/secret/1?offset=-1")).await.text(), r#"["secret"]"#);
}

#[tokio::test]
async fn the_service_is_the_whole_of_a_hyper_server() {
    let comet = Comet::new();
    let server = Server::start(channels(&comet)).await;
    for mut client in [Client::http1(server.addr).await, Client::http2(server.addr).await] {
        let seen = soon(client.send(request(Method::OPTIONS, "/events/a"))).await.unwrap();
        assert_eq!((seen.status.as_u16(), seen.header("allow")), (204, Some("GET, HEAD, OPTIONS, POST")));
        assert_eq!(soon(client.send(request(Method::HEAD, "/other"))).await.unwrap().status, StatusCode::NOT_FOUND);
        assert_eq!(soon(client.send(get("/other"))).await.unwrap().reason(), "no-route");
        let waiting = tokio::spawn(client.send(get("/events/a")));
        until("the wait is parked", || comet.waiters() == 1).await;
        comet.channel("/events/a").publish("message").await.unwrap();
        assert_eq!(soon(waiting).await.unwrap().unwrap().text(), r#"["message"]"#);
    }
}

#[tokio::test]
async fn the_service_is_mounted_beside_grpc() {
    let comet = Comet::new();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let app =
        tonic::service::Routes::new(health).into_axum_router().route_service("/events/{channel}", channels(&comet));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });

    comet.channel("/events/a").publish("message").await.unwrap();
    let mut client = Client::http2(addr).await;
    assert_eq!(soon(client.send(get("/events/a?offset=-1"))).await.unwrap().text(), r#"["message"]"#);
    let check = support::ask(
        "POST /grpc.health.v1.Health/Check",
        &[("content-type", "application/grpc"), ("te", "trailers")],
        &b"\0\0\0\0\0"[..],
    );
    let seen = soon(client.send(check)).await.unwrap();
    assert_eq!(seen.header("content-type"), Some("application/grpc"), "{seen:?}");
}

#[test]
fn the_service_is_printed_with_its_routes_and_without_hooks() {
    let text = format!("{:?}", channels(&Comet::new()));
    assert!(text.starts_with("CometRoutes") && text.contains("/events/{channel}"), "{text}");
}
