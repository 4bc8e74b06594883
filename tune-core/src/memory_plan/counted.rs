//! Bytes that are counted by the shapes of a run's models: weights, adapters, the optimizer's state, and what saving and loading take.

use candle_core::DType;

use super::parameters;
use super::{ReferencePass, Setting};
use crate::Result;
use crate::data::Batch;
use crate::kernels::buffers::HUGE;
use crate::kernels::ledger::Ledger;
use crate::models::ModelSpec;
use crate::peft::LoraOptions;

/// Among how many processes parameters are divided.
fn shards(setting: &Setting) -> usize {
    setting.processes.layout.shards
}

/// Bytes of an element of weights and activations.
fn element(setting: &Setting) -> u64 {
    setting.dtype.size_in_bytes() as u64
}

/// The model's own weights: those of `dtype`, and those in blocks.
pub(super) fn weights(setting: &Setting) -> (u64, u64) {
    let (in_blocks, bytes_in_blocks) = parameters::of_blocks(&setting.in_blocks, shards(setting));
    let elements = parameters::of_model(&setting.model, shards(setting));
    (elements.saturating_sub(in_blocks) * element(setting), bytes_in_blocks)
}

/// The adapters that are trained, with what is kept beside them.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(super) fn adapters(setting: &Setting) -> Result<u64> {
    setting.lora.as_ref().map_or(Ok(0), |lora| adapters_of(setting, &setting.model, lora))
}

fn adapters_of(setting: &Setting, model: &ModelSpec, lora: &LoraOptions) -> Result<u64> {
    // A card keeps a copy of adapters in the type of activations beside them.
    let copy = if setting.card.is_some() && setting.dtype == DType::BF16 { 2 } else { 0 };
    let elements = parameters::of_adapters(model, lora, shards(setting))?;
    Ok((4 + copy) * elements + parameters::beside_adapters(model, lora)?)
}

/// Elements of the weights that are trained whole beside adapters.
fn whole(setting: &Setting) -> Result<u64> {
    setting.lora.as_ref().map_or(Ok(0), |lora| parameters::of_whole(&setting.model, lora, shards(setting)))
}

/// Models that score answers: a value model, and a reward model.
pub(super) fn scoring(setting: &Setting) -> u64 {
    let models = setting.value.iter().chain(&setting.judge);
    models.map(|model| parameters::of_model(model, shards(setting)) * element(setting)).sum()
}

/// A reference model.
pub(super) struct Reference {
    /// Bytes of it that stay in memory.
    pub(super) stays: u64,
    /// Bytes that it took before the weights of the trained model were read, of which none are left.
    pub(super) before: u64,
}

impl Reference {
    /// `engine` is the account of the passes, those of the reference model among them.
    ///
    /// # Errors
    /// As [`LoraOptions::of_model`].
    pub(super) fn of(setting: &Setting, engine: &Ledger) -> Result<Self> {
        let Some(ReferencePass { model, lora, each_step, .. }) = &setting.reference else {
            return Ok(Self { stays: 0, before: 0 });
        };
        let Some(model) = model else {
            // The model without its adapters has copies of what is trained whole.
            let copies = if *each_step { whole(setting)? * element(setting) } else { 0 };
            return Ok(Self { stays: copies, before: 0 });
        };
        let adapters = lora.as_ref().map_or(Ok(0), |lora| adapters_of(setting, model, lora))?;
        let all = parameters::of_model(model, shards(setting)) * element(setting) + adapters;
        // What a card has got once stays there.
        Ok(match *each_step || setting.card.is_some() {
            true => Self { stays: all, before: 0 },
            false => Self { stays: 0, before: all + engine.touched(HUGE) + setting.said_together },
        })
    }
}

/// The optimizer's state, of all models that are trained.
pub(super) struct OptimizerState {
    /// Bytes in memory, with those of a part of it that is in a file.
    pub(super) held: u64,
    /// Bytes in a file.
    pub(super) offloaded: u64,
    /// Bytes in memory while state that is kept in a file is read, where a run goes on: a parameter's.
    pub(super) read: u64,
    /// Bytes in memory while it is saved: a tensor.
    pub(super) saved: u64,
}

impl OptimizerState {
    /// # Errors
    /// As [`LoraOptions::of_model`].
    pub(super) fn of(setting: &Setting) -> Result<Self> {
        let optimizer = &setting.optimizer;
        let passing = most_of_one(setting, &|name, dims| optimizer.passing_bytes(name, dims))?;
        let held = match setting.card {
            Some(_) => {
                let on_card = |name: &str, dims: &[usize]| optimizer.parts_on_card(name, dims);
                of_all(setting, &|name, dims| on_card(name, dims).into_iter().sum::<usize>() as u64)?
            }
            None => of_all(setting, &|name, dims| optimizer.held_bytes(name, dims))? + passing,
        };
        if optimizer.offload_dir().is_none() {
            return Ok(Self { held, offloaded: 0, read: 0, saved: 0 });
        }
        Ok(Self {
            held,
            offloaded: of_all(setting, &|name, dims| optimizer.state_bytes(name, dims))? - (held - passing),
            read: most_of_one(setting, &|name, dims| optimizer.state_bytes(name, dims))?,
            saved: most_of_one(setting, &|_, dims| 4 * dims.iter().product::<usize>() as u64)?,
        })
    }
}

/// The bytes of optimizer state for all that a process trains, by those for a parameter's name and shape.
fn of_all(setting: &Setting, bytes: &dyn Fn(&str, &[usize]) -> u64) -> Result<u64> {
    let processes = shards(setting);
    let value = setting.value.as_ref().map_or(Ok(0), |value| parameters::of_state(value, None, processes, bytes))?;
    Ok(parameters::of_state(&setting.model, setting.lora.as_ref(), processes, bytes)? + value)
}

/// The most of such bytes that one of its parameters has.
fn most_of_one(setting: &Setting, bytes: &dyn Fn(&str, &[usize]) -> u64) -> Result<u64> {
    let processes = shards(setting);
    let value = setting.value.as_ref().map_or(Ok(0), |value| parameters::most(value, None, processes, bytes))?;
    Ok(parameters::most(&setting.model, setting.lora.as_ref(), processes, bytes)?.max(value))
}

/// What reading the weights takes besides themselves.
///
/// # Errors
/// As [`LoraOptions::resolved`].
pub(super) fn read_beside(setting: &Setting) -> Result<u64> {
    let shards = shards(setting);
    // A trained weight is read and then copied into a variable, one after the other.
    let last = |model: &ModelSpec| parameters::last(model) / shards as u64;
    let of_model = if setting.lora.is_some() { whole(setting)? } else { last(&setting.model) };
    let copied = of_model.max(setting.value.as_ref().map_or(0, last)) * element(setting);
    // Of what is in blocks each process reads all, one matrix after the other, and keeps its share.
    Ok(copied.max(if shards > 1 { setting.in_blocks.largest() } else { 0 }))
}

/// What saving takes besides; `state` of it is for the optimizer's, where that is in a file.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(super) fn saving(setting: &Setting, state: u64) -> Result<u64> {
    let merged = parameters::made_to_merge(setting);
    Ok(match setting.copied {
        Some(copied) => parameters::copied_to_save(setting, copied)? + merged,
        None => {
            let gathered = if shards(setting) > 1 { parameters::gathered_to_save(setting)? } else { 0 };
            gathered.max(state).max(merged)
        }
    })
}

/// What a teacher said of the tokens of a batch.
pub(super) fn said(setting: &Setting) -> u64 {
    let trained_tokens = setting.steps.iter().flatten().map(Batch::trained_tokens).max().unwrap_or(0);
    (trained_tokens * setting.said_of_token) as u64
}

/// The bytes of the inputs of all blocks in a file, for the largest batch.
pub(super) fn inputs_in_file(setting: &Setting) -> u64 {
    if setting.activation_offload_dir.is_none() {
        return 0;
    }
    let tokens = setting.steps.iter().flatten().map(Batch::tokens).max().unwrap_or(0);
    let of = |model: &ModelSpec| tokens * model.blocks.len() * model.hidden_size * setting.dtype.size_in_bytes();
    // One model after the other is trained.
    std::iter::once(&setting.model).chain(&setting.value).map(|model| of(model) as u64).sum()
}
