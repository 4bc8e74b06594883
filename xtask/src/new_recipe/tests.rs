//! On a small workspace in a temporary folder.

use std::collections::BTreeMap;

use super::*;

/// The form in which parameters are the keys. The traps: a local and a method called
/// `lora`, a library type that begins like the recipe's own, umlauts before what is edited.
const PARAMETERS: &str = r#"//! LoRA fine-tuning: größer als nötig.
//!
//!     cargo run --release -p recipes --bin lora -- --config configs/lora/tiny.yaml epochs=2
use tune_core::prelude::*;

/// Trains low-rank adapters.
#[tune_core::recipe(
    configs = ["../configs/lora/tiny.yaml", "../configs/lora/smollm2_135m.yaml"],
)]
fn lora(
    /// Checkpoints go here.
    output_dir: PathBuf,
    #[config(default = 2, range = 1..)] epochs: usize,
    max_steps_per_epoch: Option<usize>,
    model: LoraModel,
) -> Result<()> {
    let lora = model.lora()?;
    LoraRecipe::setup(LoraConfig { output_dir, epochs, max_steps_per_epoch, model })?.train(lora)
}

/// What outlives a function: see [`LoraRecipe::setup`].
struct LoraRecipe {
    config: LoraConfig,
}

impl Holder {
    fn lora(&self) -> Loras {}
}
"#;

const STRUCT: &str = r#"//! Full fine-tuning.
#[derive(Config)]
struct FullConfig {
    dataset: FullyFledged,
}

struct FullyFledged;

#[recipe]
fn full(config: FullConfig) -> Result<()> {
    println!("cargo run --bin full");
}
"#;

const YAML: &str = "\
# cargo run -p recipes --bin lora -- --config configs/lora/tiny.yaml
output_dir: out/lora_tiny # kept out of git
model:
  output_dir: out/lora
dataset: { _component_: chat, data_files: configs/lora/train.jsonl }
";

const MANIFEST: &str = "\
[package]
name = \"recipes\"

[[test]]
name = \"lora\"
path = \"../tests/lora.rs\"

[lints]
workspace = true
";

fn workspace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in [
        ("recipes/Cargo.toml", MANIFEST),
        ("recipes/src/bin/lora.rs", PARAMETERS),
        ("recipes/src/bin/full.rs", STRUCT),
        ("configs/lora/tiny.yaml", YAML),
        ("configs/lora/schema.json", "{\n  \"title\": \"lora\"\n}\n"),
        ("configs/full/tiny.yaml", "output_dir: /data/run\n"),
        ("tests/lora.rs", ""),
        ("rustfmt.toml", "max_width = 120\nuse_small_heuristics = \"Max\"\n"),
    ] {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

/// Every file with its content, and every folder.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
                found.insert(path, String::new());
            } else {
                let content = fs::read_to_string(&path).unwrap();
                found.insert(path, content);
            }
        }
    }
    found
}

fn new(root: &Path, name: &str, from: &str) -> Result<()> {
    run(root, &Args { name: name.to_owned(), from: from.to_owned(), dry_run: false })
}

#[test]
fn a_recipe_whose_parameters_are_the_keys() {
    let dir = workspace();
    new(dir.path(), "my-adapter", "lora").unwrap();
    let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();

    let recipe = read("recipes/src/bin/my_adapter.rs");
    for line in [
        "//! LoRA fine-tuning: größer als nötig.",
        "//!     cargo run --release -p recipes --bin my_adapter -- --config configs/my_adapter/tiny.yaml epochs=2",
        "#[tune_core::recipe(",
        "    configs = [\"../configs/my_adapter/tiny.yaml\"],",
        "fn my_adapter(",
        "    model: LoraModel,",
        "    let lora = model.lora()?;",
        "    MyAdapterRecipe::setup(MyAdapterConfig { output_dir, epochs, max_steps_per_epoch, model })?.train(lora)",
        "/// What outlives a function: see [`MyAdapterRecipe::setup`].",
        "struct MyAdapterRecipe {",
        "    config: MyAdapterConfig,",
        "    fn lora(&self) -> Loras {}",
    ] {
        assert!(recipe.lines().any(|l| l == line), "no line `{line}` in\n{recipe}");
    }
    assert!(!recipe.contains("smollm2"), "{recipe}");

    assert_eq!(
        read("configs/my_adapter/tiny.yaml"),
        "\
# yaml-language-server: $schema=schema.json
# cargo run -p recipes --bin my_adapter -- --config configs/my_adapter/tiny.yaml
output_dir: out/my_adapter_tiny # kept out of git
model:
  output_dir: out/lora
dataset: { _component_: chat, data_files: configs/lora/train.jsonl }
"
    );
    assert_eq!(read("configs/my_adapter/schema.json"), "{\n  \"title\": \"my_adapter\"\n}\n");
    assert_eq!(
        read("recipes/Cargo.toml"),
        "\
[package]
name = \"recipes\"

[[test]]
name = \"lora\"
path = \"../tests/lora.rs\"

[[test]]
name = \"my_adapter\"
path = \"../tests/my_adapter.rs\"

[lints]
workspace = true
"
    );
    assert_eq!(
        read("tests/my_adapter.rs"),
        r#"//! `my_adapter` runs on its shipped config.

use std::path::Path;
use std::process::Command;

#[test]
fn runs_on_the_tiny_config() {
    let output_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("my_adapter");
    let _ = std::fs::remove_dir_all(&output_dir);
    let output = Command::new(env!("CARGO_BIN_EXE_my_adapter"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["--config", "configs/my_adapter/tiny.yaml", "epochs=1", "max_steps_per_epoch=2"])
        .arg(format!("output_dir={}", output_dir.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
"#
    );
}

#[test]
fn a_recipe_with_a_config_struct() {
    let dir = workspace();
    new(dir.path(), "whole", "full").unwrap();
    let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
    let recipe = read("recipes/src/bin/whole.rs");
    assert_eq!(
        recipe,
        STRUCT.replace("fn full", "fn whole").replace("FullConfig", "WholeConfig").replace("--bin full", "--bin whole")
    );
    let modeline = "# yaml-language-server: $schema=schema.json\n";
    assert_eq!(read("configs/whole/tiny.yaml"), format!("{modeline}output_dir: out/whole\n"));
    let test = read("tests/whole.rs");
    assert!(!test.contains("output_dir") && !test.contains("epochs"), "{test}");
    // Keys in groups are known.
    let grouped = rewrite::test("struct FullConfig { run: RunKeys, steps: StepKeys }", &Name::parse("x").unwrap());
    assert!(
        grouped.contains("\"epochs=1\", \"max_steps_per_epoch=2\"") && grouped.contains("output_dir="),
        "{grouped}"
    );
    // A second one, from the first.
    new(dir.path(), "whole2", "whole").unwrap();
    assert!(read("recipes/src/bin/whole2.rs").contains("fn whole2(config: Whole2Config)"));
}

#[test]
fn a_dry_run_writes_nothing_and_fails_where_a_run_would() {
    let dir = workspace();
    let before = tree(dir.path());
    let dry = |name: &str| run(dir.path(), &Args { name: name.to_owned(), from: "lora".to_owned(), dry_run: true });
    dry("fresh").unwrap();
    assert!(dry("full").unwrap_err().to_string().contains("exists"));
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn what_cannot_be_done_changes_nothing() {
    let dir = workspace();
    let root = dir.path();
    fs::create_dir(root.join("configs/half_there")).unwrap();
    fs::create_dir(root.join("recipes/src/bin/folder")).unwrap();
    fs::write(root.join("tests/old_test.rs"), "").unwrap();
    fs::write(root.join("recipes/src/bin/broken.rs"), "fn broken( {").unwrap();
    fs::write(root.join("recipes/src/bin/plain.rs"), "fn main() {}").unwrap();
    fs::write(root.join("recipes/src/bin/other.rs"), "#[recipe]\nfn another() {}").unwrap();
    let before = tree(root);
    for (name, from, why) in [
        ("lora", "full", "recipes/src/bin/lora.rs exists; nothing was written"),
        ("half_there", "lora", "configs/half_there exists"),
        ("folder", "lora", "recipes/src/bin/folder exists"),
        ("old_test", "lora", "tests/old_test.rs exists"),
        ("recipes", "lora", "uses it already"),
        ("Bad", "lora", "small letter"),
        ("fresh", "../lora", "small letter"),
        ("fresh", "absent", "no recipe `absent`; there are `broken`, `full`, `lora`, `other`, `plain`"),
        ("fresh", "broken", "recipes/src/bin/broken.rs: line 1, column"),
        ("fresh", "plain", "plain.rs: no function here has #[recipe]"),
        ("fresh", "other", "#[recipe] is on `another`, and not on `other`"),
        ("model", "lora", "lora.rs: `model` is used here for something else"),
    ] {
        let error = new(root, name, from).unwrap_err().to_string();
        assert!(error.contains(why), "{name} from {from}: {error}");
        assert_eq!(tree(root), before, "{name} from {from}");
    }
}

#[test]
fn what_was_written_is_taken_back_when_a_later_step_fails() {
    let dir = workspace();
    let root = dir.path();
    // In the way of the very last file.
    fs::create_dir(root.join("recipes/Cargo.toml.new")).unwrap();
    let before = tree(root);
    let error = new(root, "fresh", "lora").unwrap_err().to_string();
    assert!(error.contains("Cargo.toml.new") && error.contains("nothing was changed"), "{error}");
    assert_eq!(tree(root), before);
}

#[test]
fn the_list_of_tune_has_the_recipe_in_its_place() {
    let name = Name::parse("x").unwrap();
    let list = |entries: &str| format!("macro_rules! shipped {{}}\nconst RECIPES: &[R] = shipped! {{\n{entries}}};\n");
    let add = |entries: &str| rewrite::shipped(&list(entries), &name).unwrap();
    assert_eq!(add("    full: a, tiny;\n    y: tiny;\n"), list("    full: a, tiny;\n    x: tiny;\n    y: tiny;\n"));
    assert_eq!(add("    full: tiny;\n"), list("    full: tiny;\n    x: tiny;\n"));
    assert!(rewrite::shipped("fn main() {}", &name).is_err());
}

#[test]
fn the_tests_entry_goes_where_the_others_are() {
    let name = Name::parse("x").unwrap();
    let entry = "[[test]]\nname = \"x\"\npath = \"../tests/x.rs\"\n";
    let add = |toml: &str| rewrite::manifest(toml, &name).unwrap();
    assert_eq!(add("[package]\n\n[lints]\n"), format!("[package]\n\n{entry}\n[lints]\n"));
    assert_eq!(add("[package]"), format!("[package]\n\n{entry}"));
    assert_eq!(add("[[test]]\nname = \"a\""), format!("[[test]]\nname = \"a\"\n\n{entry}"));
    let error = rewrite::manifest(entry, &name).unwrap_err().to_string();
    assert!(error.contains("the name `x` already"), "{error}");
}
