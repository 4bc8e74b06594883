//! Parameters by the shape of a model.

use crate::models::{DecoderConfig, LoraOptions, Slot};

/// Elements of the adapters.
pub(crate) fn of_adapters(model: &DecoderConfig, lora: &LoraOptions) -> u64 {
    let of = |&slot: &Slot| {
        let (out, inner) = model.sides(slot);
        model.count(slot) * (lora.rank * (out + inner)) as u64
    };
    lora.modules.iter().map(of).sum()
}

/// Elements of the last large weight that is read.
pub(super) fn last(model: &DecoderConfig) -> u64 {
    model.elements(if model.tie_word_embeddings { Slot::DownProj } else { Slot::LmHead })
}
