//! The servers that are measured.
//!
//! | kind | |
//! | --- | --- |
//! | `comet` | the layer around a trivial inner service |
//! | `floor` | bare hyper with the cheapest wait there is: no log, one `Notify` a channel, a constant body, no header |
//! | `floor-bytes` | the same, with an answer of as many bytes as the layer's |
//! | `plain` | the trivial inner service alone |
//!
//! Beside what is measured all of them answer `GET /control/waiting`, `POST /control/publish/{channel}/{n}`, and
//! `GET /plain`.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{net::TcpListener, sync::Notify};
use tower::{Service, service_fn};
use tower_comet::{Comet, CometLayer, Route};
use tower_layer::Layer;

use crate::Result;

/// A message: 64 bytes of JSON with its number.
pub fn message(n: usize) -> String {
    format!("{{\"n\":{n:>10},\"pad\":\"{}\"}}", "x".repeat(38))
}

pub fn serve(kind: &str, builder: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match kind {
            "comet" => {
                let limits = Comet::builder().max_waits(2_000_000).max_waits_per_channel(2_000_000);
                let comet = limits.max_channels(2_000_000).build();
                let control = comet.clone();
                let inner = service_fn(move |request: Request<Incoming>| inner(control.clone(), request));
                let layer = CometLayer::new(comet).route("/c/{channel}", Route::new());
                listen(layer.layer(inner), builder).await
            }
            "floor" => listen(Floor::new(false), builder).await,
            "floor-bytes" => listen(Floor::new(true), builder).await,
            "plain" => {
                let comet = Comet::new();
                listen(service_fn(move |request: Request<Incoming>| inner(comet.clone(), request)), builder).await
            }
            _ => Err(format!("unknown server {kind}").into()),
        }
    })
}

async fn listen<S, B>(service: S, builder: &str) -> Result<()>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let http1_only = match builder {
        "http1" => true,
        "auto" => false,
        _ => return Err(format!("unknown builder {builder}").into()),
    };
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        let service = TowerToHyperService::new(service.clone());
        if http1_only {
            tokio::spawn(http1::Builder::new().serve_connection(io, service));
        } else {
            tokio::spawn(async move {
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http2().max_concurrent_streams(10_000);
                builder.serve_connection(io, service).await
            });
        }
    }
}

/// What the application does by itself, behind the layer or without it.
async fn inner(comet: Comet, request: Request<Incoming>) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let mut path = request.uri().path().split('/').skip(1);
    Ok(match (path.next(), path.next()) {
        (Some("plain"), None) => Response::new(Full::from("plain")),
        (Some("control"), Some("waiting")) => Response::new(Full::from(comet.waiters().to_string())),
        (Some("control"), Some("publish")) => {
            let channel = comet.channel(format!("/c/{}", path.next().unwrap_or_default()));
            let n = path.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            match channel.append(message(n)).await {
                Ok(offset) => Response::new(Full::from(offset.to_string())),
                Err(error) => failed(&error.to_string()),
            }
        }
        _ => failed("not here"),
    })
}

fn failed(why: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(why.to_owned()));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// Bare hyper's cheapest wait.
#[derive(Clone)]
struct Floor(Arc<State>);

struct State {
    channels: Vec<Notify>,
    waiting: AtomicUsize,
    body: Bytes,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Floor {
    fn new(same_bytes: bool) -> Self {
        let header = |name: &'static str, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let headers = vec![
            header("x-content-type-options", "nosniff"),
            header("cache-control", "no-store"),
            header("cross-origin-resource-policy", "same-origin"),
            header("stream-next-offset", "0000000000000001_0123456789abcdef"),
            header("stream-up-to-date", "true"),
            header("content-type", "application/json"),
            header("etag", "\"0123456789abcdef:0:1\""),
            header("stream-cursor", "3349584"),
        ];
        Self(Arc::new(State {
            channels: (0..10_000).map(|_| Notify::new()).collect(),
            waiting: AtomicUsize::new(0),
            body: format!("[{}]", message(0)).into(),
            headers: if same_bytes { headers } else { Vec::new() },
        }))
    }
}

impl Service<Request<Incoming>> for Floor {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::result::Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let state = self.0.clone();
        let mut path = request.uri().path().split('/').skip(1);
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
        match (path.next(), path.next()) {
            (Some("c"), channel) => {
                let channel = number(channel);
                let live = request.uri().query().is_some_and(|query| query.contains("live"));
                drop(request);
                Box::pin(async move {
                    if live {
                        state.waiting.fetch_add(1, Ordering::Relaxed);
                        state.channels[channel].notified().await;
                        state.waiting.fetch_sub(1, Ordering::Relaxed);
                    }
                    let mut response = Response::new(Full::new(state.body.clone()));
                    response.headers_mut().reserve(state.headers.len());
                    response.headers_mut().extend(state.headers.iter().cloned());
                    Ok(response)
                })
            }
            (Some("control"), Some("publish")) if request.method() == Method::POST => {
                match number(path.next()) {
                    0 => state.channels[0].notify_waiters(),
                    // One waits, and may not have come back yet.
                    channel => state.channels[channel].notify_one(),
                }
                Box::pin(async { Ok(Response::new(Full::from("published"))) })
            }
            (Some("control"), _) => {
                let waiting = state.waiting.load(Ordering::Relaxed).to_string();
                Box::pin(async { Ok(Response::new(Full::from(waiting))) })
            }
            _ => Box::pin(async { Ok(Response::new(Full::from("plain"))) }),
        }
    }
}
