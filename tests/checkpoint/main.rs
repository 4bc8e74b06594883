//! Reading, writing and keeping checkpoints.
#![allow(clippy::unwrap_used, missing_docs)]

mod gguf;
mod hf;
mod peft;
mod run;
mod state;
mod support;
