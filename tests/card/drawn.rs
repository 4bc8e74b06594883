//! Tokens that are drawn on the card are those that the processor draws by the same logits.

use std::sync::Arc;

use candle_core::DType;
use serde_json::json;
use tune_core::device::Compute;
use tune_core::engine::{self, Behind, Draw, Drawn, Kernels, New, SamplerOptions, Sequences, Wanted};
use tune_core::generate::{Continuous, Event, Request, Sampler, Scored, StopOptions, generate_many, sample_groups};
use tune_core::models::Decoder;

use super::made_up::MadeUp;
use super::{card, families, fixture, shake};

/// Draws of many kinds, each its own.
fn draw(number: u64, vocab: usize) -> Draw {
    let mixed = tune_reference::dropout::mix(5, number);
    let temperature = [0.0, 1.0, 0.6, 3.0, 1e-50, 1e50][mixed as usize % 6];
    let top_k = [None, Some(1), Some(7), Some(vocab), Some(vocab.div_ceil(2))][(mixed >> 8) as usize % 5];
    let top_p = [None, Some(0.9), Some(0.2), Some(0.0), Some(1.0)][(mixed >> 16) as usize % 5];
    let random = [tune_reference::dropout::mix(6, number), 0, u64::MAX][(mixed >> 24) as usize % 3];
    let scored = [None, Some(1.0), Some(temperature).filter(|t| (0.1..5.0).contains(t))][(mixed >> 32) as usize % 3];
    Draw { options: SamplerOptions { temperature, top_k, top_p }, random, scored }
}

/// What was drawn must be what the processor draws by these logits.
fn compare(what: &str, logits: &[f32], draws: &[Draw], drawn: &[Drawn]) {
    assert_eq!(draws.len(), drawn.len(), "{what}");
    for (draw, drawn) in draws.iter().zip(drawn) {
        assert_eq!(drawn.token, draw.token(logits), "{what}: {draw:?}");
        let right = draw.scored.map(|temperature| engine::log_prob_at(logits, drawn.token, temperature));
        let is_near = match (drawn.log_prob, right) {
            (Some(found), Some(right)) => (found - right).abs() < 4e-6 * right.abs().max(1.0),
            (found, right) => found == right,
        };
        assert!(is_near, "{what}: {draw:?}: {:?} instead of {right:?}", drawn.log_prob);
    }
}

/// Reads the same tokens twice: once the logits are brought here, once tokens are drawn by them there. Returns how many steps were done
/// again by a recording in the second.
fn both(what: &str, model: &Decoder, steps: usize) -> u64 {
    let (vocab, capacities) = (model.config.vocab_size, [20, 20, 20]);
    let [mut here, mut there] = [0, 1].map(|_| Sequences::new(model, &capacities, Kernels::OfTraining).unwrap());
    let card = card().unwrap();
    let before = card.steps_by_graphs();
    let mut number = 0;
    for step in 0..steps {
        let len = |i: usize| if step == 0 { 2 + i } else { 1 };
        let ids: Vec<Vec<u32>> =
            (0..3).map(|i| (0..len(i)).map(|j| ((step * 31 + i * 7 + j * 3) % vocab) as u32).collect()).collect();
        // Several by the logits of a prompt.
        let draws: Vec<Vec<Draw>> = (0..3)
            .map(|i| {
                let count = if step == 0 { 1 + 2 * i } else { 1 };
                (0..count)
                    .map(|_| {
                        number += 1;
                        draw(number, vocab)
                    })
                    .collect()
            })
            .collect();
        let new: Vec<(usize, &[u32])> = ids.iter().map(Vec::as_slice).enumerate().collect();
        let logits = here.extend(&new).unwrap();
        // In each fourth step somebody wants logits.
        let wanted = |i: usize| if step % 4 == 3 && i == 1 { Wanted::Last } else { Wanted::Tokens(&draws[i]) };
        let new = new.iter().map(|&(sequence, ids)| New { sequence, ids, wanted: wanted(sequence) });
        let new: Vec<New<'_>> = new.collect();
        for (i, behind) in there.extend_with(&new).unwrap().into_iter().enumerate() {
            match behind {
                Behind::Tokens(drawn) => compare(&format!("{what}, step {step}"), &logits[i], &draws[i], &drawn),
                Behind::Logits(found) => assert!(found == logits[i], "{what}: other logits in step {step}"),
            }
        }
    }
    card.steps_by_graphs() - before
}

#[test]
fn the_processors_tokens() {
    let Some(card) = card() else { return };
    for vocab in [1, 255, 256, 257, 4099, 49_152, 151_936] {
        let config = json!({
            "model_type": "llama", "vocab_size": vocab, "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu",
            "tie_word_embeddings": false,
        });
        let model = MadeUp { config, lora: None, format: None }.model(&card);
        let steps = if vocab > 10_000 { 6 } else { 14 };
        let replayed = both(&format!("{vocab} tokens"), &model, steps);
        assert!(replayed >= steps as u64, "{vocab} tokens: {replayed} steps done again");
    }
}

#[test]
fn of_all_families() {
    let Some(card) = card() else { return };
    for family in families() {
        for dtype in [DType::F32, DType::BF16] {
            let mut model = fixture(family).model(dtype, None);
            shake(&model);
            model.compute_on(&Compute::Card(Arc::clone(&card))).unwrap();
            both(&format!("{family} {dtype:?}"), &model, 6);
        }
    }
}

/// Whoever draws answers gets those that the processor draws by the card's logits; with log-probabilities that are training's but for
/// what is rounded.
#[test]
fn answers() {
    let Some(card) = card() else { return };
    let mut model = fixture("llama_tied").model(DType::F32, None);
    shake(&model);
    model.compute_on(&Compute::Card(Arc::clone(&card))).unwrap();
    let prompts: [&[u32]; 3] = [&[5, 9, 1, 7], &[3], &[8, 8, 2]];
    let stop = StopOptions { max_new_tokens: 8, stop_tokens: vec![6] };
    let options = SamplerOptions { temperature: 0.8, top_k: None, top_p: None };
    let sampler = |prompt: usize, sample: usize| Sampler::new(options, (7 * prompt + sample) as u64);
    // By logits that come here, one after the other.
    let by_logits = |prompt: usize, mut sampler: Sampler| {
        let mut sequences = Sequences::new(&model, &[20], Kernels::OfTraining).unwrap();
        let (mut new, mut ids, mut log_probs) = (prompts[prompt].to_vec(), Vec::new(), Vec::new());
        while ids.len() < stop.max_new_tokens && !ids.last().is_some_and(|id| stop.stop_tokens.contains(id)) {
            let logits = sequences.extend(&[(0, &new)]).unwrap().remove(0);
            let token = sampler.sample(&logits);
            log_probs.push(engine::log_prob_at(&logits, token, options.temperature));
            ids.push(token);
            new = vec![token];
        }
        (ids, log_probs)
    };
    let groups = sample_groups(&model, &prompts, 2, &stop, sampler).unwrap();
    let mut samplers = [0, 1, 2].map(|prompt| sampler(prompt, 0));
    let many = generate_many(&model, &prompts, &mut samplers, &stop, Kernels::OfTraining, |_, _| Ok(())).unwrap();
    for (i, group) in groups.iter().enumerate() {
        for (j, answer) in group.iter().enumerate() {
            let (ids, log_probs) = by_logits(i, sampler(i, j));
            assert_eq!(answer.ids, ids, "answer {j} to prompt {i}");
            let apart = |(a, b): (&f64, &f64)| (a - b).abs();
            let apart = answer.log_probs.iter().zip(&log_probs).map(apart).fold(0.0, f64::max);
            assert!(answer.log_probs.len() == ids.len() && apart < 1e-5, "answer {j} to prompt {i}: {apart:e} apart");
        }
        let stopped = group[0].ids.iter().take_while(|id| !stop.stop_tokens.contains(id));
        assert!(stopped.eq(&many[i]), "prompt {i}");
    }
    assert_ne!(groups[0][0].ids, groups[0][1].ids);
}

/// What is drawn for a request, and how probable it is, does not depend on what others ask for beside it.
#[test]
fn requests_that_ask_for_other_things() {
    let Some(card) = card() else { return };
    let mut model = fixture("llama_tied").model(DType::F32, None);
    shake(&model);
    model.compute_on(&Compute::Card(Arc::clone(&card))).unwrap();
    let request = |seed: u64, scores, scores_prompt| Request {
        model: 0,
        prompt: (0..5 + seed as u32).collect(),
        sampler: Sampler::new(SamplerOptions { temperature: 0.9, top_k: Some(20), top_p: Some(0.95) }, seed),
        max_new_tokens: 7,
        stop_tokens: Vec::new(),
        scores,
        scores_prompt,
    };
    let run = |requests: Vec<Request>| {
        let mut batch = Continuous::new(&[&model], 200, 4, Kernels::OfTraining).unwrap();
        let sequences: Vec<usize> = requests.into_iter().map(|request| batch.join(request).unwrap().unwrap()).collect();
        let mut tokens: Vec<Vec<Scored>> = vec![Vec::new(); sequences.len()];
        while !batch.is_empty() {
            for (sequence, event) in batch.step().unwrap() {
                let asker = sequences.iter().position(|&s| s == sequence).unwrap();
                if let Event::Token(token) = event {
                    tokens[asker].push(token);
                }
            }
        }
        tokens
    };
    // A token beside a prompt that is read is computed by other kernels than one beside tokens, which round otherwise.
    let alike = |a: &[Scored], b: &[Scored]| {
        let near = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-5,
            (a, b) => a == b,
        };
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.id == b.id && near(a.log_prob, b.log_prob))
    };
    let asked = [(1, Some(0), false), (2, Some(3), true), (3, None, false)];
    let together = run(asked.iter().map(|&(seed, scores, prompt)| request(seed, scores, prompt)).collect());
    for ((seed, scores, prompt), tokens) in asked.into_iter().zip(&together) {
        let alone = run(vec![request(seed, scores, prompt)]).remove(0);
        assert!(alike(&alone, tokens), "request {seed}: {alone:?} alone, {tokens:?} beside others");
        assert!(tokens.len() == 7 && tokens.iter().all(|t| t.likeliest.len() == scores.unwrap_or(0)));
        assert!(tokens.iter().all(|t| t.log_prob.is_some() == scores.is_some()));
    }
    // Who asks for likeliest tokens gets the same ones drawn.
    let [likeliest, own] = [2, 0].map(|scores| run(vec![request(4, Some(scores), false)]).remove(0));
    assert!(alike(&likeliest, &own), "{likeliest:?}, {own:?}");
}
