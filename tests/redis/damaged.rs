//! A channel whose keys another program, or another version of this one, has written; and an append that fails half-way. No
//! other channel is affected, and nothing is reported as not done that was done.

use futures_util::future::join_all;
use http::Method;
use std::time::Duration;
use tower_comet::{Create, Error, Offset, Retention};

use crate::{
    common::{request, until},
    support::{Node, Server},
};

const CHANNELS: u64 = 40;
const BAD: u64 = 37;

fn name(nth: u64) -> String {
    format!("/c/{nth}")
}

fn key(nth: u64, which: &str) -> String {
    format!("comet:{{/c/{nth}}}:{which}")
}

/// How many appends end at an offset.
fn position(offset: Offset) -> u64 {
    let text = offset.to_string();
    text.split('_').next().and_then(|digits| digits.parse().ok()).expect("a position")
}

/// What a field of the channel's hash is.
async fn field(redis: &Server, nth: u64, field: &str) -> Vec<u8> {
    let mut get = redis::cmd("HGET");
    get.arg(key(nth, "channel")).arg(field);
    get.query_async(&mut redis.connection().await).await.expect("it is there")
}

async fn set_field(redis: &Server, nth: u64, field: &str, value: &[u8]) {
    let mut set = redis::cmd("HSET");
    set.arg(key(nth, "channel")).arg(field).arg(value);
    set.query_async::<u64>(&mut redis.connection().await).await.expect("it is set");
}

async fn dump(redis: &Server, nth: u64) -> Vec<Option<Vec<u8>>> {
    let mut dumps = Vec::new();
    for which in ["channel", "log", "forks", "was"] {
        let mut dump = redis::cmd("DUMP");
        dump.arg(key(nth, which));
        dumps.push(dump.query_async(&mut redis.connection().await).await.expect("an answer"));
    }
    dumps
}

/// The second of two layouts that there are, as the first version of this library meets it.
async fn of_layout_2(redis: &Server, nth: u64) {
    let mut at = field(redis, nth, "at").await;
    assert_eq!(at[0], 1, "the layout");
    at[0] = 2;
    set_field(redis, nth, "at", &at).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_cannot_be_read_fails_no_others_and_is_not_changed() {
    let redis = Server::start().await;
    let channel = key(BAD, "channel");
    let log = key(BAD, "log");
    for (nth, damage) in
        ["string", "short", "nonsense", "is", "no at", "log", "layout", "long layout"].iter().enumerate()
    {
        // A new one, which has nothing cached.
        let node = Node::start(&redis.url()).await;
        redis.command::<()>("FLUSHALL").await;
        for nth in 0..CHANNELS {
            node.publish_surely(&name(nth), 0).await;
        }
        match *damage {
            "string" => {
                let _: u64 = redis.command(&format!("DEL {channel}")).await;
                redis.command::<()>(&format!("SET {channel} x")).await;
            }
            "short" => set_field(&redis, BAD, "at", b"short").await,
            "nonsense" => set_field(&redis, BAD, "at", &[b'x'; 55]).await,
            "is" => set_field(&redis, BAD, "is", b"x").await,
            "no at" => drop(redis.command::<u64>(&format!("HDEL {channel} at")).await),
            "log" => {
                let _: u64 = redis.command(&format!("DEL {log}")).await;
                redis.command::<()>(&format!("SET {log} x")).await;
            }
            "layout" => of_layout_2(&redis, BAD).await,
            _ => set_field(&redis, BAD, "at", &[&[31][..], &[b'x'; 100]].concat()).await,
        }
        let before = dump(&redis, BAD).await;
        let reason = if damage.contains("layout") { "layout" } else { "engine" };
        for round in 1..=10 {
            let all = join_all((0..CHANNELS).map(async |nth| node.publish(&name(nth), round).await)).await;
            for (nth, seen) in (0..).zip(all) {
                // With `is` alone damaged, the append of the short script does not read it.
                if nth != BAD {
                    assert!(seen.status.is_success(), "{damage}: {nth} {seen:?}");
                } else if *damage != "is" {
                    assert_eq!((seen.status.as_u16(), &*seen.reason()), (503, reason), "{damage}: {seen:?}");
                    assert!(seen.header("retry-after").is_some());
                }
            }
        }
        for nth in (0..CHANNELS).filter(|nth| *nth != BAD) {
            assert!(node.read_all(&name(nth)).await.into_iter().eq(0..=10), "{damage}: {nth}");
        }
        // Nothing else is done to it either, and each says why.
        let uri = name(BAD);
        let mut requests = vec![
            request(Method::GET, &format!("{uri}?offset=-1")),
            request(Method::GET, &format!("{uri}?offset=now&live=long-poll")),
            request(Method::HEAD, &uri),
            http::Request::put(&uri)
                .header("content-type", "application/json")
                .body(<_>::default())
                .expect("a request"),
            request(Method::DELETE, &uri),
        ];
        if *damage == "log" {
            // The hash is as it should be.
            requests.truncate(1);
        }
        for request in requests {
            let what = format!("{damage}: {} {}", request.method(), request.uri());
            let head = request.method() == Method::HEAD;
            let seen = node.send(request).await;
            assert_eq!(seen.status, 503, "{what}");
            if !head {
                assert_eq!(seen.reason(), reason, "{what}");
            }
        }
        if *damage != "is" {
            assert_eq!(dump(&redis, BAD).await, before, "{damage}: it was changed");
        }
        let error = node.comet.channel(uri).publish(1).await;
        match *damage {
            "layout" => {
                let text = "the channel's keys in Redis have layout 2, this version reads layout 1";
                assert_eq!(error.expect_err(damage).to_string(), text);
            }
            "string" | "log" => {
                let Err(Error::Engine(source)) = error else { panic!("{nth} {error:?}") };
                assert!(source.to_string().contains("WRONGTYPE"), "{source}");
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_of_another_layout_keeps_its_deleted_source() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    node.publish_surely(&name(1), 1).await;
    node.comet.channel(name(2)).create(Create::fork_of(&node.comet.channel(name(1)))).await.expect("it is forked");
    // It need not have any other field of this layout.
    of_layout_2(&redis, 2).await;
    let _: u64 = redis.command(&format!("HDEL {} of is type", key(2, "channel"))).await;
    let before = dump(&redis, 2).await;
    node.comet.channel(name(1)).delete().await.expect("it is deleted");
    let again = node.publish(&name(1), 2).await;
    assert_eq!((again.status.as_u16(), &*again.reason()), (410, "deleted"), "its name is taken");
    assert_eq!(dump(&redis, 2).await, before);
    let third = node.comet.channel(name(3)).create(Create::fork_of(&node.comet.channel(name(2)))).await;
    assert!(matches!(third, Err(Error::Layout { found: 2, supported: 1 })), "{third:?}");
    assert_eq!(redis.command::<u64>(&format!("EXISTS {}", key(3, "channel"))).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_cannot_be_read_stops_no_broadcast_and_no_comparison() {
    let redis = Server::start().await;
    let (node, other) = (Node::start(&redis.url()).await, Node::start(&redis.url()).await);
    // More than a broadcast appends to at a time, which begins with the one that cannot be read.
    let (channels, bad) = (200, 0);
    let mut waits = Vec::new();
    for nth in 0..channels {
        let offset = node.publish_surely(&name(nth), 0).await;
        let waiting = node.clone();
        let poll = format!("{}?offset={offset}&live=long-poll", name(nth));
        waits.push(tokio::spawn(async move { waiting.get(&poll).await }));
    }
    until("all are parked", || node.comet.waiters() == waits.len()).await;
    of_layout_2(&redis, bad).await;

    // After a lost connection, only the channel that cannot be compared is read. The last acknowledged append of each is looked up, too.
    let reads = redis.calls("hmget").await;
    let _: u64 = redis.command("CLIENT KILL TYPE pubsub").await;
    node.is_well(false).await;
    node.is_well(true).await;
    until("it is live", || node.comet.waiters() == waits.len()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let reads = redis.calls("hmget").await - reads;
    assert!(reads < channels + channels / 2, "{reads} reads");

    // No node follows these.
    for nth in channels..2 * channels {
        other.publish_surely(&name(nth), 0).await;
    }
    let refused = other.comet.broadcast("/c/{n}", 1).await;
    assert!(matches!(refused, Err(Error::Layout { found: 2, supported: 1 })), "{refused:?}");
    for (nth, wait) in (0..).zip(waits) {
        if nth == bad {
            wait.abort();
            continue;
        }
        let seen = tokio::time::timeout(Duration::from_secs(5), wait).await.expect("it is woken").expect("no panic");
        assert_eq!((seen.status.as_u16(), seen.text()), (200, "[1]"), "{nth}");
    }
    for nth in channels..2 * channels {
        assert_eq!(other.read_all(&name(nth)).await, [0, 1], "{nth}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_fails_after_it_was_made_is_uncertain_and_the_next_follows_it() {
    let redis = Server::start().await;
    let retention = Retention::default().appends(20);
    let node = Node::start_keeping(retention, &redis.url(), |redis| redis).await;
    let mut last = Vec::new();
    for nth in [0, 4] {
        for number in 1..32 {
            last.push(node.publish_surely(&name(nth), number).await);
        }
    }
    let last = [last[30], last[61]];
    let waits = [0, 4].into_iter().zip(last).map(|(nth, last)| {
        let (node, poll) = (node.clone(), format!("{}?offset={last}&live=long-poll", name(nth)));
        tokio::spawn(async move { node.get(&poll).await })
    });
    let waits: Vec<_> = waits.collect();
    until("both are parked", || node.comet.waiters() == 2).await;

    // The 32nd is added to the stream, and then trims it. Two more of one of the channels are in the same script, and others.
    redis.command::<()>("ACL SETUSER default -xtrim").await;
    let channel = node.comet.channel(name(0));
    let (other, before, torn, second, third, alone, after) = tokio::join!(
        node.comet.channel(name(1)).publish(1),
        node.comet.channel(name(2)).publish(1),
        channel.publish(32),
        channel.publish(33),
        channel.publish(34),
        node.comet.channel(name(4)).publish(32),
        node.comet.channel(name(3)).publish(1),
    );
    assert!(matches!(torn, Err(Error::Uncertain)), "{torn:?}");
    assert!(matches!(alone, Err(Error::Uncertain)), "{alone:?}");
    assert_eq!([other, before, after].map(|made| position(made.expect("made"))), [1; 3]);
    assert_eq!([second, third].map(|made| position(made.expect("made"))), [33, 34]);
    redis.command::<()>("ACL SETUSER default +xtrim").await;
    // They were not published, and the waiters have them nevertheless.
    for wait in waits {
        let seen = tokio::time::timeout(Duration::from_secs(5), wait).await.expect("it is woken").expect("no panic");
        assert!(seen.text().starts_with("[32"), "{seen:?}");
    }
    let rest = node.get(&format!("{}?offset={}", name(0), last[0])).await;
    assert_eq!(rest.text(), "[32,33,34]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_redis_forbids_is_refused_or_uncertain_by_whether_something_was_done() {
    let redis = Server::start().await;
    let node = Node::start(&redis.url()).await;
    let plain = node.comet.channel(name(0));
    // Every append to this one goes the long way.
    let idle = node.comet.channel(name(1));
    idle.create(Create::new("application/json").idle(Duration::from_secs(1_000))).await.expect("it is created");
    for channel in [&plain, &idle] {
        channel.publish(1).await.expect("it is made");
    }
    let appends = async |number: u64| [plain.publish(number).await, idle.publish(number).await];
    for forbidden in ["hset", "xadd", "evalsha"] {
        let before = [dump(&redis, 0).await, dump(&redis, 1).await];
        redis.command::<()>(&format!("ACL SETUSER default -{forbidden}")).await;
        for refused in appends(2).await {
            assert!(matches!(refused, Err(Error::Engine(_))), "{forbidden}: {refused:?}");
        }
        let fresh = node.comet.channel(name(2)).publish(1).await;
        let uncertain = forbidden == "xadd" && matches!(fresh, Err(Error::Uncertain));
        assert!(uncertain || matches!(fresh, Err(Error::Engine(_))), "{forbidden}: {fresh:?}");
        redis.command::<()>(&format!("ACL SETUSER default +{forbidden}")).await;
        assert_eq!([dump(&redis, 0).await, dump(&redis, 1).await], before, "{forbidden}");
    }
    // The keys themselves, which Redis checks before it runs the script.
    redis.command::<()>("ACL SETUSER default resetkeys ~other:*").await;
    for refused in appends(3).await {
        assert!(matches!(refused, Err(Error::Engine(_))), "{refused:?}");
    }
    redis.command::<()>("ACL SETUSER default allkeys -publish").await;
    // Last of all.
    for uncertain in appends(4).await {
        assert!(matches!(uncertain, Err(Error::Uncertain)), "{uncertain:?}");
    }
    let fork = node.comet.channel(name(3)).create(Create::fork_of(&plain)).await;
    assert!(matches!(fork, Err(Error::Uncertain)), "{fork:?}");
    redis.command::<()>("ACL SETUSER default +publish").await;
    for channel in [0, 1] {
        assert_eq!(node.read_all(&name(channel)).await, [1, 4]);
    }
    // A channel that was created in part is removed.
    let fork = node.comet.channel(name(3)).create(Create::fork_of(&plain)).await.expect("it is forked");
    assert_eq!(position(fork), 2);
    assert_eq!(node.read_all(&name(3)).await, [1, 4]);
}
