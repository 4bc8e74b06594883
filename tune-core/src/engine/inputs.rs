//! What layers are given: what an importance matrix is made of.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::cpu::Cpu;
use super::run::Run;
use super::{Precision, on_a_worker, parameters};
use crate::data::Batch;
use crate::kernels::Element;
use crate::kernels::view::View;
use crate::models::{Decoder, Site};
use crate::{Error, Result};

/// The squares of what the layers of a model's blocks are given, gathered by [`observe`].
#[derive(Debug, Default)]
pub struct Inputs(Mutex<BTreeMap<(usize, Site), Squares>>);

/// Those of one layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Squares {
    /// Of each column, summed over the rows.
    pub(crate) sums: Vec<f64>,
    /// How many rows there were: tokens, mostly.
    pub(crate) rows: u64,
}

impl Inputs {
    /// Adds what a layer of a block is given, `[rows, inner]`.
    pub(super) fn add<T: Element>(&self, layer: (usize, Site), x: View<'_, T>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let squares = all.entry(layer).or_default();
        squares.sums.resize(x.cols(), 0.0);
        squares.rows += x.rows() as u64;
        for row in 0..x.rows() {
            for (sum, x) in squares.sums.iter_mut().zip(x.row(row)) {
                let x = f64::from(x.to_f32());
                *sum += x * x;
            }
        }
    }

    /// All of them, by block and layer.
    pub(crate) fn into_squares(self) -> BTreeMap<(usize, Site), Squares> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a batch through a model's blocks, without dropout, and adds what their layers are given to `inputs`. There are no logits:
/// nothing is said of the output layer.
///
/// # Errors
/// A token outside the vocabulary, and a model that the processor does not compute in fp32 or bf16.
pub fn observe(model: &Decoder, batch: &Batch, inputs: &Inputs) -> Result<()> {
    let batch = batch.without_padding();
    match Precision::of(model)? {
        Precision::F32 => on_a_worker(|| through_blocks::<f32>(model, &batch, inputs)),
        Precision::Bf16 => on_a_worker(|| through_blocks::<half::bf16>(model, &batch, inputs)),
        _ => Err(Error::setup("what layers are given is gathered on the processor, in fp32 or bf16")),
    }
}

fn through_blocks<T: Element>(model: &Decoder, batch: &Batch, inputs: &Inputs) -> Result<()> {
    let backend = Cpu::<T>::observing(inputs);
    let parameters = parameters(model, None, false);
    Run::new(&backend, &model.config, &*parameters, batch).through_blocks().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Slot;

    #[test]
    fn squares_are_summed_by_column() {
        let (inputs, layer) = (Inputs::default(), (0, Site::from(Slot::OProj)));
        // Two columns of rows of three.
        let x = [1.0f32, -2.0, 9.0, 3.0, 0.5, 9.0];
        inputs.add(layer, View::strided(&x, (2, 2), 3));
        inputs.add(layer, View::new(&[half::bf16::from_f32(-2.0), half::bf16::ONE], 2));
        let expected = Squares { sums: vec![1.0 + 9.0 + 4.0, 4.0 + 0.25 + 1.0], rows: 3 };
        assert_eq!(inputs.into_squares(), BTreeMap::from([(layer, expected)]));
    }
}
