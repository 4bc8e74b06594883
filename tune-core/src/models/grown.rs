//! The weights that training begins with: those of a base, with adapters merged in and rows for new tokens.

use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::in_blocks::FrozenBase;
use super::linear::Weight;
use super::weights::WeightSource;
use super::whole::{HEAD, TABLE};
use crate::Result;
use crate::checkpoint::merge::Merged;

/// Rows that are read at a time for their mean.
const AT_ONCE: usize = 1024;

/// Weights of whose embedding table and output layer more rows may be asked for than there are: each is the mean of those, as in
/// transformers, which adds noise of a billionth of their covariance.
#[derive(Debug, Clone, Copy)]
pub enum Grown<'a> {
    /// Those of a base.
    Base(FrozenBase<'a>),
    /// Those of a base with adapters, which are merged in as they are read.
    Merged(&'a Merged),
}

impl Grown<'_> {
    fn inner(&self) -> &dyn WeightSource {
        match self {
            Self::Base(base) => base,
            Self::Merged(merged) => *merged,
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self {
            Self::Base(base) => base.checkpoint.shape(name).map(<[usize]>::to_vec),
            Self::Merged(merged) => Some(vec![merged.spec().vocab_size, merged.spec().hidden_size]),
        }
    }

    /// The rows that a table has in the base, if more are asked for.
    fn stored(&self, name: &str, shape: &[usize]) -> Option<usize> {
        let stored = Some(name).filter(|name| [TABLE, HEAD].contains(name)).and_then(|name| self.shape(name))?;
        (stored.len() == 2 && shape.len() == 2 && stored[1] == shape[1] && stored[0] < shape[0]).then_some(stored[0])
    }

    /// The mean of a table's rows, `[1, width]`.
    fn mean(&self, name: &str, [rows, width]: [usize; 2], dtype: DType, device: &Device) -> Result<Tensor> {
        let mut sum = Tensor::zeros((1, width), DType::F64, &Device::Cpu)?;
        for first in (0..rows).step_by(AT_ONCE) {
            let some = first..(first + AT_ONCE).min(rows);
            let some = self.inner().rows(name, &[rows, width], some, DType::F32, &Device::Cpu)?;
            sum = (sum + some.to_dtype(DType::F64)?.sum_keepdim(0)?)?;
        }
        Ok((sum / rows as f64)?.to_dtype(dtype)?.to_device(device)?)
    }
}

impl WeightSource for Grown<'_> {
    fn weight(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        match self.stored(name, shape) {
            None => self.inner().weight(name, shape, dtype, device),
            Some(_) => self.rows(name, shape, 0..shape[0], dtype, device),
        }
    }

    fn matrix(&self, name: &str, shape: [usize; 2], dtype: DType, device: &Device) -> Result<Weight> {
        match self.stored(name, &shape) {
            None => self.inner().matrix(name, shape, dtype, device),
            Some(_) => self.weight(name, &shape, dtype, device).map(Weight::Tensor),
        }
    }

    fn is_in_blocks(&self, name: &str) -> bool {
        self.inner().is_in_blocks(name)
    }

    fn rows(&self, name: &str, shape: &[usize], rows: Range<usize>, dtype: DType, device: &Device) -> Result<Tensor> {
        let Some(stored) = self.stored(name, shape) else { return self.inner().rows(name, shape, rows, dtype, device) };
        let width = shape[1];
        let (old, new) = (
            rows.start.min(stored)..rows.end.min(stored),
            rows.len() - rows.end.min(stored).saturating_sub(rows.start),
        );
        let mut parts = Vec::new();
        if !old.is_empty() {
            parts.push(self.inner().rows(name, &[stored, width], old, dtype, device)?);
        }
        if new > 0 {
            parts
                .push(self.mean(name, [stored, width], dtype, device)?.broadcast_as((new, width))?.force_contiguous()?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    fn names(&self) -> Vec<String> {
        self.inner().names()
    }

    fn path(&self) -> Option<&Path> {
        self.inner().path()
    }
}

/// Writes another number of tokens into a `config.json`.
pub(crate) fn set_vocab_size(config: &mut Value, rows: usize) {
    match config.get_mut("text_config").filter(|text| text.get("vocab_size").is_some()) {
        Some(text) => text["vocab_size"] = rows.into(),
        None => config["vocab_size"] = rows.into(),
    }
}
