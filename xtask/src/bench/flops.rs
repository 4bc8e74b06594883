//! Floating-point operations that a training step cannot do without.
//!
//! A product with a matrix of `p` elements takes `2 p` a token. Training does up to three of
//! that size: the forward pass, the gradient of the input and the gradient of the matrix.
//!
//! - Layers: all three in full training (`6 p`); with LoRA the matrices are frozen (`4 p`), and the lowest
//!   layer's q, k and v need no gradient of their input, for nothing below is trained (`2 p`).
//! - Adapters, on each layer with `i` inputs and `o` outputs: `6 r (i + o)` a token at rank `r`.
//! - Attention, for each pair of a token and one that it sees (itself too), each head: scores and values
//!   `2 d` each forward, and twice that backward, `12 d` in all.
//! - Output layer: trained tokens alone; `6 p` where it is trained, `4 p` where it is frozen.
//!
//! Not counted: what is done again instead of kept (activation checkpointing, scores in the
//! backward pass), padding, and everything that is not a product, which takes a few operations an element.

use serde_json::{Value, json};

use crate::Result;

/// The adapters that all programs train.
pub(super) const LORA_RANK: usize = 8;
/// The attention layers with an adapter; those of the MLP all have one.
pub(super) const LORA_ATTENTION: &[&str] = &["q_proj", "v_proj", "o_proj"];

/// The sizes of a Llama-like model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
}

/// What a step trains on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// The lengths of its samples.
    pub samples: Vec<usize>,
    /// How many of their tokens are trained.
    pub trained: usize,
}

/// The operations of one step, by where they are done.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Flops {
    pub layers: f64,
    pub adapters: f64,
    pub attention: f64,
    pub output: f64,
}

impl Sizes {
    /// Reads a model's `config.json`.
    pub(super) fn of(config: &Value) -> Result<Self> {
        let size = |key: &str| -> Result<usize> {
            let value = config[key].as_u64().ok_or_else(|| format!("config.json has no number `{key}`"))?;
            Ok(usize::try_from(value)?)
        };
        let (hidden, heads) = (size("hidden_size")?, size("num_attention_heads")?);
        Ok(Self {
            layers: size("num_hidden_layers")?,
            hidden,
            heads,
            kv_heads: size("num_key_value_heads").unwrap_or(heads),
            head_dim: size("head_dim").unwrap_or(hidden / heads.max(1)),
            intermediate: size("intermediate_size")?,
            vocab: size("vocab_size")?,
        })
    }

    /// The linear layers of a block: name, inputs, outputs.
    pub(super) fn linears(&self) -> [(&'static str, usize, usize); 7] {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        [
            ("q_proj", self.hidden, q),
            ("k_proj", self.hidden, kv),
            ("v_proj", self.hidden, kv),
            ("o_proj", q, self.hidden),
            ("gate_proj", self.hidden, self.intermediate),
            ("up_proj", self.hidden, self.intermediate),
            ("down_proj", self.intermediate, self.hidden),
        ]
    }

    /// What a step of `recipe` needs.
    pub(super) fn flops(&self, recipe: &str, work: &Work) -> Flops {
        let lora = recipe == "lora";
        let tokens: usize = work.samples.iter().sum();
        let pairs: usize = work.samples.iter().map(|n| n * (n + 1) / 2).sum();
        let (mut matrices, mut lowest, mut adapters) = (0, 0, 0);
        for (name, inputs, outputs) in self.linears() {
            matrices += inputs * outputs;
            if ["q_proj", "k_proj", "v_proj"].contains(&name) {
                lowest += inputs * outputs;
            }
            if LORA_ATTENTION.contains(&name) || ["gate_proj", "up_proj", "down_proj"].contains(&name) {
                adapters += LORA_RANK * (inputs + outputs);
            }
        }
        let per_token = if lora { 4 * matrices * self.layers - 2 * lowest } else { 6 * matrices * self.layers };
        let output = if lora { 4 } else { 6 } * self.hidden * self.vocab;
        Flops {
            layers: (tokens * per_token) as f64,
            adapters: if lora { (tokens * 6 * adapters * self.layers) as f64 } else { 0.0 },
            attention: (12 * self.head_dim * self.heads * self.layers * pairs) as f64,
            output: (work.trained * output) as f64,
        }
    }
}

impl Flops {
    pub(super) fn total(&self) -> f64 {
        self.layers + self.adapters + self.attention + self.output
    }

    /// The count as results record it.
    pub(super) fn json(&self) -> Value {
        json!({
            "layers": self.layers,
            "adapters": self.adapters,
            "attention": self.attention,
            "output": self.output,
            "total": self.total(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: Sizes =
        Sizes { layers: 30, hidden: 576, heads: 9, kv_heads: 3, head_dim: 64, intermediate: 1536, vocab: 49152 };

    #[test]
    fn smollm2_takes_four_and_six_times_its_parameters() {
        let matrices: usize = SMOLLM2.linears().iter().map(|(_, i, o)| i * o).sum();
        let parameters = (30 * matrices + 576 * 49152) as f64;
        assert!((parameters / 134.5e6 - 1.0).abs() < 1e-3);
        let work = Work { samples: vec![1], trained: 1 };
        let (lora, full) = (SMOLLM2.flops("lora", &work), SMOLLM2.flops("full", &work));
        assert!((full.layers + full.output) / parameters == 6.0);
        let share = (lora.layers + lora.output) / parameters;
        assert!(share > 3.98 && share < 4.0, "{share}");
        assert!(lora.adapters / lora.layers < 0.04 && full.adapters == 0.0);
    }

    #[test]
    fn attention_counts_pairs_and_output_trained_tokens() {
        let whole = SMOLLM2.flops("full", &Work { samples: vec![4], trained: 3 });
        let halves = SMOLLM2.flops("full", &Work { samples: vec![2, 2], trained: 1 });
        assert_eq!(whole.attention, 12.0 * 64.0 * 9.0 * 30.0 * 10.0);
        assert_eq!(halves.attention / whole.attention, 0.6);
        assert_eq!((halves.layers, halves.output * 3.0), (whole.layers, whole.output));
    }

    #[test]
    fn a_config_without_sizes_is_an_error() {
        assert!(Sizes::of(&json!({ "hidden_size": 8 })).unwrap_err().to_string().contains("num_attention_heads"));
    }
}
