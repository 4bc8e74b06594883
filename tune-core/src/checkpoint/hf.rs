//! Hugging Face model folders: `config.json`, weights in safetensors files, the tokenizer's files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};

use candle_core::{DType, Tensor};
use serde_json::Value;

use super::durable;
use super::safetensors::{self, Entry, Outgoing};
use super::source::{read_json, read_small};
use crate::tokenizer::TokenizerFiles;
use crate::{Error, Result, hub};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Every file that a tokenizer may consist of, besides the templates that `chat_templates` may hold.
const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// What to do with the folder of an adapter.
fn adapter_hint(dir: &Path) -> String {
    let config: Value = read_json(&dir.join("adapter_config.json")).unwrap_or_default();
    let base = match config["base_model_name_or_path"].as_str().filter(|base| !base.is_empty()) {
        None => "the model that it belongs to".to_owned(),
        Some(base) if Path::new(base).exists() || base.starts_with(hub::SCHEME) => base.to_owned(),
        Some(base) => hub::on_the_hub(Path::new(base)).unwrap_or_else(|| format!("the model that was {base}")),
    };
    let dir = dir.display();
    format!(
        "it is an adapter: set checkpoint_dir to its base, {base}, and adapter_dir={dir} to ask it \
         (checkpointer.adapter_checkpoint={dir} to train it on)"
    )
}

/// A model's folder, read but for the numbers.
pub(super) struct Folder {
    pub(super) config: Value,
    /// The object of `config.json` that `config` is, as it stands before a field's name; empty for the whole.
    pub(super) part: &'static str,
    pub(super) tensors: BTreeMap<String, Entry>,
    /// What deserves the user's attention.
    pub(super) warnings: Vec<String>,
}

pub(super) fn open(dir: &Path, files: Option<&[String]>) -> Result<Folder> {
    let config_path = dir.join("config.json");
    if !config_path.exists() {
        let hint = match dir.join("adapter_config.json").exists() {
            true => adapter_hint(dir),
            false => "give the folder with the model's files from Hugging Face".to_owned(),
        };
        return Err(Error::file(dir, format!("has no config.json; {hint}")));
    }
    let config: Value = read_json(&config_path)?;
    if !config.is_object() {
        return Err(Error::file(&config_path, "is not a JSON object"));
    }
    refuse_quantized(&config, &config_path)?;

    let index_path = dir.join(INDEX);
    let (names, index) = match files {
        Some(files) => (files.iter().cloned().collect(), None),
        None if dir.join(SINGLE).exists() => (BTreeSet::from([SINGLE.to_string()]), None),
        None if index_path.exists() => {
            let index = read_index(&index_path)?;
            (index.values().cloned().collect(), Some(index))
        }
        None => (loose_files(dir)?, None),
    };

    let warnings = match files {
        None if names.contains(SINGLE) => second_set(dir).into_iter().collect(),
        _ => Vec::new(),
    };
    let mut tensors = BTreeMap::new();
    for name in &names {
        let path = dir.join(plain_name(name).map_err(|e| Error::file(dir, e))?);
        if !path.exists() {
            return Err(match &index {
                Some(_) => Error::file(
                    &index_path,
                    format!("names the weight file {name}, which is not there; download it too"),
                ),
                None => Error::file(&path, "does not exist (checkpoint_files names it)"),
            });
        }
        if !name.ends_with(".safetensors") {
            return Err(Error::file(
                &path,
                "is not a safetensors file; PyTorch's own formats are not read, since they can run code: \
                 convert it with `safetensors` or take a repository that has *.safetensors",
            ));
        }
        for (tensor, entry) in safetensors::open(&path)? {
            if entry.dtype().is_none() && tensor.ends_with("weight") {
                return Err(entry.unsupported(&tensor));
            }
            if let Some(other) = tensors.insert(tensor.clone(), entry) {
                return Err(Error::file(
                    &path,
                    format!("holds tensor `{tensor}`, which {} holds too", other.path().display()),
                ));
            }
        }
    }
    if let Some(index) = index {
        for (tensor, file) in index {
            let at = tensors.get(&tensor).map(Entry::path);
            if at.and_then(Path::file_name) != Some(file.as_ref()) {
                return Err(Error::file(
                    &index_path,
                    format!("says that tensor `{tensor}` is in {file}, but it is not; the files are not of one model"),
                ));
            }
        }
    }
    if tensors.is_empty() {
        return Err(Error::file(dir, "its weight files hold no tensors"));
    }
    let (config, part, tensors) = text_part(config, tensors);
    Ok(Folder { config, part, tensors, warnings })
}

/// Refuses a model whose weights are quantized, as its `config.json` says.
pub(super) fn refuse_quantized(config: &Value, path: &Path) -> Result<()> {
    let Some(quantization) = config.get("quantization_config").filter(|q| !q.is_null()) else { return Ok(()) };
    let method = quantization["quant_method"].as_str().unwrap_or("some method");
    Err(Error::file(
        path,
        format!(
            "the weights are quantized ({method}), which is not supported; take the original model, which `lora` \
             quantizes to NF4 as it is read (model.quantize_base=true), or a GGUF file of it"
        ),
    ))
}

/// Of Gemma 3 with images, the model of text, as a checkpoint of that model alone has it: what stands before the names of
/// its weights goes, and so do the weights that images are seen with. Other models stay as they are.
pub(super) fn text_part(
    config: Value,
    tensors: BTreeMap<String, Entry>,
) -> (Value, &'static str, BTreeMap<String, Entry>) {
    /// Before a name, as transformers 5 and 4 have it, and what the text model has there.
    const PREFIXES: [(&str, &str); 3] = [
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ];
    const OF_IMAGES: [&str; 4] =
        ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];
    let (Some("gemma3"), Some(Value::Object(text))) = (config["model_type"].as_str(), config.get("text_config")) else {
        return (config, "", tensors);
    };
    let mut text = text.clone();
    text.insert("architectures".into(), serde_json::json!(["Gemma3ForCausalLM"]));
    text.entry("model_type").or_insert_with(|| "gemma3_text".into());
    for key in ["bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "dtype", "tie_word_embeddings"] {
        if let (None, Some(value)) = (text.get(key), config.get(key)) {
            text.insert(key.into(), value.clone());
        }
    }
    let renamed = tensors.into_iter().filter(|(name, _)| !OF_IMAGES.iter().any(|prefix| name.starts_with(prefix)));
    let renamed = renamed.map(|(name, entry)| {
        let own = PREFIXES.iter().find_map(|(prefix, own)| Some(format!("{own}{}", name.strip_prefix(prefix)?)));
        (own.unwrap_or(name), entry)
    });
    (Value::Object(text), "text_config.", renamed.collect())
}

/// What there is to say of a folder that has two complete sets of weights, of which `model.safetensors` is taken.
fn second_set(dir: &Path) -> Option<String> {
    let index = read_index(&dir.join(INDEX)).ok()?;
    let others: BTreeSet<String> = index.into_values().filter(|name| name != SINGLE).collect();
    let complete = !others.is_empty() && others.iter().all(|name| dir.join(name).is_file());
    complete.then(|| {
        format!(
            "{} has two sets of weights: {SINGLE} is taken, as transformers does, and not the {} files that {INDEX} \
             names ({}); checkpoint_files chooses others",
            dir.display(),
            others.len(),
            others.first().map_or_else(String::new, |first| format!("{first} …")),
        )
    })
}

/// `generation_config.json`, where there is one.
pub(super) fn generation_config(dir: &Path) -> Result<Option<Value>> {
    let path = dir.join("generation_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let config: Value = read_json(&path)?;
    match config.is_object() {
        true => Ok(Some(config)),
        false => Err(Error::file(&path, "is not a JSON object")),
    }
}

/// The index's map from tensors to files.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Index { weight_map } = read_json(path)?;
    if weight_map.is_empty() {
        return Err(Error::file(path, "names no weight files"));
    }
    Ok(weight_map)
}

/// A file name without folders, so that what a downloaded file says cannot reach elsewhere.
fn plain_name(name: &str) -> Result<&str, String> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(name),
        _ => Err(format!("a weight file is called {name:?}; only files of this folder itself are read")),
    }
}

/// The safetensors files of a folder that has neither the usual file nor an index.
fn loose_files(dir: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut pytorch = false;
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // `consolidated*` is Mistral's own copy of the same weights under other names.
        let other = ["adapter_", "training_state", "consolidated", "."];
        if name.ends_with(".safetensors") && !other.iter().any(|o| name.starts_with(o)) {
            found.insert(name);
        } else {
            pytorch |= [".bin", ".pt", ".pth"].iter().any(|e| name.ends_with(e));
        }
    }
    if found.is_empty() {
        let message = if pytorch {
            "has weights only in PyTorch's own format, which is not read, since it can run code; \
             convert them (`save_pretrained` in transformers writes safetensors) or take another revision of the model"
        } else {
            "has no weights: no *.safetensors file; `pretrain` with from_scratch=true makes a model without them"
        };
        return Err(Error::file(dir, message));
    }
    // A name tells how many there are: `model-00001-of-00002.safetensors`.
    let lacking = found.iter().find_map(|name| {
        let (front, all) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (front, number) = front.rsplit_once('-')?;
        let (width, count) = (number.len(), all.parse::<u32>().ok().filter(|&count| count <= 10_000)?);
        let name = |number: u32| format!("{front}-{number:0width$}-of-{all}.safetensors");
        (1..=count).map(name).find(|name| !found.contains(name))
    });
    match lacking {
        Some(name) => Err(Error::file(dir, format!("the weight file {name} is not there; download it too"))),
        None => Ok(found),
    }
}

pub(super) fn tokenizer_files(dir: &Path) -> Result<TokenizerFiles> {
    let mut files = BTreeMap::new();
    for name in TOKENIZER_FILES {
        let path = dir.join(name);
        if path.exists() {
            files.insert((*name).to_string(), read_small(&path, 1 << 30)?);
        }
    }
    Ok(TokenizerFiles { files })
}

/// Parameters to be written: tensors at hand, or ones that are made when their turn comes.
#[derive(Default)]
pub struct Weights<'a>(BTreeMap<String, Weight<'a>>);

struct Weight<'a> {
    dtype: DType,
    shape: Vec<usize>,
    make: Box<dyn Fn() -> Result<Tensor> + 'a>,
}

impl<'a> Weights<'a> {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor as it is.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        let (dtype, shape) = (tensor.dtype(), tensor.dims().to_vec());
        self.insert_with(name, dtype, &shape, move || Ok(tensor.clone()));
    }

    /// Adds a parameter that `make` gives when it is written, so that a model which has to be
    /// converted or merged for saving is never in memory twice.
    pub fn insert_with(
        &mut self,
        name: impl Into<String>,
        dtype: DType,
        shape: &[usize],
        make: impl Fn() -> Result<Tensor> + 'a,
    ) {
        let weight = Weight { dtype, shape: shape.to_vec(), make: Box::new(make) };
        self.0.insert(name.into(), weight);
    }

    /// The bytes that all of them take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.values().map(|w| safetensors::bytes_of(w.dtype, &w.shape)).sum()
    }

    /// The most frequent element type, by bytes.
    fn main_dtype(&self) -> Option<DType> {
        let mut bytes: Vec<(u64, DType)> = Vec::new();
        for w in self.0.values() {
            let n = safetensors::bytes_of(w.dtype, &w.shape);
            match bytes.iter_mut().find(|b| b.1 == w.dtype) {
                Some(b) => b.0 += n,
                None => bytes.push((n, w.dtype)),
            }
        }
        bytes.into_iter().max_by_key(|b| b.0).map(|b| b.1)
    }
}

impl From<BTreeMap<String, Tensor>> for Weights<'_> {
    fn from(tensors: BTreeMap<String, Tensor>) -> Self {
        let mut weights = Self::new();
        for (name, tensor) in tensors {
            weights.insert(name, tensor);
        }
        weights
    }
}

/// Writes a folder that `transformers` loads: weights in files of at most `max_shard_bytes` (a
/// larger tensor gets a file of its own), an index where there are several, the config with the
/// weights' type in it, and the tokenizer's files byte for byte. Everything is synced.
///
/// `dir` is made where it is missing. Files of the same names in it are written over: use a new
/// folder, such as the one that [`super::run::RunDir::save`] gives.
///
/// # Errors
///
/// Where writing fails, a tensor's type has no place in the format, or `weights` is empty.
pub fn write<'a>(
    dir: &Path,
    config: &Value,
    weights: impl Into<Weights<'a>>,
    tokenizer: &TokenizerFiles,
    generation_config: Option<&Value>,
    max_shard_bytes: u64,
) -> Result<()> {
    let weights = weights.into();
    let Some(main_dtype) = weights.main_dtype() else {
        return Err(Error::setup("a model without tensors cannot be saved"));
    };
    durable::create_dir_all(dir)?;

    let mut shards: Vec<Vec<Outgoing<'_>>> = Vec::new();
    let mut room = 0;
    for (name, weight) in &weights.0 {
        let tensor = Outgoing { name, dtype: weight.dtype, shape: &weight.shape, tensor: &*weight.make };
        let bytes = tensor.bytes();
        match shards.last_mut() {
            Some(shard) if bytes <= room => {
                room -= bytes;
                shard.push(tensor);
            }
            _ => {
                room = max_shard_bytes.saturating_sub(bytes);
                shards.push(vec![tensor]);
            }
        }
    }

    if shards.len() == 1 {
        for shard in shards {
            safetensors::write(&dir.join(SINGLE), shard)?;
        }
    } else {
        let count = shards.len();
        let mut map = serde_json::Map::new();
        for (i, shard) in shards.into_iter().enumerate() {
            let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
            for tensor in &shard {
                map.insert(tensor.name.to_string(), file.clone().into());
            }
            safetensors::write(&dir.join(file), shard)?;
        }
        let index = serde_json::json!({
            "metadata": {"total_size": weights.bytes()},
            "weight_map": map,
        });
        durable::write_json(&dir.join(INDEX), &index)?;
    }

    durable::write_json(&dir.join("config.json"), &with_dtype(config, main_dtype))?;
    if let Some(generation) = generation_config {
        durable::write_json(&dir.join("generation_config.json"), generation)?;
    }
    write_tokenizer(dir, tokenizer)?;
    durable::sync_dir(dir)
}

/// Writes the tokenizer's files as they are, synced.
pub(super) fn write_tokenizer(dir: &Path, tokenizer: &TokenizerFiles) -> Result<()> {
    for (name, bytes) in &tokenizer.files {
        let name = plain_name(name).map_err(|e| Error::file(dir, e))?;
        durable::write(&dir.join(name), bytes)?;
    }
    Ok(())
}

/// The config with its `dtype` (transformers 5) or `torch_dtype` (before) set, the latter where it has neither.
fn with_dtype(config: &Value, dtype: DType) -> Value {
    let name = match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::F64 => "float64",
        _ => "float32",
    };
    let mut config = config.clone();
    if let Some(object) = config.as_object_mut() {
        let mut known = false;
        for key in ["dtype", "torch_dtype"] {
            if let Some(value) = object.get_mut(key) {
                *value = name.into();
                known = true;
            }
        }
        if !known {
            // The older name: every version of transformers reads it.
            object.insert("torch_dtype".into(), name.into());
        }
    }
    config
}
