//! One call of a script, and how it is said what is meant.

use redis::{Cmd, Script, ToRedisArgs};

use crate::engine::{Batch, Offset, Place, Start};

/// A script with its keys and arguments, put together as they are given.
pub(super) struct Call<'a> {
    pub(super) script: &'a Script,
    pub(super) command: Cmd,
}

impl<'a> Call<'a> {
    /// `count` keys.
    pub(super) fn new<'k>(script: &'a Script, count: usize, keys: impl Iterator<Item = &'k String>) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(count);
        for key in keys {
            command.arg(key);
        }
        Self { script, command }
    }

    pub(super) fn arg(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.command.arg(arg);
        self
    }
}

pub(super) fn place(script: &mut Call<'_>, place: Option<Place>) {
    let (word, offset) = match place {
        None => ("nowhere", Offset::ZERO),
        Some(Place::Window) => ("window", Offset::ZERO),
        Some(Place::From(Start::Earliest)) => ("earliest", Offset::ZERO),
        Some(Place::From(Start::Tail)) => ("tail", Offset::ZERO),
        Some(Place::From(Start::Origin)) => ("origin", Offset::ZERO),
        Some(Place::From(Start::After(offset))) => ("after", offset),
    };
    script.arg(word).arg(offset.position()).arg(offset.fingerprint());
}

pub(super) fn content(script: &mut Call<'_>, batch: Option<&Batch>) {
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
