//! The tiny checkpoints of `fixtures/families` and the batch that their expected results belong to.

// Each test uses a part of it.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use tune_core::data::{Batch, IGNORE, Span};
use tune_core::device::Compute;
use tune_core::models::{Decoder, LoadOptions, ModelSpec};
use tune_core::peft::LoraOptions;

/// What `generate.py` wrote for one family.
pub struct Fixture {
    pub config: serde_json::Value,
    pub weights: BTreeMap<String, Tensor>,
    pub expected: BTreeMap<String, Tensor>,
    pub gradients: BTreeMap<String, Tensor>,
}

impl Fixture {
    /// Where its files are.
    pub fn folder(family: &str) -> PathBuf {
        // As cargo says now: a test may run on another machine than it was built on.
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        PathBuf::from(package).join("../tests/fixtures/families").join(family)
    }

    pub fn read(family: &str) -> Self {
        let dir = Self::folder(family);
        let tensors = |file: &str| -> BTreeMap<String, Tensor> {
            candle_core::safetensors::load(dir.join(file), &Device::Cpu).unwrap().into_iter().collect()
        };
        let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
        Self {
            config: serde_json::from_str(&config).unwrap(),
            weights: tensors("model.safetensors"),
            expected: tensors("reference.safetensors"),
            gradients: tensors("gradients.safetensors"),
        }
    }

    /// The model with all its weights trained, or with adapters.
    pub fn model(&self, dtype: DType, lora: Option<LoraOptions>) -> Decoder {
        let config = ModelSpec::from_json(&self.config).unwrap();
        let options = LoadOptions { dtype, device: Compute::Processor, train_weights: lora.is_none(), lora };
        Decoder::load(config, &self.weights, &options).unwrap()
    }

    pub fn batch(&self) -> Batch {
        let rows: Vec<Vec<i64>> = self.expected["input_ids"].to_vec2().unwrap();
        let labels: Vec<Vec<i64>> = self.expected["labels"].to_vec2().unwrap();
        let len = rows[0].len();
        let targets = labels.iter().flat_map(|row| {
            let next = row[1..].iter().copied().chain([-100]);
            next.map(|l| u32::try_from(l).unwrap_or(IGNORE)).collect::<Vec<_>>()
        });
        Batch {
            rows: rows.len(),
            len,
            input_ids: rows.iter().flatten().map(|&id| id as u32).collect(),
            targets: targets.collect(),
            positions: rows.iter().flat_map(|_| 0..len as u32).collect(),
            spans: (0..rows.len()).map(|row| Span { row, start: 0, len }).collect(),
            origins: vec!["fixture".into(); rows.len()],
            labels: Vec::new(),
        }
    }
}
