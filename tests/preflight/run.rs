//! What is said of a run as a whole: room on the disk and in memory, its schedule, and the run that it goes on with.

use super::*;

#[test]
fn a_full_disk_is_foreseen() {
    let place = Place::new();
    let model = place.model(&seventy_billion());
    let (said, code) = place.ask("full", "--check", &[&model, "epochs=100", "dtype=bf16"]);
    assert_eq!(code, Some(1), "{said}");
    contains(
        &said,
        &["error: ", "there is no room for the checkpoints", "684.6 GB each", "checkpointer.keep_last_n_checkpoints"],
    );
    // How many there will be.
    let said = place.sound(&["checkpointer.keep_last_n_checkpoints=null", "checkpointer.save_every_n_steps=47"]);
    contains(&said, &["all 16 are kept (checkpointer.keep_last_n_checkpoints keeps fewer): 76.5 MB"]);
}

/// Settings that are allowed and probably not meant, in `check` and at the start of a run.
#[test]
fn a_warm_up_longer_than_the_run_is_told() {
    let place = Place::new();
    let warning = "warning: the learning rate rises for 10 steps (lr_scheduler.num_warmup_steps), and the run has 4 steps: it ends at \
                   30 % of optimizer.lr; set lr_scheduler.num_warmup_steps=0";
    let short = ["epochs=1", "max_steps_per_epoch=4"];
    contains(&place.sound(&short), &[warning]);
    let output = place.output();
    let args = ["--config", "configs/lora/tiny.yaml", &output, short[0], short[1], "~exact_match"];
    contains(&text(&succeed("lora", &args).stderr), &[warning]);
    assert!(!place.sound(&["epochs=1", "max_steps_per_epoch=11"]).contains("warning:"));
}

#[test]
fn a_run_that_can_learn_nothing_is_told() {
    let place = Place::new();
    contains(&place.sound(&["optimizer.lr=0"]), &["warning: optimizer.lr is 0, so no step changes a weight"]);
    contains(
        &place.sound(&["model.lora_alpha=0"]),
        &["warning: model.lora_alpha is 0, so adapters add nothing to their layers"],
    );
}

#[test]
fn the_best_checkpoint_is_known_by_validation_alone() {
    let place = Place::new();
    let keep_best = "checkpointer.keep_best=true";
    contains(
        &place.unsound(&[keep_best]),
        &["checkpointer.keep_best keeps the checkpoint with the lowest validation loss: set dataset_val"],
    );
    let args = ["--config", "configs/lora/tiny.yaml", &place.output(), keep_best];
    contains(&runs::fail("lora", &args), &["error: checkpointer.keep_best keeps", "set dataset_val"]);
    let validation = "dataset_val={_component_: chat, data_files: [recipes/tiny/data/held_out.jsonl]}";
    let said = place.sound(&[keep_best, validation]);
    contains(&said, &["a checkpoint takes 4.8 MB, 3 are kept"]);
    let said = place.sound(&[keep_best, validation, "checkpointer.keep_last_n_checkpoints=null"]);
    contains(&said, &["checkpointer.keep_best has no effect: every checkpoint is kept"]);
}

/// What `check` refuses, a run refuses before it has computed anything.
#[test]
fn a_run_begins_only_where_its_checkpoints_find_room() {
    let place = Place::new();
    let every = ["checkpointer.keep_last_n_checkpoints=null", "checkpointer.save_every_n_steps=1", "epochs=100000000"];
    let error = "there is no room for the checkpoints";
    contains(&place.unsound(&every), &[error]);
    let output = place.output();
    let args: Vec<&str> = ["--config", "configs/lora/tiny.yaml", &output].into_iter().chain(every).collect();
    contains(&runs::fail("lora", &args), &["error: ", error]);
    assert!(!place.path("out").exists());
}

/// With so little memory, as the environment says.
#[test]
fn memory_that_does_not_suffice_is_an_error_that_names_settings() {
    let place = Place::new();
    let ask = |option: &str, memory: &str| {
        let args = [option, "--config", "configs/lora/tiny.yaml", &place.output()];
        let answer = recipe("lora", &args).env("TUNE_MEMORY", memory).output().unwrap();
        (text(&answer.stdout), answer.status.code())
    };
    let (said, code) = ask("--plan", "1GiB");
    assert_eq!(code, Some(0), "{said}");
    contains(&said, &["weights                        3.2 MiB", "adapters                       1.2 MiB", "peak "]);
    assert!(!said.contains("It does not fit"), "{said}");

    // Kernels, and so the peak, are those of this processor; and what a program takes is not quite the same each time.
    let peak = said.lines().find_map(|line| line.trim().strip_prefix("peak ")?.split_whitespace().next());
    let short = format!("{}MiB", peak.unwrap().parse::<f64>().unwrap() as u64 - 4);
    let (said, code) = ask("--check", &short);
    assert_eq!(code, Some(1), "{said}");
    contains(&said, &["\nerror: this run needs ", "of memory", "it fits with", "enable_activation_checkpointing=true"]);
    let (said, code) = ask("--plan", &short);
    assert_eq!(code, Some(1), "{said}");
    contains(&said, &["It does not fit. Each of these changes is enough:", "enable_activation_checkpointing=true"]);

    // What it follows from must be sound.
    let (said, code) = place.ask("lora", "--plan", &["dataset.data_files=nowhere.jsonl"]);
    assert!(code == Some(1) && said.contains("error: cannot read nowhere.jsonl"), "{said}");
    assert!(!place.path("out").exists());
}

#[test]
fn a_resume_is_compared_with_the_run_that_it_goes_on_with() {
    let place = Place::new();
    let short = ["max_steps_per_epoch=1", "epochs=1", "~exact_match", "overwrite=false"];
    let (config, output) = ("configs/lora/tiny.yaml", place.output());
    let mut args = vec!["--config", config, &output];
    args.extend(short);
    succeed("lora", &args);

    let mut overrides = short.to_vec();
    contains(&place.unsound(&overrides), &["already holds 1 checkpoint of another run"]);
    overrides.push("overwrite=true");
    contains(&place.sound(&overrides), &["which has one checkpoint, epoch_0_step_1: overwrite=true deletes"]);
    overrides.pop();
    overrides.push("resume_from_checkpoint=true");
    contains(&place.sound(&overrides), &["which has one checkpoint, epoch_0_step_1: the run goes on from it"]);
    overrides.extend(["batch_size=8", "optimizer.lr=1.0e-4"]);
    contains(
        &place.unsound(&overrides),
        &["these settings differ", "batch_size: 16 then, 8 now", "optimizer.lr: 0.002 then, 0.0001 now"],
    );
    // Nothing was said, and the data is another.
    let data = place.conversations("other.jsonl", &[("a", "b")]);
    overrides.truncate(short.len() + 1);
    overrides.push(&data);
    contains(&place.unsound(&overrides), &["dataset.0.data_files.0: "]);
    let place = Place::new();
    let data = place.conversations("own.jsonl", &[("a", "b"), ("c", "d")]);
    let output = place.output();
    args[2] = &output;
    args.push(&data);
    succeed("lora", &args);
    // It may have moved.
    let moved = place.conversations("moved.jsonl", &[("a", "b"), ("c", "d")]);
    overrides.truncate(short.len() + 1);
    overrides.push(&moved);
    contains(&place.sound(&overrides), &["dataset.0.data_files.0: ", "moved.jsonl\" now, with the same content"]);
    place.conversations("own.jsonl", &[("a", "b"), ("c", "e")]);
    overrides.truncate(short.len() + 1);
    overrides.push(&data);
    contains(&place.unsound(&overrides), &["the training data changed since the run began"]);
}

#[test]
fn settings_that_do_not_fit_together_are_said() {
    let place = Place::new();
    let (said, code) = place.ask("full", "--check", &["optimizer_in_bwd=true", "gradient_accumulation_steps=2"]);
    assert!(code == Some(1) && said.contains("error: optimizer_in_bwd applies each gradient at once"), "{said}");
    let (said, code) = place.ask("lora", "--check", &["model.target_modules=[]"]);
    assert!(
        code == Some(1) && said.contains("error: model.target_modules names no layer: name some, such as"),
        "{said}"
    );
}
