//! Reading, writing and keeping checkpoints.
#![allow(clippy::unwrap_used, missing_docs, clippy::print_stdout)]

mod config;
mod gguf;
mod hf;
mod peft;
mod run;
mod state;
mod support;
