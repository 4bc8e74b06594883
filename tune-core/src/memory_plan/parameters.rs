//! Parameters by the shape of a model.

use crate::models::{DecoderConfig, LoraOptions, Slot};

/// Elements of the adapters.
pub(crate) fn of_adapters(model: &DecoderConfig, lora: &LoraOptions) -> u64 {
    let of = |&slot: &Slot| {
        let (out, inner) = model.sides(slot);
        let ranks = match lora.layers.is_empty() {
            true => model.count(slot) * lora.rank as u64,
            false => {
                let is_of = |name: &str| name.rsplit('.').next() == Some(slot.name());
                lora.layers.iter().filter(|(name, _)| is_of(name)).map(|(_, of)| of.rank as u64).sum()
            }
        };
        ranks * (out + inner) as u64
    };
    lora.modules.iter().map(of).sum()
}

/// Elements of the last large weight that is read.
pub(super) fn last(model: &DecoderConfig) -> u64 {
    model.elements(if model.tie_word_embeddings { Slot::DownProj } else { Slot::LmHead })
}
