//! Rows of the embedding table that are trained beside adapters, while all others stay: peft's `trainable_token_indices`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::adapter::OfLayer;
use super::linear::Weight;
use super::spec::ModelSpec;
use super::weights::WeightSource;
use super::whole::{HEAD, TABLE, module_of};
use crate::tokenizer::{Tokenizer, listed};
use crate::{Error, Result};

/// The name of their parameter.
pub(crate) const TOKEN_ROWS: &str = "model.embed_tokens.token_adapter.trainable_tokens_delta";

/// The tokens whose rows are trained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrainedTokens {
    /// Their ids, in the order in which their rows are saved.
    pub ids: Arc<[u32]>,
    /// More of them by their texts, whose ids are to be [looked up](Self::looked_up).
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
    ///
    /// # Errors
    /// A text that is no single token.
    pub fn looked_up(&self, tokenizer: &Tokenizer) -> Result<Self> {
        let mut ids = self.ids.to_vec();
        for text in &self.texts {
            ids.push(tokenizer.token_id(text).ok_or_else(|| {
                Error::setup(format!(
                    "model.trainable_tokens: `{text}` is no token of the tokenizer: name tokens as tokenizer.json has them, or add it \
                     as model.new_tokens"
                ))
            })?);
        }
        Ok(Self::of(&ids))
    }

    /// Checks them against a model of which these layers get adapters and these weights are trained whole.
    ///
    /// # Errors
    /// A token that there is not, or that is named twice; a table that is trained whole or has an adapter in its role as output layer.
    pub(super) fn check(
        &self,
        model: &ModelSpec,
        adapted: &BTreeMap<String, OfLayer>,
        whole: &BTreeSet<String>,
    ) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let refuse = |what: String| Err(Error::setup(format!("model.trainable_token_indices: {what}")));
        if let Some(id) = self.ids.iter().find(|&&id| id as usize >= model.vocab_size) {
            return refuse(format!(
                "{id} is no token of the model: its embedding table has {} rows, of the tokens 0 to {}",
                model.vocab_size,
                model.vocab_size.saturating_sub(1)
            ));
        }
        let mut seen = BTreeSet::new();
        if let Some(id) = self.ids.iter().find(|id| !seen.insert(**id)) {
            return refuse(format!("the token {id} is named twice, here or by its text in model.trainable_tokens"));
        }
        if whole.contains(TABLE) {
            return refuse(
                "the embedding table is trained whole, by model.modules_to_save or for model.new_tokens, and these rows with it: \
                 name tokens here or the table there"
                    .to_owned(),
            );
        }
        if model.tie_word_embeddings && adapted.contains_key(module_of(HEAD)) {
            return refuse(
                "the output layer of this model is its embedding table, of which these rows are trained, and gets an adapter: leave \
                 `lm_head` out (model.apply_lora_to_output=false)"
                    .to_owned(),
            );
        }
        if model.scores.is_some() {
            return refuse(
                "rows are not trained below a head that scores sequences, for now: leave them out".to_owned(),
            );
        }
        Ok(())
    }

    /// Why a model is not trained with them that is computed as if it were quantized.
    pub(crate) fn not_quantized() -> Error {
        Error::setup(
            "quantizer: rows of single tokens (model.trainable_token_indices) are not rounded as their table is: leave them out",
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

/// Rows that are trained and stand in for those of a frozen embedding table, and of the output layer where that is the same table.
#[derive(Debug, Clone)]
pub(crate) struct TokenRows {
    /// Whose they are, in the order of the rows.
    pub(crate) ids: Arc<[u32]>,
    /// `[tokens, hidden]`, or of these rows the ones that are this process's.
    pub(crate) rows: Var,
}

impl TokenRows {
    /// The rows of tokens as a model of `dtype` has them, in f32: those of the table that is read from `source`. `here` says which of
    /// them are this process's; `None` where it has the whole table.
    ///
    /// # Errors
    /// Texts without ids, and those of the source.
    pub(super) fn read(
        tokens: &TrainedTokens,
        (model, dtype): (&ModelSpec, DType),
        table: &Weight,
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
                _ => source.rows(TABLE, &[model.vocab_size, width], at..at + 1, dtype, &Device::Cpu),
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
