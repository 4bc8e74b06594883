//! Adapters in words.

use super::{LoraModule, LoraOptions};
use crate::Result;
use crate::models::ModelSpec;
use crate::tokenizer::listed;

impl LoraOptions {
    /// The adapters of a model in a few words: `adapters of rank 8 on q_proj, v_proj`.
    ///
    /// # Errors
    /// As [`LoraOptions::of_model`].
    pub fn describe(&self, model: &ModelSpec) -> Result<String> {
        let layers = self.of_model(model)?;
        let ranks = || layers.values().map(|of| of.rank);
        let (least, most) = (ranks().min().unwrap_or(self.rank), ranks().max().unwrap_or(self.rank));
        let ranks = if least == most { format!("rank {most}") } else { format!("ranks {least} to {most}") };
        let named = model.named_layers();
        let of_slot = |slot: LoraModule| named.iter().filter(move |(_, layer)| layer.site.slot == slot);
        let mut on = Vec::new();
        for slot in LoraModule::ALL {
            let (all, some) =
                (of_slot(slot).count(), of_slot(slot).filter(|(name, _)| layers.contains_key(name)).count());
            match some {
                0 => {}
                _ if some == all => on.push(slot.name().to_owned()),
                _ => on.push(format!("{} ({some} of {all})", slot.name())),
            }
        }
        let whole = match &self.save[..] {
            [] => String::new(),
            save => format!("; beside them {}, whole", listed(save)),
        };
        let tokens = self.tokens.describe().map_or_else(String::new, |tokens| format!("; beside them {tokens}"));
        let of_output = self.output_tokens.describe();
        let of_output =
            of_output.map_or_else(String::new, |tokens| format!("; beside them {tokens} of the output layer"));
        let kind = if self.dora { "DoRA adapters" } else { "adapters" };
        let begin = match self.start.takes_of_weight() {
            true => format!(
                "; they begin with a part of the weights ({}), and are saved as plain adapters of twice the rank",
                self.start.name()
            ),
            false => String::new(),
        };
        Ok(format!("{kind} of {ranks} on {}{whole}{tokens}{of_output}{begin}", on.join(", ")))
    }

    /// What there is to say of layers that are named by their parts, where a model stores several as one.
    pub fn shared(&self, model: &ModelSpec) -> Option<String> {
        let mut all = Vec::new();
        for whole in [LoraModule::QkvProj, LoraModule::GateUpProj] {
            let parts = self.modules.iter().filter(|slot| slot.fused() == Some(whole)).map(|slot| slot.name());
            let parts: Vec<&str> = parts.collect();
            if !parts.is_empty() && !model.layers_of(whole).is_empty() {
                let of = if parts.len() == 1 { "is a part" } else { "are parts" };
                all.push(format!("{} {of} of `{}`", listed(parts), whole.name()));
            }
        }
        (!all.is_empty()).then(|| {
            format!(
                "in this model {}: such a layer gets one adapter, which changes all of its parts, as in peft; torchtune \
                 gives each part an adapter of its own",
                all.join(" and ")
            )
        })
    }
}
