//! Parameters by the shape of a model.

use crate::Result;
use crate::models::{LayerSpec, LoraOptions, ModelSpec, Slot};

/// Bytes of what is kept of frozen weights for adapters with magnitudes: a number for each row.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(super) fn of_norms(model: &ModelSpec, lora: &LoraOptions) -> Result<u64> {
    let layers = if lora.dora { lora.of_model(model)? } else { return Ok(0) };
    let named = model.named_layers().into_iter().filter(|(name, _)| layers.contains_key(name));
    Ok(named.map(|(_, layer)| 4 * layer.out as u64).sum())
}

/// Elements of the adapters.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(crate) fn of_adapters(model: &ModelSpec, lora: &LoraOptions) -> Result<u64> {
    let lora = lora.resolved(model)?;
    let of = |(name, layer): &(String, LayerSpec)| {
        let magnitudes = if lora.dora { layer.out } else { 0 };
        Some((lora.of_layer(name)?.rank * (layer.out + layer.inner) + magnitudes) as u64)
    };
    Ok(model.named_layers().iter().filter_map(of).sum())
}

/// Elements of the last large weight that is read.
pub(super) fn last(model: &ModelSpec) -> u64 {
    let slot = if model.tie_word_embeddings { Slot::DownProj } else { Slot::LmHead };
    model.layers_of(slot).last().map_or(0, LayerSpec::elements)
}
