//! Qwen3 with a mixture of experts in most blocks.

use super::super::fields::Fields;
use super::super::spec::{AttentionSpec, HeadNorm, MlpSpec, ModelSpec, Norms};
use super::common::{Defaults, MOST_EXPERTS, Sizes};
use super::rope;
use crate::Result;
use crate::kernels::Activation;

pub(super) fn spec(fields: &Fields<'_>) -> Result<ModelSpec> {
    let sizes = Sizes::read(fields, Defaults { kv_heads: Some(4), ..Defaults::default() })?;
    let activation = fields.activation("hidden_act", Activation::Silu)?;
    let table = rope::table(fields, &sizes, Default::default())?;
    // One window for all blocks, if any.
    let windows = sizes.qwen_windows(fields, 0)?;
    fields.unused(&["max_window_layers"]);
    let bias = fields.bool("attention_bias", false)?;
    // A loss of its own on the router's choices.
    fields.off(&["output_router_logits"])?;
    fields.unused(&["router_aux_loss_coef"]);
    let count = match fields.has("num_experts") {
        true => fields.count("num_experts", MOST_EXPERTS)?,
        false => fields.count("num_local_experts", MOST_EXPERTS)?,
    };
    fields.unused(&["num_local_experts"]);
    let experts = MlpSpec::Experts {
        count,
        chosen: fields.size("num_experts_per_tok")?,
        inner: fields.size("moe_intermediate_size")?,
        activation,
        renormalized: fields.bool("norm_topk_prob", false)?,
    };
    if let MlpSpec::Experts { chosen, .. } = experts
        && chosen > count
    {
        return Err(fields.bad("num_experts_per_tok", format!("is {chosen}, and there are {count} experts")));
    }
    let step = fields.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let layer = |v: &serde_json::Value| v.as_u64();
    let dense = fields.list("mlp_only_layers", "a list of numbers of layers", layer)?.unwrap_or_default();
    sizes.model(fields, vec![table], Norms::Before, |i| {
        let head_norm = Some(HeadNorm::Each);
        let mut attention = AttentionSpec { head_norm, input_bias: bias, output_bias: bias, ..sizes.attention() };
        attention.shape.window = windows[i];
        let sparse = (i + 1) % step == 0 && !dense.contains(&(i as u64));
        (attention, if sparse { experts.clone() } else { sizes.mlp(activation) })
    })
}
