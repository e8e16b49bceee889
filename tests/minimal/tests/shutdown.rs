//! `close`, `close_over` and `drained` on a paused clock.

use std::time::Duration;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower_comet::{Comet, CometLayer, OutcomeKind};
use tower_comet_minimal::{Seen, get, layer, send, settle, spawn};

/// Parks waits on ten channels. Each returns its response and the instant at which it ended.
async fn park(layer: &CometLayer, waits: usize) -> Vec<JoinHandle<(Seen, Instant)>> {
    let park = |nth| {
        let layer = layer.clone();
        async move { (send(&layer, get(&format!("/events/{}", nth % 10))).await, Instant::now()) }
    };
    let parked = (0..waits).map(|nth| tokio::spawn(park(nth))).collect();
    settle().await;
    parked
}

#[tokio::test(start_paused = true)]
async fn closing_ends_all_waits_at_once_and_refuses_new_ones() {
    let comet = Comet::new();
    let layer = layer(&comet);
    let parked = park(&layer, 100).await;
    let stream = spawn(&layer, "/events/news?offset=now&live=sse".to_owned());
    settle().await;
    assert_eq!(comet.waiters(), 101);

    let began = Instant::now();
    comet.close();
    for wait in parked {
        let (seen, _) = wait.await.unwrap();
        assert_eq!((seen.status, seen.outcome), (204, Some(OutcomeKind::Released)));
        assert_eq!(seen.header("connection"), Some("close"));
    }
    assert_eq!(stream.await.unwrap().status, 200);
    comet.drained().await;
    let refused = send(&layer, get("/events/news")).await;
    assert_eq!((refused.status, refused.outcome), (503, Some(OutcomeKind::Refused)));
    assert!(refused.header("retry-after").is_some());
    comet.channel("/events/news").publish("new").await.unwrap();
    assert_eq!(send(&layer, get("/events/news?offset=-1")).await.text(), r#"["new"]"#);
    assert_eq!((comet.waiters(), began.elapsed()), (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn closing_over_a_duration_ends_waits_evenly() {
    const OVER: Duration = Duration::from_secs(10);
    let comet = Comet::new();
    let layer = layer(&comet);
    let parked = park(&layer, 1_000).await;
    assert_eq!(comet.waiters(), 1_000);

    let began = Instant::now();
    let closed = tokio::spawn(comet.close_over(OVER));
    let drained = tokio::spawn(comet.drained());
    settle().await;
    assert!(comet.is_closing() && !drained.is_finished());
    assert_eq!(send(&layer, get("/events/news")).await.status, 503);

    let mut tenths = [0; 10];
    for wait in parked {
        let (seen, ended) = wait.await.unwrap();
        assert_eq!((seen.status, seen.outcome), (204, Some(OutcomeKind::Released)));
        // The last step is at the very end.
        let tenth = (ended - began).as_millis().saturating_sub(1) * 10 / OVER.as_millis();
        tenths[usize::try_from(tenth).unwrap()] += 1;
    }
    assert!(tenths.iter().all(|ended| (80..=120).contains(ended)), "{tenths:?}");
    closed.await.unwrap();
    drained.await.unwrap();
    assert_eq!((comet.waiters(), began.elapsed().as_secs()), (0, OVER.as_secs()));
}

#[tokio::test(start_paused = true)]
async fn waits_stay_parked_if_close_over_is_dropped_and_time_out_at_their_time() {
    let comet = Comet::new();
    let parked = park(&layer(&comet), 100).await;
    let began = Instant::now();
    assert!(timeout(Duration::from_millis(4_995), comet.close_over(Duration::from_secs(10))).await.is_err());
    settle().await;
    let left = comet.waiters();
    assert!((45..=55).contains(&left), "{left}");
    sleep(Duration::from_secs(15)).await;
    assert_eq!(comet.waiters(), left);
    let mut outcomes = [0, 0];
    for wait in parked {
        let (seen, ended) = wait.await.unwrap();
        match seen.outcome {
            Some(OutcomeKind::Released) => outcomes[0] += 1,
            Some(OutcomeKind::TimedOut) => {
                outcomes[1] += 1;
                let waited = (ended - began).as_secs_f64();
                assert!((23.4..=25.01).contains(&waited), "{waited}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(outcomes, [100 - left, left]);
}

#[tokio::test(start_paused = true)]
async fn drained_resolves_when_no_request_is_parked_and_closes_nothing() {
    let comet = Comet::new();
    let layer = layer(&comet);
    comet.drained().await;
    let [first, second] = ["/events/a", "/events/b?timeout=5"].map(|uri| spawn(&layer, uri.to_owned()));
    settle().await;
    let drained = tokio::spawn(comet.drained());
    first.abort();
    settle().await;
    assert_eq!((comet.waiters(), drained.is_finished(), comet.is_closing()), (1, false, false));
    let began = Instant::now();
    drained.await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!((second.await.unwrap().status, comet.waiters(), comet.is_closing()), (204, 0, false));
}
