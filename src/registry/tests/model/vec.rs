//! What a channel should be, with a `Vec` that forgets nothing.

use super::AGE;
use crate::engine::{Reason, Retention};

/// A place that a client may remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Before anything, when the channel had been forgotten so many times.
    Origin(usize),
    /// After so many appends to the so-manieth log.
    After { log: usize, appends: usize },
}

/// What a read gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) texts: Vec<String>,
    pub(super) next: Place,
    pub(super) closed: bool,
    pub(super) up_to_date: bool,
}

/// What a wait comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    Pending,
    Read(Found),
    TimedOut(Place),
    Gone(Reason),
    Deleted,
}

pub(super) struct Channel {
    pub(super) log: Option<Log>,
    retention: Retention,
    logs: usize,
    forgotten: usize,
}

pub(super) struct Log {
    number: usize,
    origin: usize,
    /// All of them; those before `floor` are not given any more.
    appends: Vec<Append>,
    floor: usize,
    pub(super) closed: bool,
    pub(super) explicit: bool,
    written: u64,
    pub(super) touched: u64,
    due: Option<u64>,
}

struct Append {
    texts: Vec<String>,
    bytes: usize,
    at: u64,
}

impl Channel {
    pub(super) fn new(retention: Retention) -> Self {
        Self { log: None, retention, logs: 0, forgotten: 0 }
    }

    pub(super) fn tail(&self) -> Place {
        match &self.log {
            Some(log) => log.place(log.appends.len()),
            None => Place::Origin(self.forgotten),
        }
    }

    /// How many appends are kept, and what they cost.
    pub(super) fn history(&self) -> (usize, usize) {
        let kept = self.log.iter().flat_map(|log| &log.appends[log.floor..]);
        kept.fold((0, 0), |(count, cost), append| (count + 1, cost + append.bytes + 128))
    }

    /// Makes the log, if there is none, and says whether that was so.
    pub(super) fn make(&mut self, now: u64) -> (&mut Log, bool) {
        let fresh = self.log.is_none();
        let (origin, number) = (self.forgotten, self.logs);
        self.logs += usize::from(fresh);
        let log = self.log.get_or_insert_with(|| Log {
            number,
            origin,
            appends: Vec::new(),
            floor: 0,
            closed: false,
            explicit: false,
            written: now,
            touched: now,
            due: None,
        });
        log.queue();
        (log, fresh)
    }

    /// What an operation does beside its own: the channel is forgotten if all of it has aged out, and nobody has
    /// touched it for a minute.
    pub(super) fn step(&mut self, waited_on: bool, now: u64) {
        let Some(log) = self.log.as_mut().filter(|log| log.due.is_some_and(|due| due <= now)) else { return };
        if waited_on {
            log.touched = now;
        }
        log.due = None;
        log.queue();
        if !log.explicit && log.forgotten_at() <= now {
            self.delete();
        }
    }

    pub(super) fn expire(&mut self, now: u64) {
        let Some(log) = &mut self.log else { return };
        while log.appends.get(log.floor).is_some_and(|oldest| oldest.at + age() < now) {
            log.floor += 1;
        }
    }

    pub(super) fn publish(&mut self, texts: Vec<String>, bytes: usize, now: u64) {
        let retention = self.retention.clone();
        self.expire(now);
        let (log, _) = self.make(now);
        log.appends.push(Append { texts, bytes, at: now });
        log.written = now;
        let newest = log.appends.len() - 1;
        while log.floor < newest {
            let kept = &log.appends[log.floor..];
            if kept.len() <= retention.appends
                && kept.iter().map(|append| append.bytes).sum::<usize>() <= retention.bytes
            {
                break;
            }
            log.floor += 1;
        }
    }

    pub(super) fn close(&mut self, now: u64) {
        let (log, _) = self.make(now);
        log.closed = true;
        log.written = now;
    }

    pub(super) fn delete(&mut self) -> bool {
        let Some(log) = self.log.take() else { return false };
        self.forgotten += usize::from(!log.appends.is_empty() || log.closed);
        true
    }

    /// A reader comes by.
    pub(super) fn touch(&mut self, now: u64) {
        self.expire(now);
        if let Some(log) = &mut self.log {
            log.touched = now;
        }
    }

    pub(super) fn read(&self, place: Place, limit: usize) -> Result<Found, Reason> {
        let Some(log) = &self.log else {
            return match place {
                Place::Origin(forgotten) if forgotten == self.forgotten => {
                    Ok(Found { texts: Vec::new(), next: place, closed: false, up_to_date: true })
                }
                _ => Err(Reason::Unknown),
            };
        };
        let first = match place {
            Place::After { log: number, appends } if number == log.number => appends,
            Place::Origin(origin) if origin == log.origin => 0,
            _ => return Err(Reason::OtherLog),
        };
        if first < log.floor { Err(Reason::Trimmed) } else { Ok(log.after(first, limit)) }
    }

    /// What a wait that began at a place comes to now.
    pub(super) fn wait(&self, place: Place, over: bool) -> Awaited {
        let found = match (&self.log, place) {
            (None, Place::After { .. }) => return Awaited::Deleted,
            (Some(log), Place::After { log: number, .. }) if number != log.number => return Awaited::Deleted,
            (_, place) => self.read(place, usize::MAX),
        };
        match found {
            Err(reason) => Awaited::Gone(reason),
            Ok(found) if !found.texts.is_empty() || found.closed => Awaited::Read(found),
            Ok(found) if over => Awaited::TimedOut(found.next),
            Ok(_) => Awaited::Pending,
        }
    }
}

impl Log {
    fn place(&self, appends: usize) -> Place {
        Place::After { log: self.number, appends }
    }

    fn after(&self, first: usize, limit: usize) -> Found {
        let (mut last, mut bytes) = (first, 0);
        while let Some(append) = self.appends.get(last) {
            bytes += append.bytes;
            if last > first && bytes > limit {
                break;
            }
            last += 1;
        }
        let up_to_date = last == self.appends.len();
        Found {
            texts: self.appends[first..last].iter().flat_map(|append| append.texts.clone()).collect(),
            next: self.place(last),
            closed: up_to_date && self.closed,
            up_to_date,
        }
    }

    fn queue(&mut self) {
        self.due = self.due.or(Some(self.forgotten_at()));
    }

    fn forgotten_at(&self) -> u64 {
        (self.written + age() + 1).max(self.touched + 60_000)
    }
}

fn age() -> u64 {
    AGE.as_millis() as u64
}
