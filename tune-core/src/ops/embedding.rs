//! Looking up rows of the embedding table.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor, bail};

use super::real::{self, Real, Values, dispatch, tensor};
use super::reference;
use crate::kernels::check_token_ids;

/// Rows of `weight` `[vocab, hidden]` for `ids` in `rows` rows, giving `[rows, ids / rows, hidden]`.
///
/// # Errors
/// An id that the table does not have.
pub fn embedding(ids: &[u32], rows: usize, weight: &Tensor) -> Result<Tensor> {
    let (vocab, hidden) = weight.dims2()?;
    check_token_ids(ids, vocab).map_err(Error::wrap)?;
    if rows == 0 || !ids.len().is_multiple_of(rows) {
        bail!("embedding: {} ids do not fill {rows} rows", ids.len());
    }
    if !weight.device().is_cpu() {
        return reference::embedding(ids, rows, weight);
    }
    weight.apply_op1(Embedding { ids: ids.into(), rows, hidden })
}

struct Embedding {
    ids: Arc<[u32]>,
    rows: usize,
    hidden: usize,
}

impl Embedding {
    fn shape(&self) -> Shape {
        (self.rows, self.ids.len() / self.rows, self.hidden).into()
    }

    fn gather<T: Copy>(&self, weight: &[T]) -> Vec<T> {
        self.ids.iter().flat_map(|&id| weight[id as usize * self.hidden..][..self.hidden].iter().copied()).collect()
    }

    fn backward<R: Real>(&self, weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let g = Values::<R>::of(grad)?;
        let mut gw = vec![R::zero(); weight.elem_count()];
        for (&id, g) in self.ids.iter().zip(g.chunks(self.hidden)) {
            gw[id as usize * self.hidden..][..self.hidden].iter_mut().zip(g).for_each(|(w, &g)| *w += g);
        }
        Ok(tensor(gw, weight.shape(), weight.dtype()))
    }
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, weight: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = l.contiguous_offsets() else { bail!("embedding: the table is not contiguous") };
        let rows = match weight {
            CpuStorage::BF16(w) => CpuStorage::BF16(self.gather(&w[start..end])),
            CpuStorage::F16(w) => CpuStorage::F16(self.gather(&w[start..end])),
            CpuStorage::F64(w) => CpuStorage::F64(self.gather(&w[start..end])),
            other => real::storage(self.gather(&Values::<f32>::of_storage(other, l)?), other.dtype()),
        };
        Ok((rows, self.shape()))
    }

    fn bwd(&self, weight: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        dispatch!(weight.dtype(), self.backward::<_>(weight, grad)).map(Some)
    }
}
