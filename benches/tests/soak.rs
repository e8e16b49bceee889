//! An hour's churn in minutes: clients come, wait, leave in the middle and resume; channels are made and forgotten;
//! messages come in bursts. Nothing is lost, and the memory is flat at the end.
//!
//! ```sh
//! cargo test -p tower-comet-bench --release --test soak
//! SOAK_SECONDS=300 cargo test -p tower-comet-bench --release --test soak -- --nocapture
//! ```

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use std::{
    convert::Infallible,
    env, fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use tower::{Service, ServiceExt, service_fn};
use tower_comet::{Comet, CometLayer, CometService, Retention, Route};
use tower_layer::Layer;

const READERS: usize = 400;
const CHANNELS: usize = 40;
/// Room for what an allocator keeps at hand. What leaks here leaks with every one of a million operations.
const ROOM: u64 = 24 * 1024 * 1024;

#[derive(Default)]
struct Done {
    published: AtomicU64,
    read: AtomicU64,
    waits: AtomicU64,
    abandoned: AtomicU64,
    passing: AtomicU64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn churn_loses_nothing_and_leaves_nothing() {
    let seconds = env::var("SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(10);
    let end = Instant::now() + Duration::from_secs(seconds);
    let comet = Comet::builder().retention(Retention::default().appends(100_000).age(Duration::from_secs(2))).build();
    let done = Arc::new(Done::default());

    // A first part of it, after which everything is as large as it gets.
    let warm = Instant::now() + Duration::from_secs(seconds / 2);
    churn(&comet, &done, warm, 0).await;
    let (before, half) = (resident(), done.waits.load(Relaxed));
    churn(&comet, &done, end, 1_000_000_000).await;
    let after = resident();

    println!(
        "{} published, {} read, {} waits, {} of them abandoned, {} channels that came and went; resident {} kB, then {} kB",
        done.published.load(Relaxed),
        done.read.load(Relaxed),
        done.waits.load(Relaxed),
        done.abandoned.load(Relaxed),
        done.passing.load(Relaxed),
        before / 1024,
        after / 1024,
    );
    assert_eq!(comet.waiters(), 0, "somebody waits who has left");
    let stats = comet.stats();
    assert!(half > 1_000 && done.waits.load(Relaxed) > half + 1_000, "hardly anything happened");
    assert!(done.abandoned.load(Relaxed) > 100 && done.passing.load(Relaxed) > 100, "{stats:?}");
    assert!(after < before + ROOM, "{} kB became {} kB", before / 1024, after / 1024);
}

/// Readers and writers of channels that stay, and of some that come and go, until then.
async fn churn(comet: &Comet, done: &Arc<Done>, end: Instant, first: u64) {
    let layer = CometLayer::new(comet.clone()).route("/c/{channel}", Route::new().read_by_anyone());
    let service = layer.layer(service_fn(|_: Request<Empty<Bytes>>| async {
        Ok::<_, Infallible>(http::Response::new(Full::<Bytes>::default()))
    }));
    let mut tasks = Vec::new();
    for reader in 0..READERS {
        let (service, done, channel) = (service.clone(), done.clone(), reader % CHANNELS);
        // Each from where the channel ends before anything is published, however late its task comes to run.
        let tail = comet.channel(format!("/c/{channel}")).tail().to_string();
        tasks.push(tokio::spawn(async move { read(service, &done, channel, tail, first, end).await }));
    }
    while comet.waiters() < READERS / 2 {
        sleep(Duration::from_millis(1)).await;
    }
    let mut next = [first; CHANNELS];
    while Instant::now() < end {
        let burst = random(20);
        for _ in 0..burst {
            let channel = random(CHANNELS as u64) as usize;
            comet.channel(format!("/c/{channel}")).publish(next[channel]).await.expect("room");
            next[channel] += 1;
            done.published.fetch_add(1, Relaxed);
        }
        // A channel for a moment, with a name that never comes again.
        let passing = done.passing.fetch_add(1, Relaxed);
        comet.channel(format!("/passing/{passing}")).publish("gone soon").await.expect("room");
        comet.channel(format!("/passing/{passing}")).delete().await.expect("it is there");
        sleep(Duration::from_millis(1)).await;
    }
    for (channel, next) in next.iter().enumerate() {
        // The last that all have to see.
        comet.channel(format!("/c/{channel}")).publish(-1).await.expect("room");
        assert!(*next >= first);
    }
    for task in tasks {
        task.await.expect("a reader that lost nothing");
    }
}

/// Reads a channel to the end by waiting, and leaves every few waits in the middle.
async fn read<S>(service: CometService<S>, done: &Done, channel: usize, mut offset: String, first: u64, end: Instant)
where
    S: Service<Request<Empty<Bytes>>, Response = http::Response<Full<Bytes>>, Error = Infallible> + Clone,
{
    let mut expected = first;
    loop {
        let uri = format!("/c/{channel}?offset={offset}&live=long-poll&timeout=1");
        let request = Request::get(uri).body(Empty::new()).expect("a request");
        done.waits.fetch_add(1, Relaxed);
        let wait = service.clone().oneshot(request);
        let answer = if random(4) == 0 && Instant::now() < end {
            match timeout(Duration::from_millis(random(3)), wait).await {
                Ok(answer) => answer,
                Err(_) => {
                    // Gone in the middle; back at the same place.
                    done.abandoned.fetch_add(1, Relaxed);
                    continue;
                }
            }
        } else {
            wait.await
        };
        let answer = answer.expect("infallible");
        assert!(matches!(answer.status(), StatusCode::OK | StatusCode::NO_CONTENT), "{}", answer.status());
        offset = answer.headers()["stream-next-offset"].to_str().expect("ASCII").to_owned();
        let body = answer.into_body().collect().await.expect("infallible").to_bytes();
        let text = std::str::from_utf8(&body).expect("JSON");
        for number in text.trim_matches(['[', ']']).split(',').filter(|number| !number.is_empty()) {
            if number == "-1" {
                return;
            }
            assert_eq!(number.parse(), Ok(expected), "lost, doubled or out of order on {channel}");
            expected += 1;
            done.read.fetch_add(1, Relaxed);
        }
    }
}

/// Some number below another.
fn random(below: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(below) % below
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}
