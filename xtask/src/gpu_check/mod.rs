//! `cargo xtask gpu-check`: a folder that checks and measures CUDA on a machine with a card and nothing of ours.
//!
//! It is put together here, where no card need be: the example `gpu_check` of `tune-cuda`, the tests of whole models, all recipes in
//! one program with the tiny model, the kernels' sources and their harness, a script that runs all, and what is measured beside it in
//! PyTorch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tune_core::cargo;
use tune_core::config::say;

use crate::{Result, python};

/// Put together a folder, and a .tar.xz of it, that checks and measures CUDA on a machine with a card (`sh run.sh` there).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to; what is there is replaced.
    #[arg(long, default_value = "target/gpu-check")]
    folder: PathBuf,
    /// Build for this machine's C library, and what is newer, alone: without zig, and faster where programs were built before.
    #[arg(long)]
    native: bool,
}

/// The C library that programs need, or a newer one: no system that CUDA 13 supports has an older one (RHEL 8 has it).
const GLIBC: &str = "2.28";
/// What builds for another C library than this machine's.
const ZIG: [&str; 2] = ["cargo-zigbuild==0.24.1", "ziglang==0.17.1"];

/// MiB that the package may have.
const MOST: f64 = 60.0;

/// Builds the programs and copies what they need.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let programs = [
        ("gpu_check", ["-p", "tune-cuda", "--example", "gpu_check"]),
        ("card", ["-p", "tune-core", "--test", "card"]),
        ("recipes_on_cards", ["-p", "recipes", "--test", "recipes_on_cards"]),
        ("tune", ["-p", "recipes", "--bin", "tune"]),
    ];
    let zig = match args.native {
        true => None,
        false => Some(python::environment(&root.join("target/zig"), "zig", &ZIG)?),
    };
    let folder = root.join(&args.folder);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|e| format!("cannot remove {}: {e}", folder.display()))?;
    }
    fs::create_dir_all(&folder)?;
    for (program, arguments) in programs {
        fs::copy(build(root, program, &arguments, zig.as_deref())?, folder.join(program))?;
        // The package is carried to another machine: what debuggers want is most of a program.
        _ = Command::new("strip").arg(folder.join(program)).status();
    }
    for part in ["tests/fixtures/families", "tests/fixtures/quantized", "recipes/tiny", "configs"] {
        copy(&root.join(part), &folder.join(part))?;
    }
    for script in ["run.sh", "peers.py", "models.py"] {
        fs::copy(root.join("xtask/src/gpu_check").join(script), folder.join(script))?;
    }
    for part in ["kernels", "harness"] {
        copy(&root.join("tune-core/cuda").join(part), &folder.join("cuda").join(part))?;
    }
    let archive = folder.with_extension("tar.xz");
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "-C"]).arg(folder.parent().unwrap_or(root)).arg("-cJf").arg(&archive);
    if !tar.arg(folder.file_name().unwrap_or_default()).status()?.success() {
        return Err(format!("tar cannot write {} (it needs xz)", archive.display()).into());
    }
    let [packed, plain] = [fs::metadata(&archive)?.len(), size(&folder)?].map(|bytes| bytes as f64 / 1048576.0);
    say!("{}: {packed:.1} MiB ({plain:.1} unpacked); `sh run.sh` in it where a card is", archive.display());
    match packed > MOST {
        true => Err(format!("{packed:.1} MiB are more than the {MOST} that it may have").into()),
        false => Ok(()),
    }
}

/// Builds a program, by zig where its folder is given; returns where cargo put it.
fn build(root: &Path, name: &str, what: &[&str], zig: Option<&Path>) -> Result<String> {
    let mut command = cargo::command();
    match zig {
        Some(programs) => {
            let others = std::env::var_os("PATH").unwrap_or_default();
            let path = [programs.to_owned()].into_iter().chain(std::env::split_paths(&others));
            let target = format!("{}-unknown-linux-gnu.{GLIBC}", std::env::consts::ARCH);
            command.env("PATH", std::env::join_paths(path)?).args(["zigbuild", "--target", &target])
        }
        None => command.arg("build"),
    };
    command.args(what).arg("--message-format=json-render-diagnostics").current_dir(root);
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
