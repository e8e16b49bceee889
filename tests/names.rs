//! A path is one name for everybody, or none: no spelling of it comes in by another route than the one that guards it.

mod support;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use std::future::ready;
use support::{Client, Server, Teapot, get, send};
use tower_comet::{Access, Comet, CometLayer, Denied, Route};
use tower_layer::Layer;

/// An open route beside a guarded one that is more specific.
fn layer(comet: &Comet) -> CometLayer {
    let nobody = |_: Access| ready(Err::<(), _>(Denied::forbidden()));
    CometLayer::new(comet.clone())
        .route("/rooms/{room}", Route::new().read_by_anyone())
        .route("/rooms/{room}/private", Route::new().read_by(nobody))
        .route("/files/{*path}", Route::new().read_by_anyone())
        .route("/files/secret/{*path}", Route::new().read_by(nobody))
        .route("/files/secret", Route::new().read_by(nobody))
        .route("/short/{room}", Route::new().read_by_anyone().channel("{room}"))
}

/// What a path reads: the channel of that name, the guard, nothing, or the application.
const TABLE: &[(&str, u16, &str)] = &[
    ("/rooms/42", 200, "/rooms/42"),
    ("/rooms/42/private", 403, ""),
    // The slash, encoded.
    ("/rooms/42%2Fprivate", 400, ""),
    ("/rooms/42%2fprivate", 400, ""),
    ("/rooms/%2F", 400, ""),
    ("/rooms%2F42", 418, ""),
    ("/rooms%2F42%2Fprivate", 418, ""),
    // Twice encoded: a name with a percent sign in it, which is no path.
    ("/rooms/42%252Fprivate", 200, "/rooms/42%2Fprivate"),
    ("/rooms/42%25252Fprivate", 200, "/rooms/42%252Fprivate"),
    // Other spellings of the guarded segment.
    ("/rooms/42/%70rivate", 418, ""),
    ("/rooms/42/Private", 418, ""),
    ("/rooms/42/PRIVATE", 418, ""),
    ("/rooms/42/private/", 418, ""),
    ("/rooms/42//private", 418, ""),
    ("/rooms/42/./private", 418, ""),
    ("/rooms/42/private;a=b", 418, ""),
    ("/rooms/42/private%00", 418, ""),
    ("/ROOMS/42/private", 418, ""),
    ("//rooms/42/private", 418, ""),
    ("/rooms/%34%32/private", 403, ""),
    ("/rooms/%34%32", 200, "/rooms/42"),
    ("/files/secret/key", 403, ""),
    ("/files/%73ecret/key", 400, ""),
    ("/files/%73ecret", 400, ""),
    ("/files/Secret/key", 200, "/files/Secret/key"),
    ("/files/secret%2Fkey", 400, ""),
    ("/files/a/../secret/key", 400, ""),
    ("/files/a/%2e%2e/secret/key", 400, ""),
    ("/files/a/%2E%2E%2Fsecret%2Fkey", 400, ""),
    ("/files/a/%252e%252e/secret/key", 200, "/files/a/%2e%2e/secret/key"),
    ("/files/./secret/key", 400, ""),
    ("/files//secret/key", 400, ""),
    ("/files/secret//key", 400, ""),
    ("/files/secret/", 400, ""),
    // Dots.
    ("/rooms/..", 400, ""),
    ("/rooms/%2e%2e", 400, ""),
    ("/rooms/%2e%2e%2f", 400, ""),
    ("/rooms/%2e%2e%2f42%2fprivate", 400, ""),
    ("/rooms/.%2e", 400, ""),
    ("/rooms/.", 400, ""),
    ("/rooms/...", 200, "/rooms/..."),
    ("/rooms/..%5cprivate", 200, "/rooms/..\\private"),
    // What is no text.
    ("/rooms/%", 400, ""),
    ("/rooms/%4", 400, ""),
    ("/rooms/%zz", 400, ""),
    ("/rooms/%u002f", 400, ""),
    ("/rooms/a%00b", 400, ""),
    ("/rooms/a%0d%0aSet-Cookie:b", 400, ""),
    ("/rooms/a%7f", 400, ""),
    ("/rooms/%c0%af", 400, ""),
    ("/rooms/%e0%80%af", 400, ""),
    ("/rooms/%ff", 400, ""),
    ("/rooms/%c2%85", 400, ""),
    // What is.
    ("/rooms/caf%C3%A9", 200, "/rooms/café"),
    ("/rooms/a+b%20c", 200, "/rooms/a+b c"),
    ("/rooms/%E2%88%95", 200, "/rooms/∕"),
    ("/rooms/a:b@c!$&'()*,;=~", 200, "/rooms/a:b@c!$&'()*,;=~"),
    // A name made of a parameter is decoded as strictly.
    ("/short/42", 200, "42"),
    ("/short/rooms%2F42%2Fprivate", 400, ""),
    ("/short/%2Frooms%2F42%2Fprivate", 400, ""),
    ("/short/%2e%2e", 400, ""),
    ("/short/%zz", 400, ""),
];

#[tokio::test(start_paused = true)]
async fn a_guarded_path_cannot_be_spelled_so_that_it_is_not_guarded() {
    let comet = Comet::new();
    let layer = layer(&comet);
    comet.channel("/rooms/42/private").publish("for nobody").await.unwrap();
    comet.channel("/files/secret/key").publish("for nobody").await.unwrap();
    comet.channel("/files/secret").publish("for nobody").await.unwrap();
    for &(path, status, name) in TABLE {
        if !name.is_empty() {
            comet.channel(name).publish(name).await.unwrap();
        }
        let seen = send(&layer, get(&format!("{path}?offset=-1"))).await;
        assert_eq!(seen.status.as_u16(), status, "{path}: {seen:?}");
        match status {
            200 => assert_eq!(seen.json().as_array().and_then(|all| all.last()), Some(&name.into()), "{path}"),
            400 => assert_eq!(seen.reason(), "name", "{path}"),
            _ => {}
        }
        assert!(!seen.text().contains("for nobody"), "{path}");
    }
}

#[tokio::test]
async fn the_same_over_a_socket_in_both_versions_of_http() {
    let comet = Comet::new();
    let server = Server::start(layer(&comet).layer(Teapot)).await;
    let (mut http1, mut http2) = (Client::http1(server.addr).await, Client::http2(server.addr).await);
    for &(path, status, _) in TABLE {
        for client in [&mut http1, &mut http2] {
            let seen = client.send(get(&format!("{path}?offset=-1"))).await.expect("an answer");
            assert_eq!(seen.status.as_u16(), status, "{path}");
        }
    }
    // A target with an authority in it is matched by its path.
    let seen = http1.send(get("http://else.where/rooms/42/private?offset=-1")).await.expect("an answer");
    assert_eq!(seen.status.as_u16(), 403);
}

#[tokio::test(start_paused = true)]
async fn a_name_has_a_length_and_the_decoded_one_counts() {
    let comet = Comet::builder().max_name(20).build();
    let layer = layer(&comet);
    for (name, status) in [
        ("x".repeat(13), 200),
        ("x".repeat(14), 400),
        ("%20".repeat(13), 200),
        ("%C3%A9".repeat(6), 200),
        ("%C3%A9".repeat(7), 400),
    ] {
        let seen = send(&layer, get(&format!("/rooms/{name}?offset=-1"))).await;
        assert_eq!(seen.status.as_u16(), status, "{name}");
    }
    let layer = self::layer(&Comet::new());
    for (length, status) in [(255 - "/rooms/".len(), 200), (256 - "/rooms/".len(), 400)] {
        let uri = format!("/rooms/{}?offset=-1", "x".repeat(length));
        assert_eq!(send(&layer, get(&uri)).await.status.as_u16(), status, "the default");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_name_is_refused_before_anybody_is_asked_and_before_a_body_is_read() {
    let asked = |_: Access| -> std::future::Ready<Result<(), Denied>> { panic!("it names no channel") };
    let comet = Comet::new();
    let layer = CometLayer::new(comet).route("/{x}", Route::new().read_by(asked).append_by(asked));
    let unread = Request::post("/a%2Fb").body(support::Untouchable).unwrap();
    assert_eq!(support::send_with(&layer, unread).await.status.as_u16(), 400);
    let empty = Request::get("/a%00b").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(support::send_with(&layer, empty).await.status.as_u16(), 400);
}
