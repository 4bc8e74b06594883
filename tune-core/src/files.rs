//! What is there already is kept, and what is there in the place of a file.

use std::fs;
use std::path::Path;

use crate::{Error, Result};

/// Renames a file to the first free numbered name beside it: `metrics.jsonl` to `metrics.1.jsonl`, and so on.
pub(crate) fn move_aside(path: &Path) -> Result<()> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or_else(String::new, |e| format!(".{}", e.to_string_lossy()));
    let mut number = 1u64;
    let aside = loop {
        let aside = path.with_file_name(format!("{stem}.{number}{extension}"));
        if !aside.exists() {
            break aside;
        }
        number += 1;
    };
    fs::rename(path, aside).map_err(Error::io("rename", path))
}

/// Whether these bytes stand for a file that Git LFS has not fetched.
pub(crate) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs")
}
