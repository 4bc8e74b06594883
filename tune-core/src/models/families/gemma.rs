//! Gemma (1): norms count from one, embeddings are scaled, the gate is a GELU.

use super::super::fields::Fields;
use super::super::spec::{EmbeddingSpec, ModelSpec, NormSpec, Norms};
use super::common::{Defaults, Sizes, padding};
use super::rope;
use crate::Result;
use crate::kernels::Activation;

pub(super) fn spec(fields: &Fields<'_>) -> Result<ModelSpec> {
    let defaults = Defaults { head_dim: Some(256), kv_heads: Some(16), tied: true, ..Defaults::default() };
    let sizes = Sizes::read(fields, defaults)?;
    // The first files say "gelu", and mean the approximation with tanh, as transformers does.
    let activation = match fields.optional_text("hidden_act")? {
        Some("gelu") => Activation::GeluTanh,
        _ => fields.activation("hidden_act", Activation::GeluTanh)?,
    };
    if fields.activation("hidden_activation", activation)? != activation {
        return Err(fields.bad("hidden_activation", "is another than `hidden_act`"));
    }
    let table = rope::table(fields, &sizes, Default::default())?;
    fields.off(&["attention_bias", "use_bidirectional_attention"])?;
    let model = sizes.model(fields, vec![table], Norms::Before, |_| (sizes.attention(), sizes.mlp(activation)))?;
    Ok(of_gemma(fields, model))
}

/// What all Gemmas have.
pub(super) fn of_gemma(fields: &Fields<'_>, model: ModelSpec) -> ModelSpec {
    ModelSpec {
        embedding: EmbeddingSpec {
            scale: Some((model.hidden_size as f64).sqrt()),
            padding: padding(fields, model.vocab_size, Some(0)),
        },
        norm: NormSpec { from_one: true, ..model.norm },
        ..model
    }
}
