//! `cargo xtask new-recipe NAME [--from lora] [--dry-run]`.
//!
//! A new recipe begins as a copy of one that works: its file, its `tiny.yaml` and a test,
//! renamed. Everything is planned before anything is written, and what was written is taken
//! back if a later step fails.

mod name;
mod rewrite;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tune_core::config::say;

use crate::Result;
use name::Name;

/// Write a new recipe, its config and its test.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the recipe, like `my_recipe` or `my-recipe`.
    name: String,
    /// The recipe to begin with.
    #[arg(long, default_value = "lora", value_name = "RECIPE")]
    from: String,
    /// Say what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Plans, writes and says what to do next.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let plan = Plan::new(root, &args.name, &args.from)?;
    if !args.dry_run {
        plan.write(root)?;
    }
    say!("{}", if args.dry_run { "would write" } else { "wrote" });
    for (path, _) in &plan.files {
        say!("  {}", path.display());
    }
    for (path, _) in &plan.edits {
        say!("  {} (its entry)", path.display());
    }
    if args.dry_run {
        return Ok(());
    }
    let name = &plan.name.snake;
    say!("run it with\n  cargo run -p recipes --bin {name} -- --config configs/{name}/tiny.yaml");
    say!("test it with\n  cargo test -p recipes --test {name}");
    say!("after a change of its keys, bring schema and reference up to date with\n  cargo xtask codegen");
    Ok(())
}

/// All that is to be written; paths are relative to the workspace.
struct Plan {
    name: Name,
    /// New files and their contents.
    files: Vec<(PathBuf, String)>,
    /// Files that are there, and their new contents.
    edits: Vec<(PathBuf, String)>,
}

impl Plan {
    fn new(root: &Path, name: &str, from: &str) -> Result<Self> {
        let name = Name::parse(name)?;
        name.check_free()?;
        let from = Name::parse(from)?;
        let bin = |name: &Name| PathBuf::from(format!("recipes/src/bin/{}.rs", name.snake));
        let config = |name: &Name| PathBuf::from(format!("configs/{}/tiny.yaml", name.snake));

        if !root.join(bin(&from)).is_file() {
            return Err(format!("there is no recipe `{}`; there are {}", from.snake, recipes(root).join(", ")).into());
        }
        let test = PathBuf::from(format!("tests/{}.rs", name.snake));
        let taken =
            [bin(&name), bin(&name).with_extension(""), PathBuf::from(format!("configs/{}", name.snake)), test.clone()];
        for path in taken {
            if root.join(&path).symlink_metadata().is_ok() {
                return Err(format!("{} exists; nothing was written", path.display()).into());
            }
        }

        let source = read(root, &bin(&from))?;
        let recipe = rewrite::recipe(&source, &from, &name).map_err(|e| format!("{}: {e}", bin(&from).display()))?;
        let yaml = crate::codegen::with_modeline(rewrite::config(&read(root, &config(&from))?, &from, &name));
        let manifest = PathBuf::from("recipes/Cargo.toml");
        let cargo_toml =
            rewrite::manifest(&read(root, &manifest)?, &name).map_err(|e| format!("{}: {e}", manifest.display()))?;
        let mut files = vec![
            (bin(&name), formatted(root, recipe)),
            (config(&name), yaml),
            (test, formatted(root, rewrite::test(&source, &name))),
        ];
        // What `cargo xtask codegen` would write: the keys are the same.
        for made in ["schema.json", "reference.txt"] {
            let path = |name: &Name| config(name).with_file_name(made);
            if root.join(path(&from)).is_file() {
                files.push((path(&name), rewrite::schema(&read(root, &path(&from))?, &from, &name)));
            }
        }
        let mut edits = vec![(manifest, cargo_toml)];
        let shipped = PathBuf::from("recipes/src/bin/tune/shipped.rs");
        if root.join(&shipped).is_file() {
            let text = rewrite::shipped(&read(root, &shipped)?, &name);
            edits.push((shipped.clone(), text.map_err(|e| format!("{}: {e}", shipped.display()))?));
        }
        Ok(Self { files, edits, name })
    }

    /// Writes everything, or leaves everything as it was.
    fn write(&self, root: &Path) -> Result<()> {
        let mut made = Made::default();
        for (path, content) in &self.files {
            made.file(&root.join(path), content)?;
        }
        let aside = |path: &Path| root.join(format!("{}.new", path.display()));
        for (path, content) in &self.edits {
            made.file(&aside(path), content)?;
        }
        // Renames are the last steps: they cannot be done by half.
        for (path, _) in &self.edits {
            fs::rename(aside(path), root.join(path)).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        }
        made.0.clear();
        Ok(())
    }
}

/// Files and folders that were made, in order; they are removed again unless it is cleared.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn file(&mut self, path: &Path, content: &str) -> Result<()> {
        let failed = |e| format!("cannot write {}: {e}; nothing was changed", path.display());
        let mut missing: Vec<_> = path.ancestors().skip(1).take_while(|p| !p.exists()).collect();
        while let Some(folder) = missing.pop() {
            fs::create_dir(folder).map_err(failed)?;
            self.0.push(folder.to_path_buf());
        }
        let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
        self.0.push(path.to_path_buf());
        file.write_all(content.as_bytes()).map_err(failed)?;
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // On the way out of another error, which is the one to report.
            let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        }
    }
}

/// As rustfmt lays it out, for a longer name may have moved the line breaks; as it is where
/// there is no rustfmt.
fn formatted(root: &Path, source: String) -> String {
    let run = || {
        let mut rustfmt = Command::new("rustfmt")
            .args(["--edition", "2024"])
            .current_dir(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        rustfmt.stdin.take()?.write_all(source.as_bytes()).ok()?;
        let output = rustfmt.wait_with_output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    run().unwrap_or(source)
}

fn read(root: &Path, path: &Path) -> Result<String> {
    fs::read_to_string(root.join(path)).map_err(|e| format!("cannot read {}: {e}", path.display()).into())
}

/// The recipes that there are, by name.
fn recipes(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("recipes/src/bin")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "rs"))
        .filter_map(|p| Some(format!("`{}`", p.file_stem()?.to_str()?)))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests;
