//! What a server of Durable Streams should be, the simple way: a map of vectors. Nothing here waits, shares or forgets.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A place in a stream: after so many appends, the last of which was made to that log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) appends: usize,
    pub(super) log: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lifetime {
    /// In milliseconds.
    Idle(u64),
    /// In milliseconds on the clock on the wall, which does not move in a test: it is as far away whenever it is asked for.
    Until(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fork {
    pub(super) source: &'static str,
    pub(super) at: Option<Place>,
    pub(super) part: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) id: &'static str,
    pub(super) epoch: u64,
    pub(super) seq: u64,
}

/// Messages are digits: one byte each in a text, one number each in JSON.
pub(super) type Messages = Vec<u8>;

#[derive(Clone, Debug)]
pub(super) enum Request {
    Put { kind: Option<Kind>, lifetime: Option<Lifetime>, closed: bool, content: Messages, fork: Option<Fork> },
    Post { kind: Kind, content: Messages, close: bool, seq: Option<&'static str>, stamp: Option<Stamp> },
    Get { from: From, how: How },
    Head,
    Delete,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum From {
    Start,
    Now,
    Place(Place),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Read,
    LongPoll,
    Events,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Of a refusal.
    pub(super) reason: Option<&'static str>,
    pub(super) next: Option<Place>,
    pub(super) closed: bool,
    /// Of a `GET` that found something to show, or nothing yet.
    pub(super) content: Option<(Kind, Messages)>,
    /// The epoch and the number that were accepted last.
    pub(super) accepted: Option<(u64, u64)>,
    pub(super) lifetime: Option<Lifetime>,
}

fn refused(status: u16, reason: &'static str) -> Answer {
    Answer { status, reason: Some(reason), ..Answer::default() }
}

#[derive(Clone, Debug)]
struct Append {
    log: usize,
    messages: Messages,
}

#[derive(Debug)]
struct Stream {
    log: usize,
    /// The log whose beginning this is: another one's in a fork.
    floor: usize,
    kind: Kind,
    appends: Vec<Append>,
    closed: bool,
    closed_by: Option<Stamp>,
    last_seq: Option<&'static str>,
    producers: HashMap<&'static str, (u64, u64)>,
    lifetime: Option<Lifetime>,
    /// The end of its life, if that is fixed.
    until: Option<u64>,
    touched: u64,
    /// What was asked for, and the log that it is of.
    fork: Option<(Fork, usize)>,
    /// Deleted or expired, and kept by its forks.
    buried: bool,
}

#[derive(Default, Debug)]
pub(super) struct Server {
    streams: BTreeMap<&'static str, Stream>,
    /// The names of streams that have ended with something in them, or closed.
    ended: BTreeSet<&'static str>,
    logs: usize,
    now: u64,
}

impl Server {
    pub(super) fn answer(&mut self, name: &'static str, request: &Request) -> Answer {
        if let Request::Put { .. } = request {
            return self.put(name, request);
        }
        if let Request::Post { content, close: false, .. } = request {
            if content.is_empty() {
                return refused(400, "empty");
            }
        }
        let Some(stream) = self.streams.get_mut(name) else { return refused(404, "not-found") };
        if stream.buried {
            return Answer { next: Some(stream.tail()), ..refused(410, "deleted") };
        }
        match request {
            Request::Put { .. } => unreachable!("above"),
            Request::Post { kind, content, close, seq, stamp } => {
                let answer = stream.post(*kind, content, *close, *seq, *stamp, self.ended.contains(name));
                if answer.reason.is_none() {
                    stream.touched = self.now;
                }
                answer
            }
            Request::Get { from, how } => {
                stream.touched = self.now;
                stream.get(*from, *how)
            }
            Request::Head => Answer { status: 200, lifetime: stream.lifetime, ..stream.describe() },
            Request::Delete => {
                self.end(name);
                self.settle();
                Answer { status: 204, ..Answer::default() }
            }
        }
    }

    fn put(&mut self, name: &'static str, request: &Request) -> Answer {
        let Request::Put { kind, lifetime, closed, content, fork } = request else { unreachable!("a `PUT`") };
        if let Some(stream) = self.streams.get(name) {
            let same = !stream.buried
                && kind.is_none_or(|kind| kind == stream.kind)
                // A fork that does not say takes what its source has.
                && (lifetime == &stream.lifetime || (lifetime.is_none() && fork.is_some()))
                && *closed == stream.closed
                && fork.as_ref() == stream.fork.as_ref().map(|(fork, _)| fork);
            return if same { Answer { status: 200, ..stream.describe() } } else { refused(409, "conflict") };
        }
        self.logs += 1;
        let mut stream = Stream {
            log: self.logs,
            floor: self.logs,
            kind: kind.unwrap_or(Kind::Text),
            appends: Vec::new(),
            closed: *closed,
            closed_by: None,
            last_seq: None,
            producers: HashMap::new(),
            lifetime: *lifetime,
            until: None,
            touched: self.now,
            fork: None,
            buried: false,
        };
        if let Some(fork) = fork {
            let Some(source) = self.streams.get(fork.source) else { return refused(404, "not-found") };
            if source.buried {
                return refused(409, "conflict");
            }
            let Some(end) = fork.at.map_or(Some(source.appends.len()), |at| source.find(at)) else {
                return refused(400, "fork-offset");
            };
            stream.appends = source.appends[..end].to_vec();
            if fork.part > 0 {
                match source.appends.get(end) {
                    Some(next) if fork.part == next.messages.len() => stream.appends.push(next.clone()),
                    Some(next) if fork.part < next.messages.len() => stream.append(&next.messages[..fork.part]),
                    _ => return refused(400, "fork-offset"),
                }
            }
            if kind.is_some_and(|kind| kind != source.kind) {
                return refused(409, "content-type");
            }
            (stream.kind, stream.floor) = (source.kind, source.floor);
            stream.lifetime = lifetime.or(source.lifetime);
            stream.fork = Some((fork.clone(), source.log));
        }
        if let Some(Lifetime::Until(end)) = stream.lifetime {
            stream.until = Some(self.now + end);
        }
        if !content.is_empty() {
            stream.append(content);
        }
        let answer = Answer { status: 201, ..stream.describe() };
        self.streams.insert(name, stream);
        answer
    }

    /// Time passes, and what has expired is gone.
    pub(super) fn pass(&mut self, millis: u64) {
        self.now += millis;
        let now = self.now;
        let over = self.streams.iter().filter(|(_, stream)| !stream.buried && stream.is_over(now));
        let over: Vec<_> = over.map(|(name, _)| *name).collect();
        over.into_iter().for_each(|name| self.end(name));
        self.settle();
    }

    /// The end of a stream, whose name its forks keep taken.
    fn end(&mut self, name: &str) {
        let stream = self.streams.get_mut(name).expect("it is there");
        stream.buried = true;
        stream.producers.clear();
    }

    /// Lets go of what is buried and has no forks any more.
    fn settle(&mut self) {
        while let Some(name) = self.streams.iter().find_map(|(name, stream)| {
            let forked = self.streams.values().any(|fork| fork.fork.as_ref().is_some_and(|(_, of)| *of == stream.log));
            (stream.buried && !forked).then_some(*name)
        }) {
            let stream = self.streams.remove(name).expect("it is there");
            if !stream.appends.is_empty() || stream.closed {
                self.ended.insert(name);
            }
        }
    }

    /// How many streams there are, and what they hold in the measure of the limit on history.
    pub(super) fn usage(&self) -> (usize, usize) {
        let held = self.streams.values().filter(|stream| !stream.buried).map(|stream| {
            let size = |append: &Append| stream.kind.text(&append.messages).len() + 128;
            let producers: usize = stream.producers.keys().map(|id| id.len() + 64).sum();
            stream.appends.iter().map(size).sum::<usize>() + producers
        });
        (self.streams.len(), held.sum())
    }

    pub(super) fn names(&self) -> Vec<&'static str> {
        self.streams.iter().filter(|(_, stream)| !stream.buried).map(|(name, _)| *name).collect()
    }

    pub(super) fn kind(&self, name: &str) -> Option<Kind> {
        self.streams.get(name).map(|stream| stream.kind)
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }
}

impl Stream {
    fn post(
        &mut self,
        kind: Kind,
        content: &[u8],
        close: bool,
        seq: Option<&'static str>,
        stamp: Option<Stamp>,
        ended: bool,
    ) -> Answer {
        let producer = stamp.map(|stamp| (stamp, self.producers.get(stamp.id).copied()));
        if self.closed {
            let done = Answer { status: 204, ..self.describe() };
            return match (stamp, producer) {
                (None, _) if close && content.is_empty() => done,
                (Some(stamp), _) if self.closed_by == Some(stamp) => {
                    Answer { accepted: Some((stamp.epoch, stamp.seq)), ..done }
                }
                (_, Some((stamp, Some((epoch, _))))) if stamp.epoch < epoch => refused(403, "fenced"),
                _ => Answer { reason: Some("closed"), status: 409, ..self.describe() },
            };
        }
        if !content.is_empty() && kind != self.kind {
            return refused(409, "content-type");
        }
        match producer {
            Some((stamp, Some((epoch, _)))) if stamp.epoch < epoch => return refused(403, "fenced"),
            Some((stamp, Some((epoch, _)))) if stamp.epoch > epoch && stamp.seq != 0 => return refused(400, "epoch"),
            Some((stamp, Some((epoch, last)))) if stamp.epoch == epoch && stamp.seq <= last => {
                return Answer { status: 204, accepted: Some((epoch, last)), ..self.describe() };
            }
            Some((stamp, Some((epoch, last)))) if stamp.epoch == epoch && stamp.seq > last + 1 => {
                return refused(409, "gap");
            }
            Some((stamp, None)) if stamp.seq != 0 && ended => return refused(403, "unknown-producer"),
            Some((stamp, None)) if stamp.seq != 0 => return refused(409, "gap"),
            _ => {}
        }
        if seq.is_some() && seq <= self.last_seq {
            return refused(409, "sequence");
        }
        if !content.is_empty() {
            self.append(content);
        }
        self.last_seq = seq.or(self.last_seq);
        if let Some(stamp) = stamp {
            self.producers.insert(stamp.id, (stamp.epoch, stamp.seq));
        }
        if close {
            (self.closed, self.closed_by) = (true, stamp);
        }
        let status = if stamp.is_some() && !content.is_empty() { 200 } else { 204 };
        Answer { status, accepted: stamp.map(|stamp| (stamp.epoch, stamp.seq)), ..self.describe() }
    }

    fn get(&self, from: From, how: How) -> Answer {
        let first = match from {
            From::Start => Some(0),
            From::Now => Some(self.appends.len()),
            From::Place(place) => self.find(place),
        };
        let Some(first) = first else { return Answer { next: Some(self.tail()), ..refused(410, "other-log") } };
        let found: Messages = self.appends[first..].iter().flat_map(|append| append.messages.clone()).collect();
        if how == How::LongPoll && found.is_empty() {
            return Answer { status: 204, ..self.describe() };
        }
        Answer { status: 200, content: Some((self.kind, found)), ..self.describe() }
    }

    fn append(&mut self, messages: &[u8]) {
        self.appends.push(Append { log: self.log, messages: messages.to_vec() });
    }

    fn tail(&self) -> Place {
        self.place(self.appends.len())
    }

    fn place(&self, appends: usize) -> Place {
        Place { appends, log: appends.checked_sub(1).map_or(self.floor, |last| self.appends[last].log) }
    }

    /// How many appends are before a place, if it is one of this stream.
    fn find(&self, place: Place) -> Option<usize> {
        (place.appends <= self.appends.len() && self.place(place.appends) == place).then_some(place.appends)
    }

    fn is_over(&self, now: u64) -> bool {
        match self.lifetime {
            None => false,
            Some(Lifetime::Idle(window)) => self.touched + window <= now,
            Some(Lifetime::Until(_)) => self.until.is_some_and(|until| until <= now),
        }
    }

    fn describe(&self) -> Answer {
        Answer { next: Some(self.tail()), closed: self.closed, ..Answer::default() }
    }
}

impl Kind {
    /// Messages as they are sent, and as they are read.
    pub(super) fn text(self, messages: &[u8]) -> String {
        let digits: Vec<_> = messages.iter().map(u8::to_string).collect();
        match self {
            Self::Text => digits.concat(),
            Self::Json => format!("[{}]", digits.join(",")),
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain",
            Self::Json => "application/json",
        }
    }
}
