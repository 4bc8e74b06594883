//! What recipes minimize besides the loss of the next token, and how their weights are made and rounded.

use super::learnt::{losses, worst};
use super::recipes::{dpo, kto, lora, pretrain, qat, reward};
use super::{compare, kept, succeed};

/// Fresh weights are drawn as a whole, of which each process keeps its rows.
#[test]
fn a_model_is_made_by_two_processes_as_by_one() {
    let overrides = ["epochs=1", "max_steps_per_epoch=5"];
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let expected = succeed::<pretrain::Pretrain>("pretrain", &one, 1, &overrides);
    let saved = succeed::<pretrain::Pretrain>("pretrain", &two, 2, &overrides);
    compare("pretrain", (&two, &saved), (&one, &expected), "model.safetensors");
}

#[test]
fn lora_on_two_processes_with_dropout_questions_and_a_merged_model() {
    let overrides = [
        "epochs=1",
        "max_steps_per_epoch=5",
        "model.lora_dropout=0.1",
        "enable_activation_checkpointing=true",
        "save_adapter_weights_only=false",
    ];
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let expected = succeed::<lora::LoraFinetune>("lora", &one, 1, &overrides);
    let saved = succeed::<lora::LoraFinetune>("lora", &two, 2, &overrides);
    compare("lora", (&two, &saved), (&one, &expected), "adapter_model.safetensors");
    compare("merged", (&two, &saved), (&one, &expected), "merged/model.safetensors");
}

/// Losses, rewards and log-probabilities of preferences: with the model without its adapters as reference, with another one beside
/// it, and with one that was asked before; and losses that see several pairs, or none to compare with.
#[test]
fn preferences_are_learnt_as_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    for (what, processes, weights, more) in [
        ("adapters", 4, "adapter_model.safetensors", &["model.lora_dropout=0.1"][..]),
        ("precomputed", 3, "adapter_model.safetensors", &["reference=precomputed", "gradient_accumulation_steps=1"]),
        ("kto", 2, "adapter_model.safetensors", &["loss=kto"]),
        ("simpo", 2, "adapter_model.safetensors", &["loss=simpo", "save_adapter_weights_only=false"]),
        ("a second model", 2, "model.safetensors", &["~model", "optimizer.lr=1e-4"]),
        ("all weights, precomputed", 2, "model.safetensors", &["~model", "reference=precomputed", "optimizer.lr=1e-4"]),
    ] {
        let run = |processes: usize| {
            let output = folder.path().join(format!("{what} {processes}"));
            let mut overrides = vec!["epochs=1", "max_steps_per_epoch=3", "lr_scheduler.num_warmup_steps=1"];
            overrides.extend(more);
            // A step of three processes with one micro-batch each.
            if what == "precomputed" && processes == 1 {
                overrides.push("gradient_accumulation_steps=3");
            }
            let saved = succeed::<dpo::PreferenceOptimization>("dpo", &output, processes, &overrides);
            (output, saved)
        };
        let ((one, expected), (output, saved)) = (run(1), run(processes));
        compare(what, (&output, &saved), (&one, &expected), weights);
        for key in ["rewards/accuracies", "val_rewards/accuracies"] {
            assert_eq!(kept(&output, key), kept(&one, key), "{what}: {key}");
        }
        for key in ["log_probs/chosen", "log_probs/rejected", "val_log_probs/chosen"] {
            let (ours, theirs) = (kept(&output, key), kept(&one, key));
            assert!(!ours.is_empty() && worst(&ours, &theirs) < 1e-5, "{what}: {key}");
        }
        assert!(*losses(&output).last().unwrap() > 0.0);
    }
}

/// How far the model has moved is one number for all processes, and the answers that tell it are those of the same micro-batches.
#[test]
fn labels_are_learnt_from_as_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    for (what, processes, weights, more) in [
        ("adapters", 4, "adapter_model.safetensors", &["model.lora_dropout=0.1", "loss.undesirable_weight=0.2"][..]),
        ("all weights, precomputed", 2, "model.safetensors", &["~model", "reference=precomputed", "optimizer.lr=1e-4"]),
        ("apo_zero_unpaired", 2, "adapter_model.safetensors", &["loss=apo_zero_unpaired"]),
    ] {
        let run = |processes: usize| {
            let output = folder.path().join(format!("{what} {processes}"));
            let mut overrides = vec!["epochs=1", "max_steps_per_epoch=3", "lr_scheduler.num_warmup_steps=1"];
            overrides.extend(more);
            let saved = succeed::<kto::LabelOptimization>("kto", &output, processes, &overrides);
            (output, saved)
        };
        let ((one, expected), (output, saved)) = (run(1), run(processes));
        compare(what, (&output, &saved), (&one, &expected), weights);
        for key in ["log_probs/chosen", "log_probs/rejected", "val_log_probs/chosen"] {
            let (ours, theirs) = (kept(&output, key), kept(&one, key));
            assert!(!ours.is_empty() && worst(&ours, &theirs) < 1e-5, "{what}: {key}");
        }
    }
}

/// A head for pairs has one row, which one process has alone; that of classes has a row for each.
#[test]
fn scores_are_learnt_as_by_one_process() {
    const CLASSES: &[&str] = &[
        "~loss",
        "labels=[plain, secret]",
        "dataset={_component_: labelled, data_files: [recipes/tiny/data/labelled.jsonl], split: 'train[:90%]'}",
        "dataset_val={_component_: labelled, data_files: [recipes/tiny/data/labelled.jsonl], split: 'train[90%:]'}",
    ];
    const WHOLE: &[&str] = &["~model"];
    let folder = tempfile::tempdir().unwrap();
    let shared = ["epochs=1", "max_steps_per_epoch=3", "run_val_every_n_steps=2"];
    for (what, more, weights) in [
        ("pairs", &[][..], "adapter_model.safetensors"),
        ("pairs, all weights", WHOLE, "model.safetensors"),
        ("classes", &[WHOLE, CLASSES].concat(), "model.safetensors"),
    ] {
        let run = |processes: usize, layout: &[&str]| {
            let output = folder.path().join(format!("{what} {processes} {}", layout.len()));
            let overrides = [&shared, more, layout].concat();
            let saved = succeed::<reward::RewardModeling>("reward", &output, processes, &overrides);
            (output, saved)
        };
        let (one, expected) = run(1, &[]);
        for (processes, layout) in [(2, &[][..]), (4, &["data_parallel_replicate_dim=2"])] {
            let (output, saved) = run(processes, layout);
            compare(&format!("{what} on {processes}"), (&output, &saved), (&one, &expected), weights);
        }
    }
}

/// Rounded are whole weights, behind the gathering.
#[test]
fn rounded_weights_are_learnt_as_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let shared = ["epochs=1", "max_steps_per_epoch=3"];
    let groups = ["quantizer=int4_weight_only", "quantizer.groupsize=32"];
    let tokens = ["quantizer=int8_dyn_act_int4_weight", "quantizer.groupsize=32"];
    let lora = ["model.lora_attn_modules=[q_proj, v_proj]", "model.lora_rank=8", "model.lora_alpha=16"];
    for (what, more, weights) in [
        ("gguf", &[][..], "model.safetensors"),
        ("groups", &groups, "model.safetensors"),
        ("tokens", &tokens, "model.safetensors"),
        ("adapters", &lora, "adapter_model.safetensors"),
    ] {
        let run = |processes: usize| {
            let output = folder.path().join(format!("{what} {processes}"));
            let overrides = [&shared, more].concat();
            let saved = succeed::<qat::QuantizationAware>("qat", &output, processes, &overrides);
            (output, saved)
        };
        let ((one, expected), (output, saved)) = (run(1), run(2));
        match what {
            // The last bit of a group's largest weight decides where that is rounded to: with the first step's gradients its results part.
            "tokens" => {
                let (ours, theirs) = (losses(&output), losses(&one));
                println!("{what}: losses {ours:?} and {theirs:?}");
                assert!(worst(&ours[..2], &theirs[..2]) <= 1e-5 && worst(&ours, &theirs) <= 1e-2);
            }
            _ => compare(what, (&output, &saved), (&one, &expected), weights),
        }
    }
}
