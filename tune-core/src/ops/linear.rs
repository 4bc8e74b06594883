//! Linear layers: trained, frozen, and frozen with a low-rank adapter.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::matmul::{Strided, Threads, gemm, matmul_nn, matmul_nt, matmul_tn};
use super::real::{self, Real, Values, dispatch, tensor};
use super::{Dropout, reference};

/// The two factors of a low-rank update `W + scale · B A`
/// (LoRA, Hu et al. 2021, <https://arxiv.org/abs/2106.09685>).
#[derive(Debug, Clone)]
pub struct LoraFactors {
    /// `[rank, in]`.
    pub a: Tensor,
    /// `[out, rank]`.
    pub b: Tensor,
    /// `alpha / rank`.
    pub scale: f64,
    /// Dropout on the adapter's input, while training.
    pub dropout: Option<Dropout>,
}

/// `x Wᵀ` for `x` `[.., in]` and `weight` `[out, in]`, giving `[.., out]`.
///
/// The weight gets a gradient exactly if it is a variable; a frozen weight costs none.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    check(x, weight)?;
    if !x.device().is_cpu() {
        return reference::linear(x, weight);
    }
    if weight.is_variable() { x.apply_op2(weight, Trained) } else { x.apply_op1(Frozen { weight: weight.clone() }) }
}

/// `x Wᵀ + scale · dropout(x) Aᵀ Bᵀ` for `x` `[.., in]` and a frozen `weight` `[out, in]`, giving `[.., out]`.
pub fn lora_linear(x: &Tensor, weight: &Tensor, lora: &LoraFactors) -> Result<Tensor> {
    check(x, weight)?;
    if !x.device().is_cpu() {
        return reference::lora_linear(x, weight, lora);
    }
    let op = Lora { weight: weight.clone(), scale: lora.scale, dropout: lora.dropout };
    x.apply_op3(&lora.a, &lora.b, op)
}

fn check(x: &Tensor, weight: &Tensor) -> Result<()> {
    let (_, inner) = weight.dims2()?;
    match x.dims().last() {
        Some(&d) if d == inner => Ok(()),
        _ => bail!("linear: x {:?} does not fit the weight {:?}", x.shape(), weight.shape()),
    }
}

/// Rows, inner and outer size of `x` `[.., in]` times `[out, in]`ᵀ.
fn sizes(x: &Shape, weight: &Tensor) -> Result<(usize, usize, usize)> {
    let (n, k) = weight.dims2()?;
    Ok((x.elem_count() / k.max(1), k, n))
}

fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    if let Some(d) = dims.last_mut() {
        *d = last;
    }
    dims.into()
}

struct Frozen {
    weight: Tensor,
}

impl Frozen {
    fn forward<R: Real>(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let size = sizes(l.shape(), &self.weight)?;
        let y = matmul_nt(&Values::<R>::of_storage(x, l)?, &Values::of(&self.weight)?, size);
        Ok((real::storage(y, self.weight.dtype()), with_last(l.shape(), size.2)))
    }

    fn backward<R: Real>(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (m, k, n) = sizes(x.shape(), &self.weight)?;
        let gx = matmul_nn(&Values::<R>::of(grad)?, &Values::of(&self.weight)?, (m, n, k));
        Ok(tensor(gx, x.shape(), x.dtype()))
    }
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        dispatch!(self.weight.dtype(), self.forward::<_>(x, l))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        dispatch!(x.dtype(), self.backward::<_>(x, grad)).map(Some)
    }
}

struct Trained;

impl Trained {
    fn forward<R: Real>(
        (x, lx): (&CpuStorage, &Layout),
        (w, lw): (&CpuStorage, &Layout),
    ) -> Result<(CpuStorage, Shape)> {
        let (n, k) = lw.shape().dims2()?;
        let m = lx.shape().elem_count() / k.max(1);
        let y = matmul_nt(&Values::<R>::of_storage(x, lx)?, &Values::of_storage(w, lw)?, (m, k, n));
        let dtype = candle_core::backend::BackendStorage::dtype(x);
        Ok((real::storage(y, dtype), with_last(lx.shape(), n)))
    }

    fn backward<R: Real>(x: &Tensor, w: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Tensor)> {
        let (m, k, n) = sizes(x.shape(), w)?;
        let g = Values::<R>::of(grad)?;
        let gx = if x.track_op() {
            let gx = matmul_nn(&g, &Values::of(w)?, (m, n, k));
            Some(tensor(gx, x.shape(), x.dtype()))
        } else {
            None
        };
        let gw = matmul_tn(&g, &Values::of(x)?, (n, m, k));
        Ok((gx, tensor(gw, w.shape(), w.dtype())))
    }
}

impl CustomOp2 for Trained {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        match x {
            CpuStorage::F64(_) => Self::forward::<f64>((x, lx), (w, lw)),
            _ => Self::forward::<f32>((x, lx), (w, lw)),
        }
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gx, gw) = match x.dtype() {
            candle_core::DType::F64 => Self::backward::<f64>(x, w, grad)?,
            _ => Self::backward::<f32>(x, w, grad)?,
        };
        Ok((gx, Some(gw)))
    }
}

struct Lora {
    weight: Tensor,
    scale: f64,
    dropout: Option<Dropout>,
}

impl Lora {
    fn forward<R: Real>(
        &self,
        x: (&CpuStorage, &Layout),
        a: (&CpuStorage, &Layout),
        b: (&CpuStorage, &Layout),
    ) -> Result<(CpuStorage, Shape)> {
        let size = sizes(x.1.shape(), &self.weight)?;
        let (xs, a, b) =
            (Values::<R>::of_storage(x.0, x.1)?, Values::of_storage(a.0, a.1)?, Values::of_storage(b.0, b.1)?);
        let y = lora_forward(
            &xs,
            &Values::of(&self.weight)?,
            &a,
            &b,
            size,
            R::of(self.scale),
            self.dropout.map(RowDropout::of_all),
        );
        Ok((real::storage(y, self.weight.dtype()), with_last(x.1.shape(), size.2)))
    }

    fn backward<R: Real>(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Tensor, Tensor)> {
        let size = sizes(x.shape(), &self.weight)?;
        let out = lora_backward(
            &Values::<R>::of(x)?,
            &Values::of(&self.weight)?,
            &Values::of(a)?,
            &Values::of(b)?,
            &Values::of(grad)?,
            size,
            R::of(self.scale),
            self.dropout.map(RowDropout::of_all),
            x.track_op(),
        );
        Ok((
            out.x.map(|g| tensor(g, x.shape(), x.dtype())),
            tensor(out.a, a.shape(), a.dtype()),
            tensor(out.b, b.shape(), b.dtype()),
        ))
    }
}

impl CustomOp3 for Lora {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        dispatch!(self.weight.dtype(), self.forward::<_>((x, lx), (a, la), (b, lb)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (gx, ga, gb) = dispatch!(x.dtype(), self.backward::<_>(x, a, b, grad))?;
        Ok((gx, Some(ga), Some(gb)))
    }
}

/// Dropout on the rows of an input, or on a selection of them.
#[derive(Clone, Copy)]
pub(crate) struct RowDropout<'a> {
    pub(crate) dropout: Dropout,
    /// Which rows of the whole input were selected; all if `None`.
    pub(crate) rows: Option<&'a [usize]>,
}

impl RowDropout<'_> {
    fn of_all(dropout: Dropout) -> Self {
        Self { dropout, rows: None }
    }

    fn apply<R: Real>(&self, x: &[R], width: usize) -> Vec<R> {
        let mut out = x.to_vec();
        out.par_chunks_mut(width.max(1)).enumerate().for_each(|(i, values)| {
            let first = self.rows.map_or(i, |rows| rows[i]) * width;
            for (j, v) in values.iter_mut().enumerate() {
                *v *= R::of(self.dropout.factor(first + j));
            }
        });
        out
    }
}

/// `x Wᵀ + scale · dropout(x) Aᵀ Bᵀ` over slices.
pub(crate) fn lora_forward<R: Real>(
    x: &[R],
    w: &[R],
    a: &[R],
    b: &[R],
    (m, k, n): (usize, usize, usize),
    scale: R,
    dropout: Option<RowDropout<'_>>,
) -> Vec<R> {
    let rank = a.len() / k;
    let mut y = matmul_nt(x, w, (m, k, n));
    let h = match dropout {
        Some(d) => matmul_nt(&d.apply(x, k), a, (m, k, rank)),
        None => matmul_nt(x, a, (m, k, rank)),
    };
    gemm((m, rank, n), scale, Strided::rows(&h, rank), Strided::rows(b, rank).t(), R::one(), &mut y, n, Threads::All);
    y
}

/// The gradients of a linear layer with an adapter.
pub(crate) struct LoraGradients<R> {
    /// `[m, in]`, if it was asked for.
    pub(crate) x: Option<Vec<R>>,
    /// `[rank, in]`.
    pub(crate) a: Vec<R>,
    /// `[out, rank]`.
    pub(crate) b: Vec<R>,
}

/// The gradients of [`lora_forward`]; the small product `dropout(x) Aᵀ` is made again.
#[allow(clippy::too_many_arguments)]
pub(crate) fn lora_backward<R: Real>(
    x: &[R],
    w: &[R],
    a: &[R],
    b: &[R],
    grad: &[R],
    (m, k, n): (usize, usize, usize),
    scale: R,
    dropout: Option<RowDropout<'_>>,
    wants_x: bool,
) -> LoraGradients<R> {
    let rank = a.len() / k;
    let dropped = dropout.map(|d| d.apply(x, k));
    let xd: &[R] = dropped.as_deref().unwrap_or(x);
    let h = matmul_nt(xd, a, (m, k, rank));
    let mut gb = matmul_tn(grad, &h, (n, m, rank));
    gb.iter_mut().for_each(|g| *g *= scale);
    let mut gh = matmul_nn(grad, b, (m, n, rank));
    gh.iter_mut().for_each(|g| *g *= scale);
    let ga = matmul_tn(&gh, xd, (rank, m, k));
    let gx = wants_x.then(|| {
        let mut gx = matmul_nn(grad, w, (m, n, k));
        match dropout {
            Some(d) => {
                let through = d.apply(&matmul_nn(&gh, a, (m, rank, k)), k);
                gx.iter_mut().zip(&through).for_each(|(g, t)| *g += *t);
            }
            None => gemm(
                (m, rank, k),
                R::one(),
                Strided::rows(&gh, rank),
                Strided::rows(a, k),
                R::one(),
                &mut gx,
                k,
                Threads::All,
            ),
        }
        gx
    });
    LoraGradients { x: gx, a: ga, b: gb }
}
