//! An engine that does as it is told.

use bytes::Bytes;
use futures_util::future::join_all;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::ready,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep},
};

use crate::{
    Error,
    engine::{
        Announcement, Append, AppendFate, Appended, CachedTail, Comparison, Created, Creation, Feed, Gone, Lifetime,
        Listed, MediaType, Names, Notice, Offset, Page, PageEntry, ReadFrom, Reason, Remote, RemoteFuture, RemoteRead,
        Start, Touch,
    },
};

#[derive(Default)]
pub(super) struct FakeEngine {
    world: Arc<Mutex<FakeState>>,
    /// Rung when something is let go on.
    bell: Notify,
}

#[derive(Default)]
pub(super) struct FakeState {
    logs: BTreeMap<String, Log>,
    fingerprints: u64,
    /// The absent tail: its fingerprint is a number of deletions and a number of half spans.
    origin: (u64, u64),
    /// The broadcasts that the node has announced.
    pub(super) announced: Vec<Announcement>,
    /// Names that the engine lists, and that have no channel any more.
    pub(super) ended: BTreeSet<String>,
    /// How many channels each request to append to many of them was for.
    pub(super) append_each: Vec<usize>,
    topics: BTreeSet<String>,
    /// How many notices the node has not received yet.
    pub(super) queued: usize,
    publish: Option<mpsc::UnboundedSender<(String, Notice)>>,
    /// Counts the connections.
    pub(super) connections: usize,
    watcher: Option<Waker>,
    /// What is asked of it and what it is told, in this order.
    pub(super) journal: Vec<&'static str>,
    /// It cannot be reached.
    pub(super) down: bool,
    /// What is read is known, and not answered yet.
    pub(super) hold_reads: bool,
    /// Reads are refused, and the connection is well.
    pub(super) refuse_reads: bool,
    /// How long it takes until each of the next appends is made. Those after them are made at once.
    pub(super) appends_take: VecDeque<Duration>,
    /// How long it takes until a subscription or its end takes effect and is confirmed.
    pub(super) subscribing_takes: Duration,
    /// The idle lifetime of all channels. The double does not end it.
    pub(super) idle: Option<Duration>,
    /// When a request renewed the lifetime of a channel.
    pub(super) renewals: Vec<Instant>,
    /// What is published is heard by nobody.
    pub(super) mute: bool,
    /// What is published is heard later.
    late: Option<Vec<(String, Notice)>>,
}

struct Log {
    tag: u64,
    origin: Offset,
    start: u64,
    entries: Vec<(u64, u64)>,
    closed: bool,
    broadcasts: Vec<u64>,
}

/// Whether an offset is an absent tail that was returned within the last span.
fn is_origin(offset: Offset, origin: Offset) -> bool {
    let (this, that) = (offset.fingerprint(), origin.fingerprint());
    offset.position() == 0 && this / SPANS == that / SPANS && this.abs_diff(that) <= 1
}

/// More half spans than a test lets pass.
const SPANS: u64 = 10_000;

impl Log {
    fn tail(&self) -> Offset {
        let last = self.entries.last().map_or(self.start, |(fingerprint, _)| *fingerprint);
        Offset::new(self.entries.len() as u64, last)
    }

    fn place(&self, position: usize) -> Offset {
        let fingerprint = position.checked_sub(1).map_or(self.start, |nth| self.entries[nth].0);
        Offset::new(position as u64, fingerprint)
    }

    fn read(&self, place: ReadFrom, idle: Option<Duration>) -> Result<RemoteRead, Error> {
        let gone = |reason| Error::Gone(Gone::new(reason, self.tail(), self.place(0)));
        let from = match place {
            // As short as in Redis.
            ReadFrom::Window => self.entries.len().saturating_sub(64),
            ReadFrom::From(Start::Earliest | Start::AbsentTail) => 0,
            ReadFrom::From(Start::Tail) => self.entries.len(),
            ReadFrom::From(Start::After(offset)) if is_origin(offset, self.origin) => 0,
            ReadFrom::From(Start::After(offset)) => match usize::try_from(offset.position()).expect("small") {
                at if at > self.entries.len() => return Err(gone(Reason::Ahead)),
                at if self.place(at) != offset => return Err(gone(Reason::OtherLog)),
                at => at,
            },
        };
        let entries = self.entries[from..].iter().map(|(fingerprint, number)| PageEntry {
            fingerprint: *fingerprint,
            messages: 1,
            data: Bytes::from(format!("[{number}]")),
        });
        Ok(RemoteRead::Page(Page {
            absent_tail: self.origin,
            content_type: MediaType::Json,
            log: self.tag << 32,
            closed: self.closed,
            tail: self.tail(),
            kept: self.entries.len(),
            lifetime: idle.map_or(Lifetime::Unbounded, Lifetime::Idle),
            left: None,
            after: self.place(from),
            entries: entries.collect(),
        }))
    }
}

impl FakeState {
    fn origin(&self) -> Offset {
        let (deletions, half_spans) = self.origin;
        Offset::new(0, deletions * SPANS + half_spans)
    }

    /// Passes half of the time for which an absent tail is accepted.
    pub(super) fn pass_half_a_span(&mut self) {
        self.origin.1 += 1;
    }

    fn compare(&self, held: &CachedTail<'_>) -> Comparison {
        match self.logs.get(held.name) {
            None if !held.made && held.tail == self.origin() => Comparison::Same,
            Some(log) if held.made && log.closed == held.closed => match log.tail() {
                tail if tail == held.tail => Comparison::Same,
                tail => Comparison::At(tail),
            },
            _ => Comparison::Other,
        }
    }

    fn fate(&self, name: &str, tail: Offset) -> AppendFate {
        match self.logs.get(name) {
            None => AppendFate::Missing,
            Some(log) if log.read(ReadFrom::From(Start::After(tail)), None).is_ok() => AppendFate::Kept,
            Some(_) => AppendFate::Lost,
        }
    }

    fn renew(&mut self, name: &str, touch: Touch) {
        if touch == Touch::Yes && self.logs.contains_key(name) {
            self.renewals.push(Instant::now());
        }
    }

    fn fingerprint(&mut self, tag: u64) -> u64 {
        self.fingerprints += 1;
        tag << 32 | self.fingerprints
    }

    fn publish(&mut self, name: &str, notice: Notice) {
        if self.mute {
            return;
        }
        match &mut self.late {
            Some(late) => late.push((name.to_owned(), notice)),
            None => self.tell(name, notice),
        }
    }

    pub(super) fn tell(&mut self, name: &str, notice: Notice) {
        let heard = self.topics.contains(name) || matches!(notice, Notice::Probe(_) | Notice::Broadcast(_));
        if let Some(publish) = self.publish.as_ref().filter(|_| heard) {
            self.queued += usize::from(publish.send((name.to_owned(), notice)).is_ok());
        }
    }

    /// What is published from here on is late, until [`apply_notice`](Self::apply_notice).
    pub(super) fn be_late(&mut self) {
        self.late.get_or_insert_default();
    }

    pub(super) fn hear(&mut self) {
        for (name, notice) in self.late.take().unwrap_or_default() {
            self.tell(&name, notice);
        }
    }

    pub(super) fn append(&mut self, name: &str, number: u64) -> Offset {
        if !self.logs.contains_key(name) {
            self.fingerprints += 1;
            let tag = self.fingerprints;
            let start = self.fingerprint(tag);
            let (origin, entries, broadcasts) = (self.origin(), Vec::new(), Vec::new());
            self.logs.insert(name.to_owned(), Log { tag, origin, start, entries, closed: false, broadcasts });
            self.publish(name, Notice::Made);
        }
        let (tag, before) = self.logs.get(name).map(|log| (log.tag, log.tail())).expect("there is one now");
        let fingerprint = self.fingerprint(tag);
        let log = self.logs.get_mut(name).expect("there is one now");
        log.entries.push((fingerprint, number));
        let at = log.tail();
        self.publish(name, notice(at, before, number));
        at
    }

    pub(super) fn delete(&mut self, name: &str) {
        self.logs.remove(name).expect("it is there");
        self.origin.0 += 1;
        self.publish(name, Notice::Deleted);
    }

    pub(super) fn close(&mut self, name: &str) {
        let log = self.logs.get_mut(name).expect("it is there");
        log.closed = true;
        let tail = log.tail();
        self.publish(name, Notice::Closed { tail });
    }

    /// Appends a number as a part of a broadcast, once.
    fn append_broadcast(&mut self, name: &str, append: &Append<'_>) -> Result<Appended, Error> {
        let (Some(id), Some(batch)) = (append.broadcast, &append.batch) else { return Err(Error::Unreachable) };
        if append.create.is_none() && !self.logs.contains_key(name) {
            return Err(Error::Unknown);
        }
        let log = self.logs.get(name);
        if let Some(log) = log.filter(|log| log.broadcasts.contains(&id)) {
            return Ok(Appended { tail: log.tail(), closed: false, accepted: None, duplicate: true });
        }
        let tail = self.append(name, batch.number());
        self.logs.get_mut(name).expect("there is one now").broadcasts.push(id);
        Ok(Appended { tail, closed: false, accepted: None, duplicate: false })
    }

    /// Appends a number as a part of a broadcast of another node.
    pub(super) fn append_part(&mut self, name: &str, broadcast: u64, number: u64) {
        self.append(name, number);
        self.logs.get_mut(name).expect("there is one now").broadcasts.push(broadcast);
    }

    pub(super) fn has_part(&self, name: &str, broadcast: u64) -> bool {
        self.logs.get(name).is_some_and(|log| log.broadcasts.contains(&broadcast))
    }

    pub(super) fn exists(&self, name: &str) -> bool {
        self.logs.contains_key(name)
    }

    pub(super) fn numbers(&self, name: &str) -> Vec<u64> {
        self.logs.get(name).map_or_else(Vec::new, |log| log.entries.iter().map(|(_, number)| *number).collect())
    }

    /// Takes a channel away without a word.
    pub(super) fn lose_log(&mut self, name: &str) {
        self.logs.remove(name);
    }

    /// Sets a log back to so many entries, without a word.
    pub(super) fn set_back(&mut self, name: &str, entries: usize) {
        self.logs.get_mut(name).expect("it is there").entries.truncate(entries);
    }

    pub(super) fn cut(&mut self) {
        self.publish = None;
        self.topics.clear();
        if let Some(watcher) = self.watcher.take() {
            watcher.wake();
        }
    }

    pub(super) fn is_subscribed(&self, name: &str) -> bool {
        self.topics.contains(name)
    }

    pub(super) fn count(&self, what: &str) -> usize {
        self.journal.iter().filter(|said| **said == what).count()
    }
}

/// What is said of an append.
pub(super) fn notice(at: Offset, before: Offset, number: u64) -> Notice {
    let data = Some(Bytes::from(format!("[{number}]")));
    Notice::Appended { at, before: before.fingerprint(), messages: 1, data, closed: false }
}

impl FakeEngine {
    pub(super) fn world(&self) -> MutexGuard<'_, FakeState> {
        self.world.lock().unwrap()
    }

    pub(super) fn append(&self, number: u64) -> Offset {
        self.world().append(super::NAME, number)
    }

    /// Reads that are held go on.
    pub(super) fn go_on(&self) {
        self.world().hold_reads = false;
        self.bell.notify_waiters();
    }
}

impl std::fmt::Debug for FakeEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Double")
    }
}

impl Remote for FakeEngine {
    fn connect(&self) -> RemoteFuture<'_, Box<dyn Feed>> {
        Box::pin(async move {
            let mut world = self.world();
            if world.down {
                return Err(Error::Unreachable);
            }
            world.connections += 1;
            world.topics.clear();
            world.queued = 0;
            let (publish, heard) = mpsc::unbounded_channel();
            world.publish = Some(publish);
            Ok(Box::new(Heard { heard, world: self.world.clone() }) as Box<dyn Feed>)
        })
    }

    fn poll_lost(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut world = self.world();
        if world.publish.is_none() {
            return Poll::Ready(());
        }
        world.watcher = Some(cx.waker().clone());
        Poll::Pending
    }

    // The double stores the entries of the tests and the broadcasts, and refuses every other change.
    fn append<'a>(&'a self, name: &'a str, append: &'a Append<'a>) -> RemoteFuture<'a, Appended> {
        Box::pin(async move {
            let takes = {
                let mut world = self.world();
                world.journal.push("append");
                world.appends_take.pop_front()
            };
            if let Some(takes) = takes {
                sleep(takes).await;
            }
            self.world().append_broadcast(name, append)
        })
    }

    fn create<'a>(&'a self, _: &'a str, _: &'a Creation) -> RemoteFuture<'a, Created> {
        Box::pin(ready(Err(Error::Unreachable)))
    }

    fn delete<'a>(&'a self, _: &'a str) -> RemoteFuture<'a, Offset> {
        Box::pin(ready(Err(Error::Unreachable)))
    }

    fn read<'a>(&'a self, name: &'a str, from: ReadFrom, _: usize, touch: Touch) -> RemoteFuture<'a, RemoteRead> {
        Box::pin(async move {
            let read = {
                let mut world = self.world();
                world.journal.push("read");
                if world.refuse_reads || world.publish.is_none() {
                    return Err(Error::Unreachable);
                }
                world.renew(name, touch);
                match world.logs.get(name) {
                    Some(log) => log.read(from, world.idle),
                    None => match from {
                        ReadFrom::From(Start::After(offset)) if !is_origin(offset, world.origin()) => {
                            Err(Error::Gone(Gone::new(Reason::Unknown, world.origin(), world.origin())))
                        }
                        _ => Ok(RemoteRead::Nothing(world.origin())),
                    },
                }
            };
            let going_on = self.bell.notified();
            if self.world().hold_reads {
                going_on.await;
            }
            read
        })
    }

    fn compare<'a>(&'a self, held: &'a [CachedTail<'a>]) -> RemoteFuture<'a, Vec<Comparison>> {
        Box::pin(async move {
            let seen = {
                let mut world = self.world();
                world.journal.push("compare");
                if world.refuse_reads || world.publish.is_none() {
                    return Err(Error::Unreachable);
                }
                for held in held {
                    world.renew(held.name, held.touch);
                }
                held.iter().map(|held| world.compare(held)).collect()
            };
            let going_on = self.bell.notified();
            if self.world().hold_reads {
                going_on.await;
            }
            Ok(seen)
        })
    }

    fn verify<'a>(&'a self, appends: &'a [(Arc<str>, Offset)]) -> RemoteFuture<'a, Vec<AppendFate>> {
        Box::pin(async move {
            let mut world = self.world();
            world.journal.push("verify");
            if world.refuse_reads || world.publish.is_none() {
                return Err(Error::Unreachable);
            }
            Ok(appends.iter().map(|(name, tail)| world.fate(name, *tail)).collect())
        })
    }

    fn append_each<'a>(
        &'a self,
        names: &'a [String],
        append: &'a Append<'a>,
    ) -> RemoteFuture<'a, Vec<Result<Appended, Error>>> {
        Box::pin(async move {
            self.world().append_each.push(names.len());
            Ok(join_all(names.iter().map(|name| Remote::append(self, name, append))).await)
        })
    }

    fn names(&self) -> Box<dyn Names + '_> {
        let world = self.world();
        // The first name comes twice.
        let names: Vec<String> =
            world.logs.keys().chain(&world.ended).chain(world.logs.keys().take(1)).cloned().collect();
        let listed: Vec<_> = names.into_iter().map(|name| Listed { name, stale: Some(7) }).collect();
        Box::new(Pages(listed.chunks(1_000).map(<[_]>::to_vec).collect()))
    }

    fn forget<'a>(&'a self, names: &'a [Listed]) -> RemoteFuture<'a, ()> {
        self.world().ended.retain(|ended| names.iter().all(|listed| listed.name != *ended || listed.stale != Some(7)));
        Box::pin(ready(Ok(())))
    }

    fn announce<'a>(&'a self, broadcast: &'a Announcement) -> RemoteFuture<'a, ()> {
        Box::pin(async move {
            let mut world = self.world();
            world.journal.push("announce");
            if world.publish.is_none() {
                return Err(Error::Unreachable);
            }
            world.announced.push(broadcast.clone());
            Ok(())
        })
    }

    fn trial(&self) -> RemoteFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn probe(&self, number: u64) -> RemoteFuture<'_, ()> {
        Box::pin(async move {
            self.world().publish("", Notice::Probe(number));
            Ok(())
        })
    }
}

/// The pages of a walk over names.
struct Pages(VecDeque<Vec<Listed>>);

impl Names for Pages {
    fn next(&mut self) -> RemoteFuture<'_, Option<Vec<Listed>>> {
        Box::pin(ready(Ok(self.0.pop_front())))
    }
}

struct Heard {
    heard: mpsc::UnboundedReceiver<(String, Notice)>,
    world: Arc<Mutex<FakeState>>,
}

impl Feed for Heard {
    fn subscribe(&self, names: &[&str]) -> RemoteFuture<'static, ()> {
        self.change("subscribe", names, |topics, name| topics.insert(name))
    }

    fn unsubscribe(&self, names: &[&str]) -> RemoteFuture<'static, ()> {
        self.change("unsubscribe", names, |topics, name| topics.remove(&name))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(String, Notice)>> {
        let received = self.heard.poll_recv(cx);
        self.world.lock().unwrap().queued -= usize::from(matches!(received, Poll::Ready(Some(_))));
        received
    }
}

impl Heard {
    fn change(
        &self,
        what: &'static str,
        names: &[&str],
        change: impl Fn(&mut BTreeSet<String>, String) -> bool + Send + 'static,
    ) -> RemoteFuture<'static, ()> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let world = self.world.clone();
        Box::pin(async move {
            let (connection, takes) = {
                let mut world = world.lock().unwrap();
                world.journal.push(what);
                (world.connections, world.subscribing_takes)
            };
            if !takes.is_zero() {
                sleep(takes).await;
            }
            let mut world = world.lock().unwrap();
            if world.publish.is_none() || world.connections != connection {
                return Err(Error::Unreachable);
            }
            for name in names {
                change(&mut world.topics, name);
            }
            Ok(())
        })
    }
}
