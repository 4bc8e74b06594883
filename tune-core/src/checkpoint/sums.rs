//! Checksums of files: made as they are written, compared when a run is resumed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::source::DataFile;
use crate::Result;

/// Bytes that one core sums up at a time.
const CHUNK: u64 = 4 << 20;

/// A file's length and checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// Its bytes.
    pub bytes: u64,
    /// Their checksum (CRC-32C).
    pub crc32c: u32,
}

/// The sums of files, by their paths.
pub(super) type Sums = BTreeMap<PathBuf, Sum>;

thread_local! {
    /// Files that this thread has written since [`watch`] began.
    static WRITTEN: RefCell<Option<Sums>> = const { RefCell::new(None) };
}

/// Calls `write`, and returns the sums of the files that it wrote with [`super::durable::FileWriter`].
pub(super) fn watch<T>(write: impl FnOnce() -> T) -> (T, Sums) {
    WRITTEN.set(Some(Sums::new()));
    let result = write();
    (result, WRITTEN.take().unwrap_or_default())
}

/// Notes the sum of a file that is written.
pub(super) fn note(path: &Path, sum: Sum) {
    WRITTEN.with_borrow_mut(|written| {
        if let Some(written) = written {
            written.insert(path.to_path_buf(), sum);
        }
    });
}

/// Reads a file on all cores for its sum.
pub(crate) fn of_file(path: &Path) -> Result<Sum> {
    let file = DataFile::open(path)?;
    let bytes = file.len();
    let chunks = (0..bytes.div_ceil(CHUNK)).into_par_iter().map_init(Vec::new, |buffer, chunk| {
        let start = chunk * CHUNK;
        buffer.resize(CHUNK.min(bytes - start) as usize, 0);
        file.read_at(buffer, start)?;
        Ok((crc32c::crc32c(buffer), buffer.len()))
    });
    let chunks: Vec<(u32, usize)> = chunks.collect::<Result<_>>()?;
    let combined = chunks.into_iter().fold(0, |sum, (next, len)| crc32c::crc32c_combine(sum, next, len));
    Ok(Sum { bytes, crc32c: combined })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::durable;

    #[test]
    fn a_sum_is_the_same_written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, 1, 1000, CHUNK as usize, 2 * CHUNK as usize + 7] {
            let path = dir.path().join(len.to_string());
            let content: Vec<u8> = (0..len).map(|i| (i * i % 251) as u8).collect();
            let (written, sums) = watch(|| durable::write(&path, &content));
            written.unwrap();
            let expected = Sum { bytes: len as u64, crc32c: crc32c::crc32c(&content) };
            assert_eq!(sums[&path], expected);
            assert_eq!(of_file(&path).unwrap(), expected);
        }
    }
}
