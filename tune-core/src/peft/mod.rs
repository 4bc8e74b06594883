//! Parameter-efficient fine-tuning: low-rank adapters on frozen weights
//! (LoRA, Hu et al. 2021, <https://arxiv.org/abs/2106.09685>).

mod config;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Tensor};

pub use config::{AdapterKeys, LoraModel, LoraOrFullModel};

use crate::checkpoint::peft::{AdapterConfig, EMBEDDING, Layers, OUTPUT, TargetModules};
use crate::checkpoint::{Below, Checkpoint, same_bits};
use crate::hub::Origin;
use crate::models::{
    Begun, Decoder, HEAD, ModelSpec, OUTPUT_ROWS, Parameter, Piece, Site, TABLE, TOKEN_ROWS, module_of,
};
pub use crate::models::{LoraOptions, OfLayer, Slot as LoraModule, Start, Targets, TrainedTokens};
use crate::tokenizer::listed;
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

    /// Sets the model's adapters to those in a PEFT folder.
    ///
    /// # Errors
    /// An adapter of another rank, scale or choice of layers, or one that cannot be read.
    pub fn load_into(&self, model: &Decoder, dir: &Path) -> Result<()> {
        let (config, tensors) = crate::checkpoint::peft::read(dir)?;
        self.check(&config, dir, &model.config)?;
        let (mut tensors, begun) = self.parted(tensors)?;
        if model.config.tie_word_embeddings
            && let (Some(head), Some(table)) = (tensors.get(HEAD), tensors.get(TABLE))
        {
            if !same_bits(head, table)? {
                return Err(Error::file(
                    dir,
                    "its embedding table and its output layer are two, and this model's are one: merge it, and go on from the \
                     merged model",
                ));
            }
            tensors.remove(HEAD);
        }
        for (layer, (a, b)) in model.begun() {
            let is_same = |of: &str, here: &Tensor| -> Result<bool> {
                let there = begun.get(&format!("{layer}.lora_{of}.weight"));
                let same = |there: &Tensor| Ok(there.dims() == here.dims() && flat(there)? == flat(here)?);
                there.map_or(Ok(false), same)
            };
            if !is_same("A", a)? || !is_same("B", b)? {
                return Err(Error::file(
                    dir,
                    format!("its adapter of `{layer}` began with another part of the weight than this one"),
                ));
            }
        }
        set_trainable(model, &tensors, &dir.display().to_string())
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

    /// Checks that the adapters in a folder are of the kind of this run's: with the same tokens, modules, ranks and scales, on the same
    /// adapters below.
    ///
    /// # Errors
    /// The first difference, with the settings that go on from the folder; and as [`LoraOptions::of_model`].
    pub(crate) fn check(&self, config: &AdapterConfig, dir: &Path, model: &ModelSpec) -> Result<()> {
        if config.use_dora != self.dora {
            let (what, key) = match config.use_dora {
                true => ("is a DoRA adapter, and this run's are not", "true"),
                false => ("is no DoRA adapter, and this run's are", "false"),
            };
            return Err(Error::file(dir, format!("{what}: set model.use_dora={key}")));
        }
        self.check_rows_of_tokens(config, dir)?;
        self.check_below(config, dir)?;
        let layers = self.of_model(model)?;
        let theirs = model.weights_of(&config.modules_to_save).map_err(|what| Error::file(dir, what.to_string()))?;
        if theirs != self.whole_of(model, &layers)? {
            let named = |names: &[String]| if names.is_empty() { "none".to_owned() } else { listed(names) };
            return Err(Error::file(
                dir,
                format!(
                    "the modules that it saves whole are {}, and this run's are {}: set model.modules_to_save=[{}]",
                    named(&config.modules_to_save),
                    named(&self.save),
                    config.modules_to_save.join(", ")
                ),
            ));
        }
        layers.into_iter().try_for_each(|(name, of)| self.check_layer(config, dir, &name, self.saved(of)))
    }

    /// Rows of the same tokens.
    fn check_rows_of_tokens(&self, config: &AdapterConfig, dir: &Path) -> Result<()> {
        if config.tokens == self.tokens_by_module() {
            return Ok(());
        }
        let [table, output] = tokens_of(config, dir)?;
        let what = match output.ids == self.output_tokens.ids {
            true => format!(
                "has rows of the tokens {:?}, and this run trains those of {:?}: set model.trainable_token_indices={:?}, and leave \
                 model.trainable_tokens out",
                table.ids, self.tokens.ids, table.ids
            ),
            false => format!(
                "has rows of the output layer for the tokens {:?}, and this run trains those of {:?}: set \
                 model.trainable_output_token_indices={:?}, and leave model.trainable_output_tokens out",
                output.ids, self.output_tokens.ids, output.ids
            ),
        };
        Err(Error::file(dir, what))
    }

    /// The same adapters below.
    fn check_below(&self, config: &AdapterConfig, dir: &Path) -> Result<()> {
        let sums = |below: &[Below]| -> Vec<u32> { below.iter().map(|below| below.crc32c).collect() };
        if sums(&config.base_adapters) == sums(&self.below()?) {
            return Ok(());
        }
        let dirs: Vec<_> = config.base_adapters.iter().map(|below| below.dir.display().to_string()).collect();
        let dirs = dirs.join(", ");
        Err(Error::file(dir, format!("stands on other adapters than this run's: set model.base_adapters=[{dirs}]")))
    }

    /// Rank and scale of a layer's adapter, which this run saves as `expected`.
    fn check_layer(&self, config: &AdapterConfig, dir: &Path, name: &str, expected: OfLayer) -> Result<()> {
        let (rank, scale) = config.of_module(name).map_err(|what| Error::file(dir, what))?;
        if rank == expected.rank && (scale - expected.scale).abs() <= 1e-9 {
            return Ok(());
        }
        let alike = |layers: &Layers| layers.rank_pattern.is_empty() && layers.alpha_pattern.is_empty();
        let all_alike = alike(&config.layers) && alike(&self.targets.layers) && self.layers.is_empty();
        let what = if self.start.takes_of_weight() {
            format!(
                "its adapter of `{name}` is of rank {rank} and scale {scale}, and {} and {} were expected: an adapter \
                 that began with model.init_lora_weights={} is saved with twice its rank. To go on from another one, \
                 set model.init_lora_weights=kaiming",
                expected.rank,
                expected.scale,
                self.start.name()
            )
        } else if all_alike {
            format!(
                "is an adapter of rank {rank} and scale {scale}, but this run's have rank {} and scale {}; set \
                 model.lora_rank={rank} and model.lora_alpha={}",
                expected.rank,
                expected.scale,
                self.alpha_of(OfLayer { rank, scale }),
            )
        } else {
            format!(
                "its adapter of `{name}` is of rank {rank} and scale {scale}, and {} and {} were expected: \
                 model.lora_rank, model.lora_alpha, model.rank_pattern and model.alpha_pattern say what this run's are",
                expected.rank, expected.scale
            )
        };
        Err(Error::file(dir, what))
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

/// The adapters' weights as they are now and as they are saved, by the names of [`Decoder::trainable`], in f32, and beside them the
/// weights that are trained whole, a tied output layer under both its names. Adapters that took a
/// part of their weights have it beside them, with a minus: `[A; A₀]` and `[B, −B₀]` are adapters for the weights as they were.
pub fn adapter_weights(model: &Decoder) -> Result<Tensors> {
    model.fetch()?;
    let now = |of: &Parameter| {
        let here = of.var().as_detached_tensor();
        of.whole(&if is_of_adapter(of) { here.to_dtype(DType::F32)? } else { here.copy()? })
    };
    let mut all: Tensors =
        model.trainable().iter().map(|of| Ok((of.name().to_string(), now(of)?))).collect::<Result<_>>()?;
    if let (true, Some(table)) = (model.config.tie_word_embeddings, all.get(TABLE).cloned()) {
        all.insert(HEAD.to_owned(), table);
    }
    for (layer, (a, b)) in model.begun() {
        let joined = [("A", a.clone(), 0), ("B", b.neg()?, 1)];
        for (of, begun, by) in joined {
            if let Some(tensor) = all.get_mut(&format!("{layer}.lora_{of}.weight")) {
                *tensor = Tensor::cat(&[&*tensor, &begun], by)?;
            }
        }
    }
    Ok(all)
}

/// Whether it is saved in f32. The model's own weights stay in its type.
fn is_of_adapter(of: &Parameter) -> bool {
    of.name().contains(".lora_") || [TOKEN_ROWS, OUTPUT_ROWS].contains(&&**of.name())
}

/// The same as [`adapter_weights`], for a checkpoint: what a card has made is read from it when a piece is asked for, or copied beside its
/// work.
///
/// # Errors
/// As [`adapter_weights`].
pub(crate) fn adapter_pieces(model: &Decoder) -> Result<Vec<Piece<'_>>> {
    let Some(card) = model.card().filter(|_| model.mesh().is_single() && model.begun().is_empty()) else {
        let piece = |(name, tensor): (String, Tensor)| {
            Piece::new(name, tensor.dtype(), tensor.dims().to_vec(), move || Ok(tensor.clone()))
        };
        return Ok(adapter_weights(model)?.into_iter().map(piece).collect());
    };
    let piece = |name: &str, of: &'_ Parameter| {
        let var = of.var().clone();
        let dtype = if is_of_adapter(of) { DType::F32 } else { var.dtype() };
        let (shape, read) = (var.dims().to_vec(), var.clone());
        let make = move || {
            card.fetch([&read])?;
            Ok(read.as_detached_tensor().to_dtype(dtype)?.copy()?)
        };
        let piece = Piece::new(name.to_owned(), dtype, shape, make);
        let copy = move || card.copy_of(var.as_tensor()).filter(|_| var.dtype() == dtype);
        piece.copied_by(copy)
    };
    let is_tied = model.config.tie_word_embeddings;
    let names = |of: &Parameter| [Some(of.name().to_string()), (is_tied && **of.name() == *TABLE).then(|| HEAD.into())];
    let all = model.trainable().iter().flat_map(|of| names(of).into_iter().flatten().map(move |name| (name, of)));
    Ok(all.map(|(name, of)| piece(&name, of)).collect())
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}
