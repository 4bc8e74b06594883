//! `tune merge`, `export`, `quantize`, `verify`, `chat` and `generate` as a user types them, on the tiny model. `UPDATE=1` writes the
//! snapshots anew.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use runs::{fail, files, newest, root, succeed, text};
use serde_json::Value;

fn tune(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
    command.current_dir(root()).args(args).env_remove("TUNE_MEMORY");
    command
}

fn succeeded(args: &[&str]) -> String {
    let output = tune(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn failed(args: &[&str]) -> String {
    let output = tune(args).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}{error}", text(&output.stdout));
    assert!(!error.contains("panicked"), "{error}");
    error
}

fn with_input(args: &[&str], input: &str) -> (String, String) {
    let mut child = tune(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// Compares what is printed, but for the folder and what depends on the machine.
fn snapshot(name: &str, folder: &Path, found: &str) {
    let found = found.replace(&folder.display().to_string(), "FOLDER").replace(&root().display().to_string(), "ROOT");
    let path = root().join(format!("tests/snapshots/hand_on_{name}.txt"));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == found, "{} is otherwise:\n{found}", path.display());
}

/// A run of the recipe `lora` with the merged model beside the adapter, made once.
fn trained() -> &'static (tempfile::TempDir, PathBuf) {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    RUN.get_or_init(|| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let output = format!("output_dir={}", dir.path().display());
        let args = [
            "--config",
            "configs/lora/tiny.yaml",
            &output,
            "epochs=1",
            "max_steps_per_epoch=6",
            "~exact_match",
            "save_adapter_weights_only=false",
        ];
        succeed("lora", &args);
        let checkpoint = newest(dir.path());
        (dir, checkpoint)
    })
}

/// A fresh folder.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn a_merged_model_is_to_the_byte_what_the_recipe_writes() {
    let (run, checkpoint) = trained();
    let dir = place();
    let to = dir.path().join("merged");
    let said = succeeded(&["merge", &run.path().display().to_string(), "--to", &to.display().to_string()]);
    assert!(said.contains("logits are within") && said.contains("byte for byte"), "{said}");
    let mut ours = files(&to);
    ours.retain(|(name, _)| name != "receipt.json");
    assert!(ours.iter().any(|(name, _)| name == "model.safetensors"));
    let theirs = files(&checkpoint.join("merged"));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for ((name, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        assert!(ours == theirs, "{name} differs");
    }
    let receipt: Value = serde_json::from_slice(&fs::read(to.join("receipt.json")).unwrap()).unwrap();
    assert_eq!(receipt["kind"], "folder");
    assert_eq!(receipt["weights"], "f32");
    assert!(receipt["files"]["model.safetensors"]["crc32c"].is_u64());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");

    // It is there now, and not written over.
    let said = failed(&["merge", &run.path().display().to_string(), "--to", &to.display().to_string()]);
    assert!(said.contains("is there already, and nothing is written over"), "{said}");
    // In another precision, from the recipe's own folder, in small files.
    let (half, adapter) = (dir.path().join("half"), checkpoint.display().to_string());
    let halved = half.display().to_string();
    succeeded(&["merge", &adapter, "-o", &halved, "--dtype", "bf16", "--max-shard-size", "500KB"]);
    assert!(half.join("model.safetensors.index.json").is_file());
    succeeded(&["verify", &halved]);

    // As other commands take a model and adapters for it.
    let model = "recipes/tiny/model";
    let by_name = dir.path().join("by_name");
    succeeded(&["merge", model, "--adapter", &adapter, "-o", &by_name.display().to_string()]);
    assert_eq!(fs::read(by_name.join("model.safetensors")).unwrap(), fs::read(to.join("model.safetensors")).unwrap());
    let said = failed(&["merge", model, "-o", &dir.path().join("none").display().to_string()]);
    assert!(said.contains("recipes/tiny/model is a model and no adapter: name adapters"), "{said}");
    assert!(said.contains("--base recipes/tiny/model"), "{said}");
}

#[test]
fn files_for_llama_cpp_come_with_a_modelfile_and_a_receipt() {
    let (run, checkpoint) = trained();
    let (run, adapter) = (run.path().display().to_string(), checkpoint.display().to_string());
    let dir = place();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let large = file("large.gguf");
    let said = succeeded(&["export", "recipes/tiny/model", "--adapter", &adapter, "--type", "f32", "--to", &large]);
    snapshot("export", dir.path(), &without_numbers(&said.replace(&adapter, "ADAPTER")));
    assert!(dir.path().join("large.Modelfile").is_file());
    succeeded(&["verify", &large]);
    // What is made of the file is what is made of the model and the adapter.
    let (small, direct) = (file("small.gguf"), file("direct.gguf"));
    succeeded(&["quantize", &large, "--type", "q4_0", "--to", &small]);
    succeeded(&["export", &run, "--merged", "--type", "q4_0", "--name", "small", "--to", &direct]);
    assert!(fs::read(&small).unwrap() == fs::read(&direct).unwrap());
    // An adapter by itself is one.
    let alone = file("adapter.gguf");
    let said = succeeded(&["export", &run, "--to", &alone]);
    assert!(said.contains("as f16"), "{said}");
    succeeded(&["verify", &alone]);
    assert!(fs::read_to_string(file("adapter.Modelfile")).unwrap().contains("ADAPTER ./adapter.gguf"));

    let before = fs::read_dir(dir.path()).unwrap().count();
    let said = succeeded(&["export", "recipes/tiny/model", "--to", &file("other.gguf"), "--type", "q8_0", "--dry-run"]);
    assert!(said.contains("as q8_0 ("), "{said}");
    for (args, expected) in [
        (vec!["export", "recipes/tiny/model", "--to", &large], "is there already"),
        (vec!["export", "recipes/tiny/model", "--to", "other.bin"], "the name of a GGUF file ends in .gguf"),
        (vec!["export", "nowhere", "--to", "other.gguf"], "nowhere: does not exist"),
        (vec!["export", &run, "--to", "other.gguf", "--type", "q4_0"], "adapters are written in f32, f16 or bf16"),
    ] {
        let said = failed(&args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before, "nothing was written");
}

/// The recipe `quantize` writes what `tune quantize` writes, and says as much.
#[test]
fn the_recipe_quantizes_as_the_command_does() {
    let (run, _) = trained();
    let (dir, other) = (place(), place());
    let file = |name: &str| other.path().join(name).display().to_string();
    let output_dir = format!("output_dir={}", dir.path().display());
    let config = ["--config", "configs/quantize/tiny.yaml", &output_dir, "importance_chunks=4"];
    let with = |more: &[&str]| text(&succeed("quantize", &[&config[..], more].concat()).stdout);

    let said = with(&["dry_run=true"]);
    assert!(said.contains("columns   at most 4 chunks of recipes/tiny/data/documents.jsonl"), "{said}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
    snapshot("quantize_recipe", dir.path(), &without_numbers(&with(&[])));
    let made = dir.path().join("model-q4_0.gguf");
    let data = ["--importance", "recipes/tiny/data/documents.jsonl", "--importance-chunks", "4"];
    let quantize = ["quantize", "recipes/tiny/model", "--type", "q4_0", "--to", &file("model-q4_0.gguf")];
    succeeded(&[&quantize[..], &data].concat());
    for name in ["model-q4_0.gguf", "model-q4_0.imatrix.gguf", "model-q4_0.Modelfile"] {
        assert!(fs::read(dir.path().join(name)).unwrap() == fs::read(other.path().join(name)).unwrap(), "{name}");
    }
    succeeded(&["verify", &made.display().to_string()]);
    let asked = format!("checkpoint_dir={}", made.display());
    succeed("generate", &[&asked, "prompt=The word", "max_new_tokens=4", "temperature=0"]);

    // A run is its newest checkpoint, merged.
    let (of_run, name) = (format!("checkpoint_dir={}", run.path().display()), "name=merged");
    with(&[&of_run, "~importance", "~importance_chunks", "quantizer.format=q8_0", name]);
    succeeded(&["quantize", &run.path().display().to_string(), "--type", "q8_0", "--to", &file("merged.gguf")]);
    assert!(fs::read(dir.path().join("merged.gguf")).unwrap() == fs::read(file("merged.gguf")).unwrap());

    let before = fs::read_dir(dir.path()).unwrap().count();
    for (more, expected) in [
        (&[][..], "is there already, and nothing is written over"),
        (&["name=a/b"], "`a/b` is no file's name; output_dir says which folder it is in"),
        (&["name=b", "~importance"], "importance_chunks says how much of `importance` is read"),
        (&["name=b", "quantizer.format=q8_0"], "makes no difference to a file of q8_0: choose one of q4_0, q4_k_m"),
        (&["name=b", "prompts=/no/such"], "/no/such"),
        (&["checkpoint_dir=/no/such"], "/no/such: does not exist"),
    ] {
        let said = fail("quantize", &[&config[..], more].concat());
        assert!(said.contains(expected), "{more:?}: {said}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before, "nothing was written");
}

#[test]
fn a_file_is_quantized_by_what_layers_are_given() {
    let dir = place();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (model, small) = ("recipes/tiny/model", file("small.gguf"));
    let data = "recipes/tiny/data/documents.jsonl";
    let asked = ["quantize", model, "--type", "q4_0", "--to", &small, "--importance", data, "--importance-chunks", "4"];
    let said = succeeded(&[&asked[..], &["--dry-run"]].concat());
    assert!(said.contains("columns   at most 4 chunks of recipes/tiny/data/documents.jsonl"), "{said}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
    let said = succeeded(&asked);
    assert!(said.contains("the model was run over 4 chunks of 256 tokens"), "{said}");
    let matrix = file("small.imatrix.gguf");
    let receipt: Value = serde_json::from_slice(&fs::read(file("small.gguf.receipt.json")).unwrap()).unwrap();
    let origin = &receipt["made_of"]["importance"];
    assert_eq!(origin["chunks"], 4, "{receipt}");
    assert!(origin["path"].as_str().unwrap().ends_with("small.imatrix.gguf"), "{receipt}");
    assert!(origin["datasets"][0].as_str().unwrap().ends_with("documents.jsonl"), "{receipt}");
    succeeded(&["verify", &small]);

    // The matrix alone makes the same file, and without it there is another.
    let again = file("again.gguf");
    let args = ["export", model, "--type", "q4_0", "--name", "small", "--to", &again];
    let said = succeeded(&[&args[..], &["--importance", &matrix]].concat());
    // Four blocks of seven layers.
    assert!(said.contains("small.imatrix.gguf, for 28 of the tensors"), "{said}");
    assert!(fs::read(&again).unwrap() == fs::read(&small).unwrap());
    let without = file("without.gguf");
    succeeded(&["quantize", model, "--type", "q4_0", "--to", &without]);
    assert!(fs::read(&without).unwrap() != fs::read(&small).unwrap());

    let before = fs::read_dir(dir.path()).unwrap().count();
    let other = file("other.gguf");
    let quantize = ["quantize", model, "--to", &other, "--type"];
    for (more, expected) in [
        (vec!["q8_0", "--importance", &matrix], "makes no difference to a file of q8_0: choose one of q4_0, q4_k_m"),
        (vec!["q4_0", "--importance", "tests/fixtures/gguf/phi3.imatrix.gguf"], "is of another model"),
        (vec!["q4_0", "--importance", "tests/fixtures/gguf/smollm.gguf"], "but no importance matrix"),
        (vec!["q4_0", "--importance", "recipes/tiny/data/preferences.jsonl"], "none of the columns `text`"),
        (vec!["q4_0", "--importance", &matrix, "--importance-chunks", "2"], "is an importance matrix already"),
    ] {
        let said = failed(&[&quantize[..], &more].concat());
        assert!(said.contains(expected), "{more:?}: {said}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before, "nothing was written");

    // What it was quantized by is looked for beside it, too, and must be the same.
    let moved = dir.path().join("moved");
    fs::create_dir(&moved).unwrap();
    for name in ["small.gguf", "small.gguf.receipt.json", "small.imatrix.gguf"] {
        fs::rename(dir.path().join(name), moved.join(name)).unwrap();
    }
    let (small, matrix) = (moved.join("small.gguf").display().to_string(), moved.join("small.imatrix.gguf"));
    succeeded(&["verify", &small]);
    fs::copy(root().join("tests/fixtures/gguf/phi3.imatrix.gguf"), &matrix).unwrap();
    assert!(failed(&["verify", &small]).contains("is another importance matrix than the one"));
    fs::remove_file(&matrix).unwrap();
    assert!(failed(&["verify", &small]).contains("name it with `--importance`"));
}

/// Numbers that differ between processors.
fn without_numbers(text: &str) -> String {
    let is_measured = |line: &str| line.contains("logits are within");
    text.lines()
        .map(|line| {
            if is_measured(line) {
                format!("{}…\n", line.split(": ").next().unwrap().split(" within").next().unwrap())
            } else {
                format!("{line}\n")
            }
        })
        .collect()
}

#[test]
fn damage_is_found_by_verify() {
    let (run, _) = trained();
    let dir = place();
    let to = dir.path().join("merged");
    let shown = to.display().to_string();
    succeeded(&["merge", &run.path().display().to_string(), "--to", &shown]);
    snapshot(
        "verify",
        dir.path(),
        &without_numbers(&succeeded(&["verify", &shown])).replace(&run.path().display().to_string(), "RUN"),
    );
    let receipt = to.join("receipt.json");
    let intact = fs::read(&receipt).unwrap();

    let flip = |name: &str| {
        let mut bytes = fs::read(to.join(name)).unwrap();
        let at = bytes.len() - 5;
        bytes[at] ^= 4;
        fs::write(to.join(name), bytes).unwrap();
    };
    // A bit; and a receipt that was made to fit.
    flip("model.safetensors");
    let said = failed(&["verify", &shown]);
    assert!(said.contains("model.safetensors has another content than it had"), "{said}");
    let said = failed(&["verify", &shown, "--files-only"]);
    assert!(said.contains("its checksum differs"), "{said}");
    fs::remove_file(&receipt).unwrap();
    let said = failed(&["verify", &shown]);
    assert!(said.contains("the receipt says what an artifact is made of"), "{said}");
    let adapter = newest(run.path()).display().to_string();
    let without = ["verify", &shown, "--base", "recipes/tiny/model", "--adapter", &adapter];
    let said = failed(&without);
    assert!(said.contains("1 of its tensors is not what base and adapters make"), "{said}");
    flip("model.safetensors");
    succeeded(&without);
    // Against its base alone it is something else.
    let said = failed(&without[..4]);
    assert!(said.contains("tensors are not what base and adapters make"), "{said}");
    fs::write(&receipt, &intact).unwrap();
    succeeded(&["verify", &shown]);
    // A receipt that is no receipt; files that are gone, or too many.
    fs::write(&receipt, &intact[..intact.len() / 2]).unwrap();
    assert!(failed(&["verify", &shown]).contains("is no receipt, or it is damaged"));
    fs::write(&receipt, &intact).unwrap();
    fs::copy(to.join("model.safetensors"), to.join("model-00001-of-00002.safetensors")).unwrap();
    assert!(failed(&["verify", &shown]).contains("weights may be read from it"));
    fs::remove_file(to.join("model-00001-of-00002.safetensors")).unwrap();
    fs::remove_file(to.join("tokenizer_config.json")).unwrap();
    assert!(failed(&["verify", &shown]).contains("tokenizer_config.json is missing"));
}

#[test]
fn a_conversation_goes_on_in_turns() {
    let (run, _) = trained();
    let dir = place();
    let chat = dir.path().join("chat.jsonl").display().to_string();
    let model = run.path().display().to_string();
    let args = ["chat", &model, "--temperature", "0", "--max-new-tokens", "12"];
    let input = format!(
        "Write m-a-p-l-e backwards.\n\n/help\n/save {chat}\n/save {chat}\n/nothing\n/regenerate\n/system Be brief.\nAnd \\\nagain?\n/reset\n\
         /regenerate\n/load {chat}\n/quit\nnever read\n"
    );
    let (answers, said) = with_input(&args, &input);
    assert!(!answers.contains("never read"));
    let answers: Vec<&str> = answers.lines().collect();
    // Greedy: another answer is the same one.
    assert_eq!(answers[0], answers[1], "{answers:?}");
    for expected in [
        "/regenerate    another answer",
        "saved 2 messages to",
        "is there already; name another file",
        "there is no /nothing",
        "before the conversation stands: Be brief.",
        "the conversation begins anew",
        "nothing has been said that could be answered again",
        "2 messages, goes on",
        "tokens",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let saved: Value = serde_json::from_str(&fs::read_to_string(&chat).unwrap()).unwrap();
    assert_eq!(saved["messages"][0]["content"], "Write m-a-p-l-e backwards.");
    // What was read is not read again: the second turn reads its own question only.
    let (_, said) = with_input(&args, "Write m-a-p-l-e backwards.\n/regenerate\n");
    let read: Vec<&str> = said.lines().filter(|line| line.contains(" read in ")).collect();
    assert!(read[1].contains("; 1 read in"), "{read:?}");
    // A sign where an answer is cut off.
    let (answer, _) =
        with_input(&["chat", "recipes/tiny/model", "--temperature", "0", "--max-new-tokens", "2"], "Hello\n");
    assert!(answer.contains("[cut off after 2 tokens"), "{answer}");
    // The model is the one that `generate` asks.
    let base = with_input(&["chat", "recipes/tiny/model", "--temperature", "0", "--max-new-tokens", "12"], "Hello\n").0;
    let args = ["checkpoint_dir=recipes/tiny/model", "prompt=Hello", "temperature=0", "max_new_tokens=12"];
    let generated = text(&succeed("generate", &args).stdout);
    assert_eq!(base.split(" [").next().unwrap().trim_end(), generated.trim_end());
}

#[test]
fn prompts_of_a_file_are_answered_in_lines() {
    let dir = place();
    let file = dir.path().join("prompts.jsonl");
    let lines = [
        r#"{"prompt": "Write m-a-p-l-e backwards.", "id": 7}"#,
        "Write d-o-g backwards.",
        r#"{"messages": [{"role": "user", "content": "Write c-a-t backwards."}, {"role": "assistant", "content": "known"}]}"#,
        r#"{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hello"}]}"#,
        "Write t-r-e-e backwards.",
    ];
    fs::write(&file, lines.join("\n")).unwrap();
    let prompts = format!("prompts={}", file.display());
    let common = ["checkpoint_dir=recipes/tiny/model", "temperature=0", "max_new_tokens=16"];
    let ask = |more: &[&str]| {
        let args: Vec<&str> = common.iter().chain(more).copied().collect();
        text(&succeed("generate", &args).stdout)
    };
    let together = ask(&[&prompts, "batch_size=4"]);
    let answers: Vec<Value> = together.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), lines.len());
    assert_eq!(answers[0]["id"], 7);
    assert_eq!(answers[2]["messages"][1]["content"], "known");
    assert!(answers.iter().all(|answer| answer["finish_reason"] == "stop" || answer["finish_reason"] == "length"));
    // In any company the same, and the same as alone.
    assert_eq!(together, ask(&[&prompts, "batch_size=1"]));
    let alone = ask(&["prompt=Write d-o-g backwards."]);
    assert_eq!(answers[1]["answer"], alone.trim_end_matches('\n'));
    let said = fail("generate", &[common[0], &prompts, "prompt=both"]);
    assert!(said.contains("prompt and prompts are set"), "{said}");
    fs::write(&file, "fine\n{\"prompt\": 3}\n").unwrap();
    let said = fail("generate", &[common[0], &prompts]);
    assert!(said.contains("prompts.jsonl:2: `prompt` (a text) or `messages` was expected"), "{said}");
    let said = fail("generate", &[common[0]]);
    assert!(said.contains("there is nothing to answer"), "{said}");
}
