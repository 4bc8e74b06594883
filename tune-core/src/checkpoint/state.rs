//! What a run needs besides weights to go on as if it had not stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::moved::{Moved, shown};
use super::safetensors::{self, Entry, Outgoing};
use super::sums::{self, Sum, Sums};
use super::{durable, run, source};
use crate::distributed::Group;
use crate::models::Piece;
use crate::{Error, Result};

/// The file with everything but tensors; it is written last, so where it is, all is.
pub(crate) const FILE: &str = "training_state.json";
const TENSORS: &str = "training_state.safetensors";

/// The version of the format that is written, and the only one that is read.
const VERSION: u32 = 3;

/// Where the checksum of the file itself stands in it, which is made with zeros in its place.
const CHECKSUM: &str = "\"checksum\": \"";
const ZEROS: &str = "00000000";

/// Parts of keys that say where something is whose content is not compared.
const NOT_REMEMBERED: [&str; 3] = ["adapter_checkpoint", "base_adapters", "checkpoint_dir"];

/// Where a run is: what is done, and so what comes next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Optimizer steps taken.
    pub step: u64,
    /// The epoch that the next batch belongs to, from 0.
    pub epoch: u64,
    /// Batches of that epoch already trained on (consumed, not read ahead).
    pub batches_in_epoch: usize,
}

impl Position {
    /// The epoch that the last step belongs to, from 0.
    #[must_use]
    pub fn epoch_of_last_step(&self) -> u64 {
        if self.batches_in_epoch == 0 { self.epoch.saturating_sub(1) } else { self.epoch }
    }
}

/// The position and memory of a training run after an optimizer step.
#[derive(Debug, Clone, Default)]
pub struct TrainingState {
    /// Where the run is.
    pub position: Position,
    /// Steps that the whole run takes; schedules depend on it.
    pub total_steps: u64,
    /// The seed that the run began with.
    pub seed: u64,
    /// What the chat template took for now, where it writes the date.
    pub now: Option<i64>,
    /// The settings that a resumed run must share to give the same weights, by config key.
    pub settings: BTreeMap<String, Value>,
    /// What the run computes from besides its settings, by name: a number that stands for its content.
    pub inputs: BTreeMap<String, u32>,
    /// Anything else that goes on, such as counts of tokens.
    pub extra: BTreeMap<String, Value>,
    /// The optimizer's tensors by name, in f32.
    pub optimizer: BTreeMap<String, Tensor>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    /// Of this file.
    checksum: String,
    /// The name of the checkpoint's folder.
    checkpoint: String,
    step: u64,
    epoch: u64,
    batches_in_epoch: usize,
    total_steps: u64,
    seed: u64,
    now: Option<i64>,
    settings: BTreeMap<String, Value>,
    inputs: BTreeMap<String, u32>,
    extra: BTreeMap<String, Value>,
    /// The other files of the checkpoint.
    files: BTreeMap<String, Sum>,
}

impl TrainingState {
    /// The optimizer's tensors, as they are written.
    pub(crate) fn pieces(&self) -> Vec<Piece<'_>> {
        self.optimizer.iter().map(|(name, tensor)| Piece::of(name, tensor)).collect()
    }

    /// The bytes that it takes on disk, to a few kilobytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.optimizer.values().map(|t| safetensors::bytes_of(t.dtype(), t.dims())).sum()
    }

    /// Reads the state in a checkpoint's folder, and checks that the folder is as it was written.
    ///
    /// # Errors
    ///
    /// Where there is none, it is broken, of another version, or a file has been changed or lost.
    pub fn read(dir: &Path) -> Result<Self> {
        Self::read_share(dir, &Group::single())
    }

    /// The same, of the optimizer's tensors with the rows alone that belong to this process of a group.
    ///
    /// # Errors
    ///
    /// As [`TrainingState::read`].
    pub fn read_share(dir: &Path, group: &Group) -> Result<Self> {
        let mut state = Self::read_without_optimizer(dir)?;
        read_optimizer(dir, group, &mut |of_one| {
            state.optimizer.extend(of_one);
            Ok(())
        })?;
        Ok(state)
    }

    /// The same without the optimizer's tensors, which take long to read.
    ///
    /// # Errors
    ///
    /// As [`TrainingState::read`].
    pub fn read_without_optimizer(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Err(Error::file(
                dir,
                format!("has no {FILE}: it is a model, but not a checkpoint that training can be resumed from"),
            ));
        }
        let stored = read_stored(&path)?;
        check_name(dir, &stored)?;
        check_files(dir, &stored)?;
        Ok(Self {
            position: Position { step: stored.step, epoch: stored.epoch, batches_in_epoch: stored.batches_in_epoch },
            total_steps: stored.total_steps,
            seed: stored.seed,
            now: stored.now,
            settings: stored.settings,
            inputs: stored.inputs,
            extra: stored.extra,
            optimizer: BTreeMap::new(),
        })
    }

    /// Writes the state beside the files already in `dir`, which it lists. The checkpoint will have this name;
    /// `sums` are those of the files that are known.
    ///
    /// The optimizer's tensors are `optimizer`, which are made as they are written, and not those that are here.
    pub(super) fn write(&self, dir: &Path, name: &str, optimizer: &[Piece<'_>], sums: &Sums) -> Result<()> {
        let makers: Vec<_> = optimizer.iter().map(|piece| move || piece.make()).collect();
        let outgoing = optimizer
            .iter()
            .zip(&makers)
            .map(|(piece, make)| Outgoing { name: &piece.name, dtype: piece.dtype, shape: &piece.shape, tensor: make })
            .collect();
        let (written, tensors) = sums::watch(|| safetensors::write(&dir.join(TENSORS), outgoing));
        written?;
        let mut files = BTreeMap::new();
        list(dir, "", &|path| sums.get(path).or(tensors.get(path)).copied(), &mut files)?;
        let stored = Stored {
            version: VERSION,
            checksum: ZEROS.to_owned(),
            checkpoint: name.to_owned(),
            step: self.position.step,
            epoch: self.position.epoch,
            batches_in_epoch: self.position.batches_in_epoch,
            total_steps: self.total_steps,
            seed: self.seed,
            now: self.now,
            settings: self.settings.clone(),
            inputs: self.inputs.clone(),
            extra: self.extra.clone(),
            files,
        };
        let mut text = serde_json::to_string_pretty(&stored).map_err(|e| Error::Other(Box::new(e)))?;
        text.push('\n');
        let checksum = format!("{CHECKSUM}{:08x}", crc32c::crc32c(text.as_bytes()));
        let text = text.replacen(&format!("{CHECKSUM}{ZEROS}"), &checksum, 1);
        durable::write(&dir.join(FILE), text.as_bytes())
    }

    /// Checks that the numbers fit each other, and the plan of a run of this many epochs whose last step before the
    /// checkpoint is of epoch `of_last_step`.
    pub(crate) fn check_numbers(&self, epochs: u64, of_last_step: u64, dir: &Path) -> Result<()> {
        let Self { position, total_steps, .. } = self;
        let is_sound =
            position.step <= *total_steps && position.epoch <= epochs && position.epoch_of_last_step() == of_last_step;
        if is_sound {
            return Ok(());
        }
        let Position { step, epoch, batches_in_epoch } = position;
        Err(damaged(
            &dir.join(FILE),
            &format!(
                "contradicts itself or the settings: step {step} of {total_steps}, epoch {epoch} of {epochs}, {batches_in_epoch} \
                 batches of it done"
            ),
        ))
    }

    /// Checks that a run with these settings goes on as this one would have. A setting that this one does not know, because there was none
    /// when it began, was as `defaults` have it. Where something is may have changed, if it can be seen that it is the same: that is
    /// [`TrainingState::moved`], for [`TrainingState::check_inputs`].
    ///
    /// # Errors
    ///
    /// Where it would not; the message lists what differs.
    pub fn check_settings(&self, now: &BTreeMap<String, Value>, defaults: &BTreeMap<String, Value>) -> Result<()> {
        let mut differing = String::new();
        let (mut only_longer, mut has_place) = (true, false);
        for (key, then, now) in self.changes(now, defaults) {
            if Moved::of(key, (then, now), &self.inputs).is_none() {
                only_longer &= matches!(key.as_str(), "epochs" | "max_steps_per_epoch");
                has_place |= NOT_REMEMBERED.iter().any(|place| key.contains(place));
                differing += &format!("\n  {key}: {} then, {} now", shown(then), shown(now));
            }
        }
        if differing.is_empty() {
            return Ok(());
        }
        let longer = match only_longer {
            true => ". To train on from what was learnt, let the new one start from a checkpoint of this one",
            false => "",
        };
        let linked = if has_place { ". To what has only moved, a link is enough: ln -s NEW OLD" } else { "" };
        Err(Error::setup(format!(
            "cannot resume: these settings differ from those of the run that is resumed, and the result would not be the same:{differing}\n\
             Set them back, or start a new run (resume_from_checkpoint=false) in another output_dir{longer}{linked}"
        )))
    }

    /// What was somewhere else when this run began, of what a checkpoint knows the content.
    #[must_use]
    pub fn moved(&self, now: &BTreeMap<String, Value>, defaults: &BTreeMap<String, Value>) -> Vec<Moved> {
        let changes = self.changes(now, defaults);
        changes.filter_map(|(key, then, now)| Moved::of(key, (then, now), &self.inputs)).collect()
    }

    /// Settings that are not what they were, each with what it was and what it is.
    fn changes<'a>(
        &'a self,
        now: &'a BTreeMap<String, Value>,
        defaults: &'a BTreeMap<String, Value>,
    ) -> impl Iterator<Item = (&'a String, Option<&'a Value>, Option<&'a Value>)> {
        let keys: BTreeSet<&String> = self.settings.keys().chain(now.keys()).collect();
        let values = move |key: &'a String| (key, self.settings.get(key).or_else(|| defaults.get(key)), now.get(key));
        // There was an empty list where there is none now.
        let is_as_before = |key: &str, then: Option<&Value>, now: Option<&Value>| {
            key == "model.target_modules" && then.is_some_and(|it| it == "0 items") && now.is_some_and(Value::is_null)
        };
        let all = keys.into_iter().map(values);
        all.filter(move |&(key, then, now)| then != now && !is_as_before(key, then, now))
    }

    /// Checks that a run that computes from these inputs goes on as this one would have. Some of them may have `moved`.
    ///
    /// # Errors
    ///
    /// Where one of them is not what it was; the message names it.
    pub fn check_inputs(&self, now: &BTreeMap<String, u32>, moved: &[Moved]) -> Result<()> {
        let changed = now.iter().filter(|(name, sum)| self.inputs.get(*name) != Some(sum)).map(|(name, _)| name);
        let said = changed.map(|name| {
            let places: Vec<_> = moved.iter().filter(|moved| moved.holds(name)).map(ToString::to_string).collect();
            match places.is_empty() {
                true => format!("{name} changed since the run began, though not by name"),
                false => format!("{name} changed since the run began ({})", places.join("; ")),
            }
        });
        let said: Vec<_> = said.collect();
        if said.is_empty() {
            return Ok(());
        }
        Err(Error::setup(format!(
            "cannot resume: {}, and the result would not be the same. \
             Bring back what was there, or start a new run (resume_from_checkpoint=false) in another output_dir",
            said.join(", and ")
        )))
    }
}

/// Gives `take` the optimizer's tensors in a checkpoint's folder, those of one parameter after those of another, with the rows that belong to
/// this process of a group.
///
/// # Errors
/// A file that is missing or damaged, and those of `take`.
pub(crate) fn read_optimizer(
    dir: &Path,
    group: &Group,
    take: &mut dyn FnMut(BTreeMap<String, Tensor>) -> Result<()>,
) -> Result<()> {
    let mut by_parameter: BTreeMap<String, Vec<(String, Entry)>> = BTreeMap::new();
    for (name, entry) in safetensors::open(&dir.join(TENSORS))? {
        let parameter = name.rsplit_once('.').map_or("", |(parameter, _)| parameter).to_owned();
        by_parameter.entry(parameter).or_default().push((name, entry));
    }
    for of_one in by_parameter.into_values() {
        let mut tensors = BTreeMap::new();
        for (name, entry) in of_one {
            let Some(dtype) = entry.dtype() else {
                return Err(entry.unsupported(&name));
            };
            let tensor = match entry.shape().first() {
                Some(&rows) if !group.is_single() => {
                    entry.load_rows(&name, group.share(rows), dtype, None, &Device::Cpu)?
                }
                _ => entry.load(&name, dtype, None, &Device::Cpu)?,
            };
            tensors.insert(name, tensor);
        }
        take(tensors)?;
    }
    Ok(())
}

/// Reads the file, and checks that it is as it was written.
fn read_stored(path: &Path) -> Result<Stored> {
    let text = source::read_small(path, 256 << 20)?;
    let json: Value =
        serde_json::from_slice(&text).map_err(|e| damaged(path, &format!("is damaged: it is no JSON ({e})")))?;
    let version = json.get("version").and_then(Value::as_u64);
    if version != Some(u64::from(VERSION)) && (json.get("checksum").is_none() || is_whole(&text)) {
        let found = version.map_or("no version".to_string(), |v| format!("version {v}"));
        return Err(Error::file(
            path,
            format!(
                "is of {found}, and this program reads version {VERSION}: resume with the program that wrote it, or start a new run from its weights"
            ),
        ));
    }
    if !is_whole(&text) {
        return Err(damaged(path, "is not as it was written: its checksum does not fit"));
    }
    serde_json::from_value(json).map_err(|e| damaged(path, &format!("is damaged: {e}")))
}

/// Whether the checksum in the file's text fits the rest of it.
fn is_whole(text: &[u8]) -> bool {
    let place = text.windows(CHECKSUM.len()).position(|part| part == CHECKSUM.as_bytes());
    let Some(from) = place.map(|at| at + CHECKSUM.len()) else { return false };
    let Some(stated) = text.get(from..from + ZEROS.len()) else { return false };
    let sum = crc32c::crc32c(&text[..from]);
    let sum = crc32c::crc32c_append(sum, ZEROS.as_bytes());
    let sum = crc32c::crc32c_append(sum, &text[from + ZEROS.len()..]);
    stated == format!("{sum:08x}").as_bytes()
}

/// An error about a file of a checkpoint, with the way on.
fn damaged(file: &Path, what: &str) -> Error {
    let mut dir = file.parent().unwrap_or(file);
    while !dir.join(FILE).exists() && dir.parent().is_some_and(|above| above.join(FILE).exists()) {
        dir = dir.parent().unwrap_or(dir);
    }
    Error::file(file, format!("{what}. To resume, {}", run::without(dir)))
}

/// A checkpoint's name says which step it is of.
fn check_name(dir: &Path, stored: &Stored) -> Result<()> {
    let name = run::original_name(dir);
    if name == stored.checkpoint {
        return Ok(());
    }
    Err(damaged(
        &dir.join(FILE),
        &format!(
            "is of the checkpoint {}, and this one is called {name}: it was renamed, or files were mixed up",
            stored.checkpoint
        ),
    ))
}

/// Every file is there and has the bytes that it was written with, and none was added that would be read.
fn check_files(dir: &Path, stored: &Stored) -> Result<()> {
    for (name, &expected) in &stored.files {
        let file = dir.join(name);
        let what = match fs::metadata(&file).map(|meta| meta.len()) {
            Err(_) => "is missing".to_owned(),
            Ok(bytes) if bytes != expected.bytes => {
                format!("has {bytes} bytes, and had {} when the checkpoint was written", expected.bytes)
            }
            Ok(_) if sums::of_file(&file)? != expected => {
                "is not as it was when the checkpoint was written: its checksum does not fit".to_owned()
            }
            Ok(_) => continue,
        };
        return Err(damaged(&file, &what));
    }
    let read = ["config.json", "adapter_config.json", "generation_config.json", "model.safetensors.index.json"];
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_read = read.contains(&&*name) || [".safetensors", ".gguf"].iter().any(|end| name.ends_with(end));
        if is_read && !stored.files.contains_key(&*name) {
            return Err(Error::file(&path, "was not there when the checkpoint was written: move it away"));
        }
    }
    Ok(())
}

/// The files below `dir` with their sums, read where they are not known; `prefix` is the path so far.
fn list(
    dir: &Path,
    prefix: &str,
    known: &impl Fn(&Path) -> Option<Sum>,
    files: &mut BTreeMap<String, Sum>,
) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(Error::file(&path, "has a name that is not Unicode"));
        };
        let name = format!("{prefix}{name}");
        let meta = entry.metadata().map_err(Error::io("read", &path))?;
        if meta.is_dir() {
            list(&path, &format!("{name}/"), known, files)?;
        } else {
            let sum = known(&path).filter(|sum| sum.bytes == meta.len());
            files.insert(name, sum.map_or_else(|| sums::of_file(&path), Ok)?);
        }
    }
    Ok(())
}
