//! Who may do what: one path that is another channel for each tenant, readers and writers.
//!
//! ```sh
//! cargo run --example tenants
//! ```
//!
//! Without a token nobody gets in (401). A reader reads and waits, and may not append (403):
//!
//! ```sh
//! curl -i 'http://127.0.0.1:3000/feed/orders?offset=-1'
//! curl -i -H 'Authorization: Bearer acme-reads' 'http://127.0.0.1:3000/feed/orders?offset=-1'
//! curl -i -H 'Authorization: Bearer acme-reads' http://127.0.0.1:3000/feed/orders
//! curl -i -H 'Authorization: Bearer acme-reads' --json '{"order": 1}' http://127.0.0.1:3000/feed/orders
//! ```
//!
//! A writer appends (204); every reader of the tenant has it, and no other tenant's:
//!
//! ```sh
//! curl -i -H 'Authorization: Bearer acme-writes' --json '{"order": 1}' http://127.0.0.1:3000/feed/orders
//! curl -i -H 'Authorization: Bearer globex-writes' 'http://127.0.0.1:3000/feed/orders?offset=-1'
//! ```
//!
//! Globex has no feed called `stock`, and is not told whether anybody has (404):
//!
//! ```sh
//! curl -i -H 'Authorization: Bearer globex-writes' 'http://127.0.0.1:3000/feed/stock?offset=-1'
//! ```
//!
//! What is decided can change. Acme freezes its feeds: they can be read, and not even its writers append (403):
//!
//! ```sh
//! curl -i -X PUT -H 'Authorization: Bearer acme-writes' http://127.0.0.1:3000/frozen
//! curl -i -H 'Authorization: Bearer acme-writes' --json '{"order": 2}' http://127.0.0.1:3000/feed/orders
//! ```
//!
//! Ctrl-C answers everybody who waits, and the server is gone at once.

#[path = "support/stop.rs"]
mod stop;

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{
        StatusCode,
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
    },
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::put,
};
use std::{
    collections::HashSet,
    env,
    error::Error,
    future::{IntoFuture, ready},
    sync::Arc,
};
use stop::{late, stopped};
use tokio::{net::TcpListener, sync::RwLock};
use tower_comet::{Access, Comet, CometLayer, Denied, Grant, Route};

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Reads,
    Writes,
}

#[derive(Clone, Copy)]
struct User {
    tenant: &'static str,
    role: Role,
}

/// Who has which token. In earnest: sessions, signed tokens, an identity provider.
const USERS: [(&str, User); 3] = [
    ("acme-reads", User { tenant: "acme", role: Role::Reads }),
    ("acme-writes", User { tenant: "acme", role: Role::Writes }),
    ("globex-writes", User { tenant: "globex", role: Role::Writes }),
];

/// Who has which feeds.
const FEEDS: [(&str, &str); 3] = [("acme", "orders"), ("acme", "stock"), ("globex", "orders")];

/// The tenants whose feeds can only be read.
type Frozen = Arc<RwLock<HashSet<&'static str>>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let comet = Comet::new();
    let frozen = Frozen::default();

    // The hooks are given the feed's name alone; the channel that they grant has the tenant's in it.
    let feed = Route::new().channel("{feed}").read_by(|access: Access| ready(may_read(&access))).append_by({
        let frozen = frozen.clone();
        move |access| may_append(access, frozen.clone())
    });
    let feeds = CometLayer::new(comet.clone()).route("/feed/{feed}", feed).into_service();
    let app = Router::new()
        .route("/frozen", put(freeze))
        .route_service("/feed/{feed}", feeds)
        .with_state(frozen)
        // Last, so that it is in front of both routes: the hooks find the user in the extensions.
        .route_layer(from_fn(authenticate));

    let listener = TcpListener::bind(env::var("LISTEN").as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let server = axum::serve(listener, app).with_graceful_shutdown(comet.close_on(stopped()));
    tokio::select! {
        ended = server.into_future() => ended?,
        () = late() => {}
    }
    Ok(())
}

/// Finds out who asks. Whether they may is for others to say.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.strip_prefix("Bearer "));
    if let Some((_, user)) = USERS.iter().find(|(known, _)| Some(*known) == token) {
        request.extensions_mut().insert(*user);
    }
    next.run(request).await
}

/// Called once for each request. A reader whose access is revoked receives until its response ends: up to `max_wait` (25 s by
/// default) on a poll, up to 60 s on an event stream.
fn may_read(access: &Access) -> Result<Grant, Denied> {
    let user = user(access)?;
    let feed = access.channel();
    if !FEEDS.contains(&(user.tenant, feed)) {
        return Err(Denied::not_found());
    }
    // The tenant is the login's. No path, however it is spelled, leads to another's channel.
    Ok(Grant::channel(format!("{}/{feed}", user.tenant)))
}

/// Asked before anything of the body is read. What takes time, such as a look into a database, can.
async fn may_append(access: Access, frozen: Frozen) -> Result<Grant, Denied> {
    let grant = may_read(&access)?;
    let user = user(&access)?;
    if user.role != Role::Writes || frozen.read().await.contains(user.tenant) {
        return Err(Denied::forbidden());
    }
    Ok(grant)
}

fn user(access: &Access) -> Result<User, Denied> {
    access.extensions().get().copied().ok_or_else(|| Denied::unauthorized("Bearer"))
}

/// `PUT /frozen`, an ordinary handler behind the same login.
async fn freeze(State(frozen): State<Frozen>, user: Option<Extension<User>>) -> Response {
    let Some(Extension(user)) = user else {
        return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")]).into_response();
    };
    if user.role != Role::Writes {
        return StatusCode::FORBIDDEN.into_response();
    }
    frozen.write().await.insert(user.tenant);
    StatusCode::NO_CONTENT.into_response()
}
