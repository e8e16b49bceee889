//! The operations on channels: the arguments of each script, and the meaning of its reply.

use bytes::Bytes;
use futures_util::stream::{FuturesOrdered, StreamExt};
use redis::{FromRedisValue, Value};
use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};
use tokio::task::yield_now;

use super::{
    Keys, Redis,
    connection::Kind,
    queue::{MOST, MOST_BYTES, QueuedAppend},
    reply::{Reply, entry, parse_id, strange},
    script_call::{ScriptCall, content, fingerprint, place, text},
    scripts::{Script, Scripts, millis},
};
use crate::{
    Error, Gone, Offset,
    engine::{
        Append, AppendFate, Appended, Batch, CachedTail, Comparison, Created, Creation, Lifetime, MediaType, Page,
        ReadFrom, Reason, RemoteFuture, RemoteRead, Start, Touch,
    },
    fault_injection::Invariant,
};

/// How many calls with appends of a broadcast are under way at a time, how many bytes they append, and how many of them one poll packs.
const PIPELINED: usize = 24;
const PIPELINED_BYTES: usize = 8 * 1024 * 1024;
const PACKED: usize = 4;

impl Redis {
    pub(super) fn wish(&self, name: &str, append: &Append<'_>) -> QueuedAppend {
        let batch = append.batch.as_ref();
        let (messages, data) = batch.map_or((0u32, Bytes::new()), |batch| (batch.messages, batch.data.clone()));
        let kind = batch.map_or("-", |batch| if batch.json { "j" } else { "b" });
        let plain = batch.is_some()
            && !append.close
            && append.seq.is_none()
            && append.stamp.is_none()
            && append.broadcast.is_none();
        let (create, seq) = (append.create.map_or("", |create| &**create), append.seq.unwrap_or_default());
        let (id, epoch, number) = append.stamp.map_or(("", 0, 0), |stamp| (&*stamp.id, stamp.epoch, stamp.seq));
        let (tag, own) = fingerprint();
        let mut terms = Vec::with_capacity(96);
        terms.extend_from_slice(if plain { kind } else { "-" }.as_bytes());
        terms.extend_from_slice(&messages.to_le_bytes());
        terms.extend_from_slice(&own.to_le_bytes());
        text(&mut terms, append.content_type.map_or("", |content_type| &**content_type));
        text(&mut terms, create);
        terms.extend_from_slice(kind.as_bytes());
        terms.push(append.close.into());
        text(&mut terms, seq);
        text(&mut terms, id);
        terms.extend_from_slice(&epoch.to_le_bytes());
        terms.extend_from_slice(&number.to_le_bytes());
        terms.extend_from_slice(&tag.to_le_bytes());
        let broadcast = append.broadcast.map(u64::to_le_bytes);
        let broadcast = broadcast.as_ref().map_or(&[][..], |id| &id[..]);
        terms.extend_from_slice(&u32::try_from(broadcast.len()).unwrap_or_default().to_le_bytes());
        terms.extend_from_slice(broadcast);
        QueuedAppend { keys: self.keys.channel(name), topic: self.keys.topic(name), data, terms }
    }

    /// Makes an append to each of many channels, in pipelined calls. The result of each append is independent of the others.
    pub(super) async fn ask_to_append_each(
        &self,
        names: &[String],
        append: &Append<'_>,
    ) -> Result<Vec<Result<Appended, Error>>, Error> {
        let size = append.batch.as_ref().map_or(0, Batch::size).max(1);
        let most = (MOST_BYTES / size).clamp(1, MOST);
        let at_a_time = (PIPELINED_BYTES / (most * size)).clamp(1, PIPELINED);
        let (mut calls, mut made) = (FuturesOrdered::<RemoteFuture<'_, _>>::new(), Vec::with_capacity(names.len()));
        let mut chunks = names.chunks(most);
        loop {
            while calls.len() < at_a_time {
                let Some(names) = chunks.next() else { break };
                // One poll must not pack all calls.
                let turns = calls.len() / PACKED;
                calls.push_back(Box::pin(self.append_some(names, append, turns)));
            }
            match calls.next().await {
                Some(some) => made.extend(some?),
                None => return Ok(made),
            }
        }
    }

    /// Yields `turns` times, and then makes an append to each of these channels with one call.
    async fn append_some(
        &self,
        names: &[String],
        append: &Append<'_>,
        turns: usize,
    ) -> Result<Vec<Result<Appended, Error>>, Error> {
        for _ in 0..turns {
            yield_now().await;
        }
        let wishes: Vec<_> = names.iter().map(|name| self.wish(name, append)).collect();
        Ok(self.batcher.make(&wishes).await)
    }

    pub(super) async fn ask_to_append(&self, name: &str, append: &Append<'_>) -> Result<Appended, Error> {
        let appended = self.batcher.append(self.wish(name, append)).await;
        if is_deleted(&appended) && self.forks.settle(name).await {
            return self.batcher.append(self.wish(name, append)).await;
        }
        appended
    }

    pub(super) async fn ask_to_create(&self, name: &str, creation: &Creation) -> Result<Created, Error> {
        if creation.fork.is_some() {
            return self.forks.create(name, creation).await;
        }
        let bytes = MediaType::stored("");
        let batch = Batch::initial(creation.content.clone(), creation.content_type.as_ref().unwrap_or(&bytes))?;
        let mut settled = false;
        loop {
            let fingerprint = fingerprint();
            let mut call = create_call(&self.scripts, &self.keys, name, creation, batch.as_ref(), fingerprint, None);
            call.arg("").arg(self.index.register_one(name).await?);
            let mut said = Reply::new(self.connection.write(&call).await?, Kind::Write)?;
            match &*said.text()? {
                "conflict" if said.flag()? && !settled && self.forks.settle(name).await => settled = true,
                word => return created(word, &mut said),
            }
        }
    }

    pub(super) async fn ask_to_delete(&self, name: &str) -> Result<Offset, Error> {
        let deleted = self.try_to_delete(name).await;
        if is_deleted(&deleted) && self.forks.settle(name).await {
            return self.try_to_delete(name).await;
        }
        deleted
    }

    async fn try_to_delete(&self, name: &str) -> Result<Offset, Error> {
        let mut script = self.script(&self.scripts.delete, name);
        script.arg(self.keys.topic(name));
        let mut said = Reply::new(self.connection.write(&script).await?, Kind::Write)?;
        match &*said.text()? {
            "done" => {
                let tail = said.offset()?;
                // If this fails, the next request for a tombstone does it.
                if said.flag()? {
                    self.forks.settle(name).await;
                } else {
                    drop(self.forks.cascade(&mut said).await);
                }
                Ok(tail)
            }
            "deleted" => Err(said.gone()?),
            "unknown" => Err(Error::Unknown),
            word => Err(said.failure(word)),
        }
    }

    pub(super) async fn ask_to_read(
        &self,
        name: &str,
        from: ReadFrom,
        limit: usize,
        touch: Touch,
    ) -> Result<RemoteRead, Error> {
        let found = self.try_to_read(name, from, limit, touch).await;
        if is_deleted(&found) && self.forks.settle(name).await {
            return self.try_to_read(name, from, limit, touch).await;
        }
        found
    }

    async fn try_to_read(&self, name: &str, from: ReadFrom, limit: usize, touch: Touch) -> Result<RemoteRead, Error> {
        let from =
            if self.faults.holds(Invariant::Fingerprint) { from } else { self.whatever_is_there(name, from).await };
        let mut script = self.script(&self.scripts.read, name);
        place(&mut script, Some(from));
        script.arg(limit).arg(u8::from(touch == Touch::Yes));
        let mut said = Reply::new(self.connection.read(&script).await?, Kind::Read)?;
        match &*said.text()? {
            "found" => {}
            "deleted" => return Err(said.gone()?),
            "unknown" => {
                let absent_tail = said.offset()?;
                return match said.flag()? {
                    true => Ok(RemoteRead::Nothing(absent_tail)),
                    false => Err(Error::Gone(Gone::new(Reason::Unknown, absent_tail, absent_tail))),
                };
            }
            word => return Err(said.failure(word)),
        }
        let reason = said.text()?;
        let content_type = MediaType::stored(&said.text()?);
        let log = said.number()? << 32;
        let closed = said.flag()?;
        let (tail, floor) = (said.offset()?, said.offset()?);
        let reason = match &*reason {
            "" => None,
            "trimmed" => Some(Reason::Trimmed),
            "ahead" => Some(Reason::Ahead),
            _ => Some(Reason::OtherLog),
        };
        if let Some(reason) = reason {
            return Err(Error::Gone(Gone::new(reason, tail, floor)));
        }
        let lifetime = match (said.maybe_number()?, said.maybe_number()?) {
            (Some(idle), _) => Lifetime::Idle(Duration::from_millis(idle)),
            // What no `SystemTime` of this platform can hold is never.
            (None, Some(end)) => {
                UNIX_EPOCH.checked_add(Duration::from_millis(end)).map_or(Lifetime::Unbounded, Lifetime::Until)
            }
            (None, None) => Lifetime::Unbounded,
        };
        let left = said.maybe_number()?.map(Duration::from_millis);
        let kept = usize::try_from(said.number()?).unwrap_or(usize::MAX);
        let absent_tail = Offset::new(0, said.number()?);
        let after = said.offset()?;
        let entries = said.list()?.into_iter().map(entry).collect::<Result<_, _>>()?;
        Ok(RemoteRead::Page(Page {
            content_type,
            log,
            closed,
            absent_tail,
            tail,
            kept,
            lifetime,
            left,
            after,
            entries,
        }))
    }

    pub(super) async fn ask_to_compare(&self, held: &[CachedTail<'_>]) -> Result<Vec<Comparison>, Error> {
        let keys: Vec<String> =
            held.iter().map(|held| self.keys.channel(held.name)).map(|[channel, _]| channel).collect();
        let mut packed = Vec::with_capacity(held.len() * 16);
        for CachedTail { tail, made, closed, touch, .. } in held {
            packed.extend_from_slice(&tail.position().to_le_bytes()[..6]);
            packed.extend_from_slice(&tail.fingerprint().to_le_bytes()[..7]);
            packed.extend_from_slice(&[*made, *closed, *touch == Touch::Yes].map(u8::from));
        }
        let mut call = ScriptCall::new(&self.scripts.compare, keys.len(), keys.iter());
        call.arg(&packed[..]);
        let seen = |value| match value {
            Value::Int(1) => Ok(Comparison::Same),
            Value::BulkString(id) => parse_id(&id).map(Comparison::At).ok_or_else(|| strange(Kind::Read)),
            _ => Ok(Comparison::Other),
        };
        let said = Reply::new(self.connection.read(&call).await?, Kind::Read)?;
        let seen: Vec<_> = said.items().map(seen).collect::<Result<_, _>>()?;
        if seen.len() == held.len() { Ok(seen) } else { Err(strange(Kind::Read)) }
    }

    pub(super) async fn ask_to_verify(&self, appends: &[(Arc<str>, Offset)]) -> Result<Vec<AppendFate>, Error> {
        let keys: Vec<String> = appends.iter().flat_map(|(name, _)| self.keys.channel(name)).collect();
        let mut call = ScriptCall::new(&self.scripts.verify, keys.len(), keys.iter());
        for (_, tail) in appends {
            call.arg(tail.position()).arg(tail.fingerprint());
        }
        let mut said = Reply::new(self.connection.read(&call).await?, Kind::Read)?;
        let fate = |_| {
            Ok(match &*said.text()? {
                "kept" => AppendFate::Kept,
                "ended" => AppendFate::Ended,
                "lost" => AppendFate::Lost,
                "missing" => AppendFate::Missing,
                _ => AppendFate::Unknown,
            })
        };
        appends.iter().map(fate).collect()
    }

    /// Without the rule of the fingerprint: takes whatever append has a place's number for the one that is meant.
    async fn whatever_is_there(&self, name: &str, from: ReadFrom) -> ReadFrom {
        let ReadFrom::From(Start::After(offset)) = from else { return from };
        let mut command = redis::cmd("XRANGE");
        command.arg(&self.keys.channel(name)[1]).arg(offset.position()).arg(offset.position());
        let found =
            self.connection.ask(&command).await.ok().and_then(|found| Vec::<Value>::from_redis_value(found).ok());
        let first = found.and_then(|found| Reply::new(found.into_iter().next()?, Kind::Read).ok()?.text().ok());
        let low = first.and_then(|id| id.split_once('-')?.1.parse().ok());
        low.map_or(ReadFrom::From(Start::Tail), |low| ReadFrom::From(Start::After(Offset::new(offset.position(), low))))
    }

    fn script<'a>(&self, script: &'a Script, name: &str) -> ScriptCall<'a> {
        let keys = Keys::of_stem(&self.keys.stem(name));
        ScriptCall::new(script, keys.len(), keys.iter())
    }
}

/// The call that creates a channel, without the arguments of a fork. `copy` is the stream that becomes its log.
pub(super) fn create_call<'a>(
    scripts: &'a Scripts,
    keys: &Keys,
    name: &str,
    creation: &Creation,
    batch: Option<&Batch>,
    (tag, own): (u32, u32),
    copy: Option<&String>,
) -> ScriptCall<'a> {
    let its_keys = Keys::of_stem(&keys.stem(name));
    let count = its_keys.len() + usize::from(copy.is_some());
    let mut script = ScriptCall::new(&scripts.create, count, its_keys.iter().chain(copy));
    script.arg(keys.topic(name)).arg(creation.content_type.as_deref().unwrap_or_default());
    match creation.lifetime.unwrap_or_default() {
        Lifetime::Unbounded => script.arg("").arg(""),
        // All digits: the script caps what Lua cannot count.
        Lifetime::Idle(window) => script.arg(u64::try_from(window.as_millis()).unwrap_or(u64::MAX)).arg(""),
        Lifetime::Until(end) => script.arg("").arg(millis(end.duration_since(UNIX_EPOCH).unwrap_or_default())),
    };
    script.arg(u8::from(creation.closed));
    content(&mut script, batch);
    script.arg(tag).arg(own);
    script
}

/// What the script has answered for a creation.
pub(super) fn created(word: &str, said: &mut Reply) -> Result<Created, Error> {
    match word {
        "created" => {
            let (tail, closed) = (said.offset()?, said.flag()?);
            Ok(Created { tail, closed, content_type: MediaType::stored(&said.text()?), fresh: said.flag()? })
        }
        "conflict" => Err(Error::Conflict),
        "unknown" => Err(Error::Unknown),
        // Although it was registered just now: the server had stopped meanwhile.
        "unindexed" => Err(Error::Unreachable),
        word => Err(said.failure(word)),
    }
}

fn is_deleted<T>(done: &Result<T, Error>) -> bool {
    matches!(done, Err(Error::Gone(gone)) if gone.reason() == Reason::Deleted)
}
