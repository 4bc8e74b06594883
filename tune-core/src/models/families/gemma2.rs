//! Gemma 2: norms on both sides of each half, a window in every other block, scores and logits that are capped.

use super::super::fields::Fields;
use super::super::spec::{ModelSpec, Norms};
use super::common::{Defaults, Sizes};
use super::{gemma, rope};
use crate::Result;
use crate::kernels::Activation;

pub(super) fn spec(fields: &Fields<'_>) -> Result<ModelSpec> {
    let defaults = Defaults { head_dim: Some(256), kv_heads: Some(4), tied: true, ..Defaults::default() };
    let sizes = Sizes::read(fields, defaults)?;
    let activation = fields.activation("hidden_activation", Activation::GeluTanh)?;
    let table = rope::table(fields, &sizes, Default::default())?;
    let scale = fields.optional_number("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5);
    let window = fields.optional_size("sliding_window")?.unwrap_or(4096);
    let sliding = sizes.sliding(fields, |i| i % 2 == 0)?;
    let softcap = fields.number_or_null("attn_logit_softcapping", 50.0)?;
    let logit_softcap = fields.number_or_null("final_logit_softcapping", 30.0)?;
    fields.off(&["attention_bias", "use_bidirectional_attention"])?;
    // Older names for what is said above, which the class does not read.
    fields.unused(&["hidden_act", "sliding_window_size"]);
    let model = sizes.model(fields, vec![table], Norms::Both, |i| {
        let mut attention = sizes.attention();
        attention.shape.scale = scale;
        attention.shape.softcap = softcap;
        attention.shape.window = sliding[i].then_some(window);
        (attention, sizes.mlp(activation))
    })?;
    Ok(ModelSpec { logit_softcap, ..gemma::of_gemma(fields, model) })
}
