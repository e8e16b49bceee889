//! Arguments that are invalid are refused where they are given, with a text that says why.

mod support;

use std::future::ready;
use support::{get, send};
use tower_comet::{Access, Comet, CometLayer, Create, Denied, Error, Grant, OutcomeKind, Route};

fn text<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(error @ Error::Invalid(_)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_producer_has_an_id_and_an_epoch_that_http_and_redis_can_carry() {
    let comet = Comet::new();
    let channel = comet.channel("/orders");
    for id in ["", "caf\u{e9}", "line\nbreak", &"x".repeat(256)] {
        assert!(text(channel.producer(id, 1).publish("x").await).contains("id"), "{id:?}");
    }
    assert!(text(channel.producer("a", 1 << 53).publish("x").await).contains("epoch"));
    assert_eq!(channel.history(), 0);
    for (id, epoch) in [("a", (1 << 53) - 1), (&"x".repeat(255), 0)] {
        channel.producer(id, epoch).publish("x").await.unwrap();
    }
}

#[tokio::test]
async fn a_fork_is_of_a_channel_of_the_same_comet_and_only_a_fork_has_an_offset() {
    let (comet, other) = (Comet::new(), Comet::new());
    let offset = other.channel("/a").publish("one").await.unwrap();
    let channel = comet.channel("/b");
    assert!(text(channel.create(Create::fork_of(&other.channel("/a"))).await).contains("same `Comet`"));
    assert!(text(channel.create(Create::new("text/plain").at(offset)).await).contains("forks only"));
    assert!(matches!(channel.create(Create::new("nonsense").at(offset)).await, Err(Error::MediaType)));
    assert_eq!(comet.stats().channels, 0);
}

#[tokio::test]
async fn a_name_that_begins_with_a_slash_is_one_that_a_path_decodes_to() {
    let comet = Comet::new();
    for name in ["/", "/a", "/a/b", "/a%2Fb", "/...", "/.a", "a//b", "room:42", "..", "a/"] {
        comet.channel(name).publish("x").await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for name in ["", "//", "//a", "/a//b", "/a/", "/.", "/..", "/a/../b", "/a/./b", "/a\n"] {
        let refused = comet.channel(name).publish("x").await;
        assert!(matches!(refused, Err(Error::Name)), "{name:?}: {refused:?}");
    }
}

#[tokio::test]
async fn a_hook_that_grants_an_invalid_name_is_the_servers_fault() {
    let comet = Comet::new();
    let route = Route::new().read_by(|access: Access| {
        let name = access.headers().get("grant").and_then(|name| name.to_str().ok()).unwrap_or_default().to_owned();
        ready(Ok::<_, Denied>(Grant::channel(name)))
    });
    let layer = CometLayer::new(comet.clone()).route("/events/{channel}", route);
    for (nth, name) in ["", "/tenants//inbox", "/tenants/../inbox"].into_iter().enumerate() {
        let mut request = get("/events/a?offset=-1");
        request.headers_mut().insert("grant", name.parse().unwrap());
        let seen = send(&layer, request).await;
        assert_eq!((seen.status.as_u16(), seen.reason().as_str()), (500, "invalid-grant"), "{name:?}");
        assert_eq!(seen.outcome, Some(OutcomeKind::Failed));
        assert!(!seen.text().contains("tenants"), "the name may be a secret: {}", seen.text());
        assert_eq!(comet.stats().invalid_grants, nth as u64 + 1);
    }
}

#[test]
fn patterns_and_templates_of_other_kinds_are_refused_with_advice() {
    let try_route = |pattern: &str, template: Option<&str>| {
        let route = Route::new().read_by_anyone();
        let route = template.map_or(route.clone(), |template| route.channel(template));
        CometLayer::new(Comet::new()).try_route(pattern, route).map(drop).map_err(|error| error.to_string())
    };
    for (pattern, advice) in
        [("/rooms/:room", "`{room}`"), ("/files/*rest", "`{*rest}`"), ("/rooms/<room>/x", "`{room}`")]
    {
        assert!(try_route(pattern, None).unwrap_err().contains(advice), "{pattern}");
    }
    for (template, advice) in [
        ("{{room}}", "cannot be escaped"),
        ("/rooms//{room}", "invalid names"),
        ("/../{room}", "invalid names"),
        ("/rooms/{room}/", "invalid names"),
        ("", "invalid names"),
        ("room\n{room}", "invalid names"),
    ] {
        let error = try_route("/rooms/{room}", Some(template)).unwrap_err();
        assert!(error.contains(advice), "{template}: {error}");
    }
    for template in ["room:{room}", "/v2/{room}", "{room}", "/rooms/..{room}"] {
        assert_eq!(try_route("/rooms/{room}", Some(template)), Ok(()), "{template}");
    }
    assert_eq!(try_route("/v1:batch/{room}", None), Ok(()));
}
