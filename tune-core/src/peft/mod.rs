//! Parameter-efficient fine-tuning: low-rank adapters on frozen weights
//! (LoRA, Hu et al. 2021, <https://arxiv.org/abs/2106.09685>).

mod config;
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Tensor};

pub use config::{AdapterKeys, LoraModel, LoraOrFullModel};
pub use targets::Targets;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::peft::{AdapterConfig, Layers, TargetModules};
use crate::hub::Origin;
use crate::models::{Decoder, ModelSpec};
pub use crate::models::{LoraOptions, OfLayer, Slot as LoraModule, Start};
use crate::tokenizer::listed;
use crate::{Error, Result};

impl LoraOptions {
    /// The same as PEFT describes it.
    ///
    /// # Errors
    /// A model that is not known, or layers that cannot carry adapters.
    pub fn adapter_config(&self, base: &Checkpoint) -> Result<AdapterConfig> {
        let model = ModelSpec::of(base)?;
        let layers = self.of_model(&model)?;
        let (name, revision) = match base.origin().cloned() {
            Some(Origin { name, revision }) => (name, revision),
            None => (base.path().display().to_string(), None),
        };
        Ok(AdapterConfig {
            r: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            use_rslora: self.rslora,
            use_dora: self.dora,
            target_modules: TargetModules::Names(targets(&model, &layers)),
            layers: self.patterns(&layers),
            base_model_name_or_path: Some(name),
            revision,
        })
    }

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
        let kind = if self.dora { "DoRA adapters" } else { "adapters" };
        Ok(format!("{kind} of {ranks} on {}", on.join(", ")))
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

    /// The ranks and alphas of single layers: by the patterns that were given, else by their whole names.
    fn patterns(&self, layers: &BTreeMap<String, OfLayer>) -> Layers {
        let Layers { rank_pattern, alpha_pattern, .. } = &self.targets.layers;
        if self.layers.is_empty() {
            let (rank_pattern, alpha_pattern) = (rank_pattern.clone(), alpha_pattern.clone());
            return Layers { rank_pattern, alpha_pattern, ..Layers::default() };
        }
        let escaped = |name: &String| name.replace('.', r"\.");
        let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
        for (name, of) in layers {
            let alpha = self.alpha_of(*of);
            ranks.extend((of.rank != self.rank).then(|| (escaped(name), of.rank)));
            alphas.extend(((alpha - self.alpha).abs() > 1e-9).then(|| (escaped(name), alpha)));
        }
        Layers { rank_pattern: ranks, alpha_pattern: alphas, ..Layers::default() }
    }

    /// Sets the model's adapters to those in a PEFT folder.
    ///
    /// # Errors
    /// An adapter of another rank, scale or choice of layers, or one that cannot be read.
    pub fn load_into(&self, model: &Decoder, dir: &Path) -> Result<()> {
        let (config, tensors) = crate::checkpoint::peft::read(dir)?;
        self.check(&config, dir, &model.config)?;
        set_trainable(model, &tensors, &dir.display().to_string())
    }

    /// Checks that the adapters in a folder are of the same ranks and scales, layer by layer.
    ///
    /// # Errors
    /// The first layer of which they are not, and as [`LoraOptions::of_model`].
    pub(crate) fn check(&self, config: &AdapterConfig, dir: &Path, model: &ModelSpec) -> Result<()> {
        if config.use_dora != self.dora {
            let (what, key) = match config.use_dora {
                true => ("is a DoRA adapter, and this run's are not", "true"),
                false => ("is no DoRA adapter, and this run's are", "false"),
            };
            return Err(Error::file(dir, format!("{what}: set model.use_dora={key}")));
        }
        for (name, of) in &self.of_model(model)? {
            let (rank, scale) = config.of_module(name).map_err(|what| Error::file(dir, what))?;
            if rank == of.rank && (scale - of.scale).abs() <= 1e-9 {
                continue;
            }
            let alike = |layers: &Layers| layers.rank_pattern.is_empty() && layers.alpha_pattern.is_empty();
            let what = match alike(&config.layers) && alike(&self.targets.layers) && self.layers.is_empty() {
                true => format!(
                    "is an adapter of rank {rank} and scale {scale}, but this run's have rank {} and scale {}; set \
                     model.lora_rank={rank} and model.lora_alpha={}",
                    of.rank,
                    of.scale,
                    self.alpha_of(OfLayer { rank, scale }),
                ),
                false => format!(
                    "its adapter of `{name}` is of rank {rank} and scale {scale}, and {} and {} were expected: \
                     model.lora_rank, model.lora_alpha, model.rank_pattern and model.alpha_pattern say what this run's are",
                    of.rank, of.scale
                ),
            };
            return Err(Error::file(dir, what));
        }
        Ok(())
    }

    /// Adapters on these layers alone, by their names.
    ///
    /// # Errors
    /// A layer that cannot carry one here.
    pub fn on_layers(layers: BTreeMap<String, OfLayer>) -> Result<Self> {
        let mut modules = Vec::new();
        for name in layers.keys() {
            let last = name.rsplit('.').next().unwrap_or(name);
            let module = LoraModule::ALL.into_iter().find(|module| module.name() == last);
            modules.push(module.ok_or_else(|| Error::setup(format!("`{name}` cannot carry an adapter here")))?);
        }
        modules.sort();
        modules.dedup();
        Ok(Self { modules, rank: 1, alpha: 1.0, layers, ..Self::default() })
    }

    /// The adapters to add to a model so that it takes those in a PEFT folder.
    ///
    /// # Errors
    /// An adapter that cannot be read, or on a layer that cannot carry one here.
    pub fn of_folder(dir: &Path) -> Result<Self> {
        let (config, tensors) = crate::checkpoint::peft::read(dir)?;
        let mut modules = Vec::new();
        let mut layers = BTreeMap::new();
        for name in crate::checkpoint::peft::modules(tensors.keys()) {
            let last = name.rsplit('.').next().unwrap_or(name);
            let module = LoraModule::ALL
                .into_iter()
                .find(|m| m.name() == last)
                .ok_or_else(|| Error::file(dir, format!("adapts `{name}`, which cannot carry an adapter here")))?;
            modules.push(module);
            let (rank, scale) = config.of_module(name).map_err(|what| Error::file(dir, what))?;
            layers.insert(name.to_owned(), OfLayer { rank, scale });
        }
        modules.sort();
        modules.dedup();
        if is_on_all_layers(&config) {
            layers.clear();
        }
        let (rank, alpha, rslora, dora) = (config.r, config.alpha, config.use_rslora, config.use_dora);
        Ok(Self { modules, rank, alpha, rslora, dora, layers, ..Self::default() })
    }
}

/// The names of layers that a config is to have: the last parts, where all layers of a model that are called so are meant.
fn targets(model: &ModelSpec, layers: &BTreeMap<String, OfLayer>) -> BTreeSet<String> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let short: BTreeSet<String> = layers.keys().map(|name| last(name)).collect();
    let is_meant = |(name, _): &(String, _)| layers.contains_key(name) || !short.contains(&last(name));
    match model.named_layers().iter().all(is_meant) {
        true => short,
        false => layers.keys().cloned().collect(),
    }
}

/// Whether a config names modules of all blocks alike. All of them are then to be among the tensors.
fn is_on_all_layers(config: &AdapterConfig) -> bool {
    let is_of_one_block = |name: &String| name.split('.').any(|part| part.parse::<u64>().is_ok());
    let names = match &config.target_modules {
        TargetModules::Names(names) => names,
        // Which modules it picks, the tensors say; `all-linear` picks all.
        TargetModules::Pattern(pattern) => return config.layers == Layers::default() && pattern == "all-linear",
    };
    config.layers == Layers::default() && !names.iter().any(is_of_one_block)
}

/// What there is to say where the adapter in a folder names another base model than the one that it is put on, as far
/// as both are known to the hub.
pub fn other_base(dir: &Path, base: &Checkpoint) -> Option<String> {
    // What is wrong with it is said where it is read.
    let config = crate::checkpoint::peft::read_config(dir).ok()?;
    let (given, named) = (base.origin()?, config.base_on_hub()?);
    // A branch or tag is the same as the commit that it is at.
    let at_commit = named.revision.as_ref().is_some_and(|commit| base.path().iter().any(|p| p == commit.as_str()));
    let is_same = given.name == named.name && (given.revision == named.revision || at_commit);
    (!is_same).then(|| format!("{} is an adapter for {named}, and it is put on {given}", dir.display()))
}

/// Sets what is trained to `values`, all of it and nothing else, by the names of [`Decoder::trainable`].
///
/// # Errors
/// A name that only one side has, or another shape.
pub fn set_trainable(model: &Decoder, values: &BTreeMap<String, Tensor>, origin: &str) -> Result<()> {
    let trainable = model.trainable();
    if let Some(name) = values.keys().find(|name| trainable.get(name).is_none()) {
        return Err(Error::setup(format!(
            "{origin} has `{name}`, for which there is no place: the model has other layers, or others of them carry adapters"
        )));
    }
    for parameter in trainable {
        let (name, var) = (parameter.name(), parameter.var());
        let value = values.get(&**name).ok_or_else(|| {
            Error::setup(format!(
                "{origin} lacks `{name}`, which is among the adapters here: the model has other layers, or others of them \
                 carry adapters"
            ))
        })?;
        if value.dims() != parameter.dims() {
            return Err(Error::setup(format!(
                "{origin}: `{name}` has shape {:?}, and {:?} is needed here; check the rank and the base model",
                value.dims(),
                parameter.dims()
            )));
        }
        let value = parameter.here(value)?;
        var.set(&value.to_dtype(var.dtype())?.to_device(var.device())?.contiguous()?)?;
    }
    model.changed();
    Ok(())
}

/// The adapters' weights as they are now, by the names of [`Decoder::trainable`], in f32.
pub fn adapter_weights(model: &Decoder) -> Result<BTreeMap<String, Tensor>> {
    model.fetch()?;
    model
        .trainable()
        .iter()
        .map(|of| Ok((of.name().to_string(), of.whole(&of.var().as_detached_tensor().to_dtype(DType::F32)?)?)))
        .collect()
}
