//! Authentication in front of channels: which arrangements of axum guard them. `docs/placement.md` has the same table.

mod support;

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header::AUTHORIZATION},
    middleware::{Next, from_fn},
    response::Response,
    routing::{any, get, get_service},
};
use std::{
    collections::HashSet,
    fmt,
    future::ready,
    sync::{Arc, Mutex},
};
use support::{Seen, settle};
use tower::{ServiceBuilder, ServiceExt};
use tower_comet::{Access, Comet, CometLayer, CometRoutes, Denied, Route};

#[derive(Clone)]
struct User;

/// Answers an unauthenticated client with 401; leaves the user of any other in the extensions.
async fn log_in(mut request: Request, next: Next) -> Result<Response, StatusCode> {
    if !request.headers().contains_key(AUTHORIZATION) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    request.extensions_mut().insert(User);
    Ok(next.run(request).await)
}

async fn f() -> StatusCode {
    StatusCode::IM_A_TEAPOT
}

/// The parts of the arrangements.
#[derive(Clone)]
struct Parts {
    /// The layer.
    comet: CometLayer,
    /// The routes as a service.
    channels: CometRoutes,
    /// The routes as a service, without the prefix that `nest_service` strips.
    below: CometRoutes,
}

impl Parts {
    fn new(comet: &Comet, route: Route) -> Self {
        let route = route.channel("events:{channel}");
        let layer = CometLayer::new(comet.clone());
        let below = layer.clone().route("/{channel}", route.clone()).into_service();
        let comet = layer.route("/events/{channel}", route.clone()).route("/api/events/{channel}", route);
        Self { channels: comet.clone().into_service(), comet, below }
    }
}

/// How an arrangement answers a `GET` of a channel that anyone may read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// 401 without a login, 200 with one.
    Guarded,
    /// 200 without a login.
    Open,
    /// 404: the request does not reach the channels.
    NotServed,
}
use Verdict::{Guarded, NotServed, Open};

/// As in the table of the documentation.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Guarded => "guarded",
            Open => "**open**",
            NotServed => "404",
        })
    }
}

type Row = (&'static str, &'static str, Verdict, fn(Parts) -> Router);

const P: &str = "/events/{channel}";
const EVENTS: &str = "/events/a";
const API: &str = "/api/events/a";

fn app() -> Router {
    Router::new().route("/", get(f))
}

fn inner() -> Router {
    Router::new().route("/handler", get(f))
}

fn routes(channels: CometRoutes) -> Router {
    Router::new().route_service(P, channels)
}

/// `from_fn(log_in)` is `auth` in the names.
const MOUNTED: &[Row] = &[
    ("app.route_service(P, channels).layer(auth)", EVENTS, Guarded, |parts| {
        app().route_service(P, parts.channels).layer(from_fn(log_in))
    }),
    ("app.route_service(P, channels).route_layer(auth)", EVENTS, Guarded, |parts| {
        app().route_service(P, parts.channels).route_layer(from_fn(log_in))
    }),
    ("app.layer(auth).route_service(P, channels)", EVENTS, Open, |parts| {
        app().layer(from_fn(log_in)).route_service(P, parts.channels)
    }),
    ("app.route_layer(auth).route_service(P, channels)", EVENTS, Open, |parts| {
        app().route_layer(from_fn(log_in)).route_service(P, parts.channels)
    }),
    ("app.route_service(P, ServiceBuilder::new().layer(auth).service(channels))", EVENTS, Guarded, |parts| {
        app().route_service(P, ServiceBuilder::new().layer(from_fn(log_in)).service(parts.channels))
    }),
    ("app.route(P, get_service(channels).post(f).layer(auth))", EVENTS, Guarded, |parts| {
        app().route(P, get_service(parts.channels).post(f).layer(from_fn(log_in)))
    }),
    ("app.route(P, get_service(channels).post(f)).route_layer(auth)", EVENTS, Guarded, |parts| {
        app().route(P, get_service(parts.channels).post(f)).route_layer(from_fn(log_in))
    }),
    ("app.merge(routes.route_layer(auth))", EVENTS, Guarded, |parts| {
        app().merge(routes(parts.channels).route_layer(from_fn(log_in)))
    }),
    ("app.merge(routes).layer(auth)", EVENTS, Guarded, |parts| {
        app().merge(routes(parts.channels)).layer(from_fn(log_in))
    }),
    ("app.layer(auth).merge(routes)", EVENTS, Open, |parts| app().layer(from_fn(log_in)).merge(routes(parts.channels))),
    ("app.nest(\"/api\", routes.route_layer(auth))", API, Guarded, |parts| {
        app().nest("/api", routes(parts.channels).route_layer(from_fn(log_in)))
    }),
    ("app.nest(\"/api\", routes).route_layer(auth)", API, Guarded, |parts| {
        app().nest("/api", routes(parts.channels)).route_layer(from_fn(log_in))
    }),
    ("app.nest(\"/api\", routes).layer(auth)", API, Guarded, |parts| {
        app().nest("/api", routes(parts.channels)).layer(from_fn(log_in))
    }),
    ("app.layer(auth).nest(\"/api\", routes)", API, Open, |parts| {
        app().layer(from_fn(log_in)).nest("/api", routes(parts.channels))
    }),
    ("app.nest_service(\"/events\", channels).route_layer(auth)", EVENTS, Guarded, |parts| {
        app().nest_service("/events", parts.below).route_layer(from_fn(log_in))
    }),
    ("app.nest_service(\"/events\", channels).layer(auth)", EVENTS, Guarded, |parts| {
        app().nest_service("/events", parts.below).layer(from_fn(log_in))
    }),
    ("app.layer(auth).nest_service(\"/events\", channels)", EVENTS, Open, |parts| {
        app().layer(from_fn(log_in)).nest_service("/events", parts.below)
    }),
    ("app.fallback_service(channels).layer(auth)", EVENTS, Guarded, |parts| {
        app().fallback_service(parts.channels).layer(from_fn(log_in))
    }),
    ("app.fallback_service(channels).route_layer(auth)", EVENTS, Open, |parts| {
        app().fallback_service(parts.channels).route_layer(from_fn(log_in))
    }),
];

const LAYERED: &[Row] = &[
    ("app.layer(comet).layer(auth)", EVENTS, Guarded, |parts| app().layer(parts.comet).layer(from_fn(log_in))),
    ("app.layer(auth).layer(comet)", EVENTS, Open, |parts| app().layer(from_fn(log_in)).layer(parts.comet)),
    ("app.layer(ServiceBuilder::new().layer(auth).layer(comet))", EVENTS, Guarded, |parts| {
        app().layer(ServiceBuilder::new().layer(from_fn(log_in)).layer(parts.comet))
    }),
    ("app.layer(ServiceBuilder::new().layer(comet).layer(auth))", EVENTS, Open, |parts| {
        app().layer(ServiceBuilder::new().layer(parts.comet).layer(from_fn(log_in)))
    }),
    ("app.layer(comet).route_layer(auth)", EVENTS, Open, |parts| app().layer(parts.comet).route_layer(from_fn(log_in))),
    ("app.route_layer(auth).layer(comet)", EVENTS, Open, |parts| app().route_layer(from_fn(log_in)).layer(parts.comet)),
    ("app.route(P, any(f)).route_layer(auth).layer(comet)", EVENTS, Open, |parts| {
        app().route(P, any(f)).route_layer(from_fn(log_in)).layer(parts.comet)
    }),
    ("app.nest(\"/api\", inner).layer(comet).layer(auth)", API, Guarded, |parts| {
        app().nest("/api", inner()).layer(parts.comet).layer(from_fn(log_in))
    }),
    ("app.nest(\"/api\", inner.layer(auth)).layer(comet)", API, Open, |parts| {
        app().nest("/api", inner().layer(from_fn(log_in))).layer(parts.comet)
    }),
    ("app.nest(\"/api\", inner.fallback(f).layer(comet).layer(auth))", API, Guarded, |parts| {
        app().nest("/api", inner().fallback(f).layer(parts.comet).layer(from_fn(log_in)))
    }),
    ("app.nest(\"/api\", inner.fallback(f).layer(auth).layer(comet))", API, Open, |parts| {
        app().nest("/api", inner().fallback(f).layer(from_fn(log_in)).layer(parts.comet))
    }),
    ("app.nest(\"/api\", inner.fallback(f).layer(comet)).layer(auth)", API, Guarded, |parts| {
        app().nest("/api", inner().fallback(f).layer(parts.comet)).layer(from_fn(log_in))
    }),
    ("app.nest(\"/api\", inner.fallback(f).layer(comet)).route_layer(auth)", API, Open, |parts| {
        app().nest("/api", inner().fallback(f).layer(parts.comet)).route_layer(from_fn(log_in))
    }),
    ("app.nest(\"/api\", inner.layer(comet)).layer(auth)", API, NotServed, |parts| {
        app().nest("/api", inner().layer(parts.comet)).layer(from_fn(log_in))
    }),
    ("app.nest_service(\"/api\", inner.layer(comet).layer(auth))", API, Guarded, |parts| {
        app().nest_service("/api", inner().layer(parts.comet).layer(from_fn(log_in)))
    }),
    ("app.nest_service(\"/api\", inner.layer(auth).layer(comet))", API, Open, |parts| {
        app().nest_service("/api", inner().layer(from_fn(log_in)).layer(parts.comet))
    }),
    ("app.nest_service(\"/api\", inner.layer(comet)).route_layer(auth)", API, Guarded, |parts| {
        app().nest_service("/api", inner().layer(parts.comet)).route_layer(from_fn(log_in))
    }),
    ("app.nest_service(\"/api\", inner.layer(comet)).layer(auth)", API, Guarded, |parts| {
        app().nest_service("/api", inner().layer(parts.comet)).layer(from_fn(log_in))
    }),
    ("app.merge(inner.layer(comet)).layer(auth)", EVENTS, Guarded, |parts| {
        app().merge(inner().layer(parts.comet)).layer(from_fn(log_in))
    }),
    ("app.merge(inner.layer(comet)).route_layer(auth)", EVENTS, Open, |parts| {
        app().merge(inner().layer(parts.comet)).route_layer(from_fn(log_in))
    }),
    ("app.layer(comet).layer(auth).merge(inner)", EVENTS, NotServed, |parts| {
        app().layer(parts.comet).layer(from_fn(log_in)).merge(inner())
    }),
];

async fn get_channel(app: &Router, path: &str, logged_in: bool) -> Seen {
    let mut request = Request::get(format!("{path}?offset=-1"));
    if logged_in {
        request = request.header(AUTHORIZATION, "Bearer token");
    }
    let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let seen = Seen::read(response).await.unwrap();
    assert_eq!(seen.text().contains("secret"), seen.status == StatusCode::OK, "{seen:?}");
    seen
}

async fn statuses(app: &Router, path: &str) -> (u16, u16) {
    let (without, with) = (get_channel(app, path, false).await, get_channel(app, path, true).await);
    (without.status.as_u16(), with.status.as_u16())
}

#[tokio::test]
async fn which_arrangements_guard_a_channel_that_anyone_may_read() {
    let comet = Comet::new();
    comet.channel("events:a").publish("secret").await.unwrap();
    let parts = Parts::new(&comet, Route::new().read_by_anyone());
    for (name, path, verdict, build) in MOUNTED.iter().chain(LAYERED) {
        let expected: &[_] = match verdict {
            Guarded => &[(401, 200)],
            Open => &[(200, 200)],
            // From axum. The second if `auth` is in front of axum's fallback.
            NotServed => &[(404, 404), (401, 404)],
        };
        let got = statuses(&build(parts.clone()), path).await;
        assert!(expected.contains(&got), "{name}: {got:?}");
    }
}

#[tokio::test]
async fn no_arrangement_opens_a_channel_whose_hook_asks_for_a_user() {
    let comet = Comet::new();
    comet.channel("events:a").publish("secret").await.unwrap();
    let users = |access: Access| {
        ready(access.extensions().get::<User>().map(|_| ()).ok_or_else(|| Denied::unauthorized("Bearer")))
    };
    let parts = Parts::new(&comet, Route::new().read_by(users));
    for (name, path, verdict, build) in MOUNTED.iter().chain(LAYERED) {
        let expected: &[_] = match verdict {
            Guarded => &[(401, 200)],
            // The hook finds no user, because the authentication is not in front of it.
            Open => &[(401, 401)],
            NotServed => &[(404, 404), (401, 404)],
        };
        let got = statuses(&build(parts.clone()), path).await;
        assert!(expected.contains(&got), "{name}: {got:?}");
    }
}

#[test]
fn the_documentation_has_a_row_for_each_arrangement() {
    let documented: Vec<_> = include_str!("../docs/placement.md")
        .lines()
        .filter(|line| ["| guarded |", "| **open** |", "| 404 |"].iter().any(|verdict| line.ends_with(verdict)))
        .filter(|line| line.contains("auth"))
        .collect();
    let tested: Vec<_> = MOUNTED
        .iter()
        .chain(LAYERED)
        .map(|(name, path, verdict, _)| format!("| `{name}` | `{path}` | {verdict} |"))
        .collect();
    assert_eq!(documented, tested);
}

/// Sessions by their id: loaded before the request and saved after the response, as many session layers do.
type Sessions = Arc<Mutex<HashSet<&'static str>>>;

async fn load_and_save(sessions: Sessions, mut request: Request, next: Next) -> Response {
    let known = sessions.lock().unwrap().contains("ann");
    if known {
        request.extensions_mut().insert(User);
    }
    let response = next.run(request).await;
    if known {
        sessions.lock().unwrap().insert("ann");
    }
    response
}

/// Logs out while a wait is parked, and returns whether the session exists after the wait.
async fn survives_a_log_out(comet: Comet, sessions: Sessions, app: Router) -> bool {
    let wait = Request::get("/events/a").body(Body::empty()).unwrap();
    let wait = tokio::spawn(app.oneshot(wait));
    settle().await;
    assert_eq!(comet.waiters(), 1);
    sessions.lock().unwrap().remove("ann");
    comet.channel("/events/a").publish("news").await.unwrap();
    assert_eq!(wait.await.unwrap().unwrap().status(), StatusCode::OK);
    sessions.lock().unwrap().contains("ann")
}

#[tokio::test]
async fn a_session_layer_that_saves_on_every_response_undoes_a_log_out_during_a_wait() {
    let (comet, sessions) = (Comet::new(), Sessions::new(HashSet::from(["ann"]).into()));
    let users = |access: Access| {
        ready(access.extensions().get::<User>().map(|_| ()).ok_or_else(|| Denied::unauthorized("Bearer")))
    };
    let channels = CometLayer::new(comet.clone()).route(P, Route::new()).read_by(users).into_service();
    let store = sessions.clone();
    let session = from_fn(move |request, next| load_and_save(store.clone(), request, next));
    let app = app().route_service(P, channels).layer(session);
    assert!(survives_a_log_out(comet, sessions, app).await, "the documented fault no longer occurs");
}

#[tokio::test]
async fn a_hook_that_looks_the_session_up_leaves_a_log_out_during_a_wait_alone() {
    let (comet, sessions) = (Comet::new(), Sessions::new(HashSet::from(["ann"]).into()));
    let store = sessions.clone();
    let users = move |_: Access| {
        let known = store.lock().unwrap().contains("ann");
        ready(if known { Ok(()) } else { Err(Denied::unauthorized("Cookie")) })
    };
    let channels = CometLayer::new(comet.clone()).route(P, Route::new()).read_by(users).into_service();
    let store = sessions.clone();
    let session = from_fn(move |request, next| load_and_save(store.clone(), request, next));
    // Not around the channels: a route that is added after a layer is outside of it.
    let app = app().layer(session).route_service(P, channels);
    assert!(!survives_a_log_out(comet, sessions, app).await);
}
