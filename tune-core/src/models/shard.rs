//! Parameters of which each process of a group has some rows.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Storage, Tensor};
use half::bf16;

use crate::distributed::{Group, Mesh, Pending, Transport};
use crate::kernels::buffers::Buffer;
use crate::kernels::{Quantized, Share};
use crate::{Error, Result};

/// What is known of a parameter of which this process has some rows.
#[derive(Debug, Clone)]
pub(crate) struct Shard {
    pub(crate) mesh: Mesh,
    /// The rows of the whole parameter.
    pub(crate) rows: usize,
}

impl Shard {
    /// The rows that are here.
    pub(crate) fn range(&self) -> Range<usize> {
        self.mesh.shards().share(self.rows)
    }

    /// The elements that each process has, for the part that is here.
    pub(crate) fn counts(&self, here: &Tensor) -> Vec<usize> {
        self.mesh.shards().counts(self.rows, row_of(here))
    }

    /// The number of this part's first element in the whole.
    pub(crate) fn first_element(&self, here: &Tensor) -> usize {
        self.range().start * row_of(here)
    }
}

/// The elements of a row; those of a vector are rows of one.
pub(crate) fn row_of(tensor: &Tensor) -> usize {
    tensor.dims().iter().skip(1).product()
}

/// What this process has of a parameter.
#[derive(Debug, Clone)]
pub(crate) enum Here {
    /// Some rows of so many.
    Rows(Tensor, usize),
    /// Some blocks.
    Blocks(Arc<Share>),
}

/// The elements of a parameter that was gathered from all processes, in the type that it is stored in.
#[derive(Debug)]
pub(crate) enum Gathered {
    Blocks(Quantized),
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
    F64(Vec<f64>),
}

impl Gathered {
    fn of(dtype: DType, len: usize) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32(Buffer::new(len))),
            DType::BF16 => Ok(Self::Bf16(Buffer::new(len))),
            DType::F64 => Ok(Self::F64(vec![0.0; len])),
            other => Err(Error::setup(format!("parameters of {other:?} are not divided among processes"))),
        }
    }

    /// The bytes of elements.
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::F32(x) => bytemuck::cast_slice_mut(x),
            Self::Bf16(x) => bytemuck::cast_slice_mut(x),
            Self::F64(x) => bytemuck::cast_slice_mut(x),
            Self::Blocks(_) => &mut [],
        }
    }

    /// As a tensor of the processor.
    pub(crate) fn into_tensor(self, shape: &[usize]) -> Result<Tensor> {
        let device = &candle_core::Device::Cpu;
        Ok(match self {
            Self::F32(x) => Tensor::from_slice(&x, shape, device)?,
            Self::Bf16(x) => Tensor::from_slice(&x, shape, device)?,
            Self::F64(x) => Tensor::from_vec(x, shape, device)?,
            Self::Blocks(_) => return Err(Error::setup("blocks are not made a tensor of")),
        })
    }
}

/// Gives `f` the bytes of a tensor of the processor without gaps.
fn with_bytes<R>(tensor: &Tensor, f: impl FnOnce(&[u8]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(x)), Some((start, end))) => f(bytemuck::cast_slice(&x[start..end])),
        (Storage::Cpu(CpuStorage::BF16(x)), Some((start, end))) => f(bytemuck::cast_slice(&x[start..end])),
        (Storage::Cpu(CpuStorage::F64(x)), Some((start, end))) => f(bytemuck::cast_slice(&x[start..end])),
        _ => Err(Error::setup(
            "what is divided among processes is tensors of the processor, of f32 or bf16, without gaps",
        )),
    }
}

/// The bytes of each process's part of a matrix in blocks, for each of the three parts that it is stored in.
pub(crate) fn counts_of_blocks(group: &Group, share: &Share) -> [Vec<usize>; 3] {
    let units = share.format().units(share.dims());
    share.counts((0..group.world_size()).map(|rank| group.share_of(rank, units)))
}

/// Begins to gather whole parameters of which these parts are here.
pub(crate) fn gather(group: &Group, of: &str, parts: Vec<Here>) -> Pending<Vec<Gathered>> {
    let counts = |here: &Here| match here {
        Here::Rows(tensor, rows) => [group.counts(*rows, row_of(tensor)), Vec::new(), Vec::new()],
        Here::Blocks(share) => counts_of_blocks(group, share),
    };
    let counts: Vec<[Vec<usize>; 3]> = parts.iter().map(counts).collect();
    group.begin("all-gather", of, move |transport| {
        let gather = |(here, counts): (&Here, &[Vec<usize>; 3])| match here {
            Here::Rows(tensor, _) => gather_one(transport, tensor, &counts[0]),
            Here::Blocks(share) => {
                let all = |part: usize, mine: &[u8], all: &mut [u8]| transport.all_gather(mine, &counts[part], all);
                share.gathered(all).map(Gathered::Blocks)
            }
        };
        parts.iter().zip(&counts).map(gather).collect()
    })
}

fn gather_one(transport: &mut dyn Transport, here: &Tensor, counts: &[usize]) -> Result<Gathered> {
    let mut whole = Gathered::of(here.dtype(), counts.iter().sum())?;
    let size = here.dtype().size_in_bytes();
    let bytes: Vec<usize> = counts.iter().map(|count| count * size).collect();
    with_bytes(here, |mine| transport.all_gather(mine, &bytes, whole.bytes()))?;
    Ok(whole)
}
