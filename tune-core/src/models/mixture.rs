//! What a file of adapters can hold of the layers of a mixture of experts.
//!
//! A file has an adapter for each expert's layer, as transformers 4 had the layers. transformers 5 has the layers of all experts of
//! a block as one parameter, and gate and input as one; peft (0.21) puts what a file has together as it reads it, and says in
//! `peft/utils/transformers_weight_conversion.py` what it needs for that: whole blocks, gate and input with the output, one rank and
//! scale, no magnitudes. It takes what chooses experts, and in models with experts the MLPs of blocks without them, for parameters,
//! too.

use std::collections::BTreeMap;

use super::adapter::OfLayer;
use super::slots::{Half, Slot};
use super::spec::{LayerSpec, MlpSpec, ModelSpec, Site};
use crate::{Error, Result};

impl ModelSpec {
    /// Whether some of its blocks have experts.
    pub fn has_experts(&self) -> bool {
        self.blocks.iter().any(|block| matches!(block.mlp, MlpSpec::Experts { .. }))
    }

    /// The layers of which peft holds adapters as those of parameters: all of the second halves of blocks, where there are experts.
    pub(crate) fn layers_of_mixture(&self) -> Vec<(String, LayerSpec)> {
        let all = if self.has_experts() { self.named_layers() } else { Vec::new() };
        all.into_iter().filter(|(_, layer)| layer.site.slot.half() == Some(Half::Mlp)).collect()
    }
}

/// Refuses adapters that peft would not read.
///
/// # Errors
/// Magnitudes; several ranks or scales; experts that are not adapted as the others of their block.
pub(super) fn check(model: &ModelSpec, adapted: &BTreeMap<String, OfLayer>, dora: bool) -> Result<()> {
    let mut first: Option<(String, OfLayer)> = None;
    for (name, _) in model.layers_of_mixture() {
        let Some(&of) = adapted.get(&name) else { continue };
        if dora {
            return Err(Error::setup(format!(
                "model.use_dora: peft holds no magnitudes for the MLPs of a model with experts, and `{name}` is to have some; set \
                 model.use_dora=false, or leave the MLPs out"
            )));
        }
        let (before, was) = first.get_or_insert_with(|| (name.clone(), of));
        if *was != of {
            return Err(Error::setup(format!(
                "the adapters of `{before}` and `{name}` are of rank {} and scale {}, and of rank {} and scale {}: peft holds \
                 one rank and scale for the MLPs of a model with experts; model.rank_pattern and model.alpha_pattern may name \
                 other layers",
                was.rank, was.scale, of.rank, of.scale
            )));
        }
    }
    (0..model.blocks.len()).try_for_each(|block| check_block(model, block, adapted))
}

fn check_block(model: &ModelSpec, block: usize, adapted: &BTreeMap<String, OfLayer>) -> Result<()> {
    let MlpSpec::Experts { count, .. } = model.blocks[block].mlp else { return Ok(()) };
    let is_adapted = |slot, expert| {
        let site = Site { slot, expert: Some(expert) };
        adapted.contains_key(&format!("model.layers.{block}.{}", site.path()))
    };
    let slots = [Slot::GateProj, Slot::UpProj, Slot::DownProj];
    let counts @ [gate, up, down] =
        slots.map(|slot| (0..count as u32).filter(|&expert| is_adapted(slot, expert)).count());
    if counts.iter().any(|&adapted| adapted != 0 && adapted != count) {
        return Err(Error::setup(format!(
            "some of the {count} experts of block {block} are to have adapters and others are not: peft holds them for all \
             experts of a block or for none"
        )));
    }
    if gate != up || gate > down {
        return Err(Error::setup(format!(
            "peft holds adapters of experts on gate_proj, up_proj and down_proj together, or on down_proj alone, and block \
             {block} is to have them on {}: name the others, too (model.apply_lora_to_mlp=true names all)",
            slots
                .iter()
                .zip(counts)
                .filter_map(|(slot, adapted)| (adapted > 0).then_some(slot.name()))
                .collect::<Vec<_>>()
                .join(" and ")
        )));
    }
    Ok(())
}
