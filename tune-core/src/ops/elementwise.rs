//! Sweeps over whole tensors in place, for optimizers and gradients.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, InplaceOp3, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::real::Values;

/// Elements handled by one task.
const TASK: usize = 1 << 15;

/// `dst[i] = f(dst[i], a[i], b[i])` in f32 (f64 where `dst` is), rounded to the dtype of `dst`.
///
/// All three have the same shape; `dst` shares its storage with neither.
pub(crate) fn update(
    dst: &Tensor,
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(f64, f64, f64) -> f64 + Sync,
    f32: impl Fn(f32, f32, f32) -> f32 + Sync,
) -> Result<()> {
    if dst.shape() != a.shape() || dst.shape() != b.shape() {
        bail!("update: shapes {:?}, {:?} and {:?} differ", dst.shape(), a.shape(), b.shape());
    }
    dst.inplace_op3(a, b, &Update { f, f32 })
}

struct Update<F, G> {
    f: F,
    f32: G,
}

impl<F: Fn(f64, f64, f64) -> f64 + Sync, G: Fn(f32, f32, f32) -> f32 + Sync> InplaceOp3 for Update<F, G> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(
        &self,
        dst: &mut CpuStorage,
        ld: &Layout,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<()> {
        let Some((start, end)) = ld.contiguous_offsets() else { bail!("update: the destination is not contiguous") };
        if let CpuStorage::F64(dst) = dst {
            let (a, b) = (Values::<f64>::of_storage(a, la)?, Values::<f64>::of_storage(b, lb)?);
            sweep(&mut dst[start..end], &a, &b, |d, a, b| *d = (self.f)(*d, a, b));
            return Ok(());
        }
        let (a, b) = (Values::<f32>::of_storage(a, la)?, Values::<f32>::of_storage(b, lb)?);
        match dst {
            CpuStorage::F32(dst) => sweep(&mut dst[start..end], &a, &b, |d, a, b| *d = (self.f32)(*d, a, b)),
            CpuStorage::BF16(dst) => sweep(&mut dst[start..end], &a, &b, |d, a, b| {
                *d = half::bf16::from_f32((self.f32)(d.to_f32(), a, b));
            }),
            other => bail!("update: tensors of {:?} are not trained", other.dtype()),
        }
        Ok(())
    }
}

fn sweep<D: Send, T: Copy + Sync>(dst: &mut [D], a: &[T], b: &[T], f: impl Fn(&mut D, T, T) + Sync) {
    dst.par_chunks_mut(TASK).zip(a.par_chunks(TASK).zip(b.par_chunks(TASK))).for_each(|(dst, (a, b))| {
        for ((d, &a), &b) in dst.iter_mut().zip(a).zip(b) {
            f(d, a, b);
        }
    });
}

/// `dst += src`, in place.
pub(crate) fn add_assign(dst: &Tensor, src: &Tensor) -> Result<()> {
    update(dst, src, src, |d, s, _| d + s, |d, s, _| d + s)
}

/// The sum of squares, in f64, in an order that depends on the size alone.
pub(crate) fn squared_norm(t: &Tensor) -> Result<f64> {
    if !t.device().is_cpu() {
        return t.to_dtype(candle_core::DType::F32)?.sqr()?.sum_all()?.to_dtype(candle_core::DType::F64)?.to_scalar();
    }
    let squares = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>();
    let parts: Vec<f64> = match t.dtype() {
        candle_core::DType::F64 => Values::<f64>::of(t)?.par_chunks(TASK).map(squares).collect(),
        _ => Values::<f32>::of(t)?
            .par_chunks(TASK)
            .map(|x| x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>())
            .collect(),
    };
    Ok(parts.into_iter().sum())
}
