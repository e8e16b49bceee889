//! A long job that its clients follow to its end, with nothing but curl.
//!
//! ```sh
//! cargo run --example jobs
//! ```
//!
//! A job is a few lines, each the seconds that one step takes. Starting one is a `POST` of the application's own; where
//! the job is heard of is in `Location`:
//!
//! ```sh
//! printf '%s\n' 1 2 1 | curl -i --data-binary @- http://127.0.0.1:3000/jobs
//! ```
//!
//! What has happened so far, and then, from the `stream-next-offset` of that answer, a wait for what happens next:
//!
//! ```sh
//! curl -i 'http://127.0.0.1:3000/jobs/1?offset=-1'
//! curl -i "http://127.0.0.1:3000/jobs/1?offset=$next&live=long-poll"
//! ```
//!
//! Again and again, until an answer says `stream-closed: true`:
//!
//! ```sh
//! follow() {
//!     local next=-1 live= head=$(mktemp)
//!     until grep -q '^stream-closed: true' "$head"; do
//!         curl -sS --fail -D "$head" -w '\n' "$1?offset=$next$live" || return
//!         next=$(tr -d '\r' <"$head" | sed -n 's/^stream-next-offset: //p')
//!         live='&live=long-poll'
//!     done
//!     rm "$head"
//! }
//! follow http://127.0.0.1:3000/jobs/1
//! ```
//!
//! A job that fails says why, and ends as well. The first of these gives up at a step that is no number, the second
//! panics:
//!
//! ```sh
//! printf '%s\n' 1 soon | curl --data-binary @- http://127.0.0.1:3000/jobs
//! printf '%s\n' 1 -1 | curl --data-binary @- http://127.0.0.1:3000/jobs
//! ```
//!
//! Ctrl-C answers everybody who waits. The jobs end with the process, and so do their channels: whoever still follows
//! one is told so by the next process (404, or 410 if it has a job of that number), and curl's `--fail` ends the loop.

#[path = "support/stop.rs"]
mod stop;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::json;
use std::{
    env,
    error::Error,
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use stop::{late, stopped};
use tokio::{net::TcpListener, time::sleep};
use tower_comet::{Channel, Comet, CometLayer, Route};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let comet = Comet::new();
    let jobs = Jobs { comet: comet.clone(), started: Arc::default() };

    // Strict: a job that nobody has started is a 404, and not a wait without an end.
    let progress = CometLayer::new(comet.clone()).route("/jobs/{id}", Route::strict().read_by_anyone()).into_service();
    let app = Router::new().route("/jobs", post(start)).route_service("/jobs/{id}", progress).with_state(jobs);

    let listener = TcpListener::bind(env::var("LISTEN").as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let server = axum::serve(listener, app).with_graceful_shutdown(comet.close_on(stopped()));
    tokio::select! {
        ended = server.into_future() => ended?,
        () = late() => {}
    }
    Ok(())
}

#[derive(Clone)]
struct Jobs {
    comet: Comet,
    started: Arc<AtomicU64>,
}

/// `POST /jobs`
async fn start(State(jobs): State<Jobs>, steps: String) -> Response {
    let id = jobs.started.fetch_add(1, Ordering::Relaxed) + 1;
    let job = jobs.comet.channel(format!("/jobs/{id}"));

    // The first message makes the channel: it is there before the client hears of it. Without room for it, no job.
    if let Err(error) = job.publish(json!({"state": "started"})).await {
        return (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response();
    }
    let location = job.name().to_owned();
    tokio::spawn(run(job, steps));
    (StatusCode::CREATED, [(header::LOCATION, location.clone())], Json(json!({"job": location}))).into_response()
}

/// Sees a job to its end, whichever that is: nobody may be left waiting for a job that is no more.
async fn run(job: Channel, steps: String) {
    // In a task of its own, so that a panic ends the job and not this.
    let end = match tokio::spawn(work(job.clone(), steps)).await {
        Ok(Ok(())) => json!({"state": "done"}),
        Ok(Err(error)) => json!({"state": "failed", "reason": error.to_string()}),
        Err(_) => json!({"state": "failed", "reason": "the job panicked"}),
    };
    // The end comes, even if there is no room to say which.
    let told = job.publish(&end).await;
    let closed = job.close().await;
    if let Err(error) = told.and(closed) {
        eprintln!("{}: {end} could not be told: {error}", job.name());
    }
}

/// The job.
async fn work(job: Channel, steps: String) -> Result<(), Box<dyn Error + Send + Sync>> {
    let of = steps.lines().count();
    for (step, seconds) in (1..).zip(steps.lines()) {
        let seconds = seconds.parse().map_err(|error| format!("step {step}, {seconds:?}: {error}"))?;
        sleep(Duration::from_secs_f64(seconds)).await;
        job.publish(json!({"state": "running", "step": step, "of": of})).await?;
    }
    Ok(())
}
