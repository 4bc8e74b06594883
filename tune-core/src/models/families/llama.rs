//! Llama 2 to 3.3, SmolLM2, and what else calls itself a Llama.

use super::super::fields::Fields;
use super::super::spec::{AttentionSpec, MlpSpec, ModelSpec, Norms};
use super::common::{Defaults, Sizes};
use super::rope;
use crate::Result;
use crate::kernels::Activation;

pub(super) fn spec(fields: &Fields<'_>) -> Result<ModelSpec> {
    let sizes = Sizes::read(fields, Defaults::default())?;
    let activation = fields.activation("hidden_act", Activation::Silu)?;
    let table = rope::table(fields, &sizes, Default::default())?;
    let (bias, mlp_bias) = (fields.bool("attention_bias", false)?, fields.bool("mlp_bias", false)?);
    // Written into some files, and read by no Llama.
    fields.unused(&["sliding_window"]);
    sizes.model(fields, vec![table], Norms::Before, |_| {
        let attention = AttentionSpec { input_bias: bias, output_bias: bias, ..sizes.attention() };
        (attention, MlpSpec::Gated { inner: sizes.inner, activation, bias: mlp_bias, fused: false })
    })
}
