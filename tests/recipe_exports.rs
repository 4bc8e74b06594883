//! What the recipes wrote is read again, by us and by others, and computes the same logits.
//!
//! With EXPORTS_DIR set, everything is written there, for `tests/python/check_exports.py` to
//! load with transformers and peft.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use runs::{newest, root, succeed};
use tune_core::artifact::{Prompts, Target, proof};
use tune_core::checkpoint::Checkpoint;
use tune_core::checkpoint::gguf::{Export, FileKind};
use tune_core::checkpoint::merge::{Merged, Part};
use tune_core::data::{Batch, IGNORE, Loader, LoaderOptions, Sample, Span};
use tune_core::device::Compute;
use tune_core::models::{Decoder, LoadOptions, ModelSpec, WithHead};
use tune_core::peft::LoraOptions;
use tune_core::tokenizer::TokenizerConfig;

const LEN: usize = 40;

/// The logits of a model, with an adapter if there is one, on tokens of all kinds.
fn logits(model: &Path, adapter: Option<&Path>) -> (Tensor, Tensor) {
    let checkpoint = Checkpoint::open(model).unwrap();
    let config = ModelSpec::from_json(checkpoint.config()).unwrap();
    let lora = adapter.map(|dir| LoraOptions::of_folder(dir).unwrap());
    let options =
        LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: lora.clone() };
    let model = Decoder::load(config, &checkpoint, &options).unwrap();
    if let (Some(lora), Some(dir)) = (lora, adapter) {
        lora.load_into(&model, dir).unwrap();
    }
    of_model(&model)
}

fn of_model(model: &Decoder) -> (Tensor, Tensor) {
    let ids: Vec<u32> = (0..LEN).map(|i| (i * 7919 % model.config.vocab_size) as u32).collect();
    let wide: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let batch = Batch {
        rows: 1,
        len: LEN,
        input_ids: ids,
        targets: vec![IGNORE; LEN],
        positions: (0..LEN as u32).collect(),
        spans: vec![Span { row: 0, start: 0, len: LEN }],
        origins: vec!["made up".into()],
        labels: Vec::new(),
    };
    (Tensor::from_vec(wide, (1, LEN), &Device::Cpu).unwrap(), tune_core::engine::logits(model, &batch).unwrap())
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn write_expected(dir: &Path, (ids, logits): &(Tensor, Tensor)) {
    let tensors: HashMap<&str, Tensor> = [("input_ids", ids.clone()), ("logits", logits.clone())].into();
    candle_core::safetensors::save(&tensors, dir.join("expected.safetensors")).unwrap();
}

/// Runs a recipe for a few steps and moves its checkpoint to `to`.
fn train(recipe: &str, run: &Path, to: &Path, extra: &[&str]) {
    let (config, output) = (format!("configs/{recipe}/tiny.yaml"), format!("output_dir={}", run.display()));
    let mut args = vec!["--config", &config, &output, "epochs=1", "max_steps_per_epoch=12"];
    args.extend(extra);
    succeed(recipe, &args);
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::rename(newest(run), to).unwrap();
}

/// The logits of what a folder with an adapter makes of a base.
fn logits_of(base: &Path, adapter: &Path) -> (Tensor, Merged) {
    let parts = [Part { dir: adapter.to_owned(), weight: 1.0 }];
    let merged = Merged::open(Checkpoint::open(base).unwrap(), &parts).unwrap();
    let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: None };
    (of_model(&merged.trained(&options).unwrap()).1, merged)
}

/// Tokens that are added to the tokenizer: each is one token, has a row of its own in tables that are saved with the adapter, and is
/// there in the merged model and in a GGUF file; others' libraries read it.
#[test]
fn new_tokens_come_along() {
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let into = std::env::var_os("EXPORTS_DIR").map_or_else(|| temporary.path().join("exports"), PathBuf::from);
    let base = root().join("recipes/tiny/model");
    let lora = into.join("recipe_tokens");
    // The second is a token of the vocabulary already.
    let extra =
        ["save_adapter_weights_only=false", "~exact_match", "model.new_tokens=[zebra crossing, <|im_end|>, <tool>]"];
    let config = "output_dir=unused";
    let said = String::from_utf8(
        runs::run("lora", &[&["--config", "configs/lora/tiny.yaml", config, "--check"], &extra[..]].concat()).stdout,
    )
    .unwrap();
    assert!(said.contains("new tokens: `zebra crossing` (384), `<tool>` (385)"), "{said}");
    assert!(said.contains("get 2 rows, each the mean of the 384 there are"), "{said}");
    assert!(said.contains("the tokenizer has `<|im_end|>` (1) already"), "{said}");
    train("lora", &temporary.path().join("lora"), &lora.join("adapter"), &extra);

    let (adapted, merged) = logits_of(&base, &lora.join("adapter"));
    assert_eq!((merged.spec().vocab_size, merged.spec().tie_word_embeddings), (386, true));
    let tokenizer = merged.tokenizer();
    assert_eq!(tokenizer.encode("<tool>").unwrap(), [385]);
    let ids = tokenizer.encode("a zebra crossing!").unwrap();
    assert!(ids.contains(&384), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a zebra crossing!");
    let ours = of_model(
        &merged
            .trained(&LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: None })
            .unwrap(),
    );
    write_expected(&lora, &ours);

    let model = into.join("recipe_tokens_merged");
    std::fs::create_dir_all(&model).unwrap();
    std::fs::rename(lora.join("adapter/merged"), model.join("model")).unwrap();
    let checkpoint = Checkpoint::open(model.join("model")).unwrap();
    assert_eq!(checkpoint.config()["vocab_size"], 386);
    let of_merged = logits(&model.join("model"), None);
    assert!(difference(&of_merged.1, &adapted) < 1e-3, "merging changed the model");
    write_expected(&model, &of_merged);

    let file = temporary.path().join("tokens.gguf");
    let export = Export::new(&merged, FileKind::F32, "tokens").unwrap();
    export.write(&file).unwrap();
    let prompts = Prompts::held_out(tokenizer, 256).unwrap();
    let findings = proof::check(&file, &merged, &Target::Gguf(export), &prompts).unwrap();
    assert!(findings.faults.is_empty(), "{:#?}", findings.faults);
    let (of_file, _) = TokenizerConfig::default().open(&Checkpoint::open(&file).unwrap()).unwrap();
    assert_eq!(of_file.encode("a zebra crossing<tool>").unwrap(), tokenizer.encode("a zebra crossing<tool>").unwrap());

    for (tokens, says) in [("[a b, a b]", "`a b` is named twice"), ("['']", "a token is empty")] {
        let tokens = format!("model.new_tokens={tokens}");
        let error = runs::fail("lora", &["--config", "configs/lora/tiny.yaml", config, &tokens]);
        assert!(error.contains(says), "{error}");
    }
}

/// An adapter on an adapter: the second says what it stands on, comes with it wherever it is read, and not without it.
#[test]
fn an_adapter_stands_on_another() {
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let base = root().join("recipes/tiny/model");
    let (first, second) = (temporary.path().join("adapters/first"), temporary.path().join("adapters/second"));
    train("lora", &temporary.path().join("one"), &first, &["~exact_match", "model.new_tokens=<tool>"]);
    let on_first = format!("model.base_adapters={}", first.display());
    let extra = ["~exact_match", "save_adapter_weights_only=false", "model.modules_to_save=norm", "seed=2", &on_first];
    train("lora", &temporary.path().join("two"), &second, &extra);
    let of_second = |dir: &Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
    };
    assert_eq!(of_second(&second)["base_adapters"][0]["path"], first.display().to_string());

    let (both, merged) = logits_of(&base, &second);
    assert_eq!(merged.parts().map(|part| part.dir.clone()).collect::<Vec<_>>(), [first.clone(), second.clone()]);
    assert!(difference(&both, &logits_of(&base, &first).0) > 0.1, "the second changes nothing");
    // What the run merged itself.
    assert!(difference(&logits(&second.join("merged"), None).1, &both) < 1e-3);
    let part = |dir: &Path| Part { dir: dir.to_owned(), weight: 1.0 };
    let open = |parts: &[Part]| Merged::open(Checkpoint::open(&base).unwrap(), parts);
    assert_eq!(open(&[part(&first), part(&second)]).unwrap().parts().count(), 2);
    let error = open(&[part(&second), part(&first)]).unwrap_err().to_string();
    assert!(error.contains("is named behind an adapter that stands on it"), "{error}");

    // A run goes on from it on the same adapters alone.
    let going_on = format!("checkpointer.adapter_checkpoint={}", second.display());
    let args = ["--config", "configs/lora/tiny.yaml", "output_dir=unused", "~exact_match", &going_on];
    let error = runs::fail("lora", &args);
    assert!(error.contains("set model.base_adapters=["), "{error}");

    // Both moved together are found; other weights, and none, are not taken for it.
    let moved = temporary.path().join("moved");
    std::fs::rename(temporary.path().join("adapters"), &moved).unwrap();
    let (again, _) = logits_of(&base, &moved.join("second"));
    assert!(difference(&again, &both) == 0.0);
    std::fs::rename(moved.join("first/adapter_model.safetensors"), moved.join("kept")).unwrap();
    let error = open(&[part(&moved.join("second"))]).unwrap_err().to_string();
    assert!(error.contains("which is not there; without it, it computes something else"), "{error}");
    train("lora", &temporary.path().join("three"), &temporary.path().join("other"), &["~exact_match", "seed=3"]);
    std::fs::copy(
        temporary.path().join("other/adapter_model.safetensors"),
        moved.join("first/adapter_model.safetensors"),
    )
    .unwrap();
    let error = open(&[part(&moved.join("second"))]).unwrap_err().to_string();
    assert!(error.contains("has other weights: put the first one back"), "{error}");
}

#[test]
fn recipes_leave_what_others_can_read() {
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let into = std::env::var_os("EXPORTS_DIR").map_or_else(|| temporary.path().join("exports"), PathBuf::from);
    let base = root().join("recipes/tiny/model");
    let before = logits(&base, None).1;

    let full = into.join("recipe_full");
    train("full", &temporary.path().join("full"), &full.join("model"), &["checkpointer.max_shard_size=1MB"]);
    assert!(full.join("model/model.safetensors.index.json").is_file());
    let trained = logits(&full.join("model"), None);
    assert!(difference(&trained.1, &before) > 0.1, "training changed next to nothing");
    write_expected(&full, &trained);

    let lora = into.join("recipe_lora");
    let extra = ["save_adapter_weights_only=false", "~exact_match", "model.apply_lora_to_output=true"];
    train("lora", &temporary.path().join("lora"), &lora.join("adapter"), &extra);
    let adapted = logits(&base, Some(&lora.join("adapter")));
    assert!(difference(&adapted.1, &before) > 0.1, "training changed next to nothing");
    write_expected(&lora, &adapted);

    let merged = into.join("recipe_merged");
    std::fs::create_dir_all(&merged).unwrap();
    std::fs::rename(lora.join("adapter/merged"), merged.join("model")).unwrap();
    let ours = logits(&merged.join("model"), None);
    assert!(difference(&ours.1, &adapted.1) < 1e-3, "merging changed the model");
    write_expected(&merged, &ours);
    let config = Checkpoint::open(merged.join("model")).unwrap().config().clone();
    assert_eq!(config["tie_word_embeddings"], false, "an adapter on the tied output layer unties it");
}

/// What `reward` leaves behind, with the scores that are computed here: a reward model as an adapter and merged, and a classifier.
#[test]
fn scores_are_left_for_others() {
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let into = std::env::var_os("EXPORTS_DIR").map_or_else(|| temporary.path().join("exports"), PathBuf::from);
    let base = root().join("recipes/tiny/model");
    let write = |dir: &Path, model: &Decoder, pad: u32| {
        let (ids, scores) = scores_of(model, pad);
        let tensors: HashMap<&str, Tensor> = [("input_ids", ids), ("scores", scores.clone())].into();
        candle_core::safetensors::save(&tensors, dir.join("expected.safetensors")).unwrap();
        scores
    };
    let pad = |dir: &Path| Checkpoint::open(dir).unwrap().config()["pad_token_id"].as_u64().unwrap() as u32;
    let whole = |dir: &Path, scores: usize| {
        let checkpoint = Checkpoint::open(dir).unwrap();
        let spec = ModelSpec::from_json(checkpoint.config()).unwrap().with_scores(scores);
        let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: None };
        Decoder::load(spec, &checkpoint, &options).unwrap()
    };

    let reward = into.join("recipe_reward");
    let extra = ["save_adapter_weights_only=false", "~dataset_val"];
    train("reward", &temporary.path().join("reward"), &reward.join("adapter"), &extra);
    let merged = into.join("recipe_reward_merged");
    std::fs::create_dir_all(&merged).unwrap();
    std::fs::rename(reward.join("adapter/merged"), merged.join("model")).unwrap();
    let padding = pad(&merged.join("model"));
    let of_merged = write(&merged, &whole(&merged.join("model"), 1), padding);

    let checkpoint = Checkpoint::open(&base).unwrap();
    let spec = ModelSpec::from_json(checkpoint.config()).unwrap().with_scores(1);
    let lora = LoraOptions::of_folder(&reward.join("adapter")).unwrap();
    let options =
        LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: Some(lora.clone()) };
    let source = WithHead::new(&checkpoint, &spec, checkpoint.config(), 9).unwrap();
    let model = Decoder::load(spec, &source, &options).unwrap();
    lora.load_into(&model, &reward.join("adapter")).unwrap();
    let adapted = write(&reward, &model, padding);
    assert!(difference(&of_merged, &adapted) < 1e-3, "merging changed the model");

    let classifier = into.join("recipe_classifier");
    let classes = ["~model", "~loss", "~dataset_val", "labels=[plain, secret]", LABELLED];
    train("reward", &temporary.path().join("classifier"), &classifier.join("model"), &classes);
    write(&classifier, &whole(&classifier.join("model"), 2), padding);
}

/// Texts with labels.
const LABELLED: &str = "dataset={_component_: labelled, data_files: [recipes/tiny/data/labelled.jsonl]}";

/// Rows of tokens of all kinds, the second of which is filled up with padding, and their scores.
fn scores_of(model: &Decoder, pad: u32) -> (Tensor, Tensor) {
    let lens = [LEN, LEN / 2];
    let of_row = |len: usize| {
        (0..len)
            .map(move |i| (i * 7919 % model.config.vocab_size) as u32)
            .map(move |id| if id == pad { id + 1 } else { id })
    };
    let sample = |len: usize| {
        let input_ids: Vec<u32> = of_row(len).collect();
        Sample { targets: vec![IGNORE; len], input_ids, origin: "made up".into(), label: None }.scored(0, Some(pad))
    };
    let options = LoaderOptions { batch_size: 2, pad_id: pad, ..LoaderOptions::default() };
    let batch = Loader::new(lens.map(sample).to_vec(), options).unwrap().batch(0, 0).unwrap().unwrap();
    let wide: Vec<i64> = batch.input_ids.iter().map(|&id| i64::from(id)).collect();
    let scores: Vec<f32> = tune_core::engine::scores(model, &batch).unwrap().into_iter().map(|x| x as f32).collect();
    let width = scores.len() / lens.len();
    (
        Tensor::from_vec(wide, (lens.len(), LEN), &Device::Cpu).unwrap(),
        Tensor::from_vec(scores, (lens.len(), width), &Device::Cpu).unwrap(),
    )
}
