//! Floating-point operations that a training step cannot do without, counted by the engine itself
//! ([`tune_core::engine::Work`]).

use serde_json::{Value, json};
use tune_core::engine;
use tune_core::models::{Half, ModelSpec, Slot};
use tune_core::peft::LoraOptions;

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

/// The operations of a step of `recipe`.
pub(super) fn of_step(model: &ModelSpec, recipe: &str, work: &Work) -> tune_core::Result<engine::Work> {
    let of_mlp = |slot: &Slot| slot.half() == Some(Half::Mlp) && *slot != Slot::Router;
    let adapted = |slot: &Slot| LORA_ATTENTION.contains(&slot.name()) || of_mlp(slot);
    let modules = Slot::ALL.into_iter().filter(adapted).collect();
    let lora = LoraOptions { modules, rank: LORA_RANK, alpha: 16.0, dropout: 0.0, seed: 0, ..Default::default() };
    engine::Work::of_step(model, (recipe == "lora").then_some(&lora), &work.samples, work.trained)
}

/// The count as results record it.
pub(super) fn json(work: &engine::Work) -> Value {
    json!({ "layers": work.layers, "attention": work.attention, "output": work.output, "total": work.total() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smollm2() -> ModelSpec {
        let config = json!({
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
            "tie_word_embeddings": true,
        });
        ModelSpec::from_json(&config).unwrap()
    }

    #[test]
    fn smollm2_takes_four_and_six_times_its_parameters() {
        let (model, work) = (smollm2(), Work { samples: vec![1], trained: 1 });
        // All but the norms.
        let parameters = (model.parameter_count() - 61 * 576) as f64;
        assert!((parameters / 134.5e6 - 1.0).abs() < 1e-3);
        let [lora, full] = ["lora", "full"].map(|recipe| of_step(&model, recipe, &work).unwrap());
        assert!((full.layers + full.output) / parameters == 6.0);
        // Adapters take 3 % besides; nothing runs back through the lowest block's q, k and v.
        let share = (lora.layers + lora.output) / parameters;
        assert!(share > 4.0 && share < 4.16, "{share}");
    }

    #[test]
    fn attention_counts_pairs_and_output_trained_tokens() {
        let whole = of_step(&smollm2(), "full", &Work { samples: vec![4], trained: 3 }).unwrap();
        let halves = of_step(&smollm2(), "full", &Work { samples: vec![2, 2], trained: 1 }).unwrap();
        assert_eq!(whole.attention, 12.0 * 64.0 * 9.0 * 30.0 * 10.0);
        assert_eq!(halves.attention / whole.attention, 0.6);
        assert_eq!((halves.layers, halves.output * 3.0), (whole.layers, whole.output));
    }
}
