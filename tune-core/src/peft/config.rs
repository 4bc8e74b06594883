//! The `model` key of recipes that train adapters.

use std::collections::BTreeMap;

use tune_config::Config;

use super::{LoraModule, LoraOptions};
use crate::models::{Architecture, Quantization};
use crate::{Error, Result};

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
    /// Hold the linear layers of the blocks in 4 bits (NF4), quantized as they are read: QLoRA. Those that a GGUF file has
    /// quantized stay as they are.
    #[config(default = false)]
    pub quantize_base: bool,
    /// Hold what a GGUF file has quantized as it is in the file, and not in dtype: less memory, and a little more time.
    /// Where null, on the processor, unless checkpointer.round_to is set.
    pub keep_quantized: Option<bool>,
}

impl LoraModel {
    /// How the base model is held in memory.
    pub fn quantization(&self) -> Quantization {
        Quantization { nf4: self.quantize_base, keep: self.keep_quantized }
    }

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

/// A model of which either low-rank adapters or all weights are trained; its size is read from the checkpoint's `config.json`.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct LoraOrFullModel {
    /// The model that `checkpoint_dir` must hold; any that is there where null.
    #[config(alias = "_component_", may_change)]
    pub architecture: Option<Architecture>,
    /// Rank of each adapter; where null there are none, and all weights are trained.
    #[config(range = 1..=65536)]
    pub lora_rank: Option<usize>,
    /// Layers that get an adapter; where null, `q_proj` and `v_proj`.
    pub lora_attn_modules: Option<Vec<LoraModule>>,
    /// Give one to `gate_proj`, `up_proj` and `down_proj`, too.
    #[config(default = false)]
    pub apply_lora_to_mlp: bool,
    /// Give one to the output layer, too.
    #[config(default = false)]
    pub apply_lora_to_output: bool,
    /// An adapter's update is scaled by `lora_alpha / lora_rank`.
    #[config(default = 16.0, range = 0.0..)]
    pub lora_alpha: f64,
    /// Probability of dropping an element of an adapter's input, while training.
    #[config(default = 0.0, range = 0.0..1.0)]
    pub lora_dropout: f64,
}

impl LoraOrFullModel {
    /// The adapters to add, of which fresh ones are drawn from `seed`; `None` where all weights are trained.
    ///
    /// # Errors
    /// Settings of adapters, and no rank for them.
    pub fn adapters(&self, seed: u64) -> Result<Option<LoraOptions>> {
        let Some(lora_rank) = self.lora_rank else {
            let named = [
                ("lora_attn_modules", self.lora_attn_modules.is_some()),
                ("apply_lora_to_mlp", self.apply_lora_to_mlp),
                ("apply_lora_to_output", self.apply_lora_to_output),
                ("lora_dropout", self.lora_dropout > 0.0),
            ];
            return match named.iter().find(|(_, is_set)| *is_set) {
                None => Ok(None),
                Some((key, _)) => Err(Error::setup(format!(
                    "model.{key} is about adapters, and without model.lora_rank there are none: set model.lora_rank=8, say, \
                     or remove the key to train all weights"
                ))),
            };
        };
        let model = LoraModel {
            architecture: self.architecture,
            lora_attn_modules: self
                .lora_attn_modules
                .clone()
                .unwrap_or_else(|| vec![LoraModule::QProj, LoraModule::VProj]),
            apply_lora_to_mlp: self.apply_lora_to_mlp,
            apply_lora_to_output: self.apply_lora_to_output,
            lora_rank,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            quantize_base: false,
            keep_quantized: None,
        };
        Ok(Some(model.options(seed)))
    }
}
