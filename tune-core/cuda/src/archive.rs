//! Files in one, compressed: how kernels are embedded.

use std::collections::BTreeMap;

/// As much as an archive may hold: a length beyond it is a broken file.
const MOST: usize = 1 << 28;

/// Names and contents. `None` if the bytes are not an archive.
pub(crate) fn unpack(packed: &[u8]) -> Option<BTreeMap<String, Vec<u8>>> {
    let mut rest = &zstd::stream::decode_all(packed).ok()?[..];
    let mut files = BTreeMap::new();
    while !rest.is_empty() {
        let name = String::from_utf8(field(&mut rest)?.to_vec()).ok()?;
        files.insert(name, field(&mut rest)?.to_vec());
    }
    Some(files)
}

/// A length in four bytes, the lowest first, and as many bytes.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|&length| length < MOST)?;
    let (field, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(field)
}
