//! LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Tensors are named by the module that they adapt, as the base model names it:
//! `model.layers.0.self_attn.q_proj.lora_A.weight` of shape `[r, inputs]` and `….lora_B.weight` of
//! shape `[outputs, r]`; the magnitudes of DoRA are `….lora_magnitude_vector` of shape `[outputs]`. Weights that an adapter brings along
//! whole (`modules_to_save`) are named as the base model's, rows of single tokens (`trainable_token_indices`) by their module with
//! `.token_adapter.trainable_tokens_delta` behind it. The prefix that PEFT puts before them exists in files only.

mod config;
mod fused;
mod layers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value};

pub use self::config::{AdapterConfig, TargetModules};
pub(crate) use self::config::{EMBEDDING, OUTPUT, is_named};
use self::config::{TOKENS, parse, to_json};
pub(crate) use self::layers::fits;
pub use self::layers::{Excluded, Layers};
use super::safetensors::{self, Outgoing};
use super::source::read_json;
use super::{durable, hf};
use crate::models::module_of;
use crate::tokenizer::TokenizerFiles;
use crate::{Error, Result, hub};

const CONFIG: &str = "adapter_config.json";
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";
const DOWN: &str = ".lora_A.weight";
const UP: &str = ".lora_B.weight";
const MAGNITUDE: &str = ".lora_magnitude_vector";

fn is_part(name: &str) -> bool {
    [DOWN, UP, MAGNITUDE].iter().any(|end| name.ends_with(end))
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
/// something that is not supported (trained biases …).
pub fn read(dir: &Path) -> Result<(AdapterConfig, BTreeMap<String, Tensor>)> {
    let dir = &*hub::model(dir, &[])?;
    let config = config_in(dir)?;

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
        let name = key
            .strip_prefix(PREFIX)
            .filter(|name| is_part(name) || config.saves(name) || config.rows_of(name).is_some());
        let Some(name) = name else {
            return Err(Error::file(
                &path,
                format!(
                    "holds `{key}`, which is not a part of a LoRA adapter of linear layers, and modules_to_save of {CONFIG} does not \
                     name it. (A copy of embeddings or the output layer is left out with save_pretrained(save_embedding_layers=False))"
                ),
            ));
        };
        let Some(dtype) = entry.dtype() else {
            return Err(entry.unsupported(&key));
        };
        tensors.insert(name.to_string(), entry.load(&key, dtype, None, &Device::Cpu)?);
    }
    let (config, tensors) = fused::take_apart(config, tensors).map_err(|message| Error::file(&path, message))?;
    check(&config, &tensors).map_err(|message| Error::file(&path, message))?;
    Ok((config, tensors))
}

/// Reads what an adapter is, without its weights.
///
/// # Errors
///
/// As [`read`], of the config.
pub fn read_config(dir: &Path) -> Result<AdapterConfig> {
    config_in(&hub::model(dir, &[])?)
}

/// The tokenizer's files beside an adapter: with them it was trained.
///
/// # Errors
/// A file that cannot be read.
pub fn tokenizer_files(dir: &Path) -> Result<TokenizerFiles> {
    hf::tokenizer_files(&hub::model(dir, &[])?)
}

fn config_in(dir: &Path) -> Result<AdapterConfig> {
    let path = dir.join(CONFIG);
    if !path.exists() {
        return Err(Error::file(dir, format!("has no {CONFIG}; give the folder of a PEFT adapter")));
    }
    let config: Map<String, Value> = read_json(&path)?;
    parse(&config).map_err(|message| Error::file(&path, message))
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

/// What is wrong between config and tensors, as the rest of a sentence about the file.
fn check(config: &AdapterConfig, tensors: &BTreeMap<String, Tensor>) -> Result<(), String> {
    let modules = modules(tensors.keys());
    if modules.is_empty() {
        return Err("holds no adapters".into());
    }
    let is_expected = |name: &str| is_part(name) || config.saves(name) || config.rows_of(name).is_some();
    if let Some(name) = tensors.keys().find(|name| !is_expected(name)) {
        return Err(format!(
            "holds `{name}`, which is not a LoRA matrix, and modules_to_save of {CONFIG} does not name it"
        ));
    }
    let is_there =
        |saved: &&String| tensors.keys().any(|name| !is_part(name) && module_of(name).ends_with(saved.as_str()));
    if let Some(name) = config.modules_to_save.iter().find(|saved| !is_there(saved)) {
        return Err(format!("has no weight for `{name}`, which modules_to_save of {CONFIG} names"));
    }
    for (name, ids) in &config.tokens {
        let rows =
            tensors.iter().find(|(tensor, _)| config.rows_of(tensor).is_some_and(|(module, _)| is_named(module, name)));
        match rows.map(|(_, rows)| rows.dims()) {
            Some(&[count, _]) if count == ids.len() => {}
            found => {
                return Err(format!(
                    "has rows {found:?} for the tokens of `{name}`, and {TOKENS} of {CONFIG} names {}",
                    ids.len()
                ));
            }
        }
    }
    for module in &modules {
        let shape = |suffix: &str| tensors.get(&format!("{module}{suffix}")).map(Tensor::dims);
        let (rank, _) = config.of_module(module)?;
        match (shape(DOWN), shape(UP)) {
            (Some(&[r, _]), Some(&[_, s])) if r == rank && s == rank => {}
            (Some(a), Some(b)) => {
                return Err(format!(
                    "holds lora_A {a:?} and lora_B {b:?} for `{module}`; for the rank {rank} of {CONFIG}, [{rank}, inputs] and [outputs, {rank}] were expected"
                ));
            }
            _ => {
                return Err(format!("holds only one of lora_A and lora_B for `{module}`"));
            }
        }
        let out = shape(UP).and_then(|up| up.first().copied());
        match (config.use_dora, shape(MAGNITUDE)) {
            (true, Some(&[n])) if Some(n) == out => {}
            (false, None) => {}
            (true, Some(found)) => {
                return Err(format!("holds lora_magnitude_vector {found:?} for `{module}`, which has {out:?} outputs"));
            }
            (true, None) => {
                return Err(format!(
                    "holds no lora_magnitude_vector for `{module}`, which use_dora of {CONFIG} asks for"
                ));
            }
            (false, Some(_)) => {
                return Err(format!("holds lora_magnitude_vector for `{module}`, and use_dora of {CONFIG} is false"));
            }
        }
        let is_whole = matches!(&config.target_modules, TargetModules::Names(names) if names.contains(*module));
        if let Some(key) = config.layers.left_out_by(module, is_whole)? {
            return Err(format!("adapts `{module}`, which carries no adapter by {key} of {CONFIG}"));
        }
        if config.names(module) == Some(false) {
            return Err(format!("adapts `{module}`, which target_modules of {CONFIG} does not name"));
        }
    }
    let is_everywhere = config.layers.exclude_modules.is_none() && config.layers.layers_to_transform.is_empty();
    if let TargetModules::Names(names) = &config.target_modules
        && is_everywhere
        && let Some(name) = names.iter().find(|n| !modules.iter().any(|m| is_named(m, n)))
    {
        return Err(format!("has no adapter for `{name}`, which target_modules of {CONFIG} names"));
    }
    Ok(())
}
