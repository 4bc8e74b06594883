//! The safetensors format: a length, a JSON header, the bytes of the tensors.
//!
//! Headers come from anywhere and are believed only after they have been checked against the file.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::durable::FileWriter;
use super::source::{self, DataFile, Element, Stored};
use crate::models::{Format, Quantized};
use crate::{Error, Result};

/// The limit of the format's own reader.
const MAX_HEADER: u64 = 100_000_000;

/// Names of element types, with their bits and, where weights may have them, our type.
const DTYPES: &[(&str, usize, Option<DType>)] = &[
    ("F32", 32, Some(DType::F32)),
    ("BF16", 16, Some(DType::BF16)),
    ("F16", 16, Some(DType::F16)),
    ("F64", 64, Some(DType::F64)),
    ("I64", 64, None),
    ("I32", 32, None),
    ("I16", 16, None),
    ("I8", 8, None),
    ("U64", 64, None),
    ("U32", 32, None),
    ("U16", 16, None),
    ("U8", 8, None),
    ("BOOL", 8, None),
    ("F8_E4M3", 8, None),
    ("F8_E5M2", 8, None),
    ("F8_E8M0", 8, None),
    ("F8_E4M3FNUZ", 8, None),
    ("F8_E5M2FNUZ", 8, None),
    ("F4", 4, None),
    ("F6_E2M3", 6, None),
    ("F6_E3M2", 6, None),
    ("C64", 64, None),
];

/// One tensor of a file.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    file: Arc<DataFile>,
    dtype_name: &'static str,
    dtype: Option<DType>,
    shape: Vec<usize>,
    /// Where its bytes begin, from the start of the file.
    start: u64,
    bytes: u64,
}

impl Entry {
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its type, where it is one that weights may have.
    pub(super) fn dtype(&self) -> Option<DType> {
        self.dtype
    }

    /// Whether it is of this type, by its name in the format, and has this many dimensions.
    pub(crate) fn is(&self, dtype_name: &str, dims: usize) -> bool {
        self.dtype_name == dtype_name && self.shape.len() == dims
    }

    /// Reads elements of the very type that they are stored in, from element `start` on.
    pub(crate) fn read_raw<T: bytemuck::Pod>(&self, start: usize, out: &mut [T]) -> Result<()> {
        self.file.read_at(bytemuck::cast_slice_mut(out), self.start + (start * size_of::<T>()) as u64)
    }

    /// Its type and shape, for a fingerprint.
    pub(super) fn kind(&self) -> String {
        format!("{}{:?}", self.dtype_name, self.shape)
    }

    /// The file that it is in.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Reads it, converted to `dtype` after rounding through `round_to`.
    pub(super) fn load(&self, name: &str, dtype: DType, round_to: Option<DType>, device: &Device) -> Result<Tensor> {
        self.load_summed(name, dtype, round_to, device).map(|(tensor, _)| tensor)
    }

    /// The same, with the sum of its bytes as [`source::sum`] has it.
    pub(super) fn load_summed(
        &self,
        name: &str,
        dtype: DType,
        round_to: Option<DType>,
        device: &Device,
    ) -> Result<(Tensor, u32)> {
        if self.dtype.is_none() {
            return Err(self.unsupported(name));
        }
        source::load(self, dtype, round_to, None, device)
    }

    /// Reads some of its rows: no other byte of it.
    pub(super) fn load_rows(
        &self,
        name: &str,
        rows: Range<usize>,
        dtype: DType,
        round_to: Option<DType>,
        device: &Device,
    ) -> Result<Tensor> {
        if self.dtype.is_none() {
            return Err(self.unsupported(name));
        }
        source::load(&self.rows(rows), dtype, round_to, None, device).map(|(tensor, _)| tensor)
    }

    /// Some of its rows, as an entry of their own.
    fn rows(&self, rows: Range<usize>) -> Self {
        let row = self.bytes / self.shape.first().map_or(1, |&rows| rows.max(1)) as u64;
        let mut shape = self.shape.clone();
        if let Some(all) = shape.first_mut() {
            *all = rows.len();
        }
        Self { shape, start: self.start + rows.start as u64 * row, bytes: rows.len() as u64 * row, ..self.clone() }
    }

    /// A matrix in blocks, with the sum of its bytes.
    pub(super) fn quantized(&self, name: &str, format: Format, round_to: Option<DType>) -> Result<(Quantized, u32)> {
        if self.dtype.is_none() {
            return Err(self.unsupported(name));
        }
        source::quantized(self, None, format, round_to, None)
    }

    /// The error for a weight of a type that cannot be read.
    pub(super) fn unsupported(&self, name: &str) -> Error {
        Error::file(
            self.path(),
            format!(
                "tensor `{name}` is stored as {}; weights are read from bf16, f16, f32 and f64. \
                 If this is a quantized model, take the original one (or a GGUF file of it)",
                self.dtype_name
            ),
        )
    }
}

impl Stored for Entry {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn dtype(&self) -> Option<DType> {
        self.dtype
    }

    fn bytes(&self) -> (&DataFile, u64, u64) {
        (&self.file, self.start, self.bytes)
    }

    fn read<T: Element>(&self, start: usize, out: &mut [T]) -> Result<u32> {
        let offset = self.start + (start * size_of::<T>()) as u64;
        let bytes = bytemuck::cast_slice_mut(out);
        self.file.read_at(bytes, offset)?;
        Ok(crc32c::crc32c(bytes))
    }

    fn read_f32(&self, start: usize, out: &mut [f32]) -> Result<u32> {
        fn widened<T: Element>(entry: &Entry, start: usize, out: &mut [f32]) -> Result<u32> {
            let mut raw = vec![T::zero(); out.len()];
            let sum = entry.read(start, &mut raw)?;
            for (o, x) in out.iter_mut().zip(raw) {
                *o = x.widen();
            }
            Ok(sum)
        }
        match self.dtype {
            Some(DType::BF16) => widened::<half::bf16>(self, start, out),
            Some(DType::F16) => widened::<half::f16>(self, start, out),
            Some(DType::F64) => widened::<f64>(self, start, out),
            _ => self.read(start, out),
        }
    }
}

/// The header's members in file order, so that a name given twice is seen.
struct Header(Vec<(String, Member)>);

enum Member {
    Tensor(Described),
    Metadata,
}

#[derive(serde::Deserialize)]
struct Described {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that describes tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut members = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let member = if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                        Member::Metadata
                    } else {
                        Member::Tensor(map.next_value()?)
                    };
                    members.push((name, member));
                }
                Ok(Header(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// What helps where bytes are missing or wrong.
const AGAIN: &str = "the file is damaged or was not copied completely: fetch it again";

/// Opens a safetensors file and checks all that its header says against the file.
pub(crate) fn open(path: &Path) -> Result<BTreeMap<String, Entry>> {
    let file = Arc::new(DataFile::open(path)?);
    let bad = |message: String| Error::file(path, message);
    let (Header(members), data_start) = header(&file, path)?;
    let data_len = file.len() - data_start;
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::new();
    for (name, member) in members {
        let Member::Tensor(described) = member else {
            continue;
        };
        let Described { dtype, shape, data_offsets: (begin, end) } = described;
        let Some(&(dtype_name, bits, dtype)) = DTYPES.iter().find(|d| d.0 == dtype) else {
            return Err(bad(format!("tensor `{name}` has the unknown type {dtype:?}")));
        };
        let needed = bits_of(bits, &shape).filter(|bits| bits % 8 == 0).map(|bits| bits / 8);
        if end < begin || needed != Some(end - begin) {
            return Err(bad(format!(
                "its header lies: tensor `{name}` of type {dtype_name} and shape {shape:?} cannot take the bytes {begin}..{end}"
            )));
        }
        if end > data_len {
            return Err(bad(format!(
                "is truncated: tensor `{name}` ends at byte {}, the file at {}; {AGAIN}",
                data_start.saturating_add(end),
                file.len()
            )));
        }
        ranges.push((begin, end, name.clone()));
        let (start, bytes) = (data_start + begin, end - begin);
        let entry = Entry { file: Arc::clone(&file), dtype_name, dtype, shape, start, bytes };
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(bad(format!("tensor `{name}` is in the header twice")));
        }
    }
    all_claimed(ranges, data_len).map_err(bad)?;
    Ok(tensors)
}

/// Reads the header. Returns it with where the data begins.
fn header(file: &DataFile, path: &Path) -> Result<(Header, u64)> {
    let bad = |message: String| Error::file(path, message);
    let mut start = [0; 8];
    if file.len() < 8 {
        return Err(bad(format!("is {} bytes long, too short for a safetensors file; {AGAIN}", file.len())));
    }
    file.read_at(&mut start, 0)?;
    if &start == b"version " {
        return Err(bad(
            "is a Git LFS pointer, not the weights themselves: run `git lfs pull` in the model's folder".into()
        ));
    }
    let len = u64::from_le_bytes(start);
    if len > MAX_HEADER {
        return Err(bad(format!(
            "its first 8 bytes give the header a length of {len} bytes; this is not a safetensors file, or it is damaged"
        )));
    }
    let data_start = 8 + len;
    if data_start > file.len() {
        return Err(bad(format!("is truncated inside its header: {} of {data_start} bytes; {AGAIN}", file.len())));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, 8)?;
    let header = serde_json::from_slice(&bytes)
        .map_err(|e| bad(format!("its header is not what safetensors files have ({e}); {AGAIN}")))?;
    Ok((header, data_start))
}

/// Checks that tensors, by where they begin and end, take every byte of the data once. The error is about their file.
fn all_claimed(mut ranges: Vec<(u64, u64, String)>, data_len: u64) -> Result<(), String> {
    ranges.sort();
    let mut claimed = 0;
    for (begin, end, name) in ranges {
        if begin < claimed {
            return Err(format!("its header lies: tensor `{name}` overlaps the one before it"));
        }
        if begin > claimed {
            return Err(format!(
                "its header lies: nothing claims the {} bytes before tensor `{name}`",
                begin - claimed
            ));
        }
        claimed = end;
    }
    match data_len - claimed {
        0 => Ok(()),
        more => Err(format!("is {more} bytes longer than its header says; {AGAIN}")),
    }
}

/// The bits that a tensor takes, unless that overflows, be it only where a zero among the dimensions is left out.
fn bits_of(bits: usize, shape: &[usize]) -> Option<u64> {
    let product = |at_least: u64| shape.iter().try_fold(bits as u64, |n, &d| n.checked_mul((d as u64).max(at_least)));
    product(1).and_then(|_| product(0))
}

/// A tensor on its way into a file: what the header says now, the bytes when their turn comes.
pub(super) struct Outgoing<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: DType,
    pub(super) shape: &'a [usize],
    pub(super) tensor: &'a dyn Fn() -> Result<Tensor>,
}

impl Outgoing<'_> {
    /// Its size in the file, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        bytes_of(self.dtype, self.shape)
    }
}

/// The bytes that a tensor takes in a file.
pub(super) fn bytes_of(dtype: DType, shape: &[usize]) -> u64 {
    shape.iter().product::<usize>() as u64 * dtype.size_in_bytes() as u64
}

fn dtype_name(dtype: DType) -> Result<&'static str> {
    DTYPES
        .iter()
        .find(|d| d.2 == Some(dtype))
        .map(|d| d.0)
        .ok_or_else(|| Error::setup(format!("tensors of type {dtype:?} cannot be saved as weights")))
}

/// Writes one file, tensor by tensor, and syncs it.
pub(super) fn write(path: &Path, mut tensors: Vec<Outgoing<'_>>) -> Result<()> {
    // Wide types first keeps every tensor aligned to its element, as readers that map files like.
    tensors.sort_by(|a, b| (b.dtype.size_in_bytes(), a.name).cmp(&(a.dtype.size_in_bytes(), b.name)));
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    let mut offset = 0;
    for t in &tensors {
        let end = offset + t.bytes();
        header.insert(
            t.name.to_string(),
            serde_json::json!({
                "dtype": dtype_name(t.dtype)?,
                "shape": t.shape,
                "data_offsets": [offset, end],
            }),
        );
        offset = end;
    }
    let mut file = begin(path, header)?;
    for t in &tensors {
        let tensor = (t.tensor)()?;
        if tensor.dtype() != t.dtype || tensor.dims() != t.shape {
            return Err(Error::setup(format!(
                "tensor `{}` was announced as {:?} {:?} and came as {:?} {:?}",
                t.name,
                t.dtype,
                t.shape,
                tensor.dtype(),
                tensor.dims()
            )));
        }
        with_bytes(&tensor, |bytes| file.write(bytes))?;
    }
    file.finish()
}

/// Begins a file with what it says of its tensors.
fn begin(path: &Path, header: serde_json::Map<String, serde_json::Value>) -> Result<FileWriter> {
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = FileWriter::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    Ok(file)
}

/// A tensor of any type whose bytes are there.
pub(crate) struct Raw<'a> {
    pub(crate) name: &'a str,
    /// Its type, by its name in the format.
    pub(crate) dtype: &'a str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: &'a [u8],
}

/// Writes a file of tensors that are no weights, and syncs it. Those with wide elements are to come first.
pub(crate) fn write_raw(path: &Path, tensors: &[Raw<'_>]) -> Result<()> {
    let (mut header, mut offset) = (serde_json::Map::new(), 0);
    for Raw { name, dtype, shape, bytes } in tensors {
        let end = offset + bytes.len();
        let described = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]});
        header.insert((*name).to_owned(), described);
        offset = end;
    }
    let mut file = begin(path, header)?;
    tensors.iter().try_for_each(|tensor| file.write(tensor.bytes))?;
    file.finish()
}

/// Gives `use_bytes` the elements of a tensor in row-major order, copying only where the tensor is a view or on a device.
fn with_bytes(tensor: &Tensor, use_bytes: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
    let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    let candle_core::Storage::Cpu(storage) = &*storage else {
        return Err(Error::setup("a tensor on its way into a file did not come to the CPU"));
    };
    use candle_core::CpuStorage as S;
    match storage {
        S::F32(v) => use_bytes(bytemuck::cast_slice(&v[range])),
        S::F64(v) => use_bytes(bytemuck::cast_slice(&v[range])),
        S::BF16(v) => use_bytes(bytemuck::cast_slice(&v[range])),
        S::F16(v) => use_bytes(bytemuck::cast_slice(&v[range])),
        _ => Err(Error::setup(format!("tensors of type {:?} cannot be saved as weights", tensor.dtype()))),
    }
}

/// Whether two tensors have the same type, shape and bits.
pub(crate) fn same_bits(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.dtype() != b.dtype() || a.dims() != b.dims() {
        return Ok(false);
    }
    let mut same = false;
    with_bytes(a, |a| {
        with_bytes(b, |b| {
            same = a == b;
            Ok(())
        })
    })?;
    Ok(same)
}
