//! What recipes take that have more than a model and its loss.

use serde_json::json;

use super::{Table, random_model};

/// Both answers of each pair, and the reference model: this one without its adapters, another one beside it, and one that is
/// asked before.
#[test]
fn preference_optimization_takes_what_was_planned() {
    let mut table = Table::default();
    for (what, extra) in [
        ("adapters", &[][..]),
        ("adapters, checkpointing", &["enable_activation_checkpointing=true"]),
        ("adapters, rows of tokens", &["model.trainable_tokens=[<|im_start|>, <|im_end|>]", "dtype=bf16"]),
        ("all weights, a second model", &["~model"]),
        ("all weights, precomputed", &["~model", "reference=precomputed"]),
        ("all weights, bf16", &["~model", "dtype=bf16"]),
        ("adapters, no reference", &["loss=simpo"]),
    ] {
        let mut args =
            vec!["--config", "configs/dpo/tiny.yaml", "epochs=1", "max_steps_per_epoch=4", "log_every_n_steps=1"];
        args.extend(extra);
        table.compare(what, "dpo", &args);
    }
    table.check();
}

/// Besides the answers, the model and its reference see the answers to each other's prompts.
#[test]
fn answers_with_labels_take_what_was_planned() {
    let mut table = Table::default();
    for (what, extra) in [
        ("adapters", &[][..]),
        ("adapters, without validation", &["~dataset_val"]),
        ("all weights, precomputed", &["~model", "reference=precomputed"]),
    ] {
        let mut args =
            vec!["--config", "configs/kto/tiny.yaml", "epochs=1", "max_steps_per_epoch=4", "log_every_n_steps=1"];
        args.extend(extra);
        table.compare(what, "kto", &args);
    }
    table.check();
}

/// A head of a few scores in place of an output layer, and no logits.
#[test]
fn a_head_that_scores_takes_what_was_planned() {
    let mut table = Table::default();
    for (what, config, extra) in [
        ("pairs, adapters", "tiny", &[][..]),
        ("pairs, adapters, checkpointing", "tiny", &["enable_activation_checkpointing=true"]),
        ("pairs, all weights, bf16", "tiny", &["~model", "dtype=bf16"]),
        ("classes, all weights", "tiny_classifier", &[]),
    ] {
        let config = format!("configs/reward/{config}.yaml");
        let mut args = vec!["--config", &config, "epochs=1", "max_steps_per_epoch=4", "log_every_n_steps=1"];
        args.extend(extra);
        table.compare(what, "reward", &args);
    }
    table.check();
}

/// The keys and values of all answers of a micro-batch, and answers that are as long as they may be.
#[test]
fn reinforcement_learning_takes_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    // Random weights seldom end an answer, so most are as long as was planned.
    let dir = folder.path().join("random");
    random_model::write(&dir, &json!({"model_type": "llama"}));
    let checkpoint = format!("checkpointer.checkpoint_dir={}", dir.display());
    let mut table = Table::default();
    for (what, extra) in [
        ("adapters", &[][..]),
        ("all weights, a reference", &["~model", "kl_beta=0.1"]),
        ("all weights, bf16", &["~model", "dtype=bf16", "updates=2"]),
    ] {
        let mut args = vec!["--config", "configs/grpo/tiny.yaml", &checkpoint, "epochs=1", "max_steps_per_epoch=2"];
        args.extend(["log_every_n_steps=1", "~dataset_val", "batch_size=8", "samples=4"]);
        args.extend(extra);
        table.compare(what, "grpo", &args);
    }
    table.check();
}

/// A value model beside the model, with gradients and state of its own, and a model that was there before.
#[test]
fn a_value_model_takes_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("random");
    random_model::write(&dir, &json!({"model_type": "llama"}));
    let checkpoint = format!("checkpointer.checkpoint_dir={}", dir.display());
    let mut table = Table::default();
    for (what, extra) in [
        ("adapters", &[][..]),
        ("adapters, a reference, checkpointing", &["kl_coeff=0.1", "enable_activation_checkpointing=true"]),
        ("all weights, bf16", &["~model", "dtype=bf16", "kl_coeff=0.1"]),
    ] {
        let mut args = vec!["--config", "configs/ppo/tiny.yaml", &checkpoint, "epochs=1", "max_steps_per_epoch=2"];
        args.extend(["log_every_n_steps=1", "~dataset_val"]);
        args.extend(["ppo_epochs=1", "batch_size=4", "samples=4"]);
        args.extend(extra);
        table.compare(what, "ppo", &args);
    }
    table.check();
}

/// Both models, and the logits of both.
#[test]
fn distillation_takes_what_was_planned() {
    let mut table = Table::default();
    for (what, extra) in [
        ("adapters", &[][..]),
        ("adapters, checkpointing", &["enable_activation_checkpointing=true"]),
        ("all weights", &["~model"]),
        ("all weights, bf16", &["~model", "dtype=bf16"]),
    ] {
        let mut args = vec!["--config", "configs/distill/tiny.yaml", "epochs=1", "max_steps_per_epoch=4"];
        args.extend(["log_every_n_steps=1", "teacher_checkpointer.checkpoint_dir=recipes/tiny/model"]);
        args.extend(extra);
        table.compare(what, "distill", &args);
    }
    // Random weights seldom end an answer, so most are as long as was planned.
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("random");
    random_model::write(&dir, &json!({"model_type": "llama"}));
    let models = ["checkpointer", "teacher_checkpointer"].map(|key| format!("{key}.checkpoint_dir={}", dir.display()));
    for (what, extra) in [
        ("own answers", &["on_policy={share: 1, max_new_tokens: 24}"][..]),
        ("own answers to some", &["~model", "on_policy={max_new_tokens: 64}"]),
    ] {
        let mut args = vec!["--config", "configs/distill/tiny.yaml", "epochs=1", "max_steps_per_epoch=2"];
        args.extend(["log_every_n_steps=1", "batch_size=8", "~dataset_val", &models[0], &models[1]]);
        args.extend(extra);
        table.compare(what, "distill", &args);
    }
    // Asked before the first step, and then not there.
    let said = tempfile::tempdir().unwrap();
    let path = format!("teacher_logits.path={}", said.path().join("said").display());
    let teacher = "teacher_checkpointer.checkpoint_dir=recipes/tiny/model";
    for (what, teacher) in [("a teacher that is asked once", teacher), ("what it said", "~teacher_checkpointer")] {
        let mut args = vec!["--config", "configs/distill/tiny.yaml", "epochs=1", "max_steps_per_epoch=4"];
        args.extend(["log_every_n_steps=1", "~model", teacher, &path]);
        table.compare(what, "distill", &args);
    }
    table.check();
}

/// Weights that are rounded, and inputs.
#[test]
fn fake_quantization_takes_what_was_planned() {
    let mut table = Table::default();
    for (what, extra) in [
        ("all weights, a file", &[][..]),
        ("all weights, a file, bf16", &["dtype=bf16", "enable_activation_checkpointing=true"]),
        ("all weights, 8 and 4 bits", &["quantizer={_component_: int8_dyn_act_int4_weight, groupsize: 64}"]),
        ("adapters, 4 bits", &["quantizer={_component_: int4_weight_only, groupsize: 32}", "model.lora_rank=8"]),
    ] {
        let mut args = vec!["--config", "configs/qat/tiny.yaml", "epochs=1", "max_steps_per_epoch=4"];
        args.push("log_every_n_steps=1");
        args.extend(extra);
        table.compare(what, "qat", &args);
    }
    table.check();
}
