//! GGUF files, llama.cpp's format: one file with weights, hyperparameters and tokenizer.
//!
//! What is read appears under Hugging Face's names and in its layout: the rows of the query and
//! key projections, which llama.cpp stores with interleaved rotary halves, are put back.

pub mod adapter;
mod describe;
mod export;
mod family;
mod header;
mod importance;
mod layout;
mod metadata;
mod modelfile;
mod pre;
mod quantize;
mod rope;
mod tokenizer;
mod vocabulary;
mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, Tensor};
use half::{bf16, f16};
use serde_json::Value;

pub use self::export::{Comparison, Export};
use self::header::{Header, Kind, TensorInfo};
pub use self::importance::Importance;
use self::layout::Change;
pub(crate) use self::layout::layer_name;
use self::metadata::Metadata;
pub use self::modelfile::modelfile;
pub use self::quantize::FileKind;
pub(crate) use self::quantize::Format as TensorFormat;
pub(crate) use self::vocabulary::{DIFFICULT, difference};
use super::source::{self, DataFile, Element, Stored};
use crate::models::{Format, Quantized};
use crate::tokenizer::TokenizerFiles;
use crate::{Error, Result};

/// A GGUF file as a Hugging Face model.
#[derive(Debug)]
pub(super) struct Model {
    metadata: Metadata,
    config: Value,
    tensors: BTreeMap<String, GgufTensor>,
}

/// A parameter of a GGUF file.
#[derive(Debug)]
pub(super) struct GgufTensor {
    file: Arc<DataFile>,
    info: TensorInfo,
    /// What was done to it on its way into the file.
    change: Change,
}

/// What a GGUF file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// An adapter, and no model.
    pub is_adapter: bool,
    /// The kind of file, where it is one that is written here.
    pub kind: Option<FileKind>,
}

/// Reads what a GGUF file is off its head.
///
/// # Errors
/// Where it cannot be read, or is no GGUF file.
pub fn form(path: &Path) -> Result<Form> {
    let file = DataFile::open(path)?;
    let metadata = Metadata::new(path, Header::read(&file)?.metadata);
    let number = metadata.u64("general.file_type")?;
    let kind = number.and_then(|number| FileKind::ALL.into_iter().find(|kind| u64::from(kind.id()) == number));
    Ok(Form { is_adapter: metadata.text("general.type")? == Some("adapter"), kind })
}

impl Model {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = Arc::new(DataFile::open(path)?);
        let Header { metadata, tensors } = Header::read(&file)?;
        let metadata = Metadata::new(path, metadata);
        if metadata.u64("split.count")?.is_some_and(|n| n > 1) {
            return Err(Error::file(
                path,
                "is one part of a split GGUF file; join the parts with `llama-gguf-split --merge`",
            ));
        }
        let (config, parameters) = family::describe(&metadata, &file, tensors)?;
        let tensors = parameters
            .into_iter()
            .map(|p| {
                let tensor = GgufTensor { file: Arc::clone(&file), info: p.info, change: p.change };
                (p.name, tensor)
            })
            .collect();
        Ok(Self { metadata, config, tensors })
    }

    pub(super) fn config(&self) -> &Value {
        &self.config
    }

    pub(super) fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    pub(super) fn tokenizer_files(&self) -> Result<TokenizerFiles> {
        let rows = self.config.get("vocab_size").and_then(Value::as_u64).unwrap_or(0);
        tokenizer::files(&self.metadata, rows)
    }

    /// The ids that generation stops and pads with.
    pub(super) fn generation_config(&self) -> Result<Value> {
        let id = |key: &str| self.config.get(key).cloned().unwrap_or(Value::Null);
        let mut eos: Vec<Value> = Some(id("eos_token_id")).filter(|id| !id.is_null()).into_iter().collect();
        // The ends of a turn and of a message, where they are others.
        for name in ["eot", "eom"] {
            let end = self.metadata.u64(&format!("tokenizer.ggml.{name}_token_id"))?;
            eos.extend(end.map(Value::from).filter(|end| !eos.contains(end)));
        }
        let eos = match eos.as_slice() {
            [] => Value::Null,
            [one] => one.clone(),
            several => several.into(),
        };
        let mut config = serde_json::Map::new();
        for (key, value) in
            [("bos_token_id", id("bos_token_id")), ("eos_token_id", eos), ("pad_token_id", id("pad_token_id"))]
        {
            if !value.is_null() {
                config.insert(key.into(), value);
            }
        }
        Ok(Value::Object(config))
    }
}

impl GgufTensor {
    /// Reads it as Hugging Face has it, with the checksum of its bytes.
    pub(super) fn load(&self, dtype: DType, round_to: Option<DType>, device: &Device) -> Result<(Tensor, u32)> {
        if self.change == Change::PlusOne {
            let (plus_one, sum) = source::load(self, DType::F32, None, None, device)?;
            let rounded = round_to.map_or(Ok((&plus_one - 1.0)?), |to| (&plus_one - 1.0)?.to_dtype(to))?;
            return Ok((rounded.to_dtype(dtype)?, sum));
        }
        source::load(self, dtype, round_to, self.stored_row().as_ref().map(source::as_rows), device)
    }

    /// A matrix in blocks, with the checksum of its bytes: as it is in the file, or in NF4.
    pub(super) fn quantized(&self, format: Format, round_to: Option<DType>) -> Result<(Quantized, u32)> {
        let from = self.stored_row();
        source::quantized(self, self.format(), format, round_to, from.as_ref().map(source::as_rows))
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.info.shape
    }

    /// Its type and shape, for a fingerprint.
    pub(super) fn kind(&self) -> String {
        format!("{:?}{:?}", self.info.kind, self.info.shape)
    }

    pub(super) fn dtype(&self) -> Option<DType> {
        match self.info.kind {
            Kind::F32 => Some(DType::F32),
            Kind::Blocks(Format::F16) => Some(DType::F16),
            Kind::Blocks(Format::Bf16) => Some(DType::BF16),
            _ => None,
        }
    }

    /// The format of its blocks, if it can be kept in them.
    pub(super) fn format(&self) -> Option<Format> {
        match self.info.kind {
            Kind::Blocks(format) => Some(format),
            _ => None,
        }
    }

    /// Which row of the file comes to stand at each row, where they are not in order.
    fn stored_row(&self) -> Option<impl Fn(usize) -> usize + Sync + use<>> {
        let Change::Interleaved(heads) = self.change else { return None };
        // Row `pair + half * (size / 2)` of a head was stored as row `2 * pair + half`.
        let size = self.info.shape[0] / heads;
        Some(move |row: usize| {
            let (head, within) = (row / size, row % size);
            let (half, pair) = (within / (size / 2), within % (size / 2));
            head * size + 2 * pair + half
        })
    }
}

impl Stored for GgufTensor {
    fn shape(&self) -> &[usize] {
        &self.info.shape
    }

    fn dtype(&self) -> Option<DType> {
        GgufTensor::dtype(self)
    }

    fn bytes(&self) -> (&DataFile, u64, u64) {
        (&self.file, self.info.start, self.info.bytes)
    }

    fn read<T: Element>(&self, start: usize, out: &mut [T]) -> Result<u32> {
        let offset = self.info.start + (start * size_of::<T>()) as u64;
        let bytes = bytemuck::cast_slice_mut(out);
        self.file.read_at(bytes, offset)?;
        Ok(crc32c::crc32c(bytes))
    }

    fn read_f32(&self, start: usize, out: &mut [f32]) -> Result<u32> {
        let (block, size) = self.info.kind.block();
        let bytes = out.len() / block * size;
        // In 8-byte words, since candle casts the bytes to blocks and minds their alignment.
        let mut words = vec![0u64; bytes.div_ceil(8)];
        let raw = &mut bytemuck::cast_slice_mut(&mut words)[..bytes];
        self.file.read_at(raw, self.info.start + (start / block * size) as u64)?;
        let sum = crc32c::crc32c(raw);
        match self.info.kind {
            Kind::F32 => out.copy_from_slice(bytemuck::cast_slice(raw)),
            Kind::Blocks(Format::F16) => widen::<f16>(raw, out),
            Kind::Blocks(Format::Bf16) => widen::<bf16>(raw, out),
            Kind::Blocks(format) => format.dequantize(raw, out),
            Kind::Rare(dtype) => match dtype.from_data(Cow::Borrowed(raw)).dequantize(out.len())? {
                CpuStorage::F32(values) => out.copy_from_slice(&values),
                other => {
                    return Err(Error::setup(format!(
                        "dequantizing {dtype:?} gave {:?} instead of f32",
                        candle_core::backend::BackendStorage::dtype(&other)
                    )));
                }
            },
        }
        Ok(sum)
    }
}

/// Numbers of sixteen bits in f32.
fn widen<T: Element>(bytes: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(bytemuck::cast_slice::<u8, T>(bytes)).for_each(|(out, x)| *out = x.widen());
}
