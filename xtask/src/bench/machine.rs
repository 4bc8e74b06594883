//! Where and of what a result was made.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::Result;

/// The machine, the day and the commit.
pub(super) struct Place {
    pub date: String,
    pub cpu: String,
    pub cores: usize,
    /// The instructions that our kernels use there.
    pub kernels: String,
    pub memory: u64,
    pub commit: String,
    /// Whether the tree differs from the commit.
    pub changed: bool,
}

impl Place {
    pub(super) fn here(root: &Path) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cpu = field(&cpuinfo, "model name").unwrap_or(std::env::consts::ARCH);
        let kib: u64 = field(&meminfo, "MemTotal").and_then(|v| v.strip_suffix(" kB")?.parse().ok()).unwrap_or(0);
        Ok(Self {
            date: said(root, "date", &["-u", "+%Y-%m-%d"])?,
            cpu: cpu.to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            kernels: tune_core::engine::kernels(),
            memory: kib * 1024,
            commit: said(root, "git", &["rev-parse", "--short=10", "HEAD"])?,
            changed: !said(root, "git", &["status", "--porcelain", "--untracked-files=no"])?.is_empty(),
        })
    }

    /// The name of the result's files.
    pub(super) fn file_stem(&self) -> String {
        let words: Vec<String> = self
            .cpu
            .to_lowercase()
            .replace("(r)", "")
            .replace("(tm)", "")
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|w| !w.is_empty())
            .map(str::to_owned)
            .collect();
        let changed = if self.changed { "-changed" } else { "" };
        format!("{}-{}-{}cores-{}{changed}", self.date, words.join("-"), self.cores, self.commit)
    }

    /// The place as results record it.
    pub(super) fn json(&self) -> Value {
        json!({
            "date": self.date,
            "cpu": self.cpu,
            "cores": self.cores,
            "kernels": self.kernels,
            "memory_bytes": self.memory,
            "commit": self.commit,
            "changed": self.changed,
        })
    }
}

/// The value of the first `key : value` line.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().filter_map(|l| l.split_once(':')).find(|(k, _)| k.trim() == key).map(|(_, v)| v.trim())
}

/// What a command prints.
fn said(root: &Path, program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).current_dir(root).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
