//! Over real sockets: clients poll while messages are published as fast as they go, drop at random, and resume. In the end
//! every client has every message exactly once, in order.

mod support;

use http::{Request, Response};
use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};
use support::{Client, Server, Teapot, get};
use tokio::time::{sleep, timeout};
use tower::Service;
use tower_comet::{Comet, CometLayer, Outcome, OutcomeKind, Retention, Route};
use tower_layer::Layer;

const CLIENTS: usize = 500;
const BURSTS: usize = 25;
const MESSAGES: usize = 1_000;

/// How requests ended, as the server saw it.
#[derive(Debug, Default)]
struct Ends {
    at_once: AtomicUsize,
    after_waiting: AtomicUsize,
    timed_out: AtomicUsize,
    dropped: AtomicUsize,
}

/// Counts how the waits of an inner service end.
#[derive(Clone)]
struct Counted<S> {
    inner: S,
    ends: Arc<Ends>,
}

impl<S, R, B> Service<Request<R>> for Counted<S>
where
    S: Service<Request<R>, Response = Response<B>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Counting<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        Counting { wait: Box::pin(self.inner.call(request)), ends: self.ends.clone(), polls: 0, done: false }
    }
}

struct Counting<F> {
    wait: Pin<Box<F>>,
    ends: Arc<Ends>,
    polls: usize,
    done: bool,
}

impl<F: Future<Output = Result<Response<B>, E>>, B, E> Future for Counting<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.polls += 1;
        let polled = self.wait.as_mut().poll(cx);
        if let Poll::Ready(Ok(response)) = &polled {
            self.done = true;
            let end = match response.extensions().get().map(Outcome::kind) {
                Some(OutcomeKind::Delivered) if self.polls == 1 => &self.ends.at_once,
                Some(OutcomeKind::Delivered) => &self.ends.after_waiting,
                Some(OutcomeKind::TimedOut) => &self.ends.timed_out,
                outcome => panic!("{outcome:?}"),
            };
            end.fetch_add(1, Relaxed);
        }
        polled
    }
}

impl<F> Drop for Counting<F> {
    fn drop(&mut self) {
        if !self.done {
            self.ends.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Polls until it has all messages; sometimes it goes away in the middle of that, and comes back where it was.
async fn read_along(addr: SocketAddr, http2: bool, mut offset: String) -> Vec<usize> {
    let mut heard = Vec::new();
    while heard.len() < MESSAGES {
        let mut client = if http2 { Client::http2(addr).await } else { Client::http1(addr).await };
        for nth in 0.. {
            let wait = fastrand::u64(1..200);
            let answer = client.send(get(&format!("/events/news?offset={offset}&live=long-poll&timeout=0.{wait:03}")));
            let patience = if fastrand::u8(..) < 40 { fastrand::u64(0..40) } else { 60_000 };
            let seen = match timeout(Duration::from_millis(patience), answer).await {
                Ok(Ok(seen)) => seen,
                // So many come at once that the kernel has no room for them before they are accepted.
                Ok(Err(_)) if nth == 0 => break,
                Ok(Err(error)) => panic!("after {nth} answers: {error}"),
                // Perhaps there was an answer already, and it is lost: then it is asked for again.
                Err(_) => break,
            };
            match seen.status.as_u16() {
                200 => heard.extend(serde_json::from_slice::<Vec<usize>>(&seen.body).expect("an array of numbers")),
                204 => assert_eq!(seen.offset().to_string(), offset, "a time-out is at the client's own offset"),
                _ => panic!("{seen:?}"),
            }
            offset = seen.offset().to_string();
            if heard.len() >= MESSAGES {
                break;
            }
        }
        sleep(Duration::from_millis(fastrand::u64(0..30))).await;
    }
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_has_every_message_exactly_once_and_in_order() {
    let comet = Comet::builder().retention(Retention::unbounded()).build();
    let ends = Arc::new(Ends::default());
    // So small that those who are behind need several answers.
    let layer =
        CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone().max_chunk(1_000));
    let server = Server::start(Counted { inner: layer.layer(Teapot), ends: ends.clone() }).await;

    let news = comet.channel("/events/news");
    let start = news.tail().to_string();
    // One in five over HTTP/2.
    let clients: Vec<_> =
        (0..CLIENTS).map(|n| tokio::spawn(read_along(server.addr, n % 5 == 0, start.clone()))).collect();

    // A plain thread, for which no client's turn has to end.
    let publisher = thread::spawn({
        let comet = comet.clone();
        move || {
            for burst in 0..BURSTS {
                // Every other burst meets a crowd that waits, however slow the machine, and that has begun to time out; those
                // between meet one that is still coming back.
                if burst % 2 == 0 {
                    while comet.waiters() < CLIENTS / 3 {
                        thread::sleep(Duration::from_millis(1));
                    }
                    thread::sleep(Duration::from_millis(fastrand::u64(0..200)));
                }
                for n in 0..MESSAGES / BURSTS {
                    news.publish(burst * (MESSAGES / BURSTS) + n).wait().expect("room");
                }
            }
        }
    });
    for client in clients {
        let heard = timeout(Duration::from_secs(180), client).await.expect("in time").expect("no panic");
        assert!(heard.into_iter().eq(0..MESSAGES));
    }
    publisher.join().expect("no panic");

    let [at_once, after_waiting, timed_out, dropped] =
        [&ends.at_once, &ends.after_waiting, &ends.timed_out, &ends.dropped].map(|count| count.load(Relaxed));
    println!("{at_once} at once, {after_waiting} after waiting, {timed_out} timed out, {dropped} dropped");
    assert!(
        at_once.min(after_waiting).min(timed_out).min(dropped) >= CLIENTS / 10,
        "a race that hardly happened: {ends:?}"
    );
    support::until("everybody has left", || comet.waiters() == 0).await;
}
