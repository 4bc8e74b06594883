//! Which tensors and settings of which architectures become which of Hugging Face's.
//!
//! A family is a table; a new one is a new table and what its config has beyond the common keys.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::header::TensorInfo;
use super::metadata::{Metadata, decimal};
use crate::Result;
use crate::checkpoint::source::DataFile;
use crate::models::Dim::{self, Hidden, Intermediate, Keys, Queries, Vocab};
use crate::models::Half;
use crate::models::Slot::{self, DownProj, GateProj, KProj, LmHead, OProj, QProj, UpProj, VProj};

/// A parameter in Hugging Face's terms.
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) info: TensorInfo,
    pub(super) rotary_heads: Option<usize>,
}

/// A tensor in Hugging Face's terms.
#[derive(Clone, Copy)]
enum Of {
    Weight(Slot),
    Bias(Slot),
    /// Of a half of a block.
    Norm(Half),
    Named(&'static str, &'static [Dim]),
}
use Of::{Bias, Named, Norm, Weight};

impl Of {
    /// Its name, in a block without the block's.
    fn name(self) -> String {
        match self {
            Self::Weight(slot) => format!("{}.weight", slot.path()),
            Self::Bias(slot) => format!("{}.bias", slot.path()),
            Self::Norm(half) => format!("{}.weight", half.norm()),
            Self::Named(name, _) => name.to_string(),
        }
    }

    fn shape(self) -> Vec<Dim> {
        match self {
            Self::Weight(slot) => slot.dims().to_vec(),
            Self::Bias(slot) => vec![slot.dims()[0]],
            Self::Norm(_) => vec![Hidden],
            Self::Named(_, shape) => shape.to_vec(),
        }
    }
}

/// What was done to a tensor on its way into the file.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    None,
    /// The two rotary halves of every head were interleaved, row by row.
    Interleaved,
}

#[derive(Clone, Copy, PartialEq)]
enum Need {
    /// Every file has it.
    Always,
    /// Every layer has it or none.
    AllOrNone,
}

/// One row of a family's table.
struct Row {
    gguf: &'static str,
    of: Of,
    need: Need,
    change: Change,
}

const fn row(gguf: &'static str, of: Of) -> Row {
    Row { gguf, of, need: Need::Always, change: Change::None }
}

impl Row {
    const fn optional(mut self) -> Self {
        self.need = Need::AllOrNone;
        self
    }
    const fn interleaved(mut self) -> Self {
        self.change = Change::Interleaved;
        self
    }
}

/// Whether the first layer has a tensor of that GGUF name.
type Has<'a> = dyn Fn(&str) -> bool + 'a;

/// An architecture of llama.cpp's.
struct Family {
    /// `general.architecture`.
    architecture: &'static str,
    model: &'static [Row],
    /// After `blk.N.` and `model.layers.N.`.
    layer: &'static [Row],
    /// Adds to the config what is not common to all families.
    config: fn(&Metadata, &Has<'_>, &mut Map<String, Value>) -> Result<()>,
}

const FAMILIES: &[Family] = &[Family {
    architecture: "llama",
    model: &[
        row("token_embd.weight", Named("model.embed_tokens.weight", &[Vocab, Hidden])),
        row("output_norm.weight", Named("model.norm.weight", &[Hidden])),
        row("output.weight", Weight(LmHead)).optional(),
    ],
    layer: &[
        row("attn_norm.weight", Norm(Half::Attention)),
        row("attn_q.weight", Weight(QProj)).interleaved(),
        row("attn_k.weight", Weight(KProj)).interleaved(),
        row("attn_v.weight", Weight(VProj)),
        row("attn_output.weight", Weight(OProj)),
        row("attn_q.bias", Bias(QProj)).interleaved().optional(),
        row("attn_k.bias", Bias(KProj)).interleaved().optional(),
        row("attn_v.bias", Bias(VProj)).optional(),
        row("attn_output.bias", Bias(OProj)).optional(),
        row("ffn_norm.weight", Norm(Half::Mlp)),
        row("ffn_gate.weight", Weight(GateProj)),
        row("ffn_up.weight", Weight(UpProj)),
        row("ffn_down.weight", Weight(DownProj)),
        row("ffn_gate.bias", Bias(GateProj)).optional(),
        row("ffn_up.bias", Bias(UpProj)).optional(),
        row("ffn_down.bias", Bias(DownProj)).optional(),
    ],
    config: llama,
}];

/// What llama.cpp calls `llama` is Llama or Mistral; only the latter has a sliding window.
fn llama(metadata: &Metadata, has: &Has<'_>, config: &mut Map<String, Value>) -> Result<()> {
    if let Some(experts) = metadata.u64("llama.expert_count")?.filter(|&n| n > 0) {
        return Err(metadata.bad(format!("is a mixture of {experts} experts, which is not supported in GGUF files")));
    }
    match metadata.u64("llama.attention.sliding_window")? {
        Some(window) if window > 0 => {
            config.insert("architectures".into(), json!(["MistralForCausalLM"]));
            config.insert("model_type".into(), "mistral".into());
            config.insert("sliding_window".into(), window.into());
        }
        _ => {
            config.insert("architectures".into(), json!(["LlamaForCausalLM"]));
            config.insert("model_type".into(), "llama".into());
            let biases = ["attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"];
            config.insert("attention_bias".into(), one_bias(metadata, has, &biases)?.into());
            let biases = ["ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"];
            config.insert("mlp_bias".into(), one_bias(metadata, has, &biases)?.into());
        }
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

/// The sizes that shapes are checked against.
struct Sizes {
    vocab: usize,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Sizes {
    fn of(&self, dim: Dim) -> usize {
        match dim {
            Vocab => self.vocab,
            Hidden => self.hidden,
            Intermediate => self.intermediate,
            Queries => self.heads * self.head_dim,
            Keys => self.kv_heads * self.head_dim,
        }
    }
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
    let quantized = tensors.iter().any(|t| t.dtype.block_size() > 1);
    let mut by_name: BTreeMap<String, TensorInfo> = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
    let sizes = sizes(metadata, architecture, &by_name)?;

    let mut config = common(metadata, architecture, &sizes)?;
    config.insert("tie_word_embeddings".into(), (!by_name.contains_key("output.weight")).into());
    // Quantized weights were bf16 before, as a rule, and come back as near to that as to f32.
    let half = quantized || !by_name.values().any(|t| t.shape.len() > 1 && t.dtype.type_size() == 4);
    config.insert("torch_dtype".into(), if half { "bfloat16" } else { "float32" }.into());
    let freqs = by_name.remove("rope_freqs.weight");
    if let Some(scaling) = rope_scaling(metadata, architecture, &sizes, file, freqs, &config)? {
        config.insert("rope_scaling".into(), scaling);
    }
    let has = |name: &str| by_name.contains_key(&format!("blk.0.{name}"));
    (family.config)(metadata, &has, &mut config)?;
    let in_layers: Vec<bool> = family.layer.iter().map(|row| row.need == Need::Always || has(row.gguf)).collect();

    let mut parameters = Vec::new();
    let mut take = |row: &Row, gguf: &str, hf: String, wanted: bool| -> Result<()> {
        let Some(info) = by_name.remove(gguf) else {
            if wanted {
                return Err(metadata.bad(format!("has no tensor `{gguf}`; the file is not complete")));
            }
            return Ok(());
        };
        let shape: Vec<usize> = row.of.shape().into_iter().map(|d| sizes.of(d)).collect();
        if info.shape != shape {
            return Err(
                metadata.bad(format!("tensor `{gguf}` has the shape {:?}; its metadata lead to {shape:?}", info.shape))
            );
        }
        let rotary_heads = (row.change == Change::Interleaved).then(|| shape[0] / sizes.head_dim);
        parameters.push(Parameter { name: hf, info, rotary_heads });
        Ok(())
    };
    for row in family.model {
        take(row, row.gguf, row.of.name(), row.need == Need::Always)?;
    }
    for layer in 0..sizes.layers {
        for (row, &wanted) in family.layer.iter().zip(&in_layers) {
            let gguf = format!("blk.{layer}.{}", row.gguf);
            take(row, &gguf, format!("model.layers.{layer}.{}", row.of.name()), wanted)?;
        }
    }
    // Left over from old converters: the rotary frequencies, which follow from the config.
    by_name.retain(|name, _| !name.ends_with("attn_rot_embd.weight"));
    if let Some(name) = by_name.keys().next() {
        return Err(metadata.bad(format!(
            "has the tensor `{name}`, for which a `{architecture}` model of {} layers has no use{}",
            sizes.layers,
            if by_name.len() > 1 { format!(" (and {} more)", by_name.len() - 1) } else { String::new() }
        )));
    }
    Ok((Value::Object(config), parameters))
}

fn sizes(metadata: &Metadata, architecture: &str, tensors: &BTreeMap<String, TensorInfo>) -> Result<Sizes> {
    let get = |key: &str, default: Option<usize>| -> Result<usize> {
        let key = format!("{architecture}.{key}");
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
    if values != head_dim || rotated != head_dim {
        return Err(metadata.bad(format!(
            "has attention heads of size {head_dim} with values of size {values} and {rotated} rotated dimensions; only equal sizes are supported"
        )));
    }
    let vocab = tensors
        .get("token_embd.weight")
        .map(|t| t.shape[0])
        .ok_or_else(|| metadata.bad("has no tensor `token_embd.weight`; the file is not complete"))?;
    Ok(Sizes {
        vocab,
        hidden,
        intermediate: get("feed_forward_length", None)?,
        layers: get("block_count", None)?,
        heads,
        kv_heads,
        head_dim,
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

/// How positions beyond the original context are scaled, as `rope_scaling` says it.
fn rope_scaling(
    metadata: &Metadata,
    architecture: &str,
    sizes: &Sizes,
    file: &DataFile,
    freqs: Option<TensorInfo>,
    config: &Map<String, Value>,
) -> Result<Option<Value>> {
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let original = metadata.u64(&key("original_context_length"))?;
    if let Some(info) = freqs {
        let theta = config.get("rope_theta").and_then(Value::as_f64).unwrap_or(10000.0);
        let factors = read_factors(metadata, sizes, file, &info)?;
        return llama3_scaling(theta, sizes.head_dim, &factors, original)
            .map(Some)
            .ok_or_else(|| {
                metadata.bad(
                    "its `rope_freqs.weight` is not Llama 3's scaling with the usual parameters, and no other kind is known to be stored that way",
                )
            });
    }
    let kind = metadata.text(&key("type"))?.unwrap_or("none");
    let factor = metadata.f64(&key("factor"))?;
    match (kind, factor) {
        ("none", None) => Ok(None),
        (_, None) => Err(metadata.bad(format!("has `{}` but no factor", key("type")))),
        // Old files have a factor and no type; it was linear then.
        ("none" | "linear", Some(factor)) => {
            Ok((factor != 1.0).then(|| json!({"rope_type": "linear", "factor": factor})))
        }
        ("yarn", Some(factor)) => {
            let mut scaling = json!({"rope_type": "yarn", "factor": factor});
            if let (Some(length), Some(object)) = (original, scaling.as_object_mut()) {
                object.insert("original_max_position_embeddings".into(), length.into());
            }
            Ok(Some(scaling))
        }
        (other, _) => {
            Err(metadata.bad(format!("scales its rotary embedding by `{other}`, which is not supported in GGUF files")))
        }
    }
}

fn read_factors(metadata: &Metadata, sizes: &Sizes, file: &DataFile, info: &TensorInfo) -> Result<Vec<f64>> {
    let half = sizes.head_dim / 2;
    if info.shape != [half] || info.bytes != 4 * half as u64 {
        return Err(metadata
            .bad(format!("`rope_freqs.weight` has the shape {:?}; {half} f32 numbers were expected", info.shape)));
    }
    let mut raw = vec![0; info.bytes as usize];
    file.read_at(&mut raw, info.start)?;
    Ok(raw.as_chunks::<4>().0.iter().map(|&b| decimal(f32::from_le_bytes(b))).collect())
}

/// The parameters of Llama 3's scaling that give these divisors of the frequencies: the factor is the
/// largest of them; of the rest, all published models share the values tried here.
fn llama3_scaling(theta: f64, head_dim: usize, factors: &[f64], original: Option<u64>) -> Option<Value> {
    let factor = factors.iter().copied().fold(1.0, f64::max);
    let (low, high) = (1.0, 4.0);
    [original, Some(8192)].into_iter().flatten().find_map(|length| {
        let fits = factors.iter().enumerate().all(|(i, &given)| {
            let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
            let turns = length as f64 / wavelength;
            let expected = if turns > high {
                1.0
            } else if turns < low {
                factor
            } else {
                let smooth = (turns - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            (given - expected).abs() <= 1e-4 * expected
        });
        fits.then(|| {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            })
        })
    })
}
