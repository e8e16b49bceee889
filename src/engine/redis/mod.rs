//! Logs on Redis or Valkey.
//!
//! | file | |
//! | --- | --- |
//! | `*.lua` | what is done to a channel, in one step each |
//! | `commands` | what is asked of Redis: one script each |
//! | `scripts`, `script_call`, `reply` | the scripts, one call of a script, what it answers |
//! | `queue`, `batching` | appends that are under way at the same time: which of them a call carries, and sending it |
//! | `fork`, `settle` | how a fork is made in steps; what becomes of a deleted channel that has forks |
//! | `connection` | the connection for commands |
//! | `errors`, `diagnose` | what errors of Redis and of its client mean |
//! | `index` | the names of all channels |
//! | `feed` | the connection that hears what is published |

mod batching;
mod commands;
mod connection;
mod diagnose;
mod errors;
mod feed;
mod fork;
mod index;
mod queue;
mod reply;
mod script_call;
mod scripts;
mod settle;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    Announcement, Append, AppendFate, Appended, CachedTail, Comparison, Created, Creation, Feed, Listed, Names, Offset,
    ReadFrom, Remote, RemoteFuture, RemoteRead, Retention, Touch,
};
use crate::{Error, fault_injection::Faults};
use batching::AppendBatcher;
use connection::Connection;
pub(crate) use connection::Credentials;
pub use errors::RedisError;
use fork::Forks;
use index::Index;
use script_call::ScriptCall;
use scripts::Scripts;

/// What is asked of Redis.
pub(crate) struct Redis {
    connection: Arc<Connection>,
    scripts: Arc<Scripts>,
    batcher: Arc<AppendBatcher>,
    index: Arc<Index>,
    forks: Arc<Forks>,
    keys: Arc<Keys>,
    faults: Faults,
}

/// What of a channel is kept, and how long.
pub(super) struct LogLimits {
    pub(super) retention: Retention,
    pub(super) producers: usize,
}

/// The names of the channels' keys and topics in Redis.
pub(super) struct Keys {
    prefix: String,
    /// What all topics begin with: the prefix, and the number of the database, because all databases of a server share their topics.
    topics: String,
    /// What this process publishes to itself.
    own: String,
    /// The topic to which all processes publish their broadcasts. Like the one above, it is no channel's topic, because
    /// names have no control characters.
    broadcasts: String,
    /// Identifies this process.
    node: u64,
}

impl Keys {
    /// What a channel is, and its log. The braces keep both on one node of a cluster.
    fn channel(&self, name: &str) -> [String; 2] {
        let stem = self.stem(name);
        [format!("{stem}:channel"), format!("{stem}:log")]
    }

    /// The forks that are about to become visible.
    fn forking(&self) -> String {
        format!("{}:forking", self.prefix)
    }

    /// What all keys of a channel begin with.
    fn stem(&self, name: &str) -> String {
        format!("{}:{{{name}}}", self.prefix)
    }

    /// All keys of a channel.
    fn of_stem(stem: &str) -> [String; 4] {
        ["channel", "log", "forks", "was"].map(|which| format!("{stem}:{which}"))
    }

    /// The topic to which the scripts publish what happens to a channel.
    fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.topics)
    }

    /// A shard of the index of names.
    fn shard(&self, number: usize) -> String {
        format!("{}:names:{number}", self.prefix)
    }

    /// The name of the channel with this first key.
    fn name_of<'a>(&self, channel: &'a str) -> Option<&'a str> {
        channel.strip_prefix(&*self.prefix)?.strip_prefix(":{")?.strip_suffix("}:channel")
    }

    /// The pattern of the first keys of all channels, for `SCAN`.
    fn all(&self) -> String {
        let escaped: String = self.prefix.chars().flat_map(|c| ['\\', c]).collect();
        format!("{escaped}:{{*}}:channel")
    }
}

impl Redis {
    /// Nothing is connected yet. Needs a tokio runtime, which it goes on using.
    pub(crate) fn new(
        url: &str,
        credentials: Option<Credentials>,
        prefix: &str,
        retention: Retention,
        producers: usize,
        faults: Faults,
    ) -> Result<Self, RedisError> {
        let node = fastrand::u64(..);
        let connection = Arc::new(Connection::new(url, credentials)?);
        let topics = format!("{prefix}:{}:", connection.database());
        let (own, broadcasts) = (format!("{topics}\u{0}probe:{node:016x}"), format!("{topics}\u{0}broadcast"));
        let scripts = Arc::new(Scripts::new(&LogLimits { retention, producers }));
        let keys = Arc::new(Keys { prefix: prefix.to_owned(), topics, own, broadcasts, node });
        let index = Arc::new(Index::new(connection.clone(), scripts.index.clone(), keys.clone()));
        let batcher =
            Arc::new(AppendBatcher::new(connection.clone(), scripts.append.clone(), index.clone(), keys.clone()));
        let forks = Arc::new(Forks::new(connection.clone(), scripts.clone(), index.clone(), keys.clone(), faults));
        connection.runtime().spawn(Forks::recover(Arc::downgrade(&forks)));
        Ok(Self { connection, scripts, batcher, index, forks, keys, faults })
    }

    /// Connects once, and tries what channels need. Returns `false` if Redis cannot be reached, or refuses for a reason that may
    /// pass, and an error if it refuses for one that will not: the URL, the password, a permission.
    pub(crate) async fn try_out(&self) -> Result<bool, RedisError> {
        self.connection.try_out(&self.trial_call(), &self.keys.own).await
    }

    fn trial_call(&self) -> ScriptCall<'_> {
        let prefix = &self.keys.prefix;
        let keys = [format!("{prefix}:probe"), format!("{prefix}:probe:hash")];
        let mut call = ScriptCall::new(&self.scripts.trial, keys.len(), keys.iter());
        call.arg(&self.keys.own).arg(0);
        call
    }
}

impl Remote for Redis {
    fn connect(&self) -> RemoteFuture<'_, Box<dyn Feed>> {
        self.connection.within(async {
            self.connection.connect(&self.scripts.append).await?;
            self.trial().await?;
            self.connection.check_subscription(&self.keys.own).await?;
            let feed = feed::Subscriber::connect(&self.connection, &self.keys).await?;
            Ok(Box::new(feed) as Box<dyn Feed>)
        })
    }

    fn poll_lost(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.connection.poll_lost(cx)
    }

    fn append<'a>(&'a self, name: &'a str, append: &'a Append<'a>) -> RemoteFuture<'a, Appended> {
        self.connection.within(self.ask_to_append(name, append))
    }

    fn create<'a>(&'a self, name: &'a str, creation: &'a Creation) -> RemoteFuture<'a, Created> {
        self.connection.within(self.ask_to_create(name, creation))
    }

    fn delete<'a>(&'a self, name: &'a str) -> RemoteFuture<'a, Offset> {
        self.connection.within(self.ask_to_delete(name))
    }

    fn read<'a>(&'a self, name: &'a str, from: ReadFrom, limit: usize, touch: Touch) -> RemoteFuture<'a, RemoteRead> {
        self.connection.within(self.ask_to_read(name, from, limit, touch))
    }

    fn compare<'a>(&'a self, held: &'a [CachedTail<'a>]) -> RemoteFuture<'a, Vec<Comparison>> {
        self.connection.within(self.ask_to_compare(held))
    }

    fn verify<'a>(&'a self, appends: &'a [(Arc<str>, Offset)]) -> RemoteFuture<'a, Vec<AppendFate>> {
        self.connection.within(self.ask_to_verify(appends))
    }

    fn append_each<'a>(
        &'a self,
        names: &'a [String],
        append: &'a Append<'a>,
    ) -> RemoteFuture<'a, Vec<Result<Appended, Error>>> {
        self.connection.within(self.ask_to_append_each(names, append))
    }

    fn names(&self) -> Box<dyn Names + '_> {
        Box::new(self.index.walk())
    }

    fn forget<'a>(&'a self, names: &'a [Listed]) -> RemoteFuture<'a, ()> {
        self.connection.within(self.index.prune(names))
    }

    fn announce<'a>(&'a self, broadcast: &'a Announcement) -> RemoteFuture<'a, ()> {
        self.connection.within(async move {
            let mut command = redis::cmd("PUBLISH");
            command.arg(&self.keys.broadcasts).arg(feed::pack_broadcast(self.keys.node, broadcast));
            self.connection.tell(&command).await.map(drop)
        })
    }

    fn trial(&self) -> RemoteFuture<'_, ()> {
        self.connection.within(async move {
            match self.connection.attempt(&self.trial_call()).await {
                // Out of memory: channels can be read, and what is refused is reported as a limit.
                Ok(()) | Err(Error::Full(_)) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    fn probe(&self, number: u64) -> RemoteFuture<'_, ()> {
        self.connection.within(async move {
            let mut command = redis::cmd("PUBLISH");
            command.arg(&self.keys.own).arg(number);
            self.connection.ask(&command).await.map(drop)
        })
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("prefix", &self.keys.prefix).finish_non_exhaustive()
    }
}
