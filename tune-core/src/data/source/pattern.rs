//! Names of files with `*`, `?` or `[...]` in them.

use std::path::{Path, PathBuf};

use super::is_data;
use crate::{Error, Result, hub};

/// The data files that a pattern fits, in the order of their names; `None` for what is no pattern, or the name of a file that is there.
///
/// # Errors
/// What is no pattern that can be read; one that fits no data file.
pub(super) fn matches(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    let Some(text) = path.to_str().filter(|text| text.contains(['*', '?', '['])) else { return Ok(None) };
    if path.exists() {
        return Ok(None);
    }
    if text.starts_with(hub::SCHEME) {
        return Err(Error::file(path, "names on the hub have no patterns: name a folder, or each file"));
    }
    let wrong = |what: String| Error::file(path, what);
    // They come in alphabetical order.
    let paths = glob::glob(text).map_err(|e| wrong(format!("is no pattern of names: {} (at {})", e.msg, e.pos + 1)))?;
    let mut files = Vec::new();
    for path in paths {
        let path = path.map_err(|e| wrong(format!("cannot be looked through: {e}")))?;
        if path.is_file() && is_data(&path) {
            files.push(path);
        }
    }
    match files.is_empty() {
        true => Err(wrong("no data file fits this pattern".to_owned())),
        false => Ok(Some(files)),
    }
}
