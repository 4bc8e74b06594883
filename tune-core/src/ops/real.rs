//! The number types that kernels compute in, and tensors seen as slices of them.

use std::borrow::Cow;
use std::ops::Deref;

use candle_core::{CpuStorage, DType, Layout, Result, Storage, StorageRef, Tensor, WithDType, bail};
use num_traits::{Float, NumAssign};
use rayon::prelude::*;

pub(crate) use crate::kernels::sum;

/// What a kernel computes in: `f32` for fp32 and bf16 tensors, `f64` for the reference runs of the tests.
pub(crate) trait Real: WithDType + Float + NumAssign + std::iter::Sum + Send + Sync {
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

/// Numbers that are compared apart until the end: the compiler makes one vector of them.
const LANES: usize = 16;

/// The largest of `x`, or minus infinity.
#[inline(always)]
pub(crate) fn max<R: Real>(x: &[R]) -> R {
    let mut lanes = [R::neg_infinity(); LANES];
    let larger = |a: R, b: R| if b > a { b } else { a };
    let (whole, tail) = x.split_at(x.len() - x.len() % LANES);
    for chunk in whole.chunks_exact(LANES) {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, v);
        }
    }
    lanes.iter().chain(tail).fold(R::neg_infinity(), |m, &v| larger(m, v))
}

/// `x[i] = exp(x[i] - shift)`; returns the sum of the results.
#[inline(always)]
pub(crate) fn exp_and_sum<R: Real>(x: &mut [R], shift: R) -> R {
    for v in x.iter_mut() {
        *v = (*v - shift).exp();
    }
    sum([&*x], |[x]| x)
}

/// Calls a generic function with the type that a tensor of this dtype is computed in.
macro_rules! dispatch {
    ($dtype:expr, $call:ident::<_>($($arg:expr),* $(,)?)) => {
        match $dtype {
            candle_core::DType::F64 => $call::<f64>($($arg),*),
            _ => $call::<f32>($($arg),*),
        }
    };
    ($dtype:expr, $this:ident.$call:ident::<_>($($arg:expr),* $(,)?)) => {
        match $dtype {
            candle_core::DType::F64 => $this.$call::<f64>($($arg),*),
            _ => $this.$call::<f32>($($arg),*),
        }
    };
}
pub(crate) use dispatch;

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
        let Storage::Cpu(cpu) = &*storage else { bail!("this operation runs on the CPU only") };
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

    /// The elements of an operation's argument.
    pub(crate) fn of_storage(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (start, len) = range(layout)?;
        match R::slice(storage) {
            Some(s) => Ok(Self::Slice(&s[start..start + len])),
            None => Ok(Self::Widened(widen(storage, start, len)?)),
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
        None => bail!("operations take contiguous tensors; got strides {:?} for {:?}", layout.stride(), layout.shape()),
    }
}

fn widen<R: Real>(storage: &CpuStorage, start: usize, len: usize) -> Result<Vec<R>> {
    let end = start + len;
    Ok(match storage {
        CpuStorage::BF16(v) => v[start..end].par_iter().map(|x| R::of(f64::from(x.to_f32()))).collect(),
        CpuStorage::F16(v) => v[start..end].par_iter().map(|x| R::of(f64::from(x.to_f32()))).collect(),
        CpuStorage::F32(v) => v[start..end].par_iter().map(|&x| R::of(f64::from(x))).collect(),
        CpuStorage::F64(v) => v[start..end].par_iter().map(|&x| R::of(x)).collect(),
        other => bail!(
            "operations take floating-point tensors, not {:?}",
            candle_core::backend::BackendStorage::dtype(other)
        ),
    })
}

/// Results in the dtype of the operation's arguments, rounded to it where it is narrower.
pub(crate) fn storage<R: Real>(values: Vec<R>, dtype: DType) -> CpuStorage {
    if dtype == R::DTYPE {
        return R::to_cpu_storage_owned(values);
    }
    match dtype {
        DType::BF16 => CpuStorage::BF16(values.par_iter().map(|x| half::bf16::from_f64(x.as_f64())).collect()),
        DType::F16 => CpuStorage::F16(values.par_iter().map(|x| half::f16::from_f64(x.as_f64())).collect()),
        _ => R::to_cpu_storage_owned(values),
    }
}

/// A tensor of results, rounded to `dtype`.
pub(crate) fn tensor<R: Real>(values: Vec<R>, shape: impl Into<candle_core::Shape>, dtype: DType) -> Tensor {
    let storage = Storage::Cpu(storage(values, dtype));
    Tensor::from_storage(storage, shape, candle_core::op::BackpropOp::none(), false)
}

/// A small vector of the working type, for weights and biases given in any precision.
pub(crate) fn widen_f32<R: Real>(values: &[f32]) -> Cow<'_, [R]> {
    Cow::Owned(values.iter().map(|&x| R::of(f64::from(x))).collect())
}
