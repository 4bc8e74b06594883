//! The header of a GGUF file, read with the file's length in mind.
//!
//! candle's own reader trusts more than a file from anywhere deserves (an alignment of zero
//! divides by it, dimensions overflow), so the header is read here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use candle_core::quantized::GgmlDType;

use crate::checkpoint::source::DataFile;
use crate::models::Format;
use crate::{Error, Result};

/// Bytes read at a time.
const READ: usize = 1 << 20;
/// No header comes near this; the largest vocabularies make some ten MB.
const MAX_HEADER: u64 = 512 << 20;
/// Values of all arrays together, 32 bytes each in memory.
const MAX_VALUES: u64 = 16 << 20;
const MAX_DIMS: u32 = 4;

/// One value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Text(String),
    Array(Vec<Value>),
}

/// What the elements of a tensor are.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    F32,
    /// What products can read as it is stored.
    Blocks(Format),
    /// What llama.cpp has in memory alone, as a rule, and candle dequantizes.
    Rare(GgmlDType),
}

impl Kind {
    /// Elements of a block, and its bytes.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::Blocks(Format::F16 | Format::Bf16) => (1, 2),
            Self::Blocks(format) => format.block(),
            Self::Rare(dtype) => (dtype.block_size(), dtype.type_size()),
        }
    }

    fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::Blocks(Format::F16),
            2 => Self::Blocks(Format::Q4_0),
            3 => Self::Blocks(Format::Q4_1),
            6 => Self::Blocks(Format::Q5_0),
            7 => Self::Blocks(Format::Q5_1),
            8 => Self::Blocks(Format::Q8_0),
            9 => Self::Rare(GgmlDType::Q8_1),
            10 => Self::Blocks(Format::Q2K),
            11 => Self::Blocks(Format::Q3K),
            12 => Self::Blocks(Format::Q4K),
            13 => Self::Blocks(Format::Q5K),
            14 => Self::Blocks(Format::Q6K),
            15 => Self::Rare(GgmlDType::Q8K),
            20 => Self::Blocks(Format::Iq4Nl),
            30 => Self::Blocks(Format::Bf16),
            _ => return None,
        })
    }
}

/// In fingerprints, too: to be kept as it is.
impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("F32"),
            Self::Blocks(Format::Bf16) => f.write_str("BF16"),
            Self::Blocks(format) => fmt::Debug::fmt(format, f),
            Self::Rare(dtype) => fmt::Debug::fmt(dtype, f),
        }
    }
}

/// Where a tensor is and what it is.
#[derive(Debug, Clone)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Row-major, the reverse of the file's order.
    pub(super) shape: Vec<usize>,
    /// From the start of the file.
    pub(super) start: u64,
    pub(super) bytes: u64,
}

impl TensorInfo {
    /// One of so many equal parts of it, along its first dimension.
    pub(super) fn part(&self, part: usize, parts: usize) -> Self {
        let bytes = self.bytes / parts as u64;
        let shape = self.shape[1..].to_vec();
        Self { name: self.name.clone(), kind: self.kind, shape, start: self.start + part as u64 * bytes, bytes }
    }
}

#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: Vec<TensorInfo>,
}

struct Cursor<'a> {
    file: &'a DataFile,
    loaded: Vec<u8>,
    at: usize,
    short_lengths: bool,
    values: u64,
}

impl Header {
    pub(super) fn read(file: &DataFile) -> Result<Self> {
        let mut cursor = Cursor { file, loaded: Vec::new(), at: 0, short_lengths: false, values: 0 };
        let magic = cursor.take(4)?;
        if magic != b"GGUF" {
            let message = if magic == b"vers" {
                "is a Git LFS pointer, not the model itself: run `git lfs pull` in its folder"
            } else {
                "is not a GGUF file: it does not begin with `GGUF`"
            };
            return Err(cursor.bad(message));
        }
        match cursor.u32()? {
            1 => cursor.short_lengths = true,
            2 | 3 => {}
            v if v.swap_bytes() <= 3 => {
                return Err(cursor.bad("is a big-endian GGUF file; take the usual, little-endian one"));
            }
            v => {
                return Err(cursor.bad(format!("has version {v} of the GGUF format; versions 1 to 3 are read")));
            }
        }
        let tensor_count = cursor.length()?;
        let metadata_count = cursor.length()?;
        // The least that an entry takes: lengths, types and offsets.
        cursor.room_for(tensor_count, 20, "tensors")?;
        cursor.room_for(metadata_count, 9, "metadata entries")?;

        let mut metadata = BTreeMap::new();
        for _ in 0..metadata_count {
            let key = cursor.text()?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind, &key)?;
            metadata.insert(key, value);
        }
        let mut raw = Vec::new();
        for _ in 0..tensor_count {
            raw.push(cursor.tensor()?);
        }

        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(&Value::Unsigned(a)) if a.is_power_of_two() && a <= 1 << 20 => a,
            Some(other) => {
                return Err(cursor.bad(format!("general.alignment is {other:?}, not a power of two")));
            }
        };
        let data_start = (cursor.at as u64).next_multiple_of(alignment);
        let tensors = place(raw, data_start, alignment, file)?;
        Ok(Self { metadata, tensors })
    }
}

/// Turns offsets into positions, and checks them against each other and the file.
fn place(raw: Vec<TensorInfo>, data_start: u64, alignment: u64, file: &DataFile) -> Result<Vec<TensorInfo>> {
    let bad = |message: String| Error::file(file.path(), message);
    let mut names = BTreeSet::new();
    let mut tensors = Vec::with_capacity(raw.len());
    for mut t in raw {
        if !names.insert(t.name.clone()) {
            return Err(bad(format!("tensor `{}` is in the header twice", t.name)));
        }
        if t.start % alignment != 0 {
            return Err(bad(format!("its header lies: tensor `{}` is not aligned to {alignment} bytes", t.name)));
        }
        let start = data_start.checked_add(t.start);
        match start.and_then(|s| s.checked_add(t.bytes)) {
            Some(end) if end <= file.len() => t.start = end - t.bytes,
            _ => {
                return Err(bad(format!(
                    "is truncated: tensor `{}` takes {} bytes from byte {} on, and the file has {}; fetch it again",
                    t.name,
                    t.bytes,
                    data_start.saturating_add(t.start),
                    file.len()
                )));
            }
        }
        tensors.push(t);
    }
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|t| (t.start, t.bytes));
    for pair in order.windows(2) {
        if let [a, b] = pair
            && a.start + a.bytes > b.start
        {
            return Err(bad(format!("its header lies: tensors `{}` and `{}` overlap", a.name, b.name)));
        }
    }
    Ok(tensors)
}

impl Cursor<'_> {
    fn bad(&self, message: impl Into<String>) -> Error {
        Error::file(self.file.path(), message)
    }

    fn remaining(&self) -> u64 {
        self.file.len() - self.at as u64
    }

    fn room_for(&self, count: u64, each: u64, what: &str) -> Result<()> {
        if count.saturating_mul(each) > self.remaining() {
            return Err(self.bad(format!(
                "is truncated, or its header lies: it claims {count} {what} where {} bytes remain",
                self.remaining()
            )));
        }
        Ok(())
    }

    fn take(&mut self, n: usize) -> Result<&[u8]> {
        if n as u64 > self.remaining() {
            return Err(self.bad(format!(
                "is truncated inside its header, or the header lies: {n} bytes are due at byte {} of {}; fetch it again",
                self.at,
                self.file.len()
            )));
        }
        let end = self.at + n;
        if end as u64 > MAX_HEADER {
            return Err(self.bad("its header is absurdly long; the file is damaged"));
        }
        let have = self.loaded.len();
        if end > have {
            let more = (end.max(have + READ) as u64).min(self.file.len()) as usize;
            self.loaded.resize(more, 0);
            self.file.read_at(&mut self.loaded[have..], have as u64)?;
        }
        let start = std::mem::replace(&mut self.at, end);
        Ok(&self.loaded[start..end])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn length(&mut self) -> Result<u64> {
        if self.short_lengths { self.u32().map(u64::from) } else { self.u64() }
    }

    fn text(&mut self) -> Result<String> {
        let n = self.length()?;
        self.room_for(n, 1, "bytes of text")?;
        let bytes = self.take(n as usize)?;
        // Some writers end strings as C does.
        let end = bytes.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.array()?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => {
                let kind = self.u32()?;
                let n = self.length()?;
                let least = match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    8 if !self.short_lengths => 8,
                    10..=12 => 8,
                    9 => return Err(self.bad(format!("metadata `{key}` is an array of arrays"))),
                    _ => 4,
                };
                self.room_for(n, least, &format!("values in `{key}`"))?;
                self.values = self.values.saturating_add(n);
                if self.values > MAX_VALUES {
                    return Err(
                        self.bad(format!("metadata `{key}` has {n} values, which is absurd; the file is damaged"))
                    );
                }
                let mut values = Vec::with_capacity(n as usize);
                for _ in 0..n {
                    values.push(self.value(kind, key)?);
                }
                Value::Array(values)
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => {
                return Err(self.bad(format!("metadata `{key}` has the unknown type {other}; the file is damaged")));
            }
        })
    }

    /// One tensor's description; `start` is still relative to the data.
    fn tensor(&mut self) -> Result<TensorInfo> {
        let name = self.text()?;
        let rank = self.u32()?;
        if !(1..=MAX_DIMS).contains(&rank) {
            return Err(self.bad(format!("tensor `{name}` has {rank} dimensions; the format allows 1 to {MAX_DIMS}")));
        }
        let mut dims = Vec::new();
        for _ in 0..rank {
            dims.push(self.length()?);
        }
        let number = self.u32()?;
        let start = self.u64()?;
        let Some(kind) = Kind::of(number) else {
            return Err(self.bad(format!(
                "tensor `{name}` is quantized as {}, which is not supported; take a file with \
                 Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, F16, BF16 or F32",
                foreign_type(number)
            )));
        };
        let (block, size) = kind.block();
        let (block, size) = (block as u64, size as u64);
        let count = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n > 0 && dims[0] % block == 0);
        let bytes = count.and_then(|n| (n / block).checked_mul(size));
        let Some(bytes) = bytes else {
            return Err(self.bad(format!(
                "its header lies: tensor `{name}` of type {kind:?} cannot have the dimensions {dims:?}"
            )));
        };
        if bytes > self.file.len() {
            return Err(self.bad(format!(
                "is truncated, or its header lies: tensor `{name}` of type {kind:?} and dimensions {dims:?} takes {bytes} \
                 bytes, and the file has {}; fetch it again",
                self.file.len()
            )));
        }
        Ok(TensorInfo { name, kind, shape: dims.iter().rev().map(|&d| d as usize).collect(), start, bytes })
    }
}

/// The name of a type that ggml has and that is not read.
fn foreign_type(kind: u32) -> String {
    let name = match kind {
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("type {kind}"),
    };
    name.to_string()
}
