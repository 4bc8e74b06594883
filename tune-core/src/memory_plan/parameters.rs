//! Parameters by the shape of a model.

use crate::models::{LayerSpec, LoraOptions, ModelSpec, Slot};

/// Elements of the adapters.
pub(crate) fn of_adapters(model: &ModelSpec, lora: &LoraOptions) -> u64 {
    let named = model.named_layers().into_iter();
    let of = |(name, layer): (String, LayerSpec)| {
        Some((lora.of_layer(&name, layer.site)?.rank * (layer.out + layer.inner)) as u64)
    };
    named.filter_map(of).sum()
}

/// Elements of the last large weight that is read.
pub(super) fn last(model: &ModelSpec) -> u64 {
    let slot = if model.tie_word_embeddings { Slot::DownProj } else { Slot::LmHead };
    model.layers_of(slot).last().map_or(0, LayerSpec::elements)
}
