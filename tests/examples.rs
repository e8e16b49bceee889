//! Every example is run as its own process, and does what its header says.
//!
//! `cargo test` builds the examples; `cargo test --test examples` alone does not.
#![cfg(unix)]

mod support;

use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use std::{env, fs, future::Future, net::SocketAddr, process::Stdio, time::Duration};
use support::{Client, Seen, get, post, request};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

const LIVE: &str = "live=long-poll";

#[tokio::test]
async fn the_chat_serves_its_page_and_brings_what_is_said_to_who_waits() {
    let example = Example::start("chat").await;
    let say = |said: Value| post("/rooms/lobby", "application/json", said.to_string());
    let hello = || say(json!({"name": "curl", "text": "hello"}));

    assert_eq!(example.send(get("/")).await.header("location"), Some("/lobby"));
    for (path, content_type) in [
        ("/lobby", "text/html; charset=utf-8"),
        ("/chat.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/room.js", "text/javascript"),
    ] {
        let seen = example.send(get(path)).await;
        assert_eq!((seen.status.as_u16(), seen.header("content-type")), (200, Some(content_type)), "{path}");
        assert!(!seen.body.is_empty(), "{path}");
    }

    let waiting = tokio::spawn(Client::http1(example.addr).await.send(get("/rooms/lobby")));
    let parked = async { while example.send(get("/rooms/lobby/waiting")).await.json() != json!(1) {} };
    soon(parked).await;
    assert_eq!(example.send(hello()).await.status.as_u16(), 204);
    let heard = soon(waiting).await.expect("no panic").expect("an answer");
    let message = &heard.json()[0];
    assert_eq!((&message["name"], &message["text"]), (&json!("curl"), &json!("hello")), "{heard:?}");
    assert!(message["at"].is_u64(), "{message}");
    assert_eq!(example.send(get("/rooms/lobby?offset=-1")).await.json(), heard.json(), "the history");

    for (refused, status) in [
        (say(json!({"name": "", "text": "hello"})), 422),
        (say(json!({"name": "curl", "text": " "})), 422),
        (post("/rooms/lobby", "text/plain", r#"{"name": "a form", "text": "of another site"}"#), 415),
        (get("/no%20room"), 404),
    ] {
        let what = format!("{} {}", refused.method(), refused.uri());
        assert_eq!(example.send(refused).await.status.as_u16(), status, "{what}");
    }
    assert_eq!(example.send(get("/rooms/lobby?offset=-1")).await.json(), heard.json(), "nothing of that was said");

    example.stop_by("-INT", get(&format!("/rooms/lobby?offset=now&{LIVE}"))).await;
}

#[tokio::test]
async fn jobs_are_followed_to_their_end_and_to_every_kind_of_it() {
    let example = Example::start("jobs").await;

    for (steps, messages) in [
        (
            "0.2\n0.2\n",
            json!([
                {"state": "started"},
                {"state": "running", "step": 1, "of": 2},
                {"state": "running", "step": 2, "of": 2},
                {"state": "done"}
            ]),
        ),
        ("", json!([{"state": "started"}, {"state": "done"}])),
        (
            "0.1\nsoon\n",
            json!([
                {"state": "started"},
                {"state": "running", "step": 1, "of": 2},
                {"state": "failed", "reason": "step 2, \"soon\": invalid float literal"}
            ]),
        ),
        ("-1\n", json!([{"state": "started"}, {"state": "failed", "reason": "the job panicked"}])),
    ] {
        let started = example.send(post("/jobs", "text/plain", steps)).await;
        assert_eq!(started.status.as_u16(), 201, "{steps:?}");
        let job = started.header("location").expect("a location");
        assert_eq!(started.json(), json!({"job": job}));
        assert_eq!(soon(follow(&example, job)).await, messages, "{steps:?}");
    }

    // The one that nobody started is no wait without an end.
    for uri in ["/jobs/99", "/jobs/99?offset=-1", "/jobs/99?offset=-1&live=long-poll"] {
        assert_eq!(example.send(get(uri)).await.status.as_u16(), 404, "{uri}");
    }

    let started = example.send(post("/jobs", "text/plain", "3600")).await;
    let job = started.header("location").expect("a location");
    example.stop_by("-TERM", get(&format!("{job}?offset=now&{LIVE}"))).await;
}

/// The loop in the header of `jobs`.
async fn follow(example: &Example, job: &str) -> Value {
    let (mut next, mut live, mut messages) = ("-1".to_owned(), "", Vec::new());
    loop {
        let seen = example.send(get(&format!("{job}?offset={next}{live}"))).await;
        assert!(seen.status.is_success(), "{seen:?}");
        if !seen.body.is_empty() {
            messages.extend(seen.json().as_array().expect("an array").clone());
        }
        if seen.header("stream-closed") == Some("true") {
            return Value::Array(messages);
        }
        next = seen.header("stream-next-offset").expect("an offset").to_owned();
        live = "&live=long-poll";
    }
}

#[tokio::test]
async fn a_grpc_client_and_curl_are_told_of_the_same_change_on_one_port() {
    let example = Example::start("tonic").await;
    let was = example.send(get("/status?offset=-1")).await;
    assert_eq!(was.json(), json!(["serving"]));

    let endpoint = Endpoint::from_shared(format!("http://{}", example.addr)).expect("a URL");
    let mut health = HealthClient::new(soon(endpoint.connect()).await.expect("gRPC"));
    let shop = HealthCheckRequest { service: "shop".to_owned() };
    let mut watch = health.watch(shop.clone()).await.expect("a stream").into_inner();
    let mut watched = async || soon(watch.message()).await.expect("no error").map(|message| message.status());
    assert_eq!(watched().await, Some(ServingStatus::Serving));

    let next = format!("/status?offset={}&{LIVE}", was.offset());
    let http1 = tokio::spawn(Client::http1(example.addr).await.send(get(&next)));
    let http2 = tokio::spawn(Client::http2(example.addr).await.send(get(&next)));

    let put = |status: &'static str| Request::put("/status").body(Full::from(status)).expect("a request");
    assert_eq!(example.send(put("not serving")).await.status.as_u16(), 204);
    assert_eq!(watched().await, Some(ServingStatus::NotServing));
    for wait in [http1, http2] {
        assert_eq!(soon(wait).await.expect("no panic").expect("an answer").json(), json!(["not serving"]));
    }
    assert_eq!(health.check(shop).await.expect("known").into_inner().status(), ServingStatus::NotServing);
    assert_eq!(example.send(put("perhaps")).await.status.as_u16(), 400);

    // An error travels in trailers, through the layer.
    let unknown = health.check(HealthCheckRequest { service: "nobody".to_owned() }).await;
    assert_eq!(unknown.expect_err("nobody").code(), Code::NotFound);

    example.stop_by("-INT", get(&format!("/status?offset=now&{LIVE}"))).await;
    assert_eq!(watched().await, None, "the watch has ended, and not broken off");
}

#[tokio::test]
async fn a_thread_ticks_and_a_bare_hyper_server_passes_every_tick_on() {
    let example = Example::start("hyper").await;

    let tick = example.send(get("/events/clock")).await;
    assert_eq!(tick.json().as_array().map(Vec::len), Some(1), "a bare GET is the next tick: {tick:?}");

    let uri = format!("/events/clock?offset={}&{LIVE}", tick.offset());
    let after = soon(Client::http2(example.addr).await.send(get(&uri))).await.expect("HTTP/2");
    let all = example.send(get("/events/clock?offset=-1")).await.json();
    let all: Vec<u64> = serde_json::from_value(all).expect("seconds");
    let after: Vec<u64> = serde_json::from_value(after.json()).expect("seconds");
    let first = tick.json()[0].as_u64().expect("seconds");
    assert!(all.windows(2).any(|pair| pair == [first, after[0]]), "{first} and {after:?} are neighbours in {all:?}");

    let mut patient = get("/events/nothing");
    patient.headers_mut().insert("prefer", HeaderValue::from_static("wait=1"));
    let nothing = example.send(patient).await;
    assert_eq!((nothing.status.as_u16(), nothing.header("preference-applied")), (204, Some("wait=1")));

    for uri in ["/", "/events", "/events/a/b"] {
        let seen = example.send(get(uri)).await;
        assert_eq!(seen.text(), format!("{uri} is no channel; /events/clock is\n"));
    }
    example.stop_by("-TERM", get(&format!("/events/nothing?offset=now&{LIVE}"))).await;
}

#[tokio::test]
async fn tenants_share_a_path_and_nothing_else() {
    let example = Example::start("tenants").await;
    let order = || post("/feed/orders", "application/json", r#"{"order": 1}"#);
    let orders = || get("/feed/orders?offset=-1");
    let frozen = || request(Method::PUT, "/frozen");

    for (who, request, status) in [
        ("", orders(), 401),
        ("", get("/feed/orders"), 401),
        ("", order(), 401),
        ("", frozen(), 401),
        ("nobody", orders(), 401),
        ("acme-reads", orders(), 200),
        ("acme-reads", order(), 403),
        ("acme-reads", frozen(), 403),
        ("globex-writes", get("/feed/stock?offset=-1"), 404),
        ("globex-writes", get("/feed/..%2Facme%2Forders?offset=-1"), 400),
        ("globex-writes", orders(), 200),
    ] {
        let what = format!("{who:?}: {} {}", request.method(), request.uri());
        let seen = example.send(by(who, request)).await;
        assert_eq!(seen.status.as_u16(), status, "{what}");
        let challenge = (status == 401).then_some("Bearer");
        assert_eq!(seen.header("www-authenticate"), challenge, "{what}");
    }

    // Readers of the tenant have what its writer appends; the other tenant, on the same path, has nothing.
    let empty = example.send(by("acme-reads", orders())).await;
    let next = format!("/feed/orders?offset={}&{LIVE}", empty.offset());
    let waiting = tokio::spawn(Client::http1(example.addr).await.send(by("acme-reads", get(&next))));
    assert_eq!(example.send(by("acme-writes", order())).await.status.as_u16(), 204);
    assert_eq!(soon(waiting).await.expect("no panic").expect("an answer").json(), json!([{"order": 1}]));
    assert_eq!(example.send(by("globex-writes", orders())).await.json(), json!([]));

    assert_eq!(example.send(by("acme-writes", frozen())).await.status.as_u16(), 204);
    assert_eq!(example.send(by("acme-writes", order())).await.status.as_u16(), 403);
    assert_eq!(example.send(by("globex-writes", order())).await.status.as_u16(), 204, "another tenant's");
    assert_eq!(example.send(by("acme-reads", orders())).await.json(), json!([{"order": 1}]));

    example.stop_by("-INT", by("acme-reads", get(&format!("/feed/orders?offset=now&{LIVE}")))).await;
}

fn by(token: &str, mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    if !token.is_empty() {
        let value = format!("Bearer {token}").parse().expect("a header's value");
        request.headers_mut().insert("authorization", value);
    }
    request
}

#[tokio::test]
async fn a_stream_is_created_read_along_closed_and_read_to_its_end() {
    let example = Example::start("streams").await;
    let uri = "/v1/stream/hello";
    let text = |method, text: &'static str| {
        let request = Request::builder().method(method).uri(uri).header("content-type", "text/plain");
        request.body(Full::from(text)).expect("a request")
    };
    assert_eq!(example.send(text(Method::PUT, "")).await.status.as_u16(), 201);
    assert_eq!(example.send(text(Method::POST, "hello, ")).await.status.as_u16(), 204);
    let along = tokio::spawn(Client::http1(example.addr).await.send(get(&format!("{uri}?offset=-1&live=sse"))));
    let open = example.send(get(uri)).await;
    assert_eq!((open.text(), open.header("stream-closed")), ("hello, ", None));

    let mut last = text(Method::POST, "world");
    last.headers_mut().insert("stream-closed", HeaderValue::from_static("true"));
    assert_eq!(example.send(last).await.status.as_u16(), 204);
    let whole = example.send(get(uri)).await;
    assert_eq!((whole.text(), whole.header("stream-closed")), ("hello, world", Some("true")));

    // The event stream ends by itself, with all of it.
    let along = soon(along).await.expect("no panic").expect("an end");
    let data: String = along.text().lines().filter_map(|line| line.strip_prefix("data:")).collect();
    assert!(data.contains("hello, ") && data.contains("world") && data.contains(r#""streamClosed":true"#), "{data}");

    let other = request(Method::PUT, "/v1/stream/other");
    assert_eq!(example.send(other).await.status.as_u16(), 201);
    example.stop_by("-TERM", get(&format!("/v1/stream/other?offset=now&{LIVE}"))).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn what_is_said_on_one_node_is_heard_on_the_other_and_redis_may_be_killed_meanwhile() {
    let mut example = Example::start("cluster").await;
    let nodes = [example.addr, example.listening().await];
    let redis = example.line().await;
    let ask =
        async |node: usize, request| soon(Client::http1(nodes[node]).await.send(request)).await.expect("an answer");
    let listen = |uri: String| tokio::spawn(async move { Client::http1(nodes[1]).await.send(get(&uri)).await });
    let parked = async || soon(async { while ask(1, get("/rooms/lobby/waiting")).await.json() != json!(1) {} }).await;
    let say = async |text| {
        let said = json!({"name": "curl", "text": text});
        ask(0, post("/rooms/lobby", "application/json", said.to_string())).await.status.as_u16()
    };
    let texts = |seen: &Seen| -> Vec<String> {
        let messages = seen.json();
        let messages = messages.as_array().expect("an array");
        messages.iter().map(|message| message["text"].as_str().expect("a text").to_owned()).collect()
    };

    let waiting = listen("/rooms/lobby".to_owned());
    parked().await;
    assert_eq!(say("hello").await, 204);
    let heard = soon(waiting).await.expect("no panic").expect("an answer");
    assert_eq!(texts(&heard), ["hello"]);

    let waiting = listen(format!("/rooms/lobby?offset={}&{LIVE}", heard.offset()));
    parked().await;
    assert_eq!(ask(0, request(Method::POST, "/cluster/restart")).await.status.as_u16(), 200);
    let becomes = async |status| {
        for node in [0, 1] {
            soon(async { while ask(node, get("/cluster/health")).await.status.as_u16() != status {} }).await;
        }
    };
    becomes(503).await;
    assert_eq!(say("into the void").await, 503);
    assert!(!waiting.is_finished(), "whoever waits goes on waiting");
    becomes(200).await;
    assert_eq!(say("again").await, 204);
    let heard = soon(waiting).await.expect("no panic").expect("an answer");
    assert_eq!((heard.status.as_u16(), texts(&heard)), (200, vec!["again".to_owned()]), "that alone, and no 410");
    for node in [0, 1] {
        assert_eq!(texts(&ask(node, get("/rooms/lobby?offset=-1")).await), ["hello", "again"], "node {node}");
    }

    example.stop_by("-TERM", get(&format!("/rooms/lobby?offset=now&{LIVE}"))).await;
    let port = redis.split([' ', ';']).find_map(|word| word.parse().ok()).expect("the port of Redis");
    // The example has told Redis to end, and Redis takes a moment.
    support::until("Redis has ended with the example", || std::net::TcpStream::connect(("127.0.0.1", port)).is_err())
        .await;
}

#[test]
fn no_example_is_without_a_test() {
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).expect("examples") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.join("main.rs").exists() {
            // Files that examples share.
            continue;
        }
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
        assert!(include_str!("examples.rs").contains(&format!("start({name:?})")), "{name}");
    }
}

#[tokio::test]
async fn half_a_request_holds_a_shutdown_up_for_ten_seconds_at_most() {
    for signal in ["-INT", "-TERM"] {
        let mut chat = Example::start("chat").await;
        let mut half = tokio::net::TcpStream::connect(chat.addr).await.expect("a connection");
        half.write_all(b"GET /lobby HTTP/1.1\r\nhost:").await.expect("half a head");
        // The server has accepted it: a later connection was.
        assert_eq!(chat.send(get("/lobby")).await.status.as_u16(), 200);
        let pid = chat.process.id().expect("it runs").to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().await.expect("kill").success());
        let ended = timeout(Duration::from_secs(20), chat.process.wait()).await.expect("an end").expect("a status");
        assert!(ended.success(), "{signal}: {ended}");
    }
}

/// A running example.
struct Example {
    addr: SocketAddr,
    process: Child,
    /// What it says. That it is kept keeps it from saying it to nobody, which is an error.
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: JoinHandle<()>,
}

impl Example {
    async fn start(name: &str) -> Self {
        // Next to `target/debug/deps/`, where this test is.
        let test = env::current_exe().expect("a path");
        let path =
            test.parent().and_then(|deps| deps.parent()).expect("a target directory").join("examples").join(name);
        let mut process = Command::new(&path)
            .env("LISTEN", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; `cargo build --examples`", path.display()));

        // Said again on this thread, where it is shown if the test fails.
        let mut stderr = BufReader::new(process.stderr.take().expect("piped")).lines();
        let stderr = tokio::spawn(async move {
            while let Ok(Some(line)) = stderr.next_line().await {
                eprintln!("{line}");
            }
        });

        let stdout = BufReader::new(process.stdout.take().expect("piped")).lines();
        let mut example = Self { addr: SocketAddr::from(([0; 4], 0)), process, stdout, stderr };
        example.addr = example.listening().await;
        example
    }

    /// Where it says that it listens.
    async fn listening(&mut self) -> SocketAddr {
        let line = self.line().await;
        let addr = line.strip_prefix("listening on http://").unwrap_or_else(|| panic!("it says {line:?}"));
        addr.parse().expect("an address")
    }

    /// The next line that it says.
    async fn line(&mut self) -> String {
        if let Some(line) = soon(self.stdout.next_line()).await.expect("text") {
            return line;
        }
        soon(&mut self.stderr).await.expect("no panic");
        panic!("it has ended, and has said why");
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Seen {
        soon(Client::http1(self.addr).await.send(request)).await.expect("an answer")
    }

    /// Sends a signal while a request is parked: the request is answered, and the process ends at once with success.
    async fn stop_by(mut self, signal: &str, wait: Request<Full<Bytes>>) {
        let mut short = wait.clone();
        *short.uri_mut() = format!("{}&timeout=0.2", wait.uri()).parse().expect("a path");
        let parked = tokio::spawn(Client::http1(self.addr).await.send(wait));
        // Nobody outside knows who waits inside. Where a wait that began later has come to its end, this one is parked.
        assert_eq!(self.send(short).await.status.as_u16(), 204);
        assert!(!parked.is_finished());

        let pid = self.process.id().expect("it runs").to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().await.expect("kill");
        assert!(sent.success());
        let ended = timeout(Duration::from_secs(2), self.process.wait()).await.expect("gone at once").expect("an end");
        assert!(ended.success(), "{ended}");

        let seen = soon(parked).await.expect("no panic").expect("an answer, not a reset");
        assert_eq!((seen.status.as_u16(), seen.header("connection")), (204, Some("close")), "{seen:?}");
    }
}

/// Longer than any wait may take.
async fn soon<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(30), future).await.expect("soon")
}
