//! How fast large models are trained, and what they take of the card's memory; weights are made up.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tune_core::config::say;
use tune_core::engine::{Card, Draw, Kernels, RunOptions, Sequences, evaluate, forward_backward};
use tune_core::memory_plan::MemoryPlan;
use tune_core::models::{Decoder, Format};
use tune_core::optim::{AdamW, Gradients, InBackward};
use tune_core::peft::{LoraModule, LoraOptions};

use super::card;
use super::made_up::{MadeUp, batch};

/// Qwen3 of some sizes: width, width between, layers, heads.
fn qwen3(wide: usize, inner: usize, layers: usize, heads: usize) -> Value {
    json!({
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": wide, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
        "tie_word_embeddings": true,
    })
}

/// Qwen3-30B-A3B, of which there are so many layers.
fn qwen3_30b_a3b(layers: usize) -> Value {
    let mut config = qwen3(2048, 6144, layers, 32);
    let experts = json!({
        "model_type": "qwen3_moe", "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "norm_topk_prob": true, "tie_word_embeddings": false,
    });
    let parts = experts.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
    config.as_object_mut().unwrap().extend(parts);
    config
}

fn llama3_8b() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "hidden_act": "silu",
        "tie_word_embeddings": false,
    })
}

fn smollm2_135m() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "hidden_act": "silu",
        "tie_word_embeddings": true,
    })
}

/// Qwen2.5-1.5B.
fn qwen2_5_1_5b() -> Value {
    json!({
        "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
        "tie_word_embeddings": true,
    })
}

/// The last of `times` runs, in seconds.
fn last(times: usize, mut run: impl FnMut()) -> f64 {
    (0..times).fold(0.0, |_, _| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    })
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// What the plan says of such a run, part by part.
fn parts(plan: &MemoryPlan) -> String {
    let parts = plan.parts().into_iter().filter(|(_, bytes)| *bytes > 0);
    let parts: Vec<String> = parts.map(|(name, bytes)| format!("{name} {:.2}", gib(bytes))).collect();
    format!("{:.2} GiB planned: {}", gib(plan.peak()), parts.join(", "))
}

/// A case: a model, adapters or all of it, rows and tokens of a batch, and how many batches a step has.
struct Case<'a> {
    what: &'a str,
    config: Value,
    adapters: bool,
    /// How the base's layers are held, if not as numbers.
    format: Option<Format>,
    batch: (usize, usize),
    accumulated: usize,
    /// Lines of the profile of a step.
    lines: usize,
}

/// Trains for some steps, and says what each part of one takes. Returns the model.
fn measure(case: &Case<'_>, card: &Arc<Card>) -> Decoder {
    use LoraModule::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
    let modules = vec![QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj];
    let lora = LoraOptions { modules, rank: 16, alpha: 32.0, dropout: 0.0, seed: 5, ..Default::default() };
    let lora = case.adapters.then_some(lora);
    let (accumulated, batch) = (case.accumulated, batch(case.batch, 128_256));
    let made = MadeUp { config: case.config.clone(), lora, format: case.format };
    let plan = parts(&made.plan(card, &batch));
    let model = &made.model(card);
    let tokens = (batch.rows * batch.len) as f64;
    let scale = 1.0 / (batch.trained_tokens() * accumulated) as f64;
    let options = RunOptions { scale, ..RunOptions::PLAIN };
    let forward = last(3, || assert!(evaluate(model, &batch).unwrap().is_finite()));
    let both = last(4, || {
        let mut gradients = Gradients::default();
        forward_backward(model, &batch, options, &mut gradients).unwrap();
        // Waits for all of it.
        assert!(gradients.norm().unwrap().is_finite());
    });
    let (mut optimizer, mut number) = (AdamW::new(1e-5, [0.9, 0.999], 1e-8, 0.01), 0);
    let mut step = || {
        let mut gradients = Gradients::default();
        let losses = (0..accumulated).map(|_| forward_backward(model, &batch, options, &mut gradients).unwrap());
        let loss: f64 = losses.sum();
        number += 1;
        assert!((loss * scale).is_finite() && gradients.norm().unwrap().is_finite());
        gradients.apply(model, &mut optimizer, 1e-5, 1.0, number).unwrap();
    };
    let whole = last(4, &mut step);
    let usage = card.usage();
    let speed = |seconds: f64, tokens: f64| format!("{:.1} ms, {:.0} tokens/s", 1e3 * seconds, tokens / seconds);
    say!("{}, {} x {}: forward {:.1} ms", case.what, batch.rows, batch.len, 1e3 * forward);
    say!("  with backward {}", speed(both, tokens));
    say!("  a step of {accumulated} with AdamW {}", speed(whole, accumulated as f64 * tokens));
    say!("  {plan}");
    let (most, held, free) = (gib(usage.most), gib(usage.held), gib(card.available() - usage.held));
    say!("  {most:.2} GiB in use at most, {held:.2} held, {free:.2} free on the card");
    for line in card.profile(step).unwrap().lines().take(case.lines) {
        say!("    {line}");
    }
    model.clone()
}

#[test]
#[ignore = "a measurement"]
fn adapters_of_large_models() {
    let Some(card) = card() else { return };
    let case = |what, config, batch, accumulated, lines| Case {
        what,
        config,
        adapters: true,
        format: None,
        batch,
        accumulated,
        lines,
    };
    measure(&case("Qwen3 0.6 B, LoRA r16", qwen3(1024, 3072, 28, 16), (2, 2048), 4, 6), &card);
    let model = measure(&case("Qwen3 1.7 B, LoRA r16", qwen3(2048, 6144, 28, 16), (2, 2048), 4, 16), &card);
    answers("Qwen3 1.7 B, LoRA r16", &model, [1, 16], (120, 64), &card);
    let small = MadeUp { config: smollm2_135m(), lora: None, format: None }.model(&card);
    answers("SmolLM2 135 M", &small, [1, 16], (120, 64), &card);
    let experts = MadeUp { config: qwen3_30b_a3b(4), lora: None, format: None }.model(&card);
    answers("4 of the 48 layers of Qwen3 30 B A3B", &experts, [1, 16], (120, 64), &card);
}

/// The likeliest tokens, drawn on the card, and how fast.
fn drawn_on_card(model: &Decoder, count: usize, (past, tokens): (usize, usize)) -> (Vec<Vec<u32>>, f64) {
    let mut sequences = Sequences::new(model, &vec![past + tokens; count], Kernels::OfTraining).unwrap();
    let prompts: Vec<Vec<u32>> = (0..count as u32).map(|i| (i..i + past as u32).collect()).collect();
    let mut drawn: Vec<Vec<u32>> = vec![Vec::new(); count];
    // Of the prompts, of the first token and of the second one, whose step is recorded.
    let mut start = Instant::now();
    for step in 0..tokens - 1 {
        if step == 3 {
            start = Instant::now();
        }
        let ids = |i: usize| if step == 0 { prompts[i].clone() } else { drawn[i][step - 1..].to_vec() };
        let ids: Vec<Vec<u32>> = (0..count).map(ids).collect();
        let new: Vec<_> = ids.iter().enumerate().map(|(i, ids)| (i, ids.as_slice(), Draw::LIKELIEST)).collect();
        let found = sequences.draw(&new).unwrap();
        drawn.iter_mut().zip(found).for_each(|(drawn, found)| drawn.push(found.token));
    }
    (drawn, (count * (tokens - 4)) as f64 / start.elapsed().as_secs_f64())
}

/// Draws so many of the likeliest tokens behind a past, for so many sequences, with steps that are recorded and without: the same, and
/// how fast. All logits are read.
pub(crate) fn answers(
    what: &str,
    model: &Decoder,
    counts: [usize; 2],
    (past, tokens): (usize, usize),
    card: &Arc<Card>,
) {
    for count in counts {
        let generate = |graphs: bool| {
            card.use_graphs(graphs);
            let capacities = vec![past + tokens; count];
            let mut sequences = Sequences::new(model, &capacities, Kernels::OfTraining).unwrap();
            let prompts: Vec<Vec<u32>> = (0..count as u32).map(|i| (i..i + past as u32).collect()).collect();
            let first: Vec<(usize, &[u32])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
            let likeliest =
                |logits: Vec<f32>| (0..logits.len()).max_by(|&i, &j| logits[i].total_cmp(&logits[j])).unwrap();
            let mut drawn: Vec<Vec<u32>> = vec![Vec::new(); count];
            let mut logits = sequences.extend(&first).unwrap();
            let mut time = 0.0;
            for _ in 1..tokens {
                for (drawn, logits) in drawn.iter_mut().zip(logits) {
                    drawn.push(likeliest(logits) as u32);
                }
                let next: Vec<(usize, &[u32])> = drawn.iter().map(|ids| &ids[ids.len() - 1..]).enumerate().collect();
                // What is drawn of logits has no part in it.
                let start = Instant::now();
                logits = sequences.extend(&next).unwrap();
                time += start.elapsed().as_secs_f64();
            }
            (drawn, logits, (count * (tokens - 1)) as f64 / time)
        };
        // What is loaded and chosen once is none of a token's time.
        let (free, replayed) = (card.available(), card.steps_by_graphs());
        _ = generate(true);
        let taken = free.saturating_sub(card.available()) >> 20;
        let ([drawn, others], [logits, other_logits], [with, without]) = match [true, false].map(generate) {
            [(a, b, c), (d, e, f)] => ([a, d], [b, e], [c, f]),
        };
        card.use_graphs(true);
        assert!(drawn == others && logits == other_logits, "{what}: other answers without recordings");
        let (on_card, by_draws) = drawn_on_card(model, count, (past, tokens));
        assert!(on_card == drawn, "{what}: other answers where tokens are drawn on the card");
        let replayed = card.steps_by_graphs() - replayed;
        assert!(replayed > tokens as u64, "{what}: {replayed} steps by recordings");
        say!(
            "  {what}, answers to {count}: {with:.0} tokens/s by recorded steps, {without:.0} without ({taken} MiB), {by_draws:.0} drawn on the card"
        );
    }
}

#[test]
#[ignore = "a measurement"]
fn adapters_of_an_8b_model() {
    let Some(card) = card() else { return };
    of_8b(None, &card);
}

#[test]
#[ignore = "a measurement"]
fn an_8b_model_in_normal_floats() {
    let Some(card) = card() else { return };
    of_8b(Some(Format::Nf4), &card);
}

#[test]
#[ignore = "a measurement"]
fn an_8b_model_in_q4_k() {
    let Some(card) = card() else { return };
    of_8b(Some(Format::Q4K), &card);
}

fn of_8b(format: Option<Format>, card: &Arc<Card>) {
    let what = format!("Llama 3 8 B{}, LoRA r16", format.map_or(String::new(), |format| format!(" in {format}")));
    let (what, config) = (what.as_str(), llama3_8b());
    measure(&Case { what, config, adapters: true, format, batch: (2, 4096), accumulated: 1, lines: 10 }, card);
}

#[test]
#[ignore = "a measurement"]
fn all_of_a_large_model() {
    let Some(card) = card() else { return };
    let (what, config, batch) = ("Qwen2.5 1.5 B, all weights", qwen2_5_1_5b(), (8, 1024));
    let case = Case { what, config, adapters: false, format: None, batch, accumulated: 8, lines: 20 };
    let model = measure(&case, &card);
    let batch = self::batch(batch, 128_256);
    let (mut optimizer, mut number) = (AdamW::new(1e-5, [0.9, 0.999], 1e-8, 0.01), 0);
    let options = RunOptions { scale: 1.0 / batch.trained_tokens() as f64, ..RunOptions::PLAIN };
    let time = last(3, || {
        number += 1;
        let mut sink = InBackward::new(&mut optimizer, 1e-5, number);
        forward_backward(&model, &batch, options, &mut sink).unwrap();
        assert!(sink.squared_norm().unwrap().is_finite());
    });
    let tokens = (batch.rows * batch.len) as f64;
    say!("  the optimizer in the backward pass: a step of 1 {:.1} ms, {:.0} tokens/s", 1e3 * time, tokens / time);
}
