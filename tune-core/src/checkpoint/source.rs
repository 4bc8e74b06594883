//! Weight files as sources of tensors: positioned reads, split over the cores, converted on the way.
//!
//! Files are read, not mapped: a mapped file that another program shortens kills the process
//! that touches it, while a short read is an error with a name.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use tune_config::files;

use crate::files::is_lfs_pointer;
use crate::kernels::buffers::prefer_huge_pages;
use crate::kernels::parallel::{self, Parts};
use crate::kernels::quantized::nf4::Piece;
use crate::models::{Format, Quantized};
use crate::positions::read_exact_at;
use crate::{Error, Result};

const _: () = assert!(
    cfg!(target_endian = "little"),
    "safetensors and GGUF files hold little-endian numbers, which are read as they are"
);

/// Elements converted at a time by one core: small enough to stay in its cache, and a multiple of
/// every block size that quantized formats use.
const CHUNK: usize = 256 * 1024;

/// An open file that is read at positions, from several threads at once.
#[derive(Debug)]
pub(super) struct DataFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl DataFile {
    /// Opens a regular file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = files::open_file(path).map_err(Error::io("open", path))?;
        let meta = file.metadata().map_err(Error::io("read", path))?;
        Ok(Self { path: path.to_path_buf(), file, len: meta.len() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The length in bytes when the file was opened.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buffer` from byte `offset` on.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        read_exact_at(&self.file, buffer, offset).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                Error::file(&self.path, "became shorter while it was being read")
            } else {
                Error::io("read", &self.path)(e)
            }
        })
    }
}

/// Opens `path` and reads all of it, refusing what is absurdly large for the kind of file it is.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = DataFile::open(path)?;
    if file.len() > limit {
        return Err(Error::file(
            path,
            format!("is {} bytes long; a file of this kind has at most {limit}", file.len()),
        ));
    }
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Reads a JSON file of reasonable size.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read_small(path, 256 << 20)?;
    serde_json::from_slice(&bytes).map_err(|e| match is_lfs_pointer(&bytes) {
        true => Error::file(path, "is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"),
        false => Error::file(path, format!("is not the JSON that was expected here: {e}")),
    })
}

/// A number that weights are stored in.
pub(super) trait Element: candle_core::WithDType + bytemuck::Pod {
    fn widen(self) -> f32;
    fn narrow(value: f32) -> Self;
}

impl Element for f32 {
    fn widen(self) -> f32 {
        self
    }
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Element for f64 {
    fn widen(self) -> f32 {
        self as f32
    }
    fn narrow(value: f32) -> Self {
        f64::from(value)
    }
}

impl Element for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Element for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// A tensor as a file has it.
pub(super) trait Stored: Sync {
    /// The shape, row-major.
    fn shape(&self) -> &[usize];

    /// The type it is stored in, where that is one that tensors can have.
    fn dtype(&self) -> Option<DType>;

    /// The file that it is in, where its bytes begin there, and how many they are.
    fn bytes(&self) -> (&DataFile, u64, u64);

    /// Reads the elements from `start` on, bytes as they are, and returns their checksum. Called only where
    /// [`Self::dtype`] is the type of `T`.
    fn read<T: Element>(&self, start: usize, out: &mut [T]) -> Result<u32>;

    /// Reads the elements from `start`, a multiple of [`CHUNK`], on as f32, and returns the checksum of their bytes
    /// in the file.
    fn read_f32(&self, start: usize, out: &mut [f32]) -> Result<u32>;
}

/// A sum of all bytes of `stored`: of the checksums of its chunks of [`CHUNK`] elements, one after the other, as
/// [`load`] makes it.
pub(super) fn sum(stored: &impl Stored) -> Result<u32> {
    sum_of_bytes(stored.bytes(), stored.shape().iter().product())
}

/// The same of this many bytes of a file from a place on, which are this many elements.
fn sum_of_bytes((file, start, bytes): (&DataFile, u64, u64), elements: usize) -> Result<u32> {
    if elements == 0 || bytes == 0 {
        return Ok(sum_of_chunks(&[]));
    }
    let chunk = CHUNK as u64 * bytes / elements as u64;
    let chunks = (0..bytes.div_ceil(chunk)).into_par_iter().map_init(Vec::new, |buffer, i| {
        let from = i * chunk;
        buffer.resize(chunk.min(bytes - from) as usize, 0);
        file.read_at(buffer, start + from)?;
        Ok(crc32c::crc32c(buffer))
    });
    Ok(sum_of_chunks(&chunks.collect::<Result<Vec<u32>>>()?))
}

fn sum_of_chunks(sums: &[u32]) -> u32 {
    sums.iter().fold(0, |sum, next| crc32c::crc32c_append(sum, &next.to_le_bytes()))
}

/// What `read` makes of each chunk, given its number and memory that is used again, in their order. Compiled once for all types
/// of numbers.
fn read_chunks<R: Send>(count: usize, read: &(dyn Fn(&mut Vec<f32>, usize) -> Result<R> + Sync)) -> Result<Vec<R>> {
    (0..count).into_par_iter().map_init(Vec::new, read).collect()
}

/// Reads `stored` as a tensor of `dtype` on `device`, rounded through `round_to` on the way, with its [`sum`].
///
/// `rows`, where given, says which stored row comes to stand at each row of the result.
pub(super) fn load(
    stored: &impl Stored,
    dtype: DType,
    round_to: Option<DType>,
    rows: Option<&(dyn Fn(usize) -> usize + Sync)>,
    device: &Device,
) -> Result<(Tensor, u32)> {
    match dtype {
        DType::F32 => load_as::<f32>(stored, round_to, rows, device),
        DType::F64 => load_as::<f64>(stored, round_to, rows, device),
        DType::BF16 => load_as::<bf16>(stored, round_to, rows, device),
        DType::F16 => load_as::<f16>(stored, round_to, rows, device),
        other => Err(Error::setup(format!("weights cannot be loaded as {other:?}; use f32, bf16, f16 or f64"))),
    }
}

fn load_as<T: Element>(
    stored: &impl Stored,
    round_to: Option<DType>,
    rows: Option<&(dyn Fn(usize) -> usize + Sync)>,
    device: &Device,
) -> Result<(Tensor, u32)> {
    let round = match round_to {
        Some(to) if to == T::DTYPE || Some(to) == stored.dtype() => None,
        other => other,
    };
    let count = stored.shape().iter().product();
    let mut values = vec![T::zero(); count];
    prefer_huge_pages(&mut values);
    let chunks = parallel::chunks(&mut values, CHUNK);
    let is_as_stored = stored.dtype() == Some(T::DTYPE) && round.is_none();
    let read = |wide: &mut Vec<f32>, i: usize| {
        // SAFETY: each chunk is taken once.
        let out = unsafe { chunks.part(i) };
        if is_as_stored {
            return stored.read(i * CHUNK, out);
        }
        wide.resize(out.len(), 0.0);
        let sum = stored.read_f32(i * CHUNK, wide)?;
        match round {
            Some(DType::BF16) => round_through::<bf16>(wide),
            Some(DType::F16) => round_through::<f16>(wide),
            _ => {}
        }
        for (o, x) in out.iter_mut().zip(wide.iter()) {
            *o = T::narrow(*x);
        }
        Ok(sum)
    };
    let sum = sum_of_chunks(&read_chunks(chunks.count(), &read)?);
    if let (Some(from), Some(&height)) = (rows, stored.shape().first())
        && height > 0
    {
        let width = count / height;
        let mut moved = vec![T::zero(); count];
        prefer_huge_pages(&mut moved);
        if width > 0 {
            parallel::each_chunk(&mut moved, width, |row, out| {
                let start = from(row) * width;
                out.copy_from_slice(&values[start..start + width]);
            });
        }
        values = moved;
    }
    Ok((Tensor::from_vec(values, stored.shape(), &Device::Cpu)?.to_device(device)?, sum))
}

fn round_through<T: Element>(values: &mut [f32]) {
    for x in values {
        *x = T::narrow(*x).widen();
    }
}

/// Which stored row comes to stand at each row, to be handed to [`load`].
pub(super) fn as_rows<F: Fn(usize) -> usize + Sync>(rows: &F) -> &(dyn Fn(usize) -> usize + Sync) {
    rows
}

/// Reads the matrix `stored` in blocks, with its [`sum`]: as they are in the file, whose format is `in_file`, or as NF4.
///
/// `rows` is as in [`load`].
pub(super) fn quantized(
    stored: &impl Stored,
    in_file: Option<Format>,
    format: Format,
    round_to: Option<DType>,
    rows: Option<&(dyn Fn(usize) -> usize + Sync)>,
) -> Result<(Quantized, u32)> {
    let &[height, width] = stored.shape() else {
        return Err(Error::setup(format!("what is not a matrix cannot be quantized: {:?}", stored.shape())));
    };
    if format == Format::Nf4 {
        return nf4(stored, (height, width), round_to, rows);
    }
    if in_file != Some(format) || format.bytes(height, width).is_none() {
        return Err(Error::setup(format!("a matrix {height} by {width} of {in_file:?} is not kept as {format}")));
    }
    let (bytes, sum) = blocks(stored.bytes(), (height, width), rows)?;
    Ok((Quantized::of_file(format, (height, width), bytes), sum))
}

/// The bytes of a matrix as they are, row by row.
fn blocks(
    (file, start, bytes): (&DataFile, u64, u64),
    (height, width): (usize, usize),
    rows: Option<&(dyn Fn(usize) -> usize + Sync)>,
) -> Result<(Vec<u8>, u32)> {
    let mut all = vec![0u8; bytes as usize];
    let chunk = (CHUNK as u64 * bytes / (height * width).max(1) as u64).max(1) as usize;
    let read = |(i, out): (usize, &mut [u8])| {
        file.read_at(out, start + (i * chunk) as u64)?;
        Ok(crc32c::crc32c(out))
    };
    let sum = sum_of_chunks(&all.par_chunks_mut(chunk).enumerate().map(read).collect::<Result<Vec<u32>>>()?);
    let Some(from) = rows else { return Ok((all, sum)) };
    let width = all.len() / height.max(1);
    let mut moved = vec![0u8; all.len()];
    parallel::each_chunk(&mut moved, width.max(1), |row, out| {
        let start = from(row) * width;
        out.copy_from_slice(&all[start..start + width]);
    });
    Ok((moved, sum))
}

/// A matrix quantized piece by piece, as it is read.
fn nf4(
    stored: &impl Stored,
    size: (usize, usize),
    round_to: Option<DType>,
    rows: Option<&(dyn Fn(usize) -> usize + Sync)>,
) -> Result<(Quantized, u32)> {
    if rows.is_some() {
        let (tensor, sum) = load(stored, DType::F32, round_to, rows, &Device::Cpu)?;
        return Ok((Quantized::nf4(size.0, size.1, &tensor.flatten_all()?.to_vec1::<f32>()?), sum));
    }
    let count = size.0 * size.1;
    let read = |wide: &mut Vec<f32>, i: usize| {
        wide.resize(CHUNK.min(count - i * CHUNK), 0.0);
        let sum = stored.read_f32(i * CHUNK, wide)?;
        match round_to {
            Some(DType::BF16) => round_through::<bf16>(wide),
            Some(DType::F16) => round_through::<f16>(wide),
            _ => {}
        }
        Ok((Piece::new(wide), sum))
    };
    let (pieces, sums): (Vec<Piece>, Vec<u32>) = read_chunks(count.div_ceil(CHUNK), &read)?.into_iter().unzip();
    Ok((Quantized::of_pieces(size, &pieces), sum_of_chunks(&sums)))
}
