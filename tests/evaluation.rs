//! `tune eval` as a user types it, on the tiny model: what it counts, what it compares, and the page.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use runs::{newest, root, succeed, text};
use serde_json::Value;

const MODEL: &str = "recipes/tiny/model";

fn tune(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tune")).current_dir(root()).arg("eval").args(args).output().unwrap()
}

fn succeeded(args: &[&str]) -> String {
    let output = tune(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn failed(args: &[&str]) -> String {
    let output = tune(args);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}{error}", text(&output.stdout));
    assert!(!error.contains("panicked"), "{error}");
    error
}

fn items(folder: &Path, name: &str, lines: &[&str]) -> String {
    let path = folder.join(name);
    fs::write(&path, lines.join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What was written of each item.
fn results(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn score(result: &Value, model: &str, metric: &str) -> f64 {
    let part = &result[model]["metrics"][metric];
    part[0].as_f64().unwrap() / part[1].as_f64().unwrap()
}

/// A run that has learnt something, and its folder.
fn trained(folder: &Path) -> PathBuf {
    let out = folder.join("run");
    let output = format!("output_dir={}", out.display());
    let args = ["--config", "configs/lora/tiny.yaml", &output, "epochs=4", "~exact_match"];
    succeed("lora", &args);
    out
}

#[test]
fn a_run_is_compared_with_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let run = trained(dir.path());
    let (page, lines) = (dir.path().join("page.html"), dir.path().join("results.jsonl"));
    let questions = "recipes/tiny/data/held_out.jsonl";
    let paths = [page.to_str().unwrap(), lines.to_str().unwrap()];
    let args = [run.to_str().unwrap(), questions, "--page", paths[0], "--results", paths[1], "--limit", "40"];
    let table = succeeded(&args);
    let results = results(&lines);
    assert_eq!(results.len(), 40);
    let right = |model: &str| results.iter().map(|r| score(r, model, "exact_match")).sum::<f64>() / 40.0;
    let (before, after) = (right("base"), right("model"));
    assert!(before < 0.2 && after > before, "{before} {after}\n{table}");
    assert!(table.contains(&format!("exact_match        {after:.4} [")), "{table}");
    assert!(table.contains(&format!("base {before:.4} [")), "{table}");
    // The recipe's own measure of the same questions, from the adapter that it saved.
    for result in &results {
        let expected = result["record"]["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
        let given = result["model"]["answer"].as_str().unwrap();
        assert_eq!(score(result, "model", "exact_match"), f64::from(u8::from(given == expected)));
    }
    let page = fs::read_to_string(page).unwrap();
    let better = results.iter().filter(|r| score(r, "model", "exact_match") > score(r, "base", "exact_match")).count();
    assert!(page.contains(&format!("<b>Better: {better}</b>")), "{better}");
    assert!(page.starts_with("<!doctype html>") && !page.contains("http"));

    // The same numbers again, of the merged model's parts by name, and alone.
    let newest = newest(&run);
    let again = succeeded(&[newest.to_str().unwrap(), questions, "--limit", "40"]);
    let rows = |table: &str| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(rows(&again), rows(&table));
    let alone = succeeded(&[newest.to_str().unwrap(), questions, "--limit", "40", "--alone"]);
    assert!(!alone.contains("base") && alone.contains(&format!("{after:.4} [")), "{alone}");
}

/// Whatever is computed together, each item has the same numbers, and they add up.
#[test]
fn log_likelihoods_do_not_depend_on_what_is_computed_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{{\"text\": \"{}\"}}", "the quick brown fox jumps ".repeat(40));
    let lines = [
        r#"{"prompt": "The code of a is ", "choices": ["b", "cc", " ddd d"], "answer": 0}"#,
        r#"{"prompt": "One, two", "choices": [", three", "!"], "answer": "!"}"#,
        r#"{"text": "Grüße 🦀"}"#,
        &long,
    ];
    let task = items(dir.path(), "items.jsonl", &lines);
    let found: Vec<Vec<Value>> = ["1", "300", "100000"]
        .iter()
        .map(|tokens| {
            let path = dir.path().join(format!("{tokens}.jsonl"));
            let args =
                [MODEL, &task, "--no-chat-template", "--batch-tokens", tokens, "--results", path.to_str().unwrap()];
            succeeded(&args);
            results(&path)
        })
        .collect();
    for other in &found[1..] {
        for (a, b) in found[0].iter().zip(other) {
            assert_eq!(a["model"]["answer"], b["model"]["answer"]);
            for metric in ["perplexity", "bits_per_byte", "choice", "choice_per_byte", "choice_per_token"] {
                if a["model"]["metrics"].get(metric).is_some() {
                    let (x, y) = (score(a, "model", metric), score(b, "model", metric));
                    assert!((x - y).abs() < 1e-5 * x.abs().max(1.0), "{metric}: {x} {y}");
                }
            }
        }
    }
    // Bytes of the text, not of its tokens; every token of it is predicted once.
    let text = &found[0][2]["model"]["metrics"];
    assert_eq!(text["bits_per_byte"][1].as_f64(), Some("Grüße 🦀".len() as f64));
    assert_eq!(text["bits_per_byte"][0], text["perplexity"][0]);
}

#[cfg(unix)]
#[test]
fn patterns_schemas_and_programs_judge() {
    let dir = tempfile::tempdir().unwrap();
    let lines = [
        r#"{"prompt": "Write a-b in the secret code.", "regex": "^."}"#,
        r#"{"prompt": "Write a-b in the secret code.", "regex": "^(?!.)"}"#,
        r#"{"prompt": "Write a-b in the secret code.", "schema": {"type": "object"}}"#,
    ];
    let task = items(dir.path(), "items.jsonl", &lines);
    let path = dir.path().join("results.jsonl");
    succeeded(&[MODEL, &task, "--max-new-tokens", "8", "--results", path.to_str().unwrap()]);
    let found = results(&path);
    assert_eq!([score(&found[0], "model", "regex"), score(&found[1], "model", "regex")], [1.0, 0.0]);
    assert_eq!(score(&found[2], "model", "json_schema"), 0.0);
    assert!(found[2]["model"]["why"].as_str().unwrap().starts_with("no JSON"));

    // The third part of its answers is good.
    let program = "n=0; while read -r line; do n=$((n + 1)); case $n in 3) s=1;; *) s=0;; esac; \
                   echo \"{\\\"score\\\": $s, \\\"why\\\": \\\"number $n\\\"}\"; done";
    let args = [MODEL, &task, "--program", program, "--max-new-tokens", "8", "--results", path.to_str().unwrap()];
    let table = succeeded(&args);
    assert!(table.contains("program  0.3333 ["), "{table}");
    assert_eq!(results(&path)[2]["model"]["why"], "number 3");

    let error = failed(&[MODEL, &task, "--program", "echo nonsense", "--max-new-tokens", "8"]);
    assert!(error.contains("items.jsonl:1: the program `echo nonsense` wrote `nonsense`"), "{error}");
    let error = failed(&[MODEL, &task, "--program", "exit 3", "--max-new-tokens", "8"]);
    assert!(error.contains("the program `exit 3` "), "{error}");
}

#[test]
fn what_is_no_item_is_named_before_a_weight_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let good = r#"{"prompt": "a", "answer": "b"}"#;
    for (line, part) in [
        ("[1]", "a JSON object was expected"),
        ("{}", "`text`, `prompt` (a text) or `messages` was expected"),
        (r#"{"prompt": "a"}"#, "what is right?"),
        (r#"{"prompt": "a", "choices": ["x", "y"], "answer": 2}"#, "the right choice was expected"),
        (r#"{"prompt": "a", "choices": ["x", ""], "answer": 0}"#, "none of them empty"),
        (r#"{"prompt": "a", "regex": "("}"#, "`regex`: "),
        (r#"{"prompt": "a", "schema": {"type": "nothing"}}"#, "`schema`: "),
        (r#"{"messages": [{"role": "assistant", "content": "b"}]}"#, "asks nothing"),
    ] {
        let task = items(dir.path(), "items.jsonl", &[good, line]);
        let error = failed(&[MODEL, &task]);
        assert!(error.contains("items.jsonl:2: ") && error.contains(part), "{line}: {error}");
    }
    let task = items(dir.path(), "items.jsonl", &["", " "]);
    assert!(failed(&[MODEL, &task]).contains("holds no item"));
    let long = format!(r#"{{"prompt": "{}", "choices": ["x", "y"], "answer": 0}}"#, "word ".repeat(300));
    let task = items(dir.path(), "items.jsonl", &[&long]);
    let error = failed(&[MODEL, &task, "--no-chat-template"]);
    assert!(error.contains("items.jsonl:1: ") && error.contains("at most 256"), "{error}");
}

/// What is computed for hours is not lost for a folder that is not there: such a file is refused before a weight is read.
#[test]
fn results_that_cannot_be_written_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let there = file("there.jsonl");
    fs::write(&there, "kept\n").unwrap();
    let model = "recipes/tiny/model";
    let questions = "recipes/tiny/data/held_out.jsonl";
    let nowhere = file("no/such/folder");
    for (page, results) in [(&nowhere, &there), (&there, &nowhere)] {
        let said = failed(&[model, questions, "--limit", "1", "--page", page, "--results", results]);
        assert!(said.contains(&format!("cannot write {nowhere}: ")) && !said.contains("measuring"), "{said}");
    }
    assert_eq!(fs::read_to_string(&there).unwrap(), "kept\n");
}
