//! What recipes take that have more than a model and its loss.

use std::path::PathBuf;

use serde_json::json;

use super::{Table, random_model};

/// Compares runs of so many `steps` by `configs/CONFIG.yaml`, whose folder has the recipe's name: each with what is `always` said and
/// with overrides of its own, by what they mean.
fn compare(table: &mut Table, config: &str, steps: usize, always: &[&str], cases: &[(&str, &[&str])]) {
    let (recipe, _) = config.split_once('/').unwrap();
    let (file, steps) = (format!("configs/{config}.yaml"), format!("max_steps_per_epoch={steps}"));
    for (what, overrides) in cases {
        let first = ["--config", &file, "epochs=1", &steps, "log_every_n_steps=1"];
        table.compare(what, recipe, &[&first, always, overrides].concat());
    }
}

/// A model whose weights are random: it seldom ends an answer, so most are as long as was planned.
struct RandomModel {
    _folder: tempfile::TempDir,
    dir: PathBuf,
}

impl RandomModel {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("random");
        random_model::write(&dir, &json!({"model_type": "llama"}));
        Self { _folder: folder, dir }
    }

    /// The override that makes a checkpointer read it.
    fn as_checkpoint(&self, checkpointer: &str) -> String {
        format!("{checkpointer}.checkpoint_dir={}", self.dir.display())
    }
}

/// Both answers of each pair, and the reference model: this one without its adapters, another one beside it, and one that is
/// asked before.
#[test]
fn preference_optimization_takes_what_was_planned() {
    let mut table = Table::default();
    let cases: &[(&str, &[&str])] = &[
        ("adapters", &[]),
        ("adapters, checkpointing", &["enable_activation_checkpointing=true"]),
        ("adapters, rows of tokens", &["model.trainable_tokens=[<|im_start|>, <|im_end|>]", "dtype=bf16"]),
        ("all weights, a second model", &["~model"]),
        ("all weights, precomputed", &["~model", "reference=precomputed"]),
        ("all weights, bf16", &["~model", "dtype=bf16"]),
        ("adapters, no reference", &["loss=simpo"]),
    ];
    compare(&mut table, "dpo/tiny", 4, &[], cases);
    table.check();
}

/// Besides the answers, the model and its reference see the answers to each other's prompts.
#[test]
fn answers_with_labels_take_what_was_planned() {
    let mut table = Table::default();
    let cases: &[(&str, &[&str])] = &[
        ("adapters", &[]),
        ("adapters, without validation", &["~dataset_val"]),
        ("all weights, precomputed", &["~model", "reference=precomputed"]),
    ];
    compare(&mut table, "kto/tiny", 4, &[], cases);
    table.check();
}

/// A head of a few scores in place of an output layer, and no logits.
#[test]
fn a_head_that_scores_takes_what_was_planned() {
    let mut table = Table::default();
    let pairs: &[(&str, &[&str])] = &[
        ("pairs, adapters", &[]),
        ("pairs, adapters, checkpointing", &["enable_activation_checkpointing=true"]),
        ("pairs, all weights, bf16", &["~model", "dtype=bf16"]),
    ];
    compare(&mut table, "reward/tiny", 4, &[], pairs);
    compare(&mut table, "reward/tiny_classifier", 4, &[], &[("classes, all weights", &[])]);
    table.check();
}

/// The keys and values of all answers of a micro-batch, and answers that are as long as they may be.
#[test]
fn reinforcement_learning_takes_what_was_planned() {
    let random = RandomModel::new();
    let mut table = Table::default();
    let checkpoint = random.as_checkpoint("checkpointer");
    let always = [&*checkpoint, "~dataset_val", "batch_size=8", "samples=4"];
    let cases: &[(&str, &[&str])] = &[
        ("adapters", &[]),
        ("all weights, a reference", &["~model", "kl_beta=0.1"]),
        ("all weights, bf16", &["~model", "dtype=bf16", "updates=2"]),
    ];
    compare(&mut table, "grpo/tiny", 2, &always, cases);
    table.check();
}

/// A value model beside the model, with gradients and state of its own, and a model that was there before.
#[test]
fn a_value_model_takes_what_was_planned() {
    let random = RandomModel::new();
    let mut table = Table::default();
    let checkpoint = random.as_checkpoint("checkpointer");
    let always = [&*checkpoint, "~dataset_val", "ppo_epochs=1", "batch_size=4", "samples=4"];
    let cases: &[(&str, &[&str])] = &[
        ("adapters", &[]),
        ("adapters, a reference, checkpointing", &["kl_coeff=0.1", "enable_activation_checkpointing=true"]),
        ("all weights, bf16", &["~model", "dtype=bf16", "kl_coeff=0.1"]),
    ];
    compare(&mut table, "ppo/tiny", 2, &always, cases);
    table.check();
}

/// Both models, and the logits of both.
#[test]
fn distillation_takes_what_was_planned() {
    let mut table = Table::default();
    let teacher = "teacher_checkpointer.checkpoint_dir=recipes/tiny/model";
    let cases: &[(&str, &[&str])] = &[
        ("adapters", &[]),
        ("adapters, checkpointing", &["enable_activation_checkpointing=true"]),
        ("all weights", &["~model"]),
        ("all weights, bf16", &["~model", "dtype=bf16"]),
    ];
    compare(&mut table, "distill/tiny", 4, &[teacher], cases);
    // Answers of the student's own.
    let random = RandomModel::new();
    let [student, of_teacher] = ["checkpointer", "teacher_checkpointer"].map(|key| random.as_checkpoint(key));
    let always = ["batch_size=8", "~dataset_val", &student, &of_teacher];
    let cases: &[(&str, &[&str])] = &[
        ("own answers", &["on_policy={share: 1, max_new_tokens: 24}"]),
        ("own answers to some", &["~model", "on_policy={max_new_tokens: 64}"]),
    ];
    compare(&mut table, "distill/tiny", 2, &always, cases);
    // Asked before the first step, and then not there.
    let said = tempfile::tempdir().unwrap();
    let path = format!("teacher_logits.path={}", said.path().join("said").display());
    let cases: &[(&str, &[&str])] =
        &[("a teacher that is asked once", &[teacher]), ("what it said", &["~teacher_checkpointer"])];
    compare(&mut table, "distill/tiny", 4, &["~model", &path], cases);
    table.check();
}

/// Weights that are rounded, and inputs.
#[test]
fn fake_quantization_takes_what_was_planned() {
    let mut table = Table::default();
    let cases: &[(&str, &[&str])] = &[
        ("all weights, a file", &[]),
        ("all weights, a file, bf16", &["dtype=bf16", "enable_activation_checkpointing=true"]),
        ("all weights, 8 and 4 bits", &["quantizer={_component_: int8_dyn_act_int4_weight, groupsize: 64}"]),
        ("adapters, 4 bits", &["quantizer={_component_: int4_weight_only, groupsize: 32}", "model.lora_rank=8"]),
    ];
    compare(&mut table, "qat/tiny", 4, &[], cases);
    table.check();
}
