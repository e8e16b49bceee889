//! The usual append is made by a short script, and all others by a long one: who asks for either is told the same, and the same is
//! there. What memory does is what is right.

use futures_util::future::join_all;
use http::Request;
use std::{
    future::Future,
    task::Poll,
    time::{Duration, SystemTime},
};
use tower_comet::{Comet, Create, Retention};

use crate::{
    common::{Seen, ask, post},
    support::{Node, Server},
};

/// So little that there is always something to be let go of.
fn kept() -> Retention {
    Retention::unbounded().appends(20).bytes(1_500).age(Duration::from_secs(3_600))
}

/// Numbers that are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// Something that is done to a channel, as a request without its channel.
#[derive(Clone, Debug)]
struct Deed {
    content_type: &'static str,
    body: String,
    headers: Vec<(&'static str, String)>,
}

impl Deed {
    fn any(dice: &mut Dice, json: bool) -> Self {
        let right = if json {
            ["application/json", "Application/JSON; charset=utf-8"]
        } else {
            ["text/plain", "TEXT/plain;a=b"]
        };
        let content_type = match dice.below(20) {
            0 => "text/html",
            1 => "application/json",
            nth => right[usize::from(nth == 2)],
        };
        let number = dice.below(1_000);
        let body = match dice.below(10) {
            0 => format!("[{number},{number},3]"),
            1 => format!("\"{}\"", "x".repeat(dice.below(700) as usize)),
            _ => number.to_string(),
        };
        let headers = match dice.below(12) {
            0 => vec![
                ("producer-id", ["a", "b"][dice.below(2) as usize].to_owned()),
                ("producer-epoch", dice.below(2).to_string()),
                ("producer-seq", dice.below(4).to_string()),
            ],
            1 => vec![("stream-seq", format!("{:04}", dice.below(10_000)))],
            2 if dice.below(60) == 0 => vec![("stream-closed", "true".to_owned())],
            _ => Vec::new(),
        };
        Self { content_type, body, headers }
    }

    fn to(&self, channel: &str) -> Request<http_body_util::Full<bytes::Bytes>> {
        let mut request = post(channel, self.content_type, self.body.clone());
        for (name, value) in &self.headers {
            request.headers_mut().insert(*name, value.parse().expect("a value"));
        }
        request
    }
}

/// What of an answer is the same for the same deeds: all but the fingerprints.
fn told(seen: &Seen) -> (u16, Option<u64>, Vec<Option<&str>>, String) {
    let position = seen.header("stream-next-offset").map(|offset| offset.split('_').next().unwrap_or_default());
    let others = ["producer-expected-seq", "producer-epoch", "producer-seq", "stream-closed"];
    let problem = if seen.status.is_success() { String::new() } else { seen.reason() };
    let position = position.map(|digits| digits.parse().expect("digits"));
    (seen.status.as_u16(), position, others.map(|name| seen.header(name)).to_vec(), problem)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_and_long_script_do_the_same_as_memory() {
    let redis = Server::start().await;
    let node = Node::start_keeping(kept(), &redis.url(), |redis| redis).await;
    let other = Node::start_keeping(kept(), &redis.url(), |redis| redis).await;
    let memory = Node::of(Comet::builder().retention(kept()).build());
    let ends = SystemTime::now() + Duration::from_secs(100_000);
    let mut dice = Dice(17);
    for round in 0..60 {
        let (json, short, long) = (round % 3 != 2, format!("/c/short-{round}"), format!("/c/long-{round}"));
        let content_type = if json { "application/json" } else { "text/plain" };
        memory.comet.channel(&*short).create(content_type).await.expect("it is made");
        node.comet.channel(&*short).create(content_type).await.expect("it is made");
        // Whatever has a lifetime of its own is left to the long one.
        node.comet.channel(&*long).create(Create::new(content_type).until(ends)).await.expect("it is made");
        for _ in 0..12 {
            // At the same time, and so in one script or several, one after the other.
            let most = [3, 30][dice.below(2) as usize];
            let deeds: Vec<_> = (0..=dice.below(most)).map(|_| Deed::any(&mut dice, json)).collect();
            let by = if dice.below(4) == 0 { &other } else { &node };
            let right = join_all(deeds.iter().map(|deed| memory.send(deed.to(&short)))).await;
            let both = deeds.iter().flat_map(|deed| [by.send(deed.to(&short)), by.send(deed.to(&long))]);
            let both = join_all(both).await;
            for ((deed, right), both) in deeds.iter().zip(&right).zip(both.chunks(2)) {
                assert_eq!(told(&both[0]), told(right), "short, {deed:?}");
                assert_eq!(told(&both[1]), told(right), "long, {deed:?}");
            }
            if dice.below(3) == 0 {
                let right = memory.get(&format!("{short}?offset=-1")).await;
                for channel in [&short, &long] {
                    let seen = by.get(&format!("{channel}?offset=-1")).await;
                    assert_eq!((told(&seen), seen.text()), (told(&right), right.text()), "{channel}");
                }
            }
        }
    }
    // The long one looks whether the log is still there: this was none.
    let channel = node.comet.channel("/c/short");
    channel.create("application/json").await.expect("it is made");
    for _ in 0..2 {
        let (appends, looks) = (redis.calls("xadd").await, redis.calls("exists").await);
        channel.publish(1).await.expect("it is made");
        for done in join_all((0..200).map(|_| channel.publish(1))).await {
            done.expect("it is made");
        }
        assert_eq!(redis.calls("xadd").await, appends + 201);
        // The first of all sets an expiry; every sixteenth is looked at for its age.
        assert!(redis.calls("exists").await <= looks + 1 + 31);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_task_begins_in_an_order_is_there_in_that_order() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let channel = node.comet.channel("/c/numbers");
    for round in 0..50 {
        let numbers: Vec<u64> = (0..200).map(|n| round * 200 + n).collect();
        for done in join_all(numbers.iter().map(|number| channel.publish(number))).await {
            done.expect("it is made");
        }
    }
    assert!(node.read_all("/c/numbers").await.into_iter().eq(0..10_000));
}

/// Other nodes load the script in between, so that a later call may find it where an earlier one has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_stay_in_order_while_scripts_are_flushed_and_loaded_by_other_nodes() {
    let redis = Server::start().await;
    let nodes = [Node::start(&redis.url()).await, Node::start(&redis.url()).await, Node::start(&redis.url()).await];
    let mut connection = redis.connection().await;
    let flush = tokio::spawn(async move {
        loop {
            redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut connection).await.expect("it is flushed");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    // Few at a time, so that one is often sent alone, and many.
    let all = nodes.iter().enumerate().map(async |(nth, node)| {
        for (round, many) in [3, 200, 3].into_iter().cycle().take(150).enumerate() {
            let channel = node.comet.channel(format!("/c/{nth}-{round}"));
            for done in join_all((0..many).map(|number| channel.publish(number))).await {
                done.expect("it is made");
            }
        }
    });
    join_all(all).await;
    flush.abort();
    for nth in 0..nodes.len() {
        for (round, many) in [3, 200, 3].into_iter().cycle().take(150).enumerate() {
            assert!(nodes[0].read_all(&format!("/c/{nth}-{round}")).await.into_iter().eq(0..many), "{nth} {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_whose_future_is_not_polled_does_not_stop_the_channel() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let channel = node.comet.channel("/c/numbers");
    channel.publish(0).await.expect("it is made");
    // So that the first is not answered in its first poll.
    redis.pause();
    let mut first = std::pin::pin!(async { channel.publish(1).await });
    assert!(std::future::poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx).is_pending())).await);
    redis.resume();
    let second = tokio::time::timeout(Duration::from_secs(5), async { channel.publish(2).await });
    second.await.expect("it does not wait for the first").expect("it is made");
    assert_eq!(node.read_all("/c/numbers").await, [0, 1, 2]);
    first.await.expect("it was made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_refused_takes_no_others_with_it() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    // Somebody has meddled with two of many: what is refused there is refused by Redis itself.
    let names: Vec<String> = (0..60).map(|n| format!("/c/{n}")).collect();
    for name in &names {
        node.publish_surely(name, 0).await;
    }
    for meddled in [7, 41] {
        let _: u64 = redis.command(&format!("DEL comet:{{/c/{meddled}}}:log")).await;
        let _: String = redis.command(&format!("SET comet:{{/c/{meddled}}}:log x")).await;
    }
    for round in 1..20 {
        let all = join_all(names.iter().map(|name| node.publish(name, round))).await;
        for (nth, seen) in all.iter().enumerate() {
            assert_eq!(seen.status.is_success(), ![7, 41].contains(&nth), "{nth} {seen:?}");
        }
    }
    for name in names.iter().enumerate().filter(|(nth, _)| ![7, 41].contains(nth)).map(|(_, name)| name) {
        assert!(node.read_all(name).await.into_iter().eq(0..20));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_up_leaves_those_who_came_later() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    node.publish_surely("/c/0", 0).await;
    for round in 0..100 {
        let given_up = tokio::spawn({
            let node = node.clone();
            async move { drop(node.publish("/c/0", round).await) }
        });
        tokio::task::yield_now().await;
        let others = join_all(
            (1..40)
                .map(|n| ask(&format!("POST /c/{n}"), &[("content-type", "application/json")], "1"))
                .map(|request| node.send(request)),
        );
        given_up.abort();
        let others = tokio::time::timeout(Duration::from_secs(5), others).await.expect("somebody sends them");
        assert!(others.iter().all(|seen| seen.status.is_success()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_returns_at_most_2048_appends_as_in_memory() {
    const MOST: usize = 2_048;
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let memory = Node::of(Comet::builder().retention(Retention::unbounded()).build());
    let channel = "/c/tiny";
    for comet in [&node.comet, &memory.comet] {
        for part in (0..2 * MOST + 10).collect::<Vec<_>>().chunks(30) {
            let appends = part.iter().map(|n| comet.channel(channel).publish(n % 10));
            assert!(join_all(appends).await.iter().all(Result::is_ok));
        }
        comet.channel(channel).close().await.expect("it is open");
    }
    let calls = redis.calls("xrange").await;
    let (mut offset, mut right_offset) = ("-1".to_owned(), "-1".to_owned());
    for expected in [MOST, MOST, 10] {
        let seen = node.get(&format!("{channel}?offset={offset}")).await;
        let right = memory.get(&format!("{channel}?offset={right_offset}")).await;
        assert_eq!((told(&seen), seen.text()), (told(&right), right.text()));
        assert_eq!(seen.text().len(), 2 * expected + 1);
        for header in ["stream-up-to-date", "stream-closed"] {
            assert_eq!(seen.header(header), right.header(header), "{header}");
            assert_eq!(seen.header(header).is_some(), expected == 10, "{header}");
        }
        (offset, right_offset) = (seen.offset().to_string(), right.offset().to_string());
    }
    // 64 at a time, and none beyond the last; and each offset is looked up.
    assert_eq!(redis.calls("xrange").await - calls, 32 + 32 + 1 + 2);

    // With exactly as many as fit, the answer is up to date.
    for comet in [&node.comet, &memory.comet] {
        let full = comet.channel("/c/full");
        assert!(join_all((0..MOST).map(|_| full.publish(1))).await.iter().all(Result::is_ok));
    }
    for node in [&node, &memory] {
        let seen = node.get("/c/full?offset=-1").await;
        assert_eq!((seen.text().len(), seen.header("stream-up-to-date")), (2 * MOST + 1, Some("true")));
        assert_eq!(seen.header("stream-closed"), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_of_large_appends_fetches_few_that_it_does_not_return() {
    const LARGE: usize = 300_000;
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let channel = node.comet.channel("/c/large");
    channel.create("text/plain").await.expect("room");
    for n in 0..60 {
        channel.append(format!("{n:02}").repeat(LARGE / 2)).await.expect("room");
    }
    let before = redis.info("memory", "used_memory_peak").await - redis.info("memory", "used_memory").await;
    assert!(before < LARGE as u64 * 20, "{before}");
    let seen = node.get("/c/large?offset=-1").await;
    assert!(seen.text().len() >= LARGE && seen.text().len() < 20 * LARGE, "{}", seen.text().len());
    let after = redis.info("memory", "used_memory_peak").await - redis.info("memory", "used_memory").await;
    println!("{} bytes returned; Redis had {after} beyond what it holds", seen.text().len());
    assert!(after < 30 * LARGE as u64, "{after}");
}
