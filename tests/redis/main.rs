//! Logs on Redis, in trouble of every kind: what was acknowledged is compared with what each client has seen.
//!
//! The servers are real. The tests start them, on free ports, and end them by their pids: `redis-server` must be installed, or
//! `REDIS_SERVER` name another program. `tests/redis/servers` does that for other versions.
//! `RUSTFLAGS="--cfg comet_faults"` adds `controls`, which take out one rule each and see that something is then lost.
#![allow(unreachable_pub, reason = "what the modules share, they share with each other")]

mod appends;
mod broadcasts;
#[cfg(comet_faults)]
mod controls;
mod crashes;
mod cuts;
mod damaged;
mod events;
mod forks;
mod history;
mod index;
mod joining;
mod lifetimes;
mod losses;
mod misconfigured;
mod producers;
mod refusals;
mod rolled_back;
mod size;
mod starting;
mod support;

#[path = "../support/mod.rs"]
mod common;
