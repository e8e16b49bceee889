//! A gRPC service and channels on one port.
//!
//! ```sh
//! cargo run --example tonic
//! ```
//!
//! The gRPC service is the standard health check, for a service called `shop`. Whether it serves is told to gRPC
//! clients and to anybody with curl alike. Read what was said so far, or wait for the next change:
//!
//! ```sh
//! curl -i 'http://127.0.0.1:3000/status?offset=-1'
//! curl -i http://127.0.0.1:3000/status
//! curl -i --http2-prior-knowledge http://127.0.0.1:3000/status
//! ```
//!
//! A gRPC client watches on the same port, and curl will do for one: each message that comes is seven bytes, of which
//! the last is 1 for serving and 2 for not serving. Any other client is given `127.0.0.1:3000`, plaintext.
//!
//! ```sh
//! printf '\0\0\0\0\6\n\4shop' | curl -sN --http2-prior-knowledge --data-binary @- \
//!     -H 'content-type: application/grpc' -H 'te: trailers' \
//!     http://127.0.0.1:3000/grpc.health.v1.Health/Watch | od -An -v -tx1 -w7
//! ```
//!
//! Meanwhile, somewhere else, change it; both are told:
//!
//! ```sh
//! curl -i -X PUT -d 'not serving' http://127.0.0.1:3000/status
//! curl -i -X PUT -d serving http://127.0.0.1:3000/status
//! ```
//!
//! Ctrl-C answers everybody who waits, ends the watches, and the server is gone at once.

#[path = "support/stop.rs"]
mod stop;

use axum::{Router, extract::State, http::StatusCode, routing::put};
use std::{env, error::Error, sync::Arc};
use stop::{late, stopped};
use tokio::{net::TcpListener, sync::Mutex};
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, health_reporter},
};
use tower_comet::{Channel, Comet, CometLayer, Route};

/// As gRPC clients know it.
const SERVICE: &str = "shop";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let comet = Comet::new();
    let (reporter, health) = health_reporter();
    let status = Status { channel: comet.channel("/status"), reporter: Arc::new(Mutex::new(reporter)) };
    status.set(ServingStatus::Serving).await?;

    // The layer answers `GET /status`. Methods that it does not serve, and all of gRPC, go through to what is inside.
    let inside = Router::new().route("/status", put(set)).with_state(status.clone());
    let layer = CometLayer::new(comet.clone()).route("/status", Route::new().read_by_anyone());

    let listener = TcpListener::bind(env::var("LISTEN").as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let closed = comet.close_on(stopped());
    let server = Server::builder()
        .accept_http1(true)
        .layer(layer)
        .add_routes(Routes::from(inside))
        .add_service(health)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), async move {
            closed.await;
            status.end().await;
        });
    tokio::select! {
        ended = server => ended?,
        () = late() => {}
    }
    Ok(())
}

/// `PUT /status`
async fn set(State(status): State<Status>, body: String) -> Result<StatusCode, (StatusCode, String)> {
    let new = match &*body {
        "serving" => ServingStatus::Serving,
        "not serving" => ServingStatus::NotServing,
        _ => return Err((StatusCode::BAD_REQUEST, "`serving` or `not serving`\n".to_owned())),
    };
    status.set(new).await.map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether the service serves, for everybody who wants to know.
#[derive(Clone)]
struct Status {
    channel: Channel,
    // Locked over both, so that both tell of the changes in one order.
    reporter: Arc<Mutex<HealthReporter>>,
}

impl Status {
    async fn set(&self, new: ServingStatus) -> Result<(), tower_comet::Error> {
        let reporter = self.reporter.lock().await;
        let text = if new == ServingStatus::Serving { "serving" } else { "not serving" };
        self.channel.publish(text).await?;
        reporter.set_service_status(SERVICE, new).await;
        Ok(())
    }

    /// A gRPC stream without an end holds a graceful shutdown up as a parked wait does. `close_on` ends the waits;
    /// these streams end with what they watch.
    async fn end(&self) {
        let mut reporter = self.reporter.lock().await;
        for service in ["", SERVICE] {
            reporter.clear_service_status(service).await;
        }
    }
}
