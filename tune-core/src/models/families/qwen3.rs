//! Qwen3: each head's queries and keys are normed.

use super::super::fields::Fields;
use super::super::spec::{AttentionSpec, HeadNorm, ModelSpec, Norms};
use super::common::{Defaults, Sizes};
use super::rope;
use crate::Result;
use crate::kernels::Activation;

pub(super) fn spec(fields: &Fields<'_>) -> Result<ModelSpec> {
    let sizes = Sizes::read(fields, Defaults { head_dim: Some(128), ..Defaults::default() })?;
    let activation = fields.activation("hidden_act", Activation::Silu)?;
    let table = rope::table(fields, &sizes, Default::default())?;
    let from = fields.integer("max_window_layers")?.unwrap_or(28);
    let windows = sizes.qwen_windows(fields, from)?;
    let bias = fields.bool("attention_bias", false)?;
    sizes.model(fields, vec![table], Norms::Before, |i| {
        let head_norm = Some(HeadNorm::Each);
        let mut attention = AttentionSpec { head_norm, input_bias: bias, output_bias: bias, ..sizes.attention() };
        attention.shape.window = windows[i];
        (attention, sizes.mlp(activation))
    })
}
