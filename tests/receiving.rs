//! The memory of request bodies that are being received together has a limit, and is counted as it is allocated.

mod support;

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Channel, Full, channel::Sender};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::{
    alloc::System,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};
use support::{Seen, Untouchable, post, send, send_with, settle};
use tokio::{task::unconstrained, time::advance};
use tower_comet::{Comet, CometLayer, OutcomeKind, Route};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BYTES: &str = "application/octet-stream";
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// One test at a time: all of them share the allocator.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that are allocated now.
fn allocated() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
}

fn with_paused_clock(test: impl Future<Output = ()>) {
    let _alone = alone();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().expect("a runtime").block_on(test);
}

fn layer(comet: &Comet) -> CometLayer {
    let route = Route::strict().read_by_anyone().append_by_anyone().create_by_anyone();
    CometLayer::new(comet.clone())
        .route("/bytes/{channel}", route)
        .route("/json/{channel}", Route::new().read_by_anyone().append_by_anyone())
}

fn limited(bytes: usize) -> (Comet, CometLayer) {
    let comet = Comet::builder().max_receiving(bytes).build();
    let layer = layer(&comet);
    (comet, layer)
}

/// A body whose length is announced, whatever arrives.
struct Announced<B> {
    body: B,
    left: Option<u64>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Announced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(left)) = (&polled, &mut self.left) {
            *left -= frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        polled
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

fn request<B>(method: &str, body: B, length: Option<u64>) -> Request<Announced<B>> {
    let request = Request::builder().method(method).uri("/bytes/x").header("content-type", BYTES);
    request.body(Announced { body, left: length }).expect("a request")
}

/// A request whose body arrives as a test sends it.
struct Upload {
    sender: Option<Sender<Bytes>>,
    answer: Pin<Box<dyn Future<Output = Seen>>>,
    seen: Option<Seen>,
}

impl Upload {
    fn begin(layer: &CometLayer, length: Option<usize>) -> Self {
        Self::by("POST", layer, length)
    }

    fn by(method: &str, layer: &CometLayer, length: Option<usize>) -> Self {
        let (sender, body) = Channel::<Bytes>::new(1);
        let (layer, request) = (layer.clone(), request(method, body, length.map(|length| length as u64)));
        // Polled by hand, many times in one poll of the test's task.
        let answer = Box::pin(unconstrained(async move { send_with(&layer, request).await }));
        let mut upload = Self { sender: Some(sender), answer, seen: None };
        upload.poll();
        upload
    }

    fn poll(&mut self) {
        if self.seen.is_none() {
            if let Poll::Ready(seen) = self.answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                self.seen = Some(seen);
            }
        }
    }

    /// Sends bytes; those of a request that was answered go nowhere.
    fn send(&mut self, bytes: usize) {
        let sent = self.sender.as_mut().expect("not ended").try_send(Frame::data(Bytes::from(vec![b'x'; bytes])));
        assert!(sent.is_ok() || self.seen.is_some(), "the last piece was read");
        self.poll();
    }

    fn end(mut self) -> Seen {
        self.sender = None;
        self.poll();
        self.seen.expect("an answer")
    }
}

fn refused(seen: &Seen) {
    assert_eq!((seen.status.as_u16(), &*seen.reason(), seen.outcome), (503, "full", Some(OutcomeKind::Refused)));
    assert!((1..=5).contains(&seen.header("retry-after").expect("when to retry").parse::<u32>().unwrap()));
}

#[test]
fn fifteen_hundred_unfinished_bodies_stay_within_64_mib_and_give_it_back() {
    with_paused_clock(async {
        const LIMIT: usize = 64 * MIB;
        let comet = Comet::new();
        let layer = layer(&comet);
        for announced in [Some(MIB), None] {
            let before = allocated();
            let mut uploads = Vec::new();
            for nth in 0..1_500 {
                let mut upload = Upload::begin(&layer, announced);
                assert!(nth > 0 || comet.stats().receiving_bytes == 0, "nothing has arrived");
                // 640 KiB of the 1 MiB, one piece after the other.
                for _ in 0..10 {
                    upload.send(64 * KIB);
                    assert!(comet.stats().receiving_bytes <= LIMIT, "{:?}", comet.stats());
                }
                uploads.push(upload);
            }
            let (counted, held) = (comet.stats().receiving_bytes, allocated() - before);
            assert!(counted > LIMIT - 2 * MIB, "{counted}: as many are received as fit");
            // What is allocated is counted; the rest is what this test and the requests need: 7 KiB each.
            assert!((counted..counted + 1_500 * 8 * KIB).contains(&held), "{held} are allocated, {counted} counted");

            drop(uploads);
            assert_eq!(comet.stats().receiving_bytes, 0);
            let left = allocated().saturating_sub(before);
            assert!(left < 64 * KIB, "{left} bytes are left");
            assert_eq!(send(&layer, post("/json/x", "application/json", "1")).await.status.as_u16(), 204);
        }
    });
}

#[test]
fn a_body_takes_memory_as_it_arrives_and_not_as_it_is_announced() {
    with_paused_clock(async {
        let (comet, layer) = limited(MIB);
        for announced in [Some(MIB), None] {
            let mut upload = Upload::begin(&layer, announced);
            assert_eq!(comet.stats().receiving_bytes, 0);
            upload.send(10);
            assert_eq!(comet.stats().receiving_bytes, 10);
            // A trickle: the memory at most doubles with what has arrived.
            for arrived in 11..3_000 {
                upload.send(1);
                let counted = comet.stats().receiving_bytes;
                assert!((arrived..=2 * arrived).contains(&counted), "{counted} for {arrived}");
            }
            drop(upload);
            assert_eq!(comet.stats().receiving_bytes, 0);
        }
        // What is announced bounds the growth: there is nothing to be cut off at the end.
        let mut upload = Upload::begin(&layer, Some(1_000));
        upload.send(600);
        upload.send(1);
        assert_eq!(comet.stats().receiving_bytes, 1_000);
    });
}

#[test]
fn a_body_that_does_not_fit_is_refused_before_it_is_read_or_at_the_byte_that_is_too_many() {
    with_paused_clock(async {
        let (comet, layer) = limited(1_000);
        for method in ["POST", "PUT"] {
            let mut first = Upload::by(method, &layer, None);
            first.send(600);

            // By its length, and nothing of it is read: it would panic.
            let mut unread = request(method, Untouchable, Some(401));
            unread.headers_mut().insert("expect", "100-continue".parse().unwrap());
            let seen = send_with(&layer, unread).await;
            refused(&seen);
            assert_eq!(seen.header("connection"), Some("close"));

            // The same, of a client that sends it anyway: it is read to its end and thrown away.
            let mut second = Upload::by(method, &layer, Some(401));
            second.send(401);
            assert_eq!(comet.stats().receiving_bytes, 600);
            let seen = second.end();
            refused(&seen);
            assert_eq!(seen.header("connection"), None);

            // In the middle: what was received of it is free at once, and not when the client has sent the rest.
            let mut third = Upload::by(method, &layer, None);
            third.send(300);
            assert_eq!(comet.stats().receiving_bytes, 900);
            third.send(101);
            assert_eq!(comet.stats().receiving_bytes, 600);
            third.send(5_000);
            refused(&third.end());

            // What fits exactly fits, though its memory cannot double.
            let mut fourth = Upload::by(method, &layer, None);
            fourth.send(300);
            fourth.send(100);
            assert_eq!(comet.stats().receiving_bytes, 1_000);
            drop((first, fourth));
            assert_eq!(comet.stats().receiving_bytes, 0);
        }
        assert_eq!((comet.stats().appends, comet.channels().count()), (0, 0));
    });
}

#[test]
fn the_memory_of_a_body_is_freed_however_its_request_ends() {
    #[derive(Clone, Copy, Debug)]
    enum End {
        Appended,
        Refused,
        TimedOut,
        Dropped,
        BrokenOff,
        Panicked,
    }
    /// Ends in an error or in a panic after 100 bytes.
    struct Fails {
        end: End,
        sent: bool,
    }
    impl Body for Fails {
        type Data = Bytes;
        type Error = &'static str;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            if !std::mem::replace(&mut self.sent, true) {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; 100])))));
            }
            match self.end {
                End::BrokenOff => Poll::Ready(Some(Err("lost"))),
                End::Panicked => panic!("a body that panics"),
                _ => Poll::Ready(None),
            }
        }
    }
    with_paused_clock(async {
        let (comet, layer) = limited(1_000);
        let put = Request::put("/bytes/x").header("content-type", BYTES).body(Full::<Bytes>::default()).unwrap();
        assert_eq!(send(&layer, put).await.status.as_u16(), 201);
        for end in [End::Appended, End::Refused, End::TimedOut, End::Dropped, End::BrokenOff, End::Panicked] {
            let status = match end {
                End::Appended | End::Refused => {
                    let mut upload = Upload::begin(&layer, None);
                    upload.send(100);
                    assert_eq!(comet.stats().receiving_bytes, 100);
                    if let End::Refused = end {
                        comet.channel("/bytes/x").delete().await.unwrap();
                    }
                    upload.end().status.as_u16()
                }
                End::TimedOut => {
                    let (layer, (mut sender, body)) = (layer.clone(), Channel::<Bytes>::new(1));
                    sender.try_send(Frame::data(Bytes::from(vec![b'x'; 100]))).unwrap();
                    let sending = tokio::spawn(async move { send_with(&layer, request("POST", body, None)).await });
                    settle().await;
                    assert_eq!(comet.stats().receiving_bytes, 100);
                    advance(Duration::from_secs(11)).await;
                    sending.await.unwrap().status.as_u16()
                }
                End::Dropped => {
                    let mut upload = Upload::begin(&layer, None);
                    upload.send(100);
                    assert_eq!(comet.stats().receiving_bytes, 100);
                    drop(upload);
                    0
                }
                End::BrokenOff => {
                    let request = Request::post("/bytes/x").body(Fails { end, sent: false }).unwrap();
                    send_with(&layer, request).await.status.as_u16()
                }
                End::Panicked => {
                    let request = Request::post("/bytes/x").body(Fails { end, sent: false }).unwrap();
                    let mut sending = Box::pin(send_with(&layer, request));
                    let mut cx = Context::from_waker(Waker::noop());
                    assert!(catch_unwind(AssertUnwindSafe(|| sending.as_mut().poll(&mut cx).map(drop))).is_err());
                    0
                }
            };
            let expected = match end {
                End::Appended => 204,
                End::Refused => 404,
                End::TimedOut => 408,
                End::BrokenOff => 400,
                End::Dropped | End::Panicked => 0,
            };
            assert_eq!((status, comet.stats().receiving_bytes), (expected, 0), "{end:?}");
        }
    });
}

#[test]
fn bytes_that_were_appended_count_as_history_alone() {
    with_paused_clock(async {
        let (comet, layer) = limited(1_000);
        for nth in 1..=10 {
            assert_eq!(
                send(&layer, post("/json/x", "application/json", format!("\"{}\"", "x".repeat(898))))
                    .await
                    .status
                    .as_u16(),
                204
            );
            assert_eq!(comet.stats().receiving_bytes, 0);
            assert!(comet.stats().history_bytes >= nth * 900, "{:?}", comet.stats());
        }
    });
}
