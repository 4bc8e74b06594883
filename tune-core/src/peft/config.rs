//! The `model` key of recipes that train adapters.

use std::collections::BTreeMap;

use tune_config::Config;

use super::{LoraModule, LoraOptions};
use crate::models::Architecture;

/// A model with low-rank adapters; its size is read from the checkpoint's `config.json`.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct LoraModel {
    /// The model that `checkpoint_dir` must hold; any that is there where null.
    #[config(alias = "_component_", may_change)]
    pub architecture: Option<Architecture>,
    /// Layers that get an adapter.
    #[config(default = ["q_proj", "v_proj"])]
    pub lora_attn_modules: Vec<LoraModule>,
    /// Give one to `gate_proj`, `up_proj` and `down_proj`, too.
    #[config(default = false)]
    pub apply_lora_to_mlp: bool,
    /// Give one to the output layer, too.
    #[config(default = false)]
    pub apply_lora_to_output: bool,
    /// Rank of each adapter.
    #[config(default = 8, range = 1..=65536)]
    pub lora_rank: usize,
    /// An adapter's update is scaled by `lora_alpha / lora_rank`.
    #[config(default = 16.0, range = 0.0..)]
    pub lora_alpha: f64,
    /// Probability of dropping an element of an adapter's input, while training.
    #[config(default = 0.0, range = 0.0..1.0)]
    pub lora_dropout: f64,
}

impl LoraModel {
    /// The adapters to add; fresh ones are drawn from `seed`.
    pub fn options(&self, seed: u64) -> LoraOptions {
        let mut modules = self.lora_attn_modules.clone();
        if self.apply_lora_to_mlp {
            modules.extend([LoraModule::GateProj, LoraModule::UpProj, LoraModule::DownProj]);
        }
        if self.apply_lora_to_output {
            modules.push(LoraModule::LmHead);
        }
        modules.sort();
        modules.dedup();
        LoraOptions {
            modules,
            rank: self.lora_rank,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            seed,
            layers: BTreeMap::new(),
        }
    }
}
