//! What is measured while a model trains, and what follows from it: the best checkpoint, and the end of the run.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use runs::{fail, files, newest, recipe, root, succeed, text};
use serde_json::Value;
use tune_core::checkpoint::run::checkpoints;

const QUESTIONS: &str = "recipes/tiny/data/held_out.jsonl";
const VALIDATION: &str = "dataset_val={_component_: chat, data_files: [recipes/tiny/data/held_out.jsonl]}";

/// A short run of a recipe's tiny config into a folder, with overrides in one text.
fn args(name: &str, out: &Path, more: &str) -> Vec<String> {
    let mut args = vec!["--config".to_owned(), format!("configs/{name}/tiny.yaml")];
    args.extend([format!("output_dir={}", out.display()), "overwrite=false".to_owned(), "seed=5".to_owned()]);
    args.extend(["log_every_n_steps=1", "batch_size=4", "max_steps_per_epoch=24", "epochs=1"].map(str::to_owned));
    args.extend((name == "lora").then(|| "~exact_match".to_owned()));
    args.extend(more.split("  ").filter(|part| !part.is_empty()).map(str::to_owned));
    args
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// The records of a run's log, without times.
fn records(out: &Path) -> Vec<Value> {
    let log = fs::read_to_string(out.join("logs/metrics.jsonl")).unwrap();
    let timeless = |line: &str| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        let fields = record.as_object_mut().unwrap();
        fields.retain(|name, _| !name.contains("second") && !name.contains("memory") && name != "time");
        record
    };
    log.lines().map(timeless).collect()
}

/// The steps and values of what was recorded under a name.
fn recorded(out: &Path, name: &str) -> Vec<(u64, f64)> {
    let value = |record: &Value| Some((record["step"].as_u64()?, record[name].as_f64()?));
    records(out).iter().filter_map(value).collect()
}

fn steps(out: &Path) -> Vec<u64> {
    checkpoints(out).unwrap().iter().map(|saved| saved.step).collect()
}

/// Learns so little that no answer changes: the share of right ones is never better than at first.
const IDLE: &str = "optimizer.lr=1e-9  \
    evaluation=[{data_file: recipes/tiny/data/held_out.jsonl, split: 'train[:6]', max_new_tokens: 16}]  \
    run_eval_every_n_steps=3  early_stopping={monitor: held_out/exact_match, patience: 2}";

#[test]
fn a_run_ends_where_a_metric_no_longer_gets_better() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["lora", "full"] {
        let out = folder.path().join(name);
        let more = format!("{IDLE}  metric_logger=[jsonl, csv, tensorboard, wandb]");
        let run = succeed(name, &borrowed(&args(name, &out, &more)));
        let (said, end) = (text(&run.stderr), text(&run.stdout));
        // Measured after 3, 6 and 9 steps: twice no better than at first.
        assert_eq!(recorded(&out, "held_out/exact_match").iter().map(|at| at.0).collect::<Vec<_>>(), [0, 3, 6, 9]);
        assert_eq!(recorded(&out, "loss").last().unwrap().0, 9);
        assert_eq!(steps(&out), [9], "what ends a run is saved");
        let (_, share) = recorded(&out, "held_out/exact_match")[0];
        let why = format!(
            "up to step 9, held_out/exact_match was no better 2 times in a row than the {share:.4} after step 3"
        );
        assert!(end.contains(&format!("Stopped early: {why}")), "{end}");
        assert!(said.contains(&format!("step 9: early stopping: {why}")), "{said}");
        assert!(
            said.contains(&format!("held_out: 6 items of {QUESTIONS}, by exact_match, answer_perplexity")),
            "{said}"
        );
        assert!(
            said.contains(&format!("step 3: held_out/exact_match {share:.4}, held_out/answer_perplexity ")),
            "{said}"
        );
        assert_eq!(records(&out).iter().filter(|record| record.get("note").is_some()).count(), 1);
        let table = fs::read_to_string(out.join("logs/metrics.csv")).unwrap();
        assert!(table.lines().next().unwrap().contains("held_out/exact_match,held_out/answer_perplexity"), "{table}");
        for folder in [out.join("logs"), out.join("logs/wandb")] {
            assert!(holds(&folder, b"held_out/answer_perplexity"), "{}", folder.display());
        }
        // The checkpoint remembers all of it.
        let state = fs::read_to_string(newest(&out).join("training_state.json")).unwrap();
        let state: Value = serde_json::from_str(&state).unwrap();
        let measured = &state["extra"]["measured"]["values"]["held_out/exact_match"];
        assert_eq!(measured.as_array().unwrap().len(), 4, "{measured}");

        // It stays ended, unless there is more patience.
        let again = format!("{IDLE}  resume_from_checkpoint=true");
        let run = succeed(name, &borrowed(&args(name, &out, &again)));
        let told = "Early stopping has ended this run after step 9. To train on, raise early_stopping.patience";
        assert!(text(&run.stderr).contains(told), "{}", text(&run.stderr));
        assert!(text(&run.stdout).contains(&format!("Stopped early: {why}")));
        assert_eq!((steps(&out), recorded(&out, "loss").len()), (vec![9], 9));
        let run = succeed(name, &borrowed(&args(name, &out, &format!("{again}  early_stopping.patience=4"))));
        assert!(!text(&run.stderr).contains("Early stopping has ended"));
        assert_eq!(recorded(&out, "loss").last().unwrap().0, 15);
    }
}

/// Whether a file below a folder has these bytes in it.
fn holds(folder: &Path, bytes: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).any(|path| match path.is_dir() {
        true => holds(&path, bytes),
        false => fs::read(path).unwrap().windows(bytes.len()).any(|window| window == bytes),
    })
}

/// Killed wherever it is, a run that is resumed ends after the same step, with the same files and the same log.
#[test]
fn a_killed_run_has_the_same_patience() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let more = format!("{IDLE}  checkpointer.save_every_n_steps=2  samples.prompts=['Write a-b in the secret code.']");
    succeed("lora", &borrowed(&args("lora", &whole, &more)));
    for (i, step) in [2, 6].into_iter().enumerate() {
        let resume = format!("{more}  resume_from_checkpoint={}", i > 0);
        let args = args("lora", &killed, &resume);
        let mut child = recipe("lora", &borrowed(&args)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while steps(&killed).last().is_none_or(|&last| last < step) {
            assert!(begun.elapsed() < Duration::from_secs(120), "no checkpoint came");
            std::thread::sleep(Duration::from_micros(300));
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "it had ended before it was killed");
    }
    succeed("lora", &borrowed(&args("lora", &killed, &format!("{more}  resume_from_checkpoint=true"))));
    assert_eq!(steps(&killed).last(), Some(&9));
    assert_eq!(newest(&whole).file_name(), newest(&killed).file_name());
    for ((file, a), (_, b)) in files(&newest(&whole)).iter().zip(&files(&newest(&killed))) {
        assert!(a == b, "{file} differs");
    }
    assert_eq!(records(&whole), records(&killed));
    let samples = records(&whole).into_iter().filter(|record| record.get("samples").is_some());
    assert_eq!(samples.map(|record| record["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 3, 6, 9]);
}

/// The best by a metric of a task stays beside the newest; and the metric is what `tune eval` finds of that checkpoint.
#[test]
fn the_best_checkpoint_by_any_metric_is_kept_and_measured_as_eval_measures_it() {
    let folder = tempfile::tempdir().unwrap();
    let items = folder.path().join("mixed.jsonl");
    let lines = [
        r#"{"prompt": "Write a-b in the secret code.", "answer": "b-c"}"#,
        r#"{"messages": [{"role": "user", "content": "Write d-o-t in the secret code."}, {"role": "assistant", "content": "e-p-u"}]}"#,
        r#"{"prompt": "Write a-b in the secret code.", "choices": ["b-c", "a-b", "x"], "answer": 0}"#,
        r#"{"prompt": "Write a-b in the secret code.", "regex": "-"}"#,
        r#"{"prompt": "Write a-b in the secret code.", "schema": {"type": "object"}}"#,
        r#"{"text": "the quick brown fox"}"#,
    ];
    fs::write(&items, lines.join("\n")).unwrap();
    let out = folder.path().join("out");
    let by = "mixed/answer_perplexity";
    // So fast that it gets worse before long.
    let more = format!(
        "evaluation={{data_file: {}, max_new_tokens: 12}}  checkpointer.save_every_n_steps=4  clip_grad_norm=null  \
         checkpointer.keep_last_n_checkpoints=1  checkpointer.keep_best=true  checkpointer.best_by={by}  \
         lr_scheduler=constant  optimizer.lr=0.05",
        items.display()
    );
    let run = succeed("lora", &borrowed(&args("lora", &out, &more)));
    let found = recorded(&out, by);
    assert_eq!(found.iter().map(|at| at.0).collect::<Vec<_>>(), [0, 4, 8, 12, 16, 20, 24], "wherever it saves");
    let best = *found[1..].iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let kept = if best.0 == 24 { vec![24] } else { vec![best.0, 24] };
    assert_eq!(steps(&out), kept, "{found:?}");
    let last = found.last().unwrap();
    let end = text(&run.stdout);
    assert!(end.contains(&format!("{by} {:.4} after step 24", last.1)), "{end}");
    if best.0 != 24 {
        let path = &checkpoints(&out).unwrap()[0].path;
        assert!(
            end.contains(&format!("; the best was {:.4} after step {}: {}", best.1, best.0, path.display())),
            "{end}"
        );
    }
    let lines = folder.path().join("results.jsonl");
    let eval = Command::new(env!("CARGO_BIN_EXE_tune"))
        .current_dir(root())
        .args(["eval", "--alone", "--max-new-tokens", "12", "--results"])
        .args([&lines, &newest(&out), &items])
        .output()
        .unwrap();
    let table = text(&eval.stdout);
    assert!(eval.status.success(), "{}", text(&eval.stderr));
    let names = ["exact_match", "regex", "json_schema", "choice", "choice_per_byte", "answer_perplexity", "perplexity"];
    for name in names {
        let (step, value) = *recorded(&out, &format!("mixed/{name}")).last().unwrap();
        let row = table.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        let theirs: f64 = row.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(step == 24 && (theirs - value).abs() <= 1e-4 * (1.0 + value), "{name}: {value} {row}");
    }
}

#[test]
fn preferences_are_selected_by_their_own_metrics_and_by_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let more = format!(
        "run_val_every_n_steps=2  evaluation={{data_file: {QUESTIONS}, split: 'train[:4]', max_new_tokens: 8, name: asked}}  \
         early_stopping={{monitor: val_rewards/accuracies, patience: 2, min_delta: 1.0}}  checkpointer.keep_best=true  \
         checkpointer.keep_last_n_checkpoints=1"
    );
    let run = succeed("dpo", &borrowed(&args("dpo", &out, &more)));
    let end = text(&run.stdout);
    assert!(
        end.contains("Stopped early: up to step 6, val_rewards/accuracies was no better by more than 1 2 times"),
        "{end}"
    );
    assert!(end.contains("val_rewards/accuracies "), "{end}");
    assert_eq!(recorded(&out, "asked/exact_match").iter().map(|at| at.0).collect::<Vec<_>>(), [0]);
    assert_eq!(recorded(&out, "loss").last().unwrap().0, 6);
}

/// A student, and a model that learns from rewards, are measured on tasks and end as the others do.
#[test]
fn students_and_policies_are_selected_by_tasks() {
    let folder = tempfile::tempdir().unwrap();
    for (name, own) in [
        ("distill", "teacher_checkpointer.checkpoint_dir=recipes/tiny/model  ~dataset_val"),
        ("ppo", "samples=2  max_new_tokens=8  ~dataset_val"),
        ("grpo", "samples=2  max_new_tokens=8  ~dataset_val"),
    ] {
        let out = folder.path().join(name);
        let more = format!("{IDLE}  {own}  checkpointer.save_every_n_steps=6  checkpointer.keep_best=true");
        let end = text(&succeed(name, &borrowed(&args(name, &out, &more))).stdout);
        assert_eq!(recorded(&out, "held_out/exact_match").iter().map(|at| at.0).collect::<Vec<_>>(), [0, 3, 6, 9]);
        assert!(
            end.contains("Stopped early: up to step 9, held_out/exact_match was no better 2 times"),
            "{name}: {end}"
        );
        // It stays ended.
        succeed(name, &borrowed(&args(name, &out, &format!("{more}  resume_from_checkpoint=true"))));
        assert_eq!(recorded(&out, "loss").last().unwrap().0, 9, "{name}");
    }
}

/// Samples are shown and logged; what is drawn depends on seed and step alone.
#[test]
fn answers_are_shown_while_the_model_trains() {
    let folder = tempfile::tempdir().unwrap();
    let samples = "samples={prompts: ['Write a-b in the secret code.', 'Hello!'], max_new_tokens: 8, temperature: 1.5}  \
                   run_eval_every_n_steps=2  max_steps_per_epoch=4";
    let run = |name: &str| {
        let out = folder.path().join(name);
        let said = text(&succeed("lora", &borrowed(&args("lora", &out, samples))).stderr);
        let records = records(&out);
        (said, records.into_iter().filter(|record| record.get("samples").is_some()).collect::<Vec<_>>())
    };
    let (said, records) = run("first");
    assert_eq!(records.iter().map(|record| record["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2, 4]);
    for record in &records {
        let answers = record["samples"].as_array().unwrap();
        assert_eq!((answers.len(), answers[1]["prompt"].as_str()), (2, Some("Hello!")));
        let shown = answers[0]["answer"].as_str().unwrap().lines().next().unwrap_or_default();
        let title = format!("step {}: samples\n  Write a-b in the secret code.\n  -> ", record["step"]);
        assert!(said.contains(&title) && said.contains(shown), "{said}");
    }
    assert_eq!(run("second").1, records);
}

/// A program judges; where it fails, the run says where it can go on.
#[cfg(unix)]
#[test]
fn a_program_judges_while_the_model_trains() {
    let folder = tempfile::tempdir().unwrap();
    let program = |name: &str, rest: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\nn=0\nwhile read -r line; do n=$((n + 1)); {rest}; done\n")).unwrap();
        path
    };
    let with = |path: &Path| {
        format!(
            "evaluation={{data_file: {QUESTIONS}, split: 'train[:4]', max_new_tokens: 4, program: sh {}}}  \
             run_eval_every_n_steps=2  max_steps_per_epoch=4  checkpointer.save_every_n_steps=2",
            path.display()
        )
    };
    let out = folder.path().join("out");
    // It is started once: four answers each time.
    let judge = program("judge.sh", "echo \"{\\\"score\\\": $((n > 8 ? 1 : 0))}\"");
    succeed("lora", &borrowed(&args("lora", &out, &with(&judge))));
    assert_eq!(recorded(&out, "held_out/program"), [(0, 0.0), (2, 0.0), (4, 1.0)]);

    let dies = program("dies.sh", "test $n -gt 8 && exit 3; echo '{\"score\": 1}'");
    let out = folder.path().join("dies");
    let error = fail("lora", &borrowed(&args("lora", &out, &with(&dies))));
    assert!(
        error.contains("the program `sh ") && error.contains("epoch_0_step_2: set that right and resume from it"),
        "{error}"
    );
}

/// What cannot be right is said before anything is written, with the key that says it.
#[test]
fn what_is_never_measured_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let task = format!("evaluation={{data_file: {QUESTIONS}, split: 'train[:4]'}}");
    let texts = folder.path().join("texts.jsonl");
    fs::write(&texts, "{\"text\": \"abc\"}\n").unwrap();
    let texts = texts.display();
    let monitor = |name: &str| format!("early_stopping.monitor={name}");
    for (more, expected) in [
        (
            monitor("val_loss"),
            "early_stopping.monitor: `val_loss` is never measured: there is no dataset_val. Nothing is measured yet",
        ),
        (
            format!("{task}  {}", monitor("val_loss")),
            "early_stopping.monitor: `val_loss` is never measured: there is no dataset_val. What is measured: held_out/exact_match, held_out/answer_perplexity",
        ),
        (
            format!("{task}  {}", monitor("exact_match")),
            "`exact_match` is measured of a task: say which, as in `held_out/exact_match`",
        ),
        (
            format!("{task}  {}", monitor("held_out/regex")),
            "is never measured: recipes/tiny/data/held_out.jsonl has no item that `regex` is for",
        ),
        (
            format!("{task}  {}", monitor("held_out/accuracy")),
            "`held_out/accuracy` is no metric of a task; these are exact_match, regex",
        ),
        (format!("{task}  {}", monitor("other/regex")), "is of a task `other`, which `evaluation` does not have"),
        (format!("{task}  {}", monitor("val_rewards/margins")), "is of a task `val_rewards`"),
        (
            format!("{task}  checkpointer.keep_best=true  checkpointer.best_by=held_out/choice"),
            "checkpointer.best_by: `held_out/choice` is never measured",
        ),
        (
            format!("evaluation={{data_file: {texts}, program: cat}}"),
            "evaluation.0: program: there is no answer for it to judge",
        ),
        (
            format!("evaluation=[{{data_file: {texts}}}, {{data_file: {texts}}}]"),
            "evaluation.1: another task is called `texts`, too",
        ),
        (format!("evaluation={{data_file: {texts}, name: a/b}}"), "evaluation.0: `a/b` names no task"),
        (
            format!("evaluation={{data_file: {texts}, split: 'train[5:]'}}"),
            "evaluation.0: the split `train[5:]` takes none of 1",
        ),
        ("evaluation={data_file: nowhere.jsonl}".to_owned(), "evaluation.0: cannot read nowhere.jsonl"),
        ("samples.prompts=[]".to_owned(), "samples.prompts: there is no prompt"),
        (format!("samples.prompts=['{}']", "word ".repeat(300)), "samples.prompts.0: the prompt has "),
        ("run_eval_every_n_steps=5".to_owned(), "run_eval_every_n_steps is 5, and there is nothing to evaluate"),
    ] {
        let args = args("lora", &out, &more);
        let error = fail("lora", &borrowed(&args));
        assert!(error.contains(expected), "{more}: {error}");
        let check: Vec<&str> = borrowed(&args).into_iter().chain(["--check"]).collect();
        let answer = recipe("lora", &check).output().unwrap();
        let said = text(&answer.stdout);
        assert!(answer.status.code() == Some(1) && said.contains(expected), "{more}: {said}");
        assert!(!out.exists(), "{more}");
    }
    // Settings without effect are told, and no more.
    for (more, expected) in [
        (
            format!("{VALIDATION}  early_stopping.patience=4  run_val_every_n_steps=6"),
            "warning: early_stopping cannot end this run: val_loss is measured 3 times before the last of its 24 steps, and \
             early_stopping.patience is 4; set a smaller run_val_every_n_steps",
        ),
        (
            format!("{task}  checkpointer.best_by=held_out/exact_match"),
            "warning: checkpointer.best_by is held_out/exact_match, and has no effect",
        ),
    ] {
        let args = args("lora", &out, &more);
        let check: Vec<&str> = borrowed(&args).into_iter().chain(["--check"]).collect();
        let answer = recipe("lora", &check).output().unwrap();
        let said = text(&answer.stdout);
        assert!(answer.status.success() && said.contains(expected), "{more}: {said}");
    }
}
