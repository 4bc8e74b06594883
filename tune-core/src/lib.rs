//! What a training recipe is put together from.
//!
//! The crate reads no arguments, prints nothing and never exits: it returns
//! errors and reports, and writes where it is told to.

// The derives of `config` write `::tune_core::config`, here as anywhere.
extern crate self as tune_core;

pub mod artifact;
pub mod cargo;
pub mod checkpoint;
pub mod data;
pub mod device;
pub mod distributed;
pub mod doctor;
pub mod engine;
pub mod environment;
mod error;
pub mod eval;
mod files;
pub mod generate;
pub mod hub;
mod kernels;
mod later;
mod memory;
pub mod memory_plan;
pub mod methods;
pub mod metrics;
pub mod models;
mod offload;
pub mod optim;
mod panics;
pub mod peft;
pub mod planner;
mod positions;
pub mod preflight;
pub mod prelude;
pub mod recipe;
pub mod tokenizer;
pub mod words;

pub use error::{Error, Result};
pub use later::Later;
pub use tune_config as config;

#[cfg(test)]
mod order_tests;
