//! The scripts, with the bounds of what is kept.

use redis::Cmd;
use std::{sync::Arc, time::Duration};

use super::{LogLimits, index::REGISTERED};
use crate::engine::{READ, Retention};

/// Beyond it, a publication carries no data, and whoever hears of it reads the log.
const INLINE: usize = 8 * 1024;

/// How long a channel that nobody created is remembered after its history and its last reader.
const LINGER: Duration = Duration::from_secs(60);

/// The number of the layout of a channel's keys: see `layout.lua`. Change it with everything that an older version would read or
/// write wrongly.
pub(super) const LAYOUT: u8 = 1;

/// A script, and the hash by which Redis knows it.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) text: Arc<str>,
    pub(super) hash: Arc<str>,
}

impl Script {
    fn new(text: &str) -> Self {
        Self { text: text.into(), hash: redis::Script::new(text).get_hash().into() }
    }

    /// The command that loads the script.
    pub(super) fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(&*self.text);
        command
    }
}

pub(super) struct Scripts {
    pub(super) append: Script,
    pub(super) read: Script,
    pub(super) create: Script,
    pub(super) delete: Script,
    /// A step of a fork at its source, and at the stream that it becomes.
    pub(super) source: Script,
    pub(super) copy: Script,
    pub(super) forking: Script,
    pub(super) compare: Script,
    pub(super) verify: Script,
    pub(super) trial: Script,
    pub(super) index: IndexScripts,
}

/// The scripts of the [index](super::index).
#[derive(Clone)]
pub(super) struct IndexScripts {
    pub(super) register: Script,
    pub(super) list: Script,
    pub(super) prune: Script,
    pub(super) complete: Script,
    pub(super) present: Script,
}

impl Scripts {
    pub(super) fn new(kept: &LogLimits) -> Self {
        // What is kept is a part of the scripts: as an argument it would be sent and read each time.
        let bounds = bounds(kept);
        let script = |parts: &[&str]| Script::new(&[&*bounds, include_str!("layout.lua"), &*parts.concat()].concat());
        let common = include_str!("helpers.lua");
        let lifetime = include_str!("lifetime.lua");
        let guarded = |operation: &str, topic: &str| {
            script(&[
                common,
                lifetime,
                "local function operation()\n",
                operation,
                "end\nreturn guarded(operation, ",
                topic,
                ")\n",
            ])
        };
        Self {
            append: script(&[include_str!("append_fast.lua"), common, include_str!("append_slow.lua")]),
            read: guarded(include_str!("read.lua"), "nil"),
            create: guarded(include_str!("create.lua"), "ARGV[1]"),
            delete: guarded(include_str!("delete.lua"), "ARGV[1]"),
            source: guarded(include_str!("source.lua"), "nil"),
            copy: guarded(include_str!("copy.lua"), "nil"),
            forking: Script::new(include_str!("forking.lua")),
            compare: script(&[common, include_str!("compare.lua")]),
            verify: script(&[common, include_str!("verify.lua")]),
            trial: Script::new(include_str!("trial.lua")),
            index: IndexScripts {
                register: Script::new(include_str!("register.lua")),
                list: Script::new(include_str!("list.lua")),
                prune: Script::new(include_str!("prune.lua")),
                complete: Script::new(include_str!("complete.lua")),
                present: Script::new(include_str!("present.lua")),
            },
        }
    }
}

/// Defines the layout and the limits as Lua constants: the appends, bytes and milliseconds that are retained, how long an empty channel is
/// remembered, the number of producers, the bytes that a publication carries, the appends that a read returns, and how long after the
/// registration of its name a channel may be created.
fn bounds(kept: &LogLimits) -> String {
    let bounded = |most: usize| if most == usize::MAX { "math.huge".to_owned() } else { most.to_string() };
    let Retention { appends, bytes, age } = &kept.retention;
    format!(
        "local LAYOUT, APPENDS, BYTES, AGE, LINGER, PRODUCERS, INLINE, READ, REGISTERED = {LAYOUT}, {}, {}, {}, {}, {}, {INLINE}, {READ}, {}\n",
        bounded(*appends),
        bounded(*bytes),
        age.map_or(0, millis),
        millis(LINGER),
        bounded(kept.producers),
        millis(REGISTERED),
    )
}

pub(super) fn millis(duration: Duration) -> u64 {
    // Lua counts up to 2^53.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(1 << 52)
}
