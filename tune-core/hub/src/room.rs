//! Whether there is room for what is to be downloaded.

use std::path::Path;

use crate::{Error, Result};

/// Refuses what does not fit the disk of `folder`; where that cannot be known, nothing.
pub(crate) fn check(folder: &Path, needed: u64) -> Result<()> {
    // The folder may not be there yet.
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    match free(existing) {
        Some(free) if needed > free => Err(Error::Refused(format!(
            "the download takes {}, and {} has {} free; HF_HUB_CACHE or HF_HOME in the environment names another place",
            human(needed),
            folder.display(),
            human(free)
        ))),
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn free(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(unix))]
fn free(_folder: &Path) -> Option<u64> {
    None
}

fn human(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
