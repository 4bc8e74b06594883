//! What the families share.

use super::super::fields::Fields;
use super::super::spec::{AttentionSpec, BlockSpec, EmbeddingSpec, MlpSpec, ModelSpec, NormSpec, Norms};
use crate::Result;
use crate::kernels::{Activation, AttentionShape, RotarySpec};

/// More blocks or experts than any model has: a number in a file alone is not to fill the memory.
const MOST_BLOCKS: usize = 4096;
pub(super) const MOST_EXPERTS: usize = 1024;

/// The sizes of a model, and what of them its class in transformers has a default for.
pub(super) struct Sizes {
    pub(super) vocab: usize,
    pub(super) hidden: usize,
    pub(super) inner: usize,
    pub(super) blocks: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) longest: usize,
    pub(super) eps: f64,
    pub(super) tied: bool,
}

/// Where `config.json` says nothing; `None` where something must be said.
#[derive(Clone, Copy, Default)]
pub(super) struct Defaults {
    pub(super) vocab: Option<usize>,
    pub(super) heads: Option<usize>,
    /// As many as there are query heads, if `None`.
    pub(super) kv_heads: Option<usize>,
    /// The width of the model divided by the number of heads, if `None`.
    pub(super) head_dim: Option<usize>,
    pub(super) longest: Option<usize>,
    /// 1e-6, if `None`.
    pub(super) eps: Option<f64>,
    pub(super) tied: bool,
}

impl Sizes {
    pub(super) fn read(fields: &Fields<'_>, defaults: Defaults) -> Result<Self> {
        let size = |name, default: Option<usize>| match default {
            Some(default) => Ok(fields.optional_size(name)?.unwrap_or(default)),
            None => fields.size(name),
        };
        let hidden = fields.size("hidden_size")?;
        let heads = size("num_attention_heads", defaults.heads)?;
        // Written as null, it is the number of query heads in every class.
        let kv_heads = size("num_key_value_heads", Some(defaults.kv_heads.unwrap_or(heads)))?;
        if heads % kv_heads != 0 {
            return Err(fields.error(format!(
                "num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})"
            )));
        }
        let head_dim = match fields.optional_size("head_dim")?.or(defaults.head_dim) {
            Some(d) => d,
            None if hidden % heads == 0 => hidden / heads,
            None => {
                return Err(fields.error(format!(
                    "hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads}), \
                     or head_dim must be given"
                )));
            }
        };
        if head_dim % 2 != 0 {
            return Err(fields.error(format!("head_dim ({head_dim}) must be even for rotary embeddings")));
        }
        fields.off(&["attention_dropout"])?;
        Ok(Self {
            vocab: size("vocab_size", defaults.vocab)?,
            hidden,
            inner: fields.size("intermediate_size")?,
            blocks: fields.count("num_hidden_layers", MOST_BLOCKS)?,
            heads,
            kv_heads,
            head_dim,
            longest: size("max_position_embeddings", defaults.longest)?,
            eps: fields.optional_number("rms_norm_eps")?.or(defaults.eps).unwrap_or(1e-6),
            tied: fields.bool("tie_word_embeddings", defaults.tied)?,
        })
    }

    /// Attention as Llama has it.
    pub(super) fn attention(&self) -> AttentionSpec {
        AttentionSpec {
            shape: AttentionShape {
                heads: self.heads,
                kv_heads: self.kv_heads,
                head_dim: self.head_dim,
                scale: 1.0 / (self.head_dim as f64).sqrt(),
                window: None,
                softcap: None,
            },
            rotary: Some(0),
            head_norm: None,
            input_bias: false,
            output_bias: false,
            fused: false,
        }
    }

    /// A gated network as Llama has it.
    pub(super) fn mlp(&self, activation: Activation) -> MlpSpec {
        MlpSpec::Gated { inner: self.inner, activation, bias: false, fused: false }
    }

    /// A model as Llama is one, whose blocks are `block`.
    pub(super) fn model(
        &self,
        fields: &Fields<'_>,
        rotary: Vec<RotarySpec>,
        norms: Norms,
        block: impl Fn(usize) -> (AttentionSpec, MlpSpec),
    ) -> Result<ModelSpec> {
        let block = |index| {
            let (attention, mlp) = block(index);
            BlockSpec { norms, attention, mlp }
        };
        Ok(ModelSpec {
            model_type: fields.text("model_type")?.to_owned(),
            vocab_size: self.vocab,
            scores: None,
            hidden_size: self.hidden,
            max_position_embeddings: self.longest,
            tie_word_embeddings: self.tied,
            embedding: EmbeddingSpec::default(),
            norm: NormSpec { eps: self.eps, from_one: false },
            rotary,
            blocks: (0..self.blocks).map(block).collect(),
            logit_softcap: None,
        })
    }

    /// Which blocks look back through a window only, by `layer_types`, or by `default` where there are none.
    pub(super) fn sliding(&self, fields: &Fields<'_>, default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        const WANTED: &str = "a list of \"full_attention\" and \"sliding_attention\"";
        let types = fields.list("layer_types", WANTED, |v| match v.as_str() {
            Some("full_attention") => Some(false),
            Some("sliding_attention") => Some(true),
            _ => None,
        })?;
        match types {
            None => Ok((0..self.blocks).map(default).collect()),
            Some(types) if types.len() == self.blocks => Ok(types),
            Some(types) => Err(fields.bad(
                "layer_types",
                format!("has {} entries for {} layers (num_hidden_layers)", types.len(), self.blocks),
            )),
        }
    }

    /// The windows of blocks by the keys of Qwen: `use_sliding_window`, `sliding_window`, and from layer
    /// `max_window_layers` on, where `layer_types` does not say it.
    pub(super) fn qwen_windows(&self, fields: &Fields<'_>, from: usize) -> Result<Vec<Option<usize>>> {
        let used = fields.bool("use_sliding_window", false)?;
        let window = fields.optional_size("sliding_window")?.or(Some(4096)).filter(|_| used);
        let sliding = self.sliding(fields, |i| window.is_some() && i >= from)?;
        if window.is_none() && sliding.contains(&true) {
            return Err(fields.bad("layer_types", "has sliding_attention, and use_sliding_window is false"));
        }
        Ok(sliding.into_iter().map(|slides| window.filter(|_| slides)).collect())
    }
}

/// The token that fills up rows, where `config.json` names one, or `default`, where it says nothing.
///
/// Its row in the embedding table is no part of what transformers trains where it enters the model.
pub(super) fn padding(fields: &Fields<'_>, vocab: usize, default: Option<u32>) -> Option<u32> {
    let default = if fields.has("pad_token_id") { None } else { default };
    let id = match fields.get("pad_token_id").and_then(serde_json::Value::as_u64) {
        Some(id) => u32::try_from(id).ok(),
        None => default,
    };
    id.filter(|&id| (id as usize) < vocab)
}
