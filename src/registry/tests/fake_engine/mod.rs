//! What is right for every engine, run against one that does as it is told, on a clock that is moved by hand.
//!
//! Each rule is taken out once as well: what it keeps from happening happens then.

mod absent;
mod audits;
mod broadcasts;
mod engine;
mod random;
mod renewals;
mod resumed;
mod rules;
mod subscribing;
mod waits;

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::registry::{Limits, NEVER, Registry, Wait, WaitEnd, connect, maintain_remote};
use crate::{
    engine::{Offset, Reading, Remote, Retention, Start},
    fault_injection::{Faults, Invariant},
};
use engine::FakeEngine;

const NAME: &str = "/events/news";

/// As much as there is.
const ALL: crate::engine::Extent = crate::engine::Extent { bytes: usize::MAX, whole_characters: false };

/// A registry, and the engine that it follows.
struct Node {
    registry: Arc<Registry>,
    engine: Arc<FakeEngine>,
    tender: JoinHandle<()>,
}

impl Node {
    async fn without(rule: impl Into<Option<Invariant>>) -> Self {
        Self::start_with(Limits::default(), rule.into()).await
    }

    async fn start_with(limits: Limits, without: Option<Invariant>) -> Self {
        let engine = Arc::new(FakeEngine::default());
        let remote: Arc<dyn Remote> = engine.clone();
        let faults = Faults { without, ..Faults::default() };
        let registry = Arc::new(Registry::elsewhere(limits, Retention::default(), remote.clone(), faults));
        let first = connect(&*remote).await.ok();
        registry.is_reached();
        let tender = tokio::spawn(maintain_remote(Arc::downgrade(&registry), remote, first));
        settle().await;
        Self { registry, engine, tender }
    }

    /// Reads as a client does that is about to wait: the numbers, and where it is then.
    async fn read(&self, from: Start) -> (Vec<u64>, Offset) {
        let reading = self.registry.read_and_follow(NAME, from, ALL).await.expect("it is there");
        let next = reading.next;
        (numbers(reading), next)
    }

    /// A wait after a place that somebody was given by this node or by another.
    fn wait(&self, after: Offset) -> Pin<Box<Wait>> {
        Box::pin(Wait::new(self.registry.clone(), NAME, after, after != Offset::ZERO))
    }

    /// A wait that is parked, of who has read a number that was appended just now.
    async fn parked_after(&self, number: u64) -> Pin<Box<Wait>> {
        self.engine.append(number);
        let (_, place) = self.read(Start::Earliest).await;
        let mut wait = self.wait(place);
        assert!(poll(&mut wait).is_pending());
        wait
    }

    /// Reads and waits until so many numbers are there, or nothing more comes for a while.
    async fn collect(&self, many: usize, patience: Duration) -> Vec<u64> {
        let (mut seen, mut next) = self.read(Start::Earliest).await;
        while seen.len() < many {
            let mut wait = self.wait(next);
            match timeout(patience, poll_fn(|cx| wait.as_mut().poll(cx, NEVER, ALL))).await {
                Ok(WaitEnd::Read(reading)) => {
                    next = reading.next;
                    seen.extend(numbers(reading));
                }
                Ok(ended) => panic!("{ended:?}"),
                Err(_) => break,
            }
        }
        seen
    }
}

/// Polls a wait once.
fn poll(wait: &mut Pin<Box<Wait>>) -> Poll<WaitEnd> {
    wait.as_mut().poll(&mut Context::from_waker(Waker::noop()), NEVER, ALL)
}

/// How a wait ends, if it does within a time.
async fn ended(wait: &mut Pin<Box<Wait>>, within: Duration) -> Option<WaitEnd> {
    timeout(within, poll_fn(|cx| wait.as_mut().poll(cx, NEVER, ALL))).await.ok()
}

fn numbers(reading: Reading) -> Vec<u64> {
    if reading.is_empty() { Vec::new() } else { serde_json::from_slice(&reading.into_bytes()).expect("numbers") }
}

/// Lets everything happen that is not waiting for the clock.
async fn settle() {
    for _ in 0..40 {
        tokio::task::yield_now().await;
    }
}

/// Lets so many seconds pass.
async fn seconds(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
    settle().await;
}
