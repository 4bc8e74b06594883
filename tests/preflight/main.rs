//! `--check` and `--plan`, as a user asks for them: a sound run, and each thing that can be wrong with one.
//! `UPDATE=1` writes the snapshot anew.

#![allow(clippy::unwrap_used)]

mod data;
mod model;
mod run;
#[path = "../common/runs.rs"]
mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runs::{recipe, root, succeed, text};
use serde_json::{Value, json};

/// A folder of a test, with an output folder that is not there yet.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name).display().to_string()
    }

    /// What `option` says of a recipe's tiny config with overrides, and the exit code. The run's folder stays as it is.
    fn ask(&self, name: &str, option: &str, overrides: &[&str]) -> (String, Option<i32>) {
        let (config, output) = (format!("configs/{name}/tiny.yaml"), self.output());
        let mut args = vec![option, "--config", &config, &output];
        args.extend(overrides);
        let before = files_below(&self.path("out"));
        let answer = recipe(name, &args).env_remove("CLICOLOR_FORCE").output().unwrap();
        assert_eq!(files_below(&self.path("out")), before, "{option} wrote into the run's folder");
        let errors = text(&answer.stderr);
        assert!(!errors.contains("panicked"), "{errors}");
        (text(&answer.stdout) + &errors, answer.status.code())
    }

    fn output(&self) -> String {
        format!("output_dir={}", self.path("out").display())
    }

    fn sound(&self, overrides: &[&str]) -> String {
        let (said, code) = self.ask("lora", "--check", overrides);
        assert_eq!(code, Some(0), "{said}");
        said
    }

    fn unsound(&self, overrides: &[&str]) -> String {
        let (said, code) = self.ask("lora", "--check", overrides);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("\nerror: ") && said.contains("This run would not succeed"), "{said}");
        said
    }

    /// A conversation a line, of questions and answers.
    fn conversations(&self, name: &str, turns: &[(&str, &str)]) -> String {
        let line = |(question, answer): &(&str, &str)| {
            json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
                .to_string()
        };
        let path = self.write(name, &turns.iter().map(line).collect::<Vec<_>>().join("\n"));
        format!("dataset.data_files={path}")
    }

    fn template(&self, source: &str) -> String {
        format!("tokenizer.chat_template={}", self.write("template.jinja", source))
    }

    /// The tiny model's folder with another config, and weights of that config's shapes that are holes in a file.
    fn model(&self, changes: &Value) -> String {
        let folder = self.path("model");
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in runs::files(&root().join("recipes/tiny/model")) {
            fs::write(folder.join(name), bytes).unwrap();
        }
        let mut config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        write_holes(&folder.join("model.safetensors"), &config);
        format!("checkpointer.checkpoint_dir={}", folder.display())
    }
}

/// A weights file with a header for the model of `config`, and nothing behind it that takes room on the disk.
fn write_holes(path: &Path, config: &Value) {
    let size = |key: &str| config[key].as_u64().unwrap();
    let (hidden, inner) = (size("hidden_size"), size("intermediate_size"));
    let (heads, kv_heads, head) = (size("num_attention_heads"), size("num_key_value_heads"), size("head_dim"));
    let mut shapes = vec![("model.embed_tokens".to_owned(), vec![size("vocab_size"), hidden])];
    shapes.push(("model.norm".to_owned(), vec![hidden]));
    for layer in 0..size("num_hidden_layers") {
        let mut names = vec![
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.o_proj", vec![hidden, heads * head]),
            ("mlp.down_proj", vec![hidden, inner]),
        ];
        // Phi-3 stores as one what has the same input.
        names.extend(match config["model_type"] == "phi3" {
            true => vec![
                ("self_attn.qkv_proj", vec![(heads + 2 * kv_heads) * head, hidden]),
                ("mlp.gate_up_proj", vec![2 * inner, hidden]),
            ],
            false => vec![
                ("self_attn.q_proj", vec![heads * head, hidden]),
                ("self_attn.k_proj", vec![kv_heads * head, hidden]),
                ("self_attn.v_proj", vec![kv_heads * head, hidden]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
            ],
        });
        shapes.extend(names.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
    }
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in shapes {
        let bytes = 2 * shape.iter().product::<u64>();
        header.insert(
            format!("{name}.weight"),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]}),
        );
        end += bytes;
    }
    let header = Value::Object(header).to_string();
    let mut start = (header.len() as u64).to_le_bytes().to_vec();
    start.extend(header.as_bytes());
    fs::write(path, &start).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(start.len() as u64 + end).unwrap();
}

/// A model of seventy billion parameters: 140 GB in bf16.
fn seventy_billion() -> Value {
    json!({
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 128
    })
}

/// Every file with its length.
fn files_below(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for path in fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => drop(files.insert(path.clone(), fs::metadata(&path).unwrap().len())),
        }
    }
    files
}

fn contains(said: &str, expected: &[&str]) {
    for part in expected {
        assert!(said.contains(part), "there is no {part:?} in\n{said}");
    }
}

#[test]
fn a_sound_run() {
    sound_run("lora");
}

#[test]
fn a_sound_run_of_pairs() {
    sound_run("dpo");
}

#[test]
fn a_sound_run_of_answers_with_labels() {
    sound_run("kto");
}

#[test]
fn a_sound_run_that_draws_answers() {
    sound_run("grpo");
}

#[test]
fn a_sound_run_with_a_value_model() {
    sound_run("ppo");
}

#[test]
fn a_sound_run_that_scores() {
    sound_run("reward");
}

#[test]
fn a_sound_run_that_rounds() {
    sound_run("qat");
}

#[test]
fn a_sound_run_from_nothing() {
    sound_run("pretrain");
}

#[test]
fn a_sound_run_with_a_teacher() {
    // A model that is there; the config names the result of another run.
    sound_run_with("distill", &["teacher_checkpointer.checkpoint_dir=recipes/tiny/model"]);
}

/// What is said of a recipe's tiny config.
fn sound_run(name: &str) {
    sound_run_with(name, &[]);
}

fn sound_run_with(name: &str, extra: &[&str]) {
    let place = Place::new();
    let (said, code) = place.ask(name, "--check", extra);
    assert_eq!(code, Some(0), "{said}");
    let said = said.replace(&place.path("out").display().to_string(), "OUT");
    // What differs from machine to machine.
    let (before, rest) = said.split_once("\nmemory ").unwrap();
    let (memory, rest) = rest.split_once("\noutput ").unwrap();
    let (disk, rest) = rest.split_once(", of ").unwrap();
    let (_, rest) = rest.split_once(" that are free").unwrap();
    contains(memory, &["MiB at most", "activations ", "weights 3.2 MiB"]);
    let found = format!("{before}\nmemory      ...\noutput {disk}, of ... that are free{rest}");
    let path = root().join(format!("tests/snapshots/check_{name}_tiny.txt"));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &found).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == found, "{} is otherwise:\n{found}", path.display());
    assert!(!place.path("out").exists());
}

#[test]
fn trained_tokens_are_in_colour() {
    let place = Place::new();
    let args = ["--check", "--config", "configs/full/tiny.yaml", &place.output()];
    let said = text(&recipe("full", &args).env("CLICOLOR_FORCE", "1").output().unwrap().stdout);
    contains(&said, &["\x1b[32me-p-u-p-m\x1b[0m\x1b[4;32m<|im_end|>\x1b[0m"]);
    let said = recipe("full", &args).env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1").output().unwrap().stdout;
    contains(&text(&said), &["«e-p-u-p-m<|im_end|>»"]);
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let place = Place::new();
    let file = place.write("file", "");
    let said = place.unsound(&[
        "dataset.data_files=nowhere.jsonl",
        "exact_match.data_file=nothing.jsonl",
        "dtype=fp16",
        "metric_logger=[jsonl, jsonl]",
        "model.lora_attn_modules=[]",
        "model.apply_lora_to_mlp=false",
        &format!("output_dir={file}"),
    ]);
    contains(
        &said,
        &[
            "error: cannot read nowhere.jsonl: No such file",
            "error: cannot read nothing.jsonl",
            "not trained in fp16",
            "two loggers write",
            "nothing to train",
            "file: is a file; output_dir must be a folder",
        ],
    );
    // A wrong config is one still.
    let (said, code) = place.ask("lora", "--check", &["epcohs=3"]);
    assert!(code == Some(2) && said.contains("did you mean `epochs`?"), "{said}");
}
