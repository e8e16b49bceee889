//! One call of a script.

use redis::{Cmd, Script, ToRedisArgs};

/// A script with its keys and arguments, put together as they are given.
pub(super) struct Call<'a> {
    pub(super) script: &'a Script,
    pub(super) command: Cmd,
}

impl<'a> Call<'a> {
    pub(super) fn new<K: AsRef<str>>(script: &'a Script, keys: impl ExactSizeIterator<Item = K>) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(keys.len());
        for key in keys {
            command.arg(key.as_ref());
        }
        Self { script, command }
    }

    pub(super) fn arg(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.command.arg(arg);
        self
    }
}
