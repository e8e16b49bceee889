//! What the errors of Redis, of its client and of the network mean.

use redis::{ErrorKind, ServerErrorKind};
use std::{error::Error as StdError, fmt, io, sync::Arc};

use super::connection::Kind;
use crate::{Error, Limit};

/// The codes with which Redis refuses a command before it runs it.
const BEFORE: [&str; 7] = ["BUSY", "CROSSSLOT", "MISCONF", "MOVED", "NOPERM", "NOREPLICAS", "NOSCRIPT"];

/// The codes after which a new connection may lead to another server: a replica since a failover, or a server that loads.
const RECONNECT: [&str; 5] = ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH"];

/// The codes with which Redis refuses what it may accept later.
const PASSING: [&str; 8] = ["BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY"];

/// Redis cannot be used: see [`RedisBuilder::connect`](crate::RedisBuilder::connect).
pub struct RedisError(pub(super) redis::RedisError);

impl fmt::Display for RedisError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis cannot be used: {}", self.0)
    }
}

impl fmt::Debug for RedisError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisError").field(&self.0).finish()
    }
}

impl std::error::Error for RedisError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// Converts an error of a command. The result says that nothing was done only if that is certain. Returns also whether a new
/// connection is needed.
pub(super) fn convert(error: &redis::RedisError, kind: Kind) -> (Error, bool) {
    let (ErrorKind::Server(_) | ErrorKind::Extension) = error.kind() else {
        return (if kind == Kind::Write { Error::Uncertain } else { Error::Unreachable }, true);
    };
    let text = words(error);
    let has = |code: &&str| has_code(&text, code);
    if RECONNECT.iter().any(has) {
        return (Error::Unreachable, true);
    }
    // A script that has changed something is neither refused for lack of memory nor killed.
    let unchanged = has_code(&text, "OOM") || text.contains("Script killed by user");
    let before = BEFORE.iter().any(has) && !text.contains("user_script");
    (if kind == Kind::Read || unchanged || before { refused(&text) } else { Error::Uncertain }, false)
}

/// The error of a call for one more of the operations that went with it.
pub(super) fn shared(error: &Error) -> Error {
    match error {
        Error::Full(limit) => Error::Full(*limit),
        Error::Engine(source) => Error::Engine(source.to_string().into()),
        Error::Unreachable => Error::Unreachable,
        _ => Error::Uncertain,
    }
}

pub(super) fn is_unknown_script(error: &redis::RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// The error for an operation that Redis refused, in Redis's own words, before anything was changed.
pub(super) fn refused(text: &str) -> Error {
    if has_code(text, "OOM") { Error::Full(Limit::Memory) } else { Error::Engine(text.into()) }
}

/// Whether the text of an error has this code: at its beginning; after `ERR`, if a script has raised the error again; or further on and
/// with a dash, if a script has raised it before Redis 7.
pub(super) fn has_code(text: &str, code: &str) -> bool {
    let mut words = text.strip_prefix("ERR ").unwrap_or(text).split_ascii_whitespace();
    words.next() == Some(code) || text.contains(&format!("-{code} "))
}

/// Names the cause if an error of the trial comes from a Redis Cluster, whose nodes answer most commands.
pub(super) fn explained(error: redis::RedisError) -> redis::RedisError {
    let text = words(&error);
    if !["CROSSSLOT", "MOVED", "ASK", "CLUSTERDOWN"].iter().any(|code| has_code(&text, code)) {
        return error;
    }
    let what = "this is a node of a Redis Cluster, which is not supported";
    (ErrorKind::InvalidClientConfig, what, text).into()
}

/// The error of a connection that could not be made, with Redis's words or those of the network. None of them has the URL.
pub(super) fn cause(error: &redis::RedisError) -> Error {
    Error::Engine(words(error).into())
}

/// The words of Redis, if the error has any, or of the client.
fn words(error: &redis::RedisError) -> String {
    match error.code() {
        Some(code) => [Some(code), error.detail()].into_iter().flatten().collect::<Vec<_>>().join(" "),
        None => error.to_string(),
    }
}

/// Whether it was Redis that said no, or the URL cannot be right; and not that nobody was there, that there are too many, or what may
/// pass.
pub(super) fn is_refusal(error: &redis::RedisError) -> bool {
    let text = words(error);
    match error.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig | ErrorKind::Parse => true,
        // A certificate that is not trusted.
        ErrorKind::Io if is_nonsense(error) => true,
        // Before Redis 7, the code of an error in a script is `ERR`, and its own code comes later.
        _ if text.contains("max number of clients") || PASSING.iter().any(|code| has_code(&text, code)) => false,
        _ => matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" | "ERR")),
    }
}

/// Whether somebody was there, and could not be understood or believed.
fn is_nonsense(error: &redis::RedisError) -> bool {
    // The client shares its sources.
    let source = error.source().and_then(|source| source.downcast_ref::<Arc<dyn StdError + Send + Sync>>());
    source.and_then(|source| source.downcast_ref::<io::Error>()).is_some_and(|e| e.kind() == io::ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_reported_as_not_done_only_if_redis_has_not_begun_it() {
        use ServerErrorKind::{BusyLoading, NoPerm, ReadOnly, ResponseError};
        let converted = |kind, text: &str, write| {
            let (error, lost) = convert(&(ErrorKind::Server(kind), "", text.to_owned()).into(), write);
            let word = match error {
                Error::Engine(_) => "engine",
                Error::Full(_) => "full",
                Error::Unreachable => "unreachable",
                Error::Uncertain => "uncertain",
                other => panic!("{other:?}"),
            };
            (word, lost)
        };
        let killed = "Error running script: @user_script: 1: Script killed by user with SCRIPT KILL...";
        let refused = "The user executing the script can't run this command script: 00, on @user_script:9.";
        let old = "Error running script (call to f_00): @user_script:9: @user_script: 9: ";
        for (kind, text, write, read) in [
            (NoPerm, "No permissions to access a key", ("engine", false), ("engine", false)),
            (NoPerm, refused, ("uncertain", false), ("engine", false)),
            (ResponseError, refused, ("uncertain", false), ("engine", false)),
            (ResponseError, "something that only a proxy says", ("uncertain", false), ("engine", false)),
            (ResponseError, killed, ("engine", false), ("engine", false)),
            (ResponseError, &format!("{old}-OOM command not allowed"), ("full", false), ("full", false)),
            (ResponseError, &format!("{old}-READONLY You can't write"), ("unreachable", true), ("unreachable", true)),
            (
                ResponseError,
                "READONLY You can't write script: 00, on @user_script:9.",
                ("unreachable", true),
                ("unreachable", true),
            ),
            (ReadOnly, "You can't write script: 00, on @user_script:9.", ("unreachable", true), ("unreachable", true)),
            (BusyLoading, "Redis is loading the dataset in memory", ("unreachable", true), ("unreachable", true)),
        ] {
            assert_eq!(converted(kind, text, Kind::Write), write, "{text}");
            assert_eq!(converted(kind, text, Kind::Read), read, "{text}");
        }
        let cut = || io::Error::from(io::ErrorKind::BrokenPipe).into();
        assert!(matches!(convert(&cut(), Kind::Write), (Error::Uncertain, true)));
        assert!(matches!(convert(&cut(), Kind::Read), (Error::Unreachable, true)));
    }
}
