//! Mistral: Llama with a window.

use super::super::fields::Fields;
use super::super::spec::{ModelSpec, Norms};
use super::common::{Defaults, Sizes};
use super::rope;
use crate::Result;
use crate::kernels::Activation;

pub(super) fn spec(fields: &Fields<'_>) -> Result<ModelSpec> {
    let sizes = Sizes::read(fields, Defaults::default())?;
    let activation = fields.activation("hidden_act", Activation::Silu)?;
    let table = rope::table(fields, &sizes, Default::default())?;
    let window = fields.optional_size("sliding_window")?;
    fields.off(&["attention_bias", "mlp_bias"])?;
    sizes.model(fields, vec![table], Norms::Before, |_| {
        let mut attention = sizes.attention();
        attention.shape.window = window;
        (attention, sizes.mlp(activation))
    })
}
