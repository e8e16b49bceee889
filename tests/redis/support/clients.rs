//! Nodes, and who publishes and polls through them; what was acknowledged, and what was seen of it.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::task::JoinHandle;
use tower_comet::{Comet, CometLayer, Offset, RedisBuilder, Retention, Route};

use crate::common::{Seen, get, post, send};

/// How long a poll waits at most.
const WAIT: Duration = Duration::from_secs(20);

/// One process of several, as far as Redis can tell.
#[derive(Clone, Debug)]
pub struct Node {
    pub comet: Comet,
    layer: CometLayer,
}

impl Node {
    pub async fn start(url: &str) -> Self {
        Self::start_with(url, |redis| redis).await
    }

    pub async fn start_with(url: &str, more: impl FnOnce(RedisBuilder) -> RedisBuilder) -> Self {
        Self::start_keeping(Retention::default().appends(1_000_000).bytes(1 << 30), url, more).await
    }

    pub async fn start_keeping(
        retention: Retention,
        url: &str,
        more: impl FnOnce(RedisBuilder) -> RedisBuilder,
    ) -> Self {
        let redis = Comet::builder().max_channels(1_000_000).retention(retention).redis(url);
        Self::of(more(redis).connect().await.expect("Redis accepts, or is out of reach"))
    }

    pub fn of(comet: Comet) -> Self {
        let open = || {
            Route::new()
                .read_by_anyone()
                .max_wait(WAIT)
                .create_by_anyone()
                .append_by_anyone()
                .close_by_anyone()
                .delete_by_anyone()
        };
        let strict = Route::strict().read_by_anyone().create_by_anyone().append_by_anyone().delete_by_anyone();
        let layer = CometLayer::new(comet.clone()).route("/c/{channel}", open()).route("/s/{channel}", strict);
        Self { comet, layer }
    }

    pub async fn send(&self, request: http::Request<http_body_util::Full<bytes::Bytes>>) -> Seen {
        send(&self.layer, request).await
    }

    pub async fn get(&self, uri: &str) -> Seen {
        self.send(get(uri)).await
    }

    pub async fn publish(&self, uri: &str, number: u64) -> Seen {
        self.send(post(uri, "application/json", number.to_string())).await
    }

    /// Publishes what must be acknowledged.
    pub async fn publish_surely(&self, uri: &str, number: u64) -> Offset {
        let seen = self.publish(uri, number).await;
        assert!(seen.status.is_success(), "{seen:?}");
        seen.offset()
    }

    /// All that there is, read to its end.
    pub async fn read_all(&self, uri: &str) -> Vec<u64> {
        let (mut all, mut offset) = (Vec::new(), "-1".to_owned());
        loop {
            let seen = self.get(&format!("{uri}?offset={offset}")).await;
            assert_eq!(seen.status, 200, "{seen:?}");
            all.extend(serde_json::from_slice::<Vec<u64>>(&seen.body).expect("numbers"));
            offset = seen.offset().to_string();
            if seen.header("stream-up-to-date").is_some() {
                return all;
            }
        }
    }

    /// Waits for the node to find, or to lose, Redis.
    pub async fn is_well(&self, well: bool) {
        crate::common::until("its health changes", || self.comet.health().is_ok() == well).await;
    }
}

/// What became of what was published to one channel.
#[derive(Debug, Default)]
pub struct Truth {
    /// Acknowledged, with the place just after it.
    pub acknowledged: Vec<(Offset, u64)>,
    /// 503, and nothing was done.
    pub refused: Vec<u64>,
    /// 503, and it is not known.
    pub uncertain: Vec<u64>,
}

impl Truth {
    pub fn note(&mut self, number: u64, seen: &Seen) {
        match seen.status.as_u16() {
            200 | 204 => self.acknowledged.push((seen.offset(), number)),
            503 => {
                match seen.header("retry-after") {
                    Some(after) => assert!((1..=5).contains(&after.parse::<u32>().expect("seconds")), "{seen:?}"),
                    // Without producer headers, it must not be repeated without a look at the channel.
                    None => assert_eq!(seen.reason(), "uncertain", "{seen:?}"),
                }
                match &*seen.reason() {
                    "unreachable" | "full" => self.refused.push(number),
                    "uncertain" => self.uncertain.push(number),
                    reason => panic!("{reason}: {seen:?}"),
                }
            }
            _ => panic!("{seen:?}"),
        }
    }
}

/// Publishes numbers to a channel, one after the other, until it is stopped.
#[derive(Debug)]
pub struct Publisher {
    stop: Arc<AtomicBool>,
    truth: Arc<Mutex<Truth>>,
    task: JoinHandle<()>,
}

impl Publisher {
    /// `first` tells its numbers from another's.
    pub fn start(node: &Node, uri: &str, first: u64, every: Duration) -> Self {
        let (stop, truth) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Truth::default())));
        let (node, uri, stopped, noted) = (node.clone(), uri.to_owned(), stop.clone(), truth.clone());
        let task = tokio::spawn(async move {
            for number in first.. {
                if stopped.load(Relaxed) {
                    return;
                }
                let seen = node.publish(&uri, number).await;
                noted.lock().unwrap().note(number, &seen);
                tokio::time::sleep(if seen.status.is_success() { every } else { every + PAUSE }).await;
            }
        });
        Self { stop, truth, task }
    }

    pub fn acknowledged(&self) -> usize {
        self.truth.lock().unwrap().acknowledged.len()
    }

    /// Waits for so many more to be acknowledged.
    pub async fn goes_on(&self, more: usize) {
        let before = self.acknowledged();
        crate::common::until("more is acknowledged", || self.acknowledged() >= before + more).await;
    }

    pub async fn stop(self) -> Truth {
        self.stop.store(true, Relaxed);
        self.task.await.expect("it ends when it is told to");
        std::mem::take(&mut *self.truth.lock().unwrap())
    }
}

/// Between two attempts while Redis is out of reach: a client would wait as long as it is told to.
const PAUSE: Duration = Duration::from_millis(20);

/// What a poller has seen.
#[derive(Debug, Default)]
pub struct Log {
    /// Each time that it was told to start over, another part begins.
    pub parts: Vec<Vec<u64>>,
    /// Why it was.
    pub told: Vec<String>,
    /// How often it was answered 503.
    pub refused: usize,
    /// How often its time was over.
    pub timed_out: usize,
}

/// Long-polls a channel from its beginning until it is stopped, as a client that follows the rules.
#[derive(Debug)]
pub struct Poller {
    log: Arc<Mutex<Log>>,
    task: JoinHandle<()>,
}

impl Poller {
    pub fn start(node: &Node, uri: &str) -> Self {
        let node = node.clone();
        Self::roaming(move |_| node.clone(), uri)
    }

    /// Each poll to the node that is chosen for it.
    pub fn roaming(choose: impl Fn(usize) -> Node + Send + 'static, uri: &str) -> Self {
        let log = Arc::new(Mutex::new(Log { parts: vec![Vec::new()], ..Log::default() }));
        let (noted, uri) = (log.clone(), uri.to_owned());
        let task = tokio::spawn(async move {
            let mut offset = "-1".to_owned();
            for nth in 0.. {
                let seen = choose(nth).get(&format!("{uri}?offset={offset}&live=long-poll")).await;
                let pause = note(&mut noted.lock().unwrap(), &seen, &mut offset);
                if pause {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
        Self { log, task }
    }

    pub fn seen(&self) -> usize {
        self.log.lock().unwrap().parts.iter().map(Vec::len).sum()
    }

    pub fn told(&self) -> usize {
        self.log.lock().unwrap().told.len()
    }

    pub fn has_seen(&self, number: u64) -> bool {
        self.log.lock().unwrap().parts.last().expect("a part").contains(&number)
    }

    /// Stops when it has seen the last, or should have.
    pub async fn stop(self, last: u64, within: Duration) -> Log {
        let started = std::time::Instant::now();
        while !self.has_seen(last) && started.elapsed() < within {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.task.abort();
        drop(self.task.await);
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

/// Notes an answer, and says whether to pause before the next request.
pub fn note(log: &mut Log, seen: &Seen, offset: &mut String) -> bool {
    match seen.status.as_u16() {
        200 => {
            let numbers = serde_json::from_slice::<Vec<u64>>(&seen.body).expect("numbers");
            log.parts.last_mut().expect("a part").extend(numbers);
            *offset = seen.offset().to_string();
            false
        }
        204 => {
            log.timed_out += 1;
            *offset = seen.offset().to_string();
            false
        }
        404 | 410 => {
            log.told.push(seen.reason());
            log.parts.push(Vec::new());
            *offset = "-1".to_owned();
            true
        }
        503 => {
            log.refused += 1;
            true
        }
        _ => panic!("{seen:?}"),
    }
}

/// What is wrong with what a poller has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub lost: usize,
    pub duplicates: usize,
    pub disordered: usize,
}

impl Verdict {
    pub const GOOD: Self = Self { lost: 0, duplicates: 0, disordered: 0 };
}

/// Compares what a poller has seen with what was acknowledged and, since it was told to start over, with what is there now.
pub fn judge(log: &Log, acknowledged: &[(Offset, u64)], now: &[u64]) -> Verdict {
    let acknowledged: Vec<_> = acknowledged.iter().map(|(_, number)| *number).collect();
    let mut verdict = Verdict::default();
    for (nth, seen) in log.parts.iter().enumerate() {
        let (first, last) = (nth == 0, nth + 1 == log.parts.len());
        let expected = if first { &acknowledged[..] } else { now };
        let set: HashSet<_> = seen.iter().collect();
        verdict.duplicates += seen.len() - set.len();
        // What was told to be gone may have been cut short, but has no holes.
        let end =
            if last { expected.len() } else { expected.iter().rposition(|n| set.contains(n)).map_or(0, |n| n + 1) };
        let expected = &expected[..end];
        verdict.lost += expected.iter().filter(|number| !set.contains(number)).count();
        let known: BTreeSet<_> = expected.iter().collect();
        let mut seen = seen.iter().filter(|number| known.contains(number));
        let in_order = expected.iter().filter(|number| set.contains(number)).all(|number| seen.next() == Some(number));
        verdict.disordered += usize::from(!in_order);
    }
    verdict
}
