//! A stand-alone Durable Streams server: everything allowed to anyone, on `/v1/stream/…`.
//!
//! ```sh
//! cargo run --example streams
//! cargo run --example streams -- --listen 127.0.0.1:4437 --max-wait 0.5 --http2
//! ```
//!
//! | flag | |
//! | --- | --- |
//! | `--listen ADDR` | where to listen; otherwise the environment variable `LISTEN`, otherwise `127.0.0.1:3000` |
//! | `--max-wait SECONDS` | how long a long-poll waits at most, 25 by default; fractions are fine |
//! | `--http2` | HTTP/2 with prior knowledge beside HTTP/1.1 |
//! | `--redis URL` | keep the logs on Redis, with `--features redis`; start several to see them share |
//!
//! What to try:
//!
//! ```sh
//! url=http://127.0.0.1:3000/v1/stream/hello
//! curl -i -X PUT  -H 'content-type: text/plain' $url
//! curl -i -X POST -H 'content-type: text/plain' -d 'hello, ' $url
//! curl -N "$url?offset=-1&live=sse" &
//! curl -i -X POST -H 'content-type: text/plain' -H 'stream-closed: true' -d 'world' $url
//! curl -i $url
//! ```

#[path = "support/stop.rs"]
mod stop;

use axum::{Router, routing::get};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{env, error::Error, pin::pin, time::Duration};
use stop::stopped;
use tokio::{net::TcpListener, time::timeout};
use tower_comet::{Comet, CometLayer, Retention, Route};
use tower_http::cors::{Any, CorsLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse(env::args().skip(1))?;

    let comet = flags.comet().await?;
    let streams = Route::strict()
        .read_by_anyone()
        .max_wait(flags.max_wait)
        .create_by_anyone()
        .append_by_anyone()
        .close_by_anyone()
        .delete_by_anyone();
    let app = Router::new()
        .route("/plain", get(|| async { "an ordinary handler\n" }))
        .layer(CometLayer::new(comet.clone()).route("/v1/stream/{*path}", streams))
        .layer(CorsLayer::new().allow_origin(Any).allow_methods(Any).allow_headers(Any).expose_headers(Any));

    let listener = TcpListener::bind(&flags.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new());
    server.http2().timer(TokioTimer::new()).max_concurrent_streams(10_000);
    let server = if flags.http2 { server } else { server.http1_only() };

    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stopped());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely: some will come back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(app.clone());
        let connection = graceful.watch(server.serve_connection(TokioIo::new(stream), service).into_owned());
        tokio::spawn(connection);
    }
    comet.close();
    // Every wait is answered by now. Who has sent half of a request, or does not read, is not waited for.
    let _ = timeout(Duration::from_secs(10), graceful.shutdown()).await;
    Ok(())
}

struct Flags {
    listen: String,
    max_wait: Duration,
    http2: bool,
    redis: Option<String>,
}

impl Flags {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let listen = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
        let mut flags = Self { listen, max_wait: Duration::from_secs(25), http2: false, redis: None };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match &*arg {
                "--listen" => flags.listen = value()?,
                "--max-wait" => flags.max_wait = Duration::try_from_secs_f64(value()?.parse()?)?,
                "--http2" => flags.http2 = true,
                "--redis" => flags.redis = Some(value()?),
                _ => return Err(format!("unknown flag {arg}").into()),
            }
        }
        Ok(flags)
    }

    async fn comet(&self) -> Result<Comet, Box<dyn Error>> {
        let builder = Comet::builder().retention(Retention::unbounded()).max_append(16 * 1024 * 1024);
        match &self.redis {
            None => Ok(builder.build()),
            #[cfg(feature = "redis")]
            Some(url) => Ok(builder.redis(url).connect().await?),
            #[cfg(not(feature = "redis"))]
            Some(_) => Err("--redis needs `--features redis`".into()),
        }
    }
}
