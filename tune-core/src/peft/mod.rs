//! Parameter-efficient fine-tuning: low-rank adapters on frozen weights
//! (LoRA, Hu et al. 2021, <https://arxiv.org/abs/2106.09685>).

mod check;
mod config;
mod described;
mod tensors;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;

pub use check::other_base;
pub use config::{AdapterKeys, LoraModel, LoraOrFullModel};
pub(crate) use tensors::adapter_pieces;
pub use tensors::{adapter_weights, set_trainable};

use crate::checkpoint::peft::{AdapterConfig, EMBEDDING, Layers, OUTPUT, TargetModules};
use crate::checkpoint::{Below, Checkpoint};
use crate::hub::Origin;
use crate::models::{Begun, HEAD, ModelSpec, Site, TABLE, module_of};
pub use crate::models::{LoraOptions, OfLayer, Slot as LoraModule, Start, Targets, TrainedTokens};
use crate::{Error, Result};

/// Tensors by name.
type Tensors = BTreeMap<String, Tensor>;

impl LoraOptions {
    /// The same as PEFT describes it.
    ///
    /// # Errors
    /// A model that is not known, or layers that cannot carry adapters.
    pub fn adapter_config(&self, base: &Checkpoint) -> Result<AdapterConfig> {
        self.adapter_config_of(base, &ModelSpec::of(base)?)
    }

    /// The same of a model that is made of a base and may have another head.
    ///
    /// # Errors
    /// Layers that cannot carry adapters.
    pub fn adapter_config_of(&self, base: &Checkpoint, model: &ModelSpec) -> Result<AdapterConfig> {
        let layers = self.of_model(model)?;
        let ensure_weight_tying = model.tie_word_embeddings && self.whole_of(model, &layers)?.contains(TABLE);
        let mut modules_to_save = self.save.clone();
        if ensure_weight_tying {
            // Under both names, for versions of peft that do not tie.
            let both = [module_of(TABLE), module_of(HEAD)].map(|module| module.trim_start_matches("model.").to_owned());
            modules_to_save.extend(both);
        }
        modules_to_save.sort();
        modules_to_save.dedup();
        let (name, revision) = match base.origin().cloned() {
            Some(Origin { name, revision }) => (name, revision),
            None => (base.path().display().to_string(), None),
        };
        let mut config = AdapterConfig {
            r: self.saved_rank(self.rank),
            alpha: self.alpha * self.saved_alpha(),
            dropout: self.dropout,
            use_rslora: self.rslora,
            use_dora: self.dora,
            target_modules: TargetModules::Names(targets(model, &layers)),
            target_parameters: BTreeSet::new(),
            layers: self.patterns(&layers),
            modules_to_save,
            tokens: self.tokens_by_module(),
            base_adapters: self.below()?,
            ensure_weight_tying,
            scores: model.scores.is_some(),
            base_model_name_or_path: Some(name),
            revision,
        };
        let of_mixture = model.layers_of_mixture();
        if let Some(of) = of_mixture.iter().find_map(|(name, _)| layers.get(name)) {
            // peft changes rank and alpha of experts as it reads them, so that the one must be the file's and the other must be
            // divided by it; and it holds no dropout for them, which nobody needs who computes with the adapter.
            let whole =
                Self { layers: layers.clone(), rank: of.rank, alpha: of.scale * of.rank as f64, ..self.clone() };
            let whole = Self { rslora: false, ..whole };
            config.r = whole.saved_rank(whole.rank);
            config.alpha = whole.alpha * whole.saved_alpha();
            config.layers = whole.patterns(&layers);
            (config.use_rslora, config.dropout) = (false, 0.0);
            let is_dense = |site: Site| site.expert.is_none() && site.slot != LoraModule::Router;
            let dense = of_mixture.iter().filter(|(name, layer)| is_dense(layer.site) && layers.contains_key(name));
            let dense: BTreeSet<&String> = dense.map(|(name, _)| name).collect();
            if let TargetModules::Names(names) = &mut config.target_modules {
                names.retain(|name| !dense.contains(name));
            }
            config.target_parameters = dense.into_iter().map(|name| format!("{name}.weight")).collect();
        }
        Ok(config)
    }

    /// The tokens whose rows are trained, as peft has them.
    fn tokens_by_module(&self) -> BTreeMap<String, Vec<u32>> {
        let both = [(EMBEDDING, &self.tokens), (OUTPUT, &self.output_tokens)].into_iter();
        let named = both.filter(|(_, tokens)| !tokens.ids.is_empty());
        named.map(|(module, tokens)| (module.to_owned(), tokens.ids.to_vec())).collect()
    }

    /// The adapters that these stand on.
    fn below(&self) -> Result<Vec<Below>> {
        self.base_adapters.iter().map(|dir| Below::of(dir)).collect()
    }

    fn saved_rank(&self, rank: usize) -> usize {
        self.saved(OfLayer { rank, scale: 1.0 }).rank
    }

    /// What alpha is multiplied by as it is saved, for the scale to stay the same at the rank that is saved.
    fn saved_alpha(&self) -> f64 {
        self.divisor(self.saved_rank(self.rank)) / self.divisor(self.rank)
    }

    /// The ranks and alphas of single layers: by the patterns that were given, else by their whole names.
    fn patterns(&self, layers: &BTreeMap<String, OfLayer>) -> Layers {
        let Layers { rank_pattern, alpha_pattern, .. } = &self.targets.layers;
        if self.layers.is_empty() {
            let rank = |(key, rank): &(String, usize)| (key.clone(), self.saved_rank(*rank));
            let alpha = |(key, alpha): &(String, f64)| (key.clone(), alpha * self.saved_alpha());
            let rank_pattern = rank_pattern.iter().map(rank).collect();
            let alpha_pattern = alpha_pattern.iter().map(alpha).collect();
            return Layers { rank_pattern, alpha_pattern, ..Layers::default() };
        }
        let escaped = |name: &String| name.replace('.', r"\.");
        let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
        for (name, of) in layers {
            let alpha = self.alpha_of(*of);
            ranks.extend((of.rank != self.rank).then(|| (escaped(name), self.saved_rank(of.rank))));
            let is_other = (alpha - self.alpha).abs() > 1e-9;
            alphas.extend(is_other.then(|| (escaped(name), alpha * self.saved_alpha())));
        }
        Layers { rank_pattern: ranks, alpha_pattern: alphas, ..Layers::default() }
    }

    /// These options for a run that goes on from a saved adapter, if it goes on from one: where adapters begin with a part of the
    /// weights, it is what they began with then.
    ///
    /// # Errors
    /// An adapter that cannot be read.
    pub fn going_on_from(self, dir: Option<&Path>) -> Result<Self> {
        let Some(dir) = dir.filter(|_| self.start.takes_of_weight()) else { return Ok(self) };
        let (_, begun) = self.parted(crate::checkpoint::peft::read(dir)?.1)?;
        Ok(Self { begun: Begun::new(begun), ..self })
    }

    /// The matrices of a saved adapter as they are trained, and those that it began with, if it took these out of the weights.
    fn parted(&self, tensors: Tensors) -> Result<(Tensors, Tensors)> {
        if !self.start.takes_of_weight() {
            return Ok((tensors, Tensors::new()));
        }
        let (mut trained, mut begun) = (Tensors::new(), Tensors::new());
        for (name, tensor) in tensors {
            let by = match &*name {
                name if name.ends_with(".lora_A.weight") => 0,
                name if name.ends_with(".lora_B.weight") => 1,
                _ => {
                    trained.insert(name, tensor);
                    continue;
                }
            };
            let half = tensor.dim(by)? / 2;
            let part = |first| -> Result<Tensor> { Ok(tensor.narrow(by, first, half)?.force_contiguous()?) };
            let first = part(half)?;
            begun.insert(name.clone(), if by == 0 { first } else { first.neg()? });
            trained.insert(name, part(0)?);
        }
        Ok((trained, begun))
    }

    /// Adapters on these layers alone, by their names.
    ///
    /// # Errors
    /// A name that is none of a linear layer's.
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
        let [tokens, output_tokens] = tokens_of(&config, dir)?;
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
        // Which of a mixture's layers are adapted, others may choose otherwise than is checked here.
        if is_on_all_layers(&config) && !layers.keys().any(|name| name.contains(".experts.")) {
            layers.clear();
        }
        let (rank, alpha, rslora, dora) = (config.r, config.alpha, config.use_rslora, config.use_dora);
        let save = config.modules_to_save;
        Ok(Self { modules, rank, alpha, rslora, dora, save, tokens, output_tokens, layers, ..Self::default() })
    }
}

/// The tokens of which an adapter brings rows of the embedding table along, and of the output layer.
///
/// # Errors
/// Rows of other modules.
fn tokens_of(config: &AdapterConfig, dir: &Path) -> Result<[TrainedTokens; 2]> {
    if let Some(module) = config.tokens.keys().find(|module| ![EMBEDDING, OUTPUT].contains(&module.as_str())) {
        return Err(Error::file(
            dir,
            format!(
                "brings along rows of single tokens for `{module}` (trainable_token_indices); those of `{EMBEDDING}` and `{OUTPUT}` alone \
                 are trained here: merge it (`tune merge`), and go on from the merged model"
            ),
        ));
    }
    let of = |module: &str| config.tokens.get(module).map_or_else(TrainedTokens::default, |ids| TrainedTokens::of(ids));
    Ok([EMBEDDING, OUTPUT].map(of))
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
        TargetModules::Names(_) if !config.target_parameters.is_empty() => return false,
        TargetModules::Names(names) => names,
        // Which modules it picks, the tensors say; `all-linear` picks all.
        TargetModules::Pattern(pattern) => return config.layers == Layers::default() && pattern == "all-linear",
    };
    config.layers == Layers::default() && !names.iter().any(is_of_one_block)
}
