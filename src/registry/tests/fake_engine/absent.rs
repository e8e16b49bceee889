//! Absent tails of a remote engine, which a client receives when it polls a channel that does not exist. They are
//! accepted for a limited time.

use super::*;
use crate::engine::Offset;

const MINUTE: u64 = 60_000;

/// Polls a channel that does not exist for an hour. Each wait lasts 25 s, after which the client pauses. Half a span passes
/// within each `half_span` seconds.
async fn polled(pause: u64, half_span: u64) {
    let node = Node::without(None).await;
    let engine = node.engine.clone();
    let clock = tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(half_span)).await;
            engine.world().pass_half_a_span();
        }
    });
    let (_, mut place) = node.read(Start::Tail).await;
    let (first, began) = (place, node.registry.now());
    while node.registry.now() < began + 60 * MINUTE {
        let label = format!("after {} s", (node.registry.now() - began) / 1_000);
        let reading = node.registry.read_and_follow(NAME, Start::After(place), ALL).await;
        let reading = reading.unwrap_or_else(|error| panic!("{label}: {error:?}"));
        assert!(reading.is_empty());
        let mut wait = Box::pin(Wait::new(node.registry.clone(), NAME, reading.next, false));
        let until = node.registry.now() + 25_000;
        match poll_fn(|cx| wait.as_mut().poll(cx, until, ALL)).await {
            WaitEnd::TimedOut(reading) => place = reading.next,
            ended => panic!("{label}: {ended:?}"),
        }
        drop(wait);
        seconds(pause).await;
    }
    assert!(place != first, "it was replaced meanwhile");
    // The absent tail was accepted until the end: an append is read now.
    node.engine.append(1);
    settle().await;
    assert_eq!(node.read(Start::After(place)).await.0, [1]);
    clock.abort();
    let stale = node.registry.read_and_follow(NAME, Start::After(first), ALL).await;
    assert!(stale.is_err(), "the control: an absent tail of an hour ago is refused");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_polls_an_absent_channel_for_an_hour_is_never_refused() {
    // 30 s are half of the shortest span.
    for (pause, half_span) in [(0, 30), (1, 30), (5, 30), (20, 60), (0, 45), (3, 600)] {
        polled(pause, half_span).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_on_an_absent_channel_that_lasts_for_an_hour_ends_with_a_current_tail() {
    let node = Node::without(None).await;
    let (_, place) = node.read(Start::Tail).await;
    let mut wait = Box::pin(Wait::new(node.registry.clone(), NAME, place, false));
    let until = node.registry.now() + 60 * MINUTE;
    for _ in 0..119 {
        assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop()), until, ALL).is_pending());
        tokio::select! {
            ended = poll_fn(|cx| wait.as_mut().poll(cx, until, ALL)) => panic!("{ended:?}"),
            () = seconds(30) => {}
        }
        node.engine.world().pass_half_a_span();
    }
    let WaitEnd::TimedOut(reading) = poll_fn(|cx| wait.as_mut().poll(cx, until, ALL)).await else {
        panic!("it times out")
    };
    assert_eq!(reading.next, Offset::new(0, place.fingerprint() + 119));
}
