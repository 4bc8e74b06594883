//! The number types that optimizers compute in, and tensors seen as slices of them.

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Layout, Result, Storage, StorageRef, Tensor, WithDType, bail};
use num_traits::{Float, NumAssign};

use super::update::TASK;
use crate::kernels::parallel;

/// What a step is computed in: `f32` for fp32 and bf16 tensors, `f64` for those of the plain backend.
pub(crate) trait Real: WithDType + bytemuck::Pod + Float + NumAssign + std::iter::Sum + Send + Sync {
    /// The storage as a slice, if it holds this very type.
    fn slice(storage: &CpuStorage) -> Option<&[Self]>;
    /// The same, to be written.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
    /// A slice of f32, if that is this very type.
    fn of_slice(values: &[f32]) -> Option<&[Self]>;
    /// A literal.
    fn of(x: f64) -> Self;
    /// As a double.
    fn as_f64(self) -> f64;
}

macro_rules! real {
    ($t:ty, $variant:ident) => {
        impl Real for $t {
            fn slice(storage: &CpuStorage) -> Option<&[Self]> {
                match storage {
                    CpuStorage::$variant(v) => Some(v),
                    _ => None,
                }
            }
            fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(v) => Some(v),
                    _ => None,
                }
            }
            fn of_slice(values: &[f32]) -> Option<&[Self]> {
                (Self::DTYPE == DType::F32).then(|| bytemuck::cast_slice(values))
            }
            #[inline(always)]
            fn of(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn as_f64(self) -> f64 {
                self.into()
            }
        }
    };
}
real!(f32, F32);
real!(f64, F64);

/// The elements of one contiguous CPU tensor: borrowed where the type fits, widened from bf16 and f16.
pub(crate) enum Values<'a, R: Real> {
    Borrowed { storage: StorageRef<'a>, start: usize, len: usize },
    Slice(&'a [R]),
    Widened(Vec<R>),
}

impl<'a, R: Real> Values<'a, R> {
    /// The elements of a tensor.
    pub(crate) fn of(t: &'a Tensor) -> Result<Self> {
        let (storage, layout) = t.storage_and_layout();
        let (start, len) = range(layout)?;
        let Storage::Cpu(cpu) = &*storage else { bail!("optimizers run on the processor") };
        if R::slice(cpu).is_some() {
            return Ok(Self::Borrowed { storage, start, len });
        }
        Ok(Self::Widened(widen(cpu, start, len)?))
    }

    /// Numbers in f32, widened where the type is f64.
    pub(crate) fn of_f32(values: &'a [f32]) -> Self {
        match R::of_slice(values) {
            Some(values) => Self::Slice(values),
            None => Self::Widened(values.iter().map(|&x| R::of(f64::from(x))).collect()),
        }
    }
}

impl<R: Real> Deref for Values<'_, R> {
    type Target = [R];

    fn deref(&self) -> &[R] {
        match self {
            Self::Borrowed { storage, start, len } => match &**storage {
                Storage::Cpu(cpu) => R::slice(cpu).map_or(&[], |s| &s[*start..start + len]),
                _ => &[],
            },
            Self::Slice(s) => s,
            Self::Widened(v) => v,
        }
    }
}

fn range(layout: &Layout) -> Result<(usize, usize)> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok((start, end - start)),
        None => bail!("optimizers take contiguous tensors; got strides {:?} for {:?}", layout.stride(), layout.shape()),
    }
}

fn widen<R: Real>(storage: &CpuStorage, start: usize, len: usize) -> Result<Vec<R>> {
    fn all<T: Copy + Sync, R: Real>(narrow: &[T], widen: impl Fn(T) -> f64 + Sync) -> Vec<R> {
        let mut wide = vec![R::zero(); narrow.len()];
        parallel::each_chunk(&mut wide, TASK, |task, wide| {
            for (wide, &x) in wide.iter_mut().zip(&narrow[task * TASK..]) {
                *wide = R::of(widen(x));
            }
        });
        wide
    }
    let range = start..start + len;
    Ok(match storage {
        CpuStorage::BF16(v) => all(&v[range], |x| f64::from(x.to_f32())),
        CpuStorage::F16(v) => all(&v[range], |x| f64::from(x.to_f32())),
        CpuStorage::F32(v) => all(&v[range], f64::from),
        CpuStorage::F64(v) => all(&v[range], |x| x),
        other => bail!(
            "optimizers take floating-point tensors, not {:?}",
            candle_core::backend::BackendStorage::dtype(other)
        ),
    })
}
