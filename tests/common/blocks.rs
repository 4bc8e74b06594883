//! Models whose matrices are in blocks, beside the same models in numbers.

// Each test uses a part of it.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value as Meta};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use tune_core::checkpoint::Checkpoint;
use tune_core::data::{Batch, Span};
use tune_core::models::{InBlocks, Quantization};

pub const KEEP: Quantization = Quantization { nf4: false, keep: None };
pub const NF4: Quantization = Quantization { nf4: true, keep: None };

/// Weights as they are after a folder's layers were quantized and dequantized again.
pub fn dequantized(base: &Checkpoint, in_blocks: &InBlocks) -> BTreeMap<String, Tensor> {
    let weight = |name: &str| {
        let weight = match in_blocks.format(name) {
            None => base.tensor(name, DType::F32, &Device::Cpu).unwrap(),
            Some(format) => {
                let of = base.quantized(name, format).unwrap();
                Tensor::from_vec(of.dequantized(), of.dims(), &Device::Cpu).unwrap()
            }
        };
        (name.to_owned(), weight)
    };
    base.names().map(weight).collect()
}

pub const WIDTH: usize = 256;

/// A model with one block whose matrices are of this type; queries and keys are stored as llama.cpp has them.
pub fn write(path: &Path, dtype: GgmlDType) {
    let number = |n: usize| Meta::U32(n as u32);
    let texts = |t: &[&str]| Meta::Array(t.iter().map(|t| Meta::String((*t).to_owned())).collect());
    let metadata = [
        ("general.architecture", Meta::String("llama".into())),
        ("llama.context_length", number(64)),
        ("llama.embedding_length", number(WIDTH)),
        ("llama.feed_forward_length", number(2 * WIDTH)),
        ("llama.block_count", number(1)),
        ("llama.attention.head_count", number(4)),
        ("llama.attention.head_count_kv", number(2)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-6)),
        ("tokenizer.ggml.model", Meta::String("gpt2".into())),
        ("tokenizer.ggml.pre", Meta::String("gpt-2".into())),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "ab"])),
        ("tokenizer.ggml.merges", texts(&["a b"])),
    ];
    let tensors = [
        ("token_embd.weight", vec![3, WIDTH]),
        ("output_norm.weight", vec![WIDTH]),
        ("blk.0.attn_norm.weight", vec![WIDTH]),
        ("blk.0.attn_q.weight", vec![WIDTH, WIDTH]),
        ("blk.0.attn_k.weight", vec![WIDTH / 2, WIDTH]),
        ("blk.0.attn_v.weight", vec![WIDTH / 2, WIDTH]),
        ("blk.0.attn_output.weight", vec![WIDTH, WIDTH]),
        ("blk.0.ffn_norm.weight", vec![WIDTH]),
        ("blk.0.ffn_gate.weight", vec![2 * WIDTH, WIDTH]),
        ("blk.0.ffn_up.weight", vec![2 * WIDTH, WIDTH]),
        ("blk.0.ffn_down.weight", vec![WIDTH, 2 * WIDTH]),
    ];
    let tensors: Vec<(&str, QTensor)> = tensors
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let value =
                |j: u64| ((i as u64 * 7919 + j).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 24) as f32;
            let count: usize = shape.iter().product();
            let (middle, spread) = if shape.len() == 1 { (1.0, 0.2) } else { (0.0, 0.2) };
            let values: Vec<f32> = (0..count as u64).map(|j| middle + spread * (value(j) - 0.5)).collect();
            let dtype = if shape.len() == 1 { GgmlDType::F32 } else { dtype };
            (name, QTensor::quantize(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap(), dtype).unwrap())
        })
        .collect();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

/// Two rows of the three tokens.
pub fn batch() -> Batch {
    let ids: Vec<u32> = (0..42u32).map(|i| (i * i + i / 3) % 3).collect();
    let targets = ids.iter().map(|id| (id + 1) % 3).collect();
    let spans = [0, 1].map(|row| Span { row, start: 0, len: 21 }).to_vec();
    let positions = (0..21).chain(0..21).collect();
    Batch {
        rows: 2,
        len: 21,
        input_ids: ids,
        targets,
        positions,
        spans,
        origins: vec![String::new(); 2],
        labels: Vec::new(),
    }
}
