//! What a model computes, as the metadata of a GGUF file say it: the inverse of `family`.
//!
//! Whether they say all of it is not judged here: what is written is read again, and is the same model or is refused.

use serde_json::Value as Json;

use super::family::{Family, of_model_type};
use super::quantize::{FileKind, Format};
use super::write::{Head, Outgoing, Value};
use crate::models::{MlpSpec, ModelSpec, RopeScaling, RotarySpec};
use crate::{Error, Result};

/// Tensors that follow from the config: what rotary frequencies are divided by.
pub(super) type Divisors = Vec<(Outgoing, Vec<f32>)>;

/// The family of a model.
///
/// # Errors
/// There is none in GGUF files.
pub(super) fn family_of(model: &ModelSpec) -> Result<&'static Family> {
    of_model_type(&model.model_type).ok_or_else(|| {
        Error::setup(format!("models of the kind `{}` cannot be written as GGUF files here", model.model_type))
    })
}

/// Puts the model's settings into the head of a file, and returns the tensors that belong to them.
///
/// # Errors
/// A model without blocks or positions, or whose positions are stretched in a way that files cannot say.
pub(super) fn put(head: &mut Head, model: &ModelSpec, config: &Json, name: &str, kind: FileKind) -> Result<Divisors> {
    let family = family_of(model)?;
    let architecture = family.architecture;
    let block = model.blocks.first().ok_or_else(|| Error::setup("the model has no blocks"))?;
    head.put("general.architecture", &Value::Text(architecture.into()));
    head.put("general.type", &Value::Text("model".into()));
    head.put("general.name", &Value::Text(name.into()));
    head.put("general.file_type", &Value::U32(kind.id()));
    head.put("general.quantization_version", &Value::U32(2));

    let mut number = |key: &str, value: usize| head.put(&format!("{architecture}.{key}"), &Value::U32(value as u32));
    let shape = block.attention.shape;
    let rotary = block.attention.rotary.or_else(|| model.blocks.iter().find_map(|block| block.attention.rotary));
    let table = rotary
        .and_then(|number| model.rotary.get(if architecture == "gemma3" { 0 } else { number }))
        .ok_or_else(|| Error::setup("the model has no positions, which a GGUF file cannot say"))?;
    number("vocab_size", model.vocab_size);
    number("context_length", model.max_position_embeddings);
    number("embedding_length", model.hidden_size);
    number("block_count", model.blocks.len());
    number("attention.head_count", shape.heads);
    number("attention.head_count_kv", shape.kv_heads);
    number("attention.key_length", shape.head_dim);
    number("attention.value_length", shape.head_dim);
    number("rope.dimension_count", table.dim);
    // With experts, that of a network for all tokens, which no block has; readers ask for it.
    let inner = config["intermediate_size"].as_u64().map_or(block.mlp.inner(), |inner| inner as usize);
    number("feed_forward_length", inner);
    if let MlpSpec::Experts { count, chosen, inner, .. } = block.mlp {
        number("expert_count", count);
        number("expert_used_count", chosen);
        number("expert_feed_forward_length", inner);
    }
    if let Some(window) = model.blocks.iter().find_map(|block| block.attention.shape.window) {
        number("attention.sliding_window", window);
    }
    let mut real = |key: &str, value: f64| head.put(&format!("{architecture}.{key}"), &Value::F32(value as f32));
    real("attention.layer_norm_rms_epsilon", model.norm.eps);
    real("rope.freq_base", table.theta);
    if let Some(cap) = shape.softcap {
        real("attn_logit_softcapping", cap);
    }
    if let Some(cap) = model.logit_softcap {
        real("final_logit_softcapping", cap);
    }
    stretch(head, architecture, table)
}

/// How positions beyond the trained length are stretched.
fn stretch(head: &mut Head, architecture: &str, table: &RotarySpec) -> Result<Divisors> {
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let tensor =
        |name: &str, factors: Vec<f32>| (Outgoing::new(name.to_owned(), vec![factors.len()], Format::F32), factors);
    let narrow = |factors: &[f64]| factors.iter().map(|&factor| factor as f32).collect::<Vec<f32>>();
    match &table.scaling {
        RopeScaling::None => Ok(Vec::new()),
        RopeScaling::Linear { factor } => {
            head.put(&key("type"), &Value::Text("linear".into()));
            head.put(&key("factor"), &Value::F32(*factor as f32));
            Ok(Vec::new())
        }
        RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
            head.put(&key("type"), &Value::Text("yarn".into()));
            head.put(&key("factor"), &Value::F32(*factor as f32));
            head.put(&key("original_context_length"), &Value::U32(*original_max_position_embeddings as u32));
            Ok(Vec::new())
        }
        RopeScaling::Llama3 { original_max_position_embeddings: original, .. } => {
            head.put(&key("original_context_length"), &Value::U32(*original as u32));
            Ok(vec![tensor("rope_freqs.weight", narrow(&table.divisors()))])
        }
        RopeScaling::LongRope { short_factor, long_factor, attention_factor, original_max_position_embeddings } => {
            head.put(&key("original_context_length"), &Value::U32(*original_max_position_embeddings as u32));
            head.put(&key("attn_factor"), &Value::F32(*attention_factor as f32));
            Ok(vec![
                tensor("rope_factors_long.weight", narrow(long_factor)),
                tensor("rope_factors_short.weight", narrow(short_factor)),
            ])
        }
        RopeScaling::Dynamic { .. } => {
            Err(Error::setup("the model stretches its positions by `dynamic` scaling, which a GGUF file cannot say"))
        }
    }
}
