//! Training on several processes, which are threads here, against the same training on one: losses, the first gradients, and
//! what is learnt; on processors, and on a card each ([`cards`]).

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod cards;
mod collectives;
#[path = "../common/families.rs"]
mod families;
#[path = "../common/stand_in.rs"]
mod stand_in;

use std::collections::BTreeMap;
use std::time::Duration;

use candle_core::{DType, Tensor};
use families::Fixture;
use tune_core::data::{Batch, IGNORE, Span};
use tune_core::device::Compute;
use tune_core::distributed::{Layout, Mesh, threads};
use tune_core::engine::{self, Card, RunOptions, forward_backward};
use tune_core::models::{Decoder, LoadOptions, ModelSpec};
use tune_core::optim::{AdamW, Gradients, clip_factor};
use tune_core::peft::{LoraModule, LoraOptions, TrainedTokens};
use tune_core::recipe::dropout_key;

/// Micro-batches of a step over all processes.
const TOGETHER: usize = 4;
const STEPS: usize = 4;

/// What is trained, and how.
#[derive(Clone)]
struct Case {
    family: &'static str,
    dtype: DType,
    lora: Option<LoraOptions>,
    packed: bool,
    checkpointing: bool,
    /// Whether each process computes on a card.
    on_cards: bool,
}

impl Case {
    fn full(family: &'static str) -> Self {
        Self { family, dtype: DType::F32, lora: None, packed: false, checkpointing: false, on_cards: false }
    }

    fn lora(family: &'static str) -> Self {
        use LoraModule::{DownProj, KProj, LmHead, OProj, QProj, VProj};
        let modules = vec![QProj, KProj, VProj, OProj, DownProj, LmHead];
        let lora = LoraOptions { modules, rank: 3, alpha: 6.0, dropout: 0.1, seed: 5, ..Default::default() };
        Self { lora: Some(lora), ..Self::full(family) }
    }
}

/// What a run leaves behind.
#[derive(Debug, PartialEq)]
struct Outcome {
    losses: Vec<f64>,
    norms: Vec<f64>,
    /// Of the first step.
    gradients: BTreeMap<String, Vec<f64>>,
    weights: BTreeMap<String, Vec<f64>>,
    validation: f64,
    /// Elements of parameters that were held here.
    held: usize,
    /// Collectives of the first micro-batch.
    collectives: u64,
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Rows of various lengths: some micro-batches have few trained tokens, and one has none.
fn batch(vocab: u32, step: usize, index: usize, packed: bool) -> Batch {
    let number = (step * TOGETHER + index) as u32;
    let lens: Vec<usize> = (0..3).map(|row| 3 + (number as usize * 5 + row * 7) % 9).collect();
    let len = if packed { lens.iter().sum() } else { 11 };
    let rows = if packed { 1 } else { 3 };
    let mut batch = Batch {
        rows,
        len,
        input_ids: vec![0; rows * len],
        targets: vec![IGNORE; rows * len],
        positions: vec![0; rows * len],
        spans: Vec::new(),
        origins: Vec::new(),
        labels: Vec::new(),
    };
    let mut start = 0;
    for (row, &of_row) in lens.iter().enumerate() {
        let span = if packed { Span { row: 0, start, len: of_row } } else { Span { row, start: 0, len: of_row } };
        let first = span.row * len + span.start;
        for i in 0..of_row {
            let token = |i: usize| (number * 31 + row as u32 * 17 + i as u32 * 7) % vocab;
            batch.input_ids[first + i] = token(i);
            batch.positions[first + i] = i as u32;
            // The second half of each row, of every micro-batch but one.
            if i >= of_row / 2 && i + 1 < of_row && number % 6 != 5 {
                batch.targets[first + i] = token(i + 1);
            }
        }
        batch.spans.push(span);
        batch.origins.push(format!("row {row}"));
        start += of_row;
    }
    batch
}

/// A run of some steps by a process of a mesh: micro-batch `i` of a step belongs to rank `i % world_size`.
fn train(case: &Case, mesh: &Mesh) -> Outcome {
    let group = mesh.all();
    let (mesh, device) = match case.on_cards {
        true => {
            let card = Card::open(group.place().local_rank).unwrap();
            (&mesh.clone().connect(&card).unwrap(), Compute::Card(card))
        }
        false => (mesh, Compute::Processor),
    };
    let fixture = Fixture::read(case.family);
    let spec = ModelSpec::from_json(&fixture.config).unwrap();
    let vocab = spec.vocab_size as u32;
    let options =
        LoadOptions { dtype: case.dtype, device, train_weights: case.lora.is_none(), lora: case.lora.clone() };
    let model = Decoder::load_shard(spec, &fixture.weights, &options, mesh).unwrap();
    let mut optimizer = AdamW::new(1e-2, [0.9, 0.99], 1e-8, 0.1);
    let mut outcome = Outcome {
        losses: Vec::new(),
        norms: Vec::new(),
        gradients: BTreeMap::new(),
        weights: BTreeMap::new(),
        validation: 0.0,
        held: model.trainable().iter().map(|p| p.var().elem_count()).sum(),
        collectives: 0,
    };
    for step in 0..STEPS {
        let all: Vec<Batch> = (0..TOGETHER).map(|i| batch(vocab, step, i, case.packed)).collect();
        let scale = 1.0 / all.iter().map(Batch::trained_tokens).sum::<usize>() as f64;
        let mine = all.iter().enumerate().filter(|(i, _)| i % group.world_size() == group.rank());
        let (number, mut loss) = (step as u64 + 1, 0.0);
        let run = |i: usize| RunOptions {
            scale,
            activation_checkpointing: case.checkpointing,
            dropout: Some(dropout_key(3, number, i)),
            ..RunOptions::PLAIN
        };
        let mut gradients = Gradients::default();
        for (i, batch) in mine {
            let before = group.collectives();
            loss += scale * forward_backward(&model, batch, run(i), &mut gradients).unwrap();
            if (step, i) == (0, group.rank()) {
                outcome.collectives = group.collectives() - before;
            }
        }
        if step == 0 {
            let whole = model.trainable().iter().map(|parameter| {
                let here = gradients.get(parameter.name()).unwrap().to_tensor().unwrap();
                (parameter.name().to_string(), values(&parameter.whole(&here).unwrap()))
            });
            outcome.gradients = whole.collect();
        }
        let norm = gradients.norm().unwrap();
        gradients.apply(&model, &mut optimizer, 1e-2, clip_factor(norm, 0.5), number).unwrap();
        outcome.losses.push(loss);
        outcome.norms.push(norm);
    }
    for index in 0..TOGETHER / group.world_size() {
        let batch = batch(vocab, 99, index * group.world_size() + group.rank(), case.packed);
        outcome.validation += engine::evaluate(&model, &batch).unwrap();
    }
    model.fetch().unwrap();
    let (weights, _) = model.merged_weights().unwrap();
    outcome.weights = weights.iter().map(|(name, weight)| (name.clone(), values(weight))).collect();
    outcome
}

fn on(layout: Layout, case: &Case) -> Vec<Outcome> {
    let one = |group| train(case, &Mesh::new(&group, layout).unwrap());
    threads::run(layout.processes(), Duration::from_secs(60), one).unwrap()
}

const fn layout(shards: usize, replicas: usize, keeps_gathered: bool) -> Layout {
    Layout { shards, replicas, keeps_gathered }
}

/// One copy of a model, divided; one in each process; two, each divided.
const LAYOUTS: [Layout; 6] = [
    Layout::ONE,
    layout(2, 1, false),
    layout(4, 1, true),
    layout(1, 2, false),
    layout(1, 4, false),
    layout(2, 2, false),
];

/// The length of the difference, relative to that of the second.
fn distance(a: &BTreeMap<String, Vec<f64>>, b: &BTreeMap<String, Vec<f64>>) -> f64 {
    assert!(a.keys().eq(b.keys()));
    let length = |all: &mut dyn Iterator<Item = f64>| all.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = || a.values().flatten().zip(b.values().flatten());
    length(&mut pairs().map(|(a, b)| a - b)) / length(&mut pairs().map(|(_, b)| *b))
}

fn check(case: &Case) {
    check_on(&LAYOUTS, case);
}

fn check_on(layouts: &[Layout], case: &Case) {
    let alone = train(case, &Mesh::default());
    for &layout in layouts {
        let all = on(layout, case);
        let worst = |a: &[f64], b: &[f64]| {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).fold(0f64, |worst, (a, b)| worst.max((a - b).abs() / b.abs()))
        };
        let first = &all[0];
        let (losses, norms) = (worst(&first.losses, &alone.losses), worst(&first.norms, &alone.norms));
        let validation = worst(&[first.validation], &[alone.validation]);
        let gradients = distance(&first.gradients, &alone.gradients);
        let weights = distance(&first.weights, &alone.weights);
        println!(
            "{} on {layout}: losses off by {losses:.1e}, norms {norms:.1e}, gradients {gradients:.1e}, weights \
             {weights:.1e}, validation {validation:.1e}",
            case.family
        );
        assert!(losses <= 1e-5 && norms <= 1e-4 && gradients <= 1e-5 && weights <= 1e-4 && validation <= 1e-5);
        if layout == Layout::ONE {
            assert_eq!(*first, alone, "one process communicates with nobody");
        }
        let mut held = 0;
        for one in &all {
            // What they see of the whole has the same bits everywhere.
            let same = (&one.losses, &one.norms, &one.gradients, &one.weights, one.validation);
            assert_eq!(same, (&first.losses, &first.norms, &first.gradients, &first.weights, first.validation));
            held += one.held;
        }
        assert_eq!(held, layout.replicas * alone.held, "every element is in one process of each copy");
        assert_eq!(on(layout, case), all, "the same processes give the same bits");
    }
}

#[test]
fn all_weights_are_learnt_as_by_one_process() {
    check(&Case::full("llama_tied"));
    check(&Case { packed: true, checkpointing: true, ..Case::full("llama3_1_rope_scaled") });
}

#[test]
fn adapters_are_learnt_as_by_one_process() {
    check(&Case::lora("llama_tied"));
    for (family, save) in [("llama_tied", ["embed_tokens", "norm"]), ("qwen2", ["lm_head", "up_proj"])] {
        let modules = vec![LoraModule::QProj, LoraModule::DownProj];
        let save = save.map(String::from).into();
        let lora = Case::lora(family).lora.map(|lora| LoraOptions { modules, save, ..lora });
        check(&Case { lora, ..Case::lora(family) });
    }
    // Fewer rows than processes, and rows that are divided unevenly.
    for (family, tokens, of_output) in [
        ("llama_tied", &[36, 149, 5][..], &[][..]),
        ("mistral", &[23], &[]),
        ("llama_tied", &[0], &[]),
        ("mistral", &[7, 23], &[151, 23, 8]),
        ("mistral", &[], &[60]),
    ] {
        let (tokens, output_tokens) = (TrainedTokens::of(tokens), TrainedTokens::of(of_output));
        let lora = LoraOptions { modules: vec![LoraModule::QProj], tokens, output_tokens, ..Default::default() };
        let lora = LoraOptions { rank: 3, alpha: 6.0, seed: 5, ..lora };
        check(&Case { lora: Some(lora), packed: true, ..Case::lora(family) });
    }
    check(&Case { packed: true, checkpointing: true, ..Case::lora("qwen2") });
}

/// The bits are those of weights that are gathered twice; a block is gathered once in each micro-batch.
#[test]
fn gathered_weights_may_stay_until_the_backward_pass() {
    for case in [Case::full("llama_tied"), Case { checkpointing: true, ..Case::lora("qwen2") }] {
        let blocks = Fixture::read(case.family).config["num_hidden_layers"].as_u64().unwrap();
        for (shards, replicas) in [(2, 1), (2, 2)] {
            let twice = on(layout(shards, replicas, false), &case);
            let mut once = on(layout(shards, replicas, true), &case);
            for (once, twice) in once.iter_mut().zip(&twice) {
                assert_eq!(once.collectives + blocks, twice.collectives);
                once.collectives = twice.collectives;
            }
            assert_eq!(once, twice);
        }
    }
}

#[test]
fn a_layout_is_that_of_all_processes() {
    let errors = threads::run(4, Duration::from_secs(20), |group| {
        let of = if group.rank() == 3 { layout(1, 4, false) } else { layout(2, 2, false) };
        Mesh::new(&group, of).unwrap_err().to_string()
    });
    for error in errors.unwrap() {
        assert!(error.contains("rank 3 has another config than rank 0"), "{error}");
    }
}

/// Biases, norms of heads, norms behind, fused layers, experts.
#[test]
fn other_families_are_learnt_as_by_one_process() {
    for family in ["llama_biases", "gemma3_text", "olmo2", "phi3", "qwen3_moe"] {
        check(&Case::full(family));
    }
    check(&Case::lora("qwen3_moe"));
}
