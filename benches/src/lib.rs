//! Measures tower-comet against bare hyper, and against others who do the same, interleaved, in one run.
//!
//! ```sh
//! benches/run                                  # everything, about half an hour
//! benches/run --only fan-out --rounds 5        # a row
//! benches/run --write                          # and puts the figures into the documents
//! benches/run --against HEAD~1                 # the working tree against another commit
//! ```
//!
//! | module | |
//! | --- | --- |
//! | [`server`] | the servers of our own: the layer, and the floors |
//! | [`subject`] | what is measured: a server, ours or a peer's, and how to speak to it |
//! | [`client`], [`http2`] | the load: one thread, the same for all |
//! | [`process`] | a server's process, and what the kernel says it has used |
//! | [`rows`], [`many`] | what is done to a server, and what is counted |
//! | [`micro`] | a microbenchmark, for a comparison |
//! | [`figures`], [`plot`] | medians, the tables and the plots |
//! | [`against`] | the comparison with another commit |

pub mod against;
pub mod client;
pub mod figures;
pub mod http2;
pub mod many;
pub mod micro;
pub mod plot;
pub mod process;
pub mod rows;
pub mod server;
pub mod subject;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A message of so many bytes of JSON, with its number.
pub fn message(n: usize, size: usize) -> String {
    let head = format!("{{\"n\":\"{n:08}\",\"pad\":\"");
    let pad = size.saturating_sub(head.len() + 2);
    format!("{head}{}\"}}", "x".repeat(pad))
}
