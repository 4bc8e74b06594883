//! Which tensors and settings of llama.cpp's architectures become which of Hugging Face's.
//!
//! The metadata give a `config.json`, and the model that this describes says which tensors there must be, and their shapes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::header::{Kind, TensorInfo};
use super::layout::{Change, Names, Placed, layout};
use super::metadata::Metadata;
use super::rope;
use crate::Result;
use crate::checkpoint::source::DataFile;
use crate::models::ModelSpec;

/// A parameter in Hugging Face's terms.
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) info: TensorInfo,
    pub(super) change: Change,
}

/// An architecture of llama.cpp's.
pub(super) struct Family {
    /// `general.architecture`.
    pub(super) architecture: &'static str,
    /// `model_type` of Hugging Face, and its class.
    names: (&'static str, &'static str),
    /// Whether the rows of queries and keys are interleaved.
    pub(super) interleaved: bool,
    /// Adds to the config what is not common to all families.
    config: fn(&Metadata, &Sizes, &Has<'_>, &mut Map<String, Value>) -> Result<()>,
}

/// Whether the first layer has a tensor of that GGUF name.
type Has<'a> = dyn Fn(&str) -> bool + 'a;

const fn family(
    architecture: &'static str,
    names: (&'static str, &'static str),
    config: fn(&Metadata, &Sizes, &Has<'_>, &mut Map<String, Value>) -> Result<()>,
) -> Family {
    Family { architecture, names, interleaved: false, config }
}

const FAMILIES: &[Family] = &[
    Family { interleaved: true, ..family("llama", ("llama", "LlamaForCausalLM"), llama) },
    Family { interleaved: true, ..family("smollm3", ("smollm3", "SmolLM3ForCausalLM"), smollm3) },
    family("qwen2", ("qwen2", "Qwen2ForCausalLM"), |_, _, _, _| Ok(())),
    family("qwen3", ("qwen3", "Qwen3ForCausalLM"), |_, _, has, config| attention_bias(has, config)),
    family("qwen3moe", ("qwen3_moe", "Qwen3MoeForCausalLM"), qwen3_moe),
    family("gemma", ("gemma", "GemmaForCausalLM"), |_, _, _, config| gelu(config)),
    family("gemma2", ("gemma2", "Gemma2ForCausalLM"), gemma2),
    family("gemma3", ("gemma3_text", "Gemma3ForCausalLM"), gemma3),
    family("phi3", ("phi3", "Phi3ForCausalLM"), phi3),
    family("olmo2", ("olmo2", "Olmo2ForCausalLM"), |_, _, has, config| attention_bias(has, config)),
];

/// The architecture that llama.cpp has for a `model_type` of Hugging Face.
pub(super) fn of_model_type(model_type: &str) -> Option<&'static Family> {
    let known = if model_type == "mistral" { "llama" } else { model_type };
    FAMILIES.iter().find(|family| family.names.0 == known)
}

/// What llama.cpp calls `llama` is Llama or Mistral; only the latter has a sliding window.
fn llama(metadata: &Metadata, _: &Sizes, has: &Has<'_>, config: &mut Map<String, Value>) -> Result<()> {
    if let Some(experts) = metadata.u64("llama.expert_count")?.filter(|&n| n > 0) {
        return Err(metadata.bad(format!("is a mixture of {experts} experts, which is not supported in GGUF files")));
    }
    if let Some(window) = metadata.u64("llama.attention.sliding_window")?.filter(|&window| window > 0) {
        config.insert("architectures".into(), json!(["MistralForCausalLM"]));
        config.insert("model_type".into(), "mistral".into());
        config.insert("sliding_window".into(), window.into());
        return Ok(());
    }
    let biases = ["attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"];
    config.insert("attention_bias".into(), one_bias(metadata, has, &biases)?.into());
    let biases = ["ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"];
    config.insert("mlp_bias".into(), one_bias(metadata, has, &biases)?.into());
    Ok(())
}

/// Every fourth layer is without positions: llama.cpp does not store it.
fn smollm3(_: &Metadata, sizes: &Sizes, has: &Has<'_>, config: &mut Map<String, Value>) -> Result<()> {
    let turned: Vec<u32> = (1..=sizes.layers.min(4096)).map(|layer| u32::from(layer % 4 != 0)).collect();
    config.insert("no_rope_layers".into(), json!(turned));
    config.insert("no_rope_layer_interval".into(), 4.into());
    attention_bias(has, config)
}

fn attention_bias(has: &Has<'_>, config: &mut Map<String, Value>) -> Result<()> {
    config.insert("attention_bias".into(), has("attn_output.bias").into());
    Ok(())
}

fn qwen3_moe(metadata: &Metadata, _: &Sizes, has: &Has<'_>, config: &mut Map<String, Value>) -> Result<()> {
    for (key, name) in [
        ("expert_count", "num_experts"),
        ("expert_used_count", "num_experts_per_tok"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
    ] {
        let key = format!("qwen3moe.{key}");
        config.insert(name.into(), metadata.need(&key, metadata.u64(&key)?)?.into());
    }
    // llama.cpp knows no other: all blocks have experts, and the weights of the chosen ones sum to one.
    config.insert("norm_topk_prob".into(), true.into());
    config.insert("decoder_sparse_step".into(), 1.into());
    attention_bias(has, config)
}

/// The activation of all Gemmas.
fn gelu(config: &mut Map<String, Value>) -> Result<()> {
    config.insert("hidden_act".into(), "gelu_pytorch_tanh".into());
    config.insert("hidden_activation".into(), "gelu_pytorch_tanh".into());
    Ok(())
}

/// The scale of scores is not stored; llama.cpp tells the one size in which it differs by the number of its layers.
fn gemma_scale(sizes: &Sizes, layers: usize, config: &mut Map<String, Value>) {
    let scalar = if sizes.layers == layers { sizes.hidden / sizes.heads } else { sizes.head_dim };
    config.insert("query_pre_attn_scalar".into(), scalar.into());
}

fn gemma2(metadata: &Metadata, sizes: &Sizes, _: &Has<'_>, config: &mut Map<String, Value>) -> Result<()> {
    gemma_scale(sizes, 46, config);
    for (key, name, default) in [
        ("attn_logit_softcapping", "attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", "final_logit_softcapping", 30.0),
    ] {
        config.insert(name.into(), metadata.f64(&format!("gemma2.{key}"))?.unwrap_or(default).into());
    }
    let window = metadata.u64("gemma2.attention.sliding_window")?.unwrap_or(4096);
    config.insert("sliding_window".into(), window.into());
    gelu(config)
}

fn gemma3(metadata: &Metadata, sizes: &Sizes, _: &Has<'_>, config: &mut Map<String, Value>) -> Result<()> {
    gemma_scale(sizes, 62, config);
    let window = metadata.need("gemma3.attention.sliding_window", metadata.u64("gemma3.attention.sliding_window")?)?;
    config.insert("sliding_window".into(), window.into());
    config.insert("sliding_window_pattern".into(), 6.into());
    config.insert("rope_local_base_freq".into(), 10_000.0.into());
    gelu(config)
}

fn phi3(metadata: &Metadata, sizes: &Sizes, _: &Has<'_>, config: &mut Map<String, Value>) -> Result<()> {
    let window = metadata.u64("phi3.attention.sliding_window")?.filter(|&window| window > 0);
    config.insert("sliding_window".into(), json!(window));
    config.insert("partial_rotary_factor".into(), (sizes.rotated as f64 / sizes.head_dim as f64).into());
    if let Some(original) = metadata.u64("phi3.rope.scaling.original_context_length")? {
        config.insert("original_max_position_embeddings".into(), original.into());
    }
    Ok(())
}

/// Whether all of these tensors are there; some of them alone is something that the config cannot say.
fn one_bias(metadata: &Metadata, has: &Has<'_>, names: &[&str]) -> Result<bool> {
    let present = names.iter().filter(|n| has(n)).count();
    if present != 0 && present != names.len() {
        return Err(metadata.bad(format!("has only {present} of {names:?}; a Llama model has all of them or none")));
    }
    Ok(present > 0)
}

/// What the metadata say of sizes.
pub(super) struct Sizes {
    pub(super) vocab: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Elements of a head that are turned.
    pub(super) rotated: usize,
}

/// Makes the config and the list of parameters, and checks that names and shapes fit each other.
pub(super) fn describe(
    metadata: &Metadata,
    file: &DataFile,
    tensors: Vec<TensorInfo>,
) -> Result<(Value, Vec<Parameter>)> {
    let architecture = metadata.need("general.architecture", metadata.text("general.architecture")?)?;
    let Some(family) = FAMILIES.iter().find(|f| f.architecture == architecture) else {
        let known: Vec<&str> = FAMILIES.iter().map(|f| f.architecture).collect();
        return Err(metadata.bad(format!(
            "holds a model of the architecture `{architecture}`; GGUF files are read for: {}",
            known.join(", ")
        )));
    };
    let quantized = tensors.iter().any(|t| t.kind.block().0 > 1);
    let mut by_name: BTreeMap<String, TensorInfo> = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
    let sizes = sizes(metadata, family, &by_name)?;

    let mut config = common(metadata, architecture, &sizes)?;
    config.insert("architectures".into(), json!([family.names.1]));
    config.insert("model_type".into(), family.names.0.into());
    config.insert("tie_word_embeddings".into(), (!by_name.contains_key("output.weight")).into());
    // Quantized weights were bf16 before, as a rule, and come back as near to that as to f32.
    let half = quantized || !by_name.values().any(|t| t.shape.len() > 1 && t.kind == Kind::F32);
    config.insert("torch_dtype".into(), if half { "bfloat16" } else { "float32" }.into());
    let factors = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];
    let factors = factors.map(|name| by_name.remove(name));
    if let Some(scaling) = rope::scaling(metadata, architecture, &sizes, file, factors, &config)? {
        config.insert("rope_scaling".into(), scaling);
    }
    let has = |name: &str| by_name.contains_key(&format!("blk.0.{name}"));
    (family.config)(metadata, &sizes, &has, &mut config)?;
    let config = Value::Object(config);
    let model = ModelSpec::read(&config, None, "").map_err(|e| {
        metadata.bad(format!("describes a model that cannot be trained; in the words of a config.json: {e}"))
    })?;
    let parameters = parameters(metadata, family, &model, by_name)?;
    Ok((config, parameters))
}

/// The tensors of a model, all of them and no others.
fn parameters(
    metadata: &Metadata,
    family: &Family,
    model: &ModelSpec,
    mut by_name: BTreeMap<String, TensorInfo>,
) -> Result<Vec<Parameter>> {
    let mut found = Vec::new();
    for Placed { gguf, shape, names, change } in layout(model, family.interleaved) {
        let Some(info) = by_name.remove(&gguf) else {
            return Err(metadata.bad(format!("has no tensor `{gguf}`; the file is not complete")));
        };
        if info.shape != shape {
            return Err(
                metadata.bad(format!("tensor `{gguf}` has the shape {:?}; its metadata lead to {shape:?}", info.shape))
            );
        }
        match names {
            Names::One(name) => found.push(Parameter { name, info, change }),
            Names::Experts(names) => {
                let parts = names.len();
                let part = |(i, name)| Parameter { name, info: info.part(i, parts), change };
                found.extend(names.into_iter().enumerate().map(part));
            }
        }
    }
    // Left over from old converters: the rotary frequencies, which follow from the config.
    by_name.retain(|name, _| !name.ends_with("attn_rot_embd.weight"));
    if let Some(name) = by_name.keys().next() {
        return Err(metadata.bad(format!(
            "has the tensor `{name}`, for which a `{}` model of {} layers has no use{}",
            family.architecture,
            model.blocks.len(),
            if by_name.len() > 1 { format!(" (and {} more)", by_name.len() - 1) } else { String::new() }
        )));
    }
    Ok(found)
}

fn sizes(metadata: &Metadata, family: &Family, tensors: &BTreeMap<String, TensorInfo>) -> Result<Sizes> {
    let get = |key: &str, default: Option<usize>| -> Result<usize> {
        let key = format!("{}.{key}", family.architecture);
        let value = match metadata.u64(&key)? {
            // More than any model has, and far from overflow when multiplied.
            Some(n) if (1..=1 << 30).contains(&n) => Some(n as usize),
            Some(n) => return Err(metadata.bad(format!("metadata `{key}` is {n}"))),
            None => default,
        };
        metadata.need(&key, value)
    };
    let hidden = get("embedding_length", None)?;
    let heads = get("attention.head_count", None)?;
    let kv_heads = get("attention.head_count_kv", Some(heads))?;
    let head_dim = get("attention.key_length", Some(hidden / heads))?;
    let values = get("attention.value_length", Some(head_dim))?;
    let rotated = get("rope.dimension_count", Some(head_dim))?;
    if head_dim == 0 || head_dim % 2 == 1 || heads % kv_heads != 0 {
        return Err(metadata.bad(format!(
            "has {heads} attention heads of size {head_dim} over {kv_heads} key-value heads, which do not fit together"
        )));
    }
    // Phi alone turns a part of each head.
    if values != head_dim || (rotated != head_dim && family.architecture != "phi3") || rotated > head_dim {
        return Err(metadata.bad(format!(
            "has attention heads of size {head_dim} with values of size {values} and {rotated} rotated dimensions; only equal sizes are supported"
        )));
    }
    let vocab = tensors
        .get("token_embd.weight")
        .and_then(|t| t.shape.first().copied())
        .ok_or_else(|| metadata.bad("has no tensor `token_embd.weight`; the file is not complete"))?;
    Ok(Sizes {
        vocab,
        hidden,
        intermediate: get("feed_forward_length", None)?,
        layers: get("block_count", None)?,
        heads,
        kv_heads,
        head_dim,
        rotated,
    })
}

/// The keys that all families' configs have.
fn common(metadata: &Metadata, architecture: &str, sizes: &Sizes) -> Result<Map<String, Value>> {
    let key = |name: &str| format!("{architecture}.{name}");
    let eps = key("attention.layer_norm_rms_epsilon");
    let eps = metadata.need(&eps, metadata.f64(&eps)?)?;
    let context = key("context_length");
    let context = metadata.need(&context, metadata.u64(&context)?)?;
    let id = |name: &str| metadata.u64(&format!("tokenizer.ggml.{name}_token_id"));
    let config = json!({
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocab,
        "max_position_embeddings": context,
        "hidden_act": "silu",
        "rms_norm_eps": eps,
        "rope_theta": metadata.f64(&key("rope.freq_base"))?.unwrap_or(10000.0),
        "rope_scaling": null,
        "bos_token_id": id("bos")?,
        "eos_token_id": id("eos")?,
        "pad_token_id": id("padding")?,
    });
    match config {
        Value::Object(config) => Ok(config),
        _ => Ok(Map::new()),
    }
}
