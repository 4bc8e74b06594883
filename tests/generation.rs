//! Sequences that grow: what they give is what training computes, to the last bit.

#![allow(clippy::unwrap_used)]

#[path = "common/families.rs"]
mod families;

use candle_core::{DType, Tensor};
use families::Fixture;
use tune_core::data::{Batch, IGNORE, Span};
use tune_core::engine::{self, Behind, Draw, Drawn, Kernels, New, Sequences, Wanted};
use tune_core::generate::{
    Continuous, End, Event, Request, Sampler, SamplerOptions, Scored, StopOptions, generate, generate_many,
    sample_groups,
};
use tune_core::models::Decoder;
use tune_core::peft::{LoraModule, LoraOptions, adapter_weights, set_trainable};

/// All but those whose frequencies depend on a sequence's length, see [`FREQUENCIES_OF_LENGTH`].
const FAMILIES: [&str; 14] = [
    "gemma",
    "llama_biases",
    "qwen2_windows",
    "smollm3",
    "llama_tied",
    "llama3_1_rope_scaled",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
];

const FREQUENCIES_OF_LENGTH: [&str; 2] = ["llama_dynamic", "phi3_longrope"];

/// A text of so many tokens.
fn ids(seed: u32, len: usize, vocab: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (seed + 7 * i).wrapping_mul(2_654_435_761) % vocab as u32).collect()
}

/// Whole sequences as one row of a training batch; every token but the last of each is trained.
fn packed(sequences: &[Vec<u32>]) -> Batch {
    let len = sequences.iter().map(Vec::len).sum();
    let mut batch = Batch {
        rows: 1,
        len,
        input_ids: Vec::new(),
        targets: Vec::new(),
        positions: Vec::new(),
        spans: Vec::new(),
        origins: vec![String::new(); sequences.len()],
        labels: Vec::new(),
    };
    for ids in sequences {
        batch.spans.push(Span { row: 0, start: batch.input_ids.len(), len: ids.len() });
        batch.input_ids.extend(ids);
        batch.targets.extend(ids[1..].iter().chain([&IGNORE]));
        batch.positions.extend(0..ids.len() as u32);
    }
    batch
}

/// The log-probabilities of all but the first token of each, token by token behind a prompt.
fn grown(model: &Decoder, sequences: &[Vec<u32>], prompts: &[usize], kernels: Kernels) -> Vec<Vec<f64>> {
    let capacities: Vec<usize> = sequences.iter().map(Vec::len).collect();
    let mut growing = Sequences::new(model, &capacities, kernels).unwrap();
    let mut found = vec![Vec::new(); sequences.len()];
    let mut logits: Vec<Option<Vec<f32>>> = vec![None; sequences.len()];
    loop {
        let mut new: Vec<(usize, &[u32])> = Vec::new();
        for (i, ids) in sequences.iter().enumerate() {
            let len = growing.len(i);
            if let Some(logits) = logits[i].take().filter(|_| len < ids.len()) {
                found[i].push(engine::log_prob(&logits, ids[len]));
            }
            match len {
                0 => new.push((i, &ids[..prompts[i]])),
                len if len < ids.len() => new.push((i, &ids[len..=len])),
                _ => {}
            }
        }
        if new.is_empty() {
            return found;
        }
        for ((i, _), of) in new.iter().zip(growing.extend(&new).unwrap()) {
            logits[*i] = Some(of);
        }
    }
}

#[test]
fn log_probabilities_are_those_of_training_to_the_last_bit() {
    for family in FAMILIES {
        for dtype in [DType::F32, DType::BF16] {
            let model = Fixture::read(family).model(dtype, None);
            let vocab = model.config.vocab_size;
            let sequences = [ids(1, 40, vocab), ids(2, 7, vocab), ids(3, 90, vocab), ids(4, 23, vocab)];
            let prompts = [5, 1, 64, 22];
            let trained = engine::log_probs(&model, &packed(&sequences)).unwrap();
            let (together, mut start) = (grown(&model, &sequences, &prompts, Kernels::OfTraining), 0);
            for (i, ids) in sequences.iter().enumerate() {
                let right = &trained[start + prompts[i] - 1..start + ids.len() - 1];
                assert_eq!(together[i], right, "{family} {dtype:?}: sequence {i} with others");
                let alone = grown(&model, std::slice::from_ref(ids), &prompts[i..=i], Kernels::OfTraining);
                assert_eq!(alone[0], right, "{family} {dtype:?}: sequence {i} alone");
                start += ids.len();
            }
        }
    }
}

/// The fastest kernels round otherwise. What they give depends neither on the company nor on the number of threads.
#[test]
fn the_fastest_kernels_agree() {
    for family in FAMILIES {
        for (dtype, tolerance) in [(DType::F32, 2e-4), (DType::BF16, 0.1)] {
            let fixture = Fixture::read(family);
            let mut models = vec![("plain", fixture.model(dtype, None))];
            let modules = vec![LoraModule::QProj, LoraModule::VProj, LoraModule::DownProj, LoraModule::LmHead];
            let lora = LoraOptions { modules, rank: 3, alpha: 6.0, dropout: 0.0, seed: 5, ..Default::default() };
            let adapted = fixture.model(dtype, Some(lora));
            for parameter in adapted.trainable().iter().filter(|of| of.name().ends_with("lora_B.weight")) {
                let var = parameter.var();
                let value = |i: usize| ((i * 7919) % 17) as f32 / 128.0 - 0.0625;
                let values: Vec<f32> = (0..var.elem_count()).map(value).collect();
                var.set(&Tensor::from_vec(values, var.shape(), var.device()).unwrap()).unwrap();
            }
            models.push(("with adapters", adapted));
            for (kind, model) in &models {
                let vocab = model.config.vocab_size;
                let sequences = [ids(1, 40, vocab), ids(2, 7, vocab), ids(3, 90, vocab), ids(4, 23, vocab)];
                let prompts = [5, 1, 64, 22];
                let fast = grown(model, &sequences, &prompts, Kernels::Fast);
                let right = grown(model, &sequences, &prompts, Kernels::OfTraining);
                for (fast, right) in fast.iter().flatten().zip(right.iter().flatten()) {
                    let error = (fast - right).abs();
                    assert!(
                        error <= tolerance * right.abs().max(1.0),
                        "{family} {dtype:?} {kind}: {fast} instead of {right}"
                    );
                }
                for threads in [1, 3] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let again = pool.install(|| grown(model, &sequences, &prompts, Kernels::Fast));
                    assert_eq!(again, fast, "{family} {dtype:?} {kind}: {threads} threads");
                }
                for (i, ids) in sequences.iter().enumerate() {
                    let alone = grown(model, std::slice::from_ref(ids), &prompts[i..=i], Kernels::Fast);
                    assert_eq!(alone[0], fast[i], "{family} {dtype:?} {kind}: sequence {i} alone");
                }
            }
        }
    }
}

#[test]
fn plain_loops_agree() {
    for family in FAMILIES {
        let model = Fixture::read(family).model(DType::F64, None);
        let sequences = [ids(1, 40, model.config.vocab_size), ids(2, 7, model.config.vocab_size)];
        let trained = engine::log_probs(&model, &packed(&sequences)).unwrap();
        let found = grown(&model, &sequences, &[5, 1], Kernels::OfTraining);
        let right = trained[4..39].iter().chain(&trained[40..46]);
        // Logits are handed out in f32.
        for (found, right) in found.iter().flatten().zip(right) {
            assert!((found - right).abs() < 1e-5 * right.abs(), "{family}: {found} instead of {right}");
        }
    }
}

#[test]
fn answers_do_not_depend_on_what_is_asked_beside_them() {
    let model = Fixture::read("llama_tied").model(DType::F32, None);
    let prompts = [ids(5, 3, model.config.vocab_size), ids(6, 30, model.config.vocab_size)];
    let stop = StopOptions { max_new_tokens: 12, stop_tokens: vec![3] };
    let options = SamplerOptions { temperature: 1.0, top_k: None, top_p: Some(0.9) };
    let sampler = |seed| Sampler::new(options, seed);
    let together = generate_many(
        &model,
        &[&prompts[0], &prompts[1]],
        &mut [sampler(1), sampler(2)],
        &stop,
        Kernels::Fast,
        |_, _| Ok(()),
    )
    .unwrap();
    assert!(together.iter().all(|answer| !answer.is_empty()));
    for (i, prompt) in prompts.iter().enumerate() {
        let mut seen = Vec::new();
        let alone = generate(&model, prompt, &mut sampler(i as u64 + 1), &stop, |token| {
            seen.push(token);
            Ok(())
        });
        assert_eq!(alone.unwrap(), together[i]);
        assert_eq!(seen, together[i]);
    }
}

#[test]
fn sequences_end_where_their_room_ends() {
    let model = Fixture::read("llama_tied").model(DType::F32, None);
    let mut sequences = Sequences::new(&model, &[4, 2], Kernels::OfTraining).unwrap();
    sequences.extend(&[(0, &[1, 2, 3])]).unwrap();
    let error = |new: &[(usize, &[u32])], sequences: &mut Sequences<'_>| sequences.extend(new).unwrap_err().to_string();
    assert!(error(&[(0, &[4, 5])], &mut sequences).contains("there is room for 4"));
    assert!(error(&[(1, &[])], &mut sequences).contains("by no token"));
    assert!(error(&[(1, &[1]), (1, &[1])], &mut sequences).contains("twice"));
    let unknown = model.config.vocab_size as u32;
    assert!(error(&[(1, &[unknown])], &mut sequences).contains(&unknown.to_string()));
    assert_eq!((sequences.len(0), sequences.len(1)), (3, 0), "what failed has changed nothing");
    // What was forgotten is as if it had never been there.
    let right = sequences.extend(&[(0, &[9])]).unwrap();
    sequences.truncate(0, 3);
    assert_eq!(sequences.extend(&[(0, &[9])]).unwrap(), right);
}

/// The largest difference of two rows of logits, relative to the largest of them.
fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    let scale = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
    ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// Rotary frequencies that depend on a sequence's length, across the border: what `generate` of transformers gives.
#[test]
fn frequencies_of_a_length_are_those_of_transformers_as_a_sequence_grows() {
    for family in FREQUENCIES_OF_LENGTH {
        let fixture = Fixture::read(family);
        let sequence: Vec<u32> =
            fixture.expected["generated_ids"].to_vec2::<i64>().unwrap()[0].iter().map(|&id| id as u32).collect();
        let theirs: Vec<Vec<f32>> = fixture.expected["generated_logits"].to_vec2().unwrap();
        let prompt = sequence.len() - theirs.len();
        assert!(prompt < 32 && sequence.len() > 34, "the border is crossed");
        let model = fixture.model(DType::F32, None);
        let mut growing = Sequences::new(&model, &[sequence.len()], Kernels::OfTraining).unwrap();
        for (step, theirs) in theirs.iter().enumerate() {
            let new = if step == 0 { &sequence[..prompt] } else { &sequence[prompt + step - 1..prompt + step] };
            let ours = growing.extend(&[(0, new)]).unwrap().remove(0);
            let off = difference(&ours, theirs);
            assert!(off < 1e-4, "{family}, step {step}: off by {off:e} of the largest");
        }
    }
}

/// Beyond the border, where all was computed again, a sequence is to the last bit what training computes, and so it is when it
/// was cut short behind it.
#[test]
fn a_sequence_that_switches_frequencies_is_what_training_computes() {
    let model = Fixture::read("phi3_longrope").model(DType::F32, None);
    let vocab = model.config.vocab_size;
    let [long, short] = [ids(1, 40, vocab), ids(2, 20, vocab)];
    let trained = engine::log_probs(&model, &packed(&[long.clone(), short.clone()])).unwrap();
    let found = grown(&model, &[long.clone(), short], &[30, 3], Kernels::OfTraining);
    // From the token on that is the first beyond the border.
    assert_eq!(found[0][32 - 30 + 1..], trained[32..39]);
    assert_eq!(found[1], trained[40 + 2..40 + 19]);
    for family in FREQUENCIES_OF_LENGTH {
        let model = Fixture::read(family).model(DType::F32, None);
        let mut sequences = Sequences::new(&model, &[40], Kernels::OfTraining).unwrap();
        let fresh = sequences.extend(&[(0, &long[..10])]).unwrap();
        sequences.extend(&[(0, &long[10..])]).unwrap();
        sequences.truncate(0, 9);
        assert_eq!(sequences.extend(&[(0, &long[9..10])]).unwrap(), fresh, "{family}");
    }
}

/// A model with adapters that change what it says.
fn adapted(fixture: &Fixture, rank: usize) -> Decoder {
    let modules = vec![LoraModule::QProj, LoraModule::VProj, LoraModule::DownProj, LoraModule::LmHead];
    let lora = LoraOptions { modules, rank, alpha: 6.0, dropout: 0.0, seed: 5, ..Default::default() };
    let model = fixture.model(DType::F32, Some(lora));
    for parameter in model.trainable().iter().filter(|of| of.name().ends_with("lora_B.weight")) {
        let var = parameter.var();
        let value = |i: usize| ((i * 7919 + rank) % 17) as f32 / 32.0 - 0.25;
        let values: Vec<f32> = (0..var.elem_count()).map(value).collect();
        var.set(&Tensor::from_vec(values, var.shape(), var.device()).unwrap()).unwrap();
    }
    model
}

#[test]
fn sequences_that_come_and_go_are_answered_as_alone() {
    for family in ["llama_tied", "gemma2", "llama_dynamic"] {
        let fixture = Fixture::read(family);
        let apart = [adapted(&fixture, 3).without_adapters().unwrap(), adapted(&fixture, 3), adapted(&fixture, 2)];
        // The same adapters on the weights of one model.
        let shared: Vec<Decoder> = apart
            .iter()
            .zip([0, 3, 2])
            .map(|(model, rank)| {
                if rank == 0 {
                    return model.clone();
                }
                let modules = vec![LoraModule::QProj, LoraModule::VProj, LoraModule::DownProj, LoraModule::LmHead];
                let lora = LoraOptions { modules, rank, alpha: 6.0, dropout: 0.0, seed: 1, ..Default::default() };
                let on_base = apart[0]
                    .with_adapters(apart[0].config.clone(), Some(lora), std::collections::BTreeMap::new())
                    .unwrap();
                set_trainable(&on_base, &adapter_weights(model).unwrap(), "the adapter").unwrap();
                on_base
            })
            .collect();
        let models: Vec<&Decoder> = shared.iter().collect();
        let vocab = models[0].config.vocab_size;
        let options = |i: u32| SamplerOptions {
            temperature: if i.is_multiple_of(2) { 0.0 } else { 1.0 },
            top_k: None,
            top_p: Some(0.9),
        };
        let longest = models[0].config.max_position_embeddings.min(60) - 10;
        let asked = |i: u32| ids(i, 1 + (i as usize * 13) % longest, vocab);
        let stop = StopOptions { max_new_tokens: 9, stop_tokens: vec![3] };
        let mut batch = Continuous::new(&models, 150, 16, Kernels::Fast).unwrap();
        let (mut next, mut waiting, mut answers) = (0, None, vec![Vec::new(); 24]);
        let (mut asker, mut ends) = (std::collections::BTreeMap::new(), 0);
        let mut most = 0;
        while ends < answers.len() {
            while next < answers.len() as u32 {
                let request = waiting.take().unwrap_or_else(|| Request {
                    model: next as usize % 3,
                    prompt: asked(next),
                    sampler: Sampler::new(options(next), u64::from(next)),
                    max_new_tokens: stop.max_new_tokens,
                    stop_tokens: stop.stop_tokens.clone(),
                    scores: None,
                    scores_prompt: false,
                });
                match batch.join(request).unwrap() {
                    Ok(sequence) => {
                        assert!(asker.insert(sequence, next as usize).is_none(), "a number belongs to one sequence");
                        next += 1;
                    }
                    Err(request) => {
                        waiting = Some(request);
                        break;
                    }
                }
            }
            most = most.max(batch.len());
            for (sequence, event) in batch.step().unwrap() {
                match event {
                    Event::Token(token) => answers[asker[&sequence]].push(token.id),
                    Event::End(end) => {
                        let answer = &answers[asker.remove(&sequence).unwrap()];
                        assert_eq!(end == End::Length, answer.len() == stop.max_new_tokens);
                        ends += 1;
                    }
                    Event::Stop(token) => assert!(stop.stop_tokens.contains(&token.id)),
                    Event::Read(_) => panic!("nobody asked for scores"),
                }
            }
        }
        assert!(batch.is_empty() && most > 3, "{most} at a time");
        for (i, answer) in answers.iter().enumerate() {
            let mut sampler = Sampler::new(options(i as u32), i as u64);
            let alone = generate(&apart[i % 3], &asked(i as u32), &mut sampler, &stop, |_| Ok(())).unwrap();
            assert_eq!(*answer, alone, "{family}: prompt {i}");
        }
        assert_ne!(answers[4], answers[5]);
    }
}

#[test]
fn scores_are_the_log_probabilities_of_training() {
    let model = Fixture::read("llama_tied").model(DType::F32, None);
    let vocab = model.config.vocab_size;
    let prompt = ids(7, 150, vocab);
    let mut batch = Continuous::new(&[&model], 400, 32, Kernels::OfTraining).unwrap();
    let request = |scores_prompt, max_new_tokens| Request {
        model: 0,
        prompt: prompt.clone(),
        sampler: Sampler::greedy(),
        max_new_tokens,
        stop_tokens: Vec::new(),
        scores: Some(2),
        scores_prompt,
    };
    let scored = batch.join(request(true, 5)).unwrap().unwrap();
    let plain = batch.join(request(false, 5)).unwrap().unwrap();
    let (mut read, mut drawn): (Vec<Scored>, [Vec<Scored>; 2]) = Default::default();
    while !batch.is_empty() {
        for (sequence, event) in batch.step().unwrap() {
            match event {
                Event::Read(tokens) => {
                    assert_eq!(sequence, scored);
                    read.extend(tokens);
                }
                Event::Token(token) => drawn[usize::from(sequence == plain)].push(token),
                Event::Stop(token) => panic!("nothing stops it, and {} did", token.id),
                Event::End(end) => assert_eq!(end, End::Length),
            }
        }
    }
    assert_eq!(drawn[0], drawn[1], "scores of the prompt change nothing");
    assert_eq!(read.iter().map(|token| token.id).collect::<Vec<_>>(), prompt);
    assert_eq!(read[0].log_prob, None);
    let whole: Vec<u32> = prompt.iter().copied().chain(drawn[0].iter().map(|token| token.id)).collect();
    let trained = engine::log_probs(&model, &packed(&[whole])).unwrap();
    let found: Vec<f64> = read[1..].iter().chain(&drawn[0]).map(|token| token.log_prob.unwrap()).collect();
    assert_eq!(found, trained[..found.len()]);
    // Greedy: what is drawn is likeliest.
    for token in &drawn[0] {
        assert_eq!(token.likeliest[0], (token.id, token.log_prob.unwrap()));
        assert!(token.likeliest[1].1 <= token.likeliest[0].1);
    }
}

/// What is wanted of a sequence changes nothing: tokens are drawn by the logits that others bring along.
#[test]
fn tokens_are_drawn_by_the_logits_behind_them() {
    for (family, kernels) in [("llama_tied", Kernels::OfTraining), ("qwen3_moe", Kernels::Fast)] {
        let model = Fixture::read(family).model(DType::F32, None);
        let vocab = model.config.vocab_size;
        let [mut plain, mut drawing] = [0, 1].map(|_| Sequences::new(&model, &[30, 30, 30], kernels).unwrap());
        for step in 0..6 {
            let all: Vec<Vec<u32>> =
                (0..3).map(|i| ids(step + i, if step == 0 { 4 + i as usize } else { 1 }, vocab)).collect();
            let draws: Vec<Draw> = (1..4u64)
                .map(|i| {
                    let temperature = [0.0, 0.7, 1.3][(step as usize + i as usize) % 3];
                    let options = SamplerOptions { temperature, top_k: Some(9), top_p: Some(0.8) };
                    Draw { options, random: u64::MAX / 4 * i + u64::from(step), scored: Some(0.5 * i as f64) }
                })
                .collect();
            let wanted = [Wanted::Tokens(&draws), Wanted::Every, Wanted::Tokens(&draws[1..2])];
            let new: Vec<(usize, &[u32])> = all.iter().map(Vec::as_slice).enumerate().collect();
            let logits = plain.extend(&new).unwrap();
            let new = new.iter().map(|&(sequence, ids)| New { sequence, ids, wanted: wanted[sequence] });
            let behind = drawing.extend_with(&new.collect::<Vec<_>>()).unwrap();
            let right = |logits: &[f32], draw: &Draw| {
                let token = draw.token(logits);
                Drawn { token, log_prob: draw.scored.map(|t| engine::log_prob_at(logits, token, t)) }
            };
            let tokens =
                |i: usize, draws: &[Draw]| draws.iter().map(|draw| right(&logits[i], draw)).collect::<Vec<_>>();
            assert_eq!(behind[0], Behind::Tokens(tokens(0, &draws)), "{family}, step {step}");
            assert_eq!(behind[2], Behind::Tokens(tokens(2, &draws[1..2])), "{family}, step {step}");
            let Behind::Logits(every) = &behind[1] else { panic!("logits were wanted") };
            assert_eq!(every.len(), all[1].len() * vocab);
            assert_eq!(every[every.len() - vocab..], logits[1], "{family}, step {step}");
        }
        let draw = Draw { scored: Some(1.0), ..Draw::LIKELIEST };
        let logits = plain.extend(&[(1, &[5])]).unwrap().remove(0);
        let drawn = drawing.draw(&[(1, &[5], draw)]).unwrap();
        let likeliest = (0..vocab).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).unwrap() as u32;
        assert_eq!(drawn, [Drawn { token: likeliest, log_prob: Some(engine::log_prob(&logits, likeliest)) }]);
    }
}

#[test]
fn memory_of_sequences_that_left_is_used_again() {
    let model = Fixture::read("llama_tied").model(DType::F32, None);
    let mut sequences = Sequences::of_many(&[&model], 10, Kernels::Fast).unwrap();
    let [first, second] = [sequences.join(0, 4).unwrap(), sequences.join(0, 4).unwrap()];
    assert_eq!(sequences.join(0, 3), None);
    let third = sequences.join(0, 2).unwrap();
    sequences.extend(&[(first, &[1, 2, 3]), (second, &[4, 5]), (third, &[6])]).unwrap();
    let right = sequences.extend(&[(second, &[9])]).unwrap();
    sequences.leave(first);
    assert_eq!(sequences.join(0, 5), None, "four in one place");
    let fourth = sequences.join(0, 4).unwrap();
    assert!(sequences.is_empty(fourth));
    // Its neighbour does not see it.
    sequences.truncate(second, 2);
    sequences.extend(&[(fourth, &[7, 7, 7, 7])]).unwrap();
    assert_eq!(sequences.extend(&[(second, &[9])]).unwrap(), right);
    assert!(sequences.extend(&[(fourth, &[1])]).is_err());
    let other = Fixture::read("gemma2").model(DType::F32, None);
    assert!(Sequences::of_many(&[&model, &other], 10, Kernels::Fast).is_err());
    assert!(Sequences::of_many(&[], 10, Kernels::Fast).is_err());
}

/// Answers to a prompt begin with copies of its keys and values. What is drawn, and how probable it was, is what it would be if
/// each had read the prompt itself; and training computes the same, to the last bit.
#[test]
fn answers_in_groups_are_those_of_training_to_the_last_bit() {
    for family in FAMILIES {
        for dtype in [DType::F32, DType::BF16] {
            let model = Fixture::read(family).model(dtype, None);
            let vocab = model.config.vocab_size;
            let prompts = [ids(1, 40, vocab), ids(2, 1, vocab), ids(3, 9, vocab)];
            let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
            let stop = StopOptions { max_new_tokens: 12, stop_tokens: (0..vocab as u32 / 20).collect() };
            let sampler =
                |prompt: usize, sample: usize| Sampler::new(SamplerOptions::AS_THEY_ARE, (10 * prompt + sample) as u64);
            let groups = sample_groups(&model, &prompts, 3, &stop, sampler).unwrap();
            let tempered = SamplerOptions { temperature: 0.7, ..SamplerOptions::AS_THEY_ARE };
            let at =
                sample_groups(&model, &prompts, 1, &stop, |prompt, _| Sampler::new(tempered, prompt as u64)).unwrap();
            for (prompt, answer) in prompts.iter().zip(at.iter().flatten()) {
                let whole = packed(&[[prompt, answer.ids.as_slice()].concat()]);
                let of_answer = |log_probs: Vec<f64>| log_probs[prompt.len() - 1..][..answer.ids.len()].to_vec();
                let right = of_answer(engine::log_probs_at(&model, &whole, 0.7).unwrap());
                assert_eq!(answer.log_probs, right, "{family} {dtype:?}");
                assert_ne!(right, of_answer(engine::log_probs(&model, &whole).unwrap()), "{family} {dtype:?}");
            }
            assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [3; 3]);
            assert_ne!(groups[0][0].ids, groups[0][1].ids);
            for (i, (prompt, group)) in prompts.iter().zip(&groups).enumerate() {
                for (j, answer) in group.iter().enumerate() {
                    let ended = stop.stop_tokens.contains(answer.ids.last().unwrap());
                    assert_eq!(answer.end, if ended { End::Stop } else { End::Length }, "{family}");
                    assert!(ended || answer.ids.len() == 12, "{family}");
                    let whole = [prompt, answer.ids.as_slice()].concat();
                    let trained = engine::log_probs(&model, &packed(&[whole])).unwrap();
                    let right = &trained[prompt.len() - 1..][..answer.ids.len()];
                    assert_eq!(answer.log_probs, right, "{family} {dtype:?}: answer {j} to prompt {i}");
                    let alone = sample_groups(&model, &[prompt], 1, &stop, |_, _| sampler(i, j)).unwrap();
                    assert_eq!(alone[0][0], *answer, "{family} {dtype:?}: answer {j} to prompt {i} alone");
                }
            }
        }
    }
    let model = Fixture::read("llama_tied").model(DType::F32, None);
    let stop = StopOptions { max_new_tokens: 4, stop_tokens: Vec::new() };
    let fails = |prompts: &[&[u32]], samples| {
        let failed = sample_groups(&model, prompts, samples, &stop, |_, _| Sampler::greedy());
        failed.unwrap_err().to_string()
    };
    assert!(fails(&[&[1], &[]], 2).contains("the prompt is empty"));
    assert!(fails(&[&[1]], 0).contains("once or more often"));
    assert!(fails(&[&[1_000_000]], 2).contains("is not in the model's vocabulary"));
    // What has tokens is not overwritten.
    let mut sequences = Sequences::new(&model, &[8, 8, 2], Kernels::OfTraining).unwrap();
    sequences.extend(&[(0, &[1, 2, 3])]).unwrap();
    sequences.copy(&[(0, 1)]).unwrap();
    assert_eq!(sequences.len(1), 3);
    for refused in [[(0, 1)], [(0, 2)]] {
        assert!(sequences.copy(&refused).unwrap_err().to_string().contains("cannot become a copy"));
    }
}
