//! The files of `configs/<recipe>`: each config is checked when its recipe is compiled, and what is made from the
//! recipe is up to date.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// What a recipe prints; those that this file does not know lie beside the others.
fn printed(recipe: &str, args: &[&str]) -> String {
    let binary =
        Path::new(env!("CARGO_BIN_EXE_lora")).with_file_name(format!("{recipe}{}", std::env::consts::EXE_SUFFIX));
    let output = Command::new(binary).current_dir(root()).args(args).output().unwrap();
    assert!(output.status.success(), "{recipe} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Each recipe's name and the files of its folder.
fn folders() -> Vec<(String, Vec<PathBuf>)> {
    let entries = |path: PathBuf| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries(root().join("configs")).map(|folder| (name(&folder), entries(folder).collect())).collect()
}

fn configs(files: &[PathBuf]) -> impl Iterator<Item = (String, String)> {
    let configs = files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    configs.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap()))
}

/// A config that is not listed in `#[recipe(configs = [...])]` is not checked by the compiler.
#[test]
fn every_config_is_listed_by_its_recipe() {
    let mut count = 0;
    for (recipe, files) in folders() {
        let path = root().join(format!("recipes/src/bin/{recipe}.rs"));
        let source = fs::read_to_string(&path).unwrap_or_else(|_| panic!("configs/{recipe} has no recipe"));
        for (config, _) in configs(&files) {
            let listed = format!("\"../configs/{recipe}/{config}\"");
            assert!(source.contains(&listed), "{} does not list {listed}", path.display());
            count += 1;
        }
    }
    assert!(count >= 7, "{count}");
}

/// The same as `cargo xtask codegen --check`, with the recipes that are built for the tests.
#[test]
fn generated_files_are_up_to_date_and_editors_find_them() {
    for (recipe, files) in folders() {
        for (file, option) in [("schema.json", "--print-schema"), ("reference.txt", "--print-reference")] {
            let found = fs::read_to_string(root().join(format!("configs/{recipe}/{file}"))).unwrap_or_default();
            assert!(found == printed(&recipe, &[option]), "configs/{recipe}/{file} is old: run `cargo xtask codegen`");
        }
        for (config, yaml) in configs(&files) {
            let first = yaml.lines().next().unwrap_or_default();
            assert_eq!(first, "# yaml-language-server: $schema=schema.json", "configs/{recipe}/{config}");
        }
    }
}

/// What help shows of a shipped config is where its values stand.
#[test]
fn help_shows_where_values_come_from() {
    let args = ["--config", "configs/lora/tiny.yaml", "optimizer=sgd", "epochs=2", "--help"];
    let help = printed("lora", &args);
    for expected in ["=> 2  (command line)", "- sgd (chosen)", "momentum", "(configs/lora/tiny.yaml:"] {
        assert!(help.contains(expected), "{expected}: {help}");
    }
    assert!(!help.contains("betas"), "{help}");
}
