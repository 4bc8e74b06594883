//! The models: one that is real, and one of random weights that is large.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::quantized::gguf_file::{self, Content, Value as Metadata};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device};
use serde_json::Value;
use tune_core::checkpoint::Checkpoint;
use tune_core::checkpoint::hf::{self, Weights};
use tune_core::config::say;
use tune_core::models::{ModelSpec, RandomWeights, WeightSource};

use crate::Result;

/// Where the real model lies; it is made there if it is missing.
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
    for (name, shape) in parameters(&config)? {
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

/// The model in `folder` as a GGUF file in llama.cpp's mixture Q4_K_M, with what `smollm2`'s own file says of its tokenizer; made if
/// it is missing (1 GB on disk, and in memory). Rows of queries and keys stay in their order: of random weights it does not matter.
pub(super) fn in_q4_k_m(smollm2: &Path, folder: &Path, file: &Path) -> Result<PathBuf> {
    if file.exists() {
        return Ok(file.to_owned());
    }
    say!("Writing {}", file.display());
    let base = Checkpoint::open(folder)?;
    let model = ModelSpec::from_json(base.config())?;
    let attention = &model.blocks.first().ok_or("a model without blocks")?.attention.shape;
    let like = Content::read(&mut File::open(smollm2.join("SmolLM2-135M-Instruct.Q4_1.gguf"))?)?;
    let mut metadata: BTreeMap<String, Metadata> = like.metadata.into_iter().collect();
    for (key, value) in [
        ("embedding_length", model.hidden_size),
        ("feed_forward_length", model.blocks[0].mlp.inner()),
        ("block_count", model.blocks.len()),
        ("attention.head_count", attention.heads),
        ("attention.head_count_kv", attention.kv_heads),
        ("rope.dimension_count", attention.head_dim),
    ] {
        metadata.insert(format!("llama.{key}"), Metadata::U32(value as u32));
    }
    let blocks = model.blocks.len();
    let mut tensors = Vec::new();
    for name in base.names() {
        let (gguf, dtype) = in_gguf(name, blocks).ok_or_else(|| format!("no name for `{name}` in a GGUF file"))?;
        tensors.push((gguf, QTensor::quantize(&base.tensor(name, DType::F32, &Device::Cpu)?, dtype)?));
    }
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    // Under another name until it is whole.
    let unfinished = file.with_extension("unfinished");
    gguf_file::write(&mut File::create(&unfinished)?, &metadata, &tensors)?;
    fs::rename(&unfinished, file)?;
    Ok(file.to_owned())
}

/// llama.cpp's name for a parameter of a Llama model, and its type in the mixture Q4_K_M of so many blocks.
fn in_gguf(name: &str, blocks: usize) -> Option<(String, GgmlDType)> {
    let Some(of_block) = name.strip_prefix("model.layers.") else {
        return match name {
            "model.embed_tokens.weight" => Some(("token_embd.weight".to_owned(), GgmlDType::Q6K)),
            "model.norm.weight" => Some(("output_norm.weight".to_owned(), GgmlDType::F32)),
            _ => None,
        };
    };
    let (index, layer) = of_block.split_once('.')?;
    let block: usize = index.parse().ok()?;
    // Values and what leaves the MLP have more bits in the first and last eighth, and in every third block between.
    let eighth = blocks / 8;
    let more = block < eighth || block >= 7 * blocks / 8 || (block - eighth) % 3 == 2;
    let (ours, dtype) = match layer.strip_suffix(".weight")? {
        "input_layernorm" => ("attn_norm", GgmlDType::F32),
        "post_attention_layernorm" => ("ffn_norm", GgmlDType::F32),
        "self_attn.q_proj" => ("attn_q", GgmlDType::Q4K),
        "self_attn.k_proj" => ("attn_k", GgmlDType::Q4K),
        "self_attn.v_proj" => ("attn_v", if more { GgmlDType::Q6K } else { GgmlDType::Q4K }),
        "self_attn.o_proj" => ("attn_output", GgmlDType::Q4K),
        "mlp.gate_proj" => ("ffn_gate", GgmlDType::Q4K),
        "mlp.up_proj" => ("ffn_up", GgmlDType::Q4K),
        "mlp.down_proj" => ("ffn_down", if more { GgmlDType::Q6K } else { GgmlDType::Q4K }),
        _ => return None,
    };
    Some((format!("blk.{block}.{ours}.weight"), dtype))
}

/// Names and shapes of a Llama model's parameters, the output layer tied to the embedding.
fn parameters(config: &Value) -> Result<Vec<(String, Vec<usize>)>> {
    let model = ModelSpec::from_json(config)?;
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![model.vocab_size, model.hidden_size]),
        ("model.norm.weight".to_owned(), vec![model.hidden_size]),
    ];
    for (index, block) in model.blocks.iter().enumerate() {
        let mut add = |name: &str, shape| all.push((format!("model.layers.{index}.{name}.weight"), shape));
        for (norm, width) in model.norms(index) {
            add(norm.path(block.norms), vec![width]);
        }
        for layer in model.layers(index) {
            add(&layer.site.path(), vec![layer.out, layer.inner]);
        }
    }
    Ok(all)
}
