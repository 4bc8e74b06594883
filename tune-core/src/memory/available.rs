//! How much memory there is for this process.

use std::fmt;
use std::fs;
use std::path::Path;

use super::{resident_memory, size};
use crate::{Result, environment};

/// What a process may hold, all that it holds already included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Available {
    /// In bytes.
    pub bytes: u64,
    /// Who says so, in words.
    pub origin: &'static str,
}

/// What there is for this process: what `TUNE_MEMORY` in the environment says (`16GiB`: for the plan of another machine, or to
/// overrule the system), else what the system has available, or what the process's control group or its own limits
/// (`ulimit -v`, `ulimit -d`) let it still take, whichever is less. `None` where the system does not tell (anything but Linux).
///
/// # Errors
/// Where `TUNE_MEMORY` says no size.
pub fn available() -> Result<Option<Available>> {
    available_beside(0, 1)
}

/// The same, for what takes so many bytes of addresses besides its memory: those count where addresses are limited. So many
/// processes share the memory of the machine.
///
/// # Errors
/// As [`available`].
pub(crate) fn available_beside(addresses: u64, processes: usize) -> Result<Option<Available>> {
    if let Some(said) = of_variable("TUNE_MEMORY", "as TUNE_MEMORY says")? {
        return Ok(Some(said));
    }
    let Some(own) = resident_memory() else { return Ok(None) };
    let shared = |free: Option<u64>| free.map(|free| free / processes.max(1) as u64);
    let words = |words: [&'static str; 2]| words[usize::from(processes > 1)];
    let all = [
        (shared(system()), words(["available on this machine", "that each process of this machine can have"])),
        (shared(group()), words(["left to its control group", "that each process of the control group can have"])),
        (
            limit(Limit::AddressSpace).map(|left| left.saturating_sub(addresses)),
            "left by the limit of its address space (`ulimit -v`)",
        ),
        (limit(Limit::Data).map(|left| left.saturating_sub(addresses)), "left by the limit of its data (`ulimit -d`)"),
    ];
    let all = all.into_iter().filter_map(|(free, origin)| Some(Available { bytes: free? + own, origin }));
    Ok(all.min_by_key(|available| available.bytes))
}

/// What a variable of the environment says, if it is set.
pub(crate) fn of_variable(variable: &str, origin: &'static str) -> Result<Option<Available>> {
    let Some(text) = environment::said(variable) else { return Ok(None) };
    let bytes = parse_size(&text)
        .ok_or_else(|| environment::refused(variable, &text, "it can be a size such as 16GiB or 800MiB, or not set"))?;
    Ok(Some(Available { bytes, origin }))
}

impl fmt::Display for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", size(self.bytes), self.origin)
    }
}

/// `16GiB`, `1.5 g`, or a number of bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[number.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1024f64.powi(2),
        "g" | "gb" | "gib" => 1024f64.powi(3),
        "t" | "tb" | "tib" => 1024f64.powi(4),
        _ => return None,
    };
    let number: f64 = number.trim().parse().ok()?;
    // A cast saturates.
    (number > 0.0).then_some((number * unit) as u64)
}

/// What the system could give without swapping.
fn system() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Limits of a process of its own, in the words of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    AddressSpace,
    Data,
}

/// How many bytes of addresses this process may have, by `ulimit -v` and `ulimit -d`, if that is limited.
pub(crate) fn address_limit() -> Option<usize> {
    [Limit::AddressSpace, Limit::Data].into_iter().filter_map(limit_and_used).map(|(limit, _)| limit as usize).min()
}

/// What a limit of this process lets it still take. More counts towards it than what is in memory, so that this is the
/// least that is left.
fn limit(which: Limit) -> Option<u64> {
    limit_and_used(which).map(|(limit, used)| limit.saturating_sub(used))
}

/// A limit in bytes, and what counts towards it so far.
#[cfg(target_os = "linux")]
fn limit_and_used(which: Limit) -> Option<(u64, u64)> {
    let (resource, used) = match which {
        Limit::AddressSpace => (libc::RLIMIT_AS, "VmSize:"),
        Limit::Data => (libc::RLIMIT_DATA, "VmData:"),
    };
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limits` has room for what is written.
    let done = unsafe { libc::getrlimit(resource, &raw mut limits) };
    if done != 0 || limits.rlim_cur == libc::RLIM_INFINITY {
        return None;
    }
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(used))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((limits.rlim_cur, kib.saturating_mul(1024)))
}

#[cfg(not(target_os = "linux"))]
fn limit_and_used(_which: Limit) -> Option<(u64, u64)> {
    None
}

/// What the process's control group may still take.
fn group() -> Option<u64> {
    group_in(Path::new("/sys/fs/cgroup"), &fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// The least that is left to any of the groups that the process is in, for the mounted groups and the content of
/// `/proc/self/cgroup`. Cached files count as free: they go when memory is asked for.
fn group_in(mount: &Path, groups: &str) -> Option<u64> {
    let left = |dir: &Path, limit: &str, usage: &str, cached: &str| {
        let number = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
        let limit = number(limit)?;
        let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        let cached = stat.lines().find_map(|line| line.strip_prefix(cached)?.trim().parse::<u64>().ok()).unwrap_or(0);
        Some(limit.saturating_sub(number(usage)?.saturating_sub(cached)))
    };
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (root, [limit, usage, cached]) = if controllers.is_empty() {
            (mount.to_path_buf(), ["memory.max", "memory.current", "inactive_file "])
        } else if controllers.split(',').any(|c| c == "memory") {
            (mount.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "])
        } else {
            continue;
        };
        // In a container the path can be the host's, of which the mount is the end.
        let own = root.join(path.trim_start_matches('/'));
        let own = if own.is_dir() { own } else { root.clone() };
        for dir in own.ancestors().take_while(|dir| dir.starts_with(&root)) {
            least = [least, left(dir, limit, usage, cached)].into_iter().flatten().min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("16GiB", 16u64 << 30), ("800 MiB", 800 << 20), ("1.5g", 3 << 29), ("4096", 4096), ("2T", 2 << 40)]
        {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "GiB", "-1GiB", "much", "1 GiB more", "nan"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    fn group_with(files: &[(&str, &str)], groups: &str) -> Option<u64> {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        group_in(folder.path(), groups)
    }

    #[test]
    fn the_narrowest_group_decides() {
        let files = [
            ("a/memory.max", "1000\n"),
            ("a/memory.current", "700\n"),
            ("a/memory.stat", "anon 500\ninactive_file 200\n"),
            ("a/b/memory.max", "max\n"),
            ("a/b/memory.current", "600\n"),
        ];
        assert_eq!(group_with(&files, "0::/a/b\n"), Some(500));
        assert_eq!(group_with(&files[3..], "0::/a/b\n"), None);
        // In a container: the path is not there.
        let files = [("memory.max", "1000"), ("memory.current", "100")];
        assert_eq!(group_with(&files, "0::/system.slice/docker-1.scope\n"), Some(900));
    }

    #[test]
    fn groups_of_the_first_version_are_read() {
        let files = [
            ("memory/x/memory.limit_in_bytes", "1000"),
            ("memory/x/memory.usage_in_bytes", "400"),
            ("memory/x/memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
        ];
        assert_eq!(group_with(&files, "5:devices:/\n4:memory:/x\n0::/\n"), Some(700));
    }
}
