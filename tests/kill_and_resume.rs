//! A run that is killed at any moment and resumed ends with the same bits as one that was not.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/random_model.rs"]
mod random_model;
#[path = "common/runs.rs"]
mod runs;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use runs::{files, newest, recipe, root, succeed, text};
use serde_json::json;

/// Shuffling, packing, dropout, an accumulation of 4, and a checkpoint every other step, in a run that is
/// long enough to be killed `kills` times. `dpo` trains adapters, and all weights as `dpo_full`.
fn settings(recipe: &str, output_dir: &Path, kills: u32) -> Vec<String> {
    // A few kills come soon after a checkpoint each; of many, some wait until one is being written.
    let steps = if kills > 2 { 9 } else { 5 };
    let mut args = vec![
        "--config".to_string(),
        format!("configs/{}/tiny.yaml", binary(recipe)),
        format!("output_dir={}", output_dir.display()),
        "overwrite=false".into(),
        "shuffle=true".into(),
        "batch_size=1".into(),
        "gradient_accumulation_steps=4".into(),
        format!("epochs={}", kills + 2),
        format!("max_steps_per_epoch={steps}"),
        "checkpointer.save_every_n_steps=2".into(),
        "log_every_n_steps=1".into(),
    ];
    args.extend(
        match recipe {
            "lora" => vec!["dataset.packed=true", "model.lora_dropout=0.1", "neftune_noise_alpha=5", "~exact_match"],
            "lora_dora" => vec!["dtype=bf16", "model.use_dora=true", "loraplus_lr_ratio=4", "~exact_match"],
            "lora_pissa" => vec!["dtype=bf16", "model.init_lora_weights=pissa", "model.pissa_niter=2", "~exact_match"],
            "lora_tokens" => {
                vec!["model.new_tokens=[zebra]", "model.modules_to_save=norm", "dtype=bf16", "~exact_match"]
            }
            "lora_rows" => vec![
                "model.trainable_tokens=[<|im_start|>, <|im_end|>]",
                "model.trainable_token_indices=[5]",
                "dtype=bf16",
                "~exact_match",
            ],
            "lora_experts" => vec![
                "~model.lora_attn_modules",
                "~model.apply_lora_to_mlp",
                "model.target_modules=all-linear",
                "dtype=bf16",
                "~exact_match",
            ],
            "lora_mixed" => vec![MIXED, "val_set_size=0.1", "run_val_every_n_steps=3", "~exact_match"],
            "full" => vec!["dataset.packed=true", "neftune_noise_alpha=5"],
            "full_8bit" => vec!["dtype=bf16", "optimizer=adamw_8bit", "optimizer.lr=1e-4", "dataset.packed=true"],
            "full_background" => vec!["enable_async_checkpointing=true", "checkpointer.save_every_n_steps=1"],
            "full_lion" => vec!["dtype=bf16", "optimizer=lion", "optimizer.decay_vectors=false", "dataset.packed=true"],
            "full_adafactor" => vec!["dtype=bf16", "optimizer=adafactor", "optimizer.layerwise_lr_decay=0.9"],
            "full_muon" => vec!["dtype=bf16", "optimizer=muon", "optimizer.lr=1e-3"],
            "full_offloaded" => vec!["dtype=bf16", "dataset.packed=true", "enable_activation_checkpointing=true"],
            "full_schedule_offloaded" => vec!["dtype=bf16", "optimizer=schedule_free_adamw", "optimizer.r=1"],
            "full_8bit_offloaded" => vec!["dtype=bf16", "optimizer=adamw_8bit", "optimizer.lr=1e-4"],
            "full_schedule" => vec!["dtype=bf16", "optimizer=schedule_free_adamw", "optimizer.r=1"],
            "full_average" => vec!["dtype=bf16", "optimizer.ema_decay=0.8"],
            "lora_schedule" => vec!["optimizer=schedule_free_adamw", "loraplus_lr_ratio=4", "~exact_match"],
            "dpo_olora" => vec!["model.init_lora_weights=olora", "~dataset_val"],
            "dpo" => vec!["model.lora_dropout=0.1", "~dataset_val"],
            "kto_full" => {
                vec!["~model", "~dataset_val", "reference=precomputed", "batch_size=2", "loss.undesirable_weight=0.2"]
            }
            "kto" => vec![
                "model.lora_dropout=0.1",
                "batch_size=4",
                "gradient_accumulation_steps=2",
                "loss.undesirable_weight=0.2",
                "~dataset_val",
            ],
            "reward" => vec!["model.lora_dropout=0.1", "~dataset_val"],
            "reward_classifier" => {
                vec!["~model", "~loss", "labels=[plain, secret]", LABELLED, "dtype=bf16", "~dataset_val"]
            }
            "grpo" => vec!["samples=4", "max_new_tokens=12", "kl_beta=0.1", "updates=2", "~dataset_val"],
            "ppo" => {
                vec!["samples=2", "max_new_tokens=12", "kl_coeff=0.1", "ppo_batch_size=2", "~dataset_val"]
            }
            // Merged models and value models have pieces of the same names.
            "ppo_background" => vec![
                "enable_async_checkpointing=true",
                "checkpointer.save_every_n_steps=1",
                "samples=2",
                "max_new_tokens=8",
                "save_adapter_weights_only=false",
                "~dataset_val",
            ],
            "ppo_full" => vec!["~model", "dtype=bf16", "samples=2", "max_new_tokens=8", "kl_coeff=0.1", "~dataset_val"],
            "pretrain" => {
                vec!["dataset.attend_across=true", "dataset_val.attend_across=true", "dataset_val.split=train[95%:]"]
            }
            "pretrain_bf16" => vec!["dtype=bf16", "init.std=0.05"],
            // The third step is the first that rounds: in one process and after a kill.
            "qat" => vec!["dtype=bf16", "fake_quant_after_n_steps=2", "dataset.packed=true"],
            "qat_lora" => vec![
                "quantizer={_component_: int8_dyn_act_int4_weight, groupsize: 64}",
                "fake_quant_after_n_steps=5",
                "model.lora_rank=4",
                "model.lora_dropout=0.1",
            ],
            "distill" => {
                vec!["teacher_checkpointer.checkpoint_dir=recipes/tiny/model", "dataset.packed=true", "~dataset_val"]
            }
            "distill_own" => vec![
                "teacher_checkpointer.checkpoint_dir=recipes/tiny/model",
                "on_policy={share: 0.6, max_new_tokens: 10}",
                "model.lora_dropout=0.1",
                "~dataset_val",
            ],
            "distill_stored" => vec![
                "teacher_checkpointer.checkpoint_dir=recipes/tiny/model",
                "dataset.packed=true",
                "~model",
                "~dataset_val",
            ],
            _ => vec!["~model", "~dataset_val", "reference=precomputed"],
        }
        .into_iter()
        .map(str::to_owned),
    );
    if recipe == "distill_stored" {
        args.push(format!("teacher_logits.path={}", output_dir.with_extension("said").display()));
    }
    if let (Some(scratch), true) = (output_dir.parent(), recipe.ends_with("_offloaded")) {
        args.push(format!("optimizer.offload_dir={}", scratch.display()));
        if recipe == "full_offloaded" {
            args.push(format!("activation_offload_dir={}", scratch.display()));
        }
    }
    if recipe == "lora_experts" {
        args.push(format!("checkpointer.checkpoint_dir={}", output_dir.with_file_name(MIXTURE).display()));
    }
    args
}

/// The folder beside the runs with a mixture of experts.
const MIXTURE: &str = "mixture";

/// Two datasets by weight, of one a part and of the other all several times, in rows that are filled as well as can be.
const MIXED: &str = "dataset=[{_component_: chat, data_files: [recipes/tiny/data/secret_code.jsonl], packed: true, \
                     packing: best_fit, weight: 2, filter: messages | length == 2}, {_component_: chat, packed: true, \
                     packing: best_fit, data_files: [recipes/tiny/data/held_out.jsonl], weight: 3}]";

/// Texts with labels, in rows that several of them share.
const LABELLED: &str = "dataset={_component_: labelled, data_files: [recipes/tiny/data/labelled.jsonl], packed: true}";

/// The recipe that runs.
fn binary(name: &str) -> &str {
    name.split('_').next().unwrap_or(name)
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn has_checkpoint(dir: &Path) -> bool {
    tune_core::checkpoint::run::latest(dir).is_ok_and(|saved| saved.is_some())
}

/// Whether a checkpoint is being written at this moment.
fn is_writing(dir: &Path) -> bool {
    std::fs::read_dir(dir)
        .is_ok_and(|entries| entries.flatten().any(|e| e.file_name().to_string_lossy().starts_with(".partial-")))
}

/// Kills a run `kills` times, each time a little later after its first checkpoint, and lets it end.
/// Returns how many of them died while a checkpoint was being written.
fn interrupted(name: &str, dir: &Path, kills: u32) -> u32 {
    let mut while_writing = 0;
    for kill in 0..kills {
        let mut args = settings(name, dir, kills);
        args.push(format!("resume_from_checkpoint={}", has_checkpoint(dir)));
        let before = newest_step(dir);
        let mut child =
            recipe(binary(name), &borrowed(&args)).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        // Every third is killed as soon as it writes; the others at a moment that shifts from kill to kill.
        let hunts = kill % 3 == 2;
        let pause = Duration::from_millis(u64::from(kill * 37 % 101));
        loop {
            assert!(begun.elapsed() < Duration::from_secs(120), "no checkpoint came");
            if hunts && is_writing(dir) {
                break;
            }
            if !hunts
                && has_checkpoint(dir)
                && (newest_step(dir) > before || begun.elapsed() > Duration::from_millis(400))
            {
                std::thread::sleep(pause);
                break;
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        child.kill().unwrap();
        // One that has ended by itself was not killed.
        assert_eq!(child.wait().unwrap().code(), None, "the run ended before kill {}: it is too short", kill + 1);
        while_writing += u32::from(is_writing(dir));
    }
    let mut args = settings(name, dir, kills);
    args.push("resume_from_checkpoint=true".into());
    succeed(binary(name), &borrowed(&args));
    while_writing
}

fn newest_step(dir: &Path) -> u64 {
    tune_core::checkpoint::run::latest(dir).ok().flatten().map_or(0, |saved| saved.step)
}

/// Returns how many kills met a checkpoint that was being written.
fn check(name: &str, kills: u32) -> u32 {
    check_in(tempfile::tempdir().unwrap().path(), name, kills)
}

fn check_in(folder: &Path, name: &str, kills: u32) -> u32 {
    let (whole, killed) = (folder.join("whole"), folder.join("killed"));
    succeed(binary(name), &borrowed(&settings(name, &whole, kills)));
    let while_writing = interrupted(name, &killed, kills);
    println!("{name}: {kills} kills, {while_writing} while a checkpoint was being written");
    assert_eq!(newest(&whole).file_name(), newest(&killed).file_name());
    let (expected, found) = (files(&newest(&whole)), files(&newest(&killed)));
    assert_eq!(
        expected.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        found.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
    for ((file, a), (_, b)) in expected.iter().zip(&found) {
        assert!(a == b, "{name}: {file} differs");
    }
    while_writing
}

#[test]
fn lora_resumes_bit_for_bit() {
    check("lora", 2);
}

#[test]
fn a_mixture_of_which_a_part_is_held_out_resumes_bit_for_bit() {
    check("lora_mixed", 1);
}

#[test]
fn dora_resumes_bit_for_bit() {
    check("lora_dora", 1);
}

/// Adapters that begin with a part of the weights, which a resumed run takes out of them again.
#[test]
fn pissa_resumes_bit_for_bit() {
    check("lora_pissa", 1);
}

/// Each expert has adapters, and so has what chooses among them. What was trained is then merged and compared with the run.
#[test]
fn adapters_on_experts_resume_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = json!({
        "model_type": "qwen3_moe", "hidden_size": 96, "head_dim": 12, "num_hidden_layers": 2, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": true,
    });
    random_model::write(&folder.path().join(MIXTURE), &sizes);
    check_in(folder.path(), "lora_experts", 1);

    let merged = folder.path().join("merged");
    let mut tune = Command::new(env!("CARGO_BIN_EXE_tune"));
    tune.current_dir(root()).arg("merge").arg(folder.path().join("killed")).arg("--to").arg(&merged);
    let output = tune.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let [base, merged] = [folder.path().join(MIXTURE), merged].map(|folder| {
        candle_core::safetensors::load(folder.join("model.safetensors"), &candle_core::Device::Cpu).unwrap()
    });
    for module in ["gate", "experts.3.up_proj", "experts.0.down_proj"] {
        let name = format!("model.layers.1.mlp.{module}.weight");
        let [base, merged] = [&base, &merged].map(|tensors| tensors[&name].to_dtype(candle_core::DType::F32).unwrap());
        let moved = (merged - base).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(moved > 0.0, "{name} is as it was");
    }
}

/// Tables with a new token and norms, trained whole beside adapters.
#[test]
fn new_tokens_resume_bit_for_bit() {
    check("lora_tokens", 1);
}

/// Rows of single tokens, of which some are named by their texts.
#[test]
fn rows_of_tokens_resume_bit_for_bit() {
    check("lora_rows", 1);
}

/// The reference is the model with the part that its adapters began with.
#[test]
fn olora_resumes_bit_for_bit() {
    check("dpo_olora", 1);
}

#[test]
fn full_resumes_bit_for_bit() {
    check("full", 2);
}

/// What is written while training goes on is complete or not there, whenever the run dies.
#[test]
fn checkpoints_in_the_background_survive_kills() {
    check("full_background", 4);
}

/// State of eight bits is written as it is.
#[test]
fn adamw_of_eight_bits_resumes_bit_for_bit() {
    check("full_8bit", 1);
}

#[test]
fn lion_resumes_bit_for_bit() {
    check("full_lion", 1);
}

#[test]
fn adafactor_resumes_bit_for_bit() {
    check("full_adafactor", 1);
}

#[test]
fn muon_resumes_bit_for_bit() {
    check("full_muon", 1);
}

/// State that is kept in a file is read from a checkpoint parameter by parameter. What is killed leaves no file.
#[test]
fn what_is_kept_in_files_resumes_bit_for_bit() {
    for name in ["full_offloaded", "full_schedule_offloaded", "full_8bit_offloaded"] {
        let folder = tempfile::tempdir().unwrap();
        check_in(folder.path(), name, 1);
        let mut left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["killed", "whole"], "{name}");
    }
}

/// The weights that are saved are those between steps, a mean.
#[test]
fn schedule_free_resumes_bit_for_bit() {
    check("full_schedule", 1);
    check("lora_schedule", 1);
}

/// So is the mean of weights that another optimizer moves.
#[test]
fn averaged_weights_resume_bit_for_bit() {
    check("full_average", 1);
}

#[test]
fn dpo_resumes_bit_for_bit() {
    check("dpo", 2);
}

#[test]
fn dpo_of_all_weights_resumes_bit_for_bit() {
    check("dpo_full", 2);
}

#[test]
fn kto_resumes_bit_for_bit() {
    check("kto", 2);
}

#[test]
fn kto_of_all_weights_resumes_bit_for_bit() {
    check("kto_full", 1);
}

#[test]
fn distill_resumes_bit_for_bit() {
    check("distill", 1);
    check("distill_own", 1);
    check("distill_stored", 1);
}

#[test]
fn reward_resumes_bit_for_bit() {
    check("reward", 2);
}

#[test]
fn a_classifier_resumes_bit_for_bit() {
    check("reward_classifier", 1);
}

#[test]
fn qat_resumes_bit_for_bit() {
    check("qat", 2);
    check("qat_lora", 1);
}

#[test]
fn pretrain_resumes_bit_for_bit() {
    check("pretrain", 2);
}

#[test]
fn pretrain_in_bf16_resumes_bit_for_bit() {
    check("pretrain_bf16", 1);
}

#[test]
fn grpo_resumes_bit_for_bit() {
    check("grpo", 1);
}

#[test]
fn ppo_resumes_bit_for_bit() {
    check("ppo", 1);
}

#[test]
fn ppo_in_the_background_resumes_bit_for_bit() {
    check("ppo_background", 1);
}

#[test]
fn ppo_of_all_weights_resumes_bit_for_bit() {
    check("ppo_full", 1);
}

#[test]
#[ignore = "takes a minute or two; CI runs it"]
fn lora_survives_twenty_kills() {
    assert!(check("lora", 20) > 0, "no kill met a checkpoint that was being written");
}

#[test]
#[ignore = "takes a minute or two; CI runs it"]
fn full_survives_twenty_kills() {
    assert!(check("full", 20) > 0, "no kill met a checkpoint that was being written");
}

#[test]
#[ignore = "takes a minute or two; CI runs it"]
fn dpo_survives_twenty_kills() {
    assert!(check("dpo", 20) > 0, "no kill met a checkpoint that was being written");
}
