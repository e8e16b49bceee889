//! A chat with rooms: an axum application with a page, a `POST` and a count of its own, and the channels among its routes.
//!
//! ```sh
//! cargo run --example chat
//! ```
//!
//! Open <http://127.0.0.1:3000> in two browsers, and talk. Then, beside them, listen and talk with curl:
//!
//! ```sh
//! curl -i http://127.0.0.1:3000/rooms/lobby
//! curl -i 'http://127.0.0.1:3000/rooms/lobby?offset=-1'
//! curl -i --json '{"name": "curl", "text": "hello"}' http://127.0.0.1:3000/rooms/lobby
//! ```
//!
//! Try to make it lose a message. Take a browser's network away while the other talks, and give it back; close the lid
//! of a laptop; stop the server and start it again: what was said is gone then, and the pages say so.
//!
//! What the browser runs is in `room.js`, which sends and waits and can be copied as it is, and `page.js`, which shows.

#[path = "../support/stop.rs"]
mod stop;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State},
    http::{
        StatusCode,
        header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    },
    response::{IntoResponse, Redirect},
    routing::{get, get_service},
};
use serde::{Deserialize, Serialize};
use std::{env, error::Error, future::IntoFuture, time::SystemTime};
use stop::{late, stopped};
use tokio::net::TcpListener;
use tower_comet::{Channel, Comet, CometLayer, Route};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let comet = Comet::new();
    let rooms = CometLayer::new(comet.clone()).route("/rooms/{room}", Route::new().read_by_anyone()).into_service();

    let app = Router::new()
        .route("/", get(|| async { Redirect::to("/lobby") }))
        .route("/{room}", get(page))
        .route("/chat.css", get(([(CONTENT_TYPE, "text/css")], include_str!("chat.css"))))
        .route("/page.js", get(([(CONTENT_TYPE, "text/javascript")], include_str!("page.js"))))
        .route("/room.js", get(([(CONTENT_TYPE, "text/javascript")], include_str!("room.js"))))
        // A GET of a room reads its channel or waits; a POST is handled by the application.
        .route("/rooms/{room}", get_service(rooms).post(say))
        .route("/rooms/{room}/waiting", get(waiting))
        .layer(DefaultBodyLimit::max(64 * 1024))
        .with_state(comet.clone());

    let listener = TcpListener::bind(env::var("LISTEN").as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let server = axum::serve(listener, app).with_graceful_shutdown(comet.close_on(stopped()));
    tokio::select! {
        ended = server.into_future() => ended?,
        () = late() => {}
    }
    Ok(())
}

/// What a browser sends. That it must be JSON keeps other sites' forms out.
#[derive(Deserialize)]
struct Said {
    name: String,
    text: String,
}

/// What everybody reads: who said what, and when, in milliseconds since 1970.
#[derive(Serialize)]
struct Message<'a> {
    name: &'a str,
    text: &'a str,
    at: u128,
}

/// `POST /rooms/{room}`: says something to everybody in the room.
async fn say(
    State(comet): State<Comet>,
    Path(room): Path<String>,
    Json(said): Json<Said>,
) -> Result<StatusCode, (StatusCode, String)> {
    let room = channel(&comet, &room)?;
    let (name, text) = (said.name.trim(), said.text.trim());
    if !(1..=40).contains(&name.chars().count()) || name.contains(char::is_control) {
        return Err((StatusCode::UNPROCESSABLE_ENTITY, "a name has 1 to 40 characters".to_owned()));
    }
    if !(1..=4_000).contains(&text.chars().count()) {
        return Err((StatusCode::UNPROCESSABLE_ENTITY, "a message has 1 to 4,000 characters".to_owned()));
    }
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    match room.publish(Message { name, text, at }).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

/// `GET /rooms/{room}/waiting`: how many requests are parked in the room.
async fn waiting(State(comet): State<Comet>, Path(room): Path<String>) -> Result<Json<usize>, (StatusCode, String)> {
    Ok(Json(channel(&comet, &room)?.waiters()))
}

/// `GET /{room}`: the page, the same for every room; its script finds the room in the address.
async fn page(State(comet): State<Comet>, Path(room): Path<String>) -> Result<impl IntoResponse, (StatusCode, String)> {
    /// Messages are text of strangers. The page never makes them markup, and if it did, nothing of it would run.
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                          base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
    channel(&comet, &room)?;
    Ok(([(CONTENT_SECURITY_POLICY, POLICY), (CONTENT_TYPE, "text/html; charset=utf-8")], include_str!("chat.html")))
}

/// The room's channel, which is named by the path of its requests.
fn channel(comet: &Comet, room: &str) -> Result<Channel, (StatusCode, String)> {
    let fits = (1..=40).contains(&room.chars().count());
    if !fits || !room.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_')) {
        let why = "a room is called by 1 to 40 letters and digits, - and _\n";
        return Err((StatusCode::NOT_FOUND, why.to_owned()));
    }
    Ok(comet.channel(format!("/rooms/{room}")))
}
