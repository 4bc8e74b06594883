//! Gemma 3, its part for text: five of six blocks have a window and a rotary table of their own.

use super::super::fields::Fields;
use super::super::spec::{AttentionSpec, HeadNorm, ModelSpec, Norms};
use super::common::{Defaults, Sizes};
use super::{gemma, rope};
use crate::Result;
use crate::kernels::{Activation, RopeScaling, RotarySpec};

/// Base of the frequencies in blocks that see everything, and in those with a window.
const GLOBAL: f64 = 1e6;
const LOCAL: f64 = 1e4;

pub(super) fn spec(fields: &Fields<'_>) -> Result<ModelSpec> {
    let sizes = Sizes::read(
        fields,
        Defaults {
            vocab: Some(262_208),
            heads: Some(8),
            kv_heads: Some(4),
            head_dim: Some(256),
            longest: Some(131_072),
            eps: None,
            tied: true,
        },
    )?;
    let activation = fields.activation("hidden_activation", Activation::GeluTanh)?;
    let scale = fields.optional_number("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5);
    let window = fields.optional_size("sliding_window")?.unwrap_or(4096);
    let pattern = fields.optional_size("sliding_window_pattern")?.unwrap_or(6);
    let sliding = sizes.sliding(fields, |i| (i + 1) % pattern != 0)?;
    let logit_softcap = fields.optional_number("final_logit_softcapping")?;
    fields.off(&["attention_bias", "attn_logit_softcapping", "use_bidirectional_attention"])?;
    fields.unused(&["hidden_act"]);
    let tables = tables(fields, &sizes)?;
    let model = sizes.model(fields, tables, Norms::Both, |i| {
        let rotary = Some(usize::from(sliding[i]));
        let mut attention = AttentionSpec { rotary, head_norm: Some(HeadNorm::Each), ..sizes.attention() };
        attention.shape.scale = scale;
        attention.shape.window = sliding[i].then_some(window);
        (attention, sizes.mlp(activation))
    })?;
    Ok(ModelSpec { logit_softcap, ..gemma::of_gemma(fields, model) })
}

/// The table of blocks that see everything, and that of the others.
fn tables(fields: &Fields<'_>, sizes: &Sizes) -> Result<Vec<RotarySpec>> {
    let global = fields.optional_number("rope_theta")?.unwrap_or(GLOBAL);
    let local = fields.optional_number("rope_local_base_freq")?.unwrap_or(LOCAL);
    let plain = |theta| RotarySpec { dim: sizes.head_dim, theta, scaling: RopeScaling::None };
    let (old, new) = (fields.object("rope_scaling")?, fields.object("rope_parameters")?);
    let mut tables = vec![plain(global), plain(local)];
    if let Some(new) = new {
        for (table, name) in tables.iter_mut().zip(["full_attention", "sliding_attention"]) {
            if let Some(own) = new.object(name)? {
                *table = rope::with(fields, &own, sizes, table.theta, false)?;
                own.finish()?;
            }
        }
        new.finish()?;
    }
    if let Some(old) = old {
        tables[0] = rope::with(fields, &old, sizes, global, false)?;
        old.finish()?;
    }
    Ok(tables)
}

/// The model of text in one of text and images; of images nothing is trained.
pub(super) fn of_multimodal(fields: &Fields<'_>) -> Result<ModelSpec> {
    let Some(text) = fields.object("text_config")? else { return Err(fields.bad("text_config", "is missing")) };
    fields.unused(&[
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
        "mm_tokens_per_image",
        "tie_word_embeddings",
        "vision_config",
    ]);
    let model = spec(&text)?;
    text.finish()?;
    Ok(model)
}
