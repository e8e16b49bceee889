//! Requests that mean no good: whatever they say, they are answered, and what is refused has changed nothing.

mod support;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::Full;
use proptest::{collection::vec, prelude::*, sample::select};
use support::{ask, open_to_all, request, send};
use tower_comet::{Comet, CometLayer, Retention, Route};

const METHODS: [&str; 8] = ["PUT", "PUT", "POST", "POST", "GET", "HEAD", "DELETE", "PATCH"];

const HEADERS: [&str; 16] = [
    "content-type",
    "stream-closed",
    "stream-seq",
    "stream-ttl",
    "stream-expires-at",
    "stream-forked-from",
    "stream-fork-offset",
    "stream-fork-sub-offset",
    "producer-id",
    "producer-epoch",
    "producer-seq",
    "if-none-match",
    "last-event-id",
    "prefer",
    "expect",
    "host",
];

/// Values that something is made of here, cut and joined, and bytes that are not even text.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let known = select(
        &[
            "application/json",
            "text/plain",
            "image/png",
            "; charset=",
            "true",
            "TRUE",
            "0",
            "1",
            "60",
            "-1",
            "now",
            "+",
            "18446744073709551615",
            "9007199254740991",
            "2099-01-01T00:00:00Z",
            "0000-00-00T00:00:00Z",
            "/s/a",
            "/s/",
            "0000000000000000_x0000000000000000",
            "9999999999999999_xffffffffffffffff",
            "\"",
            "*",
            ",",
            "W/",
            "wait=0",
            "%",
            "100-continue",
            "%2F",
            "..",
            " ",
            "__ds",
        ][..],
    );
    let known = known.prop_map(|text| text.as_bytes().to_vec());
    prop_oneof![
        6 => known.clone(),
        2 => vec(known, 0..4).prop_map(|parts| parts.concat()),
        1 => vec(any::<u8>(), 0..20),
        1 => (any::<u8>(), 0..400usize).prop_map(|(byte, times)| vec![byte; times]),
    ]
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => select(&["/s/a", "/s/b", "/comet/a", "/comet/b"][..]).prop_map(str::to_owned),
        2 => "/s/[a-c%./_~!$&'()*+,;=:@0-9A-F-]{0,12}",
        1 => "/(s|comet)/(%[0-9a-fA-F]{2}|[a-z]){0,6}",
        1 => Just("/s/__ds/x".to_owned()),
    ]
}

fn query() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just(String::new()),
        2 => Just("?offset=-1".to_owned()),
        1 => "\\?(offset|live|cursor|timeout|x)=(-1|now|long-poll|0|[a-z0-9%&=+._-]{0,20})(&live=long-poll&timeout=0)?",
    ]
}

fn hostile() -> impl Strategy<Value = Request<Full<Bytes>>> {
    let headers = vec((select(&HEADERS[..]), value()), 0..4);
    let body = prop_oneof![
        2 => select(&["", "1", "[1,2]", "[]", "{", "\"x\"", "[[", "null"][..]).prop_map(|text| text.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..200),
    ];
    (select(&METHODS[..]), path(), query(), headers, body).prop_filter_map(
        "no URI",
        |(method, path, query, headers, body)| {
            let uri: Uri = format!("{path}{query}").parse().ok()?;
            let mut request = Request::builder().method(method).uri(uri).body(Full::from(body)).ok()?;
            for (name, value) in headers {
                // What no connection lets through never gets here either.
                let Ok(value) = HeaderValue::from_bytes(&value) else { continue };
                request.headers_mut().append(HeaderName::from_static(name), value);
            }
            // It would be read for a minute, which is no time here, but a wait all the same.
            (!request.uri().query().unwrap_or_default().contains("sse")).then_some(request)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked_is_answered_and_what_is_refused_changes_nothing(requests in vec(hostile(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let comet = Comet::builder().retention(Retention::unbounded()).max_append(150).max_history(3_000).build();
            let layer = CometLayer::new(comet.clone())
                .route("/s/{*path}", open_to_all())
                .route("/comet/{channel}", Route::new().read_by_anyone().append_by_anyone().create_by_anyone().delete_by_anyone());
            for asked in requests {
                let label = format!("{asked:?}");
                let (method, path) = (asked.method().clone(), asked.uri().path().to_owned());
                let before = comet.stats();
                let seen = send(&layer, asked).await;
                let after = comet.stats();
                let status = seen.status.as_u16();
                prop_assert!(status < 500 || status == 501 || status == 503, "{}: {:?}", label, seen);
                if status >= 400 && status != 418 {
                    let same = (before.channels, before.history_bytes, before.appends) == (after.channels, after.history_bytes, after.appends);
                    // Something whose time has come may have gone meanwhile.
                    prop_assert!(same || after.history_bytes < before.history_bytes || after.channels < before.channels, "{}: {:?} {:?}", label, before, after);
                    prop_assert!(after.appends == before.appends, "{}", label);
                    if method != "HEAD" {
                        prop_assert_eq!(&seen.json()["status"], status);
                    }
                }
                prop_assert!(after.history_bytes <= 3_000 + 20 * (255 + 64), "{:?}", after);
                prop_assert_eq!(after.waiters, 0);
                if status == 201 {
                    // Where it says it is, it is; unless it was made to be over at once.
                    let location: Uri = seen.header("location").expect("a location").parse().expect("a URI");
                    prop_assert_eq!(location.path(), &path);
                    let head = send(&layer, request(http::Method::HEAD, location.path())).await;
                    prop_assert!(matches!(head.status.as_u16(), 200 | 404), "{}: {:?}", label, head);
                }
            }
            // And whatever was made can be deleted, and leaves nothing.
            let names: Vec<_> = comet.channels().map(|channel| channel.name().to_owned()).collect();
            for name in names {
                comet.channel(name).delete().await.ok();
            }
            send(&layer, ask("GET /s/elsewhere", &[], "")).await;
            let stats = comet.stats();
            prop_assert_eq!((stats.channels, stats.history_bytes, comet.channels().count()), (0, 0, 0));
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_of_the_year_9999_that_is_of_the_year_10000_elsewhere_is_described_or_refused() {
    let layer = CometLayer::new(Comet::new()).route("/s/{*path}", open_to_all());
    for (at, made, shown) in [
        ("9999-12-31T23:59:59Z", 201, 200),
        ("9999-12-31T23:59:59-00:01", 400, 404),
        ("9999-12-31T23:59:59-23:59", 400, 404),
        // Over, but not before the clock has moved.
        ("0000-01-01T00:00:00+23:59", 201, 200),
    ] {
        let put = send(&layer, ask("PUT /s/a", &[("stream-expires-at", at)], "")).await;
        assert_eq!(put.status, made, "{at}: {put:?}");
        let head = send(&layer, ask("HEAD /s/a", &[], "")).await;
        assert_eq!(head.status, shown, "{at}: {head:?}");
        send(&layer, ask("DELETE /s/a", &[], "")).await;
    }
}

/// Each fork holds its source. A long line of them, let go from its end, is not let go one within the other.
#[tokio::test(start_paused = true)]
async fn a_long_line_of_forks_of_forks_overflows_no_stack_when_all_is_over() {
    const LINE: usize = 30_000;
    for delete in [false, true] {
        let comet = Comet::builder().retention(Retention::unbounded()).build();
        let layer = CometLayer::new(comet.clone()).route("/s/{*path}", open_to_all());
        assert_eq!(send(&layer, ask("PUT /s/0", &[], "")).await.status, 201);
        for n in 1..LINE {
            let made =
                send(&layer, ask(&format!("PUT /s/{n}"), &[("stream-forked-from", &format!("/s/{}", n - 1))], ""));
            assert_eq!(made.await.status, 201);
        }
        if delete {
            for n in 0..LINE {
                assert_eq!(send(&layer, ask(&format!("DELETE /s/{n}"), &[], "")).await.status, 204);
            }
            assert_eq!(comet.stats().channels, 0);
        }
        drop((comet, layer));
    }
}

#[tokio::test]
async fn a_part_of_an_append_of_many_small_messages_is_the_first_so_many() {
    let layer = CometLayer::new(Comet::new()).route("/s/{*path}", open_to_all());
    let content = " [1 , \"],[\" ,{\"a\": [2]},\t[ ] , null ]";
    let json = [("content-type", "application/json")];
    assert_eq!(send(&layer, ask("PUT /s/source", &json, content)).await.status, 201);
    for (part, status, held) in [
        ("0", 201, "[]"),
        ("1", 201, "[1]"),
        ("2", 201, r#"[1,"],["]"#),
        ("4", 201, r#"[1,"],[",{"a":[2]},[]]"#),
        ("5", 201, r#"[1,"],[",{"a":[2]},[],null]"#),
        ("6", 400, ""),
    ] {
        let fork =
            [("stream-forked-from", "/s/source"), ("stream-fork-offset", "-1"), ("stream-fork-sub-offset", part)];
        let made = send(&layer, ask(&format!("PUT /s/{part}"), &fork, "")).await;
        assert_eq!(made.status, status, "{part}: {made:?}");
        if status == 201 {
            let read = send(&layer, ask(&format!("GET /s/{part}"), &[], "")).await;
            assert_eq!(read.json(), serde_json::from_str::<serde_json::Value>(held).expect("JSON"), "{part}");
        }
    }
    // What could not be made leaves nothing behind that keeps the source's name.
    for name in ["0", "1", "2", "4", "5", "source"] {
        assert_eq!(send(&layer, ask(&format!("DELETE /s/{name}"), &[], "")).await.status, 204, "{name}");
    }
    assert_eq!(send(&layer, ask("PUT /s/source", &[], "")).await.status, 201);
}
