//! Facts that are counted, not timed: what is allocated, and how large things are.
//!
//! ```sh
//! cargo test -p tower-comet-bench --release
//! ```

use allocation_counter::{AllocationInfo, measure};
use bytes::Bytes;
use futures_util::task::noop_waker_ref;
use http::{Request, Response};
use http_body_util::{Empty, Full};
use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::{Pin, pin},
    task::{Context, Poll},
};
use tower::{Service, service_fn};
use tower_comet::{Channel, Comet, CometLayer, Offset, ResponseBody, ResponseFuture, Retention, Route};
use tower_layer::Layer;

type Body = Empty<Bytes>;
type Answer = Result<Response<Full<Bytes>>, Infallible>;

/// An inner service that allocates nothing, behind the layer.
fn service(
    comet: &Comet,
) -> impl Service<
    Request<Body>,
    Response = Response<ResponseBody<Full<Bytes>>>,
    Error = Infallible,
    Future = ResponseFuture<Ready<Answer>>,
> {
    let mut layer = CometLayer::new(comet.clone()).route("/c/{channel}", Route::new().read_by_anyone());
    for route in 1..50 {
        layer = layer.route(&format!("/service{route}/events/{{channel}}"), Route::new().read_by_anyone());
    }
    layer.layer(service_fn(|_: Request<Body>| ready(Ok(Response::new(Full::default())))))
}

fn get(uri: &str) -> Request<Body> {
    Request::get(uri).body(Body::new()).expect("a request")
}

fn wait_at(offset: Offset) -> Request<Body> {
    get(&format!("/c/1?offset={offset}&live=long-poll"))
}

/// A message of 64 bytes, as it is when it is sent by a client.
fn message() -> Bytes {
    Bytes::from(format!("{{\"n\":{:>10},\"pad\":\"{}\"}}", 1, "x".repeat(39)))
}

fn append(channel: &Channel) -> Offset {
    channel.append(message()).wait().expect("room")
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(noop_waker_ref()))
}

/// The timers of waits are tokio's.
fn with_timer<T>(f: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    f()
}

#[test]
fn passing_through_allocates_nothing() {
    let comet = Comet::new();
    let mut service = service(&comet);
    for uri in ["/", "/orders/42", "/c", "/c/1/more", "/service7/events", "/c/%zz/x"] {
        let request = get(uri);
        let mut passed = None;
        let info = measure(|| passed = Some(poll(pin!(service.call(request)))));
        assert!(matches!(passed, Some(Poll::Ready(Ok(_)))), "{uri}");
        assert_eq!(info.count_total, 0, "{uri}: {info:?}");
    }
}

#[test]
fn a_wait_is_one_box_of_at_most_216_bytes() {
    with_timer(|| {
        let comet = Comet::new();
        let offset = append(&comet.channel("/c/1"));
        let mut service = service(&comet);
        let mut begin = |wait: &mut Vec<ResponseFuture<Ready<Answer>>>| {
            measure(|| {
                wait.push(service.call(wait_at(offset)));
                assert!(poll(Pin::new(wait.last_mut().expect("pushed"))).is_pending());
            })
        };
        let mut parked = Vec::with_capacity(1_000);
        let all: Vec<_> = (0..1_000).map(|_| begin(&mut parked)).collect();
        // Of the memory of a request, only the box is left, which includes the timer. Sometimes the list of waiters
        // grows.
        let usual = |info: &&AllocationInfo| info.count_current == 1 && info.bytes_current <= 216;
        assert!(all.iter().filter(usual).count() > 980, "{:?}", &all[990..]);
        let bytes: i64 = all.iter().map(|info| info.bytes_current).sum();
        assert!(bytes <= 1_000 * (216 + 40), "{bytes} bytes for 1,000 waits, their slots on the list with them");
        let freed = measure(|| parked.clear());
        // The channel's list of waiters remains, without its slots.
        assert!(-freed.bytes_current > bytes - 1_000, "{bytes} {freed:?}");
    });
}

#[test]
fn a_delivery_allocates_its_head_and_nothing_else() {
    with_timer(|| {
        let comet = Comet::new();
        let channel = comet.channel("/c/1");
        append(&channel);
        let mut service = service(&comet);
        // What all heads are copied from is made once.
        assert!(poll(pin!(service.call(get("/c/1?offset=-1&live=long-poll")))).is_ready());
        let offset = append(&channel);
        let mut parked: Vec<_> = (0..100).map(|_| service.call(wait_at(offset))).collect();
        assert!(parked.iter_mut().all(|wait| poll(Pin::new(wait)).is_pending()));
        append(&channel);
        for (nth, mut wait) in parked.into_iter().enumerate() {
            let mut answer = None;
            let info = measure(|| answer = Some(poll(Pin::new(&mut wait))));
            assert!(matches!(answer, Some(Poll::Ready(Ok(_)))));
            // Two of the map, a value each of offset, tag and cursor, four for the outcome and the pattern among the extensions;
            // the first to share the message makes it shareable.
            let expected = if nth == 0 { 9..=10 } else { 9..=9 };
            assert!(expected.contains(&info.count_total), "{nth}: {info:?}");
        }
    });
}

#[test]
fn publishing_to_a_full_history_frees_what_it_allocates() {
    let comet = Comet::builder().retention(Retention::default().appends(10)).build();
    let channel = comet.channel("/c/1");
    let publish = || channel.publish("0123456789").wait().expect("room");
    (0..100).for_each(|_| _ = publish());
    let info = measure(|| _ = publish());
    // The text, that again when it is made to fit, and what makes it shareable; and the value's own in this test.
    assert!(info.count_total <= 4, "{info:?}");
    assert_eq!((info.count_current, info.bytes_current), (0, 0), "{info:?}");
}

#[test]
fn a_channel_without_a_waiter_is_small() {
    const CHANNELS: i64 = 10_000;
    let comet = Comet::new();
    let names: Vec<_> = (0..CHANNELS).map(|n| format!("/c/{n}")).collect();
    let append_all = || {
        for name in &names {
            append(&comet.channel(name));
        }
    };
    let made = measure(append_all);
    let payload = 66;
    let each = made.bytes_current / CHANNELS - payload;
    // The entry with its name, its lock and the log, in which the append lies (208), the append's shared part (64), the name's text, the
    // queue of expiries and the map.
    assert!(each <= 330, "{each} bytes beside the payload");
}

#[test]
fn futures_are_as_large_as_what_they_hold() {
    for (inner, outer) in [
        (
            size_of::<Ready<Result<Response<()>, Infallible>>>(),
            size_of::<ResponseFuture<Ready<Result<Response<()>, Infallible>>>>(),
        ),
        (size_of::<Pin<Box<()>>>(), size_of::<ResponseFuture<Pin<Box<()>>>>()),
    ] {
        assert!(outer <= inner.max(24) + 8, "{outer} around {inner}");
    }
}
