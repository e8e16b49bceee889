//! Measures tower-comet against bare hyper, interleaved, in one run:
//!
//! ```sh
//! cargo run --release -p tower-comet-bench
//! cargo run --release -p tower-comet-bench -- --waiters 10000 --rounds 5 --builder http1
//! cargo run --release -p tower-comet-bench --features jemalloc -- --only memory
//! ```
//!
//! Every server is a process of its own and is measured by what the kernel says it has used; the client is one thread, and
//! the same for all. A message that is lost, doubled or out of order ends the run.

mod client;
mod measure;
mod rounds;
mod server;

use std::{env, error::Error};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut args = env::args().skip(1).peekable();
    if args.next_if(|arg| arg == "serve").is_some() {
        let kind = args.next().ok_or("serve what?")?;
        let builder = args.next().ok_or("with which builder?")?;
        return server::serve(&kind, &builder);
    }
    let mut plan = rounds::Plan::default();
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        match &*arg {
            "--waiters" => plan.waiters = value.parse()?,
            "--channels" => plan.channels = value.parse()?,
            "--rounds" => plan.rounds = value.parse()?,
            "--builder" => plan.builder = value,
            "--only" => plan.only = Some(value),
            _ => return Err(format!("unknown flag {arg}").into()),
        }
    }
    rounds::run(&plan)
}
