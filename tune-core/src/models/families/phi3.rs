//! Phi-3, Phi-3.5 and Phi-4: layers that share an input are stored as one.

use super::super::fields::Fields;
use super::super::spec::{AttentionSpec, EmbeddingSpec, MlpSpec, ModelSpec, Norms};
use super::common::{Defaults, Sizes, padding};
use super::rope::{self, RopeDefaults};
use crate::Result;
use crate::kernels::Activation;

pub(super) fn spec(fields: &Fields<'_>) -> Result<ModelSpec> {
    let sizes = Sizes::read(fields, Defaults { eps: Some(1e-5), ..Defaults::default() })?;
    let activation = fields.activation("hidden_act", Activation::Silu)?;
    let table = rope::table(fields, &sizes, RopeDefaults { is_phi: true, ..RopeDefaults::default() })?;
    let window = fields.optional_size("sliding_window")?;
    // Dropout on the residual stream and on embeddings; biases that the class does not have.
    fields.off(&["resid_pdrop", "embd_pdrop", "attention_bias", "mlp_bias", "lm_head_bias"])?;
    // Written into Phi-4-mini's file, and read by no class.
    fields.unused(&["full_attn_mod", "interpolate_factor"]);
    let model = sizes.model(fields, vec![table], Norms::Before, |_| {
        let mut attention = AttentionSpec { fused: true, ..sizes.attention() };
        attention.shape.window = window;
        (attention, MlpSpec::Gated { inner: sizes.inner, activation, bias: false, fused: true })
    })?;
    let padding = padding(fields, sizes.vocab, Some(32000));
    Ok(ModelSpec { embedding: EmbeddingSpec { padding, ..model.embedding }, ..model })
}
