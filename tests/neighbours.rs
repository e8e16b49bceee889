//! The layers of tower and tower-http beside this one: where each belongs, and what happens elsewhere.

mod support;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::ready,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use support::{Seen, Teapot, ask, get, post, request, settle};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tower::{Service, ServiceBuilder, ServiceExt, load_shed::error::Overloaded, service_fn, util::BoxCloneSyncService};
use tower_comet::{
    Access, CORS_REQUEST_HEADERS, CORS_RESPONSE_HEADERS, Comet, CometLayer, Denied, Outcome, OutcomeKind, Route,
};
use tower_http::{
    auth::AsyncRequireAuthorizationLayer,
    compression::CompressionLayer,
    cors::CorsLayer,
    limit::RequestBodyLimitLayer,
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    timeout::TimeoutLayer,
    trace::TraceLayer,
    validate_request::ValidateRequestHeaderLayer,
};

const LIVE: &str = "live=long-poll";

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone())
}

/// Sends a request through the whole of a stack.
async fn send<S, B>(stack: &S, request: Request<Full<Bytes>>) -> Seen
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error: std::fmt::Debug> + Clone,
    B: Body<Data = Bytes, Error: Into<support::BoxError>>,
{
    Seen::read(stack.clone().oneshot(request).await.expect("an answer")).await.expect("its body")
}

/// Sends a request through the whole of a stack, and lets it go as far as it does by itself.
async fn begin<S, B>(stack: &S, request: Request<Full<Bytes>>) -> JoinHandle<Seen>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error: std::fmt::Debug, Future: Send>,
    S: Clone + Send + Sync + 'static,
    B: Body<Data = Bytes, Error: Into<support::BoxError>> + Send,
{
    let stack = stack.clone();
    let begun = tokio::spawn(async move { send(&stack, request).await });
    settle().await;
    begun
}

/// An application that takes its time.
fn slow() -> impl Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync {
    service_fn(|_| async {
        sleep(Duration::from_secs(10)).await;
        Ok::<_, Infallible>(Response::new(Full::from("slow")))
    })
}

/// `TraceLayer::on_response`, without the span: its type is another crate's.
fn on_response<B, S>(see: impl Fn(&Response<B>, Duration) + Clone) -> impl Fn(&Response<B>, Duration, &S) + Clone {
    move |response, latency, _| see(response, latency)
}

#[tokio::test(start_paused = true)]
async fn who_traces_outside_is_told_how_every_request_ended() {
    let comet = Comet::builder().max_append(100).build();
    let open =
        || Route::new().read_by_anyone().append_by_anyone().create_by_anyone().close_by_anyone().delete_by_anyone();
    let nobody = |_: Access| ready(Err::<(), _>(Denied::forbidden()));
    let routes = CometLayer::new(comet.clone())
        .route("/events/{channel}", open())
        .route("/secret/{channel}", Route::new().read_by(nobody));

    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    let see = move |response: &Response<_>, latency: Duration| {
        let outcome = response.extensions().get::<Outcome>().map(Outcome::kind);
        seen.lock().unwrap().push((response.status().as_u16(), outcome, latency.as_secs()));
    };
    let stack = ServiceBuilder::new()
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(TraceLayer::new_for_http().on_response(on_response(see)))
        .layer(routes)
        .service(Teapot);

    let news = comet.channel("/events/news");
    news.publish("first").await.unwrap();
    comet.channel("/events/over").close().await.unwrap();
    let unknown = format!("/events/news?offset={:016}_x{:016x}", 7, 7);
    let json = |body: &str| post("/events/news", "application/json", body.to_owned());
    for (request, status, outcome) in [
        (get("/"), 418, None),
        (get("/events/news?offset=-1"), 200, Some(OutcomeKind::Read)),
        (request(Method::HEAD, "/events/news"), 200, Some(OutcomeKind::Read)),
        (json("1"), 204, Some(OutcomeKind::Appended)),
        (request(Method::PUT, "/events/made"), 201, Some(OutcomeKind::Created)),
        (request(Method::DELETE, "/events/made"), 204, Some(OutcomeKind::Deleted)),
        (get("/events/over?offset=now&live=sse"), 200, Some(OutcomeKind::Streamed)),
        (get(&format!("/events/news?offset=-1&{LIVE}")), 200, Some(OutcomeKind::Delivered)),
        (get("/events/news?timeout=3"), 204, Some(OutcomeKind::TimedOut)),
        (get(&format!("/events/over?offset=-1&{LIVE}")), 204, Some(OutcomeKind::Ended)),
        (get(&unknown), 410, Some(OutcomeKind::Gone)),
        (get("/secret/plans"), 403, Some(OutcomeKind::Denied)),
        (json(&format!("[{}1]", "1,".repeat(100))), 413, Some(OutcomeKind::Refused)),
        (json("no JSON"), 400, Some(OutcomeKind::Invalid)),
        (get("/events/news?offset=nowhere"), 400, Some(OutcomeKind::Invalid)),
        (get("/events/%2e%2e"), 400, Some(OutcomeKind::Invalid)),
    ] {
        let what = format!("{} {}", request.method(), request.uri());
        let seen = send(&stack, request).await;
        assert_eq!((seen.status.as_u16(), seen.outcome), (status, outcome), "{what}: {seen:?}");
        assert!(seen.header("x-request-id").is_some(), "{what}");
        let (traced, told, _) = log.lock().unwrap().pop().unwrap();
        assert_eq!((traced, told), (status, outcome), "{what}");
    }

    // What ends a wait from outside. The whole of the wait is its latency, which is why there is an outcome.
    let delivered = begin(&stack, get("/events/news")).await;
    sleep(Duration::from_millis(10)).await;
    news.publish("second").await.unwrap();
    assert_eq!(delivered.await.unwrap().outcome, Some(OutcomeKind::Delivered));
    let deleted = begin(&stack, get("/events/news")).await;
    news.delete().await.unwrap();
    assert_eq!(deleted.await.unwrap().outcome, Some(OutcomeKind::Ended));
    let released = begin(&stack, get("/events/news")).await;
    comet.close();
    assert_eq!(released.await.unwrap().outcome, Some(OutcomeKind::Released));
    assert_eq!(send(&stack, get("/events/news")).await.outcome, Some(OutcomeKind::Refused));
    let told: Vec<_> = log.lock().unwrap().iter().map(|(status, outcome, _)| (*status, outcome.unwrap())).collect();
    assert_eq!(
        told,
        [
            (200, OutcomeKind::Delivered),
            (404, OutcomeKind::Ended),
            (204, OutcomeKind::Released),
            (503, OutcomeKind::Refused)
        ]
    );
}

/// What a page on another origin needs: what it may send, and what it may see.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(HeaderValue::from_static("https://page.example"))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(CORS_REQUEST_HEADERS.to_vec())
        .expose_headers(CORS_RESPONSE_HEADERS.to_vec())
}

#[tokio::test(start_paused = true)]
async fn cors_is_for_outside() {
    let comet = Comet::new();
    comet.channel("/events/news").publish("new").await.unwrap();
    let from_page = |mut request: Request<Full<Bytes>>| {
        request.headers_mut().insert(header::ORIGIN, HeaderValue::from_static("https://page.example"));
        request
    };
    let preflight = || {
        let asked = Request::options("/events/news")
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "GET")
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "if-none-match");
        from_page(asked.body(Full::default()).unwrap())
    };

    let outside = ServiceBuilder::new().layer(cors()).layer(layer(&comet)).service(Teapot);
    let seen = send(&outside, preflight()).await;
    assert!(seen.status.is_success(), "{seen:?}");
    assert!(seen.header("access-control-allow-headers").unwrap().contains("if-none-match"), "{seen:?}");
    comet.channel("/events/bytes").create("application/octet-stream").await.unwrap();
    comet.channel("/events/bytes").close().await.unwrap();
    let unknown = format!("/events/news?offset={:016}_x{:016x}", 7, 7);
    let mut seen_names = BTreeSet::new();
    for uri in [
        "/events/news?offset=-1",
        "/events/news?timeout=1",
        "/events/news?offset=x",
        "/events/bytes?offset=-1&live=sse",
        &unknown,
    ] {
        let mut request = from_page(get(uri));
        request.headers_mut().insert("prefer", HeaderValue::from_static("wait=1"));
        let seen = send(&outside, request).await;
        assert!(seen.outcome.is_some(), "{uri}");
        assert_eq!(seen.header("access-control-allow-origin"), Some("https://page.example"), "{uri}: {seen:?}");
        assert_eq!(seen.headers.get_all("access-control-expose-headers").iter().count(), 1, "{uri}");
        let exposed = seen.header("access-control-expose-headers").unwrap().to_owned();
        let ours = |name: &&str| name.starts_with("stream-") || matches!(*name, "etag" | "preference-applied");
        for name in seen.headers.keys().map(HeaderName::as_str).filter(ours) {
            assert!(exposed.split(',').any(|one| one == name), "{uri}: {name} is not in {exposed}");
            seen_names.insert(name.to_owned());
        }
    }
    // All of the list but those of an end and of a refusal: it is not too long either.
    assert_eq!(seen_names.len(), 7, "{seen_names:?}");

    // Inside, the preflight is still answered, as `OPTIONS` goes inward; the answer itself is the layer's, and blocked.
    let inside = ServiceBuilder::new().layer(layer(&comet)).layer(cors()).service(Teapot);
    assert!(send(&inside, preflight()).await.status.is_success());
    let seen = send(&inside, from_page(get("/events/news?offset=-1"))).await;
    assert_eq!(seen.header("access-control-allow-origin"), None);
}

#[tokio::test(start_paused = true)]
async fn compression_is_for_outside_and_leaves_event_streams_alone() {
    let comet = Comet::new();
    let news = comet.channel("/events/news");
    let text = "a text that is worth it; ".repeat(100);
    let zipped = |uri: &str| {
        let mut request = get(uri);
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        request
    };

    let outside = ServiceBuilder::new().layer(CompressionLayer::new()).layer(layer(&comet)).service(Teapot);
    let waiting = begin(&outside, zipped("/events/news")).await;
    news.publish(&text).await.unwrap();
    let seen = waiting.await.unwrap();
    assert_eq!((seen.header("content-encoding"), seen.outcome), (Some("gzip"), Some(OutcomeKind::Delivered)));
    assert!(seen.body.starts_with(&[0x1f, 0x8b]) && seen.body.len() < text.len() / 10, "{} bytes", seen.body.len());

    // The name under which the client keeps it is still good.
    let seen = send(&outside, zipped("/events/news?offset=-1")).await;
    assert_eq!(seen.header("content-encoding"), Some("gzip"));
    let mut again = zipped("/events/news?offset=-1");
    again.headers_mut().insert(header::IF_NONE_MATCH, seen.headers[header::ETAG].clone());
    assert_eq!(send(&outside, again).await.status, StatusCode::NOT_MODIFIED);

    let events = outside.clone().oneshot(zipped("/events/news?offset=-1&live=sse")).await.unwrap();
    assert_eq!(events.headers().get(header::CONTENT_ENCODING), None);
    let mut events = Box::pin(events.into_body());
    let first = events.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(
        first.starts_with(b"retry:") && String::from_utf8_lossy(&first).contains("\n\nevent: data\n"),
        "at once, and readable: {first:?}"
    );
    drop(events);

    let inside = ServiceBuilder::new().layer(layer(&comet)).layer(CompressionLayer::new()).service(Teapot);
    assert_eq!(send(&inside, zipped("/events/news?offset=-1")).await.header("content-encoding"), None);
}

#[tokio::test(start_paused = true)]
async fn a_time_out_is_for_inside() {
    let comet = Comet::new();
    let timeout = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_secs(5));

    let inside = ServiceBuilder::new().layer(layer(&comet)).layer(timeout).service(slow());
    let began = Instant::now();
    let (work, wait) = tokio::join!(send(&inside, get("/")), send(&inside, get("/events/news")));
    assert_eq!((work.status.as_u16(), work.outcome), (408, None));
    assert_eq!((wait.status.as_u16(), wait.outcome), (204, Some(OutcomeKind::TimedOut)));
    assert!(began.elapsed() > Duration::from_secs(20), "{:?}", began.elapsed());

    let outside = ServiceBuilder::new().layer(timeout).layer(layer(&comet)).service(slow());
    let began = Instant::now();
    let wait = send(&outside, get("/events/news")).await;
    assert_eq!((wait.status.as_u16(), wait.outcome), (408, None));
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!((comet.waiters(), comet.channels().count()), (0, 0), "and leaves nothing behind");
}

#[tokio::test(start_paused = true)]
async fn a_limit_on_concurrency_is_for_inside_with_something_between() {
    let comet = Comet::new();
    let inside = ServiceBuilder::new().layer(layer(&comet)).load_shed().concurrency_limit(1).service(slow());
    let work = begin(&inside, get("/")).await;
    let waits = [begin(&inside, get("/events/news")).await, begin(&inside, get("/events/news")).await];
    assert_eq!(comet.waiters(), 2, "no permit is asked for, though none is left");
    let shed = inside.clone().oneshot(get("/")).await.unwrap_err();
    assert!(shed.is::<Overloaded>(), "{shed}");
    comet.channel("/events/news").publish("new").await.unwrap();
    for wait in waits {
        assert_eq!(wait.await.unwrap().text(), r#"["new"]"#);
    }
    assert_eq!(work.await.unwrap().text(), "slow");

    // Without `load_shed` or `buffer`, who is not ready inside is not ready outside: the waits queue behind the work.
    let bare = ServiceBuilder::new().layer(layer(&comet)).concurrency_limit(1).service(slow());
    let work = begin(&bare, get("/")).await;
    let wait = begin(&bare, get("/events/news")).await;
    assert_eq!(comet.waiters(), 0);
    work.await.unwrap();
    assert_eq!(wait.await.unwrap().outcome, Some(OutcomeKind::TimedOut));

    // Outside, a wait takes the permit, and the application stands still.
    let outside = ServiceBuilder::new().concurrency_limit(1).layer(layer(&comet)).service(Teapot);
    let wait = begin(&outside, get("/events/news")).await;
    let work = begin(&outside, get("/")).await;
    assert_eq!((comet.waiters(), work.is_finished()), (1, false));
    comet.channel("/events/news").publish("new").await.unwrap();
    wait.await.unwrap();
    assert_eq!(work.await.unwrap().status, StatusCode::IM_A_TEAPOT);
}

#[tokio::test(start_paused = true)]
async fn a_buffer_fits_on_either_side() {
    let comet = Comet::new();
    let outside = ServiceBuilder::new().buffer(1).layer(layer(&comet)).service(Teapot);
    let inside = ServiceBuilder::new().layer(layer(&comet)).buffer(1).service(Teapot);
    for (what, stack) in [("outside", BoxCloneSyncService::new(outside)), ("inside", BoxCloneSyncService::new(inside))]
    {
        let mut waits = Vec::new();
        for _ in 0..10 {
            waits.push(begin(&stack, get("/events/news")).await);
        }
        assert_eq!(comet.waiters(), 10, "{what}: a parked wait holds no place in it");
        assert_eq!(send(&stack, get("/")).await.status, StatusCode::IM_A_TEAPOT, "{what}");
        comet.channel("/events/news").publish("new").await.unwrap();
        for wait in waits {
            assert_eq!(wait.await.unwrap().text(), r#"["new"]"#, "{what}");
        }
    }
}

#[derive(Clone)]
struct User(&'static str);

#[tokio::test(start_paused = true)]
async fn who_asks_is_found_out_outside_and_who_may_by_the_route() {
    let comet = Comet::new();
    let by = |token: &str, mut request: Request<Full<Bytes>>| {
        request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        request
    };

    // These answer by themselves, with a body of the layer's type that they make from nothing.
    let bearer = ServiceBuilder::new()
        .layer(ValidateRequestHeaderLayer::has_header_value("authorization", "Bearer secret").unwrap())
        .layer(ValidateRequestHeaderLayer::accept("application/json"))
        .layer(RequestBodyLimitLayer::new(10))
        .layer(layer(&comet))
        .service(Teapot);
    for (request, status, outcome) in [
        (get("/events/news?timeout=1"), 403, None),
        (by("guess", get("/events/news?timeout=1")), 403, None),
        (by("secret", get("/events/news?timeout=1")), 204, Some(OutcomeKind::TimedOut)),
        (by("secret", get("/")), 418, None),
    ] {
        let seen = send(&bearer, request).await;
        assert_eq!((seen.status.as_u16(), seen.outcome), (status, outcome), "{seen:?}");
    }
    let mut picky = by("secret", get("/events/news?timeout=1"));
    picky.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("image/png"));
    assert_eq!(send(&bearer, picky).await.status, StatusCode::NOT_ACCEPTABLE);

    // This one leaves with the request who it is.
    let known = |mut request: Request<Full<Bytes>>| {
        let user = match request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes) {
            Some(b"Bearer ann") => User("ann"),
            Some(b"Bearer bob") => User("bob"),
            _ => {
                let mut refused = Response::new("who is that?".into());
                *refused.status_mut() = StatusCode::UNAUTHORIZED;
                return ready(Err(refused));
            }
        };
        request.extensions_mut().insert(user);
        ready(Ok(request))
    };
    let only_ann = |access: Access| match access.extensions().get() {
        Some(User("ann")) => ready(Ok(())),
        _ => ready(Err(Denied::forbidden())),
    };
    let guarded = CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by(only_ann));
    let stack = ServiceBuilder::new().layer(AsyncRequireAuthorizationLayer::new(known)).layer(guarded).service(Teapot);
    for (request, status, outcome) in [
        (get("/events/news?timeout=1"), 401, None),
        (by("eve", get("/events/news?timeout=1")), 401, None),
        (by("bob", get("/events/news?timeout=1")), 403, Some(OutcomeKind::Denied)),
        (by("ann", get("/events/news?timeout=1")), 204, Some(OutcomeKind::TimedOut)),
        (by("bob", get("/")), 418, None),
    ] {
        let seen = send(&stack, request).await;
        assert_eq!((seen.status.as_u16(), seen.outcome), (status, outcome), "{seen:?}");
    }
}

/// Ready every other time it is asked, and never called without.
#[derive(Default)]
struct Fussy {
    asked: usize,
    ready: bool,
}

impl Service<Request<Full<Bytes>>> for Fussy {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.asked += 1;
        self.ready = self.asked % 2 == 0;
        if self.ready {
            return Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being ready");
        ready(Ok(Response::default()))
    }
}

#[tokio::test(start_paused = true)]
async fn whether_the_inner_service_is_ready_is_asked_of_it() {
    let comet = Comet::new();
    let mut service = ServiceBuilder::new().layer(layer(&comet)).service(Fussy::default());
    let mut cx = Context::from_waker(std::task::Waker::noop());
    for uri in ["/", "/events/news?timeout=0", "/"] {
        assert!(service.poll_ready(&mut cx).is_pending(), "{uri}");
        assert!(service.poll_ready(&mut cx).is_ready(), "{uri}");
        assert!(service.call(get(uri)).await.unwrap().status().is_success(), "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_of_another_origin_can_read_the_headers_of_the_layer() {
    let comet = Comet::new();
    let news = comet.channel("/events/news");
    news.publish("new").await.unwrap();
    let minute = Duration::from_secs(60);
    let layer = CometLayer::new(comet.clone())
        .route("/events/{channel}", Route::new().read_by_anyone())
        .route("/cached/{channel}", Route::new().read_by_anyone().cache_for(minute).channel("/events/{channel}"));
    let from_page = |uri: &str| ask(&format!("GET {uri}"), &[("origin", "https://page.example")], "");
    let exposed = |seen: &Seen| seen.header("access-control-expose-headers").map(str::to_owned);

    for uri in ["/events/news?offset=-1", "/events/news?offset=x", "/events/news?offset=now&timeout=0"] {
        let seen = support::send(&layer, from_page(uri)).await;
        assert!(exposed(&seen).is_some_and(|names| names.contains("stream-next-offset")), "{uri}: {seen:?}");
        assert_eq!(exposed(&support::send(&layer, get(uri)).await), None, "{uri}");
    }
    let waiting = support::sent(&layer, from_page("/events/news")).await;
    news.publish("newer").await.unwrap();
    assert!(exposed(&waiting.await.unwrap()).is_some(), "after a wait");
    // A cache may answer a page with what it stored for the origin itself.
    assert!(exposed(&support::send(&layer, get("/cached/news?offset=-1")).await).is_some());

    // A CORS layer that exposes nothing leaves the list as it is.
    let bare = CorsLayer::new().allow_origin(HeaderValue::from_static("https://page.example"));
    let stack = ServiceBuilder::new().layer(bare).layer(layer).service(Teapot);
    let seen = send(&stack, from_page("/events/news?offset=-1")).await;
    assert_eq!(seen.headers.get_all("access-control-expose-headers").iter().count(), 1);
}
