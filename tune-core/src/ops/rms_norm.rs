//! Root-mean-square normalization (Zhang & Sennrich 2019, <https://arxiv.org/abs/1910.07467>).

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::real::{self, Real, Values, dispatch, tensor};
use super::reference;

/// Rows whose share of a weight's gradient is summed by one task.
const ROWS_PER_TASK: usize = 64;

/// `x / sqrt(mean(x²) + eps) · weight` over the last dimension, for `x` `[.., hidden]` and `weight` `[hidden]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if x.dims().last() != Some(&weight.dims1()?) {
        bail!("rms_norm: x {:?} does not fit the weight {:?}", x.shape(), weight.shape());
    }
    if !x.device().is_cpu() {
        return reference::rms_norm(x, weight, eps);
    }
    if weight.is_variable() {
        x.apply_op2(weight, Trained { eps })
    } else {
        x.apply_op1(Frozen { weight: weight.clone(), eps })
    }
}

struct Frozen {
    weight: Tensor,
    eps: f64,
}

impl Frozen {
    fn forward<R: Real>(&self, x: &CpuStorage, l: &Layout) -> Result<Vec<R>> {
        Ok(normalize(&Values::of_storage(x, l)?, &Values::of(&self.weight)?, R::of(self.eps)))
    }
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = match x {
            CpuStorage::F64(_) => real::storage(self.forward::<f64>(x, l)?, x.dtype()),
            _ => real::storage(self.forward::<f32>(x, l)?, x.dtype()),
        };
        Ok((y, l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (gx, _) = dispatch!(x.dtype(), backward::<_>(x, &self.weight, grad, self.eps, false))?;
        Ok(Some(gx))
    }
}

struct Trained {
    eps: f64,
}

impl CustomOp2 for Trained {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = match x {
            CpuStorage::F64(_) => {
                let y: Vec<f64> = normalize(&Values::of_storage(x, lx)?, &Values::of_storage(w, lw)?, self.eps);
                real::storage(y, x.dtype())
            }
            _ => {
                let y: Vec<f32> = normalize(&Values::of_storage(x, lx)?, &Values::of_storage(w, lw)?, self.eps as f32);
                real::storage(y, x.dtype())
            }
        };
        Ok((y, lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gx, gw) = dispatch!(x.dtype(), backward::<_>(x, w, grad, self.eps, true))?;
        Ok((Some(gx), gw))
    }
}

fn inverse_rms<R: Real>(x: &[R], eps: R) -> R {
    let mean = real::sum([x], |[x]| x * x) / R::of(x.len() as f64);
    (mean + eps).sqrt().recip()
}

fn normalize<R: Real>(x: &[R], weight: &[R], eps: R) -> Vec<R> {
    let width = weight.len();
    let mut y = vec![R::zero(); x.len()];
    y.par_chunks_mut(width).zip(x.par_chunks(width)).for_each(|(y, x)| {
        let r = inverse_rms(x, eps);
        for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * r * w;
        }
    });
    y
}

/// With `r = 1 / rms` and `g` the incoming gradient:
/// `gx = r (g w - x r² mean(g w x))` and `gw = sum over rows of g x r`.
fn backward<R: Real>(
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
    eps: f64,
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (xs, w, g) = (Values::<R>::of(x)?, Values::<R>::of(weight)?, Values::<R>::of(grad)?);
    let (w, width, eps) = (&*w, w.len(), R::of(eps));
    let task = ROWS_PER_TASK * width;
    let mut gx = vec![R::zero(); xs.len()];
    let partial: Vec<Vec<R>> = gx
        .par_chunks_mut(task)
        .zip(xs.par_chunks(task).zip(g.par_chunks(task)))
        .map(|(gx, (x, g))| {
            let mut gw = vec![R::zero(); if wants_weight { width } else { 0 }];
            for ((gx, x), g) in gx.chunks_mut(width).zip(x.chunks(width)).zip(g.chunks(width)) {
                let r = inverse_rms(x, eps);
                let dot = real::sum([x, g, w], |[x, g, w]| x * g * w);
                let c = dot * r * r / R::of(width as f64);
                for (((gx, &x), &g), &w) in gx.iter_mut().zip(x).zip(g).zip(w) {
                    *gx = r * (g * w - x * c);
                }
                for ((gw, &x), &g) in gw.iter_mut().zip(x).zip(g) {
                    *gw += g * x * r;
                }
            }
            gw
        })
        .collect();
    let gw = wants_weight.then(|| {
        let mut sum = vec![R::zero(); width];
        for part in &partial {
            sum.iter_mut().zip(part).for_each(|(s, &p)| *s += p);
        }
        tensor(sum, weight.shape(), weight.dtype())
    });
    Ok((tensor(gx, x.shape(), x.dtype()), gw))
}
