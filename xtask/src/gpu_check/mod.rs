//! `cargo xtask gpu-check`: a folder that checks and measures CUDA on a machine with a card and nothing of ours.
//!
//! It is put together here, where no card need be: the example `gpu_check` of `tune-cuda`, the kernels' sources and their harness,
//! a script that runs all, and what is measured beside it in PyTorch.

use std::fs;
use std::path::Path;
use std::process::Command;

use tune_core::config::say;

use crate::Result;

/// Put together a folder that checks and measures CUDA on a machine with a card (`./run.sh` there).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to; what is there is replaced.
    #[arg(long, default_value = "target/gpu-check")]
    folder: std::path::PathBuf,
}

/// Builds the program and copies what it needs.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let checks = build(root, "gpu_check", &["build", "-p", "tune-cuda", "--example", "gpu_check"])?;
    let models = build(root, "card", &["test", "--no-run", "-p", "tune-core", "--test", "card"])?;

    let folder = root.join(&args.folder);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|e| format!("cannot remove {}: {e}", folder.display()))?;
    }
    fs::create_dir_all(&folder)?;
    fs::copy(checks, folder.join("gpu_check"))?;
    fs::copy(&models, folder.join("card"))?;
    // The package is carried to another machine: what debuggers want is most of a program.
    for program in ["gpu_check", "card"] {
        _ = Command::new("strip").arg(folder.join(program)).status();
    }
    let fixtures = "tests/fixtures/families";
    copy(&root.join(fixtures), &folder.join(fixtures))?;
    for script in ["run.sh", "peers.py"] {
        fs::copy(root.join("xtask/src/gpu_check").join(script), folder.join(script))?;
    }
    for part in ["kernels", "harness"] {
        copy(&root.join("tune-core/cuda").join(part), &folder.join("cuda").join(part))?;
    }
    say!("{}: {:.1} MiB; run it with `sh run.sh` where a card is", folder.display(), size(&folder)? as f64 / 1048576.0);
    Ok(())
}

/// Builds a program; returns where cargo put it.
fn build(root: &Path, name: &str, arguments: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).arg("--message-format=json-render-diagnostics").current_dir(root);
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{name} does not build").into());
    }
    let found = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| Some(message["executable"].as_str()?.to_owned()));
    found.ok_or_else(|| format!("cargo does not say where {name} is").into())
}

/// Copies a folder, without what is already in the program.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).map_err(|e| format!("{}: {e}", from.display()))? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true if entry.file_name() == "built" => {}
            true => copy(&entry.path(), &to.join(entry.file_name()))?,
            false => _ = fs::copy(entry.path(), to.join(entry.file_name()))?,
        }
    }
    Ok(())
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
