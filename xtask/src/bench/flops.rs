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
use tune_core::models::{DecoderConfig, Dim, Half, Slot};

/// The adapters that all programs train.
pub(super) const LORA_RANK: usize = 8;
/// The attention layers with an adapter; those of the MLP all have one.
pub(super) const LORA_ATTENTION: &[&str] = &["q_proj", "v_proj", "o_proj"];

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

impl Flops {
    /// What a step of `recipe` needs.
    pub(super) fn of(model: &DecoderConfig, recipe: &str, work: &Work) -> Self {
        let lora = recipe == "lora";
        let tokens: usize = work.samples.iter().sum();
        let pairs: usize = work.samples.iter().map(|n| n * (n + 1) / 2).sum();
        let (mut matrices, mut lowest, mut adapters) = (0, 0, 0);
        for slot in Slot::IN_BLOCK {
            let (outputs, inputs) = model.sides(slot);
            matrices += inputs * outputs;
            if [Slot::QProj, Slot::KProj, Slot::VProj].contains(&slot) {
                lowest += inputs * outputs;
            }
            if LORA_ATTENTION.contains(&slot.name()) || slot.half() == Some(Half::Mlp) {
                adapters += LORA_RANK * (inputs + outputs);
            }
        }
        let layers = model.num_hidden_layers;
        let per_token = if lora { 4 * matrices * layers - 2 * lowest } else { 6 * matrices * layers };
        let output = if lora { 4 } else { 6 } * model.hidden_size * model.vocab_size;
        Self {
            layers: (tokens * per_token) as f64,
            adapters: if lora { (tokens * 6 * adapters * layers) as f64 } else { 0.0 },
            attention: (12 * model.dim(Dim::Queries) * layers * pairs) as f64,
            output: (work.trained * output) as f64,
        }
    }

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

    fn smollm2() -> DecoderConfig {
        let config = json!({
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
            "tie_word_embeddings": true,
        });
        DecoderConfig::from_json(&config).unwrap()
    }

    #[test]
    fn smollm2_takes_four_and_six_times_its_parameters() {
        let (model, work) = (smollm2(), Work { samples: vec![1], trained: 1 });
        // All but the norms.
        let parameters = (model.parameter_count() - 61 * 576) as f64;
        assert!((parameters / 134.5e6 - 1.0).abs() < 1e-3);
        let (lora, full) = (Flops::of(&model, "lora", &work), Flops::of(&model, "full", &work));
        assert!((full.layers + full.output) / parameters == 6.0);
        let share = (lora.layers + lora.output) / parameters;
        assert!(share > 3.98 && share < 4.0, "{share}");
        assert!(lora.adapters / lora.layers < 0.04 && full.adapters == 0.0);
    }

    #[test]
    fn attention_counts_pairs_and_output_trained_tokens() {
        let whole = Flops::of(&smollm2(), "full", &Work { samples: vec![4], trained: 3 });
        let halves = Flops::of(&smollm2(), "full", &Work { samples: vec![2, 2], trained: 1 });
        assert_eq!(whole.attention, 12.0 * 64.0 * 9.0 * 30.0 * 10.0);
        assert_eq!(halves.attention / whole.attention, 0.6);
        assert_eq!((halves.layers, halves.output * 3.0), (whole.layers, whole.output));
    }
}
