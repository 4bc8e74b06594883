//! Rows of the embedding table and of the output layer that are trained beside adapters, while all others stay: peft's
//! `trainable_token_indices`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::adapter::{LoraOptions, OfLayer};
use super::linear::Weight;
use super::spec::ModelSpec;
use super::weights::WeightSource;
use super::whole::{HEAD, TABLE, module_of};
use crate::tokenizer::{Tokenizer, listed};
use crate::{Error, Result};

/// The name of the parameter that rows of the embedding table are.
pub(crate) const TOKEN_ROWS: &str = "model.embed_tokens.token_adapter.trainable_tokens_delta";
/// That of rows of an output layer of its own.
pub(crate) const OUTPUT_ROWS: &str = "lm_head.token_adapter.trainable_tokens_delta";

/// The keys of the config that name tokens by their ids and by their texts.
type Keys = [&'static str; 2];
const OF_TABLE: Keys = ["model.trainable_token_indices", "model.trainable_tokens"];
const OF_OUTPUT: Keys = ["model.trainable_output_token_indices", "model.trainable_output_tokens"];

/// The tokens whose rows are trained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrainedTokens {
    /// Their ids, in the order in which their rows are saved.
    pub ids: Arc<[u32]>,
    /// More of them by their texts, whose ids [`Opened::with_token_ids`](crate::recipe::Opened::with_token_ids) looks up.
    pub texts: Vec<String>,
}

impl TrainedTokens {
    /// Tokens of which all ids are known.
    #[must_use]
    pub fn of(ids: &[u32]) -> Self {
        Self { ids: ids.into(), texts: Vec::new() }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.texts.is_empty()
    }

    /// The same with the ids of all texts behind those that are there.
    fn looked_up(&self, tokenizer: &Tokenizer, [_, texts]: Keys) -> Result<Self> {
        let mut ids = self.ids.to_vec();
        for text in &self.texts {
            ids.push(tokenizer.token_id(text).ok_or_else(|| {
                Error::setup(format!(
                    "{texts}: `{text}` is no token of the tokenizer: name tokens as tokenizer.json has them, or add it as \
                     model.new_tokens"
                ))
            })?);
        }
        Ok(Self::of(&ids))
    }

    /// Checks that they are rows of a `table` of the model, each named once, and that the table is not trained `whole`.
    fn check(&self, [ids, texts]: Keys, model: &ModelSpec, table: &str, whole: bool) -> Result<()> {
        let refuse = |what: String| Err(Error::setup(format!("{ids}: {what}")));
        if let Some(id) = self.ids.iter().find(|&&id| id as usize >= model.vocab_size) {
            return refuse(format!(
                "{id} is no token of the model: its {table} has {} rows, of the tokens 0 to {}",
                model.vocab_size,
                model.vocab_size.saturating_sub(1)
            ));
        }
        let mut seen = BTreeSet::new();
        if let Some(id) = self.ids.iter().find(|id| !seen.insert(**id)) {
            return refuse(format!("the token {id} is named twice, here or by its text in {texts}"));
        }
        if whole {
            return refuse(format!(
                "the {table} is trained whole, by model.modules_to_save or for model.new_tokens, and these rows with it: name tokens \
                 here or the {table} there"
            ));
        }
        match model.scores {
            Some(_) => {
                refuse("rows are not trained below a head that scores sequences, for now: leave them out".to_owned())
            }
            None => Ok(()),
        }
    }

    /// Why a model is not trained with them that is computed as if it were quantized.
    pub(crate) fn not_quantized() -> Error {
        Error::setup(
            "quantizer: rows of single tokens (model.trainable_token_indices, model.trainable_output_token_indices) are not rounded as \
             their tables are: leave them out",
        )
    }

    /// Them in a few words.
    pub(crate) fn describe(&self) -> Option<String> {
        let of_texts = self.texts.iter().map(|text| format!("`{text}`"));
        let all: Vec<String> = self.ids.iter().map(u32::to_string).chain(of_texts).collect();
        match &all[..] {
            [] => None,
            [one] => Some(format!("the row of token {one}")),
            [..] if all.len() <= 8 => Some(format!("the rows of tokens {}", all.join(", "))),
            [..] => Some(format!("the rows of {} tokens", all.len())),
        }
    }
}

impl LoraOptions {
    /// Whether rows of single tokens are trained.
    pub(crate) fn trains_rows(&self) -> bool {
        !self.tokens.is_empty() || !self.output_tokens.is_empty()
    }

    /// Whether tokens are named by their texts, whose ids are to be looked up.
    pub(crate) fn names_tokens(&self) -> bool {
        !self.tokens.texts.is_empty() || !self.output_tokens.texts.is_empty()
    }

    /// The same with the ids of all tokens that are named by their texts.
    ///
    /// # Errors
    /// A text that is no single token.
    pub(crate) fn with_tokens_looked_up(self, tokenizer: &Tokenizer) -> Result<Self> {
        let tokens = self.tokens.looked_up(tokenizer, OF_TABLE)?;
        let output_tokens = self.output_tokens.looked_up(tokenizer, OF_OUTPUT)?;
        Ok(Self { tokens, output_tokens, ..self })
    }

    /// Checks the tokens whose rows are trained against a model of which these layers get adapters and these weights are trained whole.
    ///
    /// # Errors
    /// A token that there is not, or that is named twice; a table that is trained whole; an output layer that has an adapter, or that is
    /// the embedding table where its own rows are named.
    pub(super) fn check_tokens(
        &self,
        model: &ModelSpec,
        adapted: &BTreeMap<String, OfLayer>,
        whole: &BTreeSet<String>,
    ) -> Result<()> {
        let refuse = |[ids, _]: Keys, what: &str| Err(Error::setup(format!("{ids}: {what}")));
        let has_adapter = adapted.contains_key(module_of(HEAD));
        if !self.tokens.is_empty() {
            self.tokens.check(OF_TABLE, model, "embedding table", whole.contains(TABLE))?;
            if model.tie_word_embeddings && has_adapter {
                return refuse(
                    OF_TABLE,
                    "the output layer of this model is its embedding table, of which these rows are trained, and gets an adapter: leave \
                     `lm_head` out (model.apply_lora_to_output=false)",
                );
            }
        }
        if !self.output_tokens.is_empty() {
            if model.tie_word_embeddings {
                return refuse(
                    OF_OUTPUT,
                    "the output layer of this model is its embedding table: name the tokens in model.trainable_token_indices, whose rows \
                     are those of both",
                );
            }
            self.output_tokens.check(OF_OUTPUT, model, "output layer", whole.contains(HEAD))?;
            if has_adapter {
                return refuse(
                    OF_OUTPUT,
                    "the output layer, of which these rows are trained, gets an adapter, too: leave `lm_head` out \
                     (model.apply_lora_to_output=false)",
                );
            }
        }
        Ok(())
    }
}

/// Rows that are trained and stand in for those of a frozen embedding table, and of the output layer where that is the same table; or for
/// those of an output layer of its own.
#[derive(Debug, Clone)]
pub(crate) struct TokenRows {
    /// Whose they are, in the order of the rows.
    pub(crate) ids: Arc<[u32]>,
    /// `[tokens, hidden]`, or of these rows the ones that are this process's.
    pub(crate) rows: Var,
}

impl TokenRows {
    /// The rows of tokens as a model of `dtype` has them, in f32: those of the table, a weight of this name, that is read from `source`.
    /// `here` says which of them are this process's; `None` where it has the whole table.
    ///
    /// # Errors
    /// Texts without ids, and those of the source.
    pub(super) fn read(
        tokens: &TrainedTokens,
        (model, dtype): (&ModelSpec, DType),
        (name, table): (&str, &Weight),
        source: &dyn WeightSource,
        here: Option<std::ops::Range<usize>>,
    ) -> Result<Self> {
        if !tokens.texts.is_empty() {
            return Err(Error::setup(format!(
                "{} have no ids yet: a recipe asks `Opened::with_token_ids` for them",
                listed(&tokens.texts)
            )));
        }
        let (width, is_whole) = (model.hidden_size, here.is_none());
        let row = |&id: &u32| -> Result<Tensor> {
            let at = id as usize;
            match table {
                Weight::Quantized(of) => {
                    let mut values = vec![0f32; width];
                    of.row(at, 0, &mut values);
                    let row = Tensor::from_vec(values, (1, width), &Device::Cpu)?;
                    // As a product has it.
                    Ok(row.to_dtype(dtype)?)
                }
                Weight::Tensor(table) if is_whole => Ok(table.narrow(0, at, 1)?.force_contiguous()?),
                _ => source.rows(name, &[model.vocab_size, width], at..at + 1, dtype, &Device::Cpu),
            }
        };
        let of_rows = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let here = here.unwrap_or(0..tokens.ids.len());
        let rows = match here.is_empty() {
            true => Tensor::zeros((0, width), of_rows, &Device::Cpu)?,
            false => {
                let rows: Vec<Tensor> = tokens.ids[here].iter().map(row).collect::<Result<_>>()?;
                Tensor::cat(&rows, 0)?.to_dtype(of_rows)?
            }
        };
        Ok(Self { ids: Arc::clone(&tokens.ids), rows: Var::from_tensor(&rows)? })
    }

    /// A table with these `rows` `[tokens, hidden]` in it.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub(super) fn put_into(&self, table: &Tensor, rows: &Tensor) -> Result<Tensor> {
        let (table, rows) = (table.copy()?, rows.to_dtype(table.dtype())?);
        for (i, &id) in self.ids.iter().enumerate() {
            table.slice_set(&rows.narrow(0, i, 1)?.force_contiguous()?, 0, id as usize)?;
        }
        Ok(table)
    }
}
