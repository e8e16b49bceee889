//! When an example stops.

use std::time::Duration;
use tokio::{signal::ctrl_c, time::sleep};

/// Resolves on Ctrl-C, and on SIGTERM, which service managers send.
pub(crate) async fn stopped() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminated = signal(SignalKind::terminate()).expect("a handler for SIGTERM");
        tokio::select! {
            _ = ctrl_c() => {}
            _ = terminated.recv() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = ctrl_c().await;
}

/// Resolves 10 s after [`stopped`]. A client that has sent half of a request must not hold up the shutdown.
#[allow(dead_code, reason = "some examples limit the shutdown in another way")]
pub(crate) async fn late() {
    stopped().await;
    sleep(Duration::from_secs(10)).await;
}
