//! Idle lifetimes are renewed while a channel has readers in this process, and not otherwise.

use super::*;
use crate::Error;

impl Node {
    async fn with_lifetime(idle: Duration) -> Self {
        let node = Self::without(None).await;
        node.engine.world().idle = Some(idle);
        node
    }

    fn renewals(&self) -> usize {
        self.engine.world().renewals.len()
    }

    /// Asserts that the channel was renewed often enough since `began`, and not more often than necessary.
    fn assert_renewed(&self, began: Instant, most: Duration, label: &str) {
        let renewals = self.engine.world().renewals.clone();
        let ends = renewals.iter().skip_while(|at| **at < began).copied().chain([Instant::now()]);
        let mut last = began;
        for at in ends {
            assert!(at - last <= most, "{label}: not renewed for {:?}", at - last);
            last = at;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_with_a_waiter_is_renewed_twice_in_its_lifetime_or_more() {
    for millis in [100, 1_000, 2_500, 10_000, 59_000, 60_000, 600_000] {
        let window = Duration::from_millis(millis);
        let node = Node::with_lifetime(window).await;
        let wait = node.parked_after(1).await;
        let (began, before) = (Instant::now(), node.renewals());
        sleep(10 * window).await;
        settle().await;
        node.assert_renewed(began, window / 2, &format!("{window:?}"));
        let times = node.renewals() - before;
        let others = usize::try_from(millis / 1_000).expect("small");
        assert!(times <= 40 + others, "{window:?}: {times} times");
        // And it is still live.
        node.engine.append(2);
        drop(wait);
        assert_eq!(node.collect(2, Duration::from_secs(1)).await, [1, 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_without_a_waiter_is_not_renewed() {
    let node = Node::with_lifetime(Duration::from_secs(1)).await;
    let wait = node.parked_after(1).await;
    seconds(5).await;
    drop(wait);
    let before = node.renewals();
    seconds(60).await;
    assert_eq!(node.renewals(), before);
    assert!(node.registry.renewals.is_empty(), "and it has left the queue");
}

#[tokio::test(start_paused = true)]
async fn live_reads_from_cached_entries_renew_once_in_an_eighth_of_the_lifetime() {
    let node = Node::with_lifetime(Duration::from_secs(80)).await;
    node.engine.append(1);
    node.read(Start::Earliest).await;
    assert_eq!(node.renewals(), 1, "the first read");
    for _ in 0..3 {
        sleep(Duration::from_millis(9_999)).await;
        let before = (node.renewals(), node.engine.world().count("read"));
        assert_eq!(node.read(Start::Earliest).await.0, [1]);
        assert_eq!((node.renewals(), node.engine.world().count("read")), before);
        sleep(Duration::from_millis(1)).await;
        for _ in 0..100 {
            assert_eq!(node.read(Start::Earliest).await.0, [1]);
        }
        assert_eq!((node.renewals(), node.engine.world().count("read")), (before.0 + 1, before.1 + 1));
    }
    // A channel without such a lifetime is answered from the cached entries.
    let node = Node::without(None).await;
    node.engine.append(1);
    node.read(Start::Earliest).await;
    let reads = node.engine.world().count("read");
    seconds(14).await;
    node.read(Start::Earliest).await;
    assert_eq!(node.engine.world().count("read"), reads);
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_that_cannot_be_renewed_does_not_refuse_a_live_read_that_is_cached() {
    let node = Node::with_lifetime(Duration::from_secs(1)).await;
    node.engine.append(1);
    node.read(Start::Earliest).await;
    node.engine.world().refuse_reads = true;
    seconds(5).await;
    assert_eq!(node.read(Start::Earliest).await.0, [1]);
    node.engine.world().refuse_reads = false;
    seconds(1).await;
    let before = node.renewals();
    assert_eq!(node.read(Start::Earliest).await.0, [1]);
    assert_eq!(node.renewals(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn renewing_continues_after_a_reconnect() {
    let window = Duration::from_secs(1);
    let node = Node::with_lifetime(window).await;
    let wait = node.parked_after(1).await;
    for _ in 0..3 {
        node.engine.world().cut();
        seconds(2).await;
        let began = Instant::now();
        seconds(20).await;
        node.assert_renewed(began, window / 2, "after a reconnect");
    }
    drop(wait);
}

#[tokio::test(start_paused = true)]
async fn a_live_read_notices_that_the_channel_has_expired() {
    let node = Node::with_lifetime(Duration::from_secs(1)).await;
    node.engine.append(1);
    let (_, place) = node.read(Start::Earliest).await;
    seconds(2).await;
    node.engine.world().lose_log(NAME);
    for _ in 0..2 {
        let gone = node.registry.read_and_follow(NAME, Start::After(place), ALL).await;
        assert!(matches!(gone, Err(Error::Gone(_))), "{gone:?}");
        settle().await;
    }
    assert!(node.read(Start::Earliest).await.0.is_empty());
}
