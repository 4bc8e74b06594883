//! Whole recipes on several processes, which are threads here: they learn what one process learns, and one number of them goes on
//! from what another saved.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../recipes/src/bin/distill.rs"]
#[allow(dead_code)]
mod distill;
#[path = "../recipes/src/bin/dpo.rs"]
#[allow(dead_code)]
mod dpo;
#[path = "../recipes/src/bin/full.rs"]
#[allow(dead_code)]
mod full;
#[path = "../recipes/src/bin/grpo.rs"]
#[allow(dead_code)]
mod grpo;
#[path = "../recipes/src/bin/kto.rs"]
#[allow(dead_code)]
mod kto;
#[path = "common/learnt.rs"]
mod learnt;
#[path = "../recipes/src/bin/lora.rs"]
#[allow(dead_code)]
mod lora;
#[path = "../recipes/src/bin/ppo.rs"]
#[allow(dead_code)]
mod ppo;
#[path = "../recipes/src/bin/pretrain.rs"]
#[allow(dead_code)]
mod pretrain;
#[path = "../recipes/src/bin/qat.rs"]
#[allow(dead_code)]
mod qat;
#[path = "../recipes/src/bin/reward.rs"]
#[allow(dead_code)]
mod reward;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use learnt::{distance, losses, worst};
use tune_core::config::{Input, load};
use tune_core::distributed::threads;
use tune_core::recipe::Recipe;

/// Micro-batches of a step over all processes.
const TOGETHER: usize = 4;
/// Rows of each.
const ROWS: usize = 4;

/// The shipped config of a recipe, short, for one of some processes.
fn config<R: Recipe>(recipe: &str, output: &Path, processes: usize, overrides: &[&str]) -> R::Config {
    let file = format!("configs/{recipe}/tiny.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let mut all = vec![
        format!("output_dir={}", output.display()),
        "~overwrite".to_owned(),
        "log_every_n_steps=1".to_owned(),
        format!("batch_size={ROWS}"),
        format!("gradient_accumulation_steps={}", TOGETHER / processes),
    ];
    // Few samples, and no multiple of what the processes take at a time. Those have data of their own kind.
    if !["dpo", "kto", "pretrain", "reward"].contains(&recipe) {
        all.push(
            "dataset_val=[{_component_: chat, data_files: [recipes/tiny/data/secret_code.jsonl], conversation_style: openai, \
             split: 'train[:50]'}]"
                .to_owned(),
        );
    }
    all.extend(overrides.iter().map(ToString::to_string));
    load(Input::yaml(file, text).overrides(&all)).unwrap_or_else(|report| panic!("{report}")).config
}

fn run<R: Recipe>(config: R::Config) -> tune_core::Result<()> {
    let mut recipe = R::setup(config)?;
    recipe.train()?;
    recipe.cleanup()
}

/// Runs a recipe on some processes, and returns what each says of an error.
fn on<R: Recipe>(recipe: &str, output: &Path, processes: usize, overrides: &[&str]) -> Vec<Option<String>> {
    std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
    let one = |_| {
        let result = run::<R>(config::<R>(recipe, output, processes, overrides));
        result.err().map(|error| error.to_string())
    };
    match processes {
        1 => vec![one(tune_core::distributed::Group::single())],
        _ => threads::run(processes, Duration::from_secs(120), one).unwrap(),
    }
}

fn succeed<R: Recipe>(recipe: &str, output: &Path, processes: usize, overrides: &[&str]) -> PathBuf {
    let errors = on::<R>(recipe, output, processes, overrides);
    assert!(errors.iter().all(Option::is_none), "{errors:?}");
    tune_core::checkpoint::run::latest(output).unwrap().unwrap().path
}

/// What a run logged under a key.
fn kept(output: &Path, key: &str) -> Vec<f64> {
    let text = fs::read_to_string(output.join("logs/metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    records.filter_map(|record| record[key].as_f64()).collect()
}

/// Losses and files of a run are those of another.
fn compare(what: &str, (output, saved): (&Path, &Path), (other, expected): (&Path, &Path), weights: &str) {
    let worst = worst(&losses(output), &losses(other));
    let of_weights = distance(&saved.join(weights), &expected.join(weights));
    let state = "training_state.safetensors";
    let of_state = distance(&saved.join(state), &expected.join(state));
    println!("{what}: losses off by {worst:.1e}, weights {of_weights:.1e}, optimizer {of_state:.1e}");
    assert!(worst <= 1e-5 && of_weights <= 1e-4 && of_state <= 1e-3, "{what}");
}

/// A run's folder as it was behind the first checkpoint of another one.
fn with_first_checkpoint(of: &Path, output: &Path) {
    let checkpoint = tune_core::checkpoint::run::checkpoints(of).unwrap().remove(0).path;
    copy_folder(&checkpoint, &output.join(checkpoint.file_name().unwrap()));
    fs::create_dir(output.join("logs")).unwrap();
    fs::copy(of.join("logs/metrics.jsonl"), output.join("logs/metrics.jsonl")).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_folder(&path, &copy),
            false => drop(fs::copy(&path, copy).unwrap()),
        }
    }
}

const FULL: &[&str] = &["epochs=2", "max_steps_per_epoch=4", "clip_grad_norm=0.5", "dataset.packed=true"];

#[test]
fn full_on_two_and_four_processes_and_from_one_number_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let one = folder.path().join("one");
    let expected = succeed::<full::FullFinetune>("full", &one, 1, FULL);
    for processes in [2, 4] {
        let output = folder.path().join(processes.to_string());
        let saved = succeed::<full::FullFinetune>("full", &output, processes, FULL);
        compare(&format!("{processes}"), (&output, &saved), (&one, &expected), "model.safetensors");
        for rank in 1..processes {
            assert!(output.join(format!("logs/rank_{rank}.log")).is_file());
        }
        let names = |dir: &Path| {
            let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&saved), names(&expected), "a checkpoint is the same whoever wrote it");
    }
    // From the first epoch's checkpoint of each, on another number of processes.
    for (from, to) in [("one", 2), ("2", 4), ("4", 1)] {
        let output = folder.path().join(format!("{from}-{to}"));
        with_first_checkpoint(&folder.path().join(from), &output);
        let resumed: Vec<&str> = FULL.iter().copied().chain(["resume_from_checkpoint=true"]).collect();
        let saved = succeed::<full::FullFinetune>("full", &output, to, &resumed);
        compare(&format!("{from} to {to}"), (&output, &saved), (&one, &expected), "model.safetensors");
    }
    // The same number of processes gives the same bits.
    let again = folder.path().join("again");
    let saved = succeed::<full::FullFinetune>("full", &again, 2, FULL);
    let first = tune_core::checkpoint::run::latest(&folder.path().join("2")).unwrap().unwrap().path;
    for file in ["model.safetensors", "training_state.safetensors"] {
        assert!(fs::read(saved.join(file)).unwrap() == fs::read(first.join(file)).unwrap(), "{file}");
    }
}

/// The whole model in each process; two copies of it, each divided; and gathered weights that stay. From one layout to another, too.
#[test]
fn copies_of_a_model_learn_what_one_learns() {
    const EACH: &str = "data_parallel_shard_dim=1";
    const TWO: &str = "data_parallel_replicate_dim=2";
    const FOUR: &str = "data_parallel_replicate_dim=4";
    const STAY: &str = "fsdp_reshard_after_forward=false";
    let folder = tempfile::tempdir().unwrap();
    let one = folder.path().join("one");
    let expected = succeed::<full::FullFinetune>("full", &one, 1, FULL);
    for (name, processes, layout) in
        [("copies", 2, &[TWO][..]), ("both", 4, &[TWO, STAY]), ("again", 4, &[TWO]), ("each", 4, &[EACH, FOUR])]
    {
        let output = folder.path().join(name);
        let saved = succeed::<full::FullFinetune>("full", &output, processes, &[FULL, layout].concat());
        compare(name, (&output, &saved), (&one, &expected), "model.safetensors");
        let written: Vec<_> = fs::read_dir(&saved).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(written.len(), fs::read_dir(&expected).unwrap().count(), "{written:?}");
    }
    let bits = |name: &str, file: &str| {
        let saved = tune_core::checkpoint::run::latest(&folder.path().join(name)).unwrap().unwrap().path;
        fs::read(saved.join(file)).unwrap()
    };
    for file in ["model.safetensors", "training_state.safetensors"] {
        assert!(bits("both", file) == bits("again", file), "{file}: where gathered weights stay the bits are the same");
    }
    for (from, processes, layout) in
        [("both", 1, &[][..]), ("both", 2, &[]), ("copies", 4, &[TWO]), ("one", 4, &[TWO, STAY]), ("one", 2, &[TWO])]
    {
        let name = format!("{from} to {processes} {}", layout.join(" "));
        let output = folder.path().join(&name);
        with_first_checkpoint(&folder.path().join(from), &output);
        let resumed = [FULL, layout, &["resume_from_checkpoint=true"]].concat();
        let saved = succeed::<full::FullFinetune>("full", &output, processes, &resumed);
        compare(&name, (&output, &saved), (&one, &expected), "model.safetensors");
    }
}

/// Adapters, also on a base in NF4 and with magnitudes, which need whole weights.
#[test]
fn copies_of_a_model_learn_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let shared = ["epochs=1", "max_steps_per_epoch=4", "~exact_match", "model.lora_dropout=0.1"];
    for (what, processes, more) in [
        ("divided", 4, &[][..]),
        ("NF4", 4, &["model.quantize_base=true", "fsdp_reshard_after_forward=false"]),
        ("magnitudes", 2, &["model.use_dora=true"]),
    ] {
        let run = |processes: usize, layout: &[&str]| {
            let output = folder.path().join(format!("{what} {processes}"));
            let saved = succeed::<lora::LoraFinetune>("lora", &output, processes, &[&shared, more, layout].concat());
            (output, saved)
        };
        let ((one, expected), (output, saved)) = (run(1, &[]), run(processes, &["data_parallel_replicate_dim=2"]));
        compare(what, (&output, &saved), (&one, &expected), "adapter_model.safetensors");
    }
}

/// Optimizers that need whole matrices have them where each process has the whole model.
#[test]
fn copies_of_a_model_are_moved_by_any_optimizer() {
    let folder = tempfile::tempdir().unwrap();
    for optimizer in ["adafactor", "muon", "schedule_free_adamw"] {
        let set = format!("optimizer={optimizer}");
        let run = |processes: usize, layout: &[&str]| {
            let output = folder.path().join(format!("{optimizer} {processes}"));
            let overrides = [&["epochs=1", "max_steps_per_epoch=3", &set], layout].concat();
            let saved = succeed::<full::FullFinetune>("full", &output, processes, &overrides);
            (output, saved)
        };
        let ((one, expected), (output, saved)) = (run(1, &[]), run(2, &["data_parallel_replicate_dim=2"]));
        compare(optimizer, (&output, &saved), (&one, &expected), "model.safetensors");
    }
}

/// Each checkpoint has what was trained when it was begun, not what is in memory when it is written: the bits of a run that waits.
#[test]
fn checkpoints_are_written_while_training_goes_on() {
    const BACKGROUND: &str = "enable_async_checkpointing=true";
    let folder = tempfile::tempdir().unwrap();
    let bits = |output: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = Vec::new();
        for saved in tune_core::checkpoint::run::checkpoints(output).unwrap() {
            for folder in [saved.path.clone(), saved.path.join("merged")] {
                let Ok(entries) = fs::read_dir(&folder) else { continue };
                let files = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
                all.extend(files.map(|path| (path.strip_prefix(output).unwrap().to_owned(), fs::read(&path).unwrap())));
            }
        }
        all.sort();
        all
    };
    let shared = ["epochs=2", "max_steps_per_epoch=4", "checkpointer.save_every_n_steps=1"];
    let lora = ["save_adapter_weights_only=false", "~exact_match"];
    for (processes, layout) in [(1, ""), (2, "data_parallel_replicate_dim=1"), (4, "data_parallel_replicate_dim=2")] {
        for name in ["full", "lora"] {
            let run = |background: bool| {
                let output = folder.path().join(format!("{name} {processes} {background}"));
                let mut overrides = shared.to_vec();
                overrides.extend((name == "lora").then_some(lora).into_iter().flatten());
                overrides.extend([layout].into_iter().filter(|layout| !layout.is_empty()));
                overrides.extend(background.then_some(BACKGROUND));
                match name {
                    "full" => succeed::<full::FullFinetune>(name, &output, processes, &overrides),
                    _ => succeed::<lora::LoraFinetune>(name, &output, processes, &overrides),
                };
                output
            };
            let (waits, goes_on) = (bits(&run(false)), bits(&run(true)));
            assert!(waits.iter().map(|(path, _)| path).eq(goes_on.iter().map(|(path, _)| path)));
            // The config that each carries is not in it.
            let differing: Vec<_> = waits.iter().zip(&goes_on).filter(|(a, b)| a != b).map(|(a, _)| &a.0).collect();
            assert!(waits.len() > 8 && differing.is_empty(), "{name} on {processes}: {differing:?}");
        }
    }
}

#[test]
fn a_layout_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    for (processes, layout, said) in [
        (2, "data_parallel_replicate_dim=3", "data_parallel_replicate_dim=3 does not divide 2 processes"),
        (2, "data_parallel_shard_dim=4", "times data_parallel_shard_dim=4 is not 2, and 2 processes are there"),
        (1, "data_parallel_shard_dim=2", "times data_parallel_shard_dim=2 is not 1, and 1 process is there"),
    ] {
        for error in on::<full::FullFinetune>("full", &output, processes, &[layout]) {
            let error = error.unwrap();
            assert!(error.contains(said) && error.contains("start as many processes as"), "{error}");
        }
    }
    assert!(!output.exists(), "nothing was written");
}

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

/// A teacher is divided as its student is: a model, one with an adapter beside its weights, and what one process was told by it.
#[test]
fn a_student_learns_as_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let short = ["epochs=1", "max_steps_per_epoch=3"];
    let tuned = succeed::<full::FullFinetune>("full", &folder.path().join("full"), 1, &short);
    let adapted = succeed::<lora::LoraFinetune>(
        "lora",
        &folder.path().join("lora"),
        1,
        &[&short[..], &["~exact_match"]].concat(),
    );
    let teacher = |dir: &Path| format!("teacher_checkpointer.checkpoint_dir={}", dir.display());
    let with_adapter = format!(
        "teacher_checkpointer={{checkpoint_dir: recipes/tiny/model, adapter_checkpoint: {}}}",
        adapted.display()
    );
    let stored = format!("teacher_logits={{path: {}, top_k: 20}}", folder.path().join("said").display());
    for (what, processes, weights, more) in [
        ("all weights", 4, "model.safetensors", vec!["~model".to_owned(), teacher(&tuned)]),
        ("adapters", 2, "adapter_model.safetensors", vec![teacher(&tuned), "model.lora_dropout=0.1".to_owned()]),
        ("an adapter's", 2, "adapter_model.safetensors", vec![with_adapter, "kd_loss=reverse_kl".to_owned()]),
        ("stored", 2, "adapter_model.safetensors", vec![teacher(&tuned), stored]),
    ] {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let overrides = [&short, &more[..]].concat();
        let output = |processes: usize| folder.path().join(format!("{what} {processes}"));
        if what == "stored" {
            let errors = on::<distill::Distillation>("distill", &output(0), processes, &overrides);
            let all_say =
                |said: &str| errors.iter().all(|error| error.as_ref().is_some_and(|error| error.contains(said)));
            assert!(all_say("the teacher is asked by one process alone"), "{errors:?}");
        }
        let run =
            |processes: usize| succeed::<distill::Distillation>("distill", &output(processes), processes, &overrides);
        let (expected, saved) = (run(1), run(processes));
        compare(what, (&output(processes), &saved), (&output(1), &expected), weights);
    }
}

/// Each process draws the answers to its prompts: those that one process draws, whoever is done first. An epoch's last step and the
/// validation have fewer micro-batches than there are processes.
#[test]
fn answers_that_are_drawn_are_learnt_from_as_by_one_process() {
    const SHARED: &[&str] = &[
        "epochs=2",
        "samples=4",
        "reward=overlap",
        "dataset.split='train[:36]'",
        "dataset_val={_component_: chat, data_files: [recipes/tiny/data/reversed.jsonl], conversation_style: openai, \
         split: 'train[600:610]'}",
    ];
    let folder = tempfile::tempdir().unwrap();
    let of = |what: &str, processes: usize| folder.path().join(format!("{what} {processes}"));
    let draw = |output: &Path, processes: usize, more: &[&str]| {
        succeed::<grpo::PolicyOptimization>("grpo", output, processes, &[SHARED, more].concat())
    };
    // Advantages have a mean of 0, and so have first losses, but for rounding: differences are absolute.
    let same = |what: &str, (output, saved): (&Path, &Path), (other, expected): (&Path, &Path), weights: &str| {
        for key in [
            "loss",
            "val_loss",
            "grad_norm",
            "reward",
            "val_reward",
            "completions/mean_length",
            "reward_std",
            "kl",
            "clip_ratio",
        ] {
            let (ours, theirs) = (kept(output, key), kept(other, key));
            assert_eq!(ours.len(), theirs.len(), "{what}: {key}");
            let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            println!("{what}: {key} off by {off:.1e}");
            assert!(off <= if key == "grad_norm" { 1e-4 } else { 1e-5 }, "{what}: {key}: {ours:?} {theirs:?}");
        }
        assert!(!kept(output, "val_loss").is_empty(), "{what}");
        let of_weights = distance(&saved.join(weights), &expected.join(weights));
        assert!(of_weights <= 1e-4, "{what}: weights off by {of_weights:.1e}");
    };
    let dapo = &["loss=dapo", "updates=2", "kl_beta=0.05"][..];
    let weights = &["~model", "optimizer.lr=1e-4"][..];
    let both = &["~model", "optimizer.lr=1e-4", "kl_beta=0.05", "data_parallel_replicate_dim=2"][..];
    for (what, processes, more, alone, file) in [
        ("adapters", 2, dapo, dapo, "adapter_model.safetensors"),
        ("weights", 4, weights, weights, "model.safetensors"),
        ("both", 4, both, &both[..3], "model.safetensors"),
    ] {
        let (one, many) = (of(what, 1), of(what, processes));
        let (expected, saved) = (draw(&one, 1, alone), draw(&many, processes, more));
        same(what, (&many, &saved), (&one, &expected), file);
    }
    // What one process began, and the same bits again.
    let (one, two) = (of("adapters", 1), of("adapters", 2));
    let latest = |output: &Path| tune_core::checkpoint::run::latest(output).unwrap().unwrap().path;
    let resumed = of("resumed", 2);
    with_first_checkpoint(&one, &resumed);
    let saved = draw(&resumed, 2, &[dapo, &["resume_from_checkpoint=true"]].concat());
    same("one to two", (&resumed, &saved), (&one, &latest(&one)), "adapter_model.safetensors");
    let saved = draw(&of("again", 2), 2, dapo);
    for file in ["adapter_model.safetensors", "training_state.safetensors"] {
        assert!(fs::read(saved.join(file)).unwrap() == fs::read(latest(&two).join(file)).unwrap(), "{file}");
    }
}

/// A value model and a reward model are divided as the model is, and an update learns from the same prompts on any number of processes.
/// An epoch's last step and the validation have fewer micro-batches than there are processes.
#[test]
fn a_value_model_learns_as_by_one_process() {
    const SHARED: &[&str] = &[
        "epochs=2",
        "samples=2",
        "reward=overlap",
        "kl_coeff=0.05",
        "value_lr=1e-4",
        "dataset.split='train[:36]'",
        "dataset_val={_component_: chat, data_files: [recipes/tiny/data/reversed.jsonl], conversation_style: openai, \
         split: 'train[600:610]'}",
    ];
    let folder = tempfile::tempdir().unwrap();
    let of = |what: &str, processes: usize| folder.path().join(format!("{what} {processes}"));
    let draw = |output: &Path, processes: usize, more: &[&str]| {
        succeed::<ppo::ProximalPolicyOptimization>("ppo", output, processes, &[SHARED, more].concat())
    };
    let same = |what: &str, (output, saved): (&Path, &Path), (other, expected): (&Path, &Path), weights: &str| {
        for key in [
            "loss",
            "val_loss",
            "grad_norm",
            "reward",
            "val_reward",
            "rlhf_reward",
            "kl",
            "value",
            "policy_loss",
            "value_loss",
            "completions/mean_length",
            "approx_policy_kl",
        ] {
            let (ours, theirs) = (kept(output, key), kept(other, key));
            assert_eq!(ours.len(), theirs.len(), "{what}: {key}");
            assert!(!ours.is_empty(), "{what}: {key}");
            // First losses of the policy are 0, but for rounding.
            let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f64::max);
            println!("{what}: {key} off by {off:.1e}");
            assert!(off <= if key == "grad_norm" { 1e-4 } else { 1e-5 }, "{what}: {key}: {ours:?} {theirs:?}");
        }
        for weights in [weights, "value/model.safetensors"] {
            let off = distance(&saved.join(weights), &expected.join(weights));
            println!("{what}: {weights} off by {off:.1e}");
            assert!(off <= 1e-4, "{what}: {weights} off by {off:.1e}");
        }
        let files = |dir: &Path| {
            let mut files: Vec<_> = [dir.to_owned(), dir.join("value")]
                .iter()
                .flat_map(|dir| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()))
                .collect();
            files.sort();
            files
        };
        assert_eq!(files(saved), files(expected), "{what}: a checkpoint is the same whoever wrote it");
    };
    let scores = of("scores", 1);
    let scores =
        succeed::<reward::RewardModeling>("reward", &scores, 1, &["~model", "epochs=1", "max_steps_per_epoch=2"]);
    let judge = format!("reward_checkpointer.checkpoint_dir={}", scores.display());
    let value = format!("value_checkpointer.checkpoint_dir={}", scores.display());
    let adapters = &["ppo_batch_size=8", "whiten_rewards=true"][..];
    let weights = &["~model", "optimizer.lr=1e-5"][..];
    let judged = &["reward=exact", &*judge, &*value, "data_parallel_replicate_dim=2"][..];
    // Divided; and two copies, each in one process or divided among two.
    for (what, processes, more, file) in [
        ("adapters", &[2][..], adapters, "adapter_model.safetensors"),
        ("weights", &[4], weights, "model.safetensors"),
        ("judged", &[2, 4], judged, "adapter_model.safetensors"),
    ] {
        let one = of(what, 1);
        let alone: Vec<&str> = more.iter().copied().filter(|key| !key.starts_with("data_parallel")).collect();
        let expected = draw(&one, 1, &alone);
        for &processes in processes {
            let many = of(what, processes);
            let saved = draw(&many, processes, more);
            same(&format!("{what} {processes}"), (&many, &saved), (&one, &expected), file);
        }
    }
    // What one process began, and the same bits again.
    let (one, two) = (of("adapters", 1), of("adapters", 2));
    let latest = |output: &Path| tune_core::checkpoint::run::latest(output).unwrap().unwrap().path;
    let resumed = of("resumed", 2);
    with_first_checkpoint(&one, &resumed);
    let saved = draw(&resumed, 2, &[adapters, &["resume_from_checkpoint=true"]].concat());
    same("one to two", (&resumed, &saved), (&one, &latest(&one)), "adapter_model.safetensors");
    let saved = draw(&of("again", 2), 2, adapters);
    for file in ["adapter_model.safetensors", "value/model.safetensors", "training_state.safetensors"] {
        assert!(fs::read(saved.join(file)).unwrap() == fs::read(latest(&two).join(file)).unwrap(), "{file}");
    }
    // An update takes as many micro-batches of each process.
    let errors = on::<ppo::ProximalPolicyOptimization>("ppo", &of("uneven", 4), 4, &["ppo_batch_size=8"]);
    let is_told = |error: &Option<String>| error.as_ref().is_some_and(|error| error.contains("a multiple of 16"));
    assert!(errors.iter().all(is_told), "{errors:?}");
}

/// A program that says what answers are worth ends in one process: it says why, and the others do not wait for it.
#[test]
fn a_reward_that_fails_in_one_process_ends_the_run_in_all() {
    const DATA: &str = "dataset_val={_component_: chat, data_files: [recipes/tiny/data/reversed.jsonl], conversation_style: openai, \
                        split: 'train[600:610]'}";
    let folder = tempfile::tempdir().unwrap();
    for layout in [&[][..], &["data_parallel_replicate_dim=2"]] {
        for recipe in ["grpo", "ppo"] {
            let of = folder.path().join(format!("{recipe} {}", layout.len()));
            fs::create_dir_all(&of).unwrap();
            // Whoever is first to make the folder has the program that fails.
            let (program, first) = (of.join("reward.sh"), of.join("first"));
            let worth = "while read -r line; do echo '{\"score\": 1}'; done";
            let text = format!("if mkdir '{}'; then read -r line; exit 3; fi 2>/dev/null\n{worth}\n", first.display());
            fs::write(&program, text).unwrap();
            let command = format!("reward.command=sh '{}'", program.display());
            let more = [&["reward=program", &*command, DATA, "samples=2", "epochs=1"], layout].concat();
            let (begun, output) = (std::time::Instant::now(), of.join("out"));
            let errors = match recipe {
                "grpo" => on::<grpo::PolicyOptimization>(recipe, &output, 2, &more),
                _ => on::<ppo::ProximalPolicyOptimization>(recipe, &output, 2, &more),
            };
            let say = |what: &str| errors.iter().flatten().filter(|error| error.contains(what)).count();
            assert!(errors.iter().all(Option::is_some), "{recipe}: {errors:?}");
            assert_eq!(say("reversed.jsonl:"), 1, "{recipe}: {errors:?}");
            assert_eq!(say("1 of the other processes cannot go on"), 1, "{recipe}: {errors:?}");
            assert!(begun.elapsed() < Duration::from_secs(100), "nobody waited for the time limit");
        }
    }
}

/// Which micro-batches have the student's own answers does not depend on who has them: of those that are learnt from at the same time,
/// some are the student's and some the data's, and in an epoch's last step some are none. Losses, and what is drawn, are those of one process.
#[test]
fn a_student_learns_from_its_own_answers_as_by_one_process() {
    const TWO: &str = "data_parallel_replicate_dim=2";
    // With this seed the micro-batches of the first three steps are own, own, data, data; data, own, own, data; data.
    const SHARED: &[&str] =
        &["epochs=2", "seed=2", "dataset.split='train[:36]'", "on_policy={share: 0.5, max_new_tokens: 12}"];
    let folder = tempfile::tempdir().unwrap();
    let of = |what: &str, processes: usize| folder.path().join(format!("{what} {processes}"));
    // It knows more than the student, so that divergences are no rounding errors.
    let learnt = ["epochs=1", "max_steps_per_epoch=20", "lr_scheduler.num_warmup_steps=2"];
    let teacher = succeed::<full::FullFinetune>("full", &folder.path().join("teacher"), 1, &learnt);
    let teacher = format!("teacher_checkpointer.checkpoint_dir={}", teacher.display());
    let teach = |output: &Path, processes: usize, more: &[&str]| {
        let overrides = [SHARED, &[teacher.as_str()], more].concat();
        succeed::<distill::Distillation>("distill", output, processes, &overrides)
    };
    let same = |what: &str, (output, saved): (&Path, &Path), (other, expected): (&Path, &Path), weights: &str| {
        compare(what, (output, saved), (other, expected), weights);
        for key in ["kd_loss", "class_loss", "grad_norm"] {
            let (ours, theirs) = (kept(output, key), kept(other, key));
            println!("{what}: {key} off by {:.1e}", worst(&ours, &theirs));
            assert!(!ours.is_empty() && worst(&ours, &theirs) <= 1e-4, "{what}: {key}: {ours:?} {theirs:?}");
        }
        for key in ["own_tokens", "tokens", "trained_tokens"] {
            assert_eq!(kept(output, key), kept(other, key), "{what}: {key}");
        }
        let own = kept(output, "own_tokens");
        assert!(own.contains(&0.0) && own.iter().any(|&share| share > 0.0 && share < 1.0), "{what}: {own:?}");
    };
    let adapters = &["kd_loss=reverse_kl", "model.lora_dropout=0.1"][..];
    let weights = &["~model", "optimizer.lr=1e-4"][..];
    for (what, processes, more, layout, file) in [
        ("adapters", 2, adapters, &[][..], "adapter_model.safetensors"),
        ("copies", 2, adapters, &[TWO], "adapter_model.safetensors"),
        ("weights", 4, weights, &[], "model.safetensors"),
        ("both", 4, weights, &[TWO], "model.safetensors"),
    ] {
        let (one, many) = (of(what, 1), of(what, processes));
        let (expected, saved) = (teach(&one, 1, more), teach(&many, processes, &[more, layout].concat()));
        same(what, (&many, &saved), (&one, &expected), file);
    }
    // What one process began, and the same bits again.
    let (one, two) = (of("adapters", 1), of("adapters", 2));
    let latest = |output: &Path| tune_core::checkpoint::run::latest(output).unwrap().unwrap().path;
    let resumed = of("resumed", 2);
    with_first_checkpoint(&one, &resumed);
    let saved = teach(&resumed, 2, &[adapters, &["resume_from_checkpoint=true"]].concat());
    same("one to two", (&resumed, &saved), (&one, &latest(&one)), "adapter_model.safetensors");
    let saved = teach(&of("again", 2), 2, adapters);
    for file in ["adapter_model.safetensors", "training_state.safetensors"] {
        assert!(fs::read(saved.join(file)).unwrap() == fs::read(latest(&two).join(file)).unwrap(), "{file}");
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

/// A base in NF4 of which each process has a share of the blocks.
#[test]
fn a_quantized_base_is_divided_as_it_is_stored() {
    let overrides = ["epochs=1", "max_steps_per_epoch=4", "model.quantize_base=true", "~exact_match"];
    let folder = tempfile::tempdir().unwrap();
    let (one, many) = (folder.path().join("one"), folder.path().join("many"));
    let expected = succeed::<lora::LoraFinetune>("lora", &one, 1, &overrides);
    let saved = succeed::<lora::LoraFinetune>("lora", &many, 4, &overrides);
    compare("NF4", (&many, &saved), (&one, &expected), "adapter_model.safetensors");
}

/// Each process moves its rows as soon as their gradient is summed: what one process learns that waits for all gradients.
#[test]
fn the_optimizer_may_run_in_the_backward_pass() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let shared = ["epochs=1", "max_steps_per_epoch=4", "~clip_grad_norm"];
    let with = |more: &[&'static str]| [&shared, more].concat();
    let expected = succeed::<full::FullFinetune>("full", &one, 1, &with(&["gradient_accumulation_steps=2"]));
    let in_backward = with(&["optimizer_in_bwd=true", "gradient_accumulation_steps=1"]);
    let saved = succeed::<full::FullFinetune>("full", &two, 2, &in_backward);
    compare("in the backward pass", (&two, &saved), (&one, &expected), "model.safetensors");
}

/// Lion's state is divided as AdamW's is. One that needs whole matrices is refused before anything is read or written.
#[test]
fn optimizers_move_rows_or_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let overrides = ["epochs=1", "max_steps_per_epoch=4", "optimizer=lion", "optimizer.decay_vectors=false"];
    let expected = succeed::<full::FullFinetune>("full", &one, 1, &overrides);
    let saved = succeed::<full::FullFinetune>("full", &two, 2, &overrides);
    compare("lion", (&two, &saved), (&one, &expected), "model.safetensors");

    let output = folder.path().join("none");
    for setting in ["=adamw_8bit", "=adafactor", "=muon", "=schedule_free_adamw", ".ema_decay=0.9"] {
        let optimizer = format!("optimizer{setting}");
        let name = setting.trim_matches(['=', '.']).trim_end_matches("=0.9");
        for error in on::<full::FullFinetune>("full", &output, 2, &[optimizer.as_str()]) {
            let error = error.unwrap();
            assert!(error.contains(name) && error.contains("start one process, or set optimizer=adamw"), "{error}");
        }
    }
    assert!(!output.exists(), "nothing was written");
}

/// All measure the same, the first one judges, and all end after the same step.
#[test]
fn processes_find_the_same_of_tasks_and_end_early_together() {
    let overrides = [
        "epochs=1",
        "max_steps_per_epoch=12",
        "~exact_match",
        "optimizer.lr=1e-9",
        "evaluation=[{data_file: recipes/tiny/data/held_out.jsonl, split: 'train[:5]', max_new_tokens: 12}]",
        "samples={prompts: ['Write a-b in the secret code.'], max_new_tokens: 8, temperature: 1.0}",
        "run_eval_every_n_steps=2",
        "early_stopping={monitor: held_out/exact_match, patience: 2}",
    ];
    let folder = tempfile::tempdir().unwrap();
    let records = |output: &Path| -> Vec<serde_json::Value> {
        let text = fs::read_to_string(output.join("logs/metrics.jsonl")).unwrap();
        let all = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        all.filter(|record| record.get("held_out/exact_match").is_some()).collect()
    };
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    for (output, processes) in [(&one, 1), (&two, 2)] {
        let saved = succeed::<lora::LoraFinetune>("lora", output, processes, &overrides);
        assert!(saved.ends_with("epoch_0_step_6"), "{}", saved.display());
    }
    let (ours, theirs) = (records(&two), records(&one));
    assert_eq!((ours.len(), theirs.len()), (4, 4));
    for (a, b) in ours.iter().zip(&theirs) {
        assert_eq!((&a["step"], &a["held_out/exact_match"]), (&b["step"], &b["held_out/exact_match"]));
        assert_eq!(a["samples"], b["samples"]);
        let of = |record: &serde_json::Value| record["held_out/answer_perplexity"].as_f64().unwrap();
        assert!((of(a) - of(b)).abs() <= 1e-4 * of(b), "{a} {b}");
    }
}

#[test]
fn processes_that_would_not_do_the_same_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
    let output = folder.path().join("out");
    let errors = threads::run(3, Duration::from_secs(60), |group| {
        let lr = if group.rank() == 2 { "optimizer.lr=2e-3" } else { "optimizer.lr=1e-3" };
        let config = config::<full::FullFinetune>("full", &output, 1, &["max_steps_per_epoch=1", lr]);
        run::<full::FullFinetune>(config).unwrap_err().to_string()
    });
    for error in errors.unwrap() {
        assert!(error.contains("rank 2 has another config than rank 0"), "{error}");
    }
    assert!(!output.exists(), "nothing was written");
}
