//! The index of the names of channels: hashes in Redis, from each name to when it was registered.
//!
//! Without it, only a walk over the whole keyspace, which other programs may share, finds all channels. A script that creates a channel
//! cannot write to the index: in a cluster, a script may touch the keys of one slot only, and those of a channel have a slot of their
//! own. Therefore a node registers a name *before* it creates the channel. Names without a channel are removed later.
//!
//! A channel whose name is not in the index misses broadcasts. These rules prevent it:
//!
//! 1. A script creates a channel only within [`REGISTERED`] of the registration of its name, by the clock of the server.
//! 2. A name is removed only if its registration is older than [`STALE`], *then* its channel does not exist, and it has not been
//!    registered again since. By rule 1, no channel can be created between the second and the third without a new registration.
//! 3. A shard of the index that has all names has a mark with a random id. If the mark is missing or changes during a walk (the first
//!    walk on this prefix, channels of a version without an index, an eviction, a `DEL`), the walk goes on over the keyspace, and
//!    registers all channels anew.

use futures_util::future::{join_all, try_join_all};
use redis::{FromRedisValue, Value};
use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    Connection, Keys,
    connection::Kind,
    errors::shared,
    reply::{Reply, strange},
    script_call::ScriptCall,
    scripts::{IndexScripts, millis},
};
use crate::{
    Error,
    engine::{Listed, Names, RemoteFuture},
    sync::Mutex,
};

/// How long after the registration of its name a channel may be created: longer than a command takes until it times out.
pub(super) const REGISTERED: Duration = Duration::from_secs(10);

/// How old a registration must be so that a name without a channel may be removed. In a cluster, the clocks of two servers may differ
/// by as much as this is longer than [`REGISTERED`].
const STALE: Duration = Duration::from_secs(70);

/// The number of hashes. Each is a page at a time, so a walk over up to [`PAGE`] names in each takes one round trip.
const SHARDS: usize = 16;

/// About how many names of a shard a page has.
const PAGE: usize = 1_024;

/// How many keys a step of a walk over the keyspace examines.
const SCANNED: usize = 1_000;

/// After how many registrations a node examines how many registered names. With four times as many, the names without a channel
/// become no more than a third of the others.
const REGISTRATIONS: usize = 32;
const EXAMINED: usize = 128;

/// Names have no control characters, so none is equal to this field. `list.lua` and `complete.lua` have the fields' names too.
const BUILDING: &str = "\0building";

pub(super) struct Index {
    connection: Arc<Connection>,
    scripts: IndexScripts,
    keys: Arc<Keys>,
    /// Registrations since this node examined registered names for the last time.
    registrations: AtomicUsize,
    /// Where the next examination begins: the shard and the cursor. `None` while one is under way.
    next: Mutex<Option<(usize, u64)>>,
}

impl Index {
    pub(super) fn new(connection: Arc<Connection>, scripts: IndexScripts, keys: Arc<Keys>) -> Self {
        // Nodes begin in different shards.
        let next = Mutex::new(Some((fastrand::usize(..SHARDS), 0)));
        Self { connection, scripts, keys, registrations: AtomicUsize::new(0), next }
    }

    /// Registers a name. Returns when, in milliseconds by the clock of the server.
    ///
    /// After an error the name may be registered, which is harmless.
    pub(super) async fn register_one(self: &Arc<Self>, name: &str) -> Result<u64, Error> {
        self.register(&[name]).await.pop().unwrap_or(Err(Error::Unreachable))
    }

    /// Registers names. Returns for each when.
    pub(super) async fn register(self: &Arc<Self>, names: &[&str]) -> Vec<Result<u64, Error>> {
        let registered = self.write(names).await;
        if self.registrations.fetch_add(names.len(), Relaxed) + names.len() >= REGISTRATIONS {
            self.examine_some();
        }
        registered
    }

    async fn write(&self, names: &[&str]) -> Vec<Result<u64, Error>> {
        let mut shards = BTreeMap::<usize, Vec<usize>>::new();
        for (nth, name) in names.iter().enumerate() {
            shards.entry(shard_of(name)).or_default().push(nth);
        }
        let written = join_all(shards.iter().map(|(shard, members)| async move {
            let key = self.keys.shard(*shard);
            let mut call = ScriptCall::new(&self.scripts.register, 1, [&key].into_iter());
            for nth in members {
                call.arg(names[*nth]);
            }
            // As a read: a registration whose outcome is unknown is harmless.
            u64::from_redis_value(self.connection.read(&call).await?).map_err(|_| strange(Kind::Read))
        }))
        .await;
        let mut registered: Vec<_> = names.iter().map(|_| Err(Error::Unreachable)).collect();
        for (members, time) in shards.values().zip(written) {
            for nth in members {
                registered[*nth] = time.as_ref().map(|time| *time).map_err(shared);
            }
        }
        registered
    }

    /// Examines some registered names in the background, and removes those without a channel.
    fn examine_some(self: &Arc<Self>) {
        let Some(next) = self.next.lock().take() else { return };
        self.registrations.store(0, Relaxed);
        let index = self.clone();
        self.connection.runtime().spawn(async move {
            let examining = Examining { index: &index, next };
            examining.run().await;
        });
    }

    /// Reads a page of a shard.
    async fn page(&self, shard: usize, cursor: u64, count: usize) -> Result<Page, Error> {
        let key = self.keys.shard(shard);
        let mut call = ScriptCall::new(&self.scripts.list, 1, [&key].into_iter());
        call.arg(cursor).arg(count);
        let mut said = Reply::new(self.connection.read(&call).await?, Kind::Read)?;
        let (now, id, cursor) = (said.number()?, said.text()?, said.number()?);
        let (mut listed, mut fields) = (Vec::new(), said.list()?.into_iter());
        while let (Some(name), Some(time)) = (fields.next(), fields.next()) {
            let (Ok(name), Ok(time)) = (String::from_redis_value(name), u64::from_redis_value(time)) else { continue };
            if !name.starts_with('\0') {
                listed.push(Listed { name, stale: (now.saturating_sub(time) > millis(STALE)).then_some(time) });
            }
        }
        Ok(Page { id, cursor, listed })
    }

    /// Removes names without a channel.
    pub(super) async fn prune(&self, names: &[Listed]) -> Result<(), Error> {
        let mut shards = BTreeMap::<usize, Vec<(&str, u64)>>::new();
        for Listed { name, stale } in names {
            let Some(time) = stale else { continue };
            shards.entry(shard_of(name)).or_default().push((name, *time));
        }
        let pruned = shards.into_iter().map(|(shard, names)| async move {
            let key = self.keys.shard(shard);
            let mut call = ScriptCall::new(&self.scripts.prune, 1, [&key].into_iter());
            for (name, time) in names {
                call.arg(name).arg(time);
            }
            self.connection.read(&call).await
        });
        try_join_all(pruned).await.map(drop)
    }

    /// Walks over all names.
    pub(super) fn walk(self: &Arc<Self>) -> Walk {
        Walk { index: self.clone(), at: At::Shards((0..SHARDS).map(|shard| (shard, 0, None)).collect()) }
    }
}

/// A part of a shard.
struct Page {
    /// Empty if the shard may lack names.
    id: String,
    /// 0 if this is the last page.
    cursor: u64,
    listed: Vec<Listed>,
}

/// An examination of registered names. When it is dropped, the next one may begin.
struct Examining<'a> {
    index: &'a Index,
    next: (usize, u64),
}

impl Examining<'_> {
    async fn run(mut self) {
        let (shard, cursor) = self.next;
        let Ok(mut page) = self.index.page(shard, cursor, EXAMINED).await else { return };
        self.next = if page.cursor == 0 { ((shard + 1) % SHARDS, 0) } else { (shard, page.cursor) };
        // Rule 2: the age of a registration is checked before the existence of its channel.
        page.listed.retain(|listed| listed.stale.is_some());
        // A page is larger than was asked for if the hash is small or many names have one bucket.
        for listed in page.listed.chunks(EXAMINED) {
            if self.examine(listed).await.is_err() {
                return;
            }
        }
    }

    async fn examine(&self, listed: &[Listed]) -> Result<(), Error> {
        let Index { connection, scripts, keys, .. } = self.index;
        let channels: Vec<String> =
            listed.iter().map(|listed| keys.channel(&listed.name)).map(|[key, _]| key).collect();
        let call = ScriptCall::new(&scripts.present, channels.len(), channels.iter());
        let said = Reply::new(connection.read(&call).await?, Kind::Read)?;
        let absent = listed.iter().zip(said.items()).filter(|(_, present)| *present == Value::Int(0));
        let absent: Vec<Listed> = absent.map(|(listed, _)| listed.clone()).collect();
        if absent.is_empty() { Ok(()) } else { self.index.prune(&absent).await }
    }
}

impl Drop for Examining<'_> {
    fn drop(&mut self) {
        *self.index.next.lock() = Some(self.next);
    }
}

/// A walk over the names of all channels.
pub(super) struct Walk {
    index: Arc<Index>,
    at: At,
}

enum At {
    /// In these shards of the index: the shard, its cursor, and its id once it is known.
    Shards(Vec<(usize, u64, Option<String>)>),
    /// In the keyspace: the cursor, and the id with which the shards will be complete, unless a name could not be registered.
    Keyspace(u64, Option<String>),
    End,
}

impl Names for Walk {
    fn next(&mut self) -> RemoteFuture<'_, Option<Vec<Listed>>> {
        let connection = self.index.connection.clone();
        connection.within(async move {
            loop {
                let page = match mem::replace(&mut self.at, At::End) {
                    At::Shards(shards) if shards.is_empty() => return Ok(None),
                    At::Shards(shards) => self.read_shards(shards).await?,
                    At::Keyspace(cursor, id) => self.scan(cursor, id).await?,
                    At::End => return Ok(None),
                };
                if !page.is_empty() {
                    return Ok(Some(page));
                }
            }
        })
    }
}

impl Walk {
    /// Reads a page of each shard, all in one round trip.
    async fn read_shards(&mut self, shards: Vec<(usize, u64, Option<String>)>) -> Result<Vec<Listed>, Error> {
        let index = &self.index;
        let pages = try_join_all(shards.iter().map(|(shard, cursor, _)| index.page(*shard, *cursor, PAGE))).await?;
        let (mut left, mut listed) = (Vec::new(), Vec::new());
        for ((shard, _, known), page) in shards.into_iter().zip(pages) {
            if page.id.is_empty() || known.is_some_and(|known| known != page.id) {
                self.at = self.begin_scan().await?;
                return Ok(Vec::new());
            }
            if page.cursor != 0 {
                left.push((shard, page.cursor, Some(page.id)));
            }
            listed.extend(page.listed);
        }
        self.at = At::Shards(left);
        Ok(listed)
    }

    async fn begin_scan(&self) -> Result<At, Error> {
        let (id, index) = (format!("{:016x}", fastrand::u64(..)), &self.index);
        let marked = try_join_all((0..SHARDS).map(|shard| {
            let mut command = redis::cmd("HSET");
            command.arg(index.keys.shard(shard)).arg(BUILDING).arg(&id);
            async move { index.connection.ask(&command).await }
        }));
        match marked.await {
            Ok(_) => Ok(At::Keyspace(0, Some(id))),
            Err(Error::Unreachable) => Err(Error::Unreachable),
            // For example, Redis is out of memory. The names are listed nevertheless.
            Err(_) => Ok(At::Keyspace(0, None)),
        }
    }

    /// Reads a page of the keyspace, and registers its channels. After the last, the shards have all names: those of channels that
    /// existed when the walk over the keyspace began, and those that were registered since.
    async fn scan(&mut self, cursor: u64, mut id: Option<String>) -> Result<Vec<Listed>, Error> {
        let index = &self.index;
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(index.keys.all()).arg("COUNT").arg(SCANNED);
        let mut said = Reply::new(index.connection.ask(&command).await?, Kind::Read)?;
        let (cursor, keys) = (said.number()?, said.list()?);
        let keys = keys.into_iter().filter_map(|key| String::from_redis_value(key).ok());
        let names: Vec<String> = keys.filter_map(|key| index.keys.name_of(&key).map(ToOwned::to_owned)).collect();
        if id.is_some() {
            let registered = index.write(&names.iter().map(|name| &**name).collect::<Vec<_>>()).await;
            match registered.into_iter().find_map(Result::err) {
                None => {}
                Some(Error::Unreachable) => return Err(Error::Unreachable),
                Some(_) => id = None,
            }
        }
        if cursor != 0 {
            self.at = At::Keyspace(cursor, id);
        } else if let Some(id) = id {
            let completed = try_join_all((0..SHARDS).map(|shard| {
                let id = &id;
                async move {
                    let key = index.keys.shard(shard);
                    let mut call = ScriptCall::new(&index.scripts.complete, 1, [&key].into_iter());
                    call.arg(id);
                    index.connection.read(&call).await
                }
            }));
            // If this fails, the next walk registers all channels again.
            drop(completed.await);
        }
        Ok(names.into_iter().map(|name| Listed { name, stale: None }).collect())
    }
}

/// The shard of a name, by FNV-1a, the same in every version.
fn shard_of(name: &str) -> usize {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash % SHARDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shard_of_a_name_does_not_change() {
        // Nodes of different versions share the index.
        for (name, shard) in [("", 5), ("a", 12), ("/rooms/42", 1), ("/rooms/ä", 8)] {
            assert_eq!(shard_of(name), shard, "{name}");
        }
    }

    #[test]
    fn a_name_is_removed_only_when_its_channel_cannot_be_created_any_more() {
        assert!(STALE > REGISTERED + Duration::from_secs(30), "and the clocks of two servers may differ");
    }
}
