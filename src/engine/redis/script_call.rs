//! One call of a script, and how it is said what is meant.

use redis::{Arg, Cmd, ToRedisArgs};

use super::scripts::Script;
use crate::engine::{Batch, Fork, Offset, ReadFrom, Start};

/// A script with its keys and arguments, put together as they are given.
pub(super) struct ScriptCall<'a> {
    pub(super) script: &'a Script,
    pub(super) command: Cmd,
}

impl<'a> ScriptCall<'a> {
    /// `count` keys.
    pub(super) fn new<'k>(script: &'a Script, count: usize, keys: impl Iterator<Item = &'k String>) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&*script.hash).arg(count);
        for key in keys {
            command.arg(key);
        }
        Self { script, command }
    }

    /// The same call with the whole script, for a Redis that does not have it. It loads the script.
    pub(super) fn whole(&self) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(&*self.script.text);
        for arg in self.command.args_iter().skip(2) {
            if let Arg::Simple(arg) = arg {
                command.arg(arg);
            }
        }
        command
    }

    pub(super) fn arg(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.command.arg(arg);
        self
    }
}

/// Encodes a fork as it was requested, to compare it with a later request. Stored in the channel's hash, so a change of this encoding
/// is a change of the [layout](super::scripts::LAYOUT).
pub(super) fn pack_fork(Fork { source, at, part }: &Fork) -> String {
    let (word, offset) = word(at.map(ReadFrom::From));
    format!("{part} {word} {} {} {source}", offset.position(), offset.fingerprint())
}

fn word(place: Option<ReadFrom>) -> (&'static str, Offset) {
    match place {
        None => ("nowhere", Offset::ZERO),
        Some(ReadFrom::Window) => ("window", Offset::ZERO),
        Some(ReadFrom::From(Start::Earliest)) => ("earliest", Offset::ZERO),
        Some(ReadFrom::From(Start::Tail)) => ("tail", Offset::ZERO),
        Some(ReadFrom::From(Start::AbsentTail)) => ("origin", Offset::ZERO),
        Some(ReadFrom::From(Start::After(offset))) => ("after", offset),
    }
}

pub(super) fn place(script: &mut ScriptCall<'_>, place: Option<ReadFrom>) {
    let (word, offset) = word(place);
    script.arg(word).arg(offset.position()).arg(offset.fingerprint());
}

pub(super) fn content(script: &mut ScriptCall<'_>, batch: Option<&Batch>) {
    match batch {
        Some(batch) => script.arg(if batch.json { "j" } else { "b" }).arg(batch.messages).arg(&batch.data[..]),
        None => script.arg("").arg(0).arg(""),
    };
}

/// What tells a log from others, if one is made, and an append from others: 21 and 32 bits, so that Lua can add them.
pub(super) fn fingerprint() -> (u32, u32) {
    (fastrand::u32(1..1 << 21), fastrand::u32(..))
}

/// A text with its length before it.
pub(super) fn text(packed: &mut Vec<u8>, text: &str) {
    packed.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    packed.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_of_a_fork_does_not_change() {
        let fork = |at, part| pack_fork(&Fork { source: "/a b".into(), at, part });
        assert_eq!(fork(None, 0), "0 nowhere 0 0 /a b");
        assert_eq!(fork(Some(Start::Tail), 0), "0 tail 0 0 /a b");
        assert_eq!(fork(Some(Start::AbsentTail), 0), "0 origin 0 0 /a b");
        assert_eq!(fork(Some(Start::Earliest), 2), "2 earliest 0 0 /a b");
        assert_eq!(fork(Some(Start::After(Offset::new(7, 258))), 3), "3 after 7 258 /a b");
    }

    #[test]
    fn a_call_with_the_whole_script_has_the_same_keys_and_arguments() {
        let script = Script { text: "return 1".into(), hash: "00".into() };
        let keys = ["a".to_owned(), String::new()];
        let mut call = ScriptCall::new(&script, 2, keys.iter());
        call.arg(&b"\0\xff"[..]).arg("").arg(17);
        let mut expected = redis::cmd("EVAL");
        expected.arg("return 1").arg(2).arg("a").arg("").arg(&b"\0\xff"[..]).arg("").arg(17);
        assert_eq!(call.whole().get_packed_command(), expected.get_packed_command());
    }
}
