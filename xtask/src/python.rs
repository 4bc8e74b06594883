//! Programs that the Python package index has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tune_core::config::say;

use crate::Result;

/// An environment of Python's in `folder`, made unless it is there, in which pip was told to install `wanted`; `what` is its content in
/// a word. Returns the folder of its programs.
///
/// # Errors
/// No Python 3 with `venv`; no package index; a package that is not there.
pub(crate) fn environment(folder: &Path, what: &str, wanted: &[&str]) -> Result<PathBuf> {
    let (programs, stamp) = (folder.join("bin"), folder.join("installed.txt"));
    let wanted_text = wanted.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted_text) {
        return Ok(programs);
    }
    say!("Installing {what} into {}", folder.display());
    step(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    step(Command::new(programs.join("python")).args(pip).args(wanted))?;
    fs::write(&stamp, wanted_text)?;
    Ok(programs)
}

/// Runs a command; returns what it said.
///
/// # Errors
/// It cannot be started, or fails: then what it said.
pub(crate) fn step(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    if output.status.success() { Ok(said) } else { Err(said.trim().to_owned()) }
}
