//! What single steps cost, without sockets: `cargo bench -p tower-comet-bench`.

use bytes::Bytes;
use divan::{Bencher, black_box};
use futures_util::task::noop_waker_ref;
use http::{Request, Response};
use http_body_util::{Empty, Full};
use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::{Pin, pin},
    task::{Context, Poll},
};
use tower::Service;
use tower_comet::{Channel, Comet, CometLayer, CometService, Offset, Route};
use tower_layer::Layer;

#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    // The timer of a wait is tokio's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    divan::main();
}

type Body = Empty<Bytes>;

/// The cheapest service that there is.
#[derive(Clone)]
struct Inner;

impl Service<Request<Body>> for Inner {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        black_box(request);
        ready(Ok(Response::new(Full::default())))
    }
}

fn comet() -> Comet {
    Comet::builder().max_channels(2_000_000).max_waits(2_000_000).max_waits_per_channel(2_000_000).build()
}

fn service(comet: &Comet, routes: usize) -> CometService<Inner> {
    let mut layer = CometLayer::new(comet.clone()).route("/c/{channel}", Route::new().read_by_anyone());
    for route in 1..routes {
        layer = layer.route(&format!("/service{route}/events/{{channel}}"), Route::new().read_by_anyone());
    }
    layer.layer(Inner)
}

/// A message of 64 bytes.
fn message() -> Bytes {
    Bytes::from(format!("{{\"n\":{:>10},\"pad\":\"{}\"}}", 1, "x".repeat(38)))
}

/// A channel whose history is full.
fn full(comet: &Comet) -> Channel {
    let channel = comet.channel("/c/full");
    for _ in 0..1_000 {
        channel.append(message()).wait().expect("room");
    }
    channel
}

fn request(uri: &str) -> Request<Body> {
    Request::get(uri).body(Body::new()).expect("a request")
}

fn wait_at(channel: &str, offset: Offset) -> Request<Body> {
    request(&format!("{channel}?offset={offset}&live=long-poll"))
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(noop_waker_ref()))
}

fn answer<F: Future>(future: F) -> F::Output {
    match poll(pin!(future)) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("this does not wait"),
    }
}

/// Requests that are none of the layer's business.
#[divan::bench_group]
mod foreign {
    use super::*;

    #[divan::bench]
    fn without_the_layer(bencher: Bencher) {
        let mut inner = Inner;
        bencher.with_inputs(|| request("/orders/42")).bench_local_values(|request| answer(inner.call(request)));
    }

    #[divan::bench(args = [1, 50])]
    fn behind_routes(bencher: Bencher, routes: usize) {
        let mut service = service(&comet(), routes);
        bencher.with_inputs(|| request("/orders/42")).bench_local_values(|request| answer(service.call(request)));
    }

    #[divan::bench(args = [1, 50])]
    fn behind_routes_and_like_one(bencher: Bencher, routes: usize) {
        let mut service = service(&comet(), routes);
        bencher.with_inputs(|| request("/c/42/more")).bench_local_values(|request| answer(service.call(request)));
    }
}

/// Publishing to a channel whose history is full and where nobody waits.
#[divan::bench(args = [1, 1_000, 100_000])]
fn publish(bencher: Bencher, channels: usize) {
    let comet = comet();
    for n in 1..channels {
        comet.channel(format!("/c/{n}")).append(message()).wait().expect("room");
    }
    let channel = full(&comet);
    let value = "x".repeat(62);
    bencher.bench_local(|| channel.publish(&value).wait());
}

/// One message that is there.
#[divan::bench(args = ["-1", "after"], threads = [1, 2])]
fn read(bencher: Bencher, place: &str) {
    let comet = comet();
    let channel = comet.channel("/c/1");
    let first = channel.append(message()).wait().expect("room");
    let mut uri = "/c/1?offset=-1".to_owned();
    if place == "after" {
        channel.append(message()).wait().expect("room");
        uri = format!("/c/1?offset={first}&live=long-poll");
    }
    let mut service = service(&comet, 1);
    bencher.with_inputs(|| request(&uri)).bench_local_values(|request| answer(service.call(request)));
}

/// A wait that begins, and is dropped.
#[divan::bench(args = [0, 10_000])]
fn wait(bencher: Bencher, others: usize) {
    let comet = comet();
    let offset = comet.channel("/c/1").append(message()).wait().expect("room");
    let mut service = service(&comet, 1);
    let mut parked: Vec<_> = (0..others).map(|_| Box::pin(service.call(wait_at("/c/1", offset)))).collect();
    assert!(parked.iter_mut().all(|wait| poll(wait.as_mut()).is_pending()));
    bencher.with_inputs(|| wait_at("/c/1", offset)).bench_local_values(|request| {
        let mut wait = pin!(service.call(request));
        assert!(poll(wait.as_mut()).is_pending());
    });
}

/// A thousand waits are answered: the time is of all of them.
#[divan::bench]
fn deliver_to_1000(bencher: Bencher) {
    let comet = comet();
    let channel = comet.channel("/c/1");
    let mut service = service(&comet, 1);
    bencher
        .with_inputs(|| {
            let offset = channel.append(message()).wait().expect("room");
            let mut parked: Vec<_> = (0..1_000).map(|_| Box::pin(service.call(wait_at("/c/1", offset)))).collect();
            assert!(parked.iter_mut().all(|wait| poll(wait.as_mut()).is_pending()));
            channel.append(message()).wait().expect("room");
            parked
        })
        .bench_local_values(|parked| {
            for mut wait in parked {
                assert!(poll(wait.as_mut()).is_ready());
            }
        });
}

/// The map of channels: one of so many is looked up.
#[divan::bench(args = [1_000, 100_000])]
fn map(bencher: Bencher, channels: usize) {
    let comet = comet();
    let all: Vec<_> = (0..channels).map(|n| comet.channel(format!("/c/{n}"))).collect();
    for channel in &all {
        channel.append(message()).wait().expect("room");
    }
    let mut next = 0;
    bencher.bench_local(|| {
        next = (next + 7_919) % channels;
        all[next].tail()
    });
}
