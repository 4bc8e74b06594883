//! Whether Intel's matrix units (AMX) can be used: the processor has to have them, the system has to keep their tiles when it
//! switches between threads, and this process has to have asked for them.

use std::sync::OnceLock;

/// Why they cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// The processor has none, or none of the kind that kernels are written for.
    NotThere,
    #[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), expect(dead_code, reason = "nobody asks there"))]
    /// The processor has them, and the system does not let this process use them.
    Refused(&'static str),
}

/// Looks once, and asks the system for them where the processor has them: that holds for all threads, also later ones.
pub(super) fn check() -> Result<(), Missing> {
    static FOUND: OnceLock<Result<(), Missing>> = OnceLock::new();
    *FOUND.get_or_init(look)
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn look() -> Result<(), Missing> {
    Err(Missing::NotThere)
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn look() -> Result<(), Missing> {
    if !linux::has_units() {
        return Err(Missing::NotThere);
    }
    if !linux::tiles_are_kept() {
        return Err(Missing::Refused(
            "the system does not support the processor's matrix units (AMX); Linux does from 5.16 on",
        ));
    }
    match linux::permission() {
        0 => Ok(()),
        libc::ENOSPC => Err(Missing::Refused(
            "the system does not let this process use the processor's matrix units (AMX), for a thread has too small a stack for \
             signals",
        )),
        _ => Err(Missing::Refused("the system does not let this process use the processor's matrix units (AMX)")),
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// The two parts of a thread's state that belong to tiles: their configuration and what they hold.
    const TILE_STATE: u64 = 1 << 17 | 1 << 18;
    /// Asks for a part of the state that has to be asked for, see `arch_prctl` of Linux.
    const REQUEST: libc::c_long = 0x1023;
    /// What tiles hold, as the number of a part of the state.
    const TILE_DATA: libc::c_long = 18;

    /// Whether the processor has eight tiles of 16 rows of 64 bytes, and multiplies bf16 in them.
    pub(super) fn has_units() -> bool {
        if __cpuid(0).eax < 0x1d {
            return false;
        }
        let features = __cpuid_count(7, 0).edx;
        let (bf16, tiles) = (features >> 22 & 1, features >> 24 & 1);
        let palette = __cpuid_count(0x1d, 1);
        let (row, count, rows) = (palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff);
        bf16 == 1 && tiles == 1 && (row, rows) == (64, 16) && count >= 8
    }

    /// Whether the system keeps tiles when it switches between threads.
    pub(super) fn tiles_are_kept() -> bool {
        #[target_feature(enable = "xsave")]
        fn kept() -> u64 {
            // SAFETY: register 0 is there where the system has enabled `xsave`, which is looked at before.
            unsafe { _xgetbv(0) }
        }
        let has_xsave = __cpuid(1).ecx >> 27 & 1 == 1;
        // SAFETY: the instruction is there, as just found.
        has_xsave && unsafe { kept() } & TILE_STATE == TILE_STATE
    }

    /// Asks the system for the tiles. Returns 0, or the number of an error.
    pub(super) fn permission() -> i32 {
        // SAFETY: it takes two numbers, and changes what this process may use.
        match unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) } {
            0 => 0,
            _ => std::io::Error::last_os_error().raw_os_error().unwrap_or(-1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the system lists and what was found agree. Where there are no units, the rest of them is tested without.
    #[test]
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn units_are_found_where_the_system_lists_them() {
        let listed = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let has = |flag: &str| listed.split_whitespace().any(|word| word == flag);
        assert_eq!(check() != Err(Missing::NotThere), has("amx_bf16") && has("amx_tile"));
        assert_eq!(check(), check());
    }
}
