//! What a run needs besides weights to go on as if it had not stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::safetensors::{self, Outgoing};
use super::{durable, source};
use crate::{Error, Result};

/// The file with everything but tensors; it is written last, so where it is, all is.
pub(super) const FILE: &str = "training_state.json";
const TENSORS: &str = "training_state.safetensors";

/// The version of the format that is written, and the only one that is read.
const VERSION: u32 = 1;

/// The position and memory of a training run after an optimizer step.
#[derive(Debug, Clone, Default)]
pub struct TrainingState {
    /// Optimizer steps taken.
    pub step: usize,
    /// The epoch that the next batch belongs to, from 0.
    pub epoch: usize,
    /// Batches of that epoch already trained on (consumed, not read ahead).
    pub batches_in_epoch: usize,
    /// Steps that the whole run takes; schedules depend on it.
    pub total_steps: usize,
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
    step: usize,
    epoch: usize,
    batches_in_epoch: usize,
    total_steps: usize,
    seed: u64,
    now: Option<i64>,
    settings: BTreeMap<String, Value>,
    inputs: BTreeMap<String, u32>,
    extra: BTreeMap<String, Value>,
    /// The other files of the checkpoint with their sizes in bytes.
    files: BTreeMap<String, u64>,
}

impl TrainingState {
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
        let mut state = Self::read_without_optimizer(dir)?;
        for (name, entry) in safetensors::open(&dir.join(TENSORS))? {
            let Some(dtype) = entry.dtype() else {
                return Err(entry.unsupported(&name));
            };
            let tensor = entry.load(&name, dtype, None, &Device::Cpu)?;
            state.optimizer.insert(name, tensor);
        }
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
        let json: Value = source::read_json(&path)?;
        let version = json.get("version").and_then(Value::as_u64);
        if version != Some(u64::from(VERSION)) {
            let found = version.map_or("no version".to_string(), |v| format!("version {v}"));
            return Err(Error::file(
                &path,
                format!(
                    "is of {found}, and this program reads version {VERSION}: resume with the program that wrote it, or start a new run from its weights"
                ),
            ));
        }
        let stored: Stored =
            serde_json::from_value(json).map_err(|e| Error::file(&path, format!("is damaged: {e}")))?;
        for (name, &bytes) in &stored.files {
            let file = dir.join(name);
            let found = fs::metadata(&file).map(|m| m.len()).ok();
            if found != Some(bytes) {
                let found = found.map_or("is missing".to_string(), |n| format!("has {n} bytes"));
                return Err(Error::file(
                    &file,
                    format!("{found}, and had {bytes} when the checkpoint was written; resume from another checkpoint"),
                ));
            }
        }
        Ok(Self {
            step: stored.step,
            epoch: stored.epoch,
            batches_in_epoch: stored.batches_in_epoch,
            total_steps: stored.total_steps,
            seed: stored.seed,
            now: stored.now,
            settings: stored.settings,
            inputs: stored.inputs,
            extra: stored.extra,
            optimizer: BTreeMap::new(),
        })
    }

    /// Writes the state beside the files already in `dir`, which it lists.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let makers: Vec<_> = self.optimizer.values().map(|tensor| move || Ok(tensor.clone())).collect();
        let outgoing = self
            .optimizer
            .iter()
            .zip(&makers)
            .map(|((name, tensor), make)| Outgoing { name, dtype: tensor.dtype(), shape: tensor.dims(), tensor: make })
            .collect();
        safetensors::write(&dir.join(TENSORS), outgoing)?;
        let mut files = BTreeMap::new();
        list(dir, "", &mut files)?;
        let stored = Stored {
            version: VERSION,
            step: self.step,
            epoch: self.epoch,
            batches_in_epoch: self.batches_in_epoch,
            total_steps: self.total_steps,
            seed: self.seed,
            now: self.now,
            settings: self.settings.clone(),
            inputs: self.inputs.clone(),
            extra: self.extra.clone(),
            files,
        };
        durable::write_json(&dir.join(FILE), &stored)
    }

    /// Checks that a run with these settings goes on as this one would have.
    ///
    /// # Errors
    ///
    /// Where it would not; the message lists what differs.
    pub fn check_settings(&self, now: &BTreeMap<String, Value>) -> Result<()> {
        let keys: BTreeSet<&String> = self.settings.keys().chain(now.keys()).collect();
        let mut differing = String::new();
        for key in keys {
            let (then, now) = (self.settings.get(key), now.get(key));
            if then != now {
                let show = |v: Option<&Value>| v.map_or("not set".to_string(), ToString::to_string);
                differing += &format!("\n  {key}: {} then, {} now", show(then), show(now));
            }
        }
        if differing.is_empty() {
            return Ok(());
        }
        Err(Error::setup(format!(
            "cannot resume: these settings differ from those of the run that is resumed, and the result would not be the same:{differing}\n\
             Set them back, or start a new run (resume_from_checkpoint=false) in another output_dir"
        )))
    }

    /// Checks that a run that computes from these inputs goes on as this one would have.
    ///
    /// # Errors
    ///
    /// Where one of them is not what it was; the message names it.
    pub fn check_inputs(&self, now: &BTreeMap<String, u32>) -> Result<()> {
        let changed: Vec<&str> = now
            .iter()
            .filter(|(name, sum)| self.inputs.get(*name) != Some(sum))
            .map(|(name, _)| name.as_str())
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        Err(Error::setup(format!(
            "cannot resume: {} changed since the run began, though not by name, and the result would not be the same. \
             Bring back what was there, or start a new run (resume_from_checkpoint=false) in another output_dir",
            changed.join(" and ")
        )))
    }
}

/// The files below `dir` with their sizes; `prefix` is the path so far.
fn list(dir: &Path, prefix: &str, files: &mut BTreeMap<String, u64>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(Error::file(&path, "has a name that is not Unicode"));
        };
        let name = format!("{prefix}{name}");
        let meta = entry.metadata().map_err(Error::io("read", &path))?;
        if meta.is_dir() {
            list(&path, &format!("{name}/"), files)?;
        } else {
            files.insert(name, meta.len());
        }
    }
    Ok(())
}
