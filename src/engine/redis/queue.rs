//! The queue of appends that have not been sent yet: which of them the next call may carry.
//!
//! Nothing here is sent, and nothing waits: see [`batching`](super::batching).

use bytes::Bytes;
use std::{
    collections::{HashMap, VecDeque},
    task::Waker,
};
use tokio::sync::oneshot;

use crate::{Error, engine::Appended};

/// The limits of one call, in appends and in bytes. Redis serves no other command while it runs.
pub(super) const MOST: usize = 32;
pub(super) const MOST_BYTES: usize = 256 * 1024;

/// How many queued and parked appends one poll examines: each is added to a call, parked, or found to be cancelled.
pub(super) const EXAMINED: usize = 1_024;

/// One append, as the script wants it.
pub(super) struct QueuedAppend {
    pub(super) keys: [String; 2],
    pub(super) topic: String,
    pub(super) data: Bytes,
    /// All else.
    pub(super) terms: Vec<u8>,
}

pub(super) type AppendResult = oneshot::Sender<Result<Appended, Error>>;

/// Appends that have not been sent yet, and the channels of those that have.
#[derive(Default)]
pub(super) struct AppendQueue {
    /// In the order in which they were started.
    pub(super) queue: VecDeque<(QueuedAppend, AppendResult)>,
    /// The channels that a call in flight appends to, or that are ready, by their first key.
    pub(super) busy: HashMap<String, BusyChannels>,
    /// The channels with parked appends and no call in flight.
    pub(super) ready: VecDeque<String>,
    /// How many calls were sent, which numbers them.
    calls: u64,
    /// Whether an append that was sent alone is in flight.
    pub(super) alone: bool,
    /// The number and the channel of the append that was sent alone, while others must not overtake it.
    pub(super) held: Option<(u64, String)>,
    /// Whether a [`Sender`](super::batching::Sender) runs.
    pub(super) sending: bool,
    /// The waker of the [`Sender`](super::batching::Sender), while it has nothing to send.
    pub(super) sender: Option<Waker>,
}

/// A channel that a call in flight appends to, or that is ready.
pub(super) struct BusyChannels {
    /// The number of the call; [`READY`] if there is none.
    call: u64,
    /// The channel's later appends, older than any in the queue.
    parked: VecDeque<(QueuedAppend, AppendResult)>,
}

/// No call has this number.
const READY: u64 = 0;

/// The appends of one call, and where their results are sent.
#[derive(Default)]
pub(super) struct AppendBatch {
    pub(super) number: u64,
    pub(super) wishes: Vec<QueuedAppend>,
    pub(super) outcomes: Vec<AppendResult>,
    bytes: usize,
    full: bool,
}

impl AppendBatch {
    /// Adds an append. Returns it if there is no room.
    fn add(&mut self, (wish, outcome): (QueuedAppend, AppendResult)) -> Option<(QueuedAppend, AppendResult)> {
        self.bytes += wish.data.len();
        if !self.wishes.is_empty() && self.bytes > MOST_BYTES {
            self.full = true;
            return Some((wish, outcome));
        }
        self.wishes.push(wish);
        self.outcomes.push(outcome);
        self.full = self.wishes.len() == MOST;
        None
    }
}

impl AppendQueue {
    /// Begins the call of an append that is sent alone.
    pub(super) fn hold(&mut self, channel: &str) {
        self.calls += 1;
        self.alone = true;
        self.busy.insert(channel.to_owned(), BusyChannels { call: self.calls, parked: VecDeque::new() });
        self.held = Some((self.calls, channel.to_owned()));
    }

    /// Begins the call of the next appends. Examines at most `left` appends, and subtracts those that it has examined. If it
    /// returns `None` and none are left, there may be more to send.
    pub(super) fn take(
        &mut self,
        left: &mut usize,
        cancelled: &mut Vec<(QueuedAppend, AppendResult)>,
    ) -> Option<AppendBatch> {
        self.calls += 1;
        let mut batch = AppendBatch { number: self.calls, ..AppendBatch::default() };
        // Ready channels first: their parked appends are older than the queued ones of the same channel.
        while !batch.full && *left > 0 {
            let Some(channel) = self.ready.pop_front() else { break };
            let Some(busy) = self.busy.get_mut(&channel) else { continue };
            while !batch.full && *left > 0 {
                let Some(append) = busy.parked.pop_front() else { break };
                *left -= 1;
                if append.1.is_closed() {
                    cancelled.push(append);
                    continue;
                }
                match batch.add(append) {
                    None => busy.call = batch.number,
                    Some(append) => busy.parked.push_front(append),
                }
            }
            if busy.call == READY {
                if busy.parked.is_empty() {
                    self.busy.remove(&channel);
                } else {
                    self.ready.push_front(channel);
                }
            }
        }
        while !batch.full && *left > 0 {
            let Some(append) = self.queue.pop_front() else { break };
            *left -= 1;
            if append.1.is_closed() {
                cancelled.push(append);
                continue;
            }
            let busy = self.busy.get_mut(&append.0.keys[0]);
            let begins = busy.is_none();
            if let Some(busy) = busy.filter(|busy| busy.call != batch.number) {
                busy.parked.push_back(append);
                continue;
            }
            match batch.add(append) {
                None if begins => {
                    let channel = batch.wishes.last().map_or_else(String::new, |wish| wish.keys[0].clone());
                    self.busy.insert(channel, BusyChannels { call: batch.number, parked: VecDeque::new() });
                }
                None => {}
                Some(append) => self.queue.push_front(append),
            }
        }
        if batch.wishes.is_empty() { None } else { Some(batch) }
    }

    /// Ends the call of this number for a channel: its parked appends may be sent.
    pub(super) fn release(&mut self, number: u64, channel: &str) {
        let Some(busy) = self.busy.get_mut(channel).filter(|busy| busy.call == number) else { return };
        if busy.parked.is_empty() {
            self.busy.remove(channel);
        } else {
            busy.call = READY;
            self.ready.push_back(channel.to_owned());
        }
    }

    /// Ends the call of the append that was sent alone. Returns whether parked appends may be sent now.
    pub(super) fn release_held(&mut self) -> bool {
        let Some((number, channel)) = self.held.take() else { return false };
        self.release(number, &channel);
        !self.ready.is_empty()
    }

    /// Whether appends are parked behind the one that was sent alone.
    pub(super) fn is_held(&self) -> bool {
        let held = self.held.as_ref().and_then(|(_, channel)| self.busy.get(channel));
        held.is_some_and(|busy| !busy.parked.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends to channels, each named by a letter, of so many bytes.
    fn queue(
        waiting: &mut AppendQueue,
        channels: &str,
        bytes: usize,
    ) -> Vec<oneshot::Receiver<Result<Appended, Error>>> {
        let append = |channel: char| {
            let (outcome, made) = oneshot::channel();
            let data = Bytes::from(vec![0; bytes]);
            let wish =
                QueuedAppend { keys: [channel.into(), String::new()], topic: String::new(), data, terms: Vec::new() };
            waiting.queue.push_back((wish, outcome));
            made
        };
        channels.chars().map(append).collect()
    }

    fn take(waiting: &mut AppendQueue) -> Option<(u64, String)> {
        let batch = waiting.take(&mut { EXAMINED }, &mut Vec::new())?;
        Some((batch.number, batch.wishes.iter().map(|wish| &*wish.keys[0]).collect()))
    }

    fn release(waiting: &mut AppendQueue, (number, channels): (u64, String)) {
        for channel in channels.chars() {
            waiting.release(number, &channel.to_string());
        }
    }

    #[test]
    fn a_channel_has_at_most_one_call_in_flight_and_its_appends_keep_their_order() {
        let mut waiting = AppendQueue::default();
        let mut made = queue(&mut waiting, "aab", 1);
        let first = take(&mut waiting).expect("a batch");
        assert_eq!(first.1, "aab");
        made.extend(queue(&mut waiting, "acaba", 1));
        let second = take(&mut waiting).expect("a batch");
        assert_eq!(second.1, "c");
        assert!(take(&mut waiting).is_none(), "the others are parked");
        release(&mut waiting, second);
        assert!(take(&mut waiting).is_none());
        // A later append of a channel does not pass its parked ones.
        made.extend(queue(&mut waiting, "ca", 1));
        release(&mut waiting, first);
        let third = take(&mut waiting).expect("a batch");
        assert_eq!(third.1, "aaabca");
        assert!(take(&mut waiting).is_none());
        release(&mut waiting, third);
        assert!(waiting.busy.is_empty() && waiting.ready.is_empty());
    }

    #[test]
    fn what_a_call_has_no_room_for_stays_first() {
        let mut waiting = AppendQueue::default();
        let mut made = queue(&mut waiting, "a", 1);
        let first = take(&mut waiting).expect("a batch");
        made.extend(queue(&mut waiting, &"a".repeat(MOST + 1), 1));
        made.extend(queue(&mut waiting, "b", MOST_BYTES));
        let second = take(&mut waiting).expect("a batch");
        assert_eq!(second.1, "b");
        release(&mut waiting, first);
        let third = take(&mut waiting).expect("a batch");
        assert_eq!(third.1.len(), MOST);
        assert!(take(&mut waiting).is_none(), "the last of them is parked behind these");
        made.extend(queue(&mut waiting, "c", MOST_BYTES));
        release(&mut waiting, third);
        assert_eq!(take(&mut waiting).expect("a batch").1, "a", "with the next there would be too many bytes");
        assert_eq!(take(&mut waiting).expect("a batch").1, "c");
    }

    #[test]
    fn a_channel_whose_parked_appends_were_all_dropped_is_not_busy() {
        let mut waiting = AppendQueue::default();
        let _made = queue(&mut waiting, "a", 1);
        let first = take(&mut waiting).expect("a batch");
        let dropped = queue(&mut waiting, "aa", 1);
        assert!(take(&mut waiting).is_none());
        drop(dropped);
        release(&mut waiting, first);
        assert!(take(&mut waiting).is_none());
        assert!(waiting.busy.is_empty() && waiting.ready.is_empty());
    }

    #[test]
    fn an_append_that_was_sent_alone_holds_its_channel_until_it_is_released() {
        let mut waiting = AppendQueue::default();
        waiting.hold("a");
        let _made = queue(&mut waiting, "ab", 1);
        assert!(!waiting.is_held());
        assert_eq!(take(&mut waiting).expect("a batch").1, "b");
        assert!(waiting.is_held());
        assert!(waiting.release_held() && !waiting.is_held());
        let next = take(&mut waiting).expect("a batch");
        assert_eq!(next.1, "a");
        // It returns later, and does not release the call that has overtaken it.
        assert!(!waiting.release_held());
        assert!(waiting.busy.contains_key("a"));
    }

    #[test]
    fn what_has_not_been_examined_yet_keeps_its_place() {
        let mut waiting = AppendQueue::default();
        let mut made = queue(&mut waiting, "a", 1);
        let first = take(&mut waiting).expect("a batch");
        made.extend(queue(&mut waiting, "aabaca", 1));
        let take_of = |waiting: &mut AppendQueue, mut left| {
            let batch = waiting.take(&mut left, &mut Vec::new());
            (batch.map(|batch| (batch.number, batch.wishes.iter().map(|wish| &*wish.keys[0]).collect())), left)
        };
        assert_eq!(take_of(&mut waiting, 2), (None, 0), "two are parked");
        assert_eq!((waiting.queue.len(), waiting.busy["a"].parked.len()), (4, 2));
        release(&mut waiting, first);
        // Those that are parked go before those that are still queued, also if the former are not examined at once.
        let (second, left) = take_of(&mut waiting, 1);
        let second: (u64, String) = second.expect("a batch");
        assert_eq!((&*second.1, left), ("a", 0));
        let (third, _) = take_of(&mut waiting, EXAMINED);
        let third: (u64, String) = third.expect("a batch");
        assert_eq!(third.1, "bc");
        release(&mut waiting, second);
        let fourth = take(&mut waiting).expect("a batch");
        assert_eq!(fourth.1, "aaa");
        for batch in [third, fourth] {
            release(&mut waiting, batch);
        }
        assert!(waiting.busy.is_empty() && waiting.ready.is_empty());
    }
}
