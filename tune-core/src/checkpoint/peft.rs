//! LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Tensors are named by the module that they adapt, as the base model names it:
//! `model.layers.0.self_attn.q_proj.lora_A.weight` of shape `[r, inputs]` and `….lora_B.weight` of
//! shape `[outputs, r]`. The prefix that PEFT puts before them exists in files only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};

use super::safetensors::{self, Outgoing};
use super::source::read_json;
use super::{durable, hf};
use crate::tokenizer::TokenizerFiles;
use crate::{Error, Result, hub};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";
const DOWN: &str = ".lora_A.weight";
const UP: &str = ".lora_B.weight";

/// What an adapter is, apart from its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// The rank.
    pub r: usize,
    /// What the update is scaled by, before it is divided by the rank.
    pub alpha: f64,
    /// The share of inputs dropped in training.
    pub dropout: f64,
    /// Divide by the square root of the rank instead (rsLoRA).
    pub use_rslora: bool,
    /// Which modules are adapted.
    pub target_modules: TargetModules,
    /// The base model, as a path or as the hub knows it.
    pub base_model_name_or_path: Option<String>,
}

/// Which modules an adapter adapts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Those whose path is or ends in one of these names: `q_proj`, `mlp.down_proj` …
    Names(BTreeSet<String>),
    /// A regular expression over whole paths, or `all-linear`; carried along as it is: which modules
    /// it picked, the tensors say.
    Pattern(String),
}

impl TargetModules {
    /// Whether the module is one of those named; nothing is known about patterns here.
    #[must_use]
    pub fn names(&self, module: &str) -> Option<bool> {
        match self {
            Self::Names(names) => Some(names.iter().any(|n| is_named(module, n))),
            Self::Pattern(_) => None,
        }
    }
}

/// PEFT's rule: the whole path or its end, at a dot.
fn is_named(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl AdapterConfig {
    /// What the product of the two matrices is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.alpha / if self.use_rslora { r.sqrt() } else { r }
    }
}

/// The modules that these tensors adapt.
pub fn modules<'a>(tensors: impl IntoIterator<Item = &'a String>) -> BTreeSet<&'a str> {
    tensors.into_iter().filter_map(|name| name.strip_suffix(DOWN).or_else(|| name.strip_suffix(UP))).collect()
}

/// Reads an adapter; its tensors come in the type that they are stored in, on the CPU.
///
/// # Errors
///
/// Where a file is missing or broken, where config and tensors disagree, or where the adapter does
/// something that is not supported (DoRA, trained biases or embeddings, ranks that differ between
/// modules …).
pub fn read(dir: &Path) -> Result<(AdapterConfig, BTreeMap<String, Tensor>)> {
    let dir = &*hub::model(dir, &[])?;
    let config_path = dir.join(CONFIG);
    if !config_path.exists() {
        return Err(Error::file(dir, format!("has no {CONFIG}; give the folder of a PEFT adapter")));
    }
    let config: Map<String, Value> = read_json(&config_path)?;
    let config = parse(&config).map_err(|message| Error::file(&config_path, message))?;

    let path = dir.join(WEIGHTS);
    if !path.exists() {
        let hint = if dir.join("adapter_model.bin").exists() {
            "; it has adapter_model.bin, PyTorch's own format, which is not read, since it can run code: save it again with a current version of peft"
        } else {
            ""
        };
        return Err(Error::file(dir, format!("has no {WEIGHTS}{hint}")));
    }
    let mut tensors = BTreeMap::new();
    for (key, entry) in safetensors::open(&path)? {
        let name = key.strip_prefix(PREFIX).filter(|n| n.ends_with(DOWN) || n.ends_with(UP));
        let Some(name) = name else {
            return Err(Error::file(
                &path,
                format!(
                    "holds `{key}`, which is not a part of a LoRA adapter of linear layers. \
                     (A copy of embeddings or the output layer is left out with save_pretrained(save_embedding_layers=False))"
                ),
            ));
        };
        let Some(dtype) = entry.dtype() else {
            return Err(entry.unsupported(&key));
        };
        tensors.insert(name.to_string(), entry.load(&key, dtype, None, &Device::Cpu)?);
    }
    check(&config, &tensors).map_err(|message| Error::file(&path, message))?;
    Ok((config, tensors))
}

/// Writes an adapter that `peft` loads, with the tokenizer's files beside it. Everything is synced.
///
/// `dir` is made where it is missing; files of the same names in it are written over.
///
/// # Errors
///
/// Where config and tensors disagree, or writing fails.
pub fn write(
    dir: &Path,
    config: &AdapterConfig,
    tensors: &BTreeMap<String, Tensor>,
    tokenizer: &TokenizerFiles,
) -> Result<()> {
    check(config, tensors).map_err(|m| Error::setup(format!("the adapter cannot be saved: it {m}")))?;
    durable::create_dir_all(dir)?;
    let named: Vec<(String, &Tensor)> =
        tensors.iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor)).collect();
    let makers: Vec<_> = named.iter().map(|&(_, tensor)| move || Ok(tensor.clone())).collect();
    let outgoing = named
        .iter()
        .zip(&makers)
        .map(|((name, tensor), make)| Outgoing { name, dtype: tensor.dtype(), shape: tensor.dims(), tensor: make })
        .collect();
    safetensors::write(&dir.join(WEIGHTS), outgoing)?;
    durable::write_json(&dir.join(CONFIG), &to_json(config))?;
    hf::write_tokenizer(dir, tokenizer)?;
    durable::sync_dir(dir)
}

fn to_json(config: &AdapterConfig) -> Value {
    let targets = match &config.target_modules {
        TargetModules::Names(names) => json!(names),
        TargetModules::Pattern(pattern) => json!(pattern),
    };
    // peft says an integer here, and so do we where it is one.
    let alpha = if config.alpha.fract() == 0.0 && config.alpha.abs() < 1e15 {
        json!(config.alpha as i64)
    } else {
        json!(config.alpha)
    };
    json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": config.base_model_name_or_path,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": {},
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": config.use_rslora,
    })
}

/// Settings that change what an adapter computes and that are supported only where they are off.
const MUST_BE_OFF: &[(&str, &str)] = &[
    ("use_dora", "is a DoRA adapter"),
    ("modules_to_save", "trains whole modules besides its adapters"),
    ("rank_pattern", "has ranks that differ between modules"),
    ("alpha_pattern", "has an alpha that differs between modules"),
    ("fan_in_fan_out", "is for layers with transposed weights"),
    ("layers_to_transform", "adapts only some of the layers"),
    ("layer_replication", "replicates layers"),
    ("exclude_modules", "excludes modules from a pattern"),
    ("lora_bias", "has biases in its adapters"),
    ("trainable_token_indices", "trains embeddings of single tokens"),
    ("target_parameters", "adapts parameters that are not linear layers"),
    ("alora_invocation_tokens", "is an activated LoRA"),
    ("use_qalora", "is a QA-LoRA adapter"),
];

/// The config, or what is wrong with it.
fn parse(config: &Map<String, Value>) -> Result<AdapterConfig, String> {
    let get = |key: &str| config.get(key).unwrap_or(&Value::Null);
    let kind = get("peft_type").as_str().unwrap_or("nothing");
    if kind != "LORA" {
        return Err(format!("the adapter is of the kind {kind}; only LORA is supported"));
    }
    for (key, what) in MUST_BE_OFF {
        let off = match get(key) {
            Value::Null | Value::Bool(false) => true,
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            _ => false,
        };
        if !off {
            return Err(format!("the adapter {what} ({key}), which is not supported"));
        }
    }
    match get("bias") {
        Value::Null => {}
        Value::String(bias) if bias == "none" => {}
        other => {
            return Err(format!("the adapter trains biases (bias: {other}), which is not supported"));
        }
    }
    let r = get("r")
        .as_u64()
        .filter(|&r| (1..=1 << 20).contains(&r))
        .ok_or_else(|| format!("r is {}; a rank of at least 1 was expected", get("r")))?;
    let number = |key: &str, default: f64| match get(key) {
        Value::Null => Ok(default),
        value => value.as_f64().ok_or_else(|| format!("{key} is {value}; a number was expected")),
    };
    let dropout = number("lora_dropout", 0.0)?;
    if !(0.0..1.0).contains(&dropout) {
        return Err(format!("lora_dropout is {dropout}; 0 or more and less than 1 was expected"));
    }
    let target_modules = match get("target_modules") {
        Value::String(pattern) => TargetModules::Pattern(pattern.clone()),
        Value::Array(names) if !names.is_empty() => TargetModules::Names(
            names
                .iter()
                .map(|n| n.as_str().map(ToString::to_string))
                .collect::<Option<_>>()
                .ok_or("target_modules is not a list of names")?,
        ),
        other => {
            return Err(format!("target_modules is {other}; a list of module names was expected"));
        }
    };
    Ok(AdapterConfig {
        r: r as usize,
        alpha: number("lora_alpha", 8.0)?,
        dropout,
        use_rslora: get("use_rslora").as_bool().unwrap_or(false),
        target_modules,
        base_model_name_or_path: get("base_model_name_or_path").as_str().map(ToString::to_string),
    })
}

/// What is wrong between config and tensors, as the rest of a sentence about the file.
fn check(config: &AdapterConfig, tensors: &BTreeMap<String, Tensor>) -> Result<(), String> {
    let modules = modules(tensors.keys());
    if modules.is_empty() {
        return Err("holds no adapters".into());
    }
    if let Some(name) = tensors.keys().find(|n| !n.ends_with(DOWN) && !n.ends_with(UP)) {
        return Err(format!("holds `{name}`, which is not a LoRA matrix"));
    }
    for module in &modules {
        let shape = |suffix: &str| tensors.get(&format!("{module}{suffix}")).map(Tensor::dims);
        match (shape(DOWN), shape(UP)) {
            (Some(&[r, _]), Some(&[_, s])) if r == config.r && s == config.r => {}
            (Some(a), Some(b)) => {
                return Err(format!(
                    "holds lora_A {a:?} and lora_B {b:?} for `{module}`; for the rank {} of {CONFIG}, [{0}, inputs] and [outputs, {0}] were expected",
                    config.r
                ));
            }
            _ => {
                return Err(format!("holds only one of lora_A and lora_B for `{module}`"));
            }
        }
        if config.target_modules.names(module) == Some(false) {
            return Err(format!("adapts `{module}`, which target_modules of {CONFIG} does not name"));
        }
    }
    if let TargetModules::Names(names) = &config.target_modules
        && let Some(name) = names.iter().find(|n| !modules.iter().any(|m| is_named(m, n)))
    {
        return Err(format!("has no adapter for `{name}`, which target_modules of {CONFIG} names"));
    }
    Ok(())
}
