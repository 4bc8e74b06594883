//! Adapters merged into their base, tensor by tensor: no more than one is in memory, however large the model is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::below::with_below;
use super::peft::{self, AdapterConfig};
use super::whole::{Whole, WithWhole};
use super::{Checkpoint, hf};
use crate::distributed::Mesh;
use crate::models::{
    Decoder, HEAD, LoadOptions, LoraOptions, ModelSpec, OfLayer, TABLE, WeightSource, merged, set_vocab_size,
};
use crate::peft::set_trainable;
use crate::tokenizer::{Limits, Tokenizer, TokenizerConfig, TokenizerFiles};
use crate::{Error, Result};

/// An adapter, and how much of it there is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its folder, or its name on the hub.
    pub dir: PathBuf,
    /// Factor on its update.
    pub weight: f64,
}

impl Part {
    /// Where it is, and how much of it is taken where that is not all.
    #[must_use]
    pub fn shown(&self) -> String {
        let times = if self.weight == 1.0 { String::new() } else { format!(", times {}", self.weight) };
        format!("{}{times}", self.dir.display())
    }
}

/// A base model with adapters that are merged into it as its weights are asked for.
#[derive(Debug)]
pub struct Merged {
    base: Checkpoint,
    spec: ModelSpec,
    /// Weights that adapters bring along whole, which stand in for the base's.
    whole: Whole,
    adapters: Vec<Adapter>,
    tokenizer: Tokenizer,
    files: TokenizerFiles,
    /// What deserves the user's attention.
    warnings: Vec<String>,
}

#[derive(Debug)]
struct Adapter {
    part: Part,
    config: AdapterConfig,
    tensors: BTreeMap<String, Tensor>,
}

impl Merged {
    /// Opens a base and adapters for it, and those that these stand on, and checks that they belong together. Without adapters it is the
    /// base.
    ///
    /// # Errors
    /// What cannot be read, adapters on layers that the model does not have or of other shapes, tokenizers that contradict
    /// each other.
    pub fn open(base: Checkpoint, named: &[Part]) -> Result<Self> {
        let parts = &with_below(named)?[..];
        let spec = ModelSpec::of(&base)?;
        // All weights are there, and none is left over.
        Decoder::skeleton(spec.clone(), &base)?;
        let layers: BTreeMap<String, (usize, usize)> =
            spec.named_layers().into_iter().map(|(name, layer)| (name, (layer.out, layer.inner))).collect();
        let mut adapters = Vec::new();
        let mut whole = Whole::default();
        let mut warnings = base.warnings().to_vec();
        for part in parts {
            if !part.weight.is_finite() {
                return Err(Error::file(&part.dir, format!("its weight is {}; a number was expected", part.weight)));
            }
            let (config, mut tensors) = peft::read(&part.dir)?;
            whole.take(part, &config, &mut tensors, &spec)?;
            whole.take_rows(part, &config, &mut tensors, (&spec, &base))?;
            if config.use_dora && (parts.len() > 1 || part.weight != 1.0) {
                return Err(Error::file(
                    &part.dir,
                    "is a DoRA adapter, which sets the lengths of rows: it is merged alone and as a whole; merge it first, and \
                     others into the result",
                ));
            }
            for module in peft::modules(tensors.keys()) {
                let &(out, inner) = layers.get(module).ok_or_else(|| {
                    Error::file(
                        &part.dir,
                        format!(
                            "adapts `{module}`, which the model in {} does not have; it is for another base",
                            base.path().display()
                        ),
                    )
                })?;
                let (rank, _) = config.of_module(module).map_err(|what| Error::file(&part.dir, what))?;
                let shapes = ["A", "B"].map(|m| tensors.get(&format!("{module}.lora_{m}.weight")).map(Tensor::dims));
                if shapes != [Some(&[rank, inner][..]), Some(&[out, rank])] {
                    let [a, b] = shapes.map(|shape| shape.map_or("missing".to_owned(), |shape| format!("{shape:?}")));
                    return Err(Error::file(
                        &part.dir,
                        format!(
                            "its adapter of `{module}` is {a} and {b}, and the layer in {} needs [{rank}, {inner}] and \
                             [{out}, {rank}]; it is for another base",
                            base.path().display()
                        ),
                    ));
                }
            }
            warnings.extend(crate::peft::other_base(&part.dir, &base));
            adapters.push(Adapter { part: part.clone(), config, tensors });
        }
        let first = named.first().map(|part| part.dir.as_path());
        let (tokenizer, files) = TokenizerConfig::default().open_with(&base, first)?;
        for other in named.iter().skip(1) {
            let (theirs, _) = TokenizerConfig::default().open_with(&base, Some(&other.dir))?;
            let template = |tokenizer: &Tokenizer| tokenizer.chat_template().map(|t| t.source().to_owned());
            if template(&theirs) != template(&tokenizer) {
                warnings.push(format!(
                    "{} was trained with another chat template than {}, whose own is taken",
                    other.dir.display(),
                    named[0].dir.display()
                ));
            }
        }
        whole.check(&spec)?;
        let (rows, grown) = (spec.vocab_size, whole.spec(&spec).vocab_size);
        let limits = Limits { embeddings: grown, ..Limits::of_config(base.config()) };
        let tokenizer = if grown == rows { tokenizer } else { tokenizer.for_model(limits) };
        Ok(Self { base, spec, whole, adapters, tokenizer, files, warnings })
    }

    /// The base.
    #[must_use]
    pub fn base(&self) -> &Checkpoint {
        &self.base
    }

    /// What the model computes; with an adapter on a tied output layer, this is no longer tied.
    #[must_use]
    pub fn spec(&self) -> ModelSpec {
        let beside = self.spec_beside();
        ModelSpec { tie_word_embeddings: beside.tie_word_embeddings && !self.adapts("lm_head"), ..beside }
    }

    /// What the model computes with its adapters beside the weights.
    fn spec_beside(&self) -> ModelSpec {
        self.whole.spec(&self.spec)
    }

    /// The weights that adapters bring along whole, by their names.
    pub fn whole(&self) -> impl Iterator<Item = &str> {
        self.whole.names()
    }

    /// What the base computes.
    #[must_use]
    pub fn spec_of_base(&self) -> ModelSpec {
        self.spec.clone()
    }

    /// How much rounding to `dtype` changes the numbers that the quantized weights of the base stand for: the root of the mean
    /// square of the difference, by that of the numbers.
    ///
    /// # Errors
    /// Where reading fails.
    pub fn rounding(&self, dtype: DType) -> Result<f64> {
        let square = |t: &Tensor| -> Result<f64> {
            Ok(f64::from(t.sqr()?.flatten_all()?.mean_all()?.to_scalar::<f32>()?) * t.elem_count() as f64)
        };
        let (mut changed, mut all) = (0.0, 0.0);
        for name in self.base.names().filter(|name| self.base.stored_dtype(name).is_none()) {
            let exact = self.base.tensor(name, DType::F32, &Device::Cpu)?;
            changed += square(&(exact.to_dtype(dtype)?.to_dtype(DType::F32)? - &exact)?)?;
            all += square(&exact)?;
        }
        Ok((changed / all.max(f64::MIN_POSITIVE)).sqrt())
    }

    /// The tokenizer that was trained with.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Its files.
    #[must_use]
    pub fn tokenizer_files(&self) -> &TokenizerFiles {
        &self.files
    }

    /// What deserves the user's attention without being an error.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The adapters.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.adapters.iter().map(|adapter| &adapter.part)
    }

    /// Whether an adapter has magnitudes (DoRA).
    pub(crate) fn has_magnitudes(&self) -> bool {
        self.adapters.iter().any(|adapter| adapter.config.use_dora)
    }

    /// A number that stands for the adapters: of others it is another, be it in a single bit.
    ///
    /// # Errors
    /// Where a tensor cannot be read.
    pub(crate) fn fingerprint_of_adapters(&self) -> Result<u32> {
        let mut fingerprint = 0;
        for adapter in &self.adapters {
            for (name, tensor) in &adapter.tensors {
                let module = name.rsplit_once(".lora_").map_or(name.as_str(), |(module, _)| module);
                let (rank, scale) =
                    adapter.config.of_module(module).map_err(|what| Error::file(&adapter.part.dir, what))?;
                let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                let scale = (scale * adapter.part.weight).to_le_bytes();
                for part in [name.as_bytes(), &rank.to_le_bytes(), &scale, bytemuck::cast_slice(&values)] {
                    fingerprint = crc32c::crc32c_append(fingerprint, part);
                }
            }
        }
        for name in self.whole.names() {
            let Some(tensor) = self.whole.get(name) else { continue };
            let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            for part in [name.as_bytes(), bytemuck::cast_slice(&values)] {
                fingerprint = crc32c::crc32c_append(fingerprint, part);
            }
        }
        Ok(fingerprint)
    }

    /// The layers that an adapter changes.
    #[must_use]
    pub fn adapted(&self) -> BTreeSet<&str> {
        self.adapters.iter().flat_map(|adapter| peft::modules(adapter.tensors.keys())).collect()
    }

    fn adapts(&self, module: &str) -> bool {
        self.adapters.iter().any(|adapter| adapter.tensors.contains_key(&format!("{module}.lora_A.weight")))
    }

    /// The type that weights are stored in, where it is the same for (nearly) all; bf16 for quantized ones, which it comes
    /// nearest to.
    #[must_use]
    pub fn stored_dtype(&self) -> DType {
        let embedding = self.base.stored_dtype("model.embed_tokens.weight");
        let quantized = self.base.names().any(|name| self.base.stored_dtype(name).is_none());
        match embedding {
            _ if quantized => DType::BF16,
            Some(dtype) => dtype,
            None => DType::BF16,
        }
    }

    /// Whether weights of the base are quantized.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        self.base.names().any(|name| self.base.stored_dtype(name).is_none())
    }

    /// A weight by its Hugging Face name, adapters merged in, as the recipes merge them: the base's in `dtype`, the sum in f32,
    /// in `dtype`.
    ///
    /// # Errors
    /// There is none of that name, or reading fails.
    pub fn tensor(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let weight = self.own(name, dtype)?;
        let Some(module) = name.strip_suffix(".weight") else { return Ok(weight) };
        let mut updates = Vec::new();
        for adapter in &self.adapters {
            let of = |m: &str| adapter.tensors.get(&format!("{module}.lora_{m}.weight"));
            if let (Some(a), Some(b)) = (of("A"), of("B")) {
                let (_, scale) =
                    adapter.config.of_module(module).map_err(|what| Error::file(&adapter.part.dir, what))?;
                updates.push((a, b, adapter.part.weight * scale));
            }
        }
        let magnitude = format!("{module}.lora_magnitude_vector");
        let magnitudes = self.adapters.iter().find_map(|adapter| adapter.tensors.get(&magnitude));
        merged(&weight, updates.into_iter(), magnitudes)
    }

    /// A weight without the updates of adapters.
    pub(super) fn own(&self, name: &str, dtype: DType) -> Result<Tensor> {
        if let Some(tensor) = self.whole.get(name) {
            return Ok(tensor.to_dtype(dtype)?);
        }
        match name {
            // One of the two may be the base's, and the other not.
            HEAD if self.spec_beside().tie_word_embeddings => self.own(TABLE, dtype),
            HEAD if self.spec.tie_word_embeddings => self.base.tensor(TABLE, dtype, &Device::Cpu),
            name => self.base.tensor(name, dtype, &Device::Cpu),
        }
    }

    /// The bytes that all weights take in `dtype`.
    #[must_use]
    pub fn bytes(&self, dtype: DType) -> u64 {
        self.spec().parameter_count() * dtype.size_in_bytes() as u64
    }

    /// `config.json` and `generation_config.json` of the merged model.
    #[must_use]
    pub fn configs(&self) -> (Value, Value) {
        let (mut config, generation) =
            self.tokenizer.stop_tokens().export(self.base.config(), self.base.generation_config().as_ref());
        let spec = self.spec();
        config["tie_word_embeddings"] = spec.tie_word_embeddings.into();
        if spec.vocab_size != self.spec.vocab_size {
            set_vocab_size(&mut config, spec.vocab_size);
        }
        (config, generation)
    }

    /// Writes a folder that `transformers` loads, weights in `dtype` in files of at most `max_shard_bytes`.
    ///
    /// # Errors
    /// As [`hf::write`], and where a weight cannot be read.
    pub fn write(&self, dir: &Path, dtype: DType, max_shard_bytes: u64) -> Result<()> {
        let mut weights = hf::Weights::new();
        for (name, shape) in self.spec().weights() {
            let of = name.clone();
            weights.insert_with(name, dtype, &shape, move || self.tensor(&of, dtype));
        }
        let (config, generation) = self.configs();
        hf::write(dir, &config, weights, &self.files, Some(&generation), max_shard_bytes)
    }

    /// The model in memory as it was trained, with adapters beside the weights and not in them.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn trained(&self, options: &LoadOptions) -> Result<Decoder> {
        self.trained_shard(options, &Mesh::default())
    }

    /// The part of it that is this process's.
    ///
    /// # Errors
    /// As [`Decoder::load_shard`].
    pub fn trained_shard(&self, options: &LoadOptions, mesh: &Mesh) -> Result<Decoder> {
        let (lora, values) = self.side_by_side()?;
        let options = LoadOptions { lora, ..options.clone() };
        let model = match self.whole.is_empty() {
            true => Decoder::load_shard(self.spec.clone(), &self.base, &options, mesh)?,
            false => Decoder::load_shard(self.spec_beside(), &WithWhole(self), &options, mesh)?,
        };
        set_trainable(&model, &values, "the adapter")?;
        Ok(model)
    }

    /// What [`Merged::trained`] computes: the model's shape, and the adapters beside its weights as one.
    ///
    /// # Errors
    /// Tensors that cannot be put side by side.
    pub(crate) fn beside(&self) -> Result<(ModelSpec, Option<LoraOptions>)> {
        let spec = if self.whole.is_empty() { self.spec.clone() } else { self.spec_beside() };
        Ok((spec, self.side_by_side()?.0))
    }

    /// The base alone, as it was before it was trained.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn untrained(&self, options: &LoadOptions) -> Result<Decoder> {
        Decoder::load(self.spec.clone(), &self.base, &LoadOptions { lora: None, ..options.clone() })
    }

    /// The model as it was trained, with the weights of `model`, which is `other` in memory, has the same base, and shares them.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn trained_on(&self, model: &Decoder, other: &Self) -> Result<Decoder> {
        let (lora, values) = self.side_by_side()?;
        let spec = self.spec_beside();
        let mut names: BTreeSet<&str> = self.whole().chain(other.whole()).collect();
        if !spec.tie_word_embeddings && other.spec_beside().tie_word_embeddings {
            names.insert(HEAD);
        }
        names.retain(|name| *name != HEAD || !spec.tie_word_embeddings);
        let own = names.into_iter().map(|name| Ok((name.to_owned(), self.own(name, model.dtype())?)));
        let model = model.with_adapters(spec, lora, own.collect::<Result<_>>()?)?;
        set_trainable(&model, &values, "the adapter")?;
        Ok(model)
    }

    /// The adapters as one, which is none where there are none, and its tensors by name.
    fn side_by_side(&self) -> Result<(Option<LoraOptions>, BTreeMap<String, Tensor>)> {
        let mut layers = BTreeMap::new();
        let mut values = BTreeMap::new();
        for module in self.adapted() {
            // Side by side, several are one adapter.
            let (mut all_a, mut all_b) = (Vec::new(), Vec::new());
            for adapter in &self.adapters {
                let of = |m: &str| adapter.tensors.get(&format!("{module}.lora_{m}.weight"));
                if let (Some(a), Some(b)) = (of("A"), of("B")) {
                    let (_, scale) =
                        adapter.config.of_module(module).map_err(|what| Error::file(&adapter.part.dir, what))?;
                    all_a.push(a.to_dtype(DType::F32)?);
                    all_b.push((b.to_dtype(DType::F32)? * (scale * adapter.part.weight))?);
                }
            }
            let (a, b) = (Tensor::cat(&all_a, 0)?, Tensor::cat(&all_b, 1)?);
            layers.insert(module.to_owned(), OfLayer { rank: a.dim(0)?, scale: 1.0 });
            values.insert(format!("{module}.lora_A.weight"), a);
            values.insert(format!("{module}.lora_B.weight"), b);
        }
        let of_magnitudes = self.adapters.iter().flat_map(|adapter| &adapter.tensors);
        let of_magnitudes = of_magnitudes.filter(|(name, _)| name.ends_with(".lora_magnitude_vector"));
        values.extend(of_magnitudes.map(|(name, tensor)| (name.clone(), tensor.clone())));
        let dora = self.has_magnitudes();
        let lora = match layers.is_empty() {
            true => None,
            false => Some(LoraOptions { dora, ..LoraOptions::on_layers(layers)? }),
        };
        Ok((lora, values))
    }
}

/// The weights with adapters merged in.
impl WeightSource for Merged {
    fn weight(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.tensor(name, dtype)?;
        if tensor.dims() != shape {
            return Err(Error::file(
                self.base.path(),
                format!("the weight `{name}` has shape {:?}, and {shape:?} was expected", tensor.dims()),
            ));
        }
        Ok(tensor.to_device(device)?)
    }

    fn names(&self) -> Vec<String> {
        self.spec().weights().into_iter().map(|(name, _)| name).collect()
    }

    fn path(&self) -> Option<&Path> {
        Some(self.base.path())
    }
}
