//! Helpers that the tests share.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use std::{
    convert::Infallible,
    future::{Ready, ready},
    panic::resume_unwind,
    sync::mpsc::{RecvTimeoutError, channel},
    task::{Context, Poll},
    thread,
    time::Duration,
};
use tokio::{
    runtime::{Builder, Runtime},
    task::{JoinHandle, yield_now},
};
use tower::{Service, ServiceExt};
use tower_comet::{Comet, CometLayer, OutcomeKind, ResponseBody, Route};
use tower_layer::Layer;

/// An application that answers every request with 418.
#[derive(Clone, Copy, Debug)]
pub struct Teapot;

impl<B> Service<Request<B>> for Teapot {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        let mut response = Response::new(Full::from("inner"));
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        ready(Ok(response))
    }
}

/// A response with its whole body.
#[derive(Clone, Debug)]
pub struct Seen {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub outcome: Option<OutcomeKind>,
}

impl Seen {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }
}

/// A layer with one route, `/events/{channel}`.
pub fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone())
}

pub fn get(uri: &str) -> Request<Full<Bytes>> {
    Request::get(uri).body(Full::default()).expect("a valid request")
}

/// Sends a request through the layer and returns the response before its body is read.
pub async fn open(layer: &CometLayer, request: Request<Full<Bytes>>) -> Response<ResponseBody<Full<Bytes>>> {
    layer.layer(Teapot).oneshot(request).await.expect("infallible")
}

/// Sends a request through the layer and reads the response.
pub async fn send(layer: &CometLayer, request: Request<Full<Bytes>>) -> Seen {
    let (parts, body) = open(layer, request).await.into_parts();
    let body = body.collect().await.expect("a complete body").to_bytes();
    let outcome = parts.extensions.get::<tower_comet::Outcome>().map(tower_comet::Outcome::kind);
    Seen { status: parts.status.as_u16(), headers: parts.headers, body, outcome }
}

/// Sends a request from a task of its own.
pub fn spawn(layer: &CometLayer, uri: String) -> JoinHandle<Seen> {
    let layer = layer.clone();
    tokio::spawn(async move { send(&layer, get(&uri)).await })
}

/// Yields until all other tasks of a current-thread runtime are parked.
pub async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

pub fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime")
}

pub fn multi_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("a runtime")
}

/// Runs a function on a thread of its own and returns its result, or `None` if it takes longer than the limit: a hung
/// thread fails its test instead of hanging it.
///
/// # Panics
///
/// If the function panics.
pub fn within<T: Send + 'static>(limit: Duration, run: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = channel();
    let thread = thread::spawn(move || drop(done.send(run())));
    match result.recv_timeout(limit) {
        Ok(value) => Some(value),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => resume_unwind(thread.join().expect_err("it sent nothing")),
    }
}
