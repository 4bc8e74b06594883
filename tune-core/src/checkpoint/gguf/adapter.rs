//! Adapters as GGUF files, which llama.cpp puts on a base at run time (`--lora`, Ollama's `ADAPTER`).
//!
//! A layer's two matrices are `NAME.lora_a` `[rank, in]` and `NAME.lora_b` `[out, rank]`, where `NAME` is what the layer's weight
//! is called; rows of `lora_b` are in the order of the weight's. The update is scaled by `adapter.lora.alpha / rank`. The layers of
//! a mixture's experts are one weight, and so are their adapters: `[experts, rank, in]` and `[experts, out, rank]`.

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
        if !config.tokens.is_empty() {
            return Err(Error::file(
                dir,
                "brings along rows of single tokens (trainable_token_indices): llama.cpp's adapters have no place for them; merge the \
                 adapter (`tune export BASE --adapter ADAPTER`)",
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
        let mut placed: BTreeMap<&str, Vec<(&Place, &str)>> = BTreeMap::new();
        for module in peft::modules(tensors.keys()) {
            let place = place(&places, module, model).map_err(|what| Error::file(dir, what))?;
            placed.entry(&place.gguf).or_default().push((place, module));
        }
        for (name, modules) in placed {
            let (a, b) = matrices(&config, alpha, &tensors, &modules, dir)?;
            let change = modules.first().map_or(Change::None, |(place, _)| place.change);
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

/// Where a layer's weight is in a file.
#[derive(Debug)]
struct Place {
    /// What it is called there.
    gguf: String,
    /// What is done to it.
    change: Change,
    /// The layer's expert, and how many share the tensor.
    expert: Option<(usize, usize)>,
}

/// The matrices of the layers in one tensor: `[rank, in]` and `[out, rank]`, or those of all experts. What is missing to the scale
/// that llama.cpp takes is in the second; where experts have fewer ranks than others, or none, the rest is zeros.
fn matrices(
    config: &AdapterConfig,
    alpha: f64,
    tensors: &BTreeMap<String, Tensor>,
    modules: &[(&Place, &str)],
    dir: &Path,
) -> Result<(Tensor, Tensor)> {
    let mut found = BTreeMap::new();
    for (place, module) in modules {
        let (rank, scale) = config.of_module(module).map_err(|what| Error::file(dir, what))?;
        let of = |m: &str| {
            let name = format!("{module}.lora_{m}.weight");
            let missing = || Error::file(dir, format!("has no `{name}`"));
            Ok::<_, Error>(tensors.get(&name).ok_or_else(missing)?.to_dtype(DType::F32)?)
        };
        found.insert(place.expert.map_or(0, |(expert, _)| expert), (of("A")?, of("B")?, rank, scale));
    }
    let most = found.values().map(|(.., rank, _)| *rank).max().unwrap_or(1);
    let mut sides = (0, 0);
    for (a, b, rank, scale) in found.values_mut() {
        sides = (a.dim(1)?, b.dim(0)?);
        let factor = *scale / (alpha / most as f64);
        if factor != 1.0 {
            *b = (&*b * factor)?;
        }
        (*a, *b) = (a.pad_with_zeros(0, 0, most - *rank)?, b.pad_with_zeros(1, 0, most - *rank)?);
    }
    let Some((_, experts)) = modules.first().and_then(|(place, _)| place.expert) else {
        let only = found.into_values().next().map(|(a, b, ..)| (a, b));
        return only.ok_or_else(|| Error::file(dir, "holds no adapters"));
    };
    let zeros = |rows, cols| Tensor::zeros((rows, cols), DType::F32, &Device::Cpu);
    let none = (zeros(most, sides.0)?, zeros(sides.1, most)?);
    let all = (0..experts).map(|expert| found.remove(&expert).map_or(none.clone(), |(a, b, ..)| (a, b)));
    let (all_a, all_b): (Vec<Tensor>, Vec<Tensor>) = all.unzip();
    Ok((Tensor::stack(&all_a, 0)?, Tensor::stack(&all_b, 0)?))
}

/// By the names of layers: where their weights are.
fn places(model: &ModelSpec, interleaved: bool) -> BTreeMap<String, Place> {
    let mut places = BTreeMap::new();
    for placed in layout(model, interleaved) {
        let (names, of_experts) = match placed.names {
            Names::One(name) => (vec![name], false),
            Names::Experts(names) => (names, true),
        };
        let count = names.len();
        for (expert, name) in names.iter().enumerate() {
            if let Some(module) = name.strip_suffix(".weight") {
                let expert = of_experts.then_some((expert, count));
                let place = Place { gguf: placed.gguf.clone(), change: placed.change, expert };
                places.insert(module.to_owned(), place);
            }
        }
    }
    places
}

fn place<'a>(places: &'a BTreeMap<String, Place>, module: &str, model: &ModelSpec) -> Result<&'a Place, String> {
    match places.get(module) {
        Some(place) => Ok(place),
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
        let ends = [(".lora_a", "lora_A"), (".lora_b", "lora_B")];
        let end = ends.into_iter().find_map(|(end, theirs)| Some((info.name.strip_suffix(end)?, theirs)));
        let (name, m) = end.unwrap_or_default();
        let layers: Vec<_> = places.iter().filter(|(_, place)| place.gguf == name).collect();
        let Some((_, first)) = layers.first() else {
            return Err(Error::file(path, format!("holds `{}`, for which the model has no place", info.name)));
        };
        let change = if m == "lora_A" { Change::None } else { first.change };
        let stored = GgufTensor { file: Arc::clone(&file), info: info.clone(), change };
        let tensor = stored.load(DType::F32, None, &Device::Cpu)?.0;
        for (module, place) in layers {
            let own = match place.expert {
                Some((expert, count)) if tensor.rank() == 3 && tensor.dim(0)? == count => tensor.get(expert)?,
                Some((_, count)) => {
                    let dims = tensor.dims();
                    return Err(Error::file(
                        path,
                        format!("holds `{}` {dims:?}, and the matrices of {count} experts were expected", info.name),
                    ));
                }
                None => tensor.clone(),
            };
            tensors.insert(format!("{module}.{m}.weight"), own);
        }
    }
    Ok((tensors, f64::from(*alpha)))
}
