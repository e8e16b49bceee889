//! Forks, which the node makes in slices. Each step touches the keys of one channel only, and can be repeated:
//!
//! 1. *Find* the target. If it is a fork that was created by an equal request, return it.
//! 2. *Pin* the source for [`PIN`], unless the fork must be refused. If a pinned source is deleted, it becomes a tombstone.
//! 3. *Slice*: read some appends of the source, which renews the pin, and add them to an invisible stream, which expires.
//! 4. *Commit*: the pin becomes a member, unless the source was deleted.
//! 5. *Reveal*: the stream becomes the log of the target, unless the target exists. At most a quarter of [`PIN`] after the commit.
//! 6. *Confirm* at the source that the fork exists. Otherwise, *release* it.
//!
//! The member is committed before the fork is visible, so a source that has a fork is never removed. A node
//! [releases](super::settle) a member whose fork does not exist, once the fork can no longer become visible. What the first three steps
//! write expires. A note of the fork exists from before the commit until after the last step: if this node stops, another one completes or
//! releases the fork.

use futures_util::future::{Either, select};
use redis::Value;
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, oneshot},
    time::sleep,
};

use super::{
    Keys,
    commands::{create_call, created},
    connection::{Connection, Kind},
    index::Index,
    reply::{Reply, entry, parse_id},
    script_call::{ScriptCall, fingerprint, pack_fork, place},
    scripts::{Scripts, millis},
};
use crate::{
    Error, Offset,
    engine::{Batch, Created, Creation, Fork, MediaType, PageEntry, ReadFrom, Start},
    fault_injection::Faults,
};

/// The lifetime of a pin and of an invisible stream. Each step renews it.
const PIN: Duration = Duration::from_secs(60);

/// The limits of a slice. Redis serves no other command while it reads or adds one.
const MOST: usize = 500;
const MOST_BYTES: usize = 256 * 1024;

/// How often a step is sent while its outcome is unknown, and the first pause, which triples each time.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(100);

/// How often a fork starts over because Redis has lost the copied appends.
const LOSSES: u32 = 3;

pub(super) struct Forks {
    pub(super) connection: Arc<Connection>,
    pub(super) scripts: Arc<Scripts>,
    index: Arc<Index>,
    pub(super) keys: Arc<Keys>,
    /// Copies one slice at a time, so that other commands run in between, however many forks this node makes.
    turns: Semaphore,
    faults: Faults,
    pub(super) pin: Duration,
}

impl Forks {
    pub(super) fn new(
        connection: Arc<Connection>,
        scripts: Arc<Scripts>,
        index: Arc<Index>,
        keys: Arc<Keys>,
        faults: Faults,
    ) -> Self {
        Self { connection, scripts, index, keys, turns: Semaphore::new(1), faults, pin: faults.pin().unwrap_or(PIN) }
    }

    /// Creates a channel as a fork, or returns the one that an equal request has created.
    ///
    /// # Cancel safety
    ///
    /// A task makes the fork. If this future is dropped before the commit, the task removes its copy. After the commit, the task completes
    /// the fork.
    pub(super) async fn create(self: &Arc<Self>, name: &str, creation: &Creation) -> Result<Created, Error> {
        let (forks, name, creation) = (self.clone(), name.to_owned(), creation.clone());
        let (_dropped, cancelled) = oneshot::channel::<()>();
        let made = self.connection.runtime().spawn(async move { forks.run(&name, &creation, cancelled).await });
        // No outcome: the runtime was shut down.
        made.await.unwrap_or(Err(Error::Uncertain))
    }

    async fn run(&self, name: &str, creation: &Creation, gone: oneshot::Receiver<()>) -> Result<Created, Error> {
        let Some(fork) = &creation.fork else { return Err(Error::Unknown) };
        // Compared before the source is looked up, which may not exist any more.
        if let Some(found) = self.find(name, creation, fork).await? {
            return Ok(found);
        }
        let mut attempt = Attempt::new(self, name, creation, fork);
        let prepared = match select(pin!(attempt.prepare()), gone).await {
            Either::Left((prepared, _)) => prepared,
            Either::Right(_) => Err(Error::Unreachable),
        };
        let made = match prepared {
            Ok(ready) => attempt.finish(&ready).await,
            Err(error) => Err(error),
        };
        attempt.leave(&made).await;
        made
    }

    async fn find(&self, name: &str, creation: &Creation, fork: &Fork) -> Result<Option<Created>, Error> {
        let mut settled = false;
        loop {
            let mut call = create_call(&self.scripts, &self.keys, name, creation, None, fingerprint(), None);
            call.arg(pack_fork(fork)).arg("");
            let mut said = Reply::new(self.connection.write(&call).await?, Kind::Write)?;
            match &*said.text()? {
                "unknown" => return Ok(None),
                "conflict" if said.flag()? && !settled && self.settle(name).await => settled = true,
                word => return created(word, &mut said).map(Some),
            }
        }
    }

    /// Runs a repeatable step until its outcome is known.
    pub(super) async fn repeat(&self, call: &ScriptCall<'_>) -> Result<Value, Error> {
        self.again(call, Kind::Read).await
    }

    async fn again(&self, call: &ScriptCall<'_>, kind: Kind) -> Result<Value, Error> {
        let (mut attempts, mut pause, mut uncertain) = (0, PAUSE, false);
        loop {
            let error = match self.connection.run(call, kind).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            attempts += 1;
            uncertain |= matches!(error, Error::Uncertain);
            let lost = matches!(error, Error::Uncertain | Error::Unreachable);
            if !lost || attempts == ATTEMPTS {
                return Err(if uncertain { Error::Uncertain } else { error });
            }
            sleep(pause).await;
            pause *= 3;
        }
    }

    /// A step at a source.
    pub(super) fn at_source(&self, keys: &[String; 4], step: &str) -> ScriptCall<'_> {
        let mut call = ScriptCall::new(&self.scripts.source, keys.len(), keys.iter());
        call.arg(step);
        call
    }
}

/// The source of a fork.
struct Source {
    content_type: MediaType,
    tag: String,
    /// Its idle lifetime, or its end, in milliseconds.
    idle: String,
    till: String,
    /// The end of what the fork inherits.
    at: Offset,
    floor: Floor,
    /// The append after the end, if the fork inherits a part of it.
    next: Option<PageEntry>,
}

/// Where the history of a source begins.
struct Floor {
    at: Offset,
    /// The bytes that were ever appended up to there, and when the first append after it was made.
    sum: u64,
    first: u64,
}

impl Floor {
    fn parse(said: &mut Reply) -> Result<Self, Error> {
        Ok(Self { at: said.offset()?, sum: said.number()?, first: said.number()? })
    }
}

/// What becomes visible as a fork.
struct Ready {
    source: Source,
    /// The beginning of the append that follows.
    part: Option<Batch>,
    content: Option<Batch>,
}

/// One attempt to create a fork.
struct Attempt<'a> {
    forks: &'a Forks,
    name: &'a str,
    creation: &'a Creation,
    fork: &'a Fork,
    source: [String; 4],
    /// The stream that is not visible yet.
    copy: String,
    /// Identifies the fork at its source. Unique to this attempt.
    member: String,
    fingerprint: (u32, u32),
    lifetime: u64,
    steps: u32,
    /// The tag of the source that is pinned.
    tag: Option<String>,
    copied: bool,
    /// The note of the fork, once it is written.
    note: Option<String>,
}

impl<'a> Attempt<'a> {
    fn new(forks: &'a Forks, name: &'a str, creation: &'a Creation, fork: &'a Fork) -> Self {
        let (tag, own) = fingerprint();
        let target = forks.keys.stem(name);
        Self {
            forks,
            name,
            creation,
            fork,
            source: Keys::of_stem(&forks.keys.stem(&fork.source)),
            copy: format!("{target}:fork:{:016x}", u64::from(tag) << 32 | u64::from(own)),
            member: format!("{target}:channel {tag}"),
            fingerprint: (tag, own),
            lifetime: millis(forks.pin),
            steps: 0,
            tag: None,
            copied: false,
            note: None,
        }
    }

    /// Runs the steps before the commit.
    async fn prepare(&mut self) -> Result<Ready, Error> {
        let mut source = self.pin().await?;
        let content_type = self.creation.content_type.as_ref().unwrap_or(&source.content_type);
        let content = Batch::initial(self.creation.content.clone(), content_type)?;
        let part = self.cut(&mut source)?;
        let at_tail = self.fork.at.is_none_or(|at| at == Start::Tail) && self.fork.part == 0;
        self.copy(&mut source, at_tail).await?;
        Ok(Ready { source, part, content })
    }

    async fn pin(&mut self) -> Result<Source, Error> {
        let mut settled = false;
        loop {
            self.step().await;
            let mut call = self.at_source("pin");
            place(&mut call, Some(ReadFrom::From(self.fork.at.unwrap_or(Start::Tail))));
            call.arg(self.creation.content_type.as_deref().unwrap_or_default()).arg(u8::from(self.fork.part > 0));
            let mut said = Reply::new(self.forks.repeat(&call).await?, Kind::Read)?;
            match &*said.text()? {
                "pinned" => {}
                "deleted" if !settled && self.forks.settle(&self.fork.source).await => {
                    settled = true;
                    continue;
                }
                word => return Err(refused(word, &mut said)),
            }
            let content_type = MediaType::stored(&said.text()?);
            let (tag, idle, till) = (said.text()?, said.text()?, said.text()?);
            self.tag = Some(tag.clone());
            let (at, floor) = (said.offset()?, Floor::parse(&mut said)?);
            let next = said.next()?;
            let next = if self.fork.part > 0 { Some(entry(next)?) } else { None };
            return Ok(Source { content_type, tag, idle, till, at, floor, next });
        }
    }

    /// Cuts the append of which the fork inherits a part.
    fn cut(&self, source: &mut Source) -> Result<Option<Batch>, Error> {
        let Some(next) = source.next.take() else { return Ok(None) };
        let json = crate::engine::is_json(&source.content_type);
        let whole = Batch { data: next.data, messages: next.messages, json };
        if self.fork.part == whole.parts() {
            source.at = Offset::new(source.at.position() + 1, next.fingerprint);
            return Ok(None);
        }
        whole.first(self.fork.part).map(Some).ok_or(Error::ForkOffset)
    }

    /// Copies all appends up to the end. If retention trims one that is still to be copied, this starts over at the source's
    /// floor. If it trims the end, that is an error, or, if the request named none, the fork begins at the floor.
    async fn copy(&mut self, source: &mut Source, at_tail: bool) -> Result<(), Error> {
        let (mut last, mut before, mut losses) = (source.floor.at, String::new(), 0);
        while last.position() < source.at.position() {
            let _turn = self.forks.turns.acquire().await;
            self.step().await;
            let mut call = self.at_source("slice");
            call.arg(&source.tag).arg(last.position()).arg(source.at.position()).arg(MOST).arg(MOST_BYTES);
            let mut said = Reply::new(self.forks.repeat(&call).await?, Kind::Read)?;
            let started_over = match &*said.text()? {
                "slice" => {
                    let slice = said.list()?;
                    let Some(Value::BulkString(id)) = slice.len().checked_sub(3).and_then(|at| slice.get(at)) else {
                        return Err(Error::Engine("appends are missing in the source's log".into()));
                    };
                    let after = parse_id(id).ok_or_else(|| said.strange())?;
                    let id = String::from_utf8_lossy(id).into_owned();
                    self.step().await;
                    let copied = self.add(&before, &slice).await?;
                    (last, before) = (after, id);
                    losses += u32::from(!copied);
                    !copied
                }
                "trimmed" => {
                    source.floor = Floor::parse(&mut said)?;
                    if source.floor.at.position() > source.at.position() {
                        if !at_tail {
                            return Err(Error::ForkOffset);
                        }
                        source.at = source.floor.at;
                    }
                    true
                }
                word => return Err(refused(word, &mut said)),
            };
            if started_over {
                if losses > LOSSES {
                    return Err(Error::Unreachable);
                }
                self.step().await;
                self.discard().await?;
                (last, before) = (source.floor.at, String::new());
            }
        }
        if last == source.at { Ok(()) } else { Err(Error::ForkOffset) }
    }

    /// Adds a slice to the copy. Returns whether it follows what was copied before.
    async fn add(&mut self, before: &str, slice: &[Value]) -> Result<bool, Error> {
        let mut call = ScriptCall::new(&self.forks.scripts.copy, 1, [&self.copy].into_iter());
        call.arg(self.lifetime).arg(before);
        for value in slice {
            if let Value::BulkString(bytes) = value {
                call.arg(bytes);
            }
        }
        self.copied = true;
        let mut said = Reply::new(self.forks.repeat(&call).await?, Kind::Read)?;
        match &*said.text()? {
            "copied" => Ok(true),
            "lost" => Ok(false),
            word => Err(said.failure(word)),
        }
    }

    /// Commits the fork, and makes it visible.
    async fn finish(&mut self, ready: &Ready) -> Result<Created, Error> {
        let Ready { source, part, content } = ready;
        let registered = self.forks.index.register_one(self.name).await?;
        self.step().await;
        let note = [&self.source[0], &*source.tag, &self.member].join("\n");
        self.forks.note(&note).await?;
        self.note = Some(note);
        self.step().await;
        let mut call = self.at_source("commit");
        call.arg(&source.tag);
        let mut said = Reply::new(self.forks.repeat(&call).await?, Kind::Read)?;
        let until = match &*said.text()? {
            "committed" => said.number()?,
            word => return Err(refused(word, &mut said)),
        };
        self.step().await;
        let Forks { scripts, keys, .. } = self.forks;
        let (creation, fifth) = (self.creation, Some(&self.copy));
        let mut call = create_call(scripts, keys, self.name, creation, content.as_ref(), self.fingerprint, fifth);
        call.arg(pack_fork(self.fork)).arg(format!("{} {}", self.source[0], source.tag));
        call.arg(&*source.content_type).arg(&source.idle).arg(&source.till).arg(until);
        for offset in [source.floor.at, source.at] {
            call.arg(offset.position()).arg(offset.fingerprint());
        }
        call.arg(source.floor.sum).arg(source.floor.first);
        match part {
            Some(part) => call.arg(part.messages).arg(&part.data[..]),
            None => call.arg("").arg(""),
        };
        call.arg(registered);
        let mut said = Reply::new(self.forks.again(&call, Kind::Write).await?, Kind::Write)?;
        match &*said.text()? {
            // It took too long, or Redis has lost the copy. The fork was not made.
            "late" | "lost" => Err(Error::Unreachable),
            word => created(word, &mut said),
        }
    }

    /// Confirms the fork at the source, or removes the copy and releases the member. What fails here expires, or another node does it.
    async fn leave(&mut self, made: &Result<Created, Error>) {
        self.step().await;
        // Without it, nothing was left at the source.
        let Some(tag) = self.tag.take() else { return };
        let told = match made {
            Ok(Created { fresh: true, .. }) => self.forks.confirm(&self.source, &tag, &self.member).await,
            // The fork may exist, or may still become visible.
            Err(Error::Uncertain) => return,
            _ => {
                if self.copied {
                    drop(self.discard().await);
                }
                self.forks.give_up(&self.source, &tag, &self.member).await
            }
        };
        self.step().await;
        if let (Ok(()), Some(note)) = (told, &self.note) {
            drop(self.forks.erase(note).await);
        }
    }

    async fn discard(&self) -> Result<(), Error> {
        let mut unlink = redis::cmd("UNLINK");
        unlink.arg(&self.copy);
        self.forks.connection.ask(&unlink).await.map(drop)
    }

    fn at_source(&self, step: &str) -> ScriptCall<'a> {
        let mut call = self.forks.at_source(&self.source, step);
        call.arg(&self.member).arg(self.lifetime);
        call
    }

    /// Tests kill a node before its step of this number.
    async fn step(&mut self) {
        self.steps += 1;
        if !self.forks.faults.allows(self.steps) {
            std::future::pending::<()>().await;
        }
    }
}

/// The error for an answer of a step at the source.
fn refused(word: &str, said: &mut Reply) -> Error {
    let refused = match word {
        "unknown" => Ok(Error::Unknown),
        "deleted" => Ok(Error::Conflict),
        "fork-offset" => Ok(Error::ForkOffset),
        "type" => said.text().map(|holds| Error::ContentType { holds }),
        word => Ok(said.failure(word)),
    };
    refused.unwrap_or_else(|strange| strange)
}
