//! Parameters by the shape of a model.

use crate::models::DecoderConfig;
use crate::peft::{LoraModule, LoraOptions};

/// Elements of a model's own weights; a tied output layer counts once.
pub(super) fn own(model: &DecoderConfig) -> u64 {
    let norms = (2 * model.num_hidden_layers + 1) * model.hidden_size;
    let linears: u64 = LoraModule::ALL.into_iter().map(|module| layers(model, module) * elements(model, module)).sum();
    let embedding = elements(model, LoraModule::LmHead);
    let tied = if model.tie_word_embeddings { embedding } else { 0 };
    linears + embedding - tied + norms as u64
}

/// Elements of the adapters.
pub(crate) fn of_adapters(model: &DecoderConfig, lora: &LoraOptions) -> u64 {
    let of = |&module: &LoraModule| {
        let (out, inner) = model.sides(module);
        layers(model, module) * (lora.rank * (out + inner)) as u64
    };
    lora.modules.iter().map(of).sum()
}

/// Elements of the last large weight that is read.
pub(super) fn last(model: &DecoderConfig) -> u64 {
    elements(model, if model.tie_word_embeddings { LoraModule::DownProj } else { LoraModule::LmHead })
}

fn elements(model: &DecoderConfig, module: LoraModule) -> u64 {
    let (out, inner) = model.sides(module);
    out as u64 * inner as u64
}

/// How many layers of a kind there are.
fn layers(model: &DecoderConfig, module: LoraModule) -> u64 {
    if module == LoraModule::LmHead { 1 } else { model.num_hidden_layers as u64 }
}
