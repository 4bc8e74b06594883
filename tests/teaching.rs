//! `distill` from what a teacher said once and for all, and from what it thinks of the student's own answers.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use runs::{fail, files, log, newest, numbers, root, run, succeed, text};
use serde_json::Value;
use tempfile::TempDir;

const CONFIG: &str = "configs/distill/tiny.yaml";
/// Tokens of the tiny model.
const VOCAB: usize = 384;

/// A teacher that knows the code somewhat: the run of `full` that the config names, ended early.
static TEACHER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    succeed("full", &["--config", "configs/full/tiny.yaml", &output, "max_steps_per_epoch=30"]);
    folder
});

/// The arguments of a run of four steps into a folder, with a teacher or without.
fn args(dir: &Path, teacher: Option<&Path>, extra: &[String]) -> Vec<String> {
    let mut args = vec!["--config".to_owned(), CONFIG.to_owned(), format!("output_dir={}", dir.display())];
    args.push(match teacher {
        Some(teacher) => format!("teacher_checkpointer.checkpoint_dir={}", teacher.display()),
        None => "~teacher_checkpointer".to_owned(),
    });
    let rest =
        ["epochs=1", "max_steps_per_epoch=4", "~dataset_val", "log_every_n_steps=1", "lr_scheduler.num_warmup_steps=1"];
    args.extend(rest.map(str::to_owned));
    args.extend_from_slice(extra);
    args
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn short(dir: &Path, teacher: Option<&Path>, extra: &[&str]) -> Vec<Value> {
    let extra: Vec<String> = extra.iter().map(|one| (*one).to_owned()).collect();
    succeed("distill", &borrowed(&args(dir, teacher, &extra)));
    log(dir)
}

/// The keys that keep `top_k` tokens in a folder.
fn kept_in(path: &Path, top_k: usize) -> [String; 2] {
    [format!("teacher_logits.path={}", path.display()), format!("teacher_logits.top_k={top_k}")]
}

/// A copy of the teacher's newest checkpoint, as a model without the state of its run.
fn copy_of_teacher(to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    let of_run = |name: &str| name.starts_with("training_state") || name.starts_with("optimizer");
    for (name, bytes) in files(&newest(TEACHER.path())).into_iter().filter(|(name, _)| !of_run(name)) {
        fs::write(to.join(name), bytes).unwrap();
    }
    to.to_owned()
}

#[test]
fn what_a_teacher_says_of_all_tokens_teaches_as_it_does_itself() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Some(TEACHER.path());
    for kd_loss in ["forward_kl", "reverse_kl", "symmetric_kl", "generalized_jsd"] {
        let chosen = format!("kd_loss={kd_loss}");
        let [path, top_k] = kept_in(&folder.path().join(format!("said_{kd_loss}")), VOCAB);
        let live = short(&folder.path().join("live"), teacher, &[&chosen]);
        let kept = short(&folder.path().join("kept"), teacher, &[&chosen, &path, &top_k]);
        for key in ["loss", "kd_loss", "class_loss", "grad_norm"] {
            let (live, kept) = (numbers(&live, key), numbers(&kept, key));
            assert_eq!((live.len(), kept.len()), (4, 4), "{key}");
            for (a, b) in live.iter().zip(&kept) {
                assert!((a - b).abs() < 1e-4 * a, "{kd_loss}, {key}: {live:?} {kept:?}");
            }
        }
    }
}

#[test]
fn what_was_said_once_is_learnt_without_the_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = copy_of_teacher(&folder.path().join("teacher"));
    let said = folder.path().join("said");
    let [path, top_k] = kept_in(&said, 8);
    let first = short(&folder.path().join("first"), Some(&teacher), &[&path, &top_k]);
    let divergence = numbers(&first, "kd_loss");
    assert!(divergence[3] < 0.9 * divergence[0], "{divergence:?}");
    // Less is known of it than all tokens tell.
    let live = short(&folder.path().join("live"), Some(&teacher), &[]);
    assert!(divergence[0] < numbers(&live, "kd_loss")[0] + 1e-6, "{divergence:?}");

    // Neither the seed nor rows that samples share change what is stored of them.
    fs::remove_dir_all(&teacher).unwrap();
    let again = short(&folder.path().join("again"), None, &[&path, &top_k]);
    for key in ["loss", "kd_loss", "class_loss", "grad_norm"] {
        assert_eq!(numbers(&first, key), numbers(&again, key), "{key}");
    }
    let packed = short(&folder.path().join("packed"), None, &[&path, &top_k, "dataset.packed=true", "seed=7"]);
    let divergence = numbers(&packed, "kd_loss");
    assert!(divergence[3] < divergence[0], "{divergence:?}");

    let checked =
        run("distill", &[&["--check"][..], &borrowed(&args(&folder.path().join("x"), None, &[path, top_k]))].concat());
    let stdout = text(&checked.stdout);
    assert!(checked.status.success(), "{stdout}");
    assert!(stdout.contains("what it said of the training data, 8 tokens a position"), "{stdout}");
}

#[test]
fn a_run_that_is_resumed_goes_on_from_what_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let [path, top_k] = kept_in(&folder.path().join("said"), 16);
    let whole = folder.path().join("whole");
    let keys = ["epochs=2", "overwrite=false", "model.lora_dropout=0.1", &path, &top_k];
    short(&whole, Some(TEACHER.path()), &keys);
    let parted = folder.path().join("parted");
    short(&parted, Some(TEACHER.path()), &keys);
    // Back to the end of the first epoch; the teacher may be gone by now.
    fs::remove_dir_all(newest(&parted)).unwrap();
    short(&parted, None, &[&keys[..], &["resume_from_checkpoint=true"]].concat());
    let (whole, parted) = (files(&newest(&whole)), files(&newest(&parted)));
    assert_eq!(whole.len(), parted.len());
    for ((name, a), (_, b)) in whole.iter().zip(&parted) {
        assert!(a == b, "{name} differs");
    }
}

#[test]
fn what_was_said_of_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    let teacher = copy_of_teacher(&folder.path().join("teacher"));
    let [path, top_k] = kept_in(&said, 8);
    short(&folder.path().join("out"), Some(&teacher), &[&path, &top_k]);
    let expect = |teacher: Option<&Path>, extra: &[&str], expected: &str| {
        let dir = folder.path().join("refused");
        let extra: Vec<String> = extra.iter().map(|one| (*one).to_owned()).collect();
        let args = args(&dir, teacher, &extra);
        let refused = fail("distill", &borrowed(&args));
        assert!(refused.contains(expected), "{expected}: {refused}");
        let checked = run("distill", &[&["--check"][..], &borrowed(&args)].concat());
        let checked = text(&checked.stdout) + &text(&checked.stderr);
        assert!(checked.contains(expected), "{expected}: {checked}");
        assert!(!dir.exists());
    };
    expect(None, &[&path, "teacher_logits.top_k=9"], "is stored with top_k=8 (teacher_logits.top_k is 9)");
    expect(
        None,
        &[&path, &top_k, "dataset.split=train"],
        "is stored for other data: recipes/tiny/data/secret_code.jsonl:",
    );
    expect(None, &[&path, &top_k, "dataset.split=train"], "dataset.0.split was \"train[:25%]\" and is \"train\"");
    let template = folder.path().join("template.jinja");
    let other = "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content }}<|im_end|>\n{% endfor %}\
                 {% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}";
    fs::write(&template, other).unwrap();
    let template = format!("tokenizer.chat_template={}", template.display());
    expect(None, &[&path, &top_k, &template], "the chat template is another one");

    // Another teacher.
    let weights = teacher.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    expect(Some(&teacher), &[&path, &top_k], "by another teacher: the teacher is not that of teacher_checkpointer");
    // None at all.
    let nowhere = format!("teacher_logits.path={}", folder.path().join("nowhere").display());
    expect(None, &[&nowhere], "has no teacher.json: set teacher_checkpointer.checkpoint_dir");
    expect(None, &[], "there is no teacher: set teacher_checkpointer.checkpoint_dir");
    expect(Some(&teacher), &[&path, "on_policy={}"], "remove one of the two");
    // A folder with something else.
    fs::create_dir(folder.path().join("else")).unwrap();
    let elsewhere = format!("teacher_logits.path={}", folder.path().join("else").display());
    expect(Some(&teacher), &[&elsewhere], "is there already, and nothing is written over");

    // Files that were damaged since.
    let file = said.join("top_k-00001.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let refused = fail("distill", &borrowed(&args(&folder.path().join("refused"), None, &[path, top_k])));
    assert!(refused.contains("is damaged"), "{refused}");
}

const OWN: &str = "on_policy={share: 1, max_new_tokens: 12}";

#[test]
fn a_student_learns_from_its_own_answers() {
    let folder = tempfile::tempdir().unwrap();
    for (name, extra) in [
        ("adapters", &["kd_loss=reverse_kl"][..]),
        ("weights", &["~model", "optimizer.lr=1e-3", "enable_activation_checkpointing=true"]),
        ("bf16", &["dtype=bf16", "kd_loss=symmetric_kl", "on_policy.temperature=0.7"]),
        ("dropout", &["model.lora_dropout=0.1", "dataset.packed=true"]),
    ] {
        let records = short(&folder.path().join(name), Some(TEACHER.path()), &[&[OWN][..], extra].concat());
        let [loss, divergence, own] = ["loss", "kd_loss", "own_tokens"].map(|key| numbers(&records, key));
        // Of what it drew itself the divergence alone is minimized.
        assert_eq!(loss, divergence, "{name}");
        assert_eq!(own, [1.0; 4], "{name}");
        assert!(numbers(&records, "class_loss").is_empty(), "{name}");
        assert!(divergence.iter().all(|&d| d > 0.0), "{name}: {divergence:?}");
        assert!(numbers(&records, "grad_norm").iter().all(|&norm| norm > 0.0), "{name}");
    }
    // Some batches are the student's and some the data's.
    let both = ["on_policy={share: 0.5, max_new_tokens: 12}", "batch_size=2", "gradient_accumulation_steps=8"];
    let own = numbers(&short(&folder.path().join("both"), Some(TEACHER.path()), &both), "own_tokens");
    assert!(own.iter().any(|&share| share > 0.0 && share < 1.0), "{own:?}");
}

/// Without any answer of its own, it is the run without `on_policy`; what is drawn depends on the seed alone.
#[test]
fn what_is_drawn_depends_on_the_seed_alone() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Some(TEACHER.path());
    let run = |name: &str, extra: &[&str]| short(&folder.path().join(name), teacher, extra);
    let (plain, none) = (run("plain", &[]), run("none", &["on_policy={share: 0}"]));
    for key in ["loss", "kd_loss", "class_loss", "grad_norm"] {
        assert_eq!(numbers(&plain, key), numbers(&none, key), "{key}");
    }
    let own = |name: &str, extra: &[&str]| numbers(&run(name, &[&[OWN][..], extra].concat()), "loss");
    let first = own("first", &[]);
    assert_eq!(first, own("second", &[]));
    assert_ne!(first, own("third", &["seed=2"]));
    assert_ne!(first, own("fourth", &["on_policy.temperature=0.1"]));
}

/// Towards the teacher, as the data's validation loss tells, which the teacher knows and the student never sees an answer of.
#[test]
fn what_the_teacher_thinks_of_its_own_answers_brings_a_student_nearer_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    let teacher = format!("teacher_checkpointer.checkpoint_dir={}", TEACHER.path().display());
    succeed("distill", &["--config", CONFIG, &output, &teacher, OWN, "log_every_n_steps=1", "epochs=2"]);
    let records = log(folder.path());
    let (divergence, validated) = (numbers(&records, "kd_loss"), numbers(&records, "val_loss"));
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&divergence[..5]), mean(&divergence[divergence.len() - 5..]));
    assert!(last < 0.8 * first, "{divergence:?}");
    assert!(validated[validated.len() - 1] < 0.9 * validated[0], "{validated:?}");
}

#[test]
fn mistakes_with_own_answers_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let expect = |extra: &[&str], expected: &str| {
        let extra: Vec<String> = extra.iter().map(|one| (*one).to_owned()).collect();
        let refused = fail("distill", &borrowed(&args(&folder.path().join("out"), Some(TEACHER.path()), &extra)));
        assert!(refused.contains(expected), "{expected}: {refused}");
    };
    expect(&["on_policy.share=2"], "on_policy.share");
    let texts = "dataset={_component_: text, data_files: [recipes/tiny/data/labelled.jsonl]}";
    expect(&["on_policy.share=0.001", texts], "there is no prompt before its first trained token");
    expect(&["on_policy.max_new_tokens=100000"], "set on_policy.max_new_tokens=");
    assert!(root().join(CONFIG).is_file() && !folder.path().join("out").exists());
}
