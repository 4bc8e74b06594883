//! The folder of a training run, with its checkpoints.
//!
//! ```text
//! output_dir/
//!   epoch_0_step_20/           a model or adapter as others read it, and the training state
//!   epoch_1_step_40/
//!   reference_answers.safetensors   what a reference model said before the first step, if one was asked then
//!   .partial-epoch_2_step_60/  being written; of no use to anyone
//!   .pruned-epoch_0_step_10/   being deleted
//! ```
//!
//! A checkpoint is complete or does not exist: it is written aside, every file and folder is
//! synced, and then it gets its name. Whatever moment a process dies in, the next one finds the
//! newest complete checkpoint and clears the rest away.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::answers::KeptAnswers;
use super::durable::{self, human};
use super::state::{self, TrainingState};
use super::sums;
use crate::models::Piece;
use crate::{Error, Result};

pub(super) const PARTIAL: &str = ".partial-";
const PRUNED: &str = ".pruned-";
const REPLACED: &str = ".replaced-";
/// Room for what is not counted: configs, tokenizers, folders.
pub(crate) const SPARE_BYTES: u64 = 1 << 20;

/// A complete checkpoint of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its folder.
    pub path: PathBuf,
    /// The optimizer step that it was saved after.
    pub step: u64,
    /// The epoch that the step belongs to, from 0.
    pub epoch: u64,
}

/// The complete checkpoints in `output_dir`, the oldest first; none where the folder does not exist.
///
/// # Errors
///
/// Where the folder cannot be read.
pub fn checkpoints(output_dir: &Path) -> Result<Vec<Saved>> {
    let mut saved = Vec::new();
    for name in names_in(output_dir)? {
        // One that a process was killed in replacing is whole, and bears its name again when the run is opened.
        let original = name.strip_prefix(REPLACED).filter(|o| !output_dir.join(o).exists());
        if let Some((epoch, step)) = parse_name(original.unwrap_or(&name)) {
            let path = output_dir.join(&name);
            if path.join(state::FILE).is_file() {
                saved.push(Saved { path, step, epoch });
            }
        }
    }
    saved.sort_by_key(|s| (s.step, s.epoch));
    Ok(saved)
}

/// The name that a checkpoint's folder was given, also while it is being replaced.
pub(super) fn original_name(dir: &Path) -> String {
    let name = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(REPLACED).unwrap_or(&name).to_owned()
}

/// How to resume in spite of a checkpoint that is damaged.
pub(super) fn without(damaged: &Path) -> String {
    let siblings = damaged.parent().and_then(|dir| checkpoints(dir).ok()).unwrap_or_default();
    match siblings.iter().rev().find(|saved| saved.path != damaged) {
        Some(other) => format!("move {} away, and the run resumes from {}", damaged.display(), other.path.display()),
        None => "there is no other checkpoint of this run: start it anew (overwrite=true)".to_owned(),
    }
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

/// The newest complete checkpoint in `output_dir`.
///
/// # Errors
///
/// Where the folder cannot be read.
pub fn latest(output_dir: &Path) -> Result<Option<Saved>> {
    Ok(checkpoints(output_dir)?.pop())
}

/// How to go on with a run that stopped, once `remedy` is done: from the newest checkpoint, if there is one.
pub(crate) fn way_on(output_dir: &Path, remedy: &str) -> String {
    match latest(output_dir) {
        Ok(Some(saved)) => format!(
            "The last good checkpoint is {}: {remedy} and resume from it (resume_from_checkpoint=true)",
            saved.path.display()
        ),
        _ => format!("No checkpoint was saved before: {remedy} and start again"),
    }
}

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

/// A run's folder, open for saving: nobody else saves into it meanwhile.
#[derive(Debug)]
pub struct RunDir {
    dir: PathBuf,
    _lock: Lock,
}

impl RunDir {
    /// Opens `output_dir`, makes it where it is missing, and clears away what an earlier process left
    /// unfinished. `base` is the checkpoint that training starts from.
    ///
    /// Call it when the rest of the set-up is known to be sound: with [`Start::Overwrite`] it deletes.
    ///
    /// # Errors
    ///
    /// Where the folder is the base's own, is in use by another process and remains so for five seconds, cannot be made or
    /// written, its content does not fit `start`, or it holds something else under a checkpoint's name. Nothing has been
    /// changed then.
    pub fn open(output_dir: &Path, base: &Path, start: Start) -> Result<Self> {
        let (locked, _) = look(output_dir, base, start)?;
        durable::create_dir_all(output_dir)?;
        let lock = match locked {
            Some(lock) => lock,
            None => Lock::on(output_dir)?,
        };
        let run = Self { dir: output_dir.to_path_buf(), _lock: lock };
        run.clean()?;
        if start != Start::Resume {
            KeptAnswers::remove(output_dir)?;
        }
        if start == Start::Overwrite {
            for saved in &checkpoints(output_dir)? {
                run.delete(&saved.path)?;
            }
        }
        Ok(run)
    }

    /// A folder for a checkpoint that finds no room where it belongs.
    pub(crate) fn elsewhere(dir: &Path) -> Result<Self> {
        durable::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_path_buf(), _lock: Lock::on(dir)? })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Where the checkpoint of a step is, once it is saved.
    pub(crate) fn path_of(&self, epoch: u64, step: u64) -> PathBuf {
        self.dir.join(name_of(epoch, step))
    }

    /// The newest complete checkpoint, which a run that resumes starts from.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read.
    pub fn latest(&self) -> Result<Option<Saved>> {
        latest(&self.dir)
    }

    /// Saves a checkpoint: `write` puts the model or adapter into the folder that it is given (with
    /// [`super::hf::write`] or [`super::peft::write`]), the state is added, everything is synced, and the
    /// folder gets its name, `epoch_E_step_S`. One of that name that is already there is replaced.
    ///
    /// `weight_bytes` is about what `write` writes.
    ///
    /// # Errors
    ///
    /// Where there is too little room or writing fails. What was written is removed, and earlier
    /// checkpoints are as they were.
    pub fn save(
        &self,
        state: &TrainingState,
        weight_bytes: u64,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Saved> {
        self.save_pieces(state, &state.pieces(), weight_bytes, write)
    }

    /// The same with tensors of the optimizer that are made as they are written.
    ///
    /// # Errors
    ///
    /// As [`RunDir::save`].
    pub(crate) fn save_pieces(
        &self,
        state: &TrainingState,
        optimizer: &[Piece<'_>],
        weight_bytes: u64,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Saved> {
        self.clean()?;
        let (epoch, step) = (state.position.epoch_of_last_step(), state.position.step);
        let name = name_of(epoch, step);
        let of_optimizer: u64 = optimizer.iter().map(Piece::bytes).sum();
        let needed = weight_bytes.saturating_add(of_optimizer).saturating_add(SPARE_BYTES);
        if let Some(free) = durable::free_bytes(&self.dir)
            && free < needed
        {
            return Err(self.too_full(&name, &format!("it needs {}, and {} are free", human(needed), human(free))));
        }

        let partial = self.dir.join(format!("{PARTIAL}{name}"));
        let made = fs::create_dir(&partial).map_err(Error::io("create", &partial));
        let (written, sums) = sums::watch(|| made.and_then(|()| write(&partial)));
        let written =
            written.and_then(|()| state.write(&partial, &name, optimizer, &sums)).and_then(|()| sync_tree(&partial));
        if let Err(error) = written {
            // The first error is the one to tell; what remains is removed by the next run.
            let _ = fs::remove_dir_all(&partial);
            return Err(match error.is_full_disk() {
                true if error.may_pass() => self.too_full(&name, &error.to_string()),
                true => self.beyond_limit(&error),
                false => error,
            });
        }

        let path = self.dir.join(&name);
        let replaced = self.dir.join(format!("{REPLACED}{name}"));
        let replaces = path.exists();
        if replaces {
            rename(&path, &replaced)?;
        }
        if let Err(error) = rename(&partial, &path) {
            self.clean()?;
            return Err(error);
        }
        durable::sync_dir(&self.dir)?;
        if replaces {
            remove(&replaced)?;
        }
        Ok(Saved { path, step, epoch })
    }

    /// Deletes the oldest checkpoints until `keep_last` are left, at least one, and returns those deleted.
    ///
    /// # Errors
    ///
    /// Where one cannot be deleted.
    pub fn prune(&self, keep_last: usize) -> Result<Vec<Saved>> {
        self.prune_but(keep_last, None)
    }

    /// The same, but that `kept` is kept besides.
    ///
    /// # Errors
    ///
    /// As [`RunDir::prune`].
    pub fn prune_but(&self, keep_last: usize, kept: Option<&Path>) -> Result<Vec<Saved>> {
        let mut saved = checkpoints(&self.dir)?;
        let keep = keep_last.max(1).min(saved.len());
        saved.truncate(saved.len() - keep);
        saved.retain(|saved| Some(saved.path.as_path()) != kept);
        for old in &saved {
            self.delete(&old.path)?;
        }
        Ok(saved)
    }

    /// Takes a checkpoint's name away, so that nobody finds half of it, and then deletes it.
    fn delete(&self, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = self.dir.join(format!("{PRUNED}{name}"));
        rename(path, &aside)?;
        durable::sync_dir(&self.dir)?;
        remove(&aside)
    }

    /// Finishes or undoes what another process was killed in.
    fn clean(&self) -> Result<()> {
        for name in names_in(&self.dir)? {
            let path = self.dir.join(&name);
            if name.starts_with(PARTIAL) || name.starts_with(PRUNED) {
                remove(&path)?;
            } else if let Some(original) = name.strip_prefix(REPLACED) {
                let original = self.dir.join(original);
                if original.exists() {
                    remove(&path)?;
                } else {
                    rename(&path, &original)?;
                    durable::sync_dir(&self.dir)?;
                }
            }
        }
        Ok(())
    }

    fn too_full(&self, name: &str, why: &str) -> Error {
        let last = way_on(&self.dir, "make room");
        Error::Full {
            path: self.dir.clone(),
            message: format!(
                "no room for the checkpoint {name}: {why}. {last}. keep_last_n_checkpoints=1 keeps the least"
            ),
        }
    }

    /// More than `ulimit -f` lets a file have: no room on the disk would help.
    fn beyond_limit(&self, error: &Error) -> Error {
        let last = way_on(
            &self.dir,
            "raise the limit of a file's size (`ulimit -f`), or set a smaller checkpointer.max_shard_size,",
        );
        Error::file(&self.dir, format!("{error}. {last}"))
    }
}

/// Whether a run can begin so, as [`RunDir::open`] would find; nothing is changed. Returns the checkpoints that
/// are there, the oldest first.
///
/// # Errors
///
/// As [`RunDir::open`], of what is there already.
pub fn check(output_dir: &Path, base: &Path, start: Start) -> Result<Vec<Saved>> {
    look(output_dir, base, start).map(|(_, there)| there)
}

/// What is there, and the lock where there is a folder.
fn look(output_dir: &Path, base: &Path, start: Start) -> Result<(Option<Lock>, Vec<Saved>)> {
    check_output_dir(output_dir, base)?;
    // Before the look at what is there, which another process may be changing.
    let locked = if output_dir.is_dir() { Some(Lock::on(output_dir)?) } else { None };
    let there = checkpoints(output_dir)?;
    match start {
        Start::Fresh if !there.is_empty() => {
            return Err(Error::file(
                output_dir,
                format!(
                    "already holds {} checkpoint(s) of another run, the newest {}; set resume_from_checkpoint=true to go on from it, \
                     overwrite=true to delete them and start anew, or choose another output_dir",
                    there.len(),
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
                "has the name of a checkpoint and no {}, so it is not this program's to replace; \
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
/// Where `output_dir` is the base's folder (for a GGUF file, the one that it lies in), where the
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

/// How long a folder may still be locked by a process that was killed: its memory is given back and its last write ends before
/// its files are closed.
const UNTIL_FREE: Duration = Duration::from_secs(5);

/// The folder that is locked, where its file system has locks. It is free again when this is
/// dropped or the process ends, however it ends.
#[derive(Debug)]
struct Lock(Option<File>);

impl Lock {
    fn on(dir: &Path) -> Result<Self> {
        if !cfg!(unix) {
            return Ok(Self(None));
        }
        let handle = File::open(dir).map_err(Error::io("open", dir))?;
        let begun = Instant::now();
        loop {
            match handle.try_lock() {
                Ok(()) => return Ok(Self(Some(handle))),
                Err(TryLockError::WouldBlock) if begun.elapsed() < UNTIL_FREE => thread::sleep(UNTIL_FREE / 200),
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::file(
                        dir,
                        "is in use: another run is saving into it; wait for it, or choose another output_dir",
                    ));
                }
                Err(TryLockError::Error(_)) => return Ok(Self(None)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process that is just being started still has the handle, too.
        if let Some(handle) = &self.0 {
            let _ = handle.unlock();
        }
    }
}

fn name_of(epoch: u64, step: u64) -> String {
    format!("epoch_{epoch}_step_{step}")
}

/// Epoch and step from a checkpoint's name.
fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (epoch, step) = name.strip_prefix("epoch_")?.split_once("_step_")?;
    let (epoch, step) = (epoch.parse().ok()?, step.parse().ok()?);
    // No signs, no leading zeros: one name for one checkpoint.
    (name_of(epoch, step) == name).then_some((epoch, step))
}

/// The names in a folder, sorted; none where it does not exist.
fn names_in(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("read", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", dir))?;
        // Names that are not Unicode are not ours.
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("rename", from))
}

fn remove(path: &Path) -> Result<()> {
    let kind = fs::symlink_metadata(path).map_err(Error::io("remove", path))?;
    if kind.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.map_err(Error::io("remove", path))
}

/// Syncs all files and folders below `dir`, whoever wrote them, and `dir` itself.
pub(crate) fn sync_tree(dir: &Path) -> Result<()> {
    for name in names_in(dir)? {
        let path = dir.join(name);
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|f| f.sync_all()).map_err(Error::io("sync", &path))?;
        }
    }
    durable::sync_dir(dir)
}
