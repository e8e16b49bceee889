//! Tombstones: a deleted channel keeps its name while it has forks. When a fork has ended, a node releases it at its source, which is then
//! removed if it was the last one, and is released at its own source in turn.
//!
//! A fork may expire, or its node may stop before it releases it. So a node that receives "deleted" for a channel checks whether its forks still
//! exist. A node may also stop just when a fork becomes visible. So the fork is noted, and another node checks whether it exists.

use redis::FromRedisValue;
use std::sync::Weak;
use tokio::time::sleep;

use super::{
    Keys,
    connection::Kind,
    fork::Forks,
    reply::Reply,
    script_call::ScriptCall,
    scripts::{LAYOUT, millis},
};
use crate::Error;

/// How many members of a source one step checks, and how many one request checks at most.
const SOME: usize = 64;
const MOST: usize = 1_024;

/// The lowest score of a member that is committed: see `helpers.lua`.
const COMMITTED: f64 = 4_503_599_627_370_496.0;

/// The state of a fork.
enum Member {
    Ended,
    /// It was deleted, and keeps its name for forks of its own.
    Tombstone,
    Exists,
}

impl Forks {
    /// Removes the tombstone of this name if all of its forks have ended. Returns whether the name has no tombstone now.
    pub(super) async fn settle(&self, name: &str) -> bool {
        self.try_to_settle(&self.keys.stem(name)).await.unwrap_or(false)
    }

    async fn try_to_settle(&self, stem: &str) -> Result<bool, Error> {
        let (mut current, mut looked_at) = (stem.to_owned(), 0);
        while looked_at < MOST {
            looked_at += 1;
            let keys = Keys::of_stem(&current);
            let mut call = self.at_source(&keys, "forks");
            call.arg(SOME);
            let mut said = Reply::new(self.connection.read(&call).await?, Kind::Read)?;
            let removed = match &*said.text()? {
                "open" => true,
                "removed" => {
                    self.cascade(&mut said).await?;
                    true
                }
                "forks" => {
                    let tag = said.text()?;
                    let (mut ended, mut next) = (Vec::new(), None);
                    let members = said.list()?;
                    looked_at += members.len();
                    let of = format!("{} {tag}", keys[0]);
                    for member in members {
                        let member = String::from_redis_value(member).map_err(|_| said.strange())?;
                        match self.member(&member, &of).await? {
                            Member::Ended => ended.push(member),
                            Member::Tombstone => {
                                next = member.rsplit_once(":channel ").map(|(stem, _)| stem.to_owned());
                                break;
                            }
                            Member::Exists => {
                                next = Some(String::new());
                                break;
                            }
                        }
                    }
                    let removed = !ended.is_empty() && self.release(&keys, &tag, false, &ended).await?;
                    match next {
                        _ if removed => true,
                        // None that has ended is left.
                        Some(stem) if stem.is_empty() => return Ok(false),
                        Some(stem) => {
                            current = stem;
                            continue;
                        }
                        None if ended.is_empty() => return Ok(false),
                        None => continue,
                    }
                }
                word => return Err(said.failure(word)),
            };
            if removed && current == stem {
                return Ok(true);
            }
            current = stem.to_owned();
        }
        Ok(false)
    }

    /// Returns the state of a member of a source. A member in another layout counts as a fork, and is not changed.
    async fn member(&self, member: &str, of: &str) -> Result<Member, Error> {
        let Some((hash, tag)) = member.rsplit_once(' ') else { return Ok(Member::Ended) };
        let mut command = redis::cmd("HMGET");
        command.arg(hash).arg("of").arg("is").arg("at");
        let fields = match self.connection.ask(&command).await {
            Ok(fields) => Vec::<Option<Vec<u8>>>::from_redis_value(fields).unwrap_or_default(),
            // Another program's.
            Err(Error::Engine(_)) => return Ok(Member::Exists),
            Err(error) => return Err(error),
        };
        let [its_source, is, at] = &fields[..] else { return Ok(Member::Exists) };
        if at.as_ref().is_some_and(|at| at.first() != Some(&LAYOUT)) {
            return Ok(Member::Exists);
        }
        let is = is.as_deref().and_then(|is| std::str::from_utf8(is).ok()).unwrap_or_default();
        let same = its_source.as_deref() == Some(of.as_bytes()) && is.split(' ').next() == Some(tag);
        Ok(match (same, is.ends_with(" 1")) {
            (false, _) => Member::Ended,
            (true, true) => Member::Tombstone,
            (true, false) => Member::Exists,
        })
    }

    /// Releases forks that have ended. Returns whether their source was a tombstone, and is removed.
    async fn release(&self, keys: &[String; 4], tag: &str, given_up: bool, members: &[String]) -> Result<bool, Error> {
        let (mut keys, mut tag, mut members) = (keys.clone(), tag.to_owned(), members.to_vec());
        let (mut given_up, mut first) = (given_up, None);
        loop {
            let mut call = self.at_source(&keys, "release");
            call.arg(&tag).arg(u8::from(given_up)).arg(&members);
            let mut said = Reply::new(self.repeat(&call).await?, Kind::Read)?;
            let removed = match &*said.text()? {
                "removed" => true,
                "kept" => false,
                word => return Err(said.failure(word)),
            };
            first = first.or(Some(removed));
            let orphan = if removed { parse_orphan(&mut said)? } else { None };
            let Some(orphan) = orphan else { return Ok(first == Some(true)) };
            (keys, tag, members) = (Keys::of_stem(&orphan.source), orphan.tag, vec![orphan.member]);
            given_up = true;
        }
    }

    /// Releases a removed channel at the source that the rest of a reply names.
    pub(super) async fn cascade(&self, said: &mut Reply) -> Result<(), Error> {
        let Some(orphan) = parse_orphan(said)? else { return Ok(()) };
        self.release(&Keys::of_stem(&orphan.source), &orphan.tag, true, &[orphan.member]).await.map(drop)
    }

    /// Releases a fork that was not made.
    pub(super) async fn give_up(&self, source: &[String; 4], tag: &str, member: &str) -> Result<(), Error> {
        self.release(source, tag, true, &[member.to_owned()]).await.map(drop)
    }

    /// Confirms that a fork exists.
    pub(super) async fn confirm(&self, source: &[String; 4], tag: &str, member: &str) -> Result<(), Error> {
        let mut call = self.at_source(source, "confirm");
        call.arg(member).arg(0).arg(tag);
        let mut said = Reply::new(self.repeat(&call).await?, Kind::Read)?;
        match &*said.text()? {
            // The source has expired, or was replaced.
            "confirmed" | "unknown" => Ok(()),
            word => Err(said.failure(word)),
        }
    }

    /// Notes a fork that is about to become visible: the hash and the tag of its source, and its member, on a line each.
    pub(super) async fn note(&self, fork: &str) -> Result<(), Error> {
        self.repeat(self.forking("note").arg(fork)).await.map(drop)
    }

    pub(super) async fn erase(&self, fork: &str) -> Result<(), Error> {
        let mut command = redis::cmd("ZREM");
        command.arg(self.keys.forking()).arg(fork);
        self.connection.ask(&command).await.map(drop)
    }

    fn forking(&self, what: &str) -> ScriptCall<'_> {
        let mut call = ScriptCall::new(&self.scripts.forking, 1, [self.keys.forking()].iter());
        // No member is released before half of it, and a member is committed some time after it is noted.
        call.arg(what).arg(millis(self.pin / 2 + self.pin / 12));
        call
    }

    /// Completes or releases the forks of nodes that have stopped, three times in each lifetime of a pin, until `forks` is dropped.
    pub(super) async fn recover(forks: Weak<Self>) {
        while let Some(every) = forks.upgrade().map(|forks| forks.pin / 3) {
            sleep(every).await;
            let Some(forks) = forks.upgrade() else { return };
            // A later round retries.
            drop(forks.recover_some().await);
        }
    }

    async fn recover_some(&self) -> Result<(), Error> {
        let mut said = Reply::new(self.connection.read(self.forking("due").arg(SOME)).await?, Kind::Read)?;
        while let Ok(fork) = said.text() {
            match self.find_out(&fork).await {
                Ok(true) => self.erase(&fork).await?,
                Err(Error::Unreachable) => break,
                // It may still become visible, or its keys cannot be read.
                Ok(false) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Confirms a noted fork if it exists, and releases it otherwise. Returns `false` if it may still become visible.
    async fn find_out(&self, fork: &str) -> Result<bool, Error> {
        let mut lines = fork.split('\n');
        let (Some(source), Some(tag), Some(member)) = (lines.next(), lines.next(), lines.next()) else {
            return Ok(true);
        };
        let keys = Keys::of_stem(source.strip_suffix(":channel").unwrap_or(source));
        if !matches!(self.member(member, &format!("{source} {tag}")).await?, Member::Ended) {
            return self.confirm(&keys, tag, member).await.map(|()| true);
        }
        self.release(&keys, tag, false, &[member.to_owned()]).await?;
        let mut command = redis::cmd("ZSCORE");
        command.arg(&keys[2]).arg(member);
        let score = Option::<f64>::from_redis_value(self.connection.ask(&command).await?).unwrap_or_default();
        // A pin expires by itself.
        Ok(score.is_none_or(|score| score < COMMITTED))
    }
}

/// A fork that was removed.
struct Orphan {
    source: String,
    tag: String,
    member: String,
}

fn parse_orphan(said: &mut Reply) -> Result<Option<Orphan>, Error> {
    let (of, member) = (said.text()?, said.text()?);
    let Some((source, tag)) = of.rsplit_once(' ') else { return Ok(None) };
    let source = source.strip_suffix(":channel").ok_or_else(|| said.strange())?;
    Ok(Some(Orphan { source: source.to_owned(), tag: tag.to_owned(), member }))
}
