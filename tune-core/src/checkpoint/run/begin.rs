//! Whether a run can begin in a folder, by what is there already.

use std::path::{Component, Path, PathBuf};

use super::lock::Lock;
use super::{Saved, checkpoints, name_of, names_in, parse_name};
use crate::checkpoint::state;
use crate::words::count;
use crate::{Error, Result};

/// How a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// From the base model; checkpoints of another run must not be there.
    Fresh,
    /// From the newest checkpoint, which must be there.
    Resume,
    /// From the base model; checkpoints of another run are deleted first.
    Overwrite,
}

/// Whether a run can begin so, as [`RunDir::open`](super::RunDir::open) would find; nothing is changed. Returns the checkpoints that
/// are there, the oldest first.
///
/// # Errors
///
/// As [`RunDir::open`](super::RunDir::open), of what is there already.
pub fn check(output_dir: &Path, base: &Path, start: Start) -> Result<Vec<Saved>> {
    look(output_dir, base, start).map(|(_, there)| there)
}

/// What is there, and the lock where there is a folder.
pub(super) fn look(output_dir: &Path, base: &Path, start: Start) -> Result<(Option<Lock>, Vec<Saved>)> {
    check_output_dir(output_dir, base)?;
    // Before the look at what is there, which another process may be changing.
    let locked = if output_dir.is_dir() { Some(Lock::on(output_dir)?) } else { None };
    let there = checkpoints(output_dir)?;
    match start {
        Start::Fresh if !there.is_empty() => {
            return Err(Error::file(
                output_dir,
                format!(
                    "already holds {} of another run, the newest {}; set resume_from_checkpoint=true to go on from it, overwrite=true to \
                     delete what is there and start anew, or choose another output_dir",
                    count(there.len(), "checkpoint"),
                    there.last().map(|s| name_of(s.epoch, s.step)).unwrap_or_default(),
                ),
            ));
        }
        Start::Resume if there.is_empty() => {
            return Err(Error::file(
                output_dir,
                "holds no complete checkpoint to resume from; set resume_from_checkpoint=false to start from the base model",
            ));
        }
        _ => {}
    }
    let from = if start == Start::Resume { there.last().map_or(0, |s| s.step + 1) } else { 0 };
    if let Some(name) = without_state(output_dir, from)? {
        return Err(Error::file(
            output_dir.join(name),
            format!(
                "has the name of a checkpoint but no {}, so this program does not replace it; \
                 move it away, or choose another output_dir",
                state::FILE
            ),
        ));
    }
    Ok((locked, there))
}

/// Refuses an output folder in which saving would touch a checkpoint that training starts from or goes on to need.
/// Links are followed; neither has to exist.
///
/// # Errors
///
/// Where `output_dir` is the base's folder (for a GGUF file, the one that it is in), where the
/// base is one of the checkpoints of `output_dir`, or where `output_dir` is a file.
pub fn check_output_dir(output_dir: &Path, base: &Path) -> Result<()> {
    let output = resolve(output_dir)?;
    if output.exists() && !output.is_dir() {
        return Err(Error::file(output_dir, "is a file; output_dir must be a folder"));
    }
    let base_path = resolve(base)?;
    let base_dir = if base_path.is_dir() { base_path.as_path() } else { base_path.parent().unwrap_or(&base_path) };
    if output == base_dir {
        return Err(Error::file(
            output_dir,
            "is the folder of a checkpoint that training starts from or needs; choose another output_dir",
        ));
    }
    // A run prunes and replaces its own checkpoints, and one of them may be the base.
    let inside = base_dir.strip_prefix(&output).ok();
    let first = inside.and_then(|rest| rest.components().next());
    if let Some(first) = first
        && let Some(name) = first.as_os_str().to_str()
        && parse_name(name).is_some()
    {
        return Err(Error::file(
            output_dir,
            format!(
                "holds a checkpoint that training starts from or needs ({}), which saving into it could delete; \
                 choose another output_dir, or resume that run with resume_from_checkpoint=true and its base model",
                base.display()
            ),
        ));
    }
    Ok(())
}

/// The path without links and dots, as far as it exists.
fn resolve(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(Error::io("find", path))?;
    let mut resolved = PathBuf::new();
    for part in absolute.components() {
        if part == Component::ParentDir {
            resolved.pop();
        } else {
            resolved.push(part);
            if let Ok(real) = resolved.canonicalize() {
                resolved = real;
            }
        }
    }
    Ok(resolved)
}

/// What saving steps from `from_step` on could replace without being a complete checkpoint: a model, say,
/// that someone kept without the training state.
fn without_state(output_dir: &Path, from_step: u64) -> Result<Option<String>> {
    let names = names_in(output_dir)?;
    Ok(names.into_iter().find(|name| {
        parse_name(name).is_some_and(|(_, step)| step >= from_step)
            && !output_dir.join(name).join(state::FILE).is_file()
    }))
}
