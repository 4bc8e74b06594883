//! `cargo xtask codegen [--check]`: the files that are made from the recipes.
//!
//! `configs/<recipe>/schema.json` is what the recipe's `--print-schema` says, and the first line of
//! each config beside it tells editors to read it; `reference.txt` is what `--print-reference` says.

use std::fs;
use std::path::Path;

use tune_core::cargo;
use tune_core::config::say;

use crate::Result;

/// Write what is made from the recipes: schema and reference beside their configs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail where something is not up to date.
    #[arg(long)]
    check: bool,
}

/// The first line of a config.
const MODELINE: &str = "# yaml-language-server: $schema=schema.json\n";

/// Makes every file anew, or says which ones are old.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let mut old = Vec::new();
    for recipe in names(&root.join("recipes/src/bin"), "rs")? {
        let folder = root.join("configs").join(&recipe);
        if !folder.is_dir() {
            continue;
        }
        let mut files = vec![
            (folder.join("schema.json"), printed(root, &recipe, "--print-schema")?),
            (folder.join("reference.txt"), printed(root, &recipe, "--print-reference")?),
        ];
        for config in names(&folder, "yaml")? {
            let path = folder.join(format!("{config}.yaml"));
            let text = read(&path)?;
            files.push((path, with_modeline(text)));
        }
        for (path, text) in files {
            if read(&path).is_ok_and(|found| found == text) {
                continue;
            }
            if !args.check {
                fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
            }
            old.push(path.strip_prefix(root).unwrap_or(&path).display().to_string());
        }
    }
    match (old.is_empty(), args.check) {
        (true, _) => say!("everything is up to date"),
        (false, false) => say!("wrote\n  {}", old.join("\n  ")),
        (false, true) => {
            return Err(format!("not up to date; `cargo xtask codegen` writes\n  {}", old.join("\n  ")).into());
        }
    }
    Ok(())
}

/// A config that tells editors of its schema.
pub(crate) fn with_modeline(text: String) -> String {
    if text.starts_with(MODELINE) { text } else { format!("{MODELINE}{text}") }
}

/// What the recipe says about its keys.
fn printed(root: &Path, recipe: &str, option: &str) -> Result<String> {
    let output = cargo::command()
        .args(["run", "--quiet", "-p", "recipes", "--bin", recipe, "--", option])
        .current_dir(root)
        .output()
        .map_err(|e| format!("cannot start cargo: {e}"))?;
    if !output.status.success() {
        return Err(format!("`{recipe} {option}`: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()).into())
}

/// The files of a folder with this extension, without it, in order.
fn names(folder: &Path, extension: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(|e| format!("cannot read {}: {e}", folder.display()))?;
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}
