//! One call of a script.

use redis::{Cmd, Script, ToRedisArgs};

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
