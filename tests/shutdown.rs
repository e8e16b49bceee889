//! Stopping: no host hangs on who waits, and who waits loses nothing.

mod support;

use axum::Router;
use http::{Method, StatusCode, Version};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{
    collections::HashSet,
    future::Future,
    net::SocketAddr,
    pin::{Pin, pin},
    time::{Duration, Instant},
};
use support::{BoxError, Client, Seen, Teapot, get, many_connections, post, send, settle, soon, until};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::JoinHandle,
    time::{self, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tower::{Layer, ServiceExt};
use tower_comet::{Comet, CometLayer, OutcomeKind, Route};

const LIVE: &str = "live=long-poll";

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone().append_by_anyone())
}

type Signal = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A server that shuts down gracefully on a signal; the task ends when it has.
type Host = fn(CometLayer, TcpListener, Signal) -> JoinHandle<()>;

fn axum_serve(layer: CometLayer, listener: TcpListener, signal: Signal) -> JoinHandle<()> {
    let app = Router::new().layer(layer);
    tokio::spawn(async move { axum::serve(listener, app).with_graceful_shutdown(signal).await.unwrap() })
}

fn hyper_util(layer: CometLayer, listener: TcpListener, mut signal: Signal) -> JoinHandle<()> {
    let service = TowerToHyperService::new(layer.layer(Teapot));
    tokio::spawn(async move {
        let server = auto::Builder::new(TokioExecutor::new());
        let graceful = GracefulShutdown::new();
        loop {
            let (stream, _) = tokio::select! {
                accepted = listener.accept() => accepted.unwrap(),
                () = &mut signal => break,
            };
            let connection = server.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
            tokio::spawn(graceful.watch(connection));
        }
        graceful.shutdown().await;
    })
}

fn tonic_transport(layer: CometLayer, listener: TcpListener, signal: Signal) -> JoinHandle<()> {
    let (_, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder().accept_http1(true).layer(layer).add_service(health);
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(async move { server.serve_with_incoming_shutdown(incoming, signal).await.unwrap() })
}

const HOSTS: [(&str, Host); 3] = [("axum::serve", axum_serve), ("hyper-util", hyper_util), ("tonic", tonic_transport)];

/// Starts a host: its address, and its task.
async fn start(
    host: Host,
    comet: &Comet,
    signal: impl Future<Output = ()> + Send + 'static,
) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), host(layer(comet), listener, Box::pin(signal)))
}

/// Parks requests, each on one of ten channels; a connection each, or a hundred on one.
async fn park(
    addr: SocketAddr,
    version: Version,
    requests: impl Iterator<Item = String>,
) -> Vec<JoinHandle<Result<Seen, BoxError>>> {
    let mut parked = Vec::new();
    let mut http2 = None;
    for (i, uri) in requests.enumerate() {
        let request = get(&uri);
        let answer = if version == Version::HTTP_2 {
            if i % 100 == 0 {
                http2 = Some(Client::http2(addr).await);
            }
            tokio::spawn(http2.as_mut().unwrap().send(request))
        } else {
            tokio::spawn(Client::http1(addr).await.send(request))
        };
        parked.push(answer);
    }
    parked
}

/// Shuts a host down with everybody parked, and says how long it took them to come, and the host to be gone.
async fn shut_down(what: &str, host: Host, version: Version) -> [Duration; 2] {
    const WAITS: usize = 1_000;
    const STREAMS: usize = 100;
    let comet = Comet::new();
    let mut tails = Vec::new();
    for i in 0..10 {
        let channel = comet.channel(format!("/events/{i}"));
        for n in 0..i {
            channel.publish(n).await.unwrap();
        }
        tails.push(channel.tail());
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let (addr, server) = start(host, &comet, comet.close_on(stopped)).await;

    let began = Instant::now();
    let waits = (0..WAITS).map(|i| format!("/events/{}?offset={}&{LIVE}", i % 10, tails[i % 10]));
    let waits = park(addr, version, waits).await;
    let streams = (0..STREAMS).map(|i| format!("/events/{}?offset=now&live=sse", i % 10));
    let streams = park(addr, version, streams).await;
    until("all are parked", || comet.waiters() == WAITS + STREAMS).await;
    let came = began.elapsed();

    let began = Instant::now();
    stop.send(()).unwrap();
    soon(server).await.unwrap();
    let took = began.elapsed();
    assert_eq!(comet.waiters(), 0, "{what}");

    let close = (version == Version::HTTP_11).then_some("close");
    for (i, wait) in waits.into_iter().enumerate() {
        let seen = soon(wait).await.unwrap().unwrap_or_else(|error| panic!("{what}: wait {i}: {error}"));
        assert_eq!((seen.status, seen.offset()), (StatusCode::NO_CONTENT, tails[i % 10]), "{what}: {i}");
        assert_eq!(seen.header("connection"), close, "{what}: {i}");
    }
    for (i, stream) in streams.into_iter().enumerate() {
        let seen = soon(stream).await.unwrap().unwrap_or_else(|error| panic!("{what}: stream {i}: {error}"));
        assert!(seen.text().contains(&tails[i % 10].to_string()), "{what}: {i}: {seen:?}");
    }
    [came, took]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_thousand_parked_every_host_is_gone_in_under_a_second_and_nobody_loses_anything() {
    many_connections();
    for (name, host) in HOSTS {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let what = format!("{name}, {version:?}");
            let [came, took] = shut_down(&what, host, version).await;
            // A tenth of a second and less; where others keep the machine busy, a few times what it took to come.
            assert!(took < Duration::from_secs(1).max(4 * came), "{what}: {took:?}, they came in {came:?}");
        }
    }
}

/// The negative control: what the test above would see if nothing were closed.
#[tokio::test]
async fn without_closing_every_host_hangs_on_who_waits() {
    for (name, host) in HOSTS {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            for uri in ["/events/news", "/events/news?offset=now&live=sse"] {
                let what = format!("{name}, {version:?}, {uri}");
                let comet = Comet::new();
                let (stop, stopped) = oneshot::channel::<()>();
                let stopped = async move { drop(stopped.await) };
                let (addr, mut server) = start(host, &comet, stopped).await;
                let parked = park(addr, version, std::iter::once(uri.to_owned())).await;
                until("it is parked", || comet.waiters() == 1).await;

                stop.send(()).unwrap();
                let ended = timeout(Duration::from_millis(100), &mut server).await;
                assert!(ended.is_err() && comet.waiters() == 1, "{what}: it ended by itself");
                comet.close();
                soon(server).await.unwrap();
                for answer in parked {
                    soon(answer).await.unwrap().unwrap_or_else(|error| panic!("{what}: {error}"));
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_stream_that_ends_before_it_is_read_says_where_it_was() {
    let comet = Comet::new();
    let tail = comet.channel("/events/news").publish("old").await.unwrap();
    let response = layer(&comet).layer(Teapot).oneshot(get("/events/news?offset=now&live=sse")).await.unwrap();
    comet.close();
    let seen = Seen::read(response).await.unwrap();
    assert!(seen.text().contains(&format!("\"streamNextOffset\":\"{tail}\"")), "{seen:?}");
    assert_eq!(seen.text().matches("event:").count(), 1, "{seen:?}");
}

/// Waits in process, on one of a hundred channels each, and notes when it ended.
async fn crowd(layer: &CometLayer, waits: usize) -> Vec<JoinHandle<(Seen, time::Instant)>> {
    let park = |i| {
        let layer = layer.clone();
        async move {
            let seen = send(&layer, get(&format!("/events/{}?timeout=25", i % 100))).await;
            (seen, time::Instant::now())
        }
    };
    let crowd = (0..waits).map(|i| tokio::spawn(park(i))).collect();
    settle().await;
    crowd
}

#[tokio::test(start_paused = true)]
async fn closing_over_a_time_releases_evenly_and_takes_nobody_new() {
    const WAITS: usize = 1_000;
    const OVER: Duration = Duration::from_secs(10);
    let comet = Comet::new();
    let layer = layer(&comet);
    let crowd = crowd(&layer, WAITS).await;
    assert_eq!(comet.waiters(), WAITS);

    let began = time::Instant::now();
    let closed = tokio::spawn(comet.close_over(OVER));
    let drained = tokio::spawn(comet.drained());
    settle().await;
    assert!(comet.is_closing() && !drained.is_finished());

    // Nobody new, from the start; and they are not told to come back in the same moment.
    let mut seconds = HashSet::new();
    for i in 0..100 {
        let live = if i % 2 == 0 { LIVE } else { "live=sse" };
        let seen = send(&layer, get(&format!("/events/{i}?offset=now&{live}"))).await;
        assert_eq!(seen.header("connection"), Some("close"));
        seconds.insert(if i % 2 == 0 {
            assert_eq!((seen.status.as_u16(), seen.outcome), (503, Some(OutcomeKind::Refused)), "{seen:?}");
            assert_eq!(seen.reason(), "closing");
            seen.header("retry-after").unwrap().parse::<u32>().unwrap()
        } else {
            // An `EventSource` would give up at a 503.
            assert_eq!((seen.status.as_u16(), seen.outcome), (200, Some(OutcomeKind::Released)), "{seen:?}");
            let millis = seen.text().strip_prefix("retry:").and_then(|text| text.strip_suffix("\n\n"));
            millis.and_then(|millis| millis.parse::<u32>().ok()).expect("a time to come back after") / 1_000
        });
    }
    assert!(seconds.len() >= 3 && seconds.iter().all(|seconds| (1..=5).contains(seconds)), "{seconds:?}");

    // What need not wait goes on.
    assert_eq!(send(&layer, get("/events/7?offset=-1")).await.status, StatusCode::OK);
    assert_eq!(send(&layer, post("/events/other", "application/json", "1")).await.status, StatusCode::NO_CONTENT);

    let mut tenths = [0; 10];
    for wait in crowd {
        let (seen, ended) = wait.await.unwrap();
        assert_eq!((seen.status.as_u16(), seen.outcome), (204, Some(OutcomeKind::Released)));
        assert_eq!(seen.header("connection"), Some("close"));
        // The last step is at the very end.
        let tenth = (ended - began).as_millis().saturating_sub(1) * 10 / OVER.as_millis();
        tenths[usize::try_from(tenth).unwrap()] += 1;
    }
    assert!(tenths.iter().all(|ended| (80..=120).contains(ended)), "{tenths:?}");
    closed.await.unwrap();
    drained.await.unwrap();
    assert_eq!((comet.waiters(), began.elapsed().as_secs()), (0, OVER.as_secs()));
}

#[tokio::test(start_paused = true)]
async fn who_is_not_released_yet_is_still_served_and_stays_if_the_closing_is_dropped() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let crowd = crowd(&layer, 100).await;
    let closing = comet.close_over(Duration::from_secs(10));
    assert!(timeout(Duration::from_millis(4_995), closing).await.is_err());
    settle().await;
    let left = comet.waiters();
    assert!((45..=55).contains(&left), "{left}");

    time::sleep(Duration::from_secs(10)).await;
    assert_eq!((comet.waiters(), comet.is_closing()), (left, true));
    assert_eq!(send(&layer, get("/events/news")).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(comet.broadcast("/events/{channel}", "still here").await.unwrap(), left);
    let mut outcomes = [0, 0];
    for wait in crowd {
        match wait.await.unwrap().0.outcome {
            Some(OutcomeKind::Released) => outcomes[0] += 1,
            Some(OutcomeKind::Delivered) => outcomes[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(outcomes, [100 - left, left]);
}

#[tokio::test(start_paused = true)]
async fn closing_over_no_time_at_all_is_closing() {
    let comet = Comet::new();
    let crowd = crowd(&layer(&comet), 100).await;
    let began = time::Instant::now();
    comet.close_over(Duration::ZERO).await;
    for wait in crowd {
        assert_eq!(wait.await.unwrap().0.outcome, Some(OutcomeKind::Released));
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn after_closing_what_waits_is_refused_and_all_else_goes_on_and_says_so_on_http1() {
    let comet = Comet::new();
    let layer = layer(&comet);
    comet.channel("/events/news").publish("old").await.unwrap();
    comet.close();
    comet.close();
    for (version, close) in [(Version::HTTP_10, true), (Version::HTTP_11, true), (Version::HTTP_2, false)] {
        for (request, status) in [
            (get("/events/news"), 503),
            (get("/events/news?timeout=0"), 204),
            (get(&format!("/events/news?offset=-1&{LIVE}")), 200),
            (get("/events/news?offset=-1"), 200),
            (support::request(Method::HEAD, "/events/news"), 200),
            (post("/events/other", "application/json", "1"), 204),
            (get("/events/news?offset=nowhere"), 400),
        ] {
            let what = format!("{version:?} {} {}", request.method(), request.uri());
            let mut request = request;
            *request.version_mut() = version;
            let seen = send(&layer, request).await;
            assert_eq!(seen.status.as_u16(), status, "{what}");
            assert_eq!(seen.header("connection"), close.then_some("close"), "{what}");
        }
    }
    // The application's answers are its own business, and its host's.
    assert_eq!(send(&layer, get("/")).await.header("connection"), None);
    comet.channel("/events/news").publish("new").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn drained_is_when_nobody_is_parked_and_closes_nothing() {
    let comet = Comet::new();
    let layer = layer(&comet);
    comet.drained().await;

    let mut first = Box::pin(layer.layer(Teapot).oneshot(get("/events/a")));
    let mut second = Box::pin(layer.layer(Teapot).oneshot(get("/events/b")));
    assert!(timeout(Duration::ZERO, &mut first).await.is_err() && timeout(Duration::ZERO, &mut second).await.is_err());
    let [one, another] = [tokio::spawn(comet.drained()), tokio::spawn(comet.drained())];
    let impatient = pin!(comet.drained());
    assert!(timeout(Duration::from_secs(1), impatient).await.is_err());
    drop(first);
    settle().await;
    assert!(!one.is_finished() && !another.is_finished() && !comet.is_closing());
    drop(second);
    one.await.unwrap();
    another.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_never_comes_closes_nothing() {
    let comet = Comet::new();
    let (_stop, stopped) = oneshot::channel::<()>();
    assert!(timeout(Duration::from_secs(1), comet.close_on(stopped)).await.is_err());
    assert!(!comet.is_closing());
    assert_eq!(send(&layer(&comet), get("/events/news")).await.outcome, Some(OutcomeKind::TimedOut));
}
