//! `tune convert` and `tune lint` on configs of Axolotl, LLaMA-Factory, TRL and Unsloth: what is made of each loads in the
//! recipe that it is for.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use runs::{fail, root, succeed, text};

const TOOLS: [(&str, &str); 5] = [
    ("axolotl", "Axolotl"),
    ("llama_factory", "LLaMA-Factory"),
    ("trl", "TRL"),
    ("unsloth", "Unsloth"),
    ("unsloth_studio", "Unsloth Studio"),
];

/// Where the examples' paths hold.
fn folder() -> PathBuf {
    root().join("tune-core/config")
}

fn tune(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tune")).args(args).current_dir(folder()).output().unwrap()
}

fn fixtures(tool: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("tests/fixtures/other_tools").join(tool)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The recipe that a converted config says it is for.
fn recipe_of(yaml: &str) -> &str {
    let (_, behind) = yaml.lines().next().unwrap().split_once("tune validate ").unwrap();
    behind.split(' ').next().unwrap()
}

fn converted(path: &Path) -> Option<String> {
    let output = tune(&["convert", path.to_str().unwrap()]);
    let said = text(&output.stderr);
    assert!(!said.contains("panicked"), "{}: {said}", path.display());
    match output.status.success() {
        true => Some(text(&output.stdout)),
        false => {
            assert!(said.contains("error[E00"), "{}: {said}", path.display());
            assert!(output.stdout.is_empty());
            None
        }
    }
}

#[test]
fn what_is_converted_loads() {
    let temporary = tempfile::tempdir().unwrap();
    let mine = temporary.path().join("mine.yaml");
    let (mut loaded, mut refused) = (0, 0);
    let mut recipes = Vec::new();
    for path in TOOLS.iter().flat_map(|(tool, _)| fixtures(tool)) {
        let Some(yaml) = converted(&path) else {
            refused += 1;
            continue;
        };
        fs::write(&mine, &yaml).unwrap();
        let recipe = recipe_of(&yaml).to_owned();
        let output = succeed(&recipe, &["--config", mine.to_str().unwrap(), "--print-config"]);
        // Everything that is written has an effect.
        assert!(!text(&output.stderr).contains("warning"), "{}: {}", path.display(), text(&output.stderr));
        recipes.push(recipe);
        loaded += 1;
    }
    assert!(loaded >= 15 && refused >= 4, "{loaded} of {}", loaded + refused);
    for recipe in ["lora", "full", "dpo", "kto", "qat", "pretrain"] {
        assert!(recipes.iter().any(|of| of == recipe), "{recipe}");
    }
}

#[test]
fn a_file_of_theirs_is_linted_and_never_taken_for_ours() {
    for (tool, name) in TOOLS {
        for path in fixtures(tool) {
            let path = path.to_str().unwrap();
            let output = tune(&["lint", path]);
            let said = text(&output.stdout);
            match output.status.code() {
                Some(0) => assert!(said.contains("nothing to say"), "{path}: {said}"),
                code => {
                    assert!(code == Some(1) && (said.contains("warning") || said.contains("error")), "{path}: {said}");
                }
            }
            let said = text(&tune(&["validate", path]).stderr);
            assert!(said.contains(&format!("a config of {name}'s: `tune convert")), "{path}: {said}");
        }
    }
    let output = tune(&["lint", root().join("configs/lora/tiny.yaml").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no config of a tool that is known"), "{}", text(&output.stderr));
    // Overrides have our names, and the file has not.
    let example = fixtures("axolotl").remove(0);
    let output = tune(&["convert", example.to_str().unwrap(), "batch_size=2"]);
    assert!(!output.status.success() && text(&output.stderr).contains("--config FILE"), "{}", text(&output.stderr));
    let said = fail("lora", &["--config", example.to_str().unwrap()]);
    assert!(said.contains("E0020"), "{said}");
}
