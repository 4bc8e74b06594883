//! Files that are on the disk when we say so, and what there is room for.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::sums::{self, Sum};
use crate::{Error, Result};

/// Writes one new file and syncs it.
pub(super) struct FileWriter {
    path: PathBuf,
    file: io::BufWriter<File>,
    sum: Sum,
}

impl FileWriter {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io("create", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: io::BufWriter::with_capacity(1 << 20, file),
            sum: Sum { bytes: 0, crc32c: 0 },
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.sum.bytes += bytes.len() as u64;
        self.sum.crc32c = crc32c::crc32c_append(self.sum.crc32c, bytes);
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Flushes and syncs; before this returns, the file is not to be relied on.
    pub(super) fn finish(self) -> Result<()> {
        let file = self.file.into_inner().map_err(|e| Error::io("write", &self.path)(e.into_error()))?;
        file.sync_all().map_err(Error::io("write", &self.path))?;
        sums::note(&self.path, self.sum);
        Ok(())
    }
}

/// Writes a whole file and syncs it.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = FileWriter::create(path)?;
    file.write(bytes)?;
    file.finish()
}

/// Writes a JSON file as the ecosystem does: indented, with a final newline, synced.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::Other(Box::new(e)))?;
    text.push(b'\n');
    write(path, &text)
}

/// Syncs a folder, so that the names in it outlive a power cut.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("sync", path))?;
    }
    Ok(())
}

/// Makes a folder and its parents, and syncs the folder that the first new one is in.
pub(super) fn create_dir_all(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(Error::io("create", path))?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// The bytes that this process may still write to the file system of `path`, where that can be known.
#[cfg(unix)]
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt as _;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` is a C string and `stat` has room for what statvfs writes.
    let done = unsafe { libc::statvfs(name.as_ptr(), stat.as_mut_ptr()) };
    if done != 0 {
        return None;
    }
    // SAFETY: statvfs returned 0, so it filled `stat` in.
    let stat = unsafe { stat.assume_init() };
    // The fields' widths differ between systems.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    Some((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}

#[cfg(not(unix))]
pub(crate) fn free_bytes(_path: &Path) -> Option<u64> {
    None
}

/// A number of bytes for people: `1.5 GB`.
#[must_use]
pub fn human(bytes: u64) -> String {
    let units = ["bytes", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.1} {}", units[unit]) }
}
