//! Absent tails: the tail of a channel that does not exist is refused only if a channel of that name has ended since.

mod support;

use std::time::Duration;
use support::{Seen, get, send, sent, settle, with};
use tokio::time::{advance, timeout};
use tower_comet::{Comet, CometLayer, Create, Error, OutcomeKind, Reason, Route};

/// More channels than the registry remembers names.
const MANY: usize = 70_000;

fn layer(comet: &Comet) -> CometLayer {
    CometLayer::new(comet.clone()).route("/events/{channel}", Route::new().read_by_anyone())
}

/// Creates channels and deletes them.
async fn end_others(comet: &Comet, channels: usize) {
    for n in 0..channels {
        let job = comet.channel(format!("/events/job-{n}"));
        job.publish("done").await.unwrap();
        job.delete().await.unwrap();
    }
}

fn waits_from(seen: &Seen) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    get(&format!("/events/orders?offset={}&live=long-poll", seen.offset()))
}

#[tokio::test(start_paused = true)]
async fn parked_waits_receive_their_message_however_many_other_channels_end() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let orders = comet.channel("/events/orders");
    let bare = sent(&layer, get("/events/orders")).await;
    let seen = send(&layer, get("/events/orders?offset=-1")).await;
    let resumed = sent(&layer, waits_from(&seen)).await;
    let stream = sent(&layer, get("/events/orders?offset=now&live=sse")).await;
    let mut reader = orders.subscribe();
    let received = tokio::spawn(async move { reader.recv().await });
    settle().await;
    assert_eq!(comet.waiters(), 4);

    end_others(&comet, MANY).await;
    orders.publish("THE MESSAGE").await.unwrap();

    for wait in [bare, resumed] {
        let seen = wait.await.unwrap();
        assert_eq!((seen.status.as_u16(), seen.text()), (200, r#"["THE MESSAGE"]"#));
    }
    assert_eq!(received.await.unwrap().unwrap().unwrap().json::<String>().unwrap(), "THE MESSAGE");
    orders.close().await.unwrap();
    let stream = stream.await.unwrap();
    assert!(stream.text().contains("data:[\"THE MESSAGE\"]"), "{}", stream.text());
}

#[tokio::test(start_paused = true)]
async fn the_tail_of_a_time_out_is_good_for_the_next_poll_however_many_channels_ended_during_the_wait() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let wait = sent(&layer, get("/events/orders")).await;
    end_others(&comet, MANY).await;
    advance(Duration::from_secs(25)).await;
    let timed_out = wait.await.unwrap();
    assert_eq!((timed_out.status.as_u16(), timed_out.outcome), (204, Some(OutcomeKind::TimedOut)));

    // The message comes between two polls, and other channels end there too.
    end_others(&comet, 60_000).await;
    comet.channel("/events/orders").publish("between").await.unwrap();
    let seen = send(&layer, waits_from(&timed_out)).await;
    assert_eq!((seen.status.as_u16(), seen.text()), (200, r#"["between"]"#));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_polls_for_an_hour_beside_ten_endings_a_second_is_never_refused() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let mut seen = send(&layer, get("/events/orders?offset=-1")).await;
    for _ in 0..150 {
        let wait = sent(&layer, waits_from(&seen)).await;
        end_others(&comet, 240).await;
        advance(Duration::from_secs(24)).await;
        advance(Duration::from_secs(1)).await;
        seen = wait.await.unwrap();
        assert_eq!(seen.status.as_u16(), 204, "{seen:?}");
    }
    comet.channel("/events/orders").publish("at last").await.unwrap();
    assert_eq!(send(&layer, waits_from(&seen)).await.text(), r#"["at last"]"#);
}

#[tokio::test(start_paused = true)]
async fn an_event_source_that_reconnects_is_not_refused_because_others_ended() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let stream = sent(&layer, get("/events/orders?live=sse&offset=now")).await;
    end_others(&comet, MANY).await;
    for _ in 0..5 {
        advance(Duration::from_secs(15)).await;
        settle().await;
    }
    let first = stream.await.unwrap();
    let id = first.text().lines().filter_map(|line| line.strip_prefix("id:")).next_back().unwrap().to_owned();
    end_others(&comet, 1_000).await;
    comet.channel("/events/orders").publish("between").await.unwrap();
    comet.channel("/events/orders").close().await.unwrap();
    let again = send(&layer, with("last-event-id", &id, get("/events/orders?live=sse&offset=now"))).await;
    assert_eq!(again.status.as_u16(), 200);
    assert!(again.text().contains("data:[\"between\"]"), "{}", again.text());
}

#[tokio::test(start_paused = true)]
async fn an_absent_tail_is_refused_if_a_channel_of_that_name_has_ended_since() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let orders = comet.channel("/events/orders");
    let seen = send(&layer, get("/events/orders?offset=-1")).await;
    let mut reader = orders.subscribe();
    orders.publish("missed").await.unwrap();
    orders.delete().await.unwrap();
    let refused = send(&layer, waits_from(&seen)).await;
    assert_eq!((refused.status.as_u16(), refused.reason()), (410, "gone".to_owned()));
    let Err(Error::Gone(gone)) = reader.recv().await else { panic!("it has missed a message") };
    assert_eq!(gone.reason(), Reason::Unknown);
    // And continues from there.
    end_others(&comet, 10).await;
    orders.publish("next").await.unwrap();
    let received = timeout(Duration::from_secs(1), reader.recv()).await.unwrap();
    assert_eq!(received.unwrap().unwrap().json::<String>().unwrap(), "next");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_whose_wait_was_dropped_goes_on_with_a_tail_that_is_good() {
    let comet = Comet::new();
    let orders = comet.channel("/events/orders");
    let mut reader = orders.subscribe();
    for _ in 0..2 {
        tokio::select! {
            // It parks first.
            biased;
            received = reader.recv() => panic!("{received:?}"),
            () = end_others(&comet, MANY) => {}
        }
    }
    orders.publish("next").await.unwrap();
    assert_eq!(reader.recv().await.unwrap().unwrap().json::<String>().unwrap(), "next");
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_is_refused_ends_nothing() {
    let comet = Comet::builder().max_history(1_000).build();
    let layer = layer(&comet);
    comet.channel("/events/source").publish("x").await.unwrap();
    let wait = sent(&layer, get("/events/orders")).await;
    let content = format!("[\"{}\"]", "y".repeat(900));
    let fork = Create::fork_of(&comet.channel("/events/source")).content(content);
    assert!(matches!(comet.channel("/events/orders").create(fork).await, Err(Error::Full(_))));
    comet.channel("/events/orders").publish("THE MESSAGE").await.unwrap();
    assert_eq!(wait.await.unwrap().text(), r#"["THE MESSAGE"]"#);
}
