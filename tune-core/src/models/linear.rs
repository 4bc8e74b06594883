//! One linear layer of a model, with or without an adapter.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use half::bf16;

use super::adapter::Adapter;
use crate::kernels::{Dropout, Element, Format, Quantized, Share, parallel};
use crate::{Error, Result};

/// Rows of a matrix that are widened at a time.
const ROWS: usize = 256;

/// A matrix of a model.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Numbers in the model's dtype; trained if it is a variable.
    Tensor(Tensor),
    /// Frozen, in blocks that products dequantize piece by piece.
    Quantized(Arc<Quantized>),
    /// The part of such a matrix that is this process's, where several train together.
    Share(Arc<Share>),
}

impl Weight {
    /// Rows and columns.
    ///
    /// # Errors
    /// A tensor that is no matrix.
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Tensor(tensor) => Ok(tensor.dims2()?),
            Self::Quantized(of) => Ok(of.dims()),
            Self::Share(of) => Ok(of.dims()),
        }
    }

    /// Whether it is trained.
    pub fn is_variable(&self) -> bool {
        matches!(self, Self::Tensor(tensor) if tensor.is_variable())
    }

    /// The sum of the squares of each row, as a model of `dtype` has its numbers.
    ///
    /// # Errors
    /// Those of the tensor library; a matrix of which only a part is here.
    pub(crate) fn squares(&self, dtype: DType) -> Result<Vec<f64>> {
        match self {
            Self::Tensor(tensor) => {
                let (rows, _) = tensor.dims2()?;
                let mut squares = Vec::with_capacity(rows);
                // Some rows at a time, for they are widened.
                for first in (0..rows).step_by(ROWS) {
                    let some = tensor.detach().narrow(0, first, ROWS.min(rows - first))?.to_dtype(DType::F64)?;
                    squares.extend(some.sqr()?.sum(1)?.to_vec1::<f64>()?);
                }
                Ok(squares)
            }
            Self::Quantized(of) => {
                let (rows, cols) = of.dims();
                fn square<T: Element>(of: &Quantized, row: usize, cols: usize) -> f64 {
                    let mut values = vec![T::from_f32(0.0); cols];
                    of.row(row, 0, &mut values);
                    values.into_iter().map(|x| f64::from(x.to_f32()).powi(2)).sum()
                }
                let square = if dtype == DType::BF16 { square::<bf16> } else { square::<f32> };
                Ok(parallel::map(rows, |row| square(of, row, cols)))
            }
            Self::Share(_) => {
                Err(Error::setup("the rows of a matrix that is divided among processes have no lengths here"))
            }
        }
    }

    /// Its blocks, if it is in blocks and all of it is here.
    pub fn quantized(&self) -> Option<&Quantized> {
        match self {
            Self::Tensor(_) | Self::Share(_) => None,
            Self::Quantized(of) => Some(of),
        }
    }

    /// The format of its blocks, if it is in blocks.
    pub fn format(&self) -> Option<Format> {
        match self {
            Self::Tensor(_) => None,
            Self::Quantized(of) => Some(of.format()),
            Self::Share(of) => Some(of.format()),
        }
    }

    /// Its numbers; `name` is what it is called.
    ///
    /// # Errors
    /// It is in blocks, which are not dequantized as a whole.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        let in_blocks = |format: Format| {
            Error::setup(format!(
                "`{name}` is kept quantized ({format}) in memory, and cannot be merged or written as numbers: save the \
                 adapter alone (save_adapter_weights_only=true), or have the base read as dtype \
                 (model.quantize_base=false and model.keep_quantized=false)"
            ))
        };
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            Self::Quantized(of) => Err(in_blocks(of.format())),
            Self::Share(of) => Err(in_blocks(of.format())),
        }
    }
}

/// `y = x Wᵀ`, with a bias and an adapter's update if it has them.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The layer's Hugging Face name without `.weight`, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`, where it has one; trained if it is a variable.
    pub bias: Option<Tensor>,
    /// Its adapter.
    pub adapter: Option<Adapter>,
}

impl Linear {
    /// The dropout on the adapter's input in a pass with this key.
    pub(crate) fn dropout(&self, key: Option<u64>) -> Option<Dropout> {
        let p = self.adapter.as_ref().map(|a| a.dropout).filter(|&p| p > 0.0)?;
        Some(Dropout::new(p, Dropout::mix_name(key?, &self.name)))
    }
}

/// A weight with the updates of adapters added, each with its `A` `[rank, in]`, its `B` `[out, rank]` and what their product is
/// scaled by: `W + scale · B A + …`, in f32, as the weight's dtype. With magnitudes `[out]`, its rows then have these lengths.
pub(crate) fn merged<'a>(
    weight: &Tensor,
    updates: impl Iterator<Item = (&'a Tensor, &'a Tensor, f64)>,
    magnitudes: Option<&Tensor>,
) -> Result<Tensor> {
    let f32 = |t: &Tensor| t.detach().to_dtype(DType::F32);
    let mut sum = None;
    for (a, b, scale) in updates {
        let update = (f32(b)?.matmul(&f32(a)?)? * scale)?;
        let before = sum.map_or_else(|| f32(weight), Ok)?;
        sum = Some((before + update)?);
    }
    if let (Some(all), Some(magnitudes)) = (&sum, magnitudes) {
        let norms = all.sqr()?.sum(1)?.sqrt()?;
        // A row of zeros has no direction, and stays as it is.
        let is_zero = norms.eq(0.0)?;
        let factors = is_zero.where_cond(&norms.ones_like()?, &(f32(magnitudes)? / &norms)?)?;
        sum = Some(all.broadcast_mul(&factors.unsqueeze(1)?)?);
    }
    match sum {
        Some(sum) => Ok(sum.to_dtype(weight.dtype())?),
        None => Ok(weight.detach()),
    }
}
