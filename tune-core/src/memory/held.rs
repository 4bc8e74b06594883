//! How much memory the process has held.

use std::sync::atomic::{AtomicU64, Ordering};

/// The largest resident set of the process so far, in bytes: the physical memory that it
/// held at its worst, counted by the operating system. Pages of memory-mapped checkpoints
/// count while they are resident.
///
/// `None` where the system does not tell (anything but Linux, macOS and the BSDs).
pub fn peak_memory() -> Option<u64> {
    /// Linux estimates the count, and a later reading can be a few pages smaller.
    static HIGHEST: AtomicU64 = AtomicU64::new(0);
    let now = peak()?;
    Some(HIGHEST.fetch_max(now, Ordering::Relaxed).max(now))
}

/// The resident set of the process now, in bytes. `None` anywhere but on Linux.
pub fn resident_memory() -> Option<u64> {
    #[cfg(target_os = "linux")]
    return line_of(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:");
    #[cfg(not(target_os = "linux"))]
    None
}

/// `VmHWM`, and not `ru_maxrss`: the latter survives `exec`, so that a small program
/// started by a large one would report the large one's peak.
#[cfg(target_os = "linux")]
fn peak() -> Option<u64> {
    line_of(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

#[cfg(target_os = "linux")]
fn line_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(all(unix, not(target_os = "linux")))]
fn peak() -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the pointer is to memory of the right type, which the call fills if it returns 0.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return None;
        }
        usage.assume_init()
    };
    let peak = u64::try_from(usage.ru_maxrss).ok()?;
    // Apple counts bytes, everyone else KiB.
    if cfg!(target_vendor = "apple") { Some(peak) } else { peak.checked_mul(1024) }
}

#[cfg(not(unix))]
fn peak() -> Option<u64> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn peak_follows_what_is_held_and_never_falls() {
        let before = peak_memory().expect("measured on this system");
        // Hidden from the optimizer, which would leave it out.
        let held = std::hint::black_box(vec![1u8; 256 << 20]);
        let during = peak_memory().expect("measured on this system");
        assert!(during >= 256 << 20, "{during}");
        drop(held);
        assert!(peak_memory().expect("measured on this system") >= during);
        assert!(during >= before);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn reads_the_line_of_the_status_file() {
        let status = "VmPeak:\t  12 kB\nVmHWM:\t    5120 kB\nVmRSS:\t 4000 kB\n";
        assert_eq!(line_of(status, "VmHWM:"), Some(5120 * 1024));
        assert_eq!(line_of(status, "VmRSS:"), Some(4000 * 1024));
        assert_eq!(line_of("VmRSS:\t 4000 kB\n", "VmHWM:"), None);
    }
}
