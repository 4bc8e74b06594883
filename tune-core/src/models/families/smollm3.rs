//! SmolLM3: Llama with no positions in every fourth block.

use super::super::fields::Fields;
use super::super::spec::{AttentionSpec, EmbeddingSpec, MlpSpec, ModelSpec, Norms};
use super::common::{Defaults, Sizes, padding};
use super::rope::{self, RopeDefaults};
use crate::Result;
use crate::kernels::Activation;

pub(super) fn spec(fields: &Fields<'_>) -> Result<ModelSpec> {
    let sizes = Sizes::read(fields, Defaults { kv_heads: Some(4), tied: true, ..Defaults::default() })?;
    let activation = fields.activation("hidden_act", Activation::Silu)?;
    let table = rope::table(fields, &sizes, RopeDefaults { theta: 2e6, ..RopeDefaults::default() })?;
    let interval = fields.optional_size("no_rope_layer_interval")?.unwrap_or(4);
    let turned = fields.list("no_rope_layers", "a list of 0 and 1", |v| v.as_u64().filter(|v| *v < 2))?;
    let turned = turned.unwrap_or_else(|| (0..sizes.blocks).map(|i| u64::from((i + 1) % interval != 0)).collect());
    if turned.len() < sizes.blocks {
        let what = format!("has {} entries for {} layers (num_hidden_layers)", turned.len(), sizes.blocks);
        return Err(fields.bad("no_rope_layers", what));
    }
    let slides = fields.bool("use_sliding_window", false)?;
    let window = fields.optional_size("sliding_window")?.filter(|_| slides);
    let sliding = sizes.sliding(fields, |i| window.is_some() && turned[i] == 0)?;
    if window.is_none() && sliding.contains(&true) {
        return Err(fields.bad("layer_types", "has sliding_attention, and there is no window"));
    }
    fields.unused(&["max_window_layers"]);
    let (bias, mlp_bias) = (fields.bool("attention_bias", false)?, fields.bool("mlp_bias", false)?);
    let model = sizes.model(fields, vec![table], Norms::Before, |i| {
        let rotary = (turned[i] == 1).then_some(0);
        let mut attention = AttentionSpec { rotary, input_bias: bias, output_bias: bias, ..sizes.attention() };
        attention.shape.window = window.filter(|_| sliding[i]);
        (attention, MlpSpec::Gated { inner: sizes.inner, activation, bias: mlp_bias, fused: false })
    })?;
    let padding = padding(fields, sizes.vocab, Some(128_004));
    Ok(ModelSpec { embedding: EmbeddingSpec { padding, ..model.embedding }, ..model })
}
