//! What the scripts are given, and what they answer.

use bytes::Bytes;
use redis::{FromRedisValue, Script, ScriptInvocation, Value};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::Redis;
use crate::{
    Error, Gone, Offset,
    engine::{Append, Appended, Batch, Created, Creation, Lifetime, Page, PageEntry, Place, Reason, Start, Touch},
};

/// Beyond it, a publication carries no data, and whoever hears of it reads the log.
const INLINE: usize = 8 * 1024;

/// How long a channel that nobody created is remembered after its history and its last reader.
const LINGER: Duration = Duration::from_secs(60);

pub(super) struct Scripts {
    append: Script,
    read: Script,
    create: Script,
    delete: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        let script = |code| Script::new(&[include_str!("common.lua"), code].concat());
        Self {
            append: script(include_str!("append.lua")),
            read: script(include_str!("read.lua")),
            create: script(include_str!("create.lua")),
            delete: script(include_str!("delete.lua")),
        }
    }
}

impl Redis {
    pub(super) async fn ask_to_append(&self, name: &str, append: &Append<'_>) -> Result<Appended, Error> {
        let mut script = self.script(&self.scripts.append, name);
        script.arg(self.keys.topic(name));
        script.arg(append.create.map_or("", |create| &**create)).arg(append.content_type.unwrap_or_default());
        content(&mut script, append.batch);
        script.arg(u8::from(append.close)).arg(append.seq.unwrap_or_default());
        match append.stamp {
            Some(stamp) => script.arg(&*stamp.id).arg(stamp.epoch).arg(stamp.seq),
            None => script.arg("").arg(0).arg(0),
        };
        fingerprint(&mut script);
        self.retention(&mut script);
        script.arg(self.kept.producers).arg(INLINE);
        let mut said = Said::new(self.link.write(&script).await?)?;
        Err(match &*said.text()? {
            "done" => {
                let tail = said.offset()?;
                let (closed, duplicate) = (said.flag()?, said.flag()?);
                let accepted = said.maybe_number()?.zip(said.maybe_number()?);
                return Ok(Appended { tail, closed, accepted, duplicate });
            }
            "unknown" => Error::Unknown,
            "closed" => Error::Closed,
            "type" => Error::ContentType { holds: said.text()? },
            "fenced" => Error::Fenced { epoch: said.number()? },
            "gap" => Error::Gap { expected: said.number()?, received: said.number()? },
            "epoch" => Error::Epoch,
            "sequence" => Error::Sequence,
            _ => return Err(strange()),
        })
    }

    pub(super) async fn ask_to_create(&self, name: &str, creation: &Creation) -> Result<Created, Error> {
        let content_type = creation.content_type.as_ref().ok_or(Error::MediaType)?;
        let batch = Batch::initial(creation.content.clone(), content_type)?;
        let mut script = self.script(&self.scripts.create, name);
        script.arg(self.keys.topic(name)).arg(&**content_type);
        match creation.lifetime.unwrap_or_default() {
            Lifetime::Unbounded => script.arg("").arg(""),
            Lifetime::Idle(window) => script.arg(millis(window)).arg(""),
            Lifetime::Until(end) => script.arg("").arg(millis(end.duration_since(UNIX_EPOCH).unwrap_or_default())),
        };
        script.arg(u8::from(creation.closed));
        content(&mut script, batch.as_ref());
        fingerprint(&mut script);
        self.retention(&mut script);
        script.arg(INLINE);
        let mut said = Said::new(self.link.write(&script).await?)?;
        match &*said.text()? {
            "created" => Ok(Created {
                tail: said.offset()?,
                closed: said.flag()?,
                content_type: said.text()?.into(),
                fresh: said.flag()?,
            }),
            "conflict" => Err(Error::Conflict),
            _ => Err(strange()),
        }
    }

    pub(super) async fn ask_to_delete(&self, name: &str) -> Result<Offset, Error> {
        let mut script = self.script(&self.scripts.delete, name);
        script.arg(self.keys.topic(name));
        let mut said = Said::new(self.link.write(&script).await?)?;
        match &*said.text()? {
            "deleted" => said.offset(),
            _ => Err(Error::Unknown),
        }
    }

    pub(super) async fn ask_to_read(
        &self,
        name: &str,
        from: Place,
        limit: usize,
        touch: Touch,
    ) -> Result<Option<Page>, Error> {
        let mut script = self.script(&self.scripts.read, name);
        match from {
            Place::Window => script.arg("window").arg(0).arg(0),
            Place::From(Start::Earliest) => script.arg("earliest").arg(0).arg(0),
            Place::From(Start::Tail) => script.arg("tail").arg(0).arg(0),
            Place::From(Start::Origin) => script.arg("origin").arg(0).arg(0),
            Place::From(Start::After(offset)) => script.arg("after").arg(offset.position()).arg(offset.fingerprint()),
        };
        script.arg(limit).arg(u8::from(touch == Touch::Yes));
        self.retention(&mut script);
        let mut said = Said::new(self.link.read(&script).await?)?;
        if said.text()? == "unknown" {
            return Ok(None);
        }
        let reason = said.text()?;
        let content_type: Arc<str> = said.text()?.into();
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
            (None, Some(end)) => Lifetime::Until(SystemTime::UNIX_EPOCH + Duration::from_millis(end)),
            (None, None) => Lifetime::Unbounded,
        };
        let left = said.maybe_number()?.map(Duration::from_millis);
        let kept = usize::try_from(said.number()?).unwrap_or(usize::MAX);
        let after = said.offset()?;
        let entries = said.list()?.into_iter().map(entry).collect::<Result<_, _>>()?;
        Ok(Some(Page { content_type, log, closed, tail, kept, lifetime, left, after, entries }))
    }

    pub(super) async fn ask_for_names(&self) -> Result<Vec<String>, Error> {
        let (pattern, end) = self.keys.all();
        let begin = self.keys.prefix.len() + 2;
        let (mut names, mut cursor) = (Vec::new(), 0u64);
        loop {
            let mut command = redis::cmd("SCAN");
            command.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1_000);
            let mut said = Said::new(self.link.ask(&command).await?)?;
            cursor = said.number()?;
            for key in said.list()? {
                let key = String::from_redis_value(key).map_err(|_| strange())?;
                if let Some(name) = key.get(begin..).and_then(|rest| rest.strip_suffix(end)) {
                    names.push(name.to_owned());
                }
            }
            if cursor == 0 {
                // A scan may meet a key more than once.
                names.sort_unstable();
                names.dedup();
                return Ok(names);
            }
        }
    }

    fn script<'a>(&self, script: &'a Script, name: &str) -> ScriptInvocation<'a> {
        let mut script = script.prepare_invoke();
        for key in self.keys.channel(name) {
            script.key(key);
        }
        script
    }

    /// Appends, bytes and milliseconds that are kept, 0 for all, and how long an empty channel is remembered.
    fn retention(&self, script: &mut ScriptInvocation<'_>) {
        let bounded = |most: usize| if most == usize::MAX { 0 } else { most };
        let retention = &self.kept.retention;
        let age = retention.age.map_or(0, millis);
        script.arg(bounded(retention.appends)).arg(bounded(retention.bytes)).arg(age).arg(millis(LINGER));
    }
}

fn content(script: &mut ScriptInvocation<'_>, batch: Option<&Batch>) {
    match batch {
        Some(batch) => script.arg(if batch.json { "j" } else { "b" }).arg(batch.messages).arg(&batch.data[..]),
        None => script.arg("").arg(0).arg(""),
    };
}

/// What tells a log from others, if one is made, and an append from others: 21 and 32 bits, so that Lua can add them.
fn fingerprint(script: &mut ScriptInvocation<'_>) {
    script.arg(fastrand::u32(1..1 << 21)).arg(fastrand::u32(..));
}

fn entry(value: Value) -> Result<PageEntry, Error> {
    let mut said = Said::new(value)?;
    Ok(PageEntry {
        fingerprint: said.number()?,
        messages: u32::try_from(said.number()?).map_err(|_| strange())?,
        data: said.bytes()?,
    })
}

/// A list that a script has answered, item by item.
struct Said(std::vec::IntoIter<Value>);

impl Said {
    fn new(value: Value) -> Result<Self, Error> {
        match value {
            Value::Array(items) => Ok(Self(items.into_iter())),
            _ => Err(strange()),
        }
    }

    fn next(&mut self) -> Result<Value, Error> {
        self.0.next().ok_or_else(strange)
    }

    fn bytes(&mut self) -> Result<Bytes, Error> {
        match self.next()? {
            Value::BulkString(bytes) => Ok(bytes.into()),
            _ => Err(strange()),
        }
    }

    fn text(&mut self) -> Result<String, Error> {
        String::from_redis_value(self.next()?).map_err(|_| strange())
    }

    fn number(&mut self) -> Result<u64, Error> {
        self.text()?.parse().map_err(|_| strange())
    }

    fn maybe_number(&mut self) -> Result<Option<u64>, Error> {
        let text = self.text()?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| strange()) }
    }

    fn flag(&mut self) -> Result<bool, Error> {
        Ok(self.text()? == "1")
    }

    fn offset(&mut self) -> Result<Offset, Error> {
        Ok(Offset::new(self.number()?, self.number()?))
    }

    fn list(&mut self) -> Result<Vec<Value>, Error> {
        match self.next()? {
            Value::Array(items) => Ok(items),
            _ => Err(strange()),
        }
    }
}

/// An answer that no script of ours gives: somebody else writes to these keys.
fn strange() -> Error {
    Error::Unreachable
}

fn millis(duration: Duration) -> u64 {
    // Lua counts up to 2^53.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(1 << 52)
}
