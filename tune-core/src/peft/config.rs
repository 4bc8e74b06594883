//! The `model` key of recipes that train adapters.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tune_config::Config;

use super::{LoraModule, LoraOptions, Targets};
use crate::checkpoint::peft::{Excluded, Layers};
use crate::models::{Architecture, Begun, HEAD, Quantization, Start, TABLE, TrainedTokens, is_saved, module_of};
use crate::{Error, Result};

/// Which layers get an adapter beyond those that torchtune's keys name, and of which kind it is: peft's keys.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct AdapterKeys {
    /// Layers that get an adapter, in place of `lora_attn_modules` and `apply_lora_to_*`: ends of their names, regular
    /// expressions for whole names, or `all-linear`, which is all but the output layer. In a mixture of experts each expert has
    /// layers of its own, and `gate` chooses among them.
    #[config(one_or_many)]
    pub target_modules: Option<Vec<String>>,
    /// Layers that get none, although they are named: ends of names, or one regular expression for whole names.
    #[config(default, one_or_many)]
    pub exclude_modules: Vec<String>,
    /// The only blocks whose layers get an adapter, from 0; all where empty.
    #[config(default, one_or_many)]
    pub layers_to_transform: Vec<u64>,
    /// Regular expressions for what stands before a block's number in names, where layers_to_transform says which.
    #[config(default, one_or_many)]
    pub layers_pattern: Vec<String>,
    /// Ranks of single layers, by regular expressions for the end of their names.
    #[config(default)]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of single layers, by regular expressions for the end of their names.
    #[config(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Scale an adapter's update by `lora_alpha / sqrt(lora_rank)` (rsLoRA): a large rank then learns as fast as a small one.
    #[config(default = false)]
    pub use_rslora: bool,
    /// Train the lengths of the adapted weights' rows apart from their directions (DoRA). A step takes about a third longer.
    #[config(default = false)]
    pub use_dora: bool,
    /// Modules whose weights are trained whole beside the adapters and saved with them, by the ends of their names: `embed_tokens`,
    /// `lm_head`, `norm` (which is all norms), layers that get no adapter. Each takes as much memory as in full training.
    #[config(default, one_or_many)]
    pub modules_to_save: Vec<String>,
    /// Folders of adapters that are merged into the base in memory, in this order, before training begins. What is saved stands on
    /// them: its files say so, and whatever reads it merges them first.
    #[config(default, one_or_many)]
    pub base_adapters: Vec<PathBuf>,
    /// Tokens to add to the tokenizer, each a text that is then one token. Embedding table and output layer get a row for each, the
    /// mean of all others, and are trained whole (`modules_to_save`).
    #[config(default, one_or_many)]
    pub new_tokens: Vec<String>,
    /// Tokens by their ids whose rows of the embedding table are trained beside the adapters and saved with them, while all other rows
    /// stay as they are. Where the output layer is that table, they are rows of both.
    #[config(default, one_or_many)]
    pub trainable_token_indices: Vec<u32>,
    /// The same by their texts, which the tokenizer has as single tokens: `<|im_start|>`, say.
    #[config(default, one_or_many)]
    pub trainable_tokens: Vec<String>,
    /// Tokens by their ids whose rows of an output layer that is not the embedding table are trained, too: what predicts these tokens.
    #[config(default, one_or_many)]
    pub trainable_output_token_indices: Vec<u32>,
    /// The same by their texts.
    #[config(default, one_or_many)]
    pub trainable_output_tokens: Vec<String>,
    /// How a fresh adapter begins.
    #[config(default)]
    pub init_lora_weights: Start,
    /// Have PiSSA take singular vectors as they are after this many products with each weight, which is faster; peft's
    /// `pissa_niter_4` is 4. Until they are exact where null.
    #[config(range = 1..=1000)]
    pub pissa_niter: Option<usize>,
}

impl AdapterKeys {
    /// The modules that are trained whole. What new tokens are called and what they say is to be learnt.
    fn saved(&self) -> Vec<String> {
        let mut saved = self.modules_to_save.clone();
        let tables = [TABLE, HEAD].map(module_of).into_iter().filter(|_| !self.new_tokens.is_empty());
        let missing: Vec<&str> = tables.filter(|table| !is_saved(table, &saved)).collect();
        saved.extend(missing.into_iter().map(|table| table.trim_start_matches("model.").to_owned()));
        saved
    }

    fn targets(&self) -> Result<Targets> {
        if self.target_modules.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::setup(
                "model.target_modules names no layer: name some, such as [q_proj, v_proj] or all-linear; or set it to null, and \
                 model.lora_attn_modules and the like say which layers get an adapter",
            ));
        }
        if !self.layers_pattern.is_empty() && self.layers_to_transform.is_empty() {
            return Err(Error::setup("model.layers_pattern is used with model.layers_to_transform alone"));
        }
        let excluded = match &self.exclude_modules[..] {
            [] => None,
            [one] if !one.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c)) => {
                Some(Excluded::Pattern(one.clone()))
            }
            names => Some(Excluded::Names(names.to_vec())),
        };
        Ok(Targets {
            modules: self.target_modules.clone().unwrap_or_default(),
            layers: Layers {
                rank_pattern: self.rank_pattern.clone().into_iter().collect(),
                alpha_pattern: self.alpha_pattern.clone().into_iter().collect(),
                exclude_modules: excluded,
                layers_to_transform: self.layers_to_transform.clone(),
                layers_pattern: self.layers_pattern.clone(),
            },
        })
    }
}

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
    /// Give one to `gate_proj`, `up_proj` and `down_proj`, too; in a mixture of experts, to those of each expert.
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
    /// Layers by patterns, and kinds of adapters.
    #[config(flatten)]
    pub adapters: AdapterKeys,
    /// Hold the linear layers of the blocks in 4 bits (NF4), quantized as they are read: QLoRA. Those that a GGUF file has
    /// quantized stay as they are.
    #[config(default = false)]
    pub quantize_base: bool,
    /// Hold what a GGUF file has quantized as it is in the file, and not in dtype: less memory, and a little more time.
    /// Where null, it is held so, unless checkpointer.round_to is set.
    pub keep_quantized: Option<bool>,
}

impl LoraModel {
    /// How the base model is held in memory.
    pub fn quantization(&self) -> Quantization {
        Quantization { nf4: self.quantize_base, keep: self.keep_quantized }
    }

    /// The adapters to add; fresh ones are drawn from `seed`.
    ///
    /// # Errors
    /// Keys that contradict each other.
    pub fn options(&self, seed: u64) -> Result<LoraOptions> {
        let targets = self.adapters.targets()?;
        if self.adapters.target_modules.is_some() {
            let others = [
                ("lora_attn_modules", self.lora_attn_modules != [LoraModule::QProj, LoraModule::VProj]),
                ("apply_lora_to_mlp", self.apply_lora_to_mlp),
                ("apply_lora_to_output", self.apply_lora_to_output),
            ];
            if let Some((key, _)) = others.iter().find(|(_, is_set)| *is_set) {
                return Err(Error::setup(format!(
                    "model.target_modules and model.{key} both say which layers get an adapter: remove one of them"
                )));
            }
        }
        let mut modules = self.lora_attn_modules.clone();
        if self.apply_lora_to_mlp {
            modules.extend([LoraModule::GateProj, LoraModule::UpProj, LoraModule::DownProj]);
        }
        if self.apply_lora_to_output {
            modules.push(LoraModule::LmHead);
        }
        modules.sort();
        modules.dedup();
        if self.adapters.pissa_niter.is_some() && self.adapters.init_lora_weights != Start::Pissa {
            return Err(Error::setup(
                "model.pissa_niter is about model.init_lora_weights=pissa: set that, or remove pissa_niter",
            ));
        }
        Ok(LoraOptions {
            modules,
            rank: self.lora_rank,
            alpha: self.lora_alpha,
            rslora: self.adapters.use_rslora,
            dora: self.adapters.use_dora,
            dropout: self.lora_dropout,
            start: self.adapters.init_lora_weights,
            iterations: self.adapters.pissa_niter,
            begun: Begun::default(),
            seed,
            targets,
            save: self.adapters.saved(),
            new_tokens: self.adapters.new_tokens.clone(),
            tokens: TrainedTokens {
                ids: self.adapters.trainable_token_indices.as_slice().into(),
                texts: self.adapters.trainable_tokens.clone(),
            },
            output_tokens: TrainedTokens {
                ids: self.adapters.trainable_output_token_indices.as_slice().into(),
                texts: self.adapters.trainable_output_tokens.clone(),
            },
            base_adapters: self.adapters.base_adapters.clone(),
            whole: BTreeSet::new(),
            layers: BTreeMap::new(),
        })
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
    /// Give one to `gate_proj`, `up_proj` and `down_proj`, too; in a mixture of experts, to those of each expert.
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
    /// Layers by patterns, and kinds of adapters.
    #[config(flatten)]
    pub adapters: AdapterKeys,
}

impl LoraOrFullModel {
    /// The adapters to add, of which fresh ones are drawn from `seed`; `None` where all weights are trained.
    ///
    /// # Errors
    /// Settings of adapters, and no rank for them; keys that contradict each other.
    pub fn adapters(&self, seed: u64) -> Result<Option<LoraOptions>> {
        let Some(lora_rank) = self.lora_rank else {
            let named = [
                ("lora_attn_modules", self.lora_attn_modules.is_some()),
                ("apply_lora_to_mlp", self.apply_lora_to_mlp),
                ("apply_lora_to_output", self.apply_lora_to_output),
                ("lora_dropout", self.lora_dropout > 0.0),
                ("target_modules", self.adapters.target_modules.is_some()),
                ("exclude_modules", !self.adapters.exclude_modules.is_empty()),
                ("layers_to_transform", !self.adapters.layers_to_transform.is_empty()),
                ("layers_pattern", !self.adapters.layers_pattern.is_empty()),
                ("rank_pattern", !self.adapters.rank_pattern.is_empty()),
                ("alpha_pattern", !self.adapters.alpha_pattern.is_empty()),
                ("modules_to_save", !self.adapters.modules_to_save.is_empty()),
                ("base_adapters", !self.adapters.base_adapters.is_empty()),
                ("new_tokens", !self.adapters.new_tokens.is_empty()),
                ("trainable_token_indices", !self.adapters.trainable_token_indices.is_empty()),
                ("trainable_tokens", !self.adapters.trainable_tokens.is_empty()),
                ("trainable_output_token_indices", !self.adapters.trainable_output_token_indices.is_empty()),
                ("trainable_output_tokens", !self.adapters.trainable_output_tokens.is_empty()),
                ("use_rslora", self.adapters.use_rslora),
                ("use_dora", self.adapters.use_dora),
                ("pissa_niter", self.adapters.pissa_niter.is_some()),
                ("init_lora_weights", self.adapters.init_lora_weights != Start::default()),
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
            adapters: self.adapters.clone(),
            quantize_base: false,
            keep_quantized: None,
        };
        model.options(seed).map(Some)
    }
}
