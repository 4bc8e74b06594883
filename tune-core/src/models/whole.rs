//! Weights that are trained whole beside adapters: peft's `modules_to_save`.

use std::collections::{BTreeMap, BTreeSet};

use super::adapter::{LoraOptions, OfLayer};
use super::slots::Slot;
use super::spec::ModelSpec;
use crate::tokenizer::listed;
use crate::{Error, Result};

/// The weight that a tied output layer is.
pub(crate) const TABLE: &str = "model.embed_tokens.weight";
/// The weight of an output layer of its own.
pub(crate) const HEAD: &str = "lm_head.weight";
/// The weight of a head that scores sequences.
pub(crate) const SCORE: &str = "score.weight";
/// What is said of a checkpoint with such a head where tokens are to be predicted.
pub(crate) const SCORES_SEQUENCES: &str = "has a head that scores sequences (`score.weight`), and none for tokens: it is a reward \
     model or a classifier, which `reward` trains and transformers' AutoModelForSequenceClassification computes";

/// The module that a weight is of.
pub(crate) fn module_of(weight: &str) -> &str {
    weight.strip_suffix(".weight").or_else(|| weight.strip_suffix(".bias")).unwrap_or(weight)
}

/// Whether a module is one of those that are named, by peft's rule: the end of its name, not only at a dot.
pub(crate) fn is_saved(module: &str, named: &[String]) -> bool {
    named.iter().any(|name| module.ends_with(name.as_str()))
}

impl ModelSpec {
    /// The names of the weights of modules that are named by the ends of their names. A tied output layer is the embedding table.
    ///
    /// # Errors
    /// A name that no module has, or one of experts or what chooses them.
    pub(crate) fn weights_of(&self, named: &[String]) -> Result<BTreeSet<String>> {
        let weights = self.weights();
        let mut modules: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        weights.iter().for_each(|(name, _)| modules.entry(module_of(name)).or_default().push(name));
        if self.tie_word_embeddings {
            modules.insert(module_of(HEAD), vec![TABLE]);
        }
        let mut found = BTreeSet::new();
        for name in named {
            let of_name = modules.iter().filter(|(module, _)| !name.is_empty() && module.ends_with(name.as_str()));
            let of_name: Vec<_> = of_name.collect();
            if of_name.is_empty() {
                let last = |module: &&str| module.rsplit('.').next().unwrap_or(module).to_owned();
                let ends: BTreeSet<String> = modules.keys().map(last).collect();
                return Err(Error::setup(format!(
                    "model.modules_to_save: no module of the model is called `{name}`: it has {}",
                    listed(ends)
                )));
            }
            for (module, weights) in of_name {
                if module.contains(".experts.") || module.ends_with(&Slot::Router.path()) {
                    return Err(Error::setup(format!(
                        "model.modules_to_save: `{name}` names `{module}`; experts and what chooses them are not trained \
                         beside adapters here: leave it out"
                    )));
                }
                found.extend(weights.iter().map(|&weight| weight.to_owned()));
            }
        }
        Ok(found)
    }
}

impl LoraOptions {
    /// The names of a model's weights that are trained whole, beside the adapters of these layers.
    ///
    /// # Errors
    /// As [`ModelSpec::weights_of`]; a layer that gets an adapter, too; rows of tokens that are not trained beside these.
    pub(crate) fn whole_of(&self, model: &ModelSpec, adapted: &BTreeMap<String, OfLayer>) -> Result<BTreeSet<String>> {
        let whole = model.weights_of(&self.save)?;
        for layer in adapted.keys() {
            let is_head = layer.as_str() == module_of(HEAD);
            let weight =
                if is_head && model.tie_word_embeddings { TABLE.to_owned() } else { format!("{layer}.weight") };
            if whole.contains(&weight) {
                return Err(Error::setup(format!(
                    "`{layer}` gets an adapter, and model.modules_to_save trains its weight whole: name it in one of both"
                )));
            }
        }
        self.check_tokens(model, adapted, &whole)?;
        Ok(whole)
    }

    /// What there is to say of a table that is trained and that the output layer shares.
    pub(crate) fn of_tied(&self, model: &ModelSpec) -> Option<String> {
        let is_trained = model.weights_of(&self.save).is_ok_and(|whole| whole.contains(TABLE));
        (model.tie_word_embeddings && is_trained).then(|| {
            "the output layer of this model is its embedding table: model.modules_to_save trains it as one, as peft does with \
             ensure_weight_tying=True; the adapter's file has it under both names, so that each version of peft reads it"
                .to_owned()
        })
    }
}
