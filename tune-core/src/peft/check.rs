//! Whether the adapters in a folder are of the kind that a run trains.

use std::path::Path;

use super::{LoraOptions, OfLayer, tokens_of};
use crate::checkpoint::peft::{AdapterConfig, Layers};
use crate::checkpoint::{Below, Checkpoint};
use crate::models::ModelSpec;
use crate::tokenizer::listed;
use crate::{Error, Result};

impl LoraOptions {
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
