//! Experts of newest tokens, all at once or one by one: what they give is what the plain loops give, and where all are computed at once, nobody
//! waits for how many tokens go to each, so that steps are recorded.

use std::sync::Arc;

use candle_core::DType;
use serde_json::json;
use tune_core::config::say;
use tune_core::device::Compute;
use tune_core::engine::{Card, Kernels, Sequences};
use tune_core::models::{Decoder, Format, ModelSpec};
use tune_core::peft::{LoraModule, LoraOptions};

use super::made_up::MadeUp;
use super::{card, error, families, fixture, lora, shake};

/// The logits of two sequences that grow token by token, and of one of them alone.
fn grown(model: &Decoder) -> Vec<f64> {
    let mut sequences = Sequences::new(model, &[16, 16], Kernels::OfTraining).unwrap();
    let vocab = model.config.vocab_size as u32;
    let mut logits = sequences.extend(&[(0, &[5, 9, 2, 11]), (1, &[3])]).unwrap();
    for step in 0..6 {
        let tokens = [step * 31 % vocab, (step * 17 + 8) % vocab];
        logits.extend(sequences.extend(&[(0, &tokens[..1]), (1, &tokens[1..])]).unwrap());
    }
    (0..3).for_each(|token| logits.extend(sequences.extend(&[(1, &[token])]).unwrap()));
    logits.concat().into_iter().map(f64::from).collect()
}

/// The model on the card, on the processor, and in f64, which all must agree; returns how many steps of the card's were recorded.
fn agree(card: &Arc<Card>, what: &str, make: impl Fn(DType) -> Decoder) -> u64 {
    let [right, here] = [DType::F64, DType::F32].map(|dtype| grown(&make(dtype)));
    let mut there = make(DType::F32);
    there.compute_on(&Compute::Card(Arc::clone(card))).unwrap();
    card.use_graphs(true);
    let before = card.steps_by_graphs();
    let there = grown(&there);
    let [of_processor, of_card] = [here, there].map(|found| error(&found, &right));
    say!("{what}: the processor off by {of_processor:.1e}, the card by {of_card:.1e}");
    assert!(of_processor < 2e-5 && of_card < 2e-5, "{what}: {of_processor:e} and {of_card:e}");
    card.steps_by_graphs() - before
}

fn spec(family: &str) -> ModelSpec {
    ModelSpec::from_json(&fixture(family).config).unwrap()
}

/// Whether a stand-in lets no recording come to its end.
fn fails() -> bool {
    std::env::var_os("STAND_IN_GRAPHS").is_some_and(|name| !name.is_empty())
}

#[test]
fn all_at_once() {
    let Some(card) = card() else { return };
    for family in families().into_iter().filter(|family| family.contains("moe")) {
        let mut of_two_ranks = lora().resolved(&spec(family)).unwrap();
        let gates = of_two_ranks
            .layers
            .iter_mut()
            .filter(|(name, _)| name.contains(".experts.") && name.ends_with("gate_proj"));
        gates.for_each(|(_, of)| of.rank = 2);
        let cases = [
            ("no adapters", None),
            ("adapters everywhere", Some(lora())),
            (
                "adapters on the last layers of experts",
                Some(LoraOptions { modules: vec![LoraModule::DownProj], ..lora() }),
            ),
            ("gates with adapters of another rank", Some(of_two_ranks)),
        ];
        for (what, options) in cases {
            let steps = agree(&card, &format!("{family}, {what}"), |dtype| {
                let model = fixture(family).model(dtype, options.clone());
                shake(&model);
                model
            });
            assert!(fails() || steps >= 6, "{family}, {what}: {steps} steps done again");
        }
    }
}

/// Where adapters have several ranks, experts are computed one by one.
#[test]
fn one_by_one() {
    let Some(card) = card() else { return };
    for family in families().into_iter().filter(|family| family.contains("moe")) {
        let mut options = lora().resolved(&spec(family)).unwrap();
        let of_expert = options.layers.iter_mut().find(|(name, _)| name.contains("experts.1.down_proj"));
        of_expert.expect("an expert with an adapter").1.rank = 2;
        let steps = agree(&card, &format!("{family}, adapters of several ranks"), |dtype| {
            let model = fixture(family).model(dtype, Some(options.clone()));
            shake(&model);
            model
        });
        assert_eq!(steps, 0, "{family}: what waits was recorded");
    }
}

/// Weights in blocks are dequantized for each expert, which has to be known: such steps are done as any other.
#[test]
fn in_blocks() {
    let Some(card) = card() else { return };
    let config = json!({
        "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256,
        "norm_topk_prob": true, "vocab_size": 64, "hidden_size": 256, "intermediate_size": 256,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": false,
    });
    let model = MadeUp { config, lora: Some(lora()), format: Some(Format::Nf4) }.model(&card);
    let before = card.steps_by_graphs();
    let [with, without] = [true, false].map(|graphs| {
        card.use_graphs(graphs);
        grown(&model)
    });
    card.use_graphs(true);
    assert!(with == without && with.iter().all(|x| x.is_finite()));
    assert_eq!(card.steps_by_graphs(), before, "what waits was recorded");
}
