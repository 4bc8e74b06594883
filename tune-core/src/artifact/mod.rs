//! What is handed on: merged models, GGUF files, adapters for llama.cpp. Each is written aside, read again from the disk, compared
//! with what was trained, and gets its name only then, with a receipt that says what it is made of and what the comparison found.
//!
//! - [`Aside`] is where it is written.
//! - [`Receipt`] is what is written beside it.
//! - [`proof`] compares.
//! - [`importance()`] says how much the columns of weights count where they are quantized.

mod aside;
mod importance;
mod measure;
pub mod proof;
mod receipt;
mod source;

pub use aside::Aside;
pub use importance::{CHUNK, importance};
pub use measure::{Distance, Prompts};
pub use proof::{Findings, Proof, Target};
pub use receipt::{Kind, Origin, OriginImportance, OriginPart, Receipt};
pub(crate) use source::newest;
pub use source::{Source, part};
