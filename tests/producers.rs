//! Producers: each batch exactly once, however often it is sent and by however many.

mod support;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};
use support::{Client, Server, Teapot, ask, get, open_to_all, send};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet, time::sleep};
use tower_comet::{Comet, CometLayer, Create, Error, Limit, Retention, Route};
use tower_layer::Layer;

fn comet() -> Comet {
    Comet::builder().retention(Retention::unbounded()).build()
}

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/s/{*path}", open_to_all())
}

fn batch(id: &str, epoch: u64, seq: u64, body: &str) -> Request<Full<Bytes>> {
    let (epoch, seq) = (epoch.to_string(), seq.to_string());
    let headers =
        [("content-type", "application/json"), ("producer-id", id), ("producer-epoch", &epoch), ("producer-seq", &seq)];
    ask("POST /s/a", &headers, body.to_owned())
}

/// Sends a request, all of it or a part, and cuts the connection without reading the answer.
async fn cut(addr: SocketAddr, id: usize, seq: u64, body: &str) {
    let head = format!(
        "POST /s/a HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nproducer-id: {id}\r\n\
         producer-epoch: 0\r\nproducer-seq: {seq}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), body.as_bytes()].concat();
    let sent = if fastrand::bool() { request.len() } else { fastrand::usize(..request.len()) };
    let mut socket = TcpStream::connect(addr).await.unwrap();
    socket.write_all(&request[..sent]).await.unwrap();
    sleep(Duration::from_millis(fastrand::u64(0..2))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_with_cut_connections_append_each_batch_exactly_once() {
    const PRODUCERS: usize = 12;
    const BATCHES: u64 = 60;
    let comet = comet();
    comet.channel("/s/a").create("application/json").await.unwrap();
    let server = Server::start(layer(&comet).layer(Teapot)).await;
    let addr = server.addr;
    let mut producers = JoinSet::new();
    for id in 0..PRODUCERS {
        producers.spawn(async move {
            let mut client = if id % 2 == 0 { Client::http1(addr).await } else { Client::http2(addr).await };
            let (mut accepted, mut duplicates) = (0, 0);
            for seq in 0..BATCHES {
                let body = format!("[[{id}, {seq}, 0], [{id}, {seq}, 1]]");
                for _ in 0..fastrand::usize(0..3) {
                    cut(addr, id, seq, &body).await;
                }
                let seen = client.send(batch(&id.to_string(), 0, seq, &body)).await.unwrap();
                match seen.status.as_u16() {
                    200 => accepted += 1,
                    204 => duplicates += 1,
                    _ => panic!("{seen:?}"),
                }
                assert_eq!(seen.header("producer-seq"), Some(&*seq.to_string()));
            }
            (accepted, duplicates)
        });
    }
    let (mut accepted, mut duplicates) = (0, 0);
    while let Some(producer) = producers.join_next().await {
        let (a, d) = producer.unwrap();
        (accepted, duplicates) = (accepted + a, duplicates + d);
    }
    println!("{accepted} accepted at the last try, {duplicates} before");
    assert!(accepted > 100 && duplicates > 100, "no race: {accepted} {duplicates}");

    let seen = Client::http1(addr).await.send(get("/s/a")).await.unwrap();
    let messages: Vec<(usize, u64, u64)> = serde_json::from_slice(&seen.body).unwrap();
    let mut of: BTreeMap<usize, Vec<(u64, u64)>> = BTreeMap::new();
    for (id, seq, nth) in messages {
        of.entry(id).or_default().push((seq, nth));
    }
    assert_eq!(of.len(), PRODUCERS);
    for (id, messages) in of {
        assert!(messages.iter().copied().eq((0..BATCHES).flat_map(|seq| [(seq, 0), (seq, 1)])), "{id}: {messages:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_send_the_same_batch_one_is_accepted() {
    const CLIENTS: usize = 8;
    const BATCHES: u64 = 50;
    let comet = comet();
    comet.channel("/s/a").create("application/json").await.unwrap();
    let server = Server::start(layer(&comet).layer(Teapot)).await;
    let mut clients = Vec::new();
    for nth in 0..CLIENTS {
        clients.push(if nth % 2 == 0 { Client::http1(server.addr).await } else { Client::http2(server.addr).await });
    }
    for seq in 0..BATCHES {
        let mut sent = JoinSet::new();
        for client in &mut clients {
            let mut request = batch("p", 7, seq, &seq.to_string());
            if seq == BATCHES - 1 {
                request.headers_mut().insert("stream-closed", "true".parse().unwrap());
            }
            sent.spawn(client.send(request));
        }
        let mut statuses = Vec::new();
        while let Some(seen) = sent.join_next().await {
            let seen = seen.unwrap().unwrap();
            assert_eq!(seen.header("producer-seq"), Some(&*seq.to_string()), "{seen:?}");
            assert_eq!(seen.header("stream-closed").is_some(), seq == BATCHES - 1, "{seen:?}");
            statuses.push(seen.status.as_u16());
        }
        statuses.sort_unstable();
        assert_eq!((statuses[0], &statuses[1..]), (200, &[204; CLIENTS - 1][..]), "{seq}");
    }
    let seen = clients[0].send(get("/s/a")).await.unwrap();
    assert_eq!(seen.json(), serde_json::json!((0..BATCHES).collect::<Vec<_>>()));
    assert_eq!(seen.header("stream-closed"), Some("true"));
}

#[tokio::test]
async fn who_was_fenced_off_stays_so() {
    let comet = comet();
    comet.channel("/s/a").create("application/json").await.unwrap();
    let layer = layer(&comet);
    let tell = async |epoch, seq| send(&layer, batch("p", epoch, seq, &format!("[[{epoch}, {seq}]]"))).await;
    for (epoch, seq, status) in [
        (1, 0, 200),
        (1, 1, 200),
        // Another one takes over; the first does not know.
        (2, 0, 200),
        (1, 2, 403),
        (1, 0, 403),
        (2, 1, 200),
        // It restarts with an epoch of its own, and the other is fenced off in its turn.
        (3, 1, 400),
        (3, 0, 200),
        (2, 2, 403),
        (9_007_199_254_740_991, 0, 200),
        (3, 1, 403),
    ] {
        let seen = tell(epoch, seq).await;
        assert_eq!(seen.status.as_u16(), status, "{epoch} {seq}: {seen:?}");
    }
    assert_eq!(tell(3, 1).await.header("producer-epoch"), Some("9007199254740991"));
    assert_eq!(send(&layer, get("/s/a")).await.text(), "[[1, 0],[1, 1],[2, 0],[2, 1],[3, 0],[9007199254740991, 0]]");
}

#[tokio::test]
async fn what_is_refused_for_want_of_room_uses_up_no_number() {
    let comet = Comet::builder().max_history(400).retention(Retention::unbounded()).build();
    comet.channel("/s/a").create("application/json").await.unwrap();
    let layer = layer(&comet);
    let large = format!("\"{}\"", "x".repeat(300));
    assert_eq!(send(&layer, batch("p", 0, 0, "1")).await.status.as_u16(), 200);
    assert_eq!(send(&layer, batch("p", 0, 1, &large)).await.status.as_u16(), 503);
    assert_eq!(send(&layer, batch("p", 0, 2, "3")).await.status.as_u16(), 409);
    assert_eq!(send(&layer, batch("p", 0, 1, "2")).await.status.as_u16(), 200);
    assert_eq!(send(&layer, get("/s/a")).await.text(), "[1,2]");
}

#[tokio::test]
async fn a_channel_remembers_so_many_producers_and_forgets_the_most_silent() {
    let comet = Comet::builder().max_producers(3).retention(Retention::unbounded()).build();
    let channel = comet.channel("/s/a");
    channel.create("application/json").await.unwrap();
    let layer = layer(&comet);
    let tell = async |id: &str, seq| send(&layer, batch(id, 0, seq, "1")).await.status.as_u16();
    for id in ["a", "b", "c"] {
        assert_eq!(tell(id, 0).await, 200);
    }
    assert_eq!(tell("a", 1).await, 200);
    assert_eq!(tell("d", 0).await, 200, "b is forgotten");
    assert_eq!((tell("a", 2).await, tell("c", 1).await), (200, 200));
    assert_eq!(tell("b", 1).await, 403, "not a message that is there twice");
    assert_eq!(tell("a", 4).await, 409, "a producer that is known, and has left out a message");

    // However many come, and however long their names, there is a bound to what is kept of them.
    for nth in 0..1_000 {
        assert_eq!(tell(&format!("{nth}{}", "x".repeat(250)), 0).await, 200);
    }
    let messages = channel.history() * ("[1]".len() + 128);
    let producers = comet.stats().history_bytes - messages;
    assert!(producers <= 3 * (255 + 64), "{producers} bytes");
    channel.delete().await.unwrap();
    assert_eq!((comet.stats().channels, comet.stats().history_bytes), (0, 0));
}

/// The protocol's 409 is for a stream that has every message of a producer. A client waits for its earlier messages to be
/// acknowledged, and sends the same message again: for ever, if they were acknowledged long ago.
#[tokio::test]
async fn an_unknown_producer_is_refused_for_good_where_it_may_have_been_known_before() {
    let comet = Comet::builder().max_producers(2).retention(Retention::unbounded()).build();
    let appended = Route::new().read_by_anyone().append_by_anyone();
    let layer = layer(&comet).route("/appended/{name}", appended);
    let post = async |path: &str, id: &str, epoch: u64, seq: u64| {
        let (epoch, seq) = (epoch.to_string(), seq.to_string());
        let stamp = [("producer-id", id), ("producer-epoch", &*epoch), ("producer-seq", &*seq)];
        let headers: Vec<_> = stamp.into_iter().chain([("content-type", "application/json")]).collect();
        let seen = send(&layer, ask(&format!("POST {path}"), &headers, "1".to_owned())).await;
        let header = |name: &str| seen.header(name).map(str::to_owned);
        let reason = if seen.status.is_success() { String::new() } else { seen.reason() };
        (seen.status.as_u16(), reason, header("producer-epoch"), header("producer-expected-seq"))
    };
    let unknown = |epoch: &str| (403, "unknown-producer".to_owned(), Some(epoch.to_owned()), None);
    let gap = |expected: &str| (409, "gap".to_owned(), None, Some(expected.to_owned()));
    let json = [("content-type", "application/json")];
    let put = async |path: &str| send(&layer, ask(&format!("PUT {path}"), &json, String::new())).await.status.as_u16();

    // A strict channel that is new has forgotten nothing.
    assert_eq!(put("/s/new").await, 201);
    assert_eq!(post("/s/new", "a", 3, 1).await, gap("0"));
    assert_eq!(post("/s/new", "a", 3, 0).await.0, 200);
    assert_eq!(post("/s/new", "b", 0, 1).await, gap("0"), "also if it knows others");
    // It has had as many producers as it remembers, and one more.
    assert_eq!((post("/s/new", "b", 0, 0).await.0, post("/s/new", "c", 0, 0).await.0), (200, 200));
    assert_eq!(post("/s/new", "a", 3, 1).await, unknown("3"), "a was evicted");
    assert_eq!(post("/s/new", "d", 0, 7).await, unknown("0"), "d cannot be told from one that was evicted");
    assert_eq!(post("/s/new", "c", 0, 2).await, gap("1"), "c is known");
    assert_eq!(post("/s/new", "a", 4, 0).await.0, 200, "a begins anew");

    // A strict channel of a name that has ended may have had them all.
    assert_eq!(send(&layer, ask("DELETE /s/new", &[], String::new())).await.status, 204);
    assert_eq!(post("/s/new", "a", 4, 1).await.0, 404);
    assert_eq!(put("/s/new").await, 201);
    assert_eq!(post("/s/new", "a", 4, 1).await, unknown("4"));
    assert_eq!((post("/s/new", "a", 4, 0).await.0, post("/s/new", "a", 4, 2).await), (200, gap("1")));
    assert_eq!(put("/s/other").await, 201);
    assert_eq!(post("/s/other", "a", 4, 1).await, gap("0"), "another name");

    // So may a channel that appends create; what is refused does not create it.
    assert_eq!(post("/appended/a", "a", 2, 1).await, unknown("2"));
    assert!(!comet.channels().any(|channel| channel.name() == "/appended/a"));
    assert_eq!((post("/appended/a", "a", 2, 0).await.0, post("/appended/a", "a", 2, 2).await), (200, gap("1")));
    assert_eq!(post("/appended/a", "b", 0, 1).await, unknown("0"));
    assert_eq!(post("/appended/a", "a", 1, 9).await.1, "fenced");
    assert_eq!(post("/appended/a", "a", 3, 9).await.1, "epoch");
}

#[tokio::test]
async fn the_ids_of_producers_are_the_same_over_http_and_in_process() {
    let comet = comet();
    let layer = layer(&comet);
    comet.channel("/s/a").create("application/json").await.unwrap();
    for (id, valid) in [("a", true), ("till 7", true), ("~", true), ("a\tb", false), ("ä", false)] {
        let mut request = batch("x", 0, 0, "1");
        request.headers_mut().insert("producer-id", http::HeaderValue::from_bytes(id.as_bytes()).unwrap());
        let seen = send(&layer, request).await;
        assert_eq!(seen.status.as_u16(), if valid { 200 } else { 400 }, "{id:?}: {seen:?}");
        let published = comet.channel("/s/a").producer(id, 1).publish("1").await;
        assert_eq!(matches!(published, Err(Error::Invalid(_))), !valid, "{id:?}: {published:?}");
    }
    // A header's value has no space at either end by itself.
    assert!(matches!(comet.channel("/s/a").producer(" a", 1).publish("1").await, Err(Error::Invalid(_))));
}

#[tokio::test]
async fn in_process_and_over_http_a_producer_is_the_same() {
    let comet = comet();
    let channel = comet.channel("/s/a");
    let layer = layer(&comet);
    let mut here = channel.producer("p", 1);
    here.publish("one").await.unwrap();
    here.publish("two").await.unwrap();
    assert_eq!(send(&layer, batch("p", 1, 1, "\"two\"")).await.status.as_u16(), 204, "a duplicate there");
    assert_eq!(send(&layer, batch("p", 1, 2, "\"three\"")).await.status.as_u16(), 200);
    // The number has been used by somebody with the same name and epoch: not to be passed over in silence.
    assert!(matches!(here.publish("also three").await, Err(Error::Fenced { epoch: 1 })));

    let mut next = channel.producer("p", 2);
    next.publish("four").await.unwrap();
    assert!(matches!(here.publish("late").await, Err(Error::Fenced { epoch: 2 })));
    assert_eq!(send(&layer, batch("p", 1, 3, "\"late\"")).await.status.as_u16(), 403);
    assert_eq!(send(&layer, get("/s/a")).await.text(), r#"["one","two","three","four"]"#);

    channel.delete().await.unwrap();
    let refused = next.publish("five").await;
    assert!(matches!(refused, Err(Error::UnknownProducer { epoch: 2 })), "it was created anew: {refused:?}");
    channel.producer("p", 3).publish("five").await.unwrap();
}

#[tokio::test]
async fn a_number_is_used_up_by_what_was_appended_and_by_nothing_else() {
    let comet = Comet::builder().max_append(100).max_history(800).retention(Retention::unbounded()).build();
    let channel = comet.channel("/s/a");
    let mut producer = channel.producer("p", 0);
    drop(producer.publish("never polled"));
    producer.publish("one").await.unwrap();
    assert!(matches!(producer.publish("x".repeat(200)).await, Err(Error::TooLarge { .. })));
    producer.publish(f64::NAN).await.expect("JSON has a null for it");
    comet.channel("/other").create(Create::new("text/plain").content(vec![b'x'; 100])).await.unwrap();
    let mut refused = 0;
    for _ in 0..5 {
        match producer.publish("y".repeat(60)).await {
            Ok(_) => {}
            Err(Error::Full(Limit::History)) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(refused > 0);
    comet.channel("/other").delete().await.unwrap();
    producer.publish("there is room again").await.unwrap();
    let text = send(&layer(&comet), get("/s/a")).await;
    assert!(text.text().starts_with("[\"one\",null,") && text.text().ends_with("\"there is room again\"]"), "{text:?}");
}
