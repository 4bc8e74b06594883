//! The archives in which `tune-cuda` embeds what was compiled.

use crate::Result;

/// Compiled once, loaded often: as small as it gets.
const LEVEL: i32 = 22;

/// Names and contents, each behind its length in four bytes, compressed together.
pub(super) fn pack<'a>(files: impl Iterator<Item = (&'a String, &'a Vec<u8>)>) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    for (name, content) in files {
        for field in [name.as_bytes(), content] {
            plain.extend(u32::try_from(field.len())?.to_le_bytes());
            plain.extend(field);
        }
    }
    Ok(zstd::stream::encode_all(&plain[..], LEVEL)?)
}
