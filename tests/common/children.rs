//! The processes that another one has started, and signals for them.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Those that have not ended.
pub fn children(of: u32) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut words = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let state = words.next();
        state != Some("Z") && words.next().and_then(|parent| parent.parse().ok()) == Some(of)
    };
    pids.filter(is_child).collect()
}

pub fn signal(signal: &str, pid: i32) {
    assert!(Command::new("kill").arg(signal).arg(pid.to_string()).status().unwrap().success());
}

/// Waits for something of a run that has not ended.
pub fn wait_for<T>(child: &mut Child, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "no {what} came");
        assert!(child.try_wait().unwrap().is_none(), "the run has ended before {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The step of the newest checkpoint; 0 where there is none.
pub fn newest_step(output: &Path) -> u64 {
    tune_core::checkpoint::run::latest(output).ok().flatten().map_or(0, |saved| saved.step)
}
