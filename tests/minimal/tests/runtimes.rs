//! One `Comet` in several runtimes, in real time: a runtime that is not driven, is blocked or shuts down delays no wait in
//! another one. Each test fails if it is not done after [`LIMIT`].

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, time::sleep};
use tower_comet::{Comet, OutcomeKind};
use tower_comet_minimal::{current_thread, get, layer, multi_thread, send, spawn, within};

const LIMIT: Duration = Duration::from_secs(10);

/// Parks a wait for every millisecond up to a second, in tasks of this runtime: whatever the deadline of a wait in
/// another runtime is, a wait with that deadline is parked here, and was first.
async fn park(comet: &Comet) {
    let layer = layer(comet);
    for millis in 200..1_000 {
        drop(spawn(&layer, format!("/events/{}?timeout=0.{millis}", millis % 7)));
    }
    sleep(Duration::from_millis(20)).await;
}

/// Sends waits of 400 ms from tasks of a runtime, and checks that each times out at its time.
#[track_caller]
fn time_out(runtime: &Runtime, comet: &Comet) {
    let waits = runtime.block_on(async {
        let mut waits = Vec::new();
        for nth in 0..100 {
            let layer = layer(comet);
            waits.push(tokio::spawn(async move {
                let began = Instant::now();
                let seen = send(&layer, get(&format!("/events/{}?timeout=0.4", nth % 7))).await;
                assert_eq!((seen.status, seen.outcome), (204, Some(OutcomeKind::TimedOut)));
                began.elapsed()
            }));
        }
        let mut waited = Vec::new();
        for wait in waits {
            waited.push(wait.await.expect("no panic"));
        }
        waited
    });
    // Up to a sixteenth earlier. Later only if the machine is busy.
    let on_time = Duration::from_millis(374)..Duration::from_millis(1_500);
    let late: Vec<_> = waits.iter().filter(|waited| !on_time.contains(*waited)).collect();
    assert!(late.is_empty(), "waits of 400 ms took {late:?}");
}

#[track_caller]
fn finishes(run: fn()) {
    assert!(within(LIMIT, run).is_some(), "not finished after {LIMIT:?}");
}

#[test]
fn a_wait_times_out_while_another_runtime_is_not_driven() {
    finishes(|| {
        let (comet, idle) = (Comet::new(), current_thread());
        idle.block_on(park(&comet));
        time_out(&multi_thread(), &comet);
        // Driven again, it ends its own waits, which are overdue.
        idle.block_on(async { sleep(Duration::from_millis(1_100)).await });
        assert_eq!(comet.waiters(), 0);
    });
}

#[test]
fn a_wait_times_out_while_another_runtime_is_blocked() {
    finishes(|| {
        let comet = Comet::new();
        let (blocked, is_blocked) = mpsc::channel();
        let (unblock, unblocked) = mpsc::channel::<()>();
        let other = comet.clone();
        let thread = thread::spawn(move || {
            current_thread().block_on(async {
                park(&other).await;
                blocked.send(()).expect("the test runs");
                unblocked.recv().expect_err("the test drops the sender");
                other.drained().await;
            });
        });
        is_blocked.recv().expect("the thread runs");
        time_out(&multi_thread(), &comet);
        drop(unblock);
        thread.join().expect("no panic");
        assert_eq!(comet.waiters(), 0);
    });
}

#[test]
fn a_wait_times_out_after_another_runtime_has_shut_down() {
    finishes(|| {
        let comet = Comet::new();
        for (make, shut_down) in [
            (current_thread as fn() -> Runtime, drop as fn(Runtime)),
            (current_thread, Runtime::shutdown_background),
            (multi_thread, drop),
            (multi_thread, Runtime::shutdown_background),
        ] {
            let other = make();
            other.block_on(park(&comet));
            shut_down(other);
            time_out(&current_thread(), &comet);
        }
    });
}

#[test]
fn waits_time_out_while_other_runtimes_start_and_shut_down() {
    finishes(|| {
        let comet = Comet::new();
        let (stop, stopped) = mpsc::channel::<()>();
        let other = comet.clone();
        let thread = thread::spawn(move || {
            let mut runtimes = 0;
            while stopped.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
                let runtime = if runtimes % 2 == 0 { current_thread() } else { multi_thread() };
                runtime.block_on(park(&other));
                if runtimes % 3 == 0 {
                    runtime.shutdown_background()
                } else {
                    drop(runtime)
                }
                runtimes += 1;
            }
            runtimes
        });
        let runtimes = [multi_thread(), current_thread()];
        for runtime in &runtimes {
            time_out(runtime, &comet);
        }
        drop(stop);
        let shut_down = thread.join().expect("no panic in a runtime that shuts down");
        assert!(shut_down >= 4, "only {shut_down} runtimes were shut down");
        // `shutdown_background` may drop tasks a moment later.
        let began = Instant::now();
        while comet.waiters() > 0 {
            assert!(began.elapsed() < Duration::from_secs(5), "{} waits are left", comet.waiters());
            thread::sleep(Duration::from_millis(5));
        }
    });
}
