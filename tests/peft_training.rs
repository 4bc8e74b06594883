//! Adapters of each kind, trained from the start that peft had: ten steps have peft's losses, what is saved is read again, and
//! says the same.
//!
//! `tests/python/make_peft_training.py` makes the fixtures. With EXPORTS_DIR set, what was trained is written there, for
//! `tests/python/check_exports.py` to load with peft.

#![allow(clippy::unwrap_used)]

#[path = "common/families.rs"]
mod families;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use families::Fixture;
use serde_json::Value;
use tune_core::checkpoint::Checkpoint;
use tune_core::checkpoint::peft::{self, Layers};
use tune_core::engine::{self, RunOptions, forward_backward};
use tune_core::models::Decoder;
use tune_core::optim::{AdamWConfig, Gradients, OptimizerConfig};
use tune_core::peft::LoraModule::{QProj, VProj};
use tune_core::peft::{LoraModule, LoraOptions, Start, Targets, TrainedTokens};
use tune_core::tokenizer::TokenizerFiles;

/// A case's folder.
fn folder(case: &str) -> PathBuf {
    Fixture::folder("..").join("peft_training").join(case)
}

fn expected(case: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(case).join("expected.json")).unwrap()).unwrap()
}

fn numbers(expected: &Value, key: &str) -> Vec<f64> {
    expected[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The logits behind the last token of the first row.
fn of_last(model: &Decoder, fixture: &Fixture) -> Vec<f32> {
    let batch = fixture.batch();
    let logits = engine::logits(model, &batch).unwrap();
    logits.get(0).unwrap().get(batch.len - 1).unwrap().to_vec1().unwrap()
}

fn optimizer(lr: f64) -> OptimizerConfig {
    OptimizerConfig::AdamW(AdamWConfig {
        lr,
        betas: [0.9, 0.999],
        eps: 1e-8,
        weight_decay: 0.0,
        groups: Default::default(),
    })
}

/// Takes the steps of a case from its start and compares with what peft had.
fn follow(case: &str, options: &LoraOptions, loraplus_lr_ratio: Option<f64>) {
    let expected = expected(case);
    let family = expected["family"].as_str().unwrap();
    let (fixture, start) = (Fixture::read(family), folder(case).join("start"));
    let model = fixture.model(DType::F32, Some(options.clone()));
    if start.is_dir() {
        // What peft wrote says of each layer what our keys say.
        let theirs = LoraOptions::of_folder(&start).unwrap();
        assert_eq!(options.of_model(&model.config).unwrap(), theirs.of_model(&model.config).unwrap(), "{case}");
        options.load_into(&model, &start).unwrap();
    }
    let (batch, lr) = (fixture.batch(), expected["lr"].as_f64().unwrap());
    let mut optimizer = optimizer(lr).build_for_adapters(loraplus_lr_ratio);
    let trained = batch.trained_tokens() as f64;
    for (step, theirs) in (1..).zip(numbers(&expected, "losses")) {
        let mut gradients = Gradients::default();
        let options = RunOptions { scale: 1.0 / trained, activation_checkpointing: step % 2 == 0, ..RunOptions::PLAIN };
        let ours = forward_backward(&model, &batch, options, &mut gradients).unwrap() / trained;
        assert!((ours - theirs).abs() < 1e-4, "{case}, step {step}: {ours}, and peft has {theirs}");
        gradients.apply(&model, optimizer.as_mut(), lr, 1.0, step).unwrap();
    }
    let ours = of_last(&model, &fixture);
    for (ours, theirs) in ours.iter().zip(numbers(&expected, "logits")) {
        assert!((f64::from(*ours) - theirs).abs() < 1e-3, "{case}: {ours}, and peft has {theirs}");
    }
    write(case, options, &model, &fixture, family);
}

/// Writes what was trained, reads it, and compares.
fn write(case: &str, options: &LoraOptions, model: &Decoder, fixture: &Fixture, family: &str) {
    let temporary = tempfile::tempdir().unwrap();
    let into = std::env::var_os("EXPORTS_DIR").map_or_else(|| temporary.path().to_path_buf(), PathBuf::from);
    let dir = into.join(format!("trained_{case}"));
    let base = Checkpoint::open(Fixture::folder(family).canonicalize().unwrap()).unwrap();
    save(&dir.join("adapter"), options, model, &base);
    let again = LoraOptions::of_folder(&dir.join("adapter")).unwrap();
    let read = fixture.model(DType::F32, Some(again.clone()));
    again.load_into(&read, &dir.join("adapter")).unwrap();
    // What began with a part of the weights is saved as an adapter for all of them: the same sum in another order.
    let allowed = if options.start == Start::Kaiming { 0.0 } else { 1e-4 };
    for (saved, trained) in of_last(&read, fixture).iter().zip(of_last(model, fixture)) {
        assert!((saved - trained).abs() <= allowed, "{case}: {saved} as it was saved, {trained} as it was trained");
    }

    let batch = fixture.batch();
    let ids: Vec<i64> = batch.input_ids.iter().map(|&id| i64::from(id)).collect();
    let tensors: std::collections::HashMap<&str, Tensor> = [
        ("input_ids", Tensor::from_vec(ids, (batch.rows, batch.len), &Device::Cpu).unwrap()),
        ("logits", engine::logits(model, &batch).unwrap()),
    ]
    .into();
    candle_core::safetensors::save(&tensors, dir.join("expected.safetensors")).unwrap();
}

fn save(dir: &Path, options: &LoraOptions, model: &Decoder, base: &Checkpoint) {
    let weights = tune_core::peft::adapter_weights(model).unwrap();
    peft::write(dir, &options.adapter_config(base).unwrap(), &weights, &TokenizerFiles::default()).unwrap();
}

fn on(modules: &[&str], rank: usize, alpha: f64) -> LoraOptions {
    let modules = modules.iter().map(|&module| module.to_owned()).collect();
    LoraOptions { rank, alpha, targets: Targets { modules, layers: Layers::default() }, ..Default::default() }
}

const ATTENTION: [&str; 4] = ["q_proj", "k_proj", "v_proj", "o_proj"];

#[test]
fn adapters_chosen_by_name_and_by_pattern() {
    follow("plain", &LoraOptions { modules: vec![QProj, VProj], ..on(&[], 4, 8.0) }, None);
    follow("plain", &on(&["self_attn.q_proj", "v_proj"], 4, 8.0), None);
    follow("all_linear", &on(&["all-linear"], 2, 4.0), None);
    follow("expression", &on(&[r".*\.1\.(self_attn\.[qk]|mlp\.up)_proj"], 2, 4.0), None);
    let mut patterns = on(&["q_proj", "o_proj", "down_proj"], 2, 4.0);
    patterns.targets.layers.rank_pattern = vec![("q_proj".into(), 4), ("layers.1.mlp.down_proj".into(), 1)];
    patterns.targets.layers.alpha_pattern = vec![("o_proj".into(), 12.0)];
    follow("patterns", &patterns, None);
    let mut one_block = on(&["q_proj", "up_proj"], 2, 4.0);
    one_block.targets.layers.layers_to_transform = vec![1];
    follow("one_block", &one_block, None);
    // The same by the keys that torchtune has.
    one_block.targets.modules.clear();
    follow("one_block", &LoraOptions { modules: vec![QProj, LoraModule::UpProj], ..one_block }, None);
}

/// An adapter for each layer of each expert, and for what chooses them; of blocks without experts, too.
#[test]
fn adapters_on_experts() {
    let mlp = ["gate_proj", "up_proj", "down_proj"];
    let and = |more: &[&'static str]| [more, &mlp].concat();
    follow("experts", &on(&and(&["q_proj", "v_proj"]), 2, 4.0), None);
    let by_torchtunes_keys = vec![QProj, VProj, LoraModule::GateProj, LoraModule::UpProj, LoraModule::DownProj];
    follow("experts", &LoraOptions { modules: by_torchtunes_keys, ..on(&[], 2, 4.0) }, None);
    follow("experts", &on(&[r".*\.(q|v|gate|up|down)_proj"], 2, 4.0), None);
    follow("router", &on(&["v_proj", "mlp.gate"], 2, 4.0), None);
    follow("experts_dense", &on(&["all-linear"], 2, 4.0), None);
    // peft says of experts what the file of such an adapter would have to say otherwise.
    let scale = LoraOptions { rslora: true, alpha: 2.0 * 2f64.sqrt(), dropout: 0.1, ..on(&["all-linear"], 2, 0.0) };
    follow("experts_dense", &scale, None);
}

/// peft puts the adapters of a block's experts together, and saves them so.
#[test]
fn adapters_on_all_experts_at_once_are_taken_apart() {
    for case in ["experts", "router", "experts_dense"] {
        let fixture = Fixture::read(expected(case)["family"].as_str().unwrap());
        let [ours, fused] = ["start", "fused"].map(|name| {
            let dir = folder(case).join(name);
            let options = LoraOptions::of_folder(&dir).unwrap();
            let model = fixture.model(DType::F32, Some(options.clone()));
            options.load_into(&model, &dir).unwrap();
            of_last(&model, &fixture)
        });
        let worst = ours.iter().zip(&fused).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst < 1e-4, "{case}: logits differ by {worst}");
    }
}

/// What peft cannot read of adapters on experts is refused before it is trained.
#[test]
fn adapters_on_experts_that_no_file_holds() {
    let model = Fixture::read("qwen3_moe_dense").model(DType::F32, Some(on(&["q_proj"], 2, 4.0)));
    let refused = |options: LoraOptions, says: &str| {
        let error = options.of_model(&model.config).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(on(&["gate_proj"], 2, 4.0), "block 0 is to have them on gate_proj: name the others, too");
    refused(on(&["gate_proj", "up_proj"], 2, 4.0), "block 0 is to have them on gate_proj and up_proj");
    refused(on(&["experts.3.down_proj"], 2, 4.0), "some of the 5 experts of block 0 are to have adapters");
    let dora = |modules: &[&str]| LoraOptions { dora: true, ..on(modules, 2, 4.0) };
    refused(dora(&["all-linear"]), "model.use_dora: peft holds no magnitudes for the MLPs of a model with experts");
    let mut patterns = on(&["all-linear"], 2, 4.0);
    patterns.targets.layers.rank_pattern = vec![("mlp.gate".into(), 4)];
    refused(patterns.clone(), "are of rank 4 and scale 1, and of rank 2 and scale 2: peft holds one rank and scale");
    patterns.targets.layers.rank_pattern = vec![("q_proj".into(), 4)];
    patterns.of_model(&model.config).unwrap();
    dora(&["q_proj"]).of_model(&model.config).unwrap();
    let mut of_block = on(&["down_proj", "v_proj"], 2, 4.0);
    of_block.targets.layers.layers_to_transform = vec![2];
    assert_eq!(of_block.of_model(&model.config).unwrap().len(), 6);
}

#[test]
fn the_scale_and_the_learning_rate_of_b() {
    follow("rslora", &LoraOptions { rslora: true, ..on(&ATTENTION, 4, 4.0) }, None);
    follow("loraplus", &on(&ATTENTION, 4, 8.0), Some(16.0));
}

#[test]
fn magnitudes_of_dora() {
    let dora = |lora: LoraOptions| LoraOptions { dora: true, ..lora };
    follow("dora", &dora(on(&["all-linear"], 2, 4.0)), None);
    follow("dora_loraplus", &dora(on(&["v_proj"], 2, 4.0)), Some(16.0));
    // The output layer, whose weight is the embedding table.
    follow("dora_output", &dora(on(&["v_proj", "lm_head"], 2, 4.0)), None);
}

/// PiSSA and OLoRA from the weights alone: what peft makes of them, and ten steps from there.
#[test]
fn starts_that_take_a_part_of_the_weights() {
    let from = |start, lora: LoraOptions| LoraOptions { start, ..lora };
    follow("pissa", &from(Start::Pissa, on(&ATTENTION, 4, 8.0)), None);
    follow("olora", &from(Start::Olora, on(&ATTENTION, 4, 8.0)), None);
    let mut of_each =
        from(Start::Pissa, LoraOptions { rslora: true, dora: true, ..on(&["q_proj", "up_proj"], 2, 4.0) });
    of_each.targets.layers.rank_pattern = vec![("q_proj".into(), 4)];
    of_each.targets.layers.alpha_pattern = vec![("up_proj".into(), 12.0)];
    follow("pissa_dora", &of_each, None);
}

/// `modules_to_save`: tables of their own, one table for both, norms and a layer with its bias.
#[test]
fn modules_that_are_trained_whole() {
    let with = |save: &[&str], lora: LoraOptions| LoraOptions {
        save: save.iter().map(|&name| name.to_owned()).collect(),
        ..lora
    };
    follow("saved", &with(&["embed_tokens", "lm_head"], on(&["q_proj"], 2, 4.0)), None);
    follow("saved_tied", &with(&["embed_tokens"], on(&["q_proj"], 2, 4.0)), None);
    follow("saved_norms", &with(&["norm", "down_proj"], on(&["q_proj"], 2, 4.0)), None);
}

/// What cannot be trained whole is refused by name, and so is an adapter with other modules.
#[test]
fn modules_that_cannot_be_trained_whole_are_refused() {
    let refused = |family: &str, save: &str, on: LoraOptions, says: &str| {
        let config = tune_core::models::ModelSpec::from_json(&Fixture::read(family).config).unwrap();
        let error = LoraOptions { save: vec![save.into()], ..on }.resolved(&config).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    let q = || on(&["q_proj"], 2, 4.0);
    refused("llama_biases", "lm_heads", q(), "no module of the model is called `lm_heads`: it has `down_proj`");
    refused(
        "llama_biases",
        "q_proj",
        q(),
        "`model.layers.0.self_attn.q_proj` gets an adapter, and model.modules_to_save",
    );
    refused(
        "llama_tied",
        "embed_tokens",
        on(&["lm_head"], 2, 4.0),
        "`lm_head` gets an adapter, and model.modules_to_save",
    );
    refused("qwen3_moe", "mlp.gate", q(), "experts and what chooses them are not trained beside adapters");
    let fixture = Fixture::read("llama_biases");
    let model = fixture.model(DType::F32, Some(q()));
    let error = q().load_into(&model, &folder("saved").join("start")).unwrap_err().to_string();
    assert!(error.contains("set model.modules_to_save=[embed_tokens, lm_head]"), "{error}");
}

/// `trainable_token_indices`: rows of a tied table, which are those of the output layer, too; of one that is not; where embeddings
/// are scaled, logits are capped, and one of the tokens is padding; and of an output layer of its own, beside rows of the table and
/// alone. What is merged computes the same.
#[test]
fn rows_of_single_tokens() {
    let cases: [(&str, &[u32], &[u32]); 5] = [
        ("tokens_tied", &[36, 149, 5, 210], &[]),
        ("tokens_untied", &[47, 23, 151, 7], &[]),
        ("tokens_scaled", &[12, 0, 95, 200], &[]),
        ("tokens_both", &[47, 23], &[151, 23, 8]),
        ("tokens_output", &[], &[23, 60]),
    ];
    for (case, ids, of_output) in cases {
        let (tokens, output_tokens) = (TrainedTokens::of(ids), TrainedTokens::of(of_output));
        let options = LoraOptions { tokens, output_tokens, ..on(&["q_proj"], 2, 4.0) };
        follow(case, &options, None);

        let expected = expected(case);
        let base = || Fixture::read(expected["family"].as_str().unwrap());
        let model = base().model(DType::F32, Some(options.clone()));
        options.load_into(&model, &folder(case).join("start")).unwrap();
        let (weights, tied) = model.merged_weights().unwrap();
        assert_eq!(tied, model.config.tie_word_embeddings);
        let merged = Fixture { weights, ..base() };
        let plain = of_last(&merged.model(DType::F32, None), &merged);
        for (merged, beside) in plain.iter().zip(of_last(&model, &merged)) {
            assert!((merged - beside).abs() < 1e-4, "{case}: {merged} merged, and {beside} beside the table");
        }
        // Of the tables nothing else has changed.
        for (weight, ids) in [("model.embed_tokens.weight", ids), ("lm_head.weight", of_output)] {
            if weight == "lm_head.weight" && tied {
                continue;
            }
            let [table, of_base] = [&merged, &base()].map(|fixture| fixture.weights[weight].to_vec2::<f32>().unwrap());
            for (id, (row, of_base)) in (0..).zip(table.iter().zip(&of_base)) {
                assert_eq!(row != of_base, ids.contains(&id), "{case}, {weight}, token {id}");
            }
        }
        let without = of_last(&model.without_adapters().unwrap(), &merged);
        assert_eq!(without, of_last(&base().model(DType::F32, None), &merged));
    }
}

/// What is wrong with tokens is said by the key of the config.
#[test]
fn tokens_whose_rows_cannot_be_trained_are_refused() {
    let refused = |family: &str, tokens: &[u32], on: LoraOptions, says: &str| {
        let config = tune_core::models::ModelSpec::from_json(&Fixture::read(family).config).unwrap();
        let options = LoraOptions { tokens: TrainedTokens::of(tokens), ..on };
        let error = options.resolved(&config).unwrap_err().to_string();
        assert!(error.contains("model.trainable_token_indices: ") && error.contains(says), "{error}");
    };
    let q = || on(&["q_proj"], 2, 4.0);
    refused("llama_tied", &[3, 100_000], q(), "100000 is no token of the model: its embedding table has ");
    refused("llama_tied", &[3, 7, 3], q(), "the token 3 is named twice");
    refused("llama_tied", &[3], on(&["q_proj", "lm_head"], 2, 4.0), "gets an adapter: leave `lm_head` out");
    let whole = LoraOptions { save: vec!["embed_tokens".into()], ..q() };
    refused("mistral", &[3], whole, "the embedding table is trained whole");
    // An adapter on an output layer of its own is none of a table.
    let config = tune_core::models::ModelSpec::from_json(&Fixture::read("mistral").config).unwrap();
    let beside = LoraOptions { tokens: TrainedTokens::of(&[3]), ..on(&["q_proj", "lm_head"], 2, 4.0) };
    beside.resolved(&config).unwrap();

    // Rows of the output layer.
    let refused = |family: &str, tokens: &[u32], on: LoraOptions, says: &str| {
        let config = tune_core::models::ModelSpec::from_json(&Fixture::read(family).config).unwrap();
        let options = LoraOptions { output_tokens: TrainedTokens::of(tokens), ..on };
        let error = options.resolved(&config).unwrap_err().to_string();
        assert!(error.contains("model.trainable_output_token_indices: ") && error.contains(says), "{error}");
    };
    refused("llama_tied", &[3], q(), "name the tokens in model.trainable_token_indices, whose rows are those of both");
    refused("mistral", &[3, 100_000], q(), "100000 is no token of the model: its output layer has ");
    refused(
        "mistral",
        &[7, 7],
        q(),
        "the token 7 is named twice, here or by its text in model.trainable_output_tokens",
    );
    refused("mistral", &[3], on(&["q_proj", "lm_head"], 2, 4.0), "gets an adapter, too: leave `lm_head` out");
    let whole = LoraOptions { save: vec!["lm_head".into()], ..q() };
    refused("mistral", &[3], whole, "the output layer is trained whole");

    // An adapter with rows of other tokens, or of none.
    let fixture = Fixture::read("llama_tied");
    for tokens in [TrainedTokens::default(), TrainedTokens::of(&[36, 149, 210, 5])] {
        let options = LoraOptions { tokens, ..q() };
        let model = fixture.model(DType::F32, Some(options.clone()));
        let error = options.load_into(&model, &folder("tokens_tied").join("start")).unwrap_err().to_string();
        assert!(error.contains("set model.trainable_token_indices=[36, 149, 5, 210]"), "{error}");
    }
    let options = LoraOptions { tokens: TrainedTokens::of(&[47, 23]), ..q() };
    let model = Fixture::read("mistral").model(DType::F32, Some(options.clone()));
    let error = options.load_into(&model, &folder("tokens_both").join("start")).unwrap_err().to_string();
    assert!(error.contains("set model.trainable_output_token_indices=[151, 23, 8]"), "{error}");
}

/// A run goes on from what it saved to the last bit, and from nothing else; the model without adapters is the base.
#[test]
fn a_start_that_took_a_part_is_taken_again() {
    let (fixture, dir) = (Fixture::read("llama_biases"), tempfile::tempdir().unwrap());
    let base = Checkpoint::open(Fixture::folder("llama_biases").canonicalize().unwrap()).unwrap();
    let options = LoraOptions { start: Start::Olora, ..on(&ATTENTION, 3, 6.0) };
    let model = fixture.model(DType::F32, Some(options.clone()));
    let plain = fixture.model(DType::F32, Some(on(&ATTENTION, 3, 6.0)));
    let same = |a: &Decoder, b: &Decoder, allowed: f32| {
        let (a, b) = (of_last(a, &fixture), of_last(b, &fixture));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= allowed), "{a:?}\n{b:?}");
    };
    same(&model, &plain, 1e-4);
    for parameter in model.trainable() {
        let moved = (parameter.var().as_tensor() * 1.25).unwrap();
        parameter.var().set(&moved).unwrap();
    }
    save(dir.path(), &options, &model, &base);
    let again = options.clone().going_on_from(Some(dir.path())).unwrap();
    let resumed = fixture.model(DType::F32, Some(again.clone()));
    again.load_into(&resumed, dir.path()).unwrap();
    same(&resumed, &model, 0.0);
    same(&resumed.without_adapters().unwrap(), &plain, 1e-4);

    // Another start, and an adapter that took nothing.
    let refused = |options: &LoraOptions, dir: &Path, says: &str| {
        let error = options.load_into(&fixture.model(DType::F32, Some(options.clone())), dir).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    let pissa = LoraOptions { start: Start::Pissa, ..options };
    refused(&pissa, dir.path(), "began with another part of the weight");
    let pissa = LoraOptions { start: Start::Pissa, ..on(&["q_proj", "v_proj"], 4, 8.0) };
    refused(&pissa, &folder("plain").join("start"), "is saved with twice its rank");
}

/// What a pattern does not fit is a mistake.
#[test]
fn patterns_that_fit_nothing_are_refused() {
    let model = Fixture::read("llama_biases").model(DType::F32, Some(on(&["q_proj"], 2, 4.0)));
    let refused = |options: LoraOptions, says: &str| {
        let error = options.of_model(&model.config).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(on(&["q_projection"], 2, 4.0), "no layer of the model is called `q_projection`: it has `down_proj`");
    refused(on(&["embed_tokens"], 2, 4.0), "the embedding table is no linear layer");
    refused(on(&["*.q_proj"], 2, 4.0), "for any text, write `.*`");
    let with = |change: fn(&mut Layers)| {
        let mut options = on(&["q_proj"], 2, 4.0);
        change(&mut options.targets.layers);
        options
    };
    refused(with(|l| l.rank_pattern = vec![("k_proj".into(), 4)]), "model.rank_pattern: `k_proj` fits no layer");
    refused(with(|l| l.rank_pattern = vec![("q_proj".into(), 0)]), "the rank of `q_proj` is 0");
    refused(with(|l| l.alpha_pattern = vec![("(".into(), 4.0)]), "model.alpha_pattern holds `(`");
    refused(with(|l| l.layers_to_transform = vec![7]), "names the block 7, and the model has the blocks 0 to 1");
}

/// An adapter of other ranks is not gone on from, and the message says what to set.
#[test]
fn an_adapter_of_another_kind_is_refused() {
    let fixture = Fixture::read("llama_biases");
    let refused = |case: &str, options: LoraOptions, says: &str| {
        let model = fixture.model(DType::F32, Some(options.clone()));
        let error = options.load_into(&model, &folder(case).join("start")).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused("plain", on(&["q_proj", "v_proj"], 2, 8.0), "set model.lora_rank=4 and model.lora_alpha=8");
    refused(
        "patterns",
        on(&["q_proj", "o_proj", "down_proj"], 2, 4.0),
        "`model.layers.0.self_attn.o_proj` is of rank 2 and scale 6",
    );
    refused("dora", on(&["all-linear"], 2, 4.0), "is a DoRA adapter, and this run's are not: set model.use_dora=true");
    refused("rslora", on(&ATTENTION, 4, 4.0), "set model.lora_rank=4 and model.lora_alpha=8");
}
