//! The servers of our own.
//!
//! | kind | |
//! | --- | --- |
//! | `comet` | the layer around a trivial inner service |
//! | `floor` | bare hyper with the cheapest wait there is: no log, one `Notify` a channel, a constant body, no header |
//! | `floor-bytes` | the same, with an answer of as many bytes as the layer's |
//! | `plain` | the trivial inner service alone |
//!
//! Beside what is measured all of them answer `POST /control/publish/{channel}`, whose body is a message,
//! `GET /control/waiting`, and `GET /plain`.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::Notify,
};
use tower::{BoxError, Service, service_fn};
use tower_comet::{BodyError, Comet, CometLayer, Route};
use tower_layer::Layer;

use crate::{Result, message};

type Answer = std::result::Result<Response<Full<Bytes>>, Infallible>;

/// How many streams a client may have on a connection.
const STREAMS: u32 = 10_000;

/// Serves: what, with which builder, where.
pub fn main(mut args: impl Iterator<Item = String>) -> Result<()> {
    let mut next = || args.next().ok_or("serve KIND BUILDER ADDRESS");
    let (kind, builder, addr) = (next()?, next()?, next()?.parse()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = bind(addr)?;
        match (&*kind, &*builder) {
            ("comet", "axum") => axum_serve(listener, comet()).await,
            ("comet", builder) => hyper_serve(listener, comet(), builder).await,
            ("floor", "axum") => axum_serve(listener, Floor::new(false)).await,
            ("floor", builder) => hyper_serve(listener, Floor::new(false), builder).await,
            ("floor-bytes", "axum") => axum_serve(listener, Floor::new(true)).await,
            ("floor-bytes", builder) => hyper_serve(listener, Floor::new(true), builder).await,
            ("plain", builder) => {
                let comet = Comet::new();
                let service = service_fn(move |request| boxed(comet.clone(), request));
                hyper_serve(listener, service, builder).await
            }
            _ => Err(format!("unknown server {kind}").into()),
        }
    })
}

fn bind(addr: SocketAddr) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket.listen(4096)?)
}

async fn axum_serve<S, B>(listener: TcpListener, service: S) -> Result<()>
where
    S: Service<Request<axum::body::Body>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let app = axum::Router::new().fallback_service(service);
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| drop(stream.set_nodelay(true)));
    Ok(axum::serve(listener, app).await?)
}

async fn hyper_serve<S, B>(listener: TcpListener, service: S, builder: &str) -> Result<()>
where
    S: Service<Request<hyper::body::Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        if builder == "closure" {
            // Smaller than the adapter below: that has room for the request.
            let service = service.clone();
            let service = hyper::service::service_fn(move |request| service.clone().call(request));
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.max_concurrent_streams(STREAMS);
            drop(tokio::spawn(builder.serve_connection(io, service)));
            continue;
        }
        let service = TowerToHyperService::new(service.clone());
        match builder {
            "http1" => drop(tokio::spawn(http1::Builder::new().serve_connection(io, service))),
            "http2" => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.max_concurrent_streams(STREAMS);
                drop(tokio::spawn(builder.serve_connection(io, service)));
            }
            "auto" => {
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http2().max_concurrent_streams(STREAMS);
                drop(tokio::spawn(async move { builder.serve_connection(io, service).await }));
            }
            _ => return Err(format!("unknown builder {builder}").into()),
        }
    }
}

/// The layer around a trivial inner service.
fn comet<B>() -> impl Service<
    Request<B>,
    Response = Response<impl Body<Data = Bytes, Error = BodyError> + Send + 'static>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ Sync
+ 'static
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>> + std::fmt::Debug,
{
    let limits = Comet::builder().max_waits(2_000_000).max_waits_per_channel(2_000_000);
    let comet = limits.max_channels(2_000_000).build();
    let control = comet.clone();
    // A million requests take longer to come than a wait lasts otherwise.
    let route = Route::new().read_by_anyone().max_wait(Duration::from_secs(600));
    let layer = CometLayer::new(comet).route("/c/{channel}", route);
    layer.layer(service_fn(move |request| boxed(control.clone(), request)))
}

/// A layer's future has room for its inner service's, parked or not; a floor's is a box too.
fn boxed<B>(comet: Comet, request: Request<B>) -> Pin<Box<dyn Future<Output = Answer> + Send>>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: std::fmt::Debug,
{
    Box::pin(inner(comet, request))
}

/// What the application does by itself, behind the layer or without it.
async fn inner<B>(comet: Comet, request: Request<B>) -> Answer
where
    B: Body,
    B::Error: std::fmt::Debug,
{
    if request.uri().path() == WAITING {
        return Ok(Response::new(Full::from(comet.waiters().to_string())));
    }
    let Some(channel) = request.uri().path().strip_prefix("/control/publish") else {
        return Ok(Response::new(Full::from("plain")));
    };
    let channel = comet.channel(format!("/c{channel}"));
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    Ok(match channel.append(body).await {
        Ok(offset) => Response::new(Full::from(offset.to_string())),
        Err(error) => {
            let mut response = Response::new(Full::from(error.to_string()));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    })
}

/// Bare hyper's cheapest wait.
#[derive(Clone)]
struct Floor(Arc<State>);

struct State {
    channels: Vec<Notify>,
    /// To know when all are there; one step for each wait.
    waiting: AtomicUsize,
    small: Bytes,
    large: Bytes,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Floor {
    fn new(same_bytes: bool) -> Self {
        let header = |name: &'static str, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let headers = vec![
            header("x-content-type-options", "nosniff"),
            header("cache-control", "no-store"),
            header("cross-origin-resource-policy", "same-origin"),
            header("stream-next-offset", "0000000000000001_x0123456789abcdef"),
            header("stream-up-to-date", "true"),
            header("content-type", "application/json"),
            header("etag", "\"0123456789abcdef:0:1\""),
            header("stream-cursor", "3349584"),
        ];
        Self(Arc::new(State {
            channels: (0..10_000).map(|_| Notify::new()).collect(),
            waiting: AtomicUsize::new(0),
            small: format!("[{}]", message(0, 64)).into(),
            large: format!("[{}]", message(0, 16 * 1024)).into(),
            headers: if same_bytes { headers } else { Vec::new() },
        }))
    }
}

impl State {
    fn answer(&self, channel: usize) -> Response<Full<Bytes>> {
        let body = if channel == LARGE { &self.large } else { &self.small };
        let mut response = Response::new(Full::new(body.clone()));
        response.headers_mut().reserve(self.headers.len());
        response.headers_mut().extend(self.headers.iter().cloned());
        response
    }
}

/// How many wait.
pub const WAITING: &str = "/control/waiting";

/// The channel whose messages are of 16 KiB.
pub const LARGE: usize = 9_999;

impl<B> Service<Request<B>> for Floor
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: std::fmt::Debug + Send,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let state = self.0.clone();
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let channel = path.rsplit('/').next().and_then(|last| last.parse::<usize>().ok()).unwrap_or(0);
        if request.method() == Method::POST {
            return Box::pin(async move {
                request.into_body().collect().await.expect("a body");
                match channel {
                    0 => state.channels[0].notify_waiters(),
                    // One waits, and may not have come back yet.
                    channel => state.channels[channel].notify_one(),
                }
                Ok(Response::new(Full::from("now")))
            });
        }
        match (path.starts_with("/c/"), query.contains("live")) {
            (true, true) => {
                drop(request);
                Box::pin(async move {
                    let mut notified = pin!(state.channels[channel].notified());
                    // On the list before it is counted.
                    notified.as_mut().enable();
                    state.waiting.fetch_add(1, Relaxed);
                    notified.await;
                    state.waiting.fetch_sub(1, Relaxed);
                    Ok(state.answer(channel))
                })
            }
            (true, false) => Box::pin(async move { Ok(state.answer(channel)) }),
            (false, _) if path == WAITING => {
                let waiting = state.waiting.load(Relaxed).to_string();
                Box::pin(async { Ok(Response::new(Full::from(waiting))) })
            }
            (false, _) => Box::pin(async { Ok(Response::new(Full::from("plain"))) }),
        }
    }
}
