//! The heaps of a process whose addresses are limited (`ulimit -v`).

/// What glibc reserves of addresses for a heap.
const HEAP: u64 = 64 << 20;
/// The share of the limit that heaps may take.
const SHARE: u64 = 16;

/// Lets threads share heaps where addresses are limited. glibc gives each thread one of its own, which reserves 64 MiB of
/// addresses however little is in it: a few threads would use up what the run needs. Called once by a program's `main`,
/// before it starts any thread.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn share() {
    if let Some(limit) = limit() {
        // SAFETY: sets a number of the allocator, which it guards with its own lock.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, i32::try_from(most(limit)).unwrap_or(i32::MAX)) };
    }
}

/// Other allocators reserve nothing.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn share() {}

/// How many bytes of addresses the heaps may reserve that threads do not have yet.
#[must_use]
pub fn reserve() -> u64 {
    limit().map_or(0, |limit| (most(limit) - 1) * HEAP)
}

/// How many heaps there may be within a limit, the first one among them, which reserves nothing.
fn most(limit: u64) -> u64 {
    (limit / SHARE / HEAP).max(1)
}

/// `ulimit -v`, in bytes.
#[cfg(target_os = "linux")]
fn limit() -> Option<u64> {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limits` has room for what is written.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limits) };
    (done == 0 && limits.rlim_cur != libc::RLIM_INFINITY).then_some(limits.rlim_cur)
}

#[cfg(not(target_os = "linux"))]
fn limit() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heaps_take_a_small_share_of_the_limit() {
        for (limit, heaps) in [(0, 1), (200 << 20, 1), (2 << 30, 2), (64 << 30, 64)] {
            assert_eq!(most(limit), heaps);
            assert!((most(limit) - 1) * HEAP <= limit / SHARE);
        }
    }
}
