//! What happens in the same moment: a publish and a time-out, one publish and ten thousand waits.

mod support;

use futures_util::FutureExt;
use std::{
    pin::pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicI32, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};
use support::{get, send, sent, settle};
use tokio::time::advance;
use tower_comet::{Comet, CometLayer, Retention, Route};

const ROUNDS: usize = 5_000;
const CROWD: usize = 10_000;

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone())
}

/// So many turns of doing nothing.
fn spin(turns: i32) {
    for _ in 0..turns {
        std::hint::spin_loop();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_published_in_the_moment_of_a_time_out_is_in_this_answer_or_in_the_next() {
    // Without an age: the thread has no part in the paused clock.
    let comet = Comet::builder().retention(Retention::unbounded()).build();
    let (layer, news) = (layer(&comet), comet.channel("/events/news"));
    let barrier = Arc::new(Barrier::new(2));
    // How much later than the time-out the message is: whichever comes too early for long waits longer from then on, so that
    // both come first about as often, on any machine.
    let delay = Arc::new(AtomicI32::new(0));
    let publisher = thread::spawn({
        let (barrier, news, delay) = (barrier.clone(), news.clone(), delay.clone());
        move || {
            for round in 0..ROUNDS {
                barrier.wait();
                spin(delay.load(Relaxed) + fastrand::i32(0..200));
                news.publish(round).wait().expect("room");
                barrier.wait();
            }
        }
    });

    let (mut in_this, mut in_the_next) = (0, 0);
    let mut offset = news.tail();
    for round in 0..ROUNDS {
        let uri = format!("/events/news?offset={offset}&live=long-poll&timeout=1");
        let mut wait = pin!(send(&layer, get(&uri)));
        assert!(wait.as_mut().now_or_never().is_none());
        barrier.wait();
        spin(-delay.load(Relaxed) + fastrand::i32(0..200));
        advance(Duration::from_secs(2)).await;
        let mut seen = wait.await;
        barrier.wait();
        if seen.status == 204 {
            in_the_next += 1;
            delay.fetch_sub(20, Relaxed);
            assert_eq!(seen.offset(), offset);
            seen = send(&layer, get(&uri)).now_or_never().expect("it is there by now");
        } else {
            in_this += 1;
            delay.fetch_add(20, Relaxed);
        }
        assert_eq!((seen.status.as_u16(), seen.text()), (200, &*format!("[{round}]")));
        offset = seen.offset();
    }
    publisher.join().expect("no panic");
    println!("{in_this} in this answer, {in_the_next} in the next");
    assert!(in_this.min(in_the_next) >= ROUNDS / 20, "{in_this} and {in_the_next}: a race that hardly happened");
}

#[tokio::test(start_paused = true)]
async fn one_publish_releases_ten_thousand_waits_with_the_same_bytes() {
    let comet = Comet::new();
    let (layer, news) = (layer(&comet), comet.channel("/events/news"));
    let mut offset = news.tail();
    for message in ["first", "second", "third"] {
        let mut waits = Vec::with_capacity(CROWD);
        for _ in 0..CROWD {
            let uri = format!("/events/news?offset={offset}&live=long-poll");
            let layer = layer.clone();
            waits.push(tokio::spawn(async move { send(&layer, get(&uri)).await }));
        }
        for _ in 0..10 {
            settle().await;
        }
        assert_eq!((comet.waiters(), news.waiters()), (CROWD, CROWD));
        let next = news.publish(message).await.expect("room");
        assert_eq!(news.waiters(), 0, "nobody is woken twice for one message");
        let mut bodies = Vec::with_capacity(CROWD);
        for wait in waits {
            let seen = wait.await.expect("no panic");
            assert_eq!((seen.status.as_u16(), seen.offset()), (200, next));
            bodies.push(seen.body);
        }
        assert_eq!(bodies[0], format!("[\"{message}\"]"));
        assert!(bodies.iter().all(|body| body.as_ptr() == bodies[0].as_ptr()), "encoded once, and shared");
        assert_eq!(comet.waiters(), 0);
        offset = next;
    }
}

#[tokio::test(start_paused = true)]
async fn who_leaves_in_the_moment_of_a_publish_takes_nobodys_message_along() {
    let comet = Comet::new();
    let (layer, news) = (layer(&comet), comet.channel("/events/news"));
    for round in 0..200 {
        let mut waits = Vec::new();
        for _ in 0..20 {
            waits.push(sent(&layer, get("/events/news")).await);
        }
        news.publish(round).await.expect("room");
        // Woken, and not yet polled.
        let (leaving, staying) = waits.split_at_mut(10);
        leaving.iter_mut().for_each(|wait| wait.abort());
        for wait in staying {
            assert_eq!(wait.await.expect("no panic").text(), format!("[{round}]"));
        }
        settle().await;
        assert_eq!((comet.waiters(), news.waiters()), (0, 0));
    }
}
