//! Reading along in process, over the same log and the same wake-ups as over HTTP.

mod support;

use futures_util::{FutureExt, StreamExt};
use std::time::Duration;
use support::{get, send, settle};
use tokio::time::{advance, timeout};
use tower_comet::{Comet, CometLayer, Error, Reason, Retention, Route, Subscription};

fn keeping(appends: usize) -> Comet {
    Comet::builder().retention(Retention::default().appends(appends)).build()
}

/// What there is without a wait.
fn rest(reader: &mut Subscription) -> Vec<i32> {
    std::iter::from_fn(|| reader.recv().now_or_never())
        .map(|message| message.unwrap().expect("the stream goes on").json().unwrap())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn it_begins_now_or_after_an_offset_or_at_the_earliest() {
    let comet = Comet::new();
    let numbers = comet.channel("/numbers");
    let mut before = numbers.subscribe();
    let one = numbers.publish(1).await.unwrap();
    let mut now = numbers.subscribe();
    numbers.append("[2, 3]").await.unwrap();
    let (mut after, mut earliest) = (numbers.subscribe_after(one), numbers.subscribe_earliest());
    assert_eq!(rest(&mut before), [1, 2, 3], "\"now\" is when it was made, also on a channel that nobody had made");
    assert_eq!(rest(&mut now), [2, 3]);
    assert_eq!(rest(&mut after), [2, 3]);
    assert_eq!(rest(&mut earliest), [1, 2, 3]);
    for reader in [&mut before, &mut now, &mut after, &mut earliest] {
        assert_eq!(rest(reader), [0; 0]);
    }
    assert_eq!(comet.waiters(), 0, "what was dropped does not wait");
}

#[tokio::test(start_paused = true)]
async fn it_waits_and_is_counted_while_it_does() {
    let comet = Comet::builder().max_waits(0).max_waits_per_channel(0).build();
    let numbers = comet.channel("/numbers");
    let mut reader = numbers.subscribe();
    let reading = tokio::spawn(async move { reader.recv().await });
    settle().await;
    // The limits on waits are for strangers.
    assert_eq!((comet.waiters(), numbers.waiters(), comet.channels().count()), (1, 1, 1));
    numbers.publish(1).await.unwrap();
    assert_eq!(reading.await.unwrap().unwrap().unwrap().data(), "1");
    assert_eq!((comet.waiters(), numbers.waiters()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_says_where_to_resume_and_a_cancelled_recv_takes_none() {
    let comet = Comet::new();
    let numbers = comet.channel("/numbers");
    let mut reader = numbers.subscribe();
    for _ in 0..3 {
        assert!(timeout(Duration::from_secs(1), reader.recv()).await.is_err());
    }
    let one = numbers.publish(1).await.unwrap();
    let many = numbers.append("[2, 3, 4]").await.unwrap();
    let mut resumes = Vec::new();
    for expected in 1..=4 {
        let message = reader.recv().await.unwrap().unwrap();
        assert_eq!(message.json::<i32>().unwrap(), expected);
        resumes.push(rest(&mut numbers.subscribe_after(message.offset())));
    }
    // Within an append it repeats rather than skips.
    assert_eq!(resumes, [vec![2, 3, 4], vec![2, 3, 4], vec![2, 3, 4], vec![]]);
    assert!(one < many);
    let message = numbers.subscribe_earliest().recv().await.unwrap().unwrap();
    assert!(matches!(message.json::<String>(), Err(Error::Json(_))));
}

#[tokio::test(start_paused = true)]
async fn one_that_has_fallen_out_of_the_history_is_told_once_and_goes_on() {
    let comet = keeping(3);
    let numbers = comet.channel("/numbers");
    let mut slow = numbers.subscribe();
    for n in 0..10 {
        numbers.publish(n).await.unwrap();
    }
    let Err(Error::Gone(gone)) = slow.recv().await else { panic!("seven are missing") };
    assert_eq!((gone.reason(), gone.tail()), (Reason::Trimmed, numbers.tail()));
    assert_eq!(rest(&mut numbers.subscribe_after(gone.earliest())), [7, 8, 9]);
    assert_eq!(rest(&mut slow), [7, 8, 9]);

    // The same while it is parked, by a burst before it comes to look.
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(()) = told.send(slow.recv().await.map(|message| message.map(|m| m.json::<i32>().unwrap()))) {}
    });
    settle().await;
    for n in 10..20 {
        numbers.publish(n).await.unwrap();
    }
    assert!(matches!(heard.recv().await, Some(Err(Error::Gone(_)))));
    for n in 17..20 {
        assert_eq!(heard.recv().await.unwrap().unwrap(), Some(n));
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_and_age_are_told_too() {
    let comet = Comet::builder().retention(Retention::default().age(Duration::from_secs(600))).build();
    let numbers = comet.channel("/numbers");
    numbers.publish(1).await.unwrap();
    let mut parked = numbers.subscribe();
    let parked = tokio::spawn(async move { parked.recv().await });
    let mut away = numbers.subscribe();
    settle().await;
    numbers.delete().await.unwrap();
    numbers.publish(2).await.unwrap();
    let Err(Error::Gone(gone)) = parked.await.unwrap() else { panic!("it was deleted") };
    assert_eq!(gone.reason(), Reason::Deleted);
    let Err(Error::Gone(gone)) = away.recv().await else { panic!("it was deleted") };
    assert_eq!(gone.reason(), Reason::OtherLog);
    assert_eq!(rest(&mut away), [2], "and goes on with what is there now");

    let mut asleep = numbers.subscribe();
    numbers.publish(3).await.unwrap();
    advance(Duration::from_secs(601)).await;
    numbers.publish(4).await.unwrap();
    assert!(matches!(asleep.recv().await, Err(Error::Gone(_))));
    assert_eq!(rest(&mut asleep), [4]);
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_the_stream_and_with_the_server() {
    let comet = Comet::new();
    let job = comet.channel("/job");
    let mut reader = job.subscribe();
    job.publish_last(1).await.unwrap();
    assert_eq!(reader.recv().await.unwrap().unwrap().data(), "1");
    for _ in 0..2 {
        assert!(reader.recv().await.unwrap().is_none());
    }

    let other = comet.channel("/other");
    let mut parked = other.subscribe();
    let parked = tokio::spawn(async move { parked.recv().await });
    settle().await;
    let mut behind = other.subscribe();
    comet.close();
    assert!(matches!(parked.await.unwrap(), Err(Error::ShutDown)));
    other.publish(1).await.unwrap();
    assert_eq!(behind.recv().await.unwrap().unwrap().data(), "1", "what is there is given");
    assert!(matches!(behind.recv().await, Err(Error::ShutDown)));
    assert!(matches!(comet.channel("").subscribe().recv().await, Err(Error::Name)));
}

#[tokio::test(start_paused = true)]
async fn a_clients_offset_is_a_place_to_subscribe_from_and_the_other_way_round() {
    let comet = Comet::new();
    let layer = CometLayer::new(comet.clone()).route("/{channel}", Route::new().read_by_anyone());
    let numbers = comet.channel("/numbers");
    numbers.append("[1, 2]").await.unwrap();
    let seen = send(&layer, get("/numbers?offset=-1")).await;
    let mut reader = numbers.subscribe_after(seen.offset());
    numbers.publish(3).await.unwrap();
    let message = reader.recv().await.unwrap().unwrap();
    assert_eq!(message.data(), "3");
    numbers.publish(4).await.unwrap();
    assert_eq!(send(&layer, get(&format!("/numbers?offset={}", message.offset()))).await.text(), "[4]");
}

#[test]
fn it_needs_no_runtime() {
    let comet = Comet::new();
    let numbers = comet.channel("/numbers");
    let mut reader = numbers.subscribe();
    let thread = std::thread::spawn(move || {
        for n in 0..100 {
            numbers.publish(n).wait().unwrap();
        }
    });
    for n in 0..100 {
        let message = pollster(reader.recv());
        assert_eq!(message.unwrap().unwrap().json::<i32>().unwrap(), n);
    }
    thread.join().unwrap();

    /// An executor that knows nothing of tokio.
    fn pollster<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        loop {
            if let Some(done) = future.as_mut().now_or_never() {
                return done;
            }
            std::thread::yield_now();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_the_messages_and_counts_as_a_waiter_until_it_is_dropped() {
    let comet = keeping(2);
    let numbers = comet.channel("/numbers");
    let mut stream = numbers.subscribe();
    assert!(stream.next().now_or_never().is_none());
    assert_eq!(comet.waiters(), 1, "a stream that was polled waits");
    let reading = tokio::spawn(async move { (stream.next().await.unwrap().unwrap().json::<i32>().unwrap(), stream) });
    settle().await;
    numbers.publish(1).await.unwrap();
    let (first, mut stream) = reading.await.unwrap();
    assert_eq!((first, comet.waiters()), (1, 0));

    for n in 2..6 {
        numbers.publish(n).await.unwrap();
    }
    assert!(matches!(stream.next().await, Some(Err(Error::Gone(_)))));
    numbers.close().await.unwrap();
    let rest: Vec<i32> = stream.by_ref().map(|message| message.unwrap().json::<i32>().unwrap()).collect().await;
    assert_eq!(rest, [4, 5]);
    assert!(stream.next().await.is_none() && stream.is_ended());

    let mut parked = comet.channel("/other").subscribe();
    assert!(parked.next().now_or_never().is_none());
    drop(parked);
    assert_eq!(comet.waiters(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_try_waits_for_nothing_and_a_dropped_recv_leaves_the_place_as_it_was() {
    let comet = Comet::new();
    let numbers = comet.channel("/numbers");
    let mut reader = numbers.subscribe();
    for n in 0..3 {
        assert!(reader.try_recv().unwrap().is_none());
        assert!(reader.recv().now_or_never().is_none());
        assert_eq!(comet.waiters(), 0);
        let end = numbers.append(format!("[{n}, {n}]")).await.unwrap();
        assert_eq!(reader.try_recv().unwrap().unwrap().json::<i32>().unwrap(), n);
        assert!(reader.offset() < Some(end), "the rest of the append is still to come");
        assert_eq!(reader.recv().await.unwrap().unwrap().json::<i32>().unwrap(), n);
        assert_eq!(reader.offset(), Some(end));
    }
    comet.close();
    assert!(matches!(reader.try_recv(), Err(Error::ShutDown)));
    assert!(!reader.is_ended());
    assert_eq!(comet.channel("/x").subscribe_earliest().offset(), None);
}
