//! Verifies after a reconnect that the engine still has the appends that it acknowledged before.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{Registry, slice::Slice};
use crate::engine::Remote;

/// A walk over the appends that were acknowledged on earlier connections. It sends one request at a time.
pub(super) struct Audit {
    /// The number of the next channel, and of the first one that need not be verified.
    cursor: u64,
    end: u64,
    /// A request in flight. Resolves to whether it was answered.
    request: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
    /// The cursor before that request, which is sent again if it fails.
    from: u64,
    /// The last request failed. The next tick sends it again.
    failed: bool,
}

impl Audit {
    /// Starts the audit of a new connection.
    pub(super) fn begin(registry: &Registry) -> Self {
        Self { cursor: 0, end: registry.acknowledged.reconnect(), request: None, from: 0, failed: false }
    }

    /// Sends a request again that has failed.
    pub(super) fn retry(&mut self) {
        self.failed = false;
    }

    /// Continues until the request in flight is not answered yet, or the slice is over.
    pub(super) fn poll(
        &mut self,
        registry: &Arc<Registry>,
        remote: &Arc<dyn Remote>,
        slice: &mut Slice,
        cx: &mut Context<'_>,
    ) {
        loop {
            if let Some(request) = &mut self.request {
                let Poll::Ready(answered) = request.as_mut().poll(cx) else { return };
                self.request = None;
                if !answered {
                    (self.cursor, self.failed) = (self.from, true);
                }
            }
            if self.failed || self.cursor >= self.end {
                return;
            }
            if slice.is_over() {
                cx.waker().wake_by_ref();
                return;
            }
            self.from = self.cursor;
            let (now, age) = (registry.now(), registry.retention.age);
            let appends = registry.acknowledged.unverified(&mut self.cursor, self.end, now, age);
            for _ in 0..appends.len().max(1) {
                slice.step();
            }
            if !appends.is_empty() {
                let (registry, remote) = (registry.clone(), remote.clone());
                self.request = Some(Box::pin(async move {
                    let Ok(fates) = remote.verify(&appends).await else { return false };
                    for ((name, tail), fate) in appends.iter().zip(fates) {
                        registry.acknowledged.settle(name, *tail, fate);
                    }
                    true
                }));
            }
        }
    }
}
