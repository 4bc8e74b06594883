//! Which layers get an adapter, by patterns: peft's `target_modules` and what goes with it.

use std::collections::BTreeMap;

use super::adapter::OfLayer;
use super::slots::Slot;
use super::spec::{ModelSpec, Site};
use crate::checkpoint::peft::{Layers, fits, is_named};
use crate::tokenizer::listed;
use crate::{Error, Result};

/// What is said of layers by their names. What is empty says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Targets {
    /// Names of layers or what these end in at a dot, regular expressions for whole names, or `all-linear`.
    pub modules: Vec<String>,
    /// Layers that are left out, the only blocks that carry adapters, ranks and alphas.
    pub layers: Layers,
}

/// All linear layers but the output layer.
const ALL: &str = "all-linear";

/// Whether a text is a name and no expression. A dot is a part of names.
fn is_name(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c))
}

impl Targets {
    /// Checks what is to be regular expressions.
    pub(crate) fn check_expressions(&self) -> Result<()> {
        let expressions = self.modules.iter().filter(|module| !is_name(module));
        expressions.map(|module| self.fits(module, "", Slot::QProj.into())).try_for_each(|fits| fits.map(drop))?;
        self.layers.check_expressions().map_err(of_config)
    }

    /// Whether a layer is one of those that are named.
    ///
    /// # Errors
    /// An expression that is none.
    pub(crate) fn name(&self, layer: &str, site: Site) -> Result<bool> {
        for module in &self.modules {
            if self.fits(module, layer, site)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn fits(&self, module: &str, layer: &str, site: Site) -> Result<bool> {
        match module {
            ALL => Ok(site.slot != Slot::LmHead),
            name if is_name(name) => Ok(is_named(layer, name)),
            expression => {
                let with_help = |what| {
                    let help = if expression.contains('*') { "; for any text, write `.*`" } else { "" };
                    Error::setup(format!("{what}{help}"))
                };
                let key = "model.target_modules";
                // As it stands first, for the message.
                fits(expression, "", key).map_err(with_help)?;
                fits(&format!("^(?:{expression})$"), layer, key).map_err(with_help)
            }
        }
    }

    /// Whether a layer that is named gets no adapter all the same.
    ///
    /// # Errors
    /// An expression that is none.
    pub(crate) fn leave_out(&self, layer: &str) -> Result<bool> {
        let is_whole = self.modules.iter().any(|module| module == layer);
        Ok(self.layers.left_out_by(layer, is_whole).map_err(of_config)?.is_some())
    }

    /// The rank of a layer's adapter, where it is not that of all.
    pub(crate) fn rank(&self, layer: &str) -> Result<Option<usize>> {
        self.layers.rank(layer).map_err(of_config)
    }

    /// The alpha of a layer's adapter, where it is not that of all.
    pub(crate) fn alpha(&self, layer: &str) -> Result<Option<f64>> {
        self.layers.alpha(layer).map_err(of_config)
    }

    /// Refuses what fits none of a model's layers, or none of those that get adapters: it is a mistake.
    ///
    /// # Errors
    /// The first that fits none.
    pub(crate) fn check(&self, model: &ModelSpec, adapted: &BTreeMap<String, OfLayer>) -> Result<()> {
        let layers = model.named_layers();
        for module in &self.modules {
            let mut found = false;
            for (name, layer) in &layers {
                found |= self.fits(module, name, layer.site)?;
            }
            if found {
                continue;
            }
            let mut ends: Vec<&str> = layers.iter().map(|(_, layer)| layer.site.slot.name()).collect();
            ends.sort_unstable();
            ends.dedup();
            let is_table = module.ends_with("embed_tokens");
            let table = if is_table {
                "; the embedding table is no linear layer, and cannot carry an adapter here"
            } else {
                ""
            };
            return Err(Error::setup(format!(
                "model.target_modules: no layer of the model is called `{module}`: it has {}{table}",
                listed(ends)
            )));
        }
        let blocks = model.blocks.len() as u64;
        if let Some(block) = self.layers.layers_to_transform.iter().find(|&&block| block >= blocks) {
            return Err(Error::setup(format!(
                "model.layers_to_transform names the block {block}, and the model has the blocks 0 to {}",
                blocks.saturating_sub(1)
            )));
        }
        let ranks = self.layers.rank_pattern.iter().map(|(key, rank)| ("model.rank_pattern", key, *rank > 0));
        let alphas = self.layers.alpha_pattern.iter().map(|(key, _)| ("model.alpha_pattern", key, true));
        for (key, pattern, is_sound) in ranks.chain(alphas) {
            if !is_sound {
                return Err(Error::setup(format!("{key}: the rank of `{pattern}` is 0; at least 1 was expected")));
            }
            let mut found = false;
            for name in adapted.keys() {
                found |= fits(&format!(r"^(?:.*\.)?(?:{pattern})$"), name, key).map_err(Error::setup)?;
            }
            if !found {
                return Err(Error::setup(format!(
                    "{key}: `{pattern}` fits no layer that gets an adapter; it is a regular expression for the end of a \
                     layer's name, such as `q_proj` or `layers.0.mlp.*`"
                )));
            }
        }
        Ok(())
    }
}

// It is given away by `map_err`.
#[allow(clippy::needless_pass_by_value)]
fn of_config(what: String) -> Error {
    Error::setup(format!("model.{what}"))
}
