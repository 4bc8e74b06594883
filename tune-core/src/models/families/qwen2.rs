//! Qwen2 and Qwen2.5: queries, keys and values have biases; some blocks may have a window.

use super::super::fields::Fields;
use super::super::spec::{AttentionSpec, ModelSpec, Norms};
use super::common::{Defaults, Sizes};
use super::rope;
use crate::Result;
use crate::kernels::Activation;

pub(super) fn spec(fields: &Fields<'_>) -> Result<ModelSpec> {
    let sizes = Sizes::read(fields, Defaults::default())?;
    let activation = fields.activation("hidden_act", Activation::Silu)?;
    let table = rope::table(fields, &sizes, Default::default())?;
    let from = fields.integer("max_window_layers")?.unwrap_or(28);
    let windows = sizes.qwen_windows(fields, from)?;
    // Multimodal files of the same name have them; the class of the text model does not read them.
    fields.off(&["mlp_bias", "use_mrope"])?;
    sizes.model(fields, vec![table], Norms::Before, |i| {
        let mut attention = AttentionSpec { input_bias: true, ..sizes.attention() };
        attention.shape.window = windows[i];
        (attention, sizes.mlp(activation))
    })
}
