//! The rooms of the chat on two nodes and one Redis: who talks on one is heard on the other, and a restart of Redis is survived.
//!
//! ```sh
//! cargo run --features redis --example cluster
//! ```
//!
//! It starts `redis-server` (`apt install redis-server`) on a free port with an empty directory, and two nodes, which in
//! earnest would be two machines behind a load balancer: <http://127.0.0.1:3000> and <http://127.0.0.1:3001>, or the address in
//! `LISTEN` and the port after it. Open one in each of two browser windows, and talk. Or with curl:
//!
//! ```sh
//! curl -i 'http://127.0.0.1:3001/rooms/lobby' &
//! curl -i --json '{"name": "curl", "text": "hello"}' http://127.0.0.1:3000/rooms/lobby
//! ```
//!
//! Then try to make it lose a message:
//!
//! * Type `r` and Enter here, or `curl -X POST http://127.0.0.1:3000/cluster/restart`: Redis is killed, is away for three seconds,
//!   and comes back with what is on its disk, which is everything that was acknowledged. Whoever waits goes on waiting. What one
//!   says meanwhile is not sent, and the page says so; said again later, all hear it.
//! * `curl http://127.0.0.1:3000/cluster/health` is what a load balancer would ask: 200, or 503 and why.
//! * Take the address of one node in a window that was on the other: the messages are the same, and so are the offsets.

mod redis;

#[path = "../support/stop.rs"]
mod stop;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State},
    http::{
        HeaderName, StatusCode,
        header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    },
    response::Redirect,
    routing::{get, get_service, post},
};
use redis::Redis;
use serde::{Deserialize, Serialize};
use std::{
    env,
    error::Error,
    future::IntoFuture,
    io::{self, stdin},
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};
use stop::{late, stopped};
use tokio::{net::TcpListener, sync::Notify};
use tower_comet::{Comet, CometLayer, Route};

/// How long Redis is away when it is restarted: shorter than a wait.
const AWAY: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut redis = Redis::start().await?;
    let restart = Arc::new(Notify::new());

    let listen: SocketAddr = env::var("LISTEN").as_deref().unwrap_or("127.0.0.1:3000").parse()?;
    let first = TcpListener::bind(listen).await?;
    // The port after it; with port 0, any that is free.
    let second = SocketAddr::new(listen.ip(), if listen.port() == 0 { 0 } else { listen.port() + 1 });
    let second = TcpListener::bind(second).await?;
    for listener in [&first, &second] {
        println!("listening on http://{}", listener.local_addr()?);
    }
    println!("Redis is on port {}; r and Enter restarts it", redis.port);

    // Two nodes, with nothing in common but Redis.
    let here = serve(first, Comet::builder().redis(&redis.url()).connect().await?, restart.clone());
    let there = serve(second, Comet::builder().redis(&redis.url()).connect().await?, restart.clone());

    // A thread, as nothing else can wait for a key without holding up the end.
    let keys = restart.clone();
    thread::spawn(move || {
        for line in stdin().lines().map_while(Result::ok) {
            if line.trim() == "r" {
                keys.notify_one();
            }
        }
    });
    let restarts = async {
        loop {
            restart.notified().await;
            println!("Redis is killed; it is back in {} s", AWAY.as_secs());
            redis.restart(AWAY).await?;
            println!("Redis is back");
        }
    };
    tokio::select! {
        ended = async { tokio::try_join!(here, there) } => ended.map(drop).map_err(Into::into),
        failed = restarts => failed,
    }
}

async fn serve(listener: TcpListener, comet: Comet, restart: Arc<Notify>) -> io::Result<()> {
    let rooms = CometLayer::new(comet.clone()).route("/rooms/{room}", Route::new().read_by_anyone()).into_service();
    let app = Router::new()
        .route("/", get(|| async { Redirect::to("/lobby") }))
        .route("/{room}", get(page))
        .route("/chat.css", get(([(CONTENT_TYPE, "text/css")], include_str!("../chat/chat.css"))))
        .route("/page.js", get(([(CONTENT_TYPE, "text/javascript")], include_str!("../chat/page.js"))))
        .route("/room.js", get(([(CONTENT_TYPE, "text/javascript")], include_str!("../chat/room.js"))))
        .route("/rooms/{room}", get_service(rooms).post(say))
        .route("/rooms/{room}/waiting", get(waiting))
        .route("/cluster/health", get(health))
        .route("/cluster/restart", post(async move || restart.notify_one()))
        .layer(DefaultBodyLimit::max(64 * 1024))
        .with_state(comet.clone());
    let server = axum::serve(listener, app).with_graceful_shutdown(comet.close_on(stopped()));
    tokio::select! {
        ended = server.into_future() => ended,
        () = late() => Ok(()),
    }
}

#[derive(Deserialize)]
struct Said {
    name: String,
    text: String,
}

#[derive(Serialize)]
struct Message<'a> {
    name: &'a str,
    text: &'a str,
    at: u128,
}

/// `POST /rooms/{room}`: says something to everybody in the room, whichever node they wait on.
async fn say(
    State(comet): State<Comet>,
    Path(room): Path<String>,
    Json(said): Json<Said>,
) -> Result<StatusCode, (StatusCode, String)> {
    let (name, text) = (said.name.trim(), said.text.trim());
    if !(1..=40).contains(&name.chars().count()) || !(1..=4_000).contains(&text.chars().count()) {
        return Err((
            StatusCode::UNPROCESSABLE_ENTITY,
            "a name of 1 to 40 characters, a text of 1 to 4,000".to_owned(),
        ));
    }
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    match comet.channel(format!("/rooms/{room}")).publish(Message { name, text, at }).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        // Without Redis nothing is taken, and nothing is promised: that is said, and the page keeps the text.
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

/// `GET /rooms/{room}/waiting`: how many requests are parked in the room, on this node.
async fn waiting(State(comet): State<Comet>, Path(room): Path<String>) -> Json<usize> {
    Json(comet.channel(format!("/rooms/{room}")).waiters())
}

/// `GET /cluster/health`: whether this node should be given requests.
async fn health(State(comet): State<Comet>) -> Result<&'static str, (StatusCode, String)> {
    comet.health().map(|()| "well").map_err(|why| (StatusCode::SERVICE_UNAVAILABLE, why.to_string()))
}

/// `GET /{room}`: the chat's page.
async fn page() -> ([(HeaderName, &'static str); 2], &'static str) {
    /// Messages are text of strangers. The page never makes them markup, and if it did, nothing of it would run.
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                          base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
    let headers = [(CONTENT_SECURITY_POLICY, POLICY), (CONTENT_TYPE, "text/html; charset=utf-8")];
    (headers, include_str!("../chat/chat.html"))
}
