//! The recipe `kto` as a user runs it: what it learns of answers with labels, with each loss and each kind of reference, and what a
//! mistake is told.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;

use runs::{fail, files, log, newest, numbers, root, run, succeed, text};
use serde_json::Value;

const CONFIG: &str = "configs/kto/tiny.yaml";

/// What a run logged, steps and validations.
fn logged(output_dir: &Path) -> (Vec<Value>, Vec<Value>) {
    log(output_dir).into_iter().partition(|record| record.get("loss").is_some())
}

/// Runs the tiny config for a few steps, each logged, into a folder of that name.
fn short(folder: &Path, name: &str, extra: &[&str]) -> Vec<Value> {
    let dir = folder.join(name);
    let output = format!("output_dir={}", dir.display());
    let mut args = vec!["--config", CONFIG, &output, "epochs=2", "max_steps_per_epoch=2", "log_every_n_steps=1"];
    args.extend(["~dataset_val", "lr_scheduler.num_warmup_steps=1"]);
    args.extend(extra);
    succeed("kto", &args);
    logged(&dir).0
}

#[test]
fn a_model_comes_to_answer_as_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    let run = succeed("kto", &["--config", CONFIG, &output, "log_every_n_steps=1", "save_adapter_weights_only=false"]);
    let (steps, validations) = logged(folder.path());
    for key in ["rewards/chosen", "rewards/rejected", "rewards/margins", "kl", "log_probs/chosen", "log_probs/rejected"]
    {
        assert_eq!(numbers(&validations, &format!("val_{key}")).len(), validations.len(), "{key}");
    }
    assert_eq!(numbers(&steps, "kl").len(), steps.len());
    // Before the first step the model is its reference.
    assert!((numbers(&steps, "loss")[0] - 0.5).abs() < 1e-6);
    assert_eq!(numbers(&steps, "kl")[0], 0.0);
    let (before, after) = (&validations[0], validations.last().unwrap());
    assert_eq!((before["step"].as_u64(), before["val_rewards/margins"].as_f64()), (Some(0), Some(0.0)));
    assert!(after["val_loss"].as_f64().unwrap() < 0.35, "{after}");
    assert!(after["val_rewards/margins"].as_f64().unwrap() > 1.0, "{after}");
    let said = text(&run.stderr);
    assert!(
        said.contains("Kahneman-Tversky optimization") && said.contains("margins") && said.contains("kl "),
        "{said}"
    );

    // The adapter and the merged model are read as those of `lora` are.
    let saved = newest(folder.path());
    let answer = |model: &str| {
        let args = ["--config", "configs/generate/tiny.yaml", model, "prompt=Write b-a-d-e in the secret code."];
        text(&succeed("generate", &args).stdout)
    };
    let adapted = answer(&format!("adapter_dir={}", saved.display()));
    assert_eq!(adapted, answer(&format!("checkpoint_dir={}", saved.join("merged").display())));
}

#[test]
fn every_kind_of_reference_gives_the_same_run() {
    let folder = tempfile::tempdir().unwrap();
    // Where good answers count for more, the model gives answers like them to other questions, too: it moves.
    let moves = "loss.undesirable_weight=0.2";
    let adapters_off = short(folder.path(), "off", &[moves]);
    assert!(numbers(&adapters_off, "kl")[3] > 0.0, "{adapters_off:?}");
    let base = "ref_checkpointer.checkpoint_dir=recipes/tiny/model";
    for (name, extra) in [
        ("precomputed", &["reference=precomputed"][..]),
        ("second", &[base]),
        ("second_precomputed", &[base, "reference=precomputed"]),
        ("checkpointed", &["enable_activation_checkpointing=true"]),
    ] {
        let other = short(folder.path(), name, &[extra, &[moves]].concat());
        for key in ["loss", "grad_norm", "kl", "rewards/margins", "log_probs/rejected"] {
            assert_eq!(numbers(&adapters_off, key), numbers(&other, key), "{name}: {key}");
        }
    }
    let full = short(folder.path(), "full", &["~model", "optimizer.lr=1e-5", moves]);
    let precomputed =
        short(folder.path(), "full_precomputed", &["~model", "optimizer.lr=1e-5", moves, "reference=precomputed"]);
    assert_eq!(numbers(&full, "loss"), numbers(&precomputed, "loss"));
    assert!(newest(&folder.path().join("full")).join("model.safetensors").is_file());
}

/// Shuffled epochs have other mismatched answers each. What was said of all is kept, and what is kept is told from what is damaged and from
/// what is another run's.
#[test]
fn a_run_that_is_resumed_does_not_ask_its_reference_again() {
    const ASKS: &str = "Asking the reference model about the answers";
    let folder = tempfile::tempdir().unwrap();
    let go = |name: &str, extra: &[&str]| {
        let output = format!("output_dir={}", folder.path().join(name).display());
        let keys = ["--config", CONFIG, &output, "overwrite=false", "reference=precomputed", "max_steps_per_epoch=2"];
        let rest = ["loss.undesirable_weight=0.2", "lr_scheduler.num_warmup_steps=1"];
        text(&succeed("kto", &[&keys[..], &rest, extra].concat()).stderr)
    };
    let kept_in = |name: &str| folder.path().join(name).join("reference_answers.safetensors");
    assert!(go("whole", &[]).contains(ASKS));
    go("other", &["dataset.split=train[:50%]"]);
    let (dir, kept) = (folder.path().join("whole"), kept_in("whole"));
    let (whole, bytes, of_other) =
        (files(&newest(&dir)), fs::read(&kept).unwrap(), fs::read(kept_in("other")).unwrap());
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    for (there, asks) in [
        (Some(bytes.clone()), None),
        (Some(bytes[..bytes.len() / 2].to_vec()), Some("is truncated")),
        (Some(damaged), Some("is damaged: it is not what a run wrote there; the reference model is asked again")),
        (
            Some(of_other),
            Some("what the reference model said there is of another run; the reference model is asked again"),
        ),
        (None, Some(ASKS)),
    ] {
        // Back to the end of the first epoch.
        fs::remove_dir_all(newest(&dir)).unwrap();
        match &there {
            Some(there) => fs::write(&kept, there).unwrap(),
            None => fs::remove_file(&kept).unwrap(),
        }
        let told = go("whole", &["resume_from_checkpoint=true"]);
        assert_eq!(told.contains(ASKS), asks.is_some(), "{asks:?}: {told}");
        assert!(told.contains(asks.unwrap_or_default()), "{asks:?}: {told}");
        assert!(files(&newest(&dir)) == whole, "{asks:?}");
        assert!(fs::read(&kept).unwrap() == bytes, "{asks:?}");
    }
    // Where it cannot be written, the run goes on without.
    let back = || fs::remove_dir_all(newest(&dir)).unwrap();
    back();
    fs::remove_file(&kept).unwrap();
    fs::create_dir_all(kept.join("in the way")).unwrap();
    let told = go("whole", &["resume_from_checkpoint=true"]);
    assert!(told.contains("a run that is resumed here will ask the reference model again"), "{told}");
    assert!(files(&newest(&dir)) == whole);
    let left = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.contains("partial")).count(), 0);
    fs::remove_dir_all(&kept).unwrap();
    fs::write(&kept, &bytes).unwrap();

    // Of other validation data it is asked about what is new, and what it says is what it says where it is asked about all.
    back();
    let validated = "dataset_val.split=train[80%:]";
    let told = go("whole", &["resume_from_checkpoint=true", validated]);
    assert!(told.contains("samples is kept: it is not asked about these") && told.contains(ASKS), "{told}");
    assert!(!go("otherwise", &[validated]).contains("is kept"));
    let last = |name: &str| logged(&folder.path().join(name)).1.pop().unwrap();
    for key in ["val_loss", "val_kl", "val_rewards/margins"] {
        assert_eq!(last("whole")[key], last("otherwise")[key], "{key}");
    }
    assert!(last("whole")["val_kl"].is_f64() && fs::read(&kept).unwrap() != bytes);

    // A new run in the folder begins without.
    go("whole", &["overwrite=true", "reference=each_step"]);
    assert!(!kept.exists());
}

#[test]
fn how_far_the_model_has_moved_is_one_number_for_all_micro_batches() {
    let folder = tempfile::tempdir().unwrap();
    let halves =
        short(folder.path(), "halves", &["batch_size=4", "gradient_accumulation_steps=2", "optimizer.lr=2e-3"]);
    let losses = numbers(&halves, "loss");
    assert!((losses[0] - 0.5).abs() < 1e-6 && losses[3] < losses[0], "{losses:?}");
    assert_eq!(numbers(&halves, "kl").len(), 4);
    // A loss that does not ask for it has the steps of the same answers, however they are divided.
    let apo = |name: &str, extra: &[&str]| short(folder.path(), name, &[&["loss=apo_zero_unpaired"], extra].concat());
    let (whole, parts) = (apo("whole", &[]), apo("parts", &["batch_size=1", "gradient_accumulation_steps=8"]));
    for (a, b) in numbers(&whole, "loss").iter().zip(&numbers(&parts, "loss")) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    assert_eq!((numbers(&whole, "kl").len(), numbers(&whole, "loss").len()), (0, 4));
}

#[test]
fn weights_say_what_labels_count() {
    let folder = tempfile::tempdir().unwrap();
    let plain = short(folder.path(), "plain", &[]);
    let double = short(folder.path(), "double", &["loss.desirable_weight=2", "loss.undesirable_weight=2"]);
    assert!((numbers(&double, "loss")[0] - 2.0 * numbers(&plain, "loss")[0]).abs() < 1e-6);
    assert_eq!(
        numbers(
            &short(folder.path(), "nothing", &["loss.desirable_weight=0", "loss.undesirable_weight=0"]),
            "grad_norm"
        ),
        [0.0; 4]
    );
}

#[test]
fn mistakes_are_told_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let output = format!("output_dir={}", dir.display());
    let data = |name: &str, replace: &dyn Fn(&str) -> String| {
        let lines = fs::read_to_string(root().join("recipes/tiny/data/answers.jsonl")).unwrap();
        let path = folder.path().join(name);
        fs::write(&path, replace(&lines)).unwrap();
        format!("dataset.data_files=[{}]", path.display())
    };
    let text_label = data("text.jsonl", &|lines| lines.replace("\"label\":true", "\"label\":\"good\""));
    let no_label = data("none.jsonl", &|lines| lines.replacen(",\"label\":true", "", 1));
    for (args, expected) in [
        (&["batch_size=1"][..], "batch_size must be 2 or more"),
        (&["loss=kot"], "did you mean `kto`?"),
        (&["loss.desirable_wieght=2"], "did you mean `desirable_weight`?"),
        (&["dataset._component_=preference_instruct"], "unpaired_instruct"),
        (&["dataset.column_map.label=lable"], "no column `lable`"),
        (&["dataset.column_map.label=lable"], "did you mean `label`?"),
        (&["dataset._component_=unpaired"], "no column `messages`"),
        (
            &[&text_label],
            "text.jsonl:1: column `label` is \"good\"; a label is true for a good answer and false for a bad one",
        ),
        (&[&no_label], "none.jsonl:1: no column `label`"),
        (&["~model", "checkpointer.adapter_checkpoint=x"], "checkpointer.adapter_checkpoint needs model.lora_rank"),
        (&["ref_checkpointer.checkpoint_dir=nowhere"], "nowhere: does not exist"),
    ] {
        let mut all = vec!["--config", CONFIG, &output];
        all.extend(args);
        let error = fail("kto", &all);
        assert!(error.contains(expected), "{args:?}: {error}");
        let check = run("kto", &[&["--check"], all.as_slice()].concat());
        assert_ne!(check.status.code(), Some(0), "{args:?}");
    }
    // Of labels that are all the same it is only told.
    let same = data("same.jsonl", &|lines| lines.replace("\"label\":false", "\"label\":true"));
    let check = run("kto", &["--check", "--config", CONFIG, &output, &same, "~dataset_val"]);
    let said = text(&check.stdout);
    assert!(said.contains("answers are labelled good"), "{said}");
    assert!(!dir.exists());
}

#[test]
fn a_run_does_not_go_on_with_other_labels() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answers.jsonl");
    let lines = fs::read_to_string(root().join("recipes/tiny/data/answers.jsonl")).unwrap();
    fs::write(&file, &lines).unwrap();
    let (output, data) = (
        format!("output_dir={}", folder.path().join("out").display()),
        format!("dataset.data_files=[{}]", file.display()),
    );
    let mut args = vec!["--config", CONFIG, &output, &data, "epochs=1", "max_steps_per_epoch=2", "overwrite=false"];
    args.extend(["~dataset_val", "lr_scheduler.num_warmup_steps=0"]);
    succeed("kto", &args);
    args.push("resume_from_checkpoint=true");
    succeed("kto", &args);
    fs::write(&file, lines.replacen("\"label\":true", "\"label\":false", 1)).unwrap();
    let error = fail("kto", &args);
    assert!(error.contains("cannot resume: the training data changed since the run began"), "{error}");
}
