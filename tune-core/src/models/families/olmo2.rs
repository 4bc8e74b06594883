//! OLMo 2: norms behind the halves, and over all queries and all keys of a token.

use super::super::fields::Fields;
use super::super::spec::{AttentionSpec, EmbeddingSpec, HeadNorm, ModelSpec, Norms};
use super::common::{Defaults, Sizes, padding};
use super::rope;
use crate::Result;
use crate::kernels::Activation;

pub(super) fn spec(fields: &Fields<'_>) -> Result<ModelSpec> {
    let sizes = Sizes::read(fields, Defaults { eps: Some(1e-5), ..Defaults::default() })?;
    let activation = fields.activation("hidden_act", Activation::Silu)?;
    let table = rope::table(fields, &sizes, Default::default())?;
    let bias = fields.bool("attention_bias", false)?;
    let model = sizes.model(fields, vec![table], Norms::After, |_| {
        let head_norm = Some(HeadNorm::All);
        let attention = AttentionSpec { head_norm, input_bias: bias, output_bias: bias, ..sizes.attention() };
        (attention, sizes.mlp(activation))
    })?;
    let padding = padding(fields, sizes.vocab, Some(1));
    Ok(ModelSpec { embedding: EmbeddingSpec { padding, ..model.embedding }, ..model })
}
