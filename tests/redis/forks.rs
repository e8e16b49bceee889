//! Forks, which a node makes in slices: nobody else waits for them, and whatever becomes of the source or the node, nothing is left.

use futures_util::future::join_all;
use http::Method;
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::{Duration, Instant},
};
use tokio::{runtime, task::JoinHandle, time::sleep};
use tower_comet::{Change, Create, Error, Offset, Retention};

use crate::{
    common::{Seen, ask, request, until},
    support::{Node, Server},
};

const SOURCE: &str = "/c/source";
const FORK: &str = "/c/fork";

/// Appends numbers, so many at a time. Returns the tail.
async fn fill(node: &Node, uri: &str, numbers: std::ops::Range<u64>) -> Offset {
    let (channel, mut tail) = (node.comet.channel(uri), None);
    for begin in numbers.clone().step_by(512) {
        let some = begin..numbers.end.min(begin + 512);
        for offset in join_all(some.map(|number| channel.publish(number))).await {
            tail = tail.max(Some(offset.expect("it is made")));
        }
    }
    tail.expect("some")
}

fn position(offset: Offset) -> u64 {
    offset.to_string()[..16].parse().expect("a position")
}

fn fork(node: &Node, name: &str, of: &str) -> Change {
    node.comet.channel(name).create(Create::fork_of(&node.comet.channel(of)))
}

async fn put(node: &Node, name: &str, of: &str) -> Seen {
    node.send(ask(&format!("PUT {name}"), &[("stream-forked-from", of)], "")).await
}

/// The keys, without those of the trial and of the index of names.
async fn keys(redis: &Server, pattern: &str) -> BTreeSet<String> {
    let keys: Vec<String> = redis.command(&format!("KEYS {pattern}")).await;
    keys.into_iter().filter(|key| !key.starts_with("comet:probe") && !key.starts_with("comet:names:")).collect()
}

/// Waits until some appends have been copied.
async fn begun(redis: &Server) {
    let began = Instant::now();
    while keys(redis, "*:fork:*").await.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "nothing is copied");
        sleep(Duration::from_millis(1)).await;
    }
}

/// Begins a fork of a long source, and returns once some of it is copied.
async fn begin(redis: &Server, node: &Node, at: Option<Offset>) -> JoinHandle<Result<Offset, Error>> {
    let how = Create::fork_of(&node.comet.channel(SOURCE));
    let how = if let Some(at) = at { how.at(at) } else { how };
    let fork = tokio::spawn(node.comet.channel(FORK).create(how));
    begun(redis).await;
    fork
}

/// The longest of the waits for a publish, one after the other, until a task has ended.
async fn longest_publish(node: &Node, task: &JoinHandle<Result<Offset, Error>>) -> (usize, Duration) {
    let (mut publishes, mut longest) = (0, Duration::ZERO);
    while !task.is_finished() {
        let sent = Instant::now();
        node.publish_surely("/c/other", publishes as u64).await;
        longest = longest.max(sent.elapsed());
        publishes += 1;
        sleep(Duration::from_millis(1)).await;
    }
    (publishes, longest)
}

async fn measure(appends: u64) {
    let redis = Server::start().await;
    let (node, other) = (Node::start(&redis.url()).await, Node::start(&redis.url()).await);
    let tail = fill(&node, SOURCE, 0..appends).await;
    other.publish_surely("/c/other", 0).await;
    redis.set("slowlog-log-slower-than", "5000").await;
    redis.command::<()>("SLOWLOG RESET").await;
    let _: () = redis.command("CONFIG RESETSTAT").await;

    let began = Instant::now();
    let forking = tokio::spawn(fork(&node, FORK, SOURCE));
    let (publishes, longest) = longest_publish(&other, &forking).await;
    let took = began.elapsed();
    assert_eq!(forking.await.expect("no panic").expect("it is made"), tail);
    let slow: Vec<(u64, u64, u64, redis::Value, redis::Value, redis::Value)> = redis.command("SLOWLOG GET 1000").await;
    let slowest = Duration::from_micros(slow.iter().map(|(_, _, micros, ..)| *micros).max().unwrap_or(0));
    println!(
        "{appends} appends: forked in {took:.1?}; {publishes} publishes meanwhile, the longest {longest:.1?}; {} commands took more \
         than 5 ms, the slowest {slowest:.1?}",
        slow.len()
    );
    assert!(longest < Duration::from_millis(500), "{longest:?}");

    // The same appends, which are its own.
    other.comet.channel(SOURCE).delete().await.expect("it is deleted");
    let copy = other.get(&format!("{FORK}?offset={tail}")).await;
    assert_eq!((copy.status.as_u16(), copy.text()), (200, "[]"));
    if appends <= 100_000 {
        assert!(other.read_all(FORK).await.into_iter().eq(0..appends));
    }
    assert!(keys(&redis, "*:fork:*").await.is_empty());
    other.comet.channel(FORK).delete().await.expect("it is deleted");
    let left: BTreeSet<_> = keys(&redis, "*").await;
    assert!(left.iter().all(|key| key.contains("/c/other") || key.ends_with(":was")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_source_is_forked_while_others_publish() {
    measure(if cfg!(debug_assertions) { 30_000 } else { 100_000 }).await;
}

/// `cargo test --release --features redis --test redis -- --ignored --nocapture half_a_million`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes long, and prints figures"]
async fn half_a_million_appends_are_forked_while_others_publish() {
    measure(500_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_small_appends_are_copied_by_their_bytes() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let channel = node.comet.channel(SOURCE);
    let mut sizes = vec![1, 300_000, 3, 600_000, 2, 100_000, 100_000, 100_000];
    sizes.extend([10; 700]);
    sizes.extend([700_000, 5]);
    for size in &sizes {
        channel.publish("x".repeat(*size)).await.expect("it is made");
    }
    let tail = fork(&node, FORK, SOURCE).await.expect("it is made");
    let (mut all, mut offset) = (Vec::new(), "-1".to_owned());
    while offset != tail.to_string() {
        let seen = node.get(&format!("{FORK}?offset={offset}")).await;
        all.extend(
            serde_json::from_slice::<Vec<String>>(&seen.body).expect("texts").into_iter().map(|text| text.len()),
        );
        offset = seen.offset().to_string();
    }
    assert_eq!(all, sizes);
    // It counts its bytes as the source does.
    for name in [SOURCE, FORK] {
        node.publish_surely(name, 1).await;
    }
    assert_eq!(sums(&redis, FORK).await, sums(&redis, SOURCE).await);
}

/// The bytes up to the tail and up to the floor.
async fn sums(redis: &Server, name: &str) -> [Vec<u8>; 2] {
    let mut get = redis::cmd("HGET");
    get.arg(format!("comet:{{{name}}}:channel")).arg("at");
    let at: Vec<u8> = get.query_async(&mut redis.connection().await).await.expect("it is there");
    [at[31..37].to_vec(), at[37..43].to_vec()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_deleted_meanwhile_fails_its_fork() {
    let redis = Server::start().await;
    let (node, other) = (Node::start(&redis.url()).await, Node::start(&redis.url()).await);
    fill(&node, SOURCE, 0..20_000).await;
    let forking = begin(&redis, &node, None).await;
    other.comet.channel(SOURCE).delete().await.expect("it is deleted");
    // A tombstone, while it is pinned.
    let forked = forking.await.expect("no panic");
    assert!(matches!(forked, Err(Error::Conflict)), "{forked:?}");
    assert_eq!(keys(&redis, "*").await, BTreeSet::new(), "nothing is left");
    assert_eq!(other.publish(SOURCE, 1).await.status, 204, "its name is free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_expires_or_is_replaced_meanwhile_fails_its_fork() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    for again in [false, true] {
        fill(&node, SOURCE, 0..20_000).await;
        let forking = begin(&redis, &node, None).await;
        let _: u64 = redis.command(&format!("DEL comet:{{{SOURCE}}}:channel comet:{{{SOURCE}}}:log")).await;
        if again {
            node.publish_surely(SOURCE, 1).await;
        }
        let forked = forking.await.expect("no panic");
        assert!(matches!(forked, Err(Error::Unknown)), "{forked:?}");
        assert_eq!(keys(&redis, "*").await.len(), if again { 2 } else { 0 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_whose_source_is_trimmed_meanwhile_starts_over_or_is_refused() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    // Its reads trim.
    let brief = Node::start_keeping(Retention::default().appends(10), &redis.url(), |redis| redis).await;
    let mut next = 0;
    for (at, appends) in [(None, 0), (Some(15_000), 0), (None, 20)] {
        fill(&node, SOURCE, next..next + 15_000).await;
        let tail = fill(&node, SOURCE, next + 15_000..next + 20_000).await;
        next += 20_000;
        let at = match at {
            Some(_) => Some(node.get(&format!("{SOURCE}?offset=-1")).await.offset()),
            None => None,
        };
        let forking = begin(&redis, &node, at).await;
        for number in next..next + appends {
            brief.publish_surely(SOURCE, number).await;
        }
        next += appends;
        assert_eq!(brief.read_all(SOURCE).await.len(), 10);
        let forked = forking.await.expect("no panic");
        if at.is_some() {
            assert!(matches!(forked, Err(Error::ForkOffset)), "{forked:?}");
            assert!(keys(&redis, "*:fork*").await.is_empty(), "nothing is left");
            continue;
        }
        let forked = forked.expect("it is made");
        let content = node.read_all(FORK).await;
        if appends == 0 {
            assert!(forked == tail && content.into_iter().eq(next - 10..next));
        } else {
            // The floor was the source's tail in between.
            let beyond = position(forked) - position(tail);
            assert!((1..=10).contains(&beyond) && content.is_empty(), "{beyond}");
        }
        node.publish_surely(FORK, 7).await;
        assert_eq!(node.read_all(FORK).await.last(), Some(&7));
        node.comet.channel(FORK).delete().await.expect("it is deleted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_fork_copies_nothing_and_leaves_no_reference() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    fill(&node, SOURCE, 0..1_000).await;
    node.publish_surely("/c/taken", 1).await;
    let before = (keys(&redis, "*").await, redis.calls("xadd").await);
    let first = node.get(&format!("{SOURCE}?offset=-1")).await.offset().to_string();
    let beyond = "9999999999999999_x9999999999999999";
    for (line, status) in [
        (("PUT /c/taken", SOURCE, "", "", ""), 409),
        (("PUT /c/fork", "/c/none", "", "", ""), 404),
        (("PUT /c/fork", SOURCE, beyond, "", ""), 400),
        (("PUT /c/fork", SOURCE, &first, "7", ""), 400),
        (("PUT /c/fork", SOURCE, "", "", "not JSON"), 400),
        (("PUT /c/fork", SOURCE, "", "", "text"), 409),
    ] {
        let (line, source, at, part, content) = line;
        let mut headers = vec![("stream-forked-from", source)];
        headers.extend(
            [("stream-fork-offset", at), ("stream-fork-sub-offset", part)].iter().filter(|(_, it)| !it.is_empty()),
        );
        if content == "text" {
            headers.push(("content-type", "text/plain"));
        }
        let seen = node.send(ask(line, &headers, content)).await;
        assert_eq!(seen.status, status, "{line} {headers:?} {content}: {seen:?}");
    }
    assert_eq!((keys(&redis, "*").await, redis.calls("xadd").await), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_fork_to_one_name_at_once_make_one_channel() {
    let redis = Server::start().await;
    let (node, other) = (Node::start(&redis.url()).await, Node::start(&redis.url()).await);
    fill(&node, SOURCE, 0..3_000).await;
    fill(&node, "/c/second", 0..3_000).await;
    for round in 0..10 {
        let of = if round % 2 == 0 { SOURCE } else { "/c/second" };
        let (one, two) = tokio::join!(put(&node, FORK, SOURCE), put(&other, FORK, of));
        let mut statuses = [one.status.as_u16(), two.status.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, if of == SOURCE { [200, 201] } else { [201, 409] });
        assert_eq!(node.read_all(FORK).await.len(), 3_000);
        let mut members = 0;
        for source in [SOURCE, "/c/second"] {
            members += redis.command::<u64>(&format!("ZCARD comet:{{{source}}}:forks")).await;
        }
        assert_eq!(members, 1);
        assert!(keys(&redis, "*:fork:*").await.is_empty());
        // As ever, it is found again.
        let again = put(&other, FORK, if one.status == 201 { SOURCE } else { of }).await;
        assert_eq!(again.status, 200);
        other.comet.channel(FORK).delete().await.expect("it is deleted");
        assert!(keys(&redis, "*:forks").await.is_empty(), "it is released");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_on_the_name_of_a_fork_is_woken_and_reads_it() {
    let redis = Server::start().await;
    let (node, other) = (Node::start(&redis.url()).await, Node::start(&redis.url()).await);
    fill(&node, SOURCE, 0..1_200).await;
    let empty = other.get(&format!("{FORK}?offset=-1")).await.offset();
    let waiter = other.clone();
    let poll = format!("{FORK}?offset={empty}&live=long-poll");
    let wait = tokio::spawn(async move { waiter.get(&poll).await });
    until("it is parked", || other.comet.waiters() == 1).await;
    fork(&node, FORK, SOURCE).await.expect("it is made");
    let seen = tokio::time::timeout(Duration::from_secs(5), wait).await.expect("it is woken").expect("no panic");
    assert!(seen.status == 200 && seen.text().starts_with("[0,"), "{seen:?}");
    let tail = fill(&node, FORK, 5_000..5_001).await;
    let mut offset = seen.offset();
    let mut last = Vec::new();
    while offset != tail {
        let seen = other.get(&format!("{FORK}?offset={offset}&live=long-poll")).await;
        last = serde_json::from_slice::<Vec<u64>>(&seen.body).expect("numbers");
        offset = seen.offset();
    }
    assert_eq!(last.last(), Some(&5_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_ends_with_its_last_fork_however_that_ends() {
    let redis = Server::start().await;
    let (node, other) = (Node::start(&redis.url()).await, Node::start(&redis.url()).await);
    let status = async |node: &Node, line: (Method, &str)| node.send(request(line.0, line.1)).await.status.as_u16();
    // A chain of three, and two more forks of the first.
    for ends in ["deleted", "expired", "lost"] {
        node.publish_surely(SOURCE, 1).await;
        let brief = Create::fork_of(&node.comet.channel("/c/b")).idle(Duration::from_millis(if ends == "expired" {
            300
        } else {
            60_000
        }));
        fork(&node, "/c/b", SOURCE).await.expect("it is made");
        node.comet.channel("/c/c").create(brief).await.expect("it is made");
        for extra in ["/c/d", "/c/e"] {
            fork(&other, extra, SOURCE).await.expect("it is made");
        }
        for (node, name) in [(&node, SOURCE), (&other, "/c/b"), (&other, "/c/d"), (&node, "/c/e")] {
            assert_eq!(status(node, (Method::DELETE, name)).await, 204, "{ends}: {name}");
        }
        if ends != "expired" {
            for name in [SOURCE, "/c/b"] {
                assert_eq!(status(&other, (Method::GET, &format!("{name}?offset=-1"))).await, 410, "{ends}: {name}");
                assert_eq!(status(&node, (Method::DELETE, name)).await, 410, "{ends}: {name}");
                assert_eq!(put(&other, "/c/f", name).await.status, 409, "{ends}: {name}");
            }
        }
        match ends {
            "deleted" => assert_eq!(status(&other, (Method::DELETE, "/c/c")).await, 204),
            "expired" => sleep(Duration::from_millis(400)).await,
            _ => {
                let _: u64 = redis.command("DEL comet:{/c/c}:channel comet:{/c/c}:log").await;
            }
        }
        if ends == "deleted" {
            let left = keys(&redis, "*").await;
            assert!(left.iter().all(|key| key.ends_with(":was")), "the whole chain is removed: {left:?}");
        }
        assert_eq!(status(&node, (Method::HEAD, SOURCE)).await, 200, "{ends}: nobody has created it");
        assert_eq!(node.publish(SOURCE, 1).await.status, 204, "{ends}: its name is free");
        let left = keys(&redis, "*").await;
        assert!(left.iter().all(|key| key.ends_with(":was") || key.contains(SOURCE)), "{ends}: {left:?}");
        redis.command::<()>("FLUSHALL").await;
    }
}

/// Kills a node while it makes a fork. Returns what is left in Redis beyond what was there before.
async fn killed(redis: &Server, when: Duration) -> BTreeSet<String> {
    let before = keys(redis, "*").await;
    let url = redis.url();
    let process = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    process.spawn(async move {
        let node = Node::start(&url).await;
        fork(&node, FORK, SOURCE).await
    });
    begun(redis).await;
    sleep(when).await;
    process.shutdown_background();
    // What was sent is done.
    sleep(Duration::from_millis(50)).await;
    keys(redis, "*").await.difference(&before).cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_while_it_copies_leaves_nothing_for_longer_than_a_minute() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    fill(&node, SOURCE, 0..20_000).await;
    for nth in 0..5 {
        let left = killed(&redis, Duration::from_millis(20 * nth)).await;
        assert!(!left.is_empty());
        for key in &left {
            let lives: i64 = redis.command(&format!("PTTL {key}")).await;
            assert!((1..=60_000).contains(&lives), "{key} lives for {lives} ms");
            // Which is over now.
            let _: u64 = redis.command(&format!("PEXPIRE {key} 0")).await;
        }
    }
    // Deleted while a killed node has it pinned: it ends with the pin.
    assert!(!killed(&redis, Duration::ZERO).await.is_empty());
    node.comet.channel(SOURCE).delete().await.expect("it is deleted");
    for key in keys(&redis, "*").await {
        let lives: i64 = redis.command(&format!("PTTL {key}")).await;
        assert!((1..=60_001).contains(&lives), "{key} lives for {lives} ms");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_that_is_dropped_removes_what_it_has_copied() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    fill(&node, SOURCE, 0..20_000).await;
    let before = keys(&redis, "*").await;
    let forking = begin(&redis, &node, None).await;
    forking.abort();
    drop(forking.await);
    let began = Instant::now();
    while keys(&redis, "*").await != before {
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", keys(&redis, "*").await);
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_survives_a_lost_connection() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let tail = fill(&node, SOURCE, 0..20_000).await;
    let forking = begin(&redis, &node, None).await;
    for _ in 0..3 {
        let _: u64 = redis.command("CLIENT KILL TYPE normal").await;
        sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(forking.await.expect("no panic").expect("it is made"), tail);
    assert!(node.read_all(FORK).await.into_iter().eq(0..20_000));
}

/// All keys that a script touches are declared, and are of one channel: by what Redis is told, and what it says that it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_script_of_a_fork_touches_a_key_that_is_not_declared() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let tail = fill(&node, SOURCE, 0..1_200).await;
    let mut monitor = TcpStream::connect(("127.0.0.1", redis.port())).expect("it answers");
    monitor.write_all(b"MONITOR\r\n").expect("it is sent");
    let mut lines = BufReader::new(monitor).lines().map(|line| line.expect("a line"));
    assert_eq!(lines.next().as_deref(), Some("+OK"));
    let seen = std::thread::spawn(move || lines.take_while(|line| !line.contains("the-end")).collect::<Vec<_>>());

    fork(&node, FORK, SOURCE).await.expect("it is made");
    assert_eq!(put(&node, FORK, SOURCE).await.status, 200);
    assert_eq!(put(&node, "/c/none", "/c/absent").await.status, 404);
    let part = [("stream-fork-offset", &*tail.to_string()), ("stream-forked-from", FORK)];
    assert_eq!(node.send(ask("PUT /c/third", &part, "[1]")).await.status, 201);
    for name in [SOURCE, FORK, FORK, "/c/third"] {
        drop(node.comet.channel(name).delete().await);
        drop(node.get(&format!("{SOURCE}?offset=-1")).await);
        drop(put(&node, "/c/fourth", SOURCE).await);
    }
    let _: String = redis.command("ECHO the-end").await;

    let (mut declared, mut scripts, mut commands) = (BTreeSet::new(), 0, 0);
    for line in seen.join().expect("no panic") {
        let line = line.replace("\\\\", "").replace("\\\"", "'");
        let words: Vec<_> = line.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        if !line.contains(" lua] ") {
            declared.clear();
            if words[0].starts_with("EVAL") {
                let count: usize = words[2].parse().expect("the number of keys");
                declared = words[3..3 + count].iter().cloned().collect();
                let slots: BTreeSet<_> = declared.iter().map(|key| key.split(['{', '}']).nth(1)).collect();
                assert_eq!(slots.len(), 1, "{line}");
                scripts += 1;
            }
            continue;
        }
        commands += 1;
        let keys = match &*words[0] {
            "TIME" | "PUBLISH" => &[],
            "UNLINK" => &words[1..],
            "RENAME" => &words[1..3],
            _ => &words[1..2],
        };
        assert!(keys.iter().all(|key| declared.contains(key)), "{line}: {declared:?}");
    }
    assert!(scripts > 30 && commands > 1_200, "{scripts} scripts, {commands} commands");
}
