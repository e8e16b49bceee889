//! No framework: hyper, the layer around a plain function, and a thread that knows nothing of async.
//!
//! ```sh
//! cargo run --example hyper
//! ```
//!
//! The thread publishes the time, once a second. Wait for the next tick; read all that there have been; wait for
//! what comes after one of them, over HTTP/2:
//!
//! ```sh
//! curl -i http://127.0.0.1:3000/events/clock
//! curl -i 'http://127.0.0.1:3000/events/clock?offset=-1'
//! curl -i --http2-prior-knowledge "http://127.0.0.1:3000/events/clock?offset=$next&live=long-poll"
//! ```
//!
//! On a channel where nothing happens a wait takes 25 s, or less if the client likes, and is then a 204. Every other
//! path is the function's:
//!
//! ```sh
//! curl -i -H 'Prefer: wait=3' http://127.0.0.1:3000/events/nothing
//! curl -i http://127.0.0.1:3000/
//! ```
//!
//! Ctrl-C answers everybody who waits, and the server is gone at once.

#[path = "support/stop.rs"]
mod stop;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{
    convert::Infallible,
    env,
    error::Error,
    pin::pin,
    thread,
    time::{Duration, SystemTime},
};
use stop::stopped;
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tower::{Layer, service_fn};
use tower_comet::{Channel, Comet, CometLayer, Route};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let comet = Comet::new();
    let clock = comet.channel("/events/clock");
    thread::spawn(move || tick(&clock));

    let layer = CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone());
    let service = TowerToHyperService::new(layer.layer(service_fn(hello)));

    let listener = TcpListener::bind(env::var("LISTEN").as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let server = Builder::new(TokioExecutor::new());
    let graceful = GracefulShutdown::new();
    let mut closed = pin!(comet.close_on(stopped()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut closed => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = server.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
                tokio::spawn(graceful.watch(connection));
            }
            Err(error) => {
                // Out of file descriptors, most likely: it passes, but not at once.
                eprintln!("accept: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    // A client that has sent half a request must not hold the shutdown up.
    let _ = timeout(Duration::from_secs(10), graceful.shutdown()).await;
    Ok(())
}

/// The application: whatever is on no route of the layer.
async fn hello(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from(format!("{} is no channel; /events/clock is\n", request.uri().path()))))
}

/// Runs on a thread of its own, without a runtime: `wait` is for those.
fn tick(clock: &Channel) {
    loop {
        thread::sleep(Duration::from_secs(1));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if let Err(error) = clock.publish(now.as_secs()).wait() {
            eprintln!("{}: {error}", clock.name());
        }
    }
}
