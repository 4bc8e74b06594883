//! A model's tensors as slices.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, Storage, StorageRef, Tensor, TensorId, bail};
use half::bf16;

use crate::kernels::buffers::Buffer;
use crate::kernels::{Element, Quantized};
use crate::models::{Gathered, Magnitude};
use crate::{Error, Result};

/// The elements of a tensor, borrowed if they are of type `T` and converted if not; or a matrix in blocks, which has no elements of type `T`.
pub(crate) enum Weight<'a, T: Element> {
    Quantized(&'a Quantized),
    /// The same, gathered from all processes.
    Gathered(Box<Quantized>),
    Borrowed {
        storage: StorageRef<'a>,
        start: usize,
        len: usize,
    },
    Converted(Buffer<T>),
    Kept(Arc<Buffer<T>>),
}

/// Tensors that were converted before, for who reads them again and again while they do not change; and what was computed of
/// magnitudes.
#[derive(Debug)]
pub(super) struct Kept<T: Element> {
    converted: Mutex<HashMap<TensorId, Arc<Buffer<T>>>>,
    factors: Mutex<HashMap<TensorId, Arc<Buffer<f32>>>>,
}

impl<T: Element> Kept<T> {
    pub(super) fn new() -> Self {
        Self { converted: Mutex::default(), factors: Mutex::default() }
    }

    /// The elements of a tensor, which is converted once.
    pub(super) fn weight<'a>(&self, tensor: &'a Tensor) -> Result<Weight<'a, T>> {
        let lock = || lock(&self.converted);
        if let Some(kept) = lock().get(&tensor.id()) {
            return Ok(Weight::Kept(Arc::clone(kept)));
        }
        match Weight::new(tensor)? {
            Weight::Converted(converted) => {
                let kept = Arc::new(converted);
                lock().insert(tensor.id(), Arc::clone(&kept));
                Ok(Weight::Kept(kept))
            }
            borrowed => Ok(borrowed),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The magnitudes of a layer's results, and what these are scaled by.
pub(crate) struct Scaling<'a> {
    of: TensorId,
    magnitudes: Weight<'a, f32>,
    squares: Weight<'a, f32>,
    /// Factors, and one over norms, `[2, out]`.
    factors: Option<Arc<Buffer<f32>>>,
}

impl<'a> Scaling<'a> {
    pub(super) fn new<T: Element>(of: &'a Magnitude, kept: Option<&Arc<Kept<T>>>) -> Result<Self> {
        let id = of.weight.id();
        Ok(Self {
            of: id,
            magnitudes: Weight::new(&of.weight)?,
            squares: Weight::new(&of.squares)?,
            factors: kept.and_then(|kept| lock(&kept.factors).get(&id).map(Arc::clone)),
        })
    }

    pub(super) fn is_scaled(&self) -> bool {
        self.factors.is_some()
    }

    /// Has `compute` make the factors of magnitudes and squares, which are kept where something is.
    pub(super) fn rescale<T: Element>(
        &mut self,
        kept: Option<&Arc<Kept<T>>>,
        compute: impl FnOnce((&[f32], &[f32]), &mut [f32]),
    ) {
        let mut factors = Buffer::new(2 * self.magnitudes.len());
        compute((&self.magnitudes, &self.squares), &mut factors);
        let factors = Arc::new(factors);
        if let Some(kept) = kept {
            lock(&kept.factors).insert(self.of, Arc::clone(&factors));
        }
        self.factors = Some(factors);
    }

    /// What results are scaled by.
    pub(super) fn factors(&self) -> &[f32] {
        self.factors.as_ref().map_or(&[], |factors| &factors[..self.magnitudes.len()])
    }

    /// One over norms.
    pub(super) fn inverses(&self) -> &[f32] {
        self.factors.as_ref().map_or(&[], |factors| &factors[self.magnitudes.len()..])
    }
}

impl<'a, T: Element> Weight<'a, T> {
    pub(super) fn new(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else { bail_layout(tensor)? };
        let len = end - start;
        let converted = {
            let Storage::Cpu(cpu) = &*storage else { bail_layout(tensor)? };
            match cpu {
                CpuStorage::F32(_) if !T::IS_BF16 => None,
                CpuStorage::BF16(_) if T::IS_BF16 => None,
                CpuStorage::F32(v) => Some(convert(&v[start..end])),
                CpuStorage::BF16(v) => Some(convert(&v[start..end])),
                _ => bail_layout(tensor)?,
            }
        };
        Ok(match converted {
            Some(copy) => Self::Converted(copy),
            None => Self::Borrowed { storage, start, len },
        })
    }
}

impl<T: Element> Weight<'_, T> {
    /// Its blocks, if it is in blocks.
    pub(super) fn quantized(&self) -> Option<&Quantized> {
        match self {
            Self::Quantized(of) => Some(of),
            Self::Gathered(of) => Some(of),
            _ => None,
        }
    }

    /// The elements of a parameter that was gathered, converted if they are not of type `T`.
    pub(super) fn gathered(of: Gathered) -> Result<Self> {
        Ok(Self::Converted(match of {
            Gathered::Blocks(of) => return Ok(Self::Gathered(of.into())),
            Gathered::F32(x) if !T::IS_BF16 => x.reused(),
            Gathered::Bf16(x) if T::IS_BF16 => x.reused(),
            Gathered::F32(x) => convert(&x),
            Gathered::Bf16(x) => convert(&x),
            Gathered::F64(_) => {
                return Err(Error::setup("parameters of f64 are computed with by the plain backend alone"));
            }
        }))
    }
}

fn bail_layout<R>(tensor: &Tensor) -> candle_core::Result<R> {
    bail!("the engine takes contiguous tensors of f32 or bf16 on the processor, not {tensor:?}")
}

fn convert<S: Element, T: Element>(from: &[S]) -> Buffer<T> {
    let mut to = Buffer::new(from.len());
    to.iter_mut().zip(from).for_each(|(t, s)| *t = T::from_f32(s.to_f32()));
    to
}

impl<T: Element> Deref for Weight<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Quantized(_) | Self::Gathered(_) => &[],
            Self::Borrowed { storage, start, len } => {
                let all: &[T] = match &**storage {
                    Storage::Cpu(CpuStorage::F32(v)) => bytemuck::cast_slice::<f32, T>(v),
                    Storage::Cpu(CpuStorage::BF16(v)) => bytemuck::cast_slice::<bf16, T>(v),
                    _ => &[],
                };
                &all[*start..start + len]
            }
            Self::Converted(copy) => copy,
            Self::Kept(copy) => copy,
        }
    }
}
