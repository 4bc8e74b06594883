//! A crate of its own, in no workspace, that depends on `tune-core` alone: its recipe builds, reads its config with a
//! component of its own, and does not compile with a wrong one.
//! `cargo test -p recipes --test outside_crate -- --ignored`

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Output;

const MANIFEST: &str = r#"
[package]
name = "outside"
version = "0.1.0"
edition = "2024"

[dependencies]
tune-core = { path = "TUNE_CORE" }

[workspace]
"#;

const RECIPE: &str = r#"
//! A recipe of somebody's own.
use tune_core::prelude::*;

/// What moves the weights: one of ours, or one of our own.
#[derive(Debug, Config)]
enum MyOptimizer {
    /// Adam with decoupled weight decay.
    #[config(name = "adamw", default)]
    AdamW(tune_core::optim::AdamWConfig),
    /// Moves by the sign.
    #[config(name = "lion")]
    Lion(Lion),
}

/// Moves by the sign.
#[derive(Debug, Config)]
struct Lion {
    /// The learning rate.
    #[config(default = 1e-4, range = 0.0..)]
    lr: f64,
}

/// Shows what it is told.
#[recipe(configs = ["configs/mine.yaml"])]
fn mine(
    /// What moves the weights.
    #[config(default)]
    optimizer: MyOptimizer,
    /// Where it runs.
    #[config(default = "cpu")]
    device: DeviceConfig,
) -> Result<()> {
    println!("{optimizer:?} {device:?}");
    Ok(())
}
"#;

/// A recipe with a config of its own, besides.
const OTHER_RECIPE: &str = r#"
/// Nothing.
#[derive(Config)]
struct OtherConfig {}

struct Other(Run);

impl Recipe for Other {
    type Config = OtherConfig;

    fn outline(_: &OtherConfig) -> Result<Outline> {
        Err(Error::setup("nothing to do"))
    }
    fn setup(_: OtherConfig) -> Result<Self> {
        Err(Error::setup("nothing to do"))
    }
    fn train(&mut self) -> Result<()> {
        Ok(())
    }
    fn run(&self) -> &Run {
        &self.0
    }
    fn save_checkpoint(&mut self) -> Result<Saved> {
        Err(Error::setup("nothing to save"))
    }
    fn cleanup(self) -> Result<()> {
        Ok(())
    }
}
"#;

fn cargo(folder: &Path, args: &[&str]) -> Output {
    tune_core::cargo::command()
        .args(args)
        .current_dir(folder)
        // With the workspace's profiles, what both depend on is built already.
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join(".."))
        .output()
        .unwrap()
}

#[test]
#[ignore = "builds tune-core anew"]
fn a_crate_that_depends_on_tune_core_alone_defines_a_recipe() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let manifest = fs::read_to_string(workspace.join("Cargo.toml")).unwrap();
    let profiles = &manifest[manifest.find("[profile.dev]").unwrap()..];
    let manifest = MANIFEST.replace("TUNE_CORE", workspace.join("tune-core").to_str().unwrap());
    write("Cargo.toml", &format!("{manifest}\n{profiles}"));
    write("src/main.rs", RECIPE);
    write("configs/mine.yaml", "optimizer:\n  _component_: lion\n  lr: 0.5\n");
    fs::copy(workspace.join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();

    let run = cargo(folder.path(), &["run", "--offline", "--", "--config", "configs/mine.yaml"]);
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&run.stdout).trim(), "Lion(Lion { lr: 0.5 }) Cpu");

    // The compiler reads the config anew when it changes.
    write("configs/mine.yaml", "optimizer:\n  _component_: lion\n  rl: 0.5\n");
    let run = cargo(folder.path(), &["build", "--offline"]);
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success());
    for expected in ["unknown key `optimizer.rl`", "--> configs/mine.yaml:3:3", "did you mean `lr`?"] {
        assert!(said.contains(expected), "{said}");
    }

    // What a preflight is made of must be a recipe with this config: one message each, at its name.
    write("configs/mine.yaml", "optimizer: lion\n");
    let with = |ty: &str| RECIPE.replace("#[recipe(", &format!("#[recipe(preflight = {ty}, "));
    let other = RECIPE.to_owned() + OTHER_RECIPE;
    let other = other.replacen("#[recipe(", "#[recipe(preflight = Other, ", 1);
    for (source, expected) in [
        (with("String"), ["`String` is no recipe", "`preflight` names the type whose `setup` and `train`"]),
        (other, ["mismatched types", "expected `&OtherConfig`, found `&MineConfig`"]),
    ] {
        write("src/main.rs", &source);
        let build = cargo(folder.path(), &["build", "--offline"]);
        let said = String::from_utf8_lossy(&build.stderr);
        assert!(expected.iter().all(|part| said.contains(part)), "{said}");
        assert_eq!(said.matches("\nerror").count(), 2, "one error, and that it was not built: {said}");
    }
}
