//! The gated activation of Llama-like MLPs (Shazeer 2020, <https://arxiv.org/abs/2002.05202>).

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::real::{self, Real, Values, dispatch, tensor};
use super::reference;

/// Elements handled by one task.
const TASK: usize = 1 << 14;

/// `silu(gate) · up`, element by element; both `[.., intermediate]`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        bail!("swiglu: gate {:?} and up {:?} differ in shape", gate.shape(), up.shape());
    }
    if !gate.device().is_cpu() {
        return reference::swiglu(gate, up);
    }
    gate.apply_op2(up, SwiGlu)
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, lg: &Layout, up: &CpuStorage, lu: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = match gate {
            CpuStorage::F64(_) => real::storage(
                forward(&Values::<f64>::of_storage(gate, lg)?, &Values::of_storage(up, lu)?),
                gate.dtype(),
            ),
            _ => real::storage(
                forward(&Values::<f32>::of_storage(gate, lg)?, &Values::of_storage(up, lu)?),
                gate.dtype(),
            ),
        };
        Ok((y, lg.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gg, gu) = dispatch!(gate.dtype(), backward::<_>(gate, up, grad))?;
        Ok((Some(gg), Some(gu)))
    }
}

fn sigmoid<R: Real>(x: R) -> R {
    (R::one() + (-x).exp()).recip()
}

fn forward<R: Real>(gate: &[R], up: &[R]) -> Vec<R> {
    let mut y = vec![R::zero(); gate.len()];
    y.par_chunks_mut(TASK).zip(gate.par_chunks(TASK).zip(up.par_chunks(TASK))).for_each(|(y, (gate, up))| {
        for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
            *y = g * sigmoid(g) * u;
        }
    });
    y
}

fn backward<R: Real>(gate: &Tensor, up: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
    let (gs, us, gr) = (Values::<R>::of(gate)?, Values::<R>::of(up)?, Values::<R>::of(grad)?);
    let mut g_gate = vec![R::zero(); gs.len()];
    let mut g_up = vec![R::zero(); gs.len()];
    g_gate
        .par_chunks_mut(TASK)
        .zip(g_up.par_chunks_mut(TASK))
        .zip(gs.par_chunks(TASK).zip(us.par_chunks(TASK)).zip(gr.par_chunks(TASK)))
        .for_each(|((g_gate, g_up), ((gate, up), grad))| {
            for i in 0..gate.len() {
                let s = sigmoid(gate[i]);
                let silu = gate[i] * s;
                g_up[i] = grad[i] * silu;
                g_gate[i] = grad[i] * up[i] * (s + silu * (R::one() - s));
            }
        });
    Ok((tensor(g_gate, gate.shape(), gate.dtype()), tensor(g_up, up.shape(), up.dtype())))
}
