//! Waits in tasks that have used up tokio's cooperative budget.
//!
//! A timer that is polled then wakes its waker instead of registering it. tokio 1.36 does so before the poll returns;
//! later versions do so only outside of a scheduler's worker (in the main future of a multi-thread runtime, in
//! `block_in_place`, in `spawn_blocking`). A waker that takes a lock which the poll holds blocks its own thread. Each
//! test fails if its programs are not done after [`LIMIT`].

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime},
};
use tokio::{
    runtime::Handle,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::{LocalSet, block_in_place, spawn_blocking, spawn_local},
    time::sleep,
};
use tower_comet::{Channel, Comet, Create};
use tower_comet_minimal::{current_thread, get, layer, multi_thread, send, within};

const LIMIT: Duration = Duration::from_secs(5);
/// More than the budget of a task, which is 128.
const JOBS: usize = 1_000;

type Program = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A queue that is always ready, so that reading it uses up the budget.
fn queue() -> UnboundedReceiver<usize> {
    let (jobs, queue) = unbounded_channel();
    (0..JOBS).for_each(|job| jobs.send(job).expect("the receiver exists"));
    queue
}

/// A channel whose readers set a timer, because its lifetime ends.
async fn limited(comet: &Comet) -> Channel {
    let channel = comet.channel("/events/job");
    let end = SystemTime::now() + Duration::from_secs(3_600);
    channel.create(Create::new("application/json").until(end)).await.expect("created");
    channel
}

/// One task that works through a queue and reads a channel, in two loops.
async fn loops(comet: Comet) {
    let (channel, mut queue) = (limited(&comet).await, queue());
    let mut reader = channel.subscribe();
    let work = async {
        while queue.recv().await.is_some() {}
        channel.close().await.expect("closed");
    };
    let read = async { while reader.recv().await.expect("no error").is_some() {} };
    tokio::join!(work, read);
}

/// One task that selects between a queue and a channel.
async fn select(comet: Comet) {
    let (channel, mut queue, mut jobs) = (limited(&comet).await, queue(), 0);
    let mut reader = channel.subscribe();
    while jobs < JOBS {
        tokio::select! {
            job = queue.recv() => jobs += usize::from(job.is_some()),
            _ = reader.recv() => panic!("the channel is empty"),
        }
    }
}

/// One task that works through a queue and sends a long-poll, which times out.
async fn join(comet: Comet) {
    let (mut queue, layer) = (queue(), layer(&comet));
    let work = async { while queue.recv().await.is_some() {} };
    let wait = async { assert_eq!(send(&layer, get("/events/news?timeout=0.3")).await.status, 204) };
    tokio::join!(work, wait);
}

/// Runs each program by itself, and then a wait in a task of the same runtime.
#[track_caller]
fn each_finishes(run: fn(Program)) {
    let programs: [(&str, fn(Comet) -> Program); 3] = [
        ("loops", |comet| Box::pin(loops(comet))),
        ("select", |comet| Box::pin(select(comet))),
        ("join", |comet| Box::pin(join(comet))),
    ];
    let mut hung = Vec::new();
    for (name, program) in programs {
        let finished = within(LIMIT, move || {
            let comet = Comet::new();
            run(program(comet.clone()));
            // No lock is left locked.
            current_thread().block_on(async {
                assert_eq!(send(&layer(&comet), get("/events/after?timeout=0.05")).await.status, 204);
            });
        });
        if finished.is_none() {
            hung.push(name);
        }
    }
    assert!(hung.is_empty(), "not finished after {LIMIT:?}: {hung:?}");
}

#[test]
fn the_main_future_of_a_multi_thread_runtime_finishes() {
    each_finishes(|program| multi_thread().block_on(program));
}

#[test]
fn the_main_future_of_a_current_thread_runtime_finishes() {
    each_finishes(|program| current_thread().block_on(program));
}

#[test]
fn a_spawned_task_finishes() {
    each_finishes(|program| multi_thread().block_on(async { tokio::spawn(program).await.expect("no panic") }));
}

#[test]
fn a_local_task_finishes() {
    each_finishes(|program| {
        let local = async { spawn_local(program).await.expect("no panic") };
        multi_thread().block_on(LocalSet::new().run_until(local));
    });
}

#[test]
fn block_in_place_finishes() {
    each_finishes(|program| {
        let task = async { block_in_place(|| Handle::current().block_on(program)) };
        multi_thread().block_on(async { tokio::spawn(task).await.expect("no panic") });
    });
}

#[test]
fn spawn_blocking_finishes() {
    each_finishes(|program| {
        multi_thread().block_on(async {
            let runtime = Handle::current();
            spawn_blocking(move || runtime.block_on(program)).await.expect("no panic");
        });
    });
}

#[test]
fn a_program_that_hangs_is_reported() {
    let hang = || current_thread().block_on(async { sleep(Duration::from_secs(3_600)).await });
    assert_eq!(within(Duration::from_millis(50), hang), None);
}
