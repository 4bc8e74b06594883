//! Running a program and watching its memory.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Result;

/// How often a program's memory is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// A program that has ended well.
pub(super) struct Finished {
    /// When it was started, in seconds since 1970.
    pub started: f64,
    /// The largest resident set that was seen, in bytes, mapped files included; 0 where the system does not tell.
    pub peak_memory: u64,
}

/// Runs a command with its output in `log`.
///
/// # Errors
/// A program that cannot be started or fails; then the end of its output is shown.
pub(super) fn run(command: &mut Command, log: &Path) -> Result<Finished> {
    let file = File::create(log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let mut child = command.spawn().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    let mut peak_memory = 0;
    let status = loop {
        peak_memory = high_water_mark(&child).unwrap_or(0).max(peak_memory);
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(INTERVAL);
    };
    if !status.success() {
        let output = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = output.lines().collect();
        let end = lines[lines.len().saturating_sub(12)..].join("\n");
        return Err(format!(
            "{} failed ({status}); the end of {}:\n{end}",
            command.get_program().display(),
            log.display()
        )
        .into());
    }
    Ok(Finished { started, peak_memory })
}

/// The kernel's own record of the process. `ru_maxrss` would survive `exec`: a small program's would be ours.
fn high_water_mark(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
