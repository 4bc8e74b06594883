//! Steps that generate tokens are recorded and done again: the same bits by far fewer calls, and nothing is left of a recording that
//! fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use candle_core::DType;
use serde_json::json;
use tune_core::config::say;
use tune_core::device::Compute;
use tune_core::engine::{Card, Draw, Kernels, Sequences};
use tune_core::eval::Answers;
use tune_core::memory_plan::Asked;
use tune_core::models::{Decoder, FakeQuantizer, Format, GgufFormat, GgufLevels, Groups};
use tune_core::optim::AdamW;
use tune_core::peft::LoraOptions;
use tune_cuda::Context;

use super::made_up::{MadeUp, batch};
use super::speed::answers;
use super::{card, families, fixture, lora, run, shake};

/// Whether a stand-in lets no recording come to its end.
fn fails() -> bool {
    std::env::var_os("STAND_IN_GRAPHS").is_some_and(|name| !name.is_empty())
}

/// What sequences give, bit by bit, as they are read.
struct Reader<'m> {
    sequences: Sequences<'m>,
    vocab: u32,
    next: u32,
    bits: Vec<Vec<u32>>,
}

impl<'m> Reader<'m> {
    fn new(models: &[&'m Decoder], room: usize) -> Self {
        let sequences = Sequences::of_many(models, room, Kernels::OfTraining).unwrap();
        Self { sequences, vocab: models[0].config.vocab_size as u32, next: 1, bits: Vec::new() }
    }

    fn join(&mut self, model: usize, capacity: usize) -> usize {
        self.sequences.join(model, capacity).unwrap()
    }

    /// Each of some sequences grows by so many tokens.
    fn grow(&mut self, new: &[(usize, usize)]) {
        let ids: Vec<Vec<u32>> = new.iter().map(|&(_, len)| (0..len).map(|_| self.token()).collect()).collect();
        let new = new.iter().zip(&ids).map(|(&(sequence, _), ids)| (sequence, ids.as_slice()));
        let logits = self.sequences.extend(&new.collect::<Vec<_>>()).unwrap();
        self.bits.extend(logits.into_iter().map(|logits| logits.into_iter().map(f32::to_bits).collect()));
    }

    fn token(&mut self) -> u32 {
        self.next = self.next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.next >> 8) % self.vocab
    }
}

/// Sequences of two models that come, grow past the keys of a part, and go; of which now these and now those get a token.
fn come_and_go(models: &[&Decoder]) -> Vec<Vec<u32>> {
    let mut reader = Reader::new(models, 130);
    let (a, b) = (reader.join(0, 84), reader.join(0, 20));
    reader.grow(&[(a, 60), (b, 3)]);
    (0..7).for_each(|_| reader.grow(&[(a, 1), (b, 1)]));
    let c = reader.join(1, 14);
    reader.grow(&[(c, 2)]);
    for _ in 0..3 {
        reader.grow(&[(a, 1), (c, 1)]);
        reader.grow(&[(b, 1), (a, 1)]);
    }
    reader.sequences.leave(b);
    let d = reader.join(0, 12);
    // A first token alone is one as well.
    reader.grow(&[(d, 1), (c, 1)]);
    (0..4).for_each(|_| reader.grow(&[(c, 1), (a, 1), (d, 1)]));
    reader.sequences.truncate(a, 63);
    (0..3).for_each(|_| reader.grow(&[(a, 1)]));
    reader.bits
}

/// Does something with and without recordings; returns how many steps were done again.
fn compare(card: &Card, what: &str, with: impl Fn() -> Vec<Vec<u32>>) -> u64 {
    card.use_graphs(false);
    let before = card.steps_by_graphs();
    let right = with();
    assert_eq!(card.steps_by_graphs(), before, "{what}: recorded all the same");
    card.use_graphs(true);
    let found = with();
    assert_eq!(found.len(), right.len());
    let other: Vec<usize> = (0..right.len()).filter(|&i| found[i] != right[i]).collect();
    assert!(other.is_empty(), "{what}: other bits of steps {other:?}");
    card.steps_by_graphs() - before
}

#[test]
fn the_same_bits() {
    let Some(card) = card() else { return };
    for family in families() {
        for (dtype, options) in [(DType::F32, Some(lora())), (DType::BF16, None)] {
            let mut model = fixture(family).model(dtype, options.clone());
            shake(&model);
            // Without adapters the other one is like it, and elsewhere.
            let mut other = fixture(family).model(dtype, options.map(|options| LoraOptions { seed: 6, ..options }));
            for model in [&mut model, &mut other] {
                model.compute_on(&Compute::Card(Arc::clone(&card))).unwrap();
            }
            let steps = compare(&card, &format!("{family} {dtype:?}"), || come_and_go(&[&model, &other]));
            let is_well = match fails() {
                true => steps == 0,
                false => steps >= 8,
            };
            assert!(is_well, "{family} {dtype:?}: {steps} steps done again");
            say!("{family} {dtype:?}: {steps} steps done again, with the bits of others");
        }
    }
}

/// Weights in blocks are dequantized in a recording, too.
#[test]
fn the_same_answers() {
    let Some(card) = card() else { return };
    if fails() {
        return;
    }
    let config = json!({
        "model_type": "llama", "vocab_size": 128, "hidden_size": 256, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": false,
    });
    for (format, what) in [(None, "numbers"), (Some(Format::Nf4), "NF4"), (Some(Format::Q4K), "Q4_K")] {
        let model = MadeUp { config: config.clone(), lora: Some(lora()), format }.model(&card);
        answers(what, &model, [1, 2], (61, 8), &card);
    }
}

/// Weights, and with them inputs, that are rounded as if they were quantized; and then no longer, where the model was.
#[test]
fn as_if_quantized() {
    let Some(card) = card() else { return };
    if fails() {
        return;
    }
    let groups = Groups { groupsize: 16 };
    let mut model = fixture("llama3_1_rope_scaled").model(DType::F32, None);
    model.compute_on(&Compute::Card(Arc::clone(&card))).unwrap();
    let mut before = Vec::new();
    for quantizer in [
        None,
        Some(FakeQuantizer::Int8DynActInt4Weight(groups)),
        Some(FakeQuantizer::Int4WeightOnly(groups)),
        Some(FakeQuantizer::Gguf(GgufLevels { format: GgufFormat::Q8_0 })),
        None,
    ] {
        model.fake_quantize(quantizer).unwrap();
        let what = format!("{quantizer:?}");
        let steps = compare(&card, &what, || come_and_go(&[&model, &model]));
        assert!(steps >= 8, "{what}: {steps} steps done again");
        let bits = come_and_go(&[&model, &model]);
        assert!(quantizer.is_none() || !before.contains(&bits), "{what}: rounded as before");
        before.push(bits);
    }
    assert!(before[0] == before[4], "other bits without rounding");
}

/// What is trained between two tokens is what the second is computed with, magnitudes' factors as well.
#[test]
fn weights_that_change() {
    let Some(card) = card() else { return };
    let fixture = fixture("llama_tied");
    let batch = fixture.batch();
    let steps = compare(&card, "trained between", || {
        let options = LoraOptions { dora: true, dropout: 0.0, ..lora() };
        let mut model = fixture.model(DType::F32, Some(options));
        model.compute_on(&Compute::Card(Arc::clone(&card))).unwrap();
        let mut optimizer = AdamW::new(1e-2, [0.9, 0.99], 1e-8, 0.01);
        let mut reader = Reader::new(&[&model], 40);
        let a = reader.join(0, 40);
        reader.grow(&[(a, 4)]);
        for step in 1..=2 {
            (0..4).for_each(|_| reader.grow(&[(a, 1)]));
            let (_, mut gradients) = run(&model, &batch, false);
            gradients.apply(&model, &mut optimizer, 1e-2, 1.0, step).unwrap();
        }
        (0..4).for_each(|_| reader.grow(&[(a, 1)]));
        reader.bits
    });
    assert_eq!(steps, if fails() { 0 } else { 9 }, "of each four steps the last three");
}

#[test]
fn a_recording_is_done_when_it_is_launched() {
    if card().is_none() {
        return;
    }
    let context = Context::open(0).unwrap();
    let mut numbers = context.upload(&[1f32; 64]);
    let used = context.usage().used;
    let memory = context.kept_memory();
    let copied = || {
        let mut copy = context.buffer::<f32>(64);
        context.copy(&numbers, &mut copy);
        copy
    };
    drop(context.within(&memory, copied));
    let held = context.usage().used;
    assert!(held > used, "what is recorded has no memory of its own");
    let recorded = context.record(&memory, copied);
    if fails() {
        assert!(recorded.unwrap_err().to_string().contains("recording work"));
        return assert_eq!(context.download(&numbers).unwrap(), [1.0; 64]);
    }
    let (graph, mut copy) = recorded.unwrap();
    assert_eq!(context.usage().used, held);
    let others = context.buffer::<f32>(64);
    context.fill(&mut copy, 0);
    assert_eq!(context.download(&copy).unwrap(), [0.0; 64], "done before it is launched");
    for number in [1.0, 2.0] {
        context.write(&mut numbers, &[number; 64]);
        context.launch(&graph);
        assert_eq!(context.download(&copy).unwrap(), [number; 64]);
    }
    // A result that is lent is there as long, and takes nothing.
    let lent = copy.lent(&memory);
    context.launch(&graph);
    assert_eq!(context.download(&lent).unwrap(), [2.0; 64]);
    drop((memory, others, lent));
    assert_eq!(context.usage().used, held, "memory is given back while there is a graph");
    drop(graph);
    assert_eq!(context.usage().used, used);
}

/// A recording that cannot be ends as an error of its own; what comes next is done as ever.
#[test]
fn what_cannot_be_recorded() {
    if card().is_none() {
        return;
    }
    let context = Context::open(0).unwrap();
    let numbers = context.upload(&[1f32, 2.0]);
    let memory = context.kept_memory();
    let ahead = context.upload_ahead(&[3f32; 8]);
    type Work<'a> = Box<dyn Fn() + 'a>;
    let works: [(&str, Work<'_>); 6] = [
        ("a copy from", Box::new(|| drop(context.download(&numbers)))),
        ("a copy from", Box::new(|| drop(context.read_later(&numbers)))),
        ("a copy to", Box::new(|| drop(context.upload(&[5f32])))),
        ("a copy to", Box::new(|| drop(context.upload_ahead(&[5f32])))),
        ("doing the work", Box::new(|| drop(context.synchronize()))),
        ("marking a place", Box::new(|| drop(context.mark()))),
    ];
    for (what, work) in works {
        let error = context.record(&memory, work).unwrap_err().to_string();
        assert!(error.starts_with(what) && error.ends_with("cannot be recorded"), "{error}");
        context.check().unwrap();
        assert_eq!(context.download(&numbers).unwrap(), [1.0, 2.0], "behind {what}");
    }
    fn panics() {
        panic!("work that panics");
    }
    let panics = catch_unwind(AssertUnwindSafe(|| context.record(&memory, panics)));
    assert!(panics.is_err());
    // Memory of the ring that goes meanwhile is used again.
    let (graph, ()) = context.record(&memory, || drop(ahead)).unwrap();
    context.launch(&graph);
    let used = context.usage().used;
    for _ in 0..20 {
        let in_the_ring = context.upload_ahead(&vec![4f32; 1 << 20]);
        assert_eq!((context.download(&in_the_ring).unwrap()[7], context.usage().used), (4.0, used));
    }
    context.check().unwrap();
}

/// A plan has the memory that recordings keep.
#[test]
fn what_answers_take_is_planned() {
    if card().is_none() {
        return;
    }
    let config = json!({
        "model_type": "llama", "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": false,
    });
    let mut mixture = config.clone();
    let experts = json!({
        "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 256,
        "norm_topk_prob": true,
    });
    mixture.as_object_mut().unwrap().extend(experts.as_object().unwrap().clone());
    for config in [config, mixture] {
        answers_are_planned(config);
    }
}

fn answers_are_planned(config: serde_json::Value) {
    let (what, card) = (config["model_type"].clone(), Card::open(0).unwrap());
    let made = MadeUp { config, lora: Some(LoraOptions { dropout: 0.0, ..lora() }), format: None };
    let (count, prompt, max_new_tokens) = (24, 3, 12);
    let asked = Asked { answers: vec![Answers { prompts: vec![prompt; count], max_new_tokens }], ..Asked::default() };
    // A step is so small that answers take the most.
    let plan = made.plan_asking(&card, &batch((1, 2), 4096), asked);
    let model = made.model(&card);
    let mut reader = Reader::new(&[&model], count * (prompt + max_new_tokens - 1));
    let all: Vec<usize> = (0..count).map(|_| reader.join(0, prompt + max_new_tokens - 1)).collect();
    reader.grow(&all.iter().map(|&i| (i, prompt)).collect::<Vec<_>>());
    (1..max_new_tokens).for_each(|_| reader.grow(&all.iter().map(|&i| (i, 1)).collect::<Vec<_>>()));
    let taken = (card.usage().most - (tune_cuda::WORKSPACE + tune_cuda::AHEAD) as u64) as f64;
    // Nobody trained here: gradients and an optimizer's state are none of it.
    let of_training = plan.parts().into_iter().filter(|(name, _)| name.contains("optimizer")).map(|(_, bytes)| bytes);
    let planned = (plan.peak() - plan.program - plan.gaps - of_training.sum::<u64>()) as f64;
    say!("answers of {what}: {:.0} KiB planned, {:.0} taken", planned / 1024.0, taken / 1024.0);
    assert!((planned / taken - 1.0).abs() < 0.05, "{planned} bytes planned, {taken} taken");
    // What recordings keep beside their largest step is among the gaps.
    let held = card.usage().held - (tune_cuda::WORKSPACE + tune_cuda::AHEAD) as u64;
    assert!(held <= plan.peak() - plan.program, "{held} bytes held, {} planned", plan.peak() - plan.program);
}

/// For those that count calls: a prompt, and so many tokens one by one.
#[test]
fn tokens_one_by_one() {
    let Some(card) = card() else { return };
    let mut model = fixture("llama_tied").model(DType::F32, Some(lora()));
    model.compute_on(&Compute::Card(card)).unwrap();
    let mut reader = Reader::new(&[&model], 20);
    let a = reader.join(0, 20);
    reader.grow(&[(a, 4)]);
    (0..10).for_each(|_| reader.grow(&[(a, 1)]));
}

/// The same where tokens are drawn.
#[test]
fn tokens_drawn_one_by_one() {
    let Some(card) = card() else { return };
    let mut model = fixture("llama_tied").model(DType::F32, Some(lora()));
    model.compute_on(&Compute::Card(card)).unwrap();
    let mut sequences = Sequences::new(&model, &[20], Kernels::OfTraining).unwrap();
    let mut ids = vec![1, 5, 9, 3];
    for _ in 0..11 {
        let drawn = sequences.draw(&[(0, &ids, Draw::LIKELIEST)]).unwrap();
        ids = vec![drawn[0].token];
    }
}

/// Runs a test on a stand-in that is told this.
fn told(test: &str, folder: &Path, told: &[(&str, &str)]) {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args([&format!("graphs::{test}"), "--exact", "--test-threads=1"]).env("TUNE_TEST_CARD", "1");
    program.env("TUNE_TEST_FAMILIES", "gemma3_text");
    super::stand_in::environment(&mut program, folder);
    let output = program.envs(told.iter().copied()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && said.contains("running 1 test"), "{test}, {told:?}: {said}");
}

#[test]
fn fewer_calls() {
    if std::env::var_os("TUNE_TEST_CARD").is_some() {
        return;
    }
    let Some(folder) = super::stand_in::folder() else { return };
    let calls = tempfile::tempdir().unwrap();
    // The calls of each of the last tokens, whose logits are waited for.
    let of_tokens = |test: &str, graphs: &str| {
        let file = calls.path().join(format!("calls-{test}-{graphs}"));
        told(test, folder, &[("STAND_IN_CALLS", file.to_str().unwrap()), ("TUNE_CUDA_GRAPHS", graphs)]);
        let lines = std::fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = lines.lines().collect();
        let tokens: Vec<Vec<String>> = lines
            .split_inclusive(|line| line.starts_with("wait"))
            .map(|calls| calls.iter().map(|&call| call.to_owned()).collect())
            .collect();
        let last: Vec<_> = tokens.iter().rev().filter(|calls| calls.len() > 2).take(6).cloned().collect();
        assert!(last.windows(2).all(|pair| pair[0] == pair[1]), "tokens differ: {last:?}");
        last.into_iter().next().unwrap()
    };
    let (with, without) = (of_tokens("tokens_one_by_one", ""), of_tokens("tokens_one_by_one", "none"));
    say!("calls for a token of a small model: {} without recordings, {} with", without.len(), with.len());
    assert_eq!(with, ["to the card", "graph", "from the card", "wait event"]);
    assert_eq!(of_tokens("tokens_drawn_one_by_one", ""), with, "where tokens are drawn");
    let copies = without.iter().filter(|call| call.starts_with("to the card")).count();
    assert!(without.len() > 60 && copies == 1, "{copies} copies: {without:?}");
}

/// On a stand-in that does things in other orders, and on one on which no recording comes to its end.
#[test]
fn other_drivers() {
    if std::env::var_os("TUNE_TEST_CARD").is_some() {
        return;
    }
    let Some(folder) = super::stand_in::folder() else { return };
    for streams in ["late", "side_first"] {
        for test in ["the_same_bits", "a_recording_is_done_when_it_is_launched", "what_cannot_be_recorded"] {
            told(test, folder, &[("STAND_IN_STREAMS", streams)]);
        }
    }
    for failing in ["begin", "end", "instantiate"] {
        for test in ["the_same_bits", "weights_that_change", "a_recording_is_done_when_it_is_launched"] {
            told(test, folder, &[("STAND_IN_GRAPHS", failing)]);
        }
    }
}
