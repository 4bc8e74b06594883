//! Parameters by the shape of a model, and the share of them that a process has: of each parameter its share of the rows.

use std::collections::BTreeMap;

use super::{Copied, Setting};
use crate::Result;
use crate::models::{InBlocks, LayerSpec, LoraOptions, ModelSpec, OUTPUT_ROWS, Slot, TOKEN_ROWS};

/// Elements of the model's own weights.
pub(super) fn of_model(model: &ModelSpec, processes: usize) -> u64 {
    let of_shape = |shape: &[usize]| match shape.split_first() {
        Some((&rows, rest)) => (rows.div_ceil(processes) * rest.iter().product::<usize>()) as u64,
        None => 0,
    };
    model.weights().iter().map(|(_, shape)| of_shape(shape)).sum()
}

/// Elements of the weights in blocks, and their bytes.
pub(super) fn of_blocks(in_blocks: &InBlocks, processes: usize) -> (u64, u64) {
    in_blocks.share(processes)
}

/// Bytes of what is kept beside adapters: for each row of a weight a number, where they have magnitudes, and what they began with, where
/// their weights lack it.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(super) fn beside_adapters(model: &ModelSpec, lora: &LoraOptions) -> Result<u64> {
    let layers = lora.of_model(model)?;
    let named = model.named_layers();
    let of = |(name, layer): &(String, LayerSpec)| {
        let norms = if lora.dora { layer.out } else { 0 };
        let rank = layers.get(name)?.rank;
        let begun = if lora.start.takes_of_weight() { rank * (layer.out + layer.inner) } else { 0 };
        Some(4 * (norms + begun) as u64)
    };
    Ok(named.iter().filter_map(of).sum())
}

/// What adapters train, by name: the shape of the share that a process has.
///
/// # Errors
/// As [`LoraOptions::of_model`].
fn adapters(model: &ModelSpec, lora: &LoraOptions, processes: usize) -> Result<Vec<(String, Vec<usize>)>> {
    let lora = lora.resolved(model)?;
    let rows = |rows: usize| rows.div_ceil(processes);
    let mut trained = Vec::new();
    for (name, layer) in model.named_layers() {
        let Some(of) = lora.of_layer(&name) else { continue };
        trained.push((format!("{name}.lora_A.weight"), vec![rows(of.rank), layer.inner]));
        trained.push((format!("{name}.lora_B.weight"), vec![rows(layer.out), of.rank]));
        if lora.dora {
            trained.push((format!("{name}.lora_magnitude_vector"), vec![layer.out]));
        }
    }
    for (name, tokens) in [(TOKEN_ROWS, &lora.tokens), (OUTPUT_ROWS, &lora.output_tokens)] {
        let of_tokens = (!tokens.ids.is_empty()).then(|| vec![rows(tokens.ids.len()), model.hidden_size]);
        trained.extend(of_tokens.map(|shape| (name.to_owned(), shape)));
    }
    Ok(trained)
}

/// The model's own weights that are trained, beside adapters or all, by name: the shape of the share that a process has.
///
/// # Errors
/// As [`LoraOptions::resolved`].
fn weights(model: &ModelSpec, lora: Option<&LoraOptions>, processes: usize) -> Result<Vec<(String, Vec<usize>)>> {
    let mut weights = model.weights();
    if let Some(lora) = lora {
        let whole = lora.resolved(model)?.whole;
        weights.retain(|(name, _)| whole.contains(name));
    }
    for (_, shape) in &mut weights {
        if let Some(rows) = shape.first_mut() {
            *rows = rows.div_ceil(processes);
        }
    }
    Ok(weights)
}

/// Elements of the adapters, as far as one of `processes` has them.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(crate) fn of_adapters(model: &ModelSpec, lora: &LoraOptions, processes: usize) -> Result<u64> {
    Ok(elements(&adapters(model, lora, processes)?))
}

/// Elements of the model's own weights that are trained beside adapters, as far as one of `processes` has them.
///
/// # Errors
/// As [`LoraOptions::resolved`].
pub(crate) fn of_whole(model: &ModelSpec, lora: &LoraOptions, processes: usize) -> Result<u64> {
    Ok(elements(&weights(model, Some(lora), processes)?))
}

fn elements(shapes: &[(String, Vec<usize>)]) -> u64 {
    shapes.iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
}

/// The bytes of an optimizer's state for what a process trains, adapters or all weights, by those for a parameter's name and shape.
///
/// # Errors
/// As [`LoraOptions::resolved`].
pub(crate) fn of_state(
    model: &ModelSpec,
    lora: Option<&LoraOptions>,
    processes: usize,
    bytes: &dyn Fn(&str, &[usize]) -> u64,
) -> Result<u64> {
    let adapters = lora.map_or(Ok(Vec::new()), |lora| adapters(model, lora, processes))?;
    let trained = adapters.into_iter().chain(weights(model, lora, processes)?);
    Ok(trained.map(|(name, shape)| bytes(&name, &shape)).sum())
}

/// The shapes of what a process trains, by name.
///
/// # Errors
/// As [`LoraOptions::resolved`].
pub(super) fn shapes(
    model: &ModelSpec,
    lora: Option<&LoraOptions>,
    processes: usize,
) -> Result<BTreeMap<String, Vec<usize>>> {
    let adapters = lora.map_or(Ok(Vec::new()), |lora| adapters(model, lora, processes))?;
    Ok(adapters.into_iter().chain(weights(model, lora, processes)?).collect())
}

/// The most of such bytes that one parameter has.
///
/// # Errors
/// As [`LoraOptions::resolved`].
pub(super) fn most(
    model: &ModelSpec,
    lora: Option<&LoraOptions>,
    processes: usize,
    bytes: &dyn Fn(&str, &[usize]) -> u64,
) -> Result<u64> {
    let adapters = lora.map_or(Ok(Vec::new()), |lora| adapters(model, lora, processes))?;
    let trained = adapters.into_iter().chain(weights(model, lora, processes)?);
    Ok(trained.map(|(name, shape)| bytes(&name, &shape)).max().unwrap_or(0))
}

/// Elements of the last large weight that is read.
pub(super) fn last(model: &ModelSpec) -> u64 {
    let slot = if model.tie_word_embeddings || model.scores.is_some() { Slot::DownProj } else { Slot::LmHead };
    model.layers_of(slot).last().map_or(0, LayerSpec::elements)
}

/// Bytes of what is copied to be written in the background, by the process that writes.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(super) fn copied_to_save(setting: &Setting, copied: Copied) -> Result<u64> {
    let (model, weight) = (&setting.model, setting.dtype.size_in_bytes() as u64);
    let state_of = |model, lora| of_state(model, lora, 1, &|name, dims| setting.optimizer.state_bytes(name, dims));
    let value = match &setting.value {
        Some(value) => of_model(value, 1) * weight + state_of(value, None)?,
        None => 0,
    };
    let of_model = of_model(model, 1) * weight;
    Ok(value
        + state_of(model, setting.lora.as_ref())?
        + match &setting.lora {
            None => of_model,
            Some(lora) => {
                let merged = if copied == Copied::WithMerged { of_model } else { 0 };
                merged + 4 * of_adapters(model, lora, 1)? + weight * of_whole(model, lora, 1)?
            }
        })
}

/// Bytes of a table that is copied to put rows of single tokens into it, where a merged model is saved; gathered first, where it is
/// divided.
pub(super) fn made_to_merge(setting: &Setting) -> u64 {
    let trains_rows = setting.lora.as_ref().is_some_and(LoraOptions::trains_rows);
    let tables = match setting.merges && trains_rows {
        false => 0,
        true if setting.processes.layout.shards > 1 => 2,
        true => 1,
    };
    tables * setting.model.output().elements() * setting.dtype.size_in_bytes() as u64
}

/// Bytes of what is whole in a process while a checkpoint is saved: the largest tensor that is written, or all adapters.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(super) fn gathered_to_save(setting: &Setting) -> Result<u64> {
    let largest = |model: &ModelSpec| {
        let largest = model.weights().iter().map(|(_, shape)| shape.iter().product::<usize>()).max();
        let size = if setting.optimizer.keeps_state() { 4 } else { setting.dtype.size_in_bytes() };
        (largest.unwrap_or_default() * size) as u64
    };
    // All adapters stay while the tensors of a value model are made one after the other.
    let value = setting.value.as_ref().map_or(0, largest);
    Ok(match &setting.lora {
        Some(lora) => 4 * (of_adapters(&setting.model, lora, 1)? + of_whole(&setting.model, lora, 1)?) + value,
        None => largest(&setting.model).max(value),
    })
}
