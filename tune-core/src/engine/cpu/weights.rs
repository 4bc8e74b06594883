//! A model's tensors as slices.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, Storage, StorageRef, Tensor, TensorId, bail};
use half::bf16;

use crate::kernels::buffers::Buffer;
use crate::kernels::{Element, Quantized};
use crate::models::Gathered;
use crate::{Error, Result};

/// The elements of a tensor, borrowed if they are of type `T` and converted if not; or a matrix in blocks, which has no elements of type `T`.
pub(crate) enum Weight<'a, T: Element> {
    Quantized(&'a Quantized),
    Borrowed { storage: StorageRef<'a>, start: usize, len: usize },
    Converted(Buffer<T>),
    Kept(Arc<Buffer<T>>),
}

/// Tensors that were converted before, for who reads them again and again while they do not change.
#[derive(Debug)]
pub(super) struct Kept<T: Element>(Mutex<HashMap<TensorId, Arc<Buffer<T>>>>);

impl<T: Element> Kept<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// The elements of a tensor, which is converted once.
    pub(super) fn weight<'a>(&self, tensor: &'a Tensor) -> Result<Weight<'a, T>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
    /// The elements of a parameter that was gathered, converted if they are not of type `T`.
    pub(super) fn gathered(of: Gathered) -> Result<Self> {
        Ok(Self::Converted(match of {
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
            Self::Quantized(_) => &[],
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
