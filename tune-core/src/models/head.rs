//! A head that scores sequences, on a base model that may have none.

use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};

use super::adapter::LoraOptions;
use super::fresh::{FreshWeights, InitConfig};
use super::linear::Weight;
use super::spec::ModelSpec;
use super::weights::WeightSource;
use super::whole::{HEAD, SCORE, is_saved, module_of};
use crate::{Error, Result};

/// What transformers calls a score that has no name.
const UNNAMED: &str = "LABEL_";
/// The ends of transformers' names of models with an output layer for tokens, and of those with a head that scores sequences.
const KINDS: [&str; 2] = ["ForCausalLM", "ForSequenceClassification"];

/// A head that scores sequences: what its scores are of. transformers' models for sequence classification have the same one, a
/// matrix `[scores, hidden]` above the last norm, whose result counts at a sequence's last token that is no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    labels: Vec<String>,
}

impl Head {
    /// One score: a reward.
    #[must_use]
    pub fn reward() -> Self {
        Self { labels: vec![format!("{UNNAMED}0")] }
    }

    /// A score for each class.
    #[must_use]
    pub fn classes(labels: &[String]) -> Self {
        Self { labels: labels.to_vec() }
    }

    /// What each score is of.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The `config.json` of a model with this head, made from that of its base: `architectures`, the labels, and the token that
    /// fills rows up, without which transformers does not find the last token of a sequence.
    #[must_use]
    pub fn config(&self, base: &Value, pad: Option<u32>) -> Value {
        let mut config = base.clone();
        let named = base["architectures"][0].as_str().map(|name| match base["model_type"].as_str() {
            // Of the models with images and text this is the one for text.
            Some("gemma3_text") => format!("Gemma3Text{}", KINDS[1]),
            _ => name.replace(KINDS[0], KINDS[1]),
        });
        let ids = self.labels.iter().enumerate();
        let id2label: Map<String, Value> =
            ids.clone().map(|(id, label)| (id.to_string(), label.as_str().into())).collect();
        let label2id: Map<String, Value> = ids.map(|(id, label)| (label.clone(), id.into())).collect();
        if let Some(name) = named {
            config["architectures"] = vec![name].into();
        }
        config["num_labels"] = self.labels.len().into();
        config["id2label"] = id2label.into();
        config["label2id"] = label2id.into();
        if let Some(pad) = pad {
            config["pad_token_id"] = pad.into();
        }
        config
    }
}

impl LoraOptions {
    /// The same with a head that is trained whole beside the adapters and saved with them, as peft has it for sequence
    /// classification.
    #[must_use]
    pub fn with_head(mut self) -> Self {
        let head = module_of(SCORE);
        if !is_saved(head, &self.save) {
            self.save.push(head.to_owned());
        }
        self
    }
}

/// The weights of a base model below a head that scores sequences. The head is the base's own if it has one; a fresh one is normal,
/// with `initializer_range` of config.json as its standard deviation, as transformers draws it.
pub struct WithHead<'a> {
    base: &'a dyn WeightSource,
    fresh: FreshWeights,
    has_head: bool,
}

impl<'a> WithHead<'a> {
    /// For `model`, whose `config.json` is `config`; a fresh head is drawn from `seed`.
    ///
    /// # Errors
    /// As [`FreshWeights::new`].
    pub fn new(base: &'a dyn WeightSource, model: &ModelSpec, config: &Value, seed: u64) -> Result<Self> {
        let fresh = FreshWeights::new(model, config, &InitConfig::default(), seed)?;
        Ok(Self { base, fresh, has_head: base.names().iter().any(|name| name == SCORE) })
    }

    /// Says what is wrong with a base's own head.
    fn of_head(result: Result<Tensor>, shape: &[usize]) -> Result<Tensor> {
        let scores = shape.first().copied().unwrap_or_default();
        result.map_err(|error| {
            Error::setup(format!("the model that training starts from has a head of its own, and {scores} scores are to be trained: {error}"))
        })
    }
}

impl WeightSource for WithHead<'_> {
    fn weight(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        match (name == SCORE, self.has_head) {
            (true, true) => Self::of_head(self.base.weight(name, shape, dtype, device), shape),
            (true, false) => self.fresh.weight(name, shape, dtype, device),
            (false, _) => self.base.weight(name, shape, dtype, device),
        }
    }

    fn matrix(&self, name: &str, shape: [usize; 2], dtype: DType, device: &Device) -> Result<Weight> {
        match name == SCORE {
            true => self.weight(name, &shape, dtype, device).map(Weight::Tensor),
            false => self.base.matrix(name, shape, dtype, device),
        }
    }

    fn is_in_blocks(&self, name: &str) -> bool {
        self.base.is_in_blocks(name)
    }

    fn rows(&self, name: &str, shape: &[usize], rows: Range<usize>, dtype: DType, device: &Device) -> Result<Tensor> {
        match name == SCORE {
            true => {
                Ok(self.weight(name, shape, dtype, device)?.narrow(0, rows.start, rows.len())?.force_contiguous()?)
            }
            false => self.base.rows(name, shape, rows, dtype, device),
        }
    }

    /// All but the output layer for tokens, in whose place the head is.
    fn names(&self) -> Vec<String> {
        self.base.names().into_iter().filter(|name| name != HEAD).collect()
    }

    fn path(&self) -> Option<&Path> {
        self.base.path()
    }
}
