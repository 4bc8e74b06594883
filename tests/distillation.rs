//! The recipe `distill` as a user runs it: what a student learns, from which teacher, and what a mistake is told.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use candle_core::DType;
use runs::{fail, files, log, newest, numbers, root, run, succeed, text};
use serde_json::Value;
use tempfile::TempDir;
use tune_core::checkpoint::{Checkpoint, hf};
use tune_core::device::Compute;
use tune_core::models::{Decoder, LoadOptions, ModelSpec, RandomWeights};

const CONFIG: &str = "configs/distill/tiny.yaml";

/// A teacher that knows the code somewhat: the run of `full` that the config names, ended early.
static TEACHER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    succeed("full", &["--config", "configs/full/tiny.yaml", &output, "max_steps_per_epoch=30"]);
    folder
});

fn teacher() -> String {
    format!("teacher_checkpointer.checkpoint_dir={}", TEACHER.path().display())
}

/// Runs the tiny config for a few steps, each logged, into a folder of that name.
fn short(folder: &Path, name: &str, extra: &[&str]) -> Vec<Value> {
    let dir = folder.join(name);
    let (output, teacher) = (format!("output_dir={}", dir.display()), teacher());
    let mut args = vec!["--config", CONFIG, &output, &teacher, "epochs=1", "max_steps_per_epoch=4"];
    args.extend(["~dataset_val", "log_every_n_steps=1", "lr_scheduler.num_warmup_steps=1"]);
    args.extend(extra);
    succeed("distill", &args);
    log(&dir)
}

/// A copy of the tiny model's folder.
fn copy_of_tiny(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for (name, bytes) in files(&root().join("recipes/tiny/model")) {
        fs::write(folder.join(name), bytes).unwrap();
    }
}

/// A model with other sizes than the tiny one's, random weights and the same tokenizer.
fn model_of(folder: &Path, sizes: &[(&str, u64)]) -> String {
    let tiny = Checkpoint::open(root().join("recipes/tiny/model")).unwrap();
    let mut config = tiny.config().clone();
    sizes.iter().for_each(|(key, size)| config[*key] = (*size).into());
    let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: true, lora: None };
    let weights = RandomWeights { seed: 1, std: 0.02 };
    let model = Decoder::load(ModelSpec::from_json(&config).unwrap(), &weights, &options).unwrap();
    let files = tiny.tokenizer_files().unwrap();
    let weights = model.merged_weights().unwrap().0;
    hf::write(folder, &config, weights, &files, tiny.generation_config().as_ref(), u64::MAX).unwrap();
    folder.display().to_string()
}

#[test]
fn every_divergence_brings_the_student_nearer() {
    let folder = tempfile::tempdir().unwrap();
    // The last is at most ln 2, and flat where the two are far apart.
    for (kd_loss, at_most) in
        [("forward_kl", 0.9), ("reverse_kl", 0.9), ("symmetric_kl", 0.9), ("generalized_jsd", 0.97)]
    {
        let chosen = format!("kd_loss={kd_loss}");
        let records = short(folder.path(), kd_loss, &[&chosen, "kd_ratio=1.0"]);
        let [loss, divergence, cross_entropy] = ["loss", "kd_loss", "class_loss"].map(|key| numbers(&records, key));
        // What is minimized is the divergence alone.
        assert_eq!(loss, divergence, "{kd_loss}");
        assert_eq!((loss.len(), cross_entropy.len()), (4, 4), "{kd_loss}");
        assert!(loss[0] > 0.01 && loss[3] < at_most * loss[0], "{kd_loss}: {loss:?}");
        assert!(numbers(&records, "grad_norm").iter().all(|&norm| norm > 0.0), "{kd_loss}");
    }
    // The halves of a symmetric divergence are the other two.
    let first = |name: &str, extra: &[&str]| numbers(&short(folder.path(), name, extra), "kd_loss")[0];
    let [forward, reverse] = ["forward_kl", "reverse_kl"].map(|kd_loss| {
        let chosen = format!("kd_loss={kd_loss}");
        first("one", &[&chosen])
    });
    let both = first("both", &["kd_loss=symmetric_kl", "kd_loss.sym_kd_ratio=0.25"]);
    assert!((both - (0.25 * forward + 0.75 * reverse)).abs() < 1e-5, "{both}: {forward} and {reverse}");
    // The ends of the generalized divergence are the same two, and what is colder is further apart.
    let ends = [0, 1].map(|beta| first("end", &["kd_loss=generalized_jsd", &format!("kd_loss.beta={beta}")]));
    assert!((ends[0] - forward).abs() < 1e-5 && (ends[1] - reverse).abs() < 1e-5, "{ends:?}: {forward} and {reverse}");
    assert!(first("warm", &["kd_temperature=4"]) < forward);
    // What is minimized is a mixture.
    let records = short(folder.path(), "mixed", &["kd_ratio=0.25"]);
    let [loss, divergence, cross_entropy] = ["loss", "kd_loss", "class_loss"].map(|key| numbers(&records, key));
    for i in 0..4 {
        assert!((loss[i] - (0.75 * cross_entropy[i] + 0.25 * divergence[i])).abs() < 1e-5);
    }
}

/// Without a share of the divergence, it is the run of `lora` or `full` on the same data.
#[test]
fn without_the_divergence_it_is_fine_tuning() {
    let folder = tempfile::tempdir().unwrap();
    let same = ["epochs=1", "max_steps_per_epoch=4", "log_every_n_steps=1", "lr_scheduler.num_warmup_steps=1"];
    let data = ["dataset.split=train[:25%]", "optimizer.lr=1e-3"];
    for (recipe, extra) in [("lora", "~exact_match"), ("full", "clip_grad_norm=1.0")] {
        let dir = folder.path().join(recipe);
        let (config, output) = (format!("configs/{recipe}/tiny.yaml"), format!("output_dir={}", dir.display()));
        succeed(recipe, &[&["--config", &config, &output, extra][..], &same, &data].concat());
        let of_student = if recipe == "lora" { "kd_ratio=0.0" } else { "~model" };
        let name = format!("distill_{recipe}");
        let distilled = short(folder.path(), &name, &[&[of_student, "kd_ratio=0.0"][..], &data].concat());
        for (a, b) in numbers(&log(&dir), "loss").iter().zip(numbers(&distilled, "class_loss")) {
            assert!((a - b).abs() < 1e-4 * a, "{recipe}: {a} and {b}");
        }
    }
}

#[test]
fn a_step_is_a_mean_over_all_its_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let whole = short(folder.path(), "whole", &[]);
    let parts = short(folder.path(), "parts", &["batch_size=4", "gradient_accumulation_steps=4"]);
    let checkpointed = short(folder.path(), "checkpointed", &["enable_activation_checkpointing=true"]);
    for key in ["loss", "kd_loss", "grad_norm"] {
        assert_eq!(numbers(&whole, key), numbers(&checkpointed, key), "{key}");
        for (a, b) in numbers(&whole, key).iter().zip(&numbers(&parts, key)) {
            assert!((a - b).abs() < 1e-4 * a, "{key}: {a} {b}");
        }
    }
    assert_eq!(numbers(&whole, "loss").len(), 4);
}

/// A smaller student with random weights, all of which are trained; the teacher is the tiny model.
#[test]
fn a_student_may_be_of_another_size() {
    let folder = tempfile::tempdir().unwrap();
    let small = [("hidden_size", 64), ("intermediate_size", 128), ("num_hidden_layers", 2), ("head_dim", 16)];
    let student = format!("checkpointer.checkpoint_dir={}", model_of(&folder.path().join("small"), &small));
    let records = short(folder.path(), "out", &[&student, "~model", "kd_ratio=1.0", "dtype=bf16"]);
    let divergence = numbers(&records, "kd_loss");
    assert!(divergence[3] < divergence[0], "{divergence:?}");
    assert!(newest(&folder.path().join("out")).join("model.safetensors").is_file());
}

/// An adapter that teaches is computed beside its base; merged into it, it teaches the same.
#[test]
fn an_adapter_teaches_as_it_does_merged() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = folder.path().join("adapter");
    let output = format!("output_dir={}", adapter.display());
    succeed(
        "lora",
        &[
            "--config",
            "configs/lora/tiny.yaml",
            &output,
            "~exact_match",
            "epochs=1",
            "max_steps_per_epoch=12",
            "save_adapter_weights_only=false",
        ],
    );
    let merged = format!("teacher_checkpointer.checkpoint_dir={}", newest(&adapter).join("merged").display());
    let named = format!("teacher_checkpointer.adapter_checkpoint={}", adapter.display());
    let merged = short(folder.path(), "merged", &[&merged]);
    let base = "teacher_checkpointer.checkpoint_dir=recipes/tiny/model";
    let beside = short(folder.path(), "beside", &[base, &named]);
    assert!(numbers(&merged, "kd_loss")[0] > 0.1);
    for (a, b) in numbers(&merged, "kd_loss").iter().zip(&numbers(&beside, "kd_loss")) {
        assert!((a - b).abs() < 1e-3 * a, "{a} {b}");
    }
    // A teacher that is the student has nothing to say.
    let itself = short(folder.path(), "itself", &[base, "kd_ratio=0.0"]);
    assert!(numbers(&itself, "kd_loss")[0].abs() < 1e-5);
}

#[test]
fn a_run_does_not_go_on_with_another_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let (out, teacher) = (folder.path().join("out"), folder.path().join("teacher"));
    copy_of_tiny(&teacher);
    let keys =
        [format!("output_dir={}", out.display()), format!("teacher_checkpointer.checkpoint_dir={}", teacher.display())];
    let mut args = vec!["--config", CONFIG, &keys[0], &keys[1], "epochs=1", "max_steps_per_epoch=2", "overwrite=false"];
    args.extend(["~dataset_val", "lr_scheduler.num_warmup_steps=0"]);
    succeed("distill", &args);
    args.push("resume_from_checkpoint=true");
    succeed("distill", &args);
    let weights = teacher.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let error = fail("distill", &args);
    assert!(error.contains("cannot resume: the teacher changed since the run began"), "{error}");
    let check = run("distill", &[&["--check"], args.as_slice()].concat());
    assert!(text(&check.stdout).contains("the teacher changed"), "{}", text(&check.stdout));
}

#[test]
fn mistakes_are_told_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let (output, teacher) = (format!("output_dir={}", dir.display()), teacher());
    let said = |args: &[&str]| {
        let mut all = vec!["--config", CONFIG, &output, &teacher];
        all.extend(args);
        let checked = run("distill", &[&["--check"], all.as_slice()].concat());
        (fail("distill", &all), text(&checked.stdout) + &text(&checked.stderr))
    };
    let teacher_at = |path: &Path| format!("teacher_checkpointer.checkpoint_dir={}", path.display());
    let expect = |args: &[&str], expected: &str| {
        let (said, checked) = said(args);
        assert!(said.contains(expected), "{expected}: {said}");
        assert!(checked.contains(expected), "{expected}: {checked}");
    };
    expect(&["kd_loss=forward"], "did you mean `forward_kl`?");
    expect(&["kd_ratio=1.5"], "kd_ratio");
    expect(&["~teacher_checkpointer"], "teacher_checkpointer");
    expect(&["teacher_checkpointer.checkpoint_dir=nowhere"], "nowhere: does not exist");
    expect(&["~model", "loraplus_lr_ratio=4"], "loraplus_lr_ratio needs model.lora_rank");

    let stored = format!("teacher_logits.path={}", folder.path().join("said").display());
    expect(&[&stored, "kd_temperature=2"], "kd_temperature needs the teacher's logits of all tokens");

    let wider = folder.path().join("wider");
    model_of(&wider, &[("vocab_size", 392)]);
    expect(&[&teacher_at(&wider)], "the teacher has logits of 392 tokens and the student of 384");
    expect(&[&teacher_at(&wider)], "take a teacher of the student's own family");

    // As many tokens, of which two mean something else.
    let other = folder.path().join("other");
    copy_of_tiny(&other);
    let path = other.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
    vocab.insert("a".into(), b);
    vocab.insert("b".into(), a);
    fs::write(&path, tokenizer.to_string()).unwrap();
    expect(&[&teacher_at(&other)], "the teacher model has other tokens than the model that is trained");

    // An adapter for another base.
    let adapter = folder.path().join("adapter");
    let lora = format!("output_dir={}", adapter.display());
    let short = ["epochs=1", "max_steps_per_epoch=1", "lr_scheduler.num_warmup_steps=0"];
    succeed("lora", &[&["--config", "configs/lora/tiny.yaml", &lora, "~exact_match"][..], &short].concat());
    let narrow = folder.path().join("narrow");
    model_of(&narrow, &[("intermediate_size", 128)]);
    let named = format!("teacher_checkpointer.adapter_checkpoint={}", adapter.display());
    expect(&[&teacher_at(&narrow), &named], "it is for another base");
    assert!(!dir.exists());
}
