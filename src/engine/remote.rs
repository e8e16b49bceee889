//! What an engine outside of this process is asked for: the one place where engines differ.
//!
//! Such an engine keeps the logs, and decides in one step what an append comes to. What is the same for all of them (who
//! waits, which channels this process follows, what it knows of them, and when it doubts that) is the
//! [`registry`](crate::registry)'s.

use bytes::Bytes;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    Announcement, Append, Appended, Created, Creation, Extent, Lifetime, Log, MediaType, Offset, Reading,
    ResponseBytes, Start, utf8::is_within_character,
};
use crate::Error;

/// The future of an engine's answer.
///
/// Of an error, [`Error::Uncertain`] alone leaves open whether something was done. [`Error::Engine`] and [`Error::Layout`] concern one
/// channel, and [`Error::Unreachable`] all of them.
pub(crate) type RemoteFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

pub(crate) trait Remote: fmt::Debug + Send + Sync {
    /// Connects anew, and begins to hear what is published. What was connected before is not used any more.
    fn connect(&self) -> RemoteFuture<'_, Box<dyn Feed>>;

    /// Whether the connection is lost: asked now and then, and woken for.
    fn poll_lost(&self, cx: &mut Context<'_>) -> Poll<()>;

    fn append<'a>(&'a self, name: &'a str, append: &'a Append<'a>) -> RemoteFuture<'a, Appended>;

    fn create<'a>(&'a self, name: &'a str, creation: &'a Creation) -> RemoteFuture<'a, Created>;

    fn delete<'a>(&'a self, name: &'a str) -> RemoteFuture<'a, Offset>;

    /// What there is; [`Error::Gone`] if the place is none.
    fn read<'a>(&'a self, name: &'a str, from: ReadFrom, limit: usize, touch: Touch) -> RemoteFuture<'a, RemoteRead>;

    /// Compares cached entries of channels with their logs, in this order: much cheaper than reading them one by one.
    /// Renews idle lifetimes as a read with the same [`Touch`] does.
    fn compare<'a>(&'a self, held: &'a [CachedTail<'a>]) -> RemoteFuture<'a, Vec<Comparison>>;

    /// Finds out what became of appends that this engine has acknowledged: the name of the channel, and its tail after the
    /// append. Answers in this order.
    fn verify<'a>(&'a self, appends: &'a [(Arc<str>, Offset)]) -> RemoteFuture<'a, Vec<AppendFate>>;

    /// Makes the same append to each of these channels, in as few round trips as it can. Answers in this order, for each by itself.
    /// The order of these appends and of others that are under way at the same time is not defined.
    fn append_each<'a>(
        &'a self,
        names: &'a [String],
        append: &'a Append<'a>,
    ) -> RemoteFuture<'a, Vec<Result<Appended, Error>>>;

    /// Walks over the names of all channels.
    fn names(&self) -> Box<dyn Names + '_>;

    /// Removes names from what [`names`](Self::names) walks over. The caller has found, after it was given them, that they have no
    /// channel.
    fn forget<'a>(&'a self, names: &'a [Listed]) -> RemoteFuture<'a, ()>;

    /// Sends a broadcast to all other nodes: those that are connected receive it as [`Notice::Broadcast`].
    fn announce<'a>(&'a self, broadcast: &'a Announcement) -> RemoteFuture<'a, ()>;

    /// Tries an append, a read and a publication, as channels need them.
    fn trial(&self) -> RemoteFuture<'_, ()>;

    /// Publishes to this process itself. It comes back as [`Notice::Probe`] if what is published is heard here.
    fn probe(&self, number: u64) -> RemoteFuture<'_, ()>;
}

/// A walk over the names of all channels.
pub(crate) trait Names: Send {
    /// Returns the next names, a few thousand at most; `None` after the last. Every channel that existed when the walk began, and exists
    /// until its end, is among them. A name may come twice, and may have no channel.
    fn next(&mut self) -> RemoteFuture<'_, Option<Vec<Listed>>>;
}

/// A name that an engine has listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    /// If there is no channel of this name, it may be [forgotten](Remote::forget): the version of what the engine has listed.
    pub(crate) stale: Option<u64>,
}

/// A connection that receives what is published: each notice at most once, and none while the connection is broken. A
/// notice is a hint; the log is the truth.
///
/// The methods do not wait for each other. Requests are sent in the order in which their futures are first polled, and
/// take effect in that order.
pub(crate) trait Feed: Send {
    /// Requests the notices of channels. The request is sent when the future is first polled. The future resolves when
    /// the engine has confirmed it: what is published from then on is received.
    fn subscribe(&self, names: &[&str]) -> RemoteFuture<'static, ()>;

    /// Requests no more notices of channels. The request is sent when the future is first polled.
    fn unsubscribe(&self, names: &[&str]) -> RemoteFuture<'static, ()>;

    /// Returns the next notice, and the name of its channel. `None` once the connection is lost.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(String, Notice)>>;
}

/// What became of a channel.
#[derive(Debug)]
pub(crate) enum Notice {
    /// `before` is the fingerprint of the append that this one follows. Without `data` it is to be read from the log.
    Appended {
        at: Offset,
        before: u64,
        messages: u32,
        data: Option<Bytes>,
        closed: bool,
    },
    Closed {
        tail: Offset,
    },
    Made,
    Deleted,
    /// [`Remote::probe`] has come back.
    Probe(u64),
    /// A broadcast of another node. It does not belong to one channel.
    Broadcast(Announcement),
}

/// Where an engine is to read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadFrom {
    From(Start),
    /// As near to the tail as is within the limit.
    Window,
}

/// Whether a read keeps an idle channel alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    Yes,
    No,
}

/// What is held of a channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedTail<'a> {
    pub(crate) name: &'a str,
    /// Where it ends, or what stands for that if nobody has made it.
    pub(crate) tail: Offset,
    pub(crate) made: bool,
    pub(crate) closed: bool,
    /// Whether this keeps an idle channel alive.
    pub(crate) touch: Touch,
}

/// What there is, beside what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Same,
    /// It ends here. All else is the same.
    At(Offset),
    Other,
}

/// What became of an append that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AppendFate {
    /// It is in the log, or has been trimmed.
    Kept,
    /// The channel was deleted, or has expired.
    Ended,
    /// The channel exists, and its log does not have the append.
    Lost,
    /// The channel does not exist, and nothing shows why. It may have expired.
    Missing,
    /// The engine cannot tell.
    Unknown,
}

/// What a read has found.
#[derive(Debug)]
pub(crate) enum RemoteRead {
    Page(Page),
    /// Nobody has made the channel. This stands for its tail: whoever comes back with it misses nothing.
    Nothing(Offset),
}

impl RemoteRead {
    /// Whether there is nothing beyond it.
    pub(crate) fn is_up_to_date(&self) -> bool {
        match self {
            Self::Page(page) => page.is_up_to_date(),
            Self::Nothing(_) => true,
        }
    }
}

/// A part of a log, and what the channel is.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) content_type: MediaType,
    /// What the fingerprints of one log have in common: their upper half.
    pub(crate) log: u64,
    pub(crate) closed: bool,
    /// What stood for its tail when nobody had made it.
    pub(crate) absent_tail: Offset,
    pub(crate) tail: Offset,
    /// How many appends are kept.
    pub(crate) kept: usize,
    pub(crate) lifetime: Lifetime,
    /// How long it is to the end of the lifetime, if that is fixed.
    pub(crate) left: Option<Duration>,
    /// The place just before what was read.
    pub(crate) after: Offset,
    pub(crate) entries: Vec<PageEntry>,
}

#[derive(Debug)]
pub(crate) struct PageEntry {
    pub(crate) fingerprint: u64,
    pub(crate) messages: u32,
    pub(crate) data: Bytes,
}

impl Page {
    /// The place just after what was read.
    pub(crate) fn next(&self) -> Offset {
        let last = self.entries.last().map(|last| last.fingerprint);
        last.map_or(self.after, |last| Offset::new(self.after.position() + self.entries.len() as u64, last))
    }

    pub(crate) fn is_up_to_date(&self) -> bool {
        self.next() == self.tail
    }

    /// Whether every append that was read ends within a character that the next one may continue, and there is a next one.
    pub(crate) fn lacks_character_end(&self) -> bool {
        let ends_whole = |nth: usize| {
            let last = self.entries[..=nth].iter().rev().flat_map(|entry| entry.data.iter().rev());
            let next = self.entries.get(nth + 1).and_then(|next| next.data.first().copied());
            !is_within_character(last, next)
        };
        !self.is_up_to_date() && !(0..self.entries.len()).rev().any(ends_whole)
    }

    pub(crate) fn into_reading(self, extent: Extent, counter: &Arc<ResponseBytes>) -> Reading {
        let up_to_date = self.is_up_to_date();
        let after = Start::After(self.after);
        let log = Log::replica(self, 0, counter);
        let read = |extent| {
            log.read(after, extent).unwrap_or_else(|gone| {
                debug_assert!(false, "a log has its own floor: {gone}");
                Reading::unknown(gone.earliest())
            })
        };
        let mut reading = read(Extent { bytes: usize::MAX, ..extent });
        if reading.is_empty() {
            // The log ends within a character. The cached entries hold it back until the next append, unless they begin after
            // it: then it is returned as it is, because reading again would find the same.
            reading = read(usize::MAX.into());
        }
        // Not if the answer is cut before the page ends.
        reading.up_to_date &= up_to_date;
        reading
    }
}
