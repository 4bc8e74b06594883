//! What is handed on: merged models, GGUF files, adapters for llama.cpp. Each is written aside, read again from the disk, compared
//! with what was trained, and gets its name only then, with a receipt that says what it is made of and what the comparison found.
//!
//! - [`GgufFile`] is a file that a model becomes, and [`Columns`] is by what it is quantized.
//! - [`Aside`] is where it is written, and [`Written`] is what is there until it has its name.
//! - [`Receipt`] is what is written beside it.
//! - [`proof`] compares.
//! - [`importance()`] says how much the columns of weights count where they are quantized.

mod aside;
mod columns;
mod gguf;
mod importance;
mod measure;
pub mod proof;
mod receipt;
mod source;
mod written;

use std::path::{Path, PathBuf};

pub use aside::Aside;
pub use columns::Columns;
pub use gguf::GgufFile;
pub use importance::{CHUNK, importance};
pub use measure::{Distance, Prompts};
pub use proof::{Findings, Proof, Target};
pub use receipt::{Kind, Origin, OriginImportance, OriginPart, Receipt};
pub(crate) use source::newest;
pub use source::{Source, part};
pub use written::Written;

/// Where the folder that a path is in says it is, so that a receipt holds elsewhere, too.
fn absolute(path: &Path) -> PathBuf {
    match path.to_string_lossy().starts_with(crate::hub::SCHEME) {
        true => path.to_owned(),
        false => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}
