//! Weights that adapters bring along whole (peft's `modules_to_save`), or of which they bring rows of single tokens along
//! (`trainable_token_indices`): they stand in for the base's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::merge::{Merged, Part};
use super::peft::AdapterConfig;
use super::{Checkpoint, same_bits};
use crate::models::{HEAD, ModelSpec, TABLE, WeightSource};
use crate::{Error, Result};

/// Whole weights by their names.
#[derive(Debug, Default)]
pub(super) struct Whole {
    tensors: BTreeMap<String, Tensor>,
    /// The adapter that each is from.
    from: BTreeMap<String, PathBuf>,
    /// Whether a tied output layer goes with the table.
    is_tied: bool,
}

impl Whole {
    /// Takes them out of an adapter's tensors.
    ///
    /// # Errors
    /// A weight that the model does not have, of another shape, or that another adapter brings along, too; an adapter that is to count
    /// for more or less than one.
    pub(super) fn take(
        &mut self,
        part: &Part,
        config: &AdapterConfig,
        tensors: &mut BTreeMap<String, Tensor>,
        model: &ModelSpec,
    ) -> Result<()> {
        let refuse = |what: String| Err(Error::file(&part.dir, what));
        let shapes: BTreeMap<String, Vec<usize>> = model.weights().into_iter().collect();
        for (name, tensor) in tensors.extract_if(.., |name, _| config.saves(name)) {
            let Some(shape) = shapes.get(if name == HEAD && model.tie_word_embeddings { TABLE } else { &name }) else {
                return refuse(format!("brings along `{name}`, which the model does not have; it is for another base"));
            };
            // A table may have grown.
            let is_table = [TABLE, HEAD].contains(&&*name);
            let rows_may_differ = usize::from(is_table);
            if tensor.rank() != shape.len() || tensor.dims()[rows_may_differ..] != shape[rows_may_differ..] {
                return refuse(format!(
                    "brings along `{name}` of shape {:?}, and in the base it is {shape:?}; it is for another base",
                    tensor.dims()
                ));
            }
            if (part.weight - 1.0).abs() > 0.0 {
                return refuse(format!(
                    "brings along `{name}` whole (modules_to_save), so there is no part of it to take: its weight is {}, and 1 \
                     was expected",
                    part.weight
                ));
            }
            // What stands on another adapter was trained with its weights, and has them as they became.
            if let Some(other) =
                self.from.insert(name.clone(), part.dir.clone()).filter(|_| config.base_adapters.is_empty())
            {
                return refuse(format!(
                    "brings along `{name}` whole (modules_to_save), and so does {}: one of them would be lost; merge them one \
                     after the other, if that is meant",
                    other.display()
                ));
            }
            self.tensors.insert(name, tensor);
        }
        self.is_tied |= config.ensure_weight_tying;
        if model.tie_word_embeddings
            && let (Some(table), Some(head)) = (self.tensors.get(TABLE), self.tensors.get(HEAD))
            && same_bits(table, head)?
        {
            self.tensors.remove(HEAD);
            self.is_tied = true;
        }
        Ok(())
    }

    /// Takes rows of single tokens out of an adapter's tensors: the weight is the base's, or what an adapter before it has made of that,
    /// with these rows in it. A tied output layer goes with the table.
    ///
    /// # Errors
    /// Rows of what has none for tokens, of another width or of tokens that there are not; an adapter that is to count for more or less
    /// than one; and as [`Whole::take`].
    pub(super) fn take_rows(
        &mut self,
        part: &Part,
        config: &AdapterConfig,
        tensors: &mut BTreeMap<String, Tensor>,
        base: (&ModelSpec, &Checkpoint),
    ) -> Result<()> {
        let refuse = |what: String| Err(Error::file(&part.dir, what));
        let (model, base) = base;
        for (name, rows) in tensors.extract_if(.., |name, _| config.rows_of(name).is_some()) {
            let Some((module, ids)) = config.rows_of(&name) else { continue };
            let weight = format!("{module}.weight");
            if weight != TABLE && (weight != HEAD || model.tie_word_embeddings) {
                return refuse(format!(
                    "brings along rows of tokens for `{module}`, which has none of its own in this model; it is for another base"
                ));
            }
            if (part.weight - 1.0).abs() > 0.0 {
                return refuse(format!(
                    "brings along rows of tokens (trainable_token_indices), of which there is no part to take: its weight is {}, and 1 \
                     was expected",
                    part.weight
                ));
            }
            let is_alone = config.base_adapters.is_empty();
            if let Some(other) = self.from.insert(weight.clone(), part.dir.clone()).filter(|_| is_alone) {
                return refuse(format!(
                    "brings along rows of `{weight}`, and {} brings that along, too: one of them would be lost; merge them one after the \
                     other, if that is meant",
                    other.display()
                ));
            }
            let table = match self.tensors.get(&weight) {
                Some(table) => table.copy()?,
                None => base.tensor(&weight, base.stored_dtype(&weight).unwrap_or(DType::F32), &Device::Cpu)?,
            };
            let (count, width) = table.dims2()?;
            if let Some(id) = ids.iter().find(|&&id| id as usize >= count) {
                return refuse(format!("brings along a row for the token {id}, and `{weight}` has {count}"));
            }
            if rows.dims() != [ids.len(), width] {
                return refuse(format!(
                    "brings along rows of shape {:?} for {} tokens of `{weight}`, whose rows have {width} numbers; it is for another base",
                    rows.dims(),
                    ids.len()
                ));
            }
            let rows = rows.to_dtype(table.dtype())?;
            for (i, &id) in ids.iter().enumerate() {
                table.slice_set(&rows.narrow(0, i, 1)?.force_contiguous()?, 0, id as usize)?;
            }
            self.is_tied |= model.tie_word_embeddings;
            self.tensors.insert(weight, table);
        }
        Ok(())
    }

    /// Checks that both tables have the same tokens.
    ///
    /// # Errors
    /// Where they have not.
    pub(super) fn check(&self, model: &ModelSpec) -> Result<()> {
        let spec = self.spec(model);
        let rows = |name: &str| self.tensors.get(name).map_or(model.vocab_size, |tensor| tensor.dims()[0]);
        let head = if spec.tie_word_embeddings { rows(TABLE) } else { rows(HEAD) };
        if rows(TABLE) == head {
            return Ok(());
        }
        let from = self.from.get(TABLE).or_else(|| self.from.get(HEAD)).map_or(Path::new(""), PathBuf::as_path);
        Err(Error::file(
            from,
            format!(
                "its embedding table has {} rows and the output layer {head}: where tokens are new, both are to be saved with the \
                 adapter",
                rows(TABLE)
            ),
        ))
    }

    /// The model with these weights: a table may have more rows, and a tied output layer may be one of its own.
    pub(super) fn spec(&self, model: &ModelSpec) -> ModelSpec {
        let has = |name: &str| self.tensors.contains_key(name);
        let is_parted = has(HEAD) || (has(TABLE) && !self.is_tied);
        let vocab_size = self.tensors.get(TABLE).map_or(model.vocab_size, |table| table.dims()[0]);
        ModelSpec { vocab_size, tie_word_embeddings: model.tie_word_embeddings && !is_parted, ..model.clone() }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
}

/// The weights of a base with those that adapters bring along in their places, and without the updates of adapters.
pub(super) struct WithWhole<'a>(pub(super) &'a Merged);

impl WeightSource for WithWhole<'_> {
    fn weight(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.0.own(name, dtype)?;
        if tensor.dims() != shape {
            return Err(Error::setup(format!("the weight `{name}` has shape {:?}, not {shape:?}", tensor.dims())));
        }
        Ok(tensor.to_device(device)?)
    }

    fn names(&self) -> Vec<String> {
        WeightSource::names(self.0.base())
    }

    fn path(&self) -> Option<&Path> {
        Some(self.0.base().path())
    }
}
