//! Parameters by the shape of a model.

use crate::Result;
use crate::models::{LayerSpec, LoraOptions, ModelSpec, Slot};

/// Elements of the adapters.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(crate) fn of_adapters(model: &ModelSpec, lora: &LoraOptions) -> Result<u64> {
    let lora = lora.resolved(model)?;
    let of = |(name, layer): &(String, LayerSpec)| Some((lora.of_layer(name)?.rank * (layer.out + layer.inner)) as u64);
    Ok(model.named_layers().iter().filter_map(of).sum())
}

/// Elements of the last large weight that is read.
pub(super) fn last(model: &ModelSpec) -> u64 {
    let slot = if model.tie_word_embeddings { Slot::DownProj } else { Slot::LmHead };
    model.layers_of(slot).last().map_or(0, LayerSpec::elements)
}
