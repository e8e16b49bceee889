//! Every route names its readers, or the layer does.

mod support;

use axum::{Router, routing::get};
use std::{
    cell::RefCell,
    future::{Ready, ready},
    panic::{AssertUnwindSafe, Location, catch_unwind, set_hook, take_hook},
    sync::Once,
};
use support::{Teapot, send};
use tower::ServiceBuilder;
use tower_comet::{Access, Authorize, Comet, CometLayer, Denied, Grant, Route};
use tower_layer::Layer;

fn nobody(_: Access) -> Ready<Result<(), Denied>> {
    ready(Err(Denied::forbidden()))
}

fn somebody(_: Access) -> Ready<Result<Grant, Denied>> {
    ready(Ok(Grant::requested()))
}

fn layer() -> CometLayer {
    CometLayer::new(Comet::new())
}

/// Returns the location and the text of a panic.
struct Panic {
    file: String,
    line: u32,
    text: String,
}

fn panic_of<T>(code: impl FnOnce() -> T) -> Panic {
    thread_local!(static LAST: RefCell<Option<(String, u32)>> = const { RefCell::new(None) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            let at = info.location().map(|at| (at.file().to_owned(), at.line()));
            LAST.with(|last| *last.borrow_mut() = at);
            previous(info);
        }));
    });
    let payload = catch_unwind(AssertUnwindSafe(code)).err().expect("it panics");
    let (file, line) = LAST.with(|last| last.borrow_mut().take()).expect("a location");
    Panic { file, line, text: payload.downcast_ref::<String>().expect("a formatted text").clone() }
}

/// Returns the location of the caller, which a panic must point to.
#[track_caller]
fn here() -> (String, u32) {
    let at = Location::caller();
    (at.file().to_owned(), at.line())
}

#[test]
fn an_incomplete_route_panics_with_its_pattern_at_the_location_of_the_caller() {
    let incomplete = layer().route("/news", Route::new().read_by_anyone()).route("/rooms/{room}", Route::new());
    let text = "comet route \"/rooms/{room}\": the route does not name its readers: call `read_by(hook)` or \
                `read_by_anyone()` on the `Route`, or `read_by(hook)` on the `CometLayer` for all routes that name none";

    let (panic, at) = (panic_of(|| incomplete.layer(Teapot)), here());
    assert_eq!((panic.text, (panic.file, panic.line)), (text.to_owned(), at));

    let mounted = incomplete.clone();
    let (panic, at) = (panic_of(|| mounted.into_service()), here());
    assert_eq!((panic.text, (panic.file, panic.line)), (text.to_owned(), at));

    assert_eq!(incomplete.check().unwrap_err().to_string(), text);
}

#[test]
fn an_incomplete_route_stops_axum_and_tower_before_the_first_request() {
    for route in [Route::new(), Route::default(), Route::strict()] {
        let incomplete = layer().route("/rooms/{room}", route.append_by_anyone());
        let app = || Router::<()>::new().route("/", get(|| async {}));
        let in_axum = panic_of(|| app().layer(incomplete.clone()));
        let on_an_empty_router = panic_of(|| Router::<()>::new().layer(incomplete.clone()));
        let in_tower = panic_of(|| ServiceBuilder::new().layer(incomplete.clone()).service(Teapot));
        for panic in [in_axum, on_an_empty_router, in_tower] {
            assert!(panic.text.starts_with("comet route \"/rooms/{room}\": "), "{}", panic.text);
        }
    }
}

#[test]
fn a_layer_is_complete_if_it_or_each_of_its_routes_names_readers() {
    for (what, layer, complete) in [
        ("no route", layer(), true),
        ("anyone", layer().route("/a", Route::new().read_by_anyone()), true),
        ("a hook", layer().route("/a", Route::strict().read_by(nobody)), true),
        ("no reader", layer().route("/a", Route::new()), false),
        ("writers only", layer().route("/a", Route::new().append_by_anyone().create_by(somebody)), false),
        ("the layer, after", layer().route("/a", Route::new()).read_by(nobody), true),
        ("the layer, before", layer().read_by(nobody).route("/a", Route::new()), true),
        (
            "the second is missing",
            layer().route("/a", Route::new().read_by_anyone()).route("/b", Route::new()).route("/c", Route::new()),
            false,
        ),
    ] {
        assert_eq!(layer.check().is_ok(), complete, "{what}");
        assert_eq!(catch_unwind(AssertUnwindSafe(|| layer.layer(Teapot))).is_ok(), complete, "{what}");
        assert_eq!(catch_unwind(AssertUnwindSafe(|| layer.into_service())).is_ok(), complete, "{what}");
    }
}

/// Adds the hook of the layer before, between or after its routes.
fn in_each_order(hook: impl Authorize + Clone) -> [CometLayer; 3] {
    let first =
        |layer: CometLayer| layer.route("/own/{x}", Route::new()).route("/news/{x}", Route::new().read_by_anyone());
    let second = |layer: CometLayer| {
        layer.route("/strict/{x}", Route::strict()).route("/hook/{x}", Route::new().read_by(somebody))
    };
    [
        second(first(layer().read_by(hook.clone()))),
        second(first(layer()).read_by(hook.clone())),
        second(first(layer())).read_by(hook),
    ]
}

#[tokio::test]
async fn the_hook_of_the_layer_decides_for_routes_without_readers_in_any_order_of_the_calls() {
    for layer in in_each_order(nobody) {
        for (path, status) in [("/own/1", 403), ("/news/1", 200), ("/strict/1", 403), ("/hook/1", 200)] {
            assert_eq!(send(&layer, support::get(&format!("{path}?offset=-1"))).await.status, status, "{path}");
        }
    }
}

#[tokio::test]
async fn the_last_hook_of_a_layer_replaces_the_earlier_ones() {
    let comet = CometLayer::new(Comet::new());
    let layer = comet.read_by(nobody).route("/a", Route::new()).read_by(somebody).route("/b", Route::new());
    for path in ["/a", "/b"] {
        assert_eq!(send(&layer, support::get(&format!("{path}?offset=-1"))).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_clone_of_a_layer_keeps_its_own_hook() {
    let open = layer().route("/a", Route::new()).read_by(somebody);
    let closed = open.clone().read_by(nobody);
    assert_eq!(send(&open, support::get("/a?offset=-1")).await.status, 200);
    assert_eq!(send(&closed, support::get("/a?offset=-1")).await.status, 403);
}

#[tokio::test]
async fn responses_that_the_hook_of_the_layer_allows_are_cached_privately() {
    let comet = Comet::new();
    comet.channel("/a").publish("message").await.unwrap();
    let minute = std::time::Duration::from_secs(60);
    let layer = CometLayer::new(comet).route("/a", Route::new().cache_for(minute)).read_by(somebody);
    let seen = send(&layer, support::get("/a?offset=-1")).await;
    assert!(seen.header("cache-control").unwrap().starts_with("private, max-age=60"), "{seen:?}");
}
