//! A Redis that answers, and does not allow what channels need: the cause is understood from `connect`, `health` and `Stats` alone.

use std::{
    error::Error,
    io::Write,
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};
use tower_comet::Comet;

use crate::{
    common::until,
    support::{Node, Server},
};

/// What `connect` says of a URL that must not be accepted.
async fn refusal(url: &str) -> String {
    let error = Comet::builder().redis(url).connect().await.expect_err("it cannot be used");
    let source = error.source().map(ToString::to_string).unwrap_or_default();
    let text = format!("{error} {error:?} {source}");
    assert!(!text.contains("secret"), "the password: {text}");
    error.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_for_good_is_an_error_of_connect() {
    let redis = Server::start().await;
    let port = redis.port();
    let all = "~comet:* &comet:* +@read +@write +@scripting +@pubsub +@connection +time +role";
    for (user, rules) in [
        ("complete", all.to_owned()),
        ("scripts", all.replace(" +@scripting", "")),
        ("writes", all.replace(" +@write", "")),
        ("keys", all.replace("~comet:*", "~other:*")),
        ("topics", all.replace("&comet:*", "resetchannels")),
        ("subscriptions", all.replace(" +@pubsub", " +publish")),
    ] {
        let _: String = redis.command(&format!("ACL SETUSER {user} reset on >secret {rules}")).await;
        let url = format!("redis://{user}:secret@127.0.0.1:{port}");
        if user == "complete" {
            let comet = Comet::builder().redis(&url).connect().await.expect("the documented permissions");
            comet.channel("/x").publish("hello").await.expect("it may");
            assert_eq!((comet.health().is_ok(), comet.stats().engine_error), (true, None));
            continue;
        }
        let says = refusal(&url).await;
        assert!(
            ["permission", "NOPERM", "user executing the script can't"].iter().any(|words| says.contains(words)),
            "{user}: {says}"
        );
    }
    let says = refusal(&format!("redis://complete:secret-but-wrong@127.0.0.1:{port}")).await;
    assert!(says.contains("uthentication") || says.contains("WRONGPASS"), "{says}");
    let keys: Vec<String> = redis.command("KEYS *probe*").await;
    for key in keys {
        let lives: i64 = redis.command(&format!("PTTL {key}")).await;
        assert!((0..=10_000).contains(&lives), "{key} {lives}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_a_sentinel_and_another_server_are_refused_by_name() {
    let cluster = Server::start_with(&["--cluster-enabled", "yes"]).await;
    let slots: String = cluster.command("CLUSTER ADDSLOTSRANGE 0 16383").await;
    assert_eq!(slots, "OK");
    let mut says = String::new();
    // A cluster needs a moment to find itself complete.
    for _ in 0..50 {
        says = refusal(&cluster.url()).await;
        if says.contains("CROSSSLOT") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(says.contains("Redis Cluster") && says.contains("CROSSSLOT"), "{says}");

    let directory = std::env::temp_dir().join(format!("tower-comet-sentinel-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("sentinel.conf");
    std::fs::write(&file, "").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut sentinel = Command::new("redis-server")
        .arg(&file)
        .args(["--sentinel", "--bind", "127.0.0.1", "--port", &port.to_string(), "--logfile", "/dev/null"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the Sentinel answers", || TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
    let says = refusal(&format!("redis://127.0.0.1:{port}")).await;
    assert!(says.contains("Redis Sentinel"), "{says}");
    sentinel.kill().unwrap();
    sentinel.wait().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();

    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://:secret@{}", http.local_addr().unwrap());
    thread::spawn(move || {
        for stream in http.incoming().take(1) {
            let _ = stream
                .and_then(|mut stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"));
        }
    });
    let says = refusal(&url).await;
    assert!(!says.is_empty(), "{says}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_pass_is_told_by_health_until_it_has_passed() {
    let redis = Server::start_with(&["--min-replicas-to-write", "1"]).await;
    let node = Node::start(&redis.url()).await;
    until("health has the cause", || {
        node.comet.health().is_err_and(|unhealthy| unhealthy.to_string().contains("NOREPLICAS"))
    })
    .await;
    assert!(node.comet.stats().engine_error.is_some_and(|words| words.contains("NOREPLICAS")));
    redis.set("min-replicas-to-write", "0").await;
    node.is_well(true).await;
    node.publish_surely("/c/news", 1).await;

    // While it is connected, a refusal makes the node try again whether it works, until it does.
    redis.set("min-replicas-to-write", "1").await;
    let refused = node.comet.channel("/c/news").publish(2).await.expect_err("it is refused");
    let words = refused.source().map(ToString::to_string).unwrap_or_default();
    assert!(words.contains("NOREPLICAS"), "{refused} {words}");
    until("health has the cause", || {
        node.comet.health().is_err_and(|unhealthy| unhealthy.to_string().contains("NOREPLICAS"))
    })
    .await;
    assert_eq!(node.read_all("/c/news").await, [1], "it can be read");
    redis.set("min-replicas-to-write", "0").await;
    node.is_well(true).await;
    node.publish_surely("/c/news", 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_password_is_used_by_the_next_connection() {
    let redis = Server::start_with(&["--requirepass", "first"]).await;
    let password = Arc::new(Mutex::new("first".to_owned()));
    let current = password.clone();
    let comet = Comet::builder()
        .redis(&format!("redis://127.0.0.1:{}", redis.port()))
        .credentials(move || (String::new(), current.lock().unwrap().clone()))
        .connect()
        .await
        .expect("the right password");
    comet.channel("/x").publish(1).await.expect("it may");

    let mut admin = redis::Client::open(format!("redis://:first@127.0.0.1:{}", redis.port()))
        .unwrap()
        .get_multiplexed_async_connection()
        .await
        .unwrap();
    let _: () = redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("second").query_async(&mut admin).await.unwrap();
    let _: () = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("SKIPME")
        .arg("yes")
        .arg("TYPE")
        .arg("normal")
        .query_async(&mut admin)
        .await
        .unwrap();
    let _: () = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").query_async(&mut admin).await.unwrap();
    until("the password is refused", || {
        comet.health().is_err_and(|unhealthy| {
            let text = unhealthy.to_string();
            assert!(!text.contains("first") && !text.contains("second"), "{text}");
            text.contains("uthentication") || text.contains("WRONGPASS") || text.contains("NOAUTH")
        })
    })
    .await;
    *password.lock().unwrap() = "second".to_owned();
    let changed = std::time::Instant::now();
    until("it is connected again", || comet.health().is_ok()).await;
    assert!(changed.elapsed() < Duration::from_secs(3), "{:?}", changed.elapsed());
    comet.channel("/x").publish(2).await.expect("it may again");
}
