//! Redis, the way to it, and who uses it.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test uses a part of it")]

mod clients;
mod proxy;
mod server;

pub use clients::{Log, Node, Poller, Publisher, Truth, Verdict, judge, note};
pub use proxy::{Proxy, Way};
pub use server::Server;
