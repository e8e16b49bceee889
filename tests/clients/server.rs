//! The server of `tests/clients`: a strict route on `/v1/stream/…` and a comet route on `/events/…`, open to anyone and to pages of
//! every origin. Clients read the response headers that the crate exposes by itself.
//!
//! It listens on the environment variable `LISTEN`; with `--redis URL` the logs are on Redis. `GET /waiters` counts the waits.

use axum::{Router, routing::get};
use std::{env, error::Error};
use tokio::net::TcpListener;
use tower_comet::{Comet, CometLayer, Route};
use tower_http::cors::{Any, CorsLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let comet = match env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => Comet::new(),
        [flag, url] if flag == "--redis" => Comet::builder().redis(url).connect().await?,
        _ => return Err("usage: server [--redis URL]".into()),
    };
    let open = |route: Route| route.read_by_anyone().create_by_anyone().append_by_anyone().close_by_anyone();
    let channels = CometLayer::new(comet.clone())
        .route("/v1/stream/{*path}", open(Route::strict()))
        .route("/events/{*path}", open(Route::new()));
    let app = Router::new()
        .route("/waiters", get(move || async move { comet.waiters().to_string() }))
        .layer(channels)
        .layer(CorsLayer::new().allow_origin(Any).allow_methods(Any).allow_headers(Any));

    let listener = TcpListener::bind(env::var("LISTEN")?).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}
