//! Models of any shape with made-up weights, on a card, and the plans of their training.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use serde_json::Value;
use tune_core::Result;
use tune_core::data::{Batch, Span};
use tune_core::device::Compute;
use tune_core::engine::{Card, Loss};
use tune_core::memory_plan::{Asked, MemoryPlan, PlannedCard, Processes, Setting};
use tune_core::models::{Decoder, Format, InBlocks, LoadOptions, ModelSpec, Quantized, Weight, WeightSource};
use tune_core::optim::{AdamWConfig, AdjustLr, MuonConfig, OptimizerConfig};
use tune_core::peft::LoraOptions;

/// A model, in bf16.
pub(crate) struct MadeUp {
    /// As a `config.json` has it.
    pub(crate) config: Value,
    /// The adapters that are trained; all weights if there are none.
    pub(crate) lora: Option<LoraOptions>,
    /// How the layers of its blocks are held, if not as numbers.
    pub(crate) format: Option<Format>,
}

/// Weights by name, some in blocks.
struct Weights(BTreeMap<String, Weight>);

impl WeightSource for Weights {
    fn weight(&self, name: &str, _: &[usize], dtype: DType, _: &Device) -> Result<Tensor> {
        Ok(self.0[name].tensor(name)?.to_dtype(dtype)?)
    }

    fn matrix(&self, name: &str, shape: [usize; 2], dtype: DType, device: &Device) -> Result<Weight> {
        match &self.0[name] {
            Weight::Quantized(of) => Ok(Weight::Quantized(Arc::clone(of))),
            _ => self.weight(name, &shape, dtype, device).map(Weight::Tensor),
        }
    }

    fn is_in_blocks(&self, name: &str) -> bool {
        self.0[name].format().is_some()
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

/// As many numbers or bytes as there should be, some again and again, as copies of memory: there are billions of them.
fn repeated<E: Copy>(some: &[E], count: usize) -> Vec<E> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        all.extend_from_slice(&some[..some.len().min(count - all.len())]);
    }
    all
}

fn random(i: u64) -> u64 {
    i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40
}

/// Blocks with any codes, whose numbers are about as large as those of weights.
fn some_blocks(format: Format) -> Vec<u8> {
    // Scales, and what they are of two numbers: between them about as far from zero on either side.
    let (bytes, halves): (usize, &[(usize, f32)]) = match format {
        Format::Q4_0 => (18, &[(0, 4e-3)]),
        Format::Q8_0 => (34, &[(0, 3e-4)]),
        Format::Q4K => (144, &[(0, 1e-4), (2, 7.5e-4)]),
        Format::Q6K => (210, &[(208, 2e-5)]),
        other => panic!("no blocks of {other} are made up here"),
    };
    let mut some: Vec<u8> = (0..8191 * bytes as u64).map(|i| random(i) as u8).collect();
    for block in some.chunks_exact_mut(bytes) {
        for &(at, scale) in halves {
            block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        }
    }
    some
}

impl MadeUp {
    fn spec(&self) -> ModelSpec {
        ModelSpec::from_json(&self.config).unwrap()
    }

    fn in_blocks(&self) -> InBlocks {
        self.format.map_or_else(InBlocks::default, |format| InBlocks::of_layers(&self.spec(), format).unwrap())
    }

    /// It, by its parameters' names and shapes.
    pub(crate) fn model(&self, card: &Arc<Card>) -> Decoder {
        let (spec, in_blocks) = (self.spec(), self.in_blocks());
        let some: Vec<bf16> =
            (0..1_000_003u64).map(|i| bf16::from_f32(random(i) as f32 / 2f32.powi(28) - 0.03)).collect();
        let wide: Vec<f32> = some.iter().map(|x| x.to_f32()).collect();
        let blocks = self.format.filter(|format| *format != Format::Nf4).map(some_blocks);
        let mut weights = BTreeMap::new();
        let mut put = |name: String, shape: &[usize]| {
            let count = shape.iter().product();
            let weight = match (in_blocks.format(&name), &blocks) {
                (None, _) => Weight::Tensor(Tensor::from_vec(repeated(&some, count), shape, &Device::Cpu).unwrap()),
                (Some(format), Some(blocks)) => {
                    let of_file = |bytes| Quantized::of_file(format, (shape[0], shape[1]), bytes);
                    let bytes = format.bytes(shape[0], shape[1]).unwrap();
                    Weight::Quantized(of_file(repeated(blocks, bytes as usize)).into())
                }
                (Some(_), None) => {
                    Weight::Quantized(Quantized::nf4(shape[0], shape[1], &repeated(&wide, count)).into())
                }
            };
            weights.insert(name, weight);
        };
        put("model.embed_tokens.weight".into(), &[spec.vocab_size, spec.hidden_size]);
        put("model.norm.weight".into(), &[spec.hidden_size]);
        if !spec.tie_word_embeddings {
            put("lm_head.weight".into(), &[spec.vocab_size, spec.hidden_size]);
        }
        for (block, of_block) in spec.blocks.iter().enumerate() {
            let prefix = format!("model.layers.{block}");
            for layer in spec.layers(block) {
                put(format!("{prefix}.{}.weight", layer.site.path()), &[layer.out, layer.inner]);
                if layer.bias {
                    put(format!("{prefix}.{}.bias", layer.site.path()), &[layer.out]);
                }
            }
            for (norm, width) in spec.norms(block) {
                put(format!("{prefix}.{}.weight", norm.path(of_block.norms)), &[width]);
            }
        }
        let device = Compute::Card(Arc::clone(card));
        let (lora, train_weights) = (self.lora.clone(), self.lora.is_none());
        let options = LoadOptions { dtype: DType::BF16, device, train_weights, lora };
        Decoder::load(spec, &Weights(weights), &options).unwrap()
    }

    /// The plan of a step of two such batches with AdamW.
    pub(crate) fn plan(&self, card: &Arc<Card>, batch: &Batch) -> MemoryPlan {
        self.plan_asking(card, batch, Asked::default())
    }

    /// The same where the model is asked something before and behind it.
    pub(crate) fn plan_asking(&self, card: &Arc<Card>, batch: &Batch, asked: Asked) -> MemoryPlan {
        self.planned(adamw(), card, batch, asked)
    }

    /// The same with another optimizer.
    pub(crate) fn plan_with(&self, optimizer: OptimizerConfig, card: &Arc<Card>, batch: &Batch) -> MemoryPlan {
        self.planned(optimizer, card, batch, Asked::default())
    }

    fn planned(&self, optimizer: OptimizerConfig, card: &Arc<Card>, batch: &Batch, asked: Asked) -> MemoryPlan {
        let setting = Setting {
            model: self.spec(),
            dtype: DType::BF16,
            lora: self.lora.clone(),
            optimizer,
            optimizer_state_held: 0,
            optimizer_in_backward: None,
            activation_checkpointing: false,
            activation_offload_dir: None,
            gradient_accumulation_steps: 2,
            clips_gradients: false,
            packed: true,
            loss: Loss::Tokens,
            asked,
            drawing: None,
            fake_quantizer: None,
            reference: None,
            mismatched: None,
            said_of_token: 0,
            said_together: 0,
            value: None,
            judge: None,
            in_blocks: self.in_blocks(),
            processes: Processes::ONE,
            copied: None,
            merges: false,
            batch_size: batch.rows,
            rows_of_update: None,
            card: Some(PlannedCard::new(Some(card)).unwrap()),
            steps: vec![vec![batch.clone(), batch.clone()]],
            validation_steps: Vec::new(),
        };
        MemoryPlan::new(&setting).unwrap()
    }
}

/// AdamW.
pub(crate) fn adamw() -> OptimizerConfig {
    let groups = Default::default();
    OptimizerConfig::AdamW(AdamWConfig { lr: 1e-5, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01, groups })
}

/// Muon, as it is by default.
pub(crate) fn muon() -> OptimizerConfig {
    OptimizerConfig::Muon(MuonConfig {
        lr: 1e-4,
        momentum: 0.95,
        nesterov: true,
        ns_steps: 5,
        adjust_lr_fn: AdjustLr::MatchRmsAdamW,
        weight_decay: 0.1,
        adamw_lr: None,
        betas: [0.9, 0.95],
        eps: 1e-8,
        groups: Default::default(),
    })
}

/// Rows of so many tokens of a vocabulary.
pub(crate) fn batch((rows, len): (usize, usize), vocab: usize) -> Batch {
    let ids: Vec<u32> = (0..rows * len).map(|i| ((i * 7919) % vocab) as u32).collect();
    Batch {
        rows,
        len,
        targets: ids[1..].iter().copied().chain([7]).collect(),
        input_ids: ids,
        positions: (0..rows).flat_map(|_| 0..len as u32).collect(),
        spans: (0..rows).map(|row| Span { row, start: 0, len }).collect(),
        origins: vec!["made up".into(); rows],
        labels: Vec::new(),
    }
}
