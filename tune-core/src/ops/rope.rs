//! Rotary position embeddings (Su et al. 2021, <https://arxiv.org/abs/2104.09864>), in the
//! half-split order of Hugging Face checkpoints: element `i` turns with element `i + head_dim / 2`.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::real::{self, Real, Values, dispatch, tensor};
use super::{Rotary, reference};

/// Turns every head of `x` `[batch, seq, heads * head_dim]` by its token's angles.
pub fn rope(x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
    let (batch, seq, width) = x.dims3()?;
    if width % rotary.head_dim != 0 || batch * seq * rotary.head_dim != 2 * rotary.cos.len() {
        bail!("rope: x {:?} does not fit {} angles of heads of {}", x.shape(), rotary.cos.len(), rotary.head_dim);
    }
    if !x.device().is_cpu() {
        return reference::rope(x, rotary);
    }
    x.apply_op1(Rope { rotary: rotary.clone() })
}

struct Rope {
    rotary: Rotary,
}

impl Rope {
    /// Turns forward, or back: the transpose of a rotation is its inverse.
    fn turn<R: Real>(&self, x: &[R], width: usize, back: bool) -> Vec<R> {
        let (dim, half) = (self.rotary.head_dim, self.rotary.head_dim / 2);
        let mut y = vec![R::zero(); x.len()];
        y.par_chunks_mut(width).zip(x.par_chunks(width)).enumerate().for_each(|(token, (y, x))| {
            let cos = real::widen_f32::<R>(&self.rotary.cos[token * half..(token + 1) * half]);
            let sin = real::widen_f32::<R>(&self.rotary.sin[token * half..(token + 1) * half]);
            for (y, x) in y.chunks_mut(dim).zip(x.chunks(dim)) {
                for i in 0..half {
                    let (c, s) = (cos[i], if back { -sin[i] } else { sin[i] });
                    y[i] = x[i] * c - x[i + half] * s;
                    y[i + half] = x[i + half] * c + x[i] * s;
                }
            }
        });
        y
    }

    fn backward<R: Real>(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let gx = self.turn(&Values::<R>::of(grad)?, x.dim(2)?, true);
        Ok(tensor(gx, x.shape(), x.dtype()))
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, _, width) = l.shape().dims3()?;
        let y = match x {
            CpuStorage::F64(_) => real::storage(self.turn(&Values::<f64>::of_storage(x, l)?, width, false), x.dtype()),
            _ => real::storage(self.turn(&Values::<f32>::of_storage(x, l)?, width, false), x.dtype()),
        };
        Ok((y, l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        dispatch!(x.dtype(), self.backward::<_>(x, grad)).map(Some)
    }
}
