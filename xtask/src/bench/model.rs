//! The models: one that is real, and one of random weights that is large.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device};
use tune_core::checkpoint::Checkpoint;
use tune_core::checkpoint::gguf::{Export, FileKind};
use tune_core::checkpoint::hf::{self, Weights};
use tune_core::checkpoint::merge::Merged;
use tune_core::config::say;
use tune_core::models::{ModelSpec, RandomWeights, WeightSource};

use crate::Result;

/// Where the real model is; it is made there if it is missing.
pub(super) fn smollm2(root: &Path, folder: &Path) -> Result<PathBuf> {
    let prepared = Command::new("bash").arg(root.join("tests/fixtures/smollm2/prepare.sh")).arg(folder).status()?;
    if !prepared.success() {
        return Err("the model could not be prepared".into());
    }
    Ok(folder.join("hf"))
}

/// A model of 1.56 billion random weights in bf16 beside the real one's tokenizer; made in `folder` if it is
/// missing (3 GB on disk). One tensor at a time is in memory.
pub(super) fn random_1b5(real: &Path, folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        return Ok(folder.to_owned());
    }
    say!("Making a model of 1.5B random weights in {}", folder.display());
    let real = Checkpoint::open(real)?;
    let mut config = real.config().clone();
    let sizes: [(&str, usize); 6] = [
        ("hidden_size", 2048),
        ("intermediate_size", 8192),
        ("num_hidden_layers", 24),
        ("num_attention_heads", 32),
        ("num_key_value_heads", 8),
        ("head_dim", 64),
    ];
    for (key, value) in sizes {
        config[key] = value.into();
    }
    let source = RandomWeights { seed: 1, std: 0.02 };
    let mut weights = Weights::new();
    for (name, shape) in ModelSpec::from_json(&config)?.weights() {
        let (source, key, dims) = (&source, name.clone(), shape.clone());
        weights.insert_with(name, DType::BF16, &shape, move || source.weight(&key, &dims, DType::BF16, &Device::Cpu));
    }
    // Under another name until it is whole.
    let unfinished = folder.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    hf::write(&unfinished, &config, weights, &real.tokenizer_files()?, real.generation_config().as_ref(), 1 << 30)?;
    fs::rename(&unfinished, folder)?;
    Ok(folder.to_owned())
}

/// The model in `folder` as a GGUF file in llama.cpp's mixture Q4_K_M; made if it is missing (1 GB on disk).
pub(super) fn in_q4_k_m(folder: &Path, file: &Path) -> Result<PathBuf> {
    if file.exists() {
        return Ok(file.to_owned());
    }
    say!("Writing {}", file.display());
    let model = Merged::open(Checkpoint::open(folder)?, &[])?;
    // Under another name until it is whole.
    let unfinished = file.with_extension("unfinished");
    Export::new(&model, FileKind::Q4KM, "random_1b5")?.write(&unfinished)?;
    fs::rename(unfinished, file)?;
    Ok(file.to_owned())
}
