//! Subscribes to channels and unsubscribes from them, while the maintenance task continues with everything else.
//!
//! A confirmation takes a round trip. Requests are therefore pipelined: each is sent without waiting for the previous
//! ones, up to a limit. A channel is read once its subscription is confirmed.

use futures_util::stream::{FuturesUnordered, StreamExt};
use std::{
    collections::VecDeque,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

use super::{Registry, entry::Entry, slice::Slice};
use crate::{
    engine::{Feed, RemoteFuture},
    fault_injection::Invariant,
};

/// The number of channels in one request, which one poll sends without checking its slice.
const BATCH: usize = 64;

/// The number of channels in all unconfirmed requests. Further channels are queued.
const UNCONFIRMED: usize = 4_096;

/// How long the engine may take to confirm a request.
const CONFIRM: Duration = Duration::from_secs(3);

/// The subscriptions of one connection.
#[derive(Default)]
pub(super) struct Subscriptions {
    /// Channels to subscribe to, in this order.
    to_join: VecDeque<Arc<Entry>>,
    /// The names of channels that this process has stopped following.
    to_leave: VecDeque<String>,
    requests: FuturesUnordered<Request>,
    /// The number of channels in `requests`.
    unconfirmed: usize,
}

/// A request in flight. Resolves to `None` if it failed.
type Request = Pin<Box<dyn Future<Output = Option<Confirmed>> + Send>>;

struct Confirmed {
    /// The number of channels in the request.
    count: usize,
    /// The channels, if they were subscribed to.
    joined: Vec<Arc<Entry>>,
}

impl Subscriptions {
    pub(super) fn join(&mut self, entries: Vec<Arc<Entry>>) {
        self.to_join.extend(entries);
    }

    /// Queues a name to be unsubscribed from, unless it is followed again by then.
    pub(super) fn leave(&mut self, name: &str) {
        self.to_leave.push_back(name.to_owned());
    }

    /// Polls the requests in flight, and sends as many more as `UNCONFIRMED` and the slice allow. Passes each channel
    /// whose subscription was confirmed to `joined`. Returns an error if a request failed.
    pub(super) fn poll(
        &mut self,
        feed: &dyn Feed,
        registry: &Arc<Registry>,
        mut joined: impl FnMut(Arc<Entry>),
        slice: &mut Slice,
        cx: &mut Context<'_>,
    ) -> Result<(), &'static str> {
        loop {
            while let Poll::Ready(Some(confirmed)) = self.requests.poll_next_unpin(cx) {
                let Some(confirmed) = confirmed else { return Err("a subscription was not confirmed") };
                self.unconfirmed -= confirmed.count;
                for entry in confirmed.joined {
                    joined(entry);
                    slice.step();
                }
                if slice.is_over() {
                    cx.waker().wake_by_ref();
                    return Ok(());
                }
            }
            let room = UNCONFIRMED - self.unconfirmed;
            if room == 0 || (self.to_leave.is_empty() && self.to_join.is_empty()) {
                return Ok(());
            }
            if slice.is_over() {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            // Alternately, so that neither delays the other for long.
            self.send_leave(feed, registry, slice, cx);
            self.send_join(feed, registry, slice, cx);
        }
    }

    fn send_leave(&mut self, feed: &dyn Feed, registry: &Registry, slice: &mut Slice, cx: &mut Context<'_>) {
        let mut names = batch(&mut self.to_leave, UNCONFIRMED - self.unconfirmed, slice);
        // If another thread follows one of them after this check, it queues the channel to be subscribed to, and this
        // task sends that request after this one.
        names.retain(|name| !registry.is_followed(name));
        let names: Vec<_> = names.iter().map(|name| &**name).collect();
        let (request, count) = (confirmed(feed.unsubscribe(&names)), names.len());
        self.send(count, async move { request.await.then_some(Confirmed { count, joined: Vec::new() }) }, cx);
    }

    fn send_join(&mut self, feed: &dyn Feed, registry: &Arc<Registry>, slice: &mut Slice, cx: &mut Context<'_>) {
        let entries = batch(&mut self.to_join, UNCONFIRMED - self.unconfirmed, slice);
        let names: Vec<_> = entries.iter().map(|entry| entry.name()).collect();
        let (request, count) = (confirmed(feed.subscribe(&names)), names.len());
        let too_early = (!registry.faults.holds(Invariant::Order)).then(|| registry.clone());
        let request = async move {
            if let Some(registry) = too_early {
                registry.read_too_early(&entries).await;
            }
            request.await.then_some(Confirmed { count, joined: entries })
        };
        self.send(count, request, cx);
    }

    /// Polls a request of `count` channels once, which sends it.
    fn send(
        &mut self,
        count: usize,
        request: impl Future<Output = Option<Confirmed>> + Send + 'static,
        cx: &mut Context<'_>,
    ) {
        if count == 0 {
            return;
        }
        self.unconfirmed += count;
        let mut request: Request = Box::pin(request);
        self.requests.push(match request.as_mut().poll(cx) {
            Poll::Ready(confirmed) => Box::pin(ready(confirmed)),
            Poll::Pending => request,
        });
    }
}

/// Takes the channels of the next request from a queue.
fn batch<T>(queue: &mut VecDeque<T>, room: usize, slice: &mut Slice) -> Vec<T> {
    let count = queue.len().min(BATCH).min(room);
    for _ in 0..count {
        slice.step();
    }
    queue.drain(..count).collect()
}

/// Resolves to whether a request was confirmed in time.
async fn confirmed(request: RemoteFuture<'static, ()>) -> bool {
    matches!(timeout(CONFIRM, request).await, Ok(Ok(())))
}

impl Registry {
    /// Whether this process follows a channel.
    fn is_followed(&self, name: &str) -> bool {
        self.map.find(name).is_some_and(|entry| entry.lock().replica.is_some())
    }

    /// Without the rule that a channel is subscribed to first: reads channels before.
    async fn read_too_early(&self, entries: &[Arc<Entry>]) {
        let Some(remote) = self.remote() else { return };
        for entry in entries {
            self.refresh(&**remote, entry).await;
        }
    }
}
