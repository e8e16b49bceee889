//! One channel and a plain `Vec`, side by side.
//!
//! `steps` drives both with the same random steps and compares all that can be seen after each; `vec` is the model, with the
//! rules written down the simple way; `forgotten` is about what is left when a channel is no more.

mod forgotten;
mod steps;
mod vec;

use std::{future::Future, sync::Arc, time::Duration};

use crate::registry::{Append, Limits, Registry};
use crate::{
    Error,
    engine::{Batch, Offset, Reading, Retention},
};

const NAME: &str = "/events/news";

/// As much as there is.
const ALL: usize = usize::MAX;

const AGE: Duration = Duration::from_secs(10);

fn registry(retention: Retention) -> Arc<Registry> {
    Arc::new(Registry::new(Limits::default(), retention))
}

/// Runs something on a clock that stands still until it is moved.
fn with_paused_clock<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(story)
}

fn publish_to(registry: &Registry, name: &str, texts: &[String]) -> Result<Offset, Error> {
    let batch = Batch::json(&serde_json::to_vec(texts).unwrap())?;
    let mut append = Append { batch: Some(batch), create: Some(registry.json()), ..Append::default() };
    registry.append_local(registry.assert_local(), name, &mut append).map(|(appended, _)| appended.tail)
}

fn close(registry: &Registry) -> Result<Offset, Error> {
    let mut append = Append { create: Some(registry.json()), close: true, ..Append::default() };
    registry.append_local(registry.assert_local(), NAME, &mut append).map(|(appended, _)| appended.tail)
}

fn texts(reading: Reading) -> Vec<String> {
    if reading.is_empty() { Vec::new() } else { serde_json::from_slice(&reading.into_bytes()).unwrap() }
}
