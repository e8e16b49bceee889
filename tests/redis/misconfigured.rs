//! A Redis that answers, and does not allow what channels need: the cause is understood from `connect`, `health` and `Stats` alone.

use std::{
    error::Error,
    io::{Read, Write},
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
    let all = "~comet:* resetchannels &comet:* +@read +@write +@scripting +@pubsub +@connection +time +role";
    for (user, rules) in [
        ("complete", all.to_owned()),
        ("scripts", all.replace(" +@scripting", "")),
        ("writes", all.replace(" +@write", "")),
        ("keys", all.replace("~comet:*", "~other:*")),
        ("topics", all.replace(" &comet:*", "")),
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
async fn a_cluster_and_a_sentinel_are_refused_by_name() {
    let cluster = Server::start_with(&["--cluster-enabled", "yes"]).await;
    let slots: Vec<String> = (0..16_384).map(|slot| slot.to_string()).collect();
    let _: String = cluster.command(&format!("CLUSTER ADDSLOTS {}", slots.join(" "))).await;
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
    let mut sentinel = Command::new(Server::program())
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

/// All that an application is told: the error of `connect` with its sources; or what `health` says, and the error of a publication with
/// its sources.
#[derive(Debug)]
enum Told {
    Refused(String),
    Started { health: String, publish: String },
}

/// How an application is to learn what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// `connect` errs: it will never work.
    Connect,
    /// It starts, and `health` has the cause: that may pass.
    Health,
    /// It starts and can read; the error of a publication has the cause.
    Publish,
}

fn chain(error: &dyn Error) -> String {
    let (mut text, mut source) = (format!("{error} / {error:?}"), error.source());
    while let Some(error) = source {
        text = format!("{text} / {error}");
        source = error.source();
    }
    text
}

async fn told(url: &str) -> Told {
    let comet = match Comet::builder().redis(url).connect().await {
        Ok(comet) => comet,
        Err(error) => return Told::Refused(chain(&error)),
    };
    for _ in 0..100 {
        // Its first words are that nothing was tried yet.
        if comet.health().is_err_and(|unhealthy| !unhealthy.to_string().contains("not connected yet")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let published = comet.channel("/x").publish(1).await;
    let publish = published.map_or_else(|error| chain(&error), |_| String::new());
    let health = comet.health().map_or_else(|unhealthy| unhealthy.to_string(), |()| String::new());
    Told::Started { health, publish }
}

/// Answers every connection with these bytes, once something was sent on it.
fn impostor(answer: &'static [u8]) -> String {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://:secret@{}", server.local_addr().unwrap());
    thread::spawn(move || {
        for stream in server.incoming().take(8) {
            let Ok(mut stream) = stream else { continue };
            drop(stream.read(&mut [0; 1024]).and_then(|_| stream.write_all(answer)));
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_misconfiguration_is_understood_from_what_the_application_is_told() {
    let mut table: Vec<(&str, String, By, &[&str])> = Vec::new();
    let redis = Server::start().await;

    let broken = Server::start_with(&["--save", "3600", "1"]).await;
    broken.lose_directory().await;
    table.push(("it cannot save", broken.url(), By::Health, &["MISCONF", "persist"]));

    let small = Server::start_with(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]).await;
    table.push(("it is out of memory", small.url(), By::Publish, &["out of memory", "maxmemory"]));

    let replica = Server::start_with(&["--replicaof", "127.0.0.1", &redis.port().to_string()]).await;
    table.push(("a replica", replica.url(), By::Health, &["READONLY", "replica", "primary"]));

    let mut renamed = Vec::new();
    for (command, words) in [
        ("EVALSHA", &["EVALSHA", "unknown command"][..]),
        ("EVAL", &["EVAL", "unknown command"]),
        ("SUBSCRIBE", &["SUBSCRIBE", "unknown command"]),
        ("PUBLISH", &["(PUBLISH)", "called from"]),
        ("HSCAN", &["(HSCAN)", "called from"]),
    ] {
        let server = Server::start_with(&["--rename-command", command, ""]).await;
        table.push((command, server.url(), By::Connect, words));
        renamed.push(server);
    }

    let full = Server::start_with(&["--maxclients", "1"]).await;
    // Whoever starts it has pinged it just now.
    let _other = loop {
        let mut other = TcpStream::connect(("127.0.0.1", full.port())).unwrap();
        let mut pong = [0; 5];
        if other.write_all(b"PING\r\n").is_ok() && other.read_exact(&mut pong).is_ok() && pong == *b"+PONG" {
            break other;
        }
    };
    table.push(("it has too many clients", full.url(), By::Health, &["max number of clients"]));

    let guarded = Server::start_with(&["--requirepass", "right"]).await;
    let with = |login: &str| format!("redis://{login}127.0.0.1:{}", guarded.port());
    table.push(("no password", with(""), By::Connect, &["NOAUTH"]));
    table.push(("a wrong password", with(":secret@"), By::Connect, &["uthentication"]));
    table.push(("a wrong user", with("nobody:secret@"), By::Connect, &["uthentication"]));
    table.push(("a database that there is not", format!("{}/99", redis.url()), By::Connect, &["out of range"]));

    let protected = b"-DENIED Redis is running in protected mode because protected mode is enabled\r\n";
    table.push(("protected mode", impostor(protected), By::Connect, &["DENIED", "protected mode"]));
    let http = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    table.push(("an HTTP server", impostor(http), By::Connect, &["not Redis"]));
    // The alert with which a TLS server answers what is not TLS.
    let alert = b"\x15\x03\x03\x00\x02\x02\x0a";
    table.push(("a TLS port, in plain text", impostor(alert), By::Connect, &["TLS", "rediss://"]));
    #[cfg(feature = "redis-rustls")]
    {
        drop(rustls::crypto::ring::default_provider().install_default());
        let url = format!("rediss://:secret@127.0.0.1:{}", redis.port());
        table.push(("a plain port, by TLS", url, By::Connect, &["TLS", "redis://"]));
    }

    let mut loading = Server::start_with(&["--rdbcompression", "no"]).await;
    let _: String = loading.command("DEBUG POPULATE 8000 ballast 2048").await;
    let _: String = loading.command("SAVE").await;
    loading.kill();
    loading.options(&["--key-load-delay", "400"]);
    loading.launch();
    until("it loads", || loading.ping().starts_with("-LOADING")).await;
    // The first, while it still does.
    table.insert(0, ("it loads", loading.url(), By::Health, &["LOADING"]));

    for (what, url, by, words) in table {
        let told = told(&url).await;
        println!("{what}: {told:?}");
        let text = format!("{told:?}");
        assert!(!text.contains("secret"), "the password, {what}: {text}");
        let has = |text: &str| words.iter().all(|word| text.contains(word));
        let learned = match &told {
            Told::Refused(connect) => (by == By::Connect && has(connect)).then_some(()),
            Told::Started { health, publish } if health.is_empty() => (by == By::Publish && has(publish)).then_some(()),
            Told::Started { health, publish } => {
                (by == By::Health && has(health) && publish.contains("nothing was done")).then_some(())
            }
        };
        assert!(learned.is_some(), "{what}, {by:?} {words:?}: {told:?}");
    }
}
