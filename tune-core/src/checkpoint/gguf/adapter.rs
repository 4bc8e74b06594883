//! Adapters as GGUF files, which llama.cpp puts on a base at run time (`--lora`, Ollama's `ADAPTER`).
//!
//! A layer's two matrices are `NAME.lora_a` `[rank, in]` and `NAME.lora_b` `[out, rank]`, where `NAME` is what the layer's weight
//! is called; rows of `lora_b` are in the order of the weight's. The update is scaled by `adapter.lora.alpha / rank`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::GgufTensor;
use super::describe::family_of;
use super::export::changed;
use super::header::{Header, Value as Read};
use super::layout::{Change, Names, layout};
use super::quantize::{FileKind, Format};
use super::write::{Head, Outgoing, Value};
use crate::checkpoint::peft::{self, AdapterConfig};
use crate::checkpoint::source::DataFile;
use crate::models::ModelSpec;
use crate::{Error, Result};

/// An adapter's file, ready to be written.
#[derive(Debug)]
pub struct AdapterExport {
    head: Head,
    tensors: Vec<Outgoing>,
    content: Vec<Vec<u8>>,
}

impl AdapterExport {
    /// Makes the file of the adapter in `dir` for a model.
    ///
    /// # Errors
    /// An adapter that cannot be read, on a layer that the model does not have or that llama.cpp keeps no adapter for; a
    /// kind of file in blocks.
    pub fn new(dir: &Path, model: &ModelSpec, kind: FileKind) -> Result<Self> {
        let format = match kind {
            FileKind::F32 => Format::F32,
            FileKind::F16 => Format::F16,
            FileKind::Bf16 => Format::Bf16,
            other => {
                return Err(Error::setup(format!(
                    "adapters are written in f32, f16 or bf16, and not in {}, which would take more than it saves",
                    other.name()
                )));
            }
        };
        let (config, tensors) = peft::read(dir)?;
        if config.use_dora {
            return Err(Error::file(
                dir,
                "is a DoRA adapter: llama.cpp has no place for its magnitudes; merge the adapter (`tune export BASE \
                 --adapter ADAPTER`)",
            ));
        }
        if let Some(name) = config.modules_to_save.first() {
            return Err(Error::file(
                dir,
                format!(
                    "brings along `{name}` whole (modules_to_save): llama.cpp's adapters have no place for it; merge the adapter \
                     (`tune export BASE --adapter ADAPTER`)"
                ),
            ));
        }
        let family = family_of(model)?;
        let places = places(model, family.interleaved);
        let mut head = Head::default();
        // A scale of nothing means one to llama.cpp.
        let alpha = if config.alpha == 0.0 { config.r as f64 } else { config.alpha };
        head.put("general.architecture", &Value::Text(family.architecture.into()));
        head.put("general.type", &Value::Text("adapter".into()));
        head.put("adapter.type", &Value::Text("lora".into()));
        head.put("adapter.lora.alpha", &Value::F32(alpha as f32));
        head.put("general.file_type", &Value::U32(kind.id()));
        let (mut outgoing, mut content) = (Vec::new(), Vec::new());
        for module in peft::modules(tensors.keys()) {
            let (name, change) = place(&places, module, model).map_err(|what| Error::file(dir, what))?;
            let of = |m: &str| tensors.get(&format!("{module}.lora_{m}.weight"));
            let (Some(a), Some(b)) = (of("A"), of("B")) else { continue };
            let factor = factor(&config, module, alpha).map_err(|what| Error::file(dir, what))?;
            let a = a.to_dtype(DType::F32)?;
            let b = match factor == 1.0 {
                true => b.to_dtype(DType::F32)?,
                false => (b.to_dtype(DType::F32)? * factor)?,
            };
            for (end, tensor, change) in [("a", a, Change::None), ("b", b, change)] {
                outgoing.push(Outgoing::new(format!("{name}.lora_{end}"), tensor.dims().to_vec(), format));
                content.push(format.encode(&changed(&tensor, change)?));
            }
        }
        Ok(Self { head, tensors: outgoing, content })
    }

    /// The file's size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.head.size(&self.tensors)
    }

    /// Writes the file and syncs it.
    ///
    /// # Errors
    /// Where writing fails.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut content = self.content.iter();
        self.head.write(path, &self.tensors, |_, put| content.next().map_or(Ok(()), |bytes| put(bytes)))
    }

    /// The names of tensors that are not in a file as they were to be written.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn compare(&self, path: &Path) -> Result<Vec<String>> {
        let file = DataFile::open(path)?;
        let header = Header::read(&file)?;
        let mut different = Vec::new();
        for (tensor, content) in self.tensors.iter().zip(&self.content) {
            let info = header.tensors.iter().find(|info| info.name == tensor.name && info.shape == tensor.shape);
            let mut there = vec![0; content.len()];
            let same = match info {
                Some(info) if info.bytes == tensor.bytes => {
                    file.read_at(&mut there, info.start)?;
                    there == *content
                }
                _ => false,
            };
            if !same {
                different.push(tensor.name.clone());
            }
        }
        let known = |name: &str| self.tensors.iter().any(|tensor| tensor.name == name);
        different.extend(header.tensors.iter().filter(|info| !known(&info.name)).map(|info| info.name.clone()));
        Ok(different)
    }
}

/// What is missing to the scale that llama.cpp takes for a layer.
fn factor(config: &AdapterConfig, module: &str, alpha: f64) -> Result<f64, String> {
    let (rank, scale) = config.of_module(module)?;
    Ok(scale / (alpha / rank as f64))
}

/// By the names of layers: what their weight is called in files, and what is done to it.
fn places(model: &ModelSpec, interleaved: bool) -> BTreeMap<String, (String, Change)> {
    let placed = layout(model, interleaved).into_iter().filter_map(|placed| match placed.names {
        Names::One(name) => Some((name.strip_suffix(".weight")?.to_owned(), (placed.gguf, placed.change))),
        Names::Experts(_) => None,
    });
    placed.collect()
}

fn place<'a>(
    places: &'a BTreeMap<String, (String, Change)>,
    module: &str,
    model: &ModelSpec,
) -> Result<(&'a str, Change), String> {
    match places.get(module) {
        Some((name, change)) => Ok((name, *change)),
        None if module == "lm_head" && model.tie_word_embeddings => Err(
            "adapts the output layer of a model in which this is the embedding table: llama.cpp has no place for it; \
             merge the adapter (`tune export BASE --adapter ADAPTER`)"
                .to_owned(),
        ),
        None => Err(format!("adapts `{module}`, which the model does not have; it is for another base")),
    }
}

/// Reads the adapter in a file as PEFT has it: tensors by `LAYER.lora_A.weight` and `….lora_B.weight`, in f32, and what the product
/// of each layer's is scaled by.
///
/// # Errors
/// A file that is no adapter for this model.
pub fn read(path: &Path, model: &ModelSpec) -> Result<(BTreeMap<String, Tensor>, f64)> {
    let file = Arc::new(DataFile::open(path)?);
    let header = Header::read(&file)?;
    let Some(Read::F32(alpha)) = header.metadata.get("adapter.lora.alpha") else {
        return Err(Error::file(path, "is no LoRA adapter: it has no `adapter.lora.alpha`"));
    };
    let places = places(model, family_of(model)?.interleaved);
    let mut tensors = BTreeMap::new();
    for info in &header.tensors {
        let found = places.iter().find_map(|(module, (name, change))| {
            let end = info.name.strip_prefix(name.as_str())?;
            match end {
                ".lora_a" => Some((format!("{module}.lora_A.weight"), Change::None)),
                ".lora_b" => Some((format!("{module}.lora_B.weight"), *change)),
                _ => None,
            }
        });
        let Some((name, change)) = found else {
            return Err(Error::file(path, format!("holds `{}`, for which the model has no place", info.name)));
        };
        let stored = GgufTensor { file: Arc::clone(&file), info: info.clone(), change };
        tensors.insert(name, stored.load(DType::F32, None, &Device::Cpu)?.0);
    }
    Ok((tensors, f64::from(*alpha)))
}
