//! Tests of the registry as a whole.
//!
//! | folder | |
//! | --- | --- |
//! | `fake_engine` | the rules for remote engines, run against a fake one |
//! | `model` | random operations, compared with a simple model |
//! | `loom` | races, in every order that loom finds |

#[cfg(all(feature = "redis", not(comet_loom)))]
mod fake_engine;
#[cfg(comet_loom)]
mod loom;
#[cfg(not(comet_loom))]
mod model;
