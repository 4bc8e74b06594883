//! How deep a file's schema is nested. The `parquet` crate puts it together by recursion, for which any stack can be too
//! small, and it is read here first without.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// The most levels of groups in groups; a list within a message takes two or three.
const DEEPEST: usize = 100;

/// What a file ends with, behind the length of its metadata.
const MAGIC: &[u8; 4] = b"PAR1";

/// The field of `FileMetaData` that holds the schema, and the one of `SchemaElement` that counts children, in the
/// format's `parquet.thrift`.
const SCHEMA: i64 = 2;
const NUM_CHILDREN: i64 = 5;

/// Refuses a file whose schema is nested too deep. A file that is none is left for others to refuse.
pub(super) fn check(file: &File) -> Result<(), String> {
    let is_too_deep = metadata(file).ok().flatten().is_some_and(|metadata| is_too_deep(&metadata) == Some(true));
    match is_too_deep {
        true => Err(format!("its schema is nested deeper than {DEEPEST} levels, which no data for training is")),
        false => Ok(()),
    }
}

/// The bytes of the metadata at a file's end. The file's position is left at its beginning.
fn metadata(mut file: &File) -> io::Result<Option<Vec<u8>>> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut end = [0; 8];
    if length < 8 {
        file.rewind()?;
        return Ok(None);
    }
    file.seek(SeekFrom::End(-8))?;
    file.read_exact(&mut end)?;
    let [a, b, c, d, magic @ ..] = end;
    let size = u32::from_le_bytes([a, b, c, d]);
    if magic != *MAGIC || u64::from(size) + 8 > length {
        file.rewind()?;
        return Ok(None);
    }
    file.seek(SeekFrom::End(-8 - i64::from(size)))?;
    let mut metadata = vec![0; size as usize];
    file.read_exact(&mut metadata)?;
    file.rewind()?;
    Ok(Some(metadata))
}

/// Whether the schema in a file's metadata is too deep; `None` where it is no schema.
fn is_too_deep(metadata: &[u8]) -> Option<bool> {
    let mut from = Compact { rest: metadata };
    let mut id = 0;
    loop {
        let kind = from.field(&mut id)?;
        if id != SCHEMA {
            from.skip(kind, 0)?;
            continue;
        }
        let (elements, _) = from.list()?;
        // Of each group that is open, how many children are to come.
        let mut open: Vec<u64> = Vec::new();
        for _ in 0..elements {
            let children = from.children()?;
            while open.last() == Some(&0) {
                open.pop();
            }
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            if children > 0 {
                open.push(children);
            }
            if open.len() > DEEPEST {
                return Some(true);
            }
        }
        return Some(false);
    }
}

/// Thrift's compact protocol, as far as it is needed to pass over what is not asked for.
struct Compact<'a> {
    rest: &'a [u8],
}

impl Compact<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A signed number, small ones of either sign in few bytes.
    fn signed(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    /// The type of the next field, whose number follows from that of the one before; `None` also at the end.
    fn field(&mut self, id: &mut i64) -> Option<u8> {
        let header = self.byte()?;
        if header == 0 {
            return None;
        }
        *id = match header >> 4 {
            0 => self.signed()?,
            step => id.checked_add(i64::from(step))?,
        };
        Some(header & 0x0f)
    }

    /// The length of a list, and the type of what is in it.
    fn list(&mut self) -> Option<(u64, u8)> {
        let header = self.byte()?;
        let length = match header >> 4 {
            15 => self.varint()?,
            length => u64::from(length),
        };
        Some((length, header & 0x0f))
    }

    /// The number of children of a schema's element, all of which is passed.
    fn children(&mut self) -> Option<u64> {
        let (mut id, mut children) = (0, 0);
        while *self.rest.first()? != 0 {
            let kind = self.field(&mut id)?;
            match id {
                NUM_CHILDREN => children = u64::try_from(self.signed()?).ok()?,
                _ => self.skip(kind, 0)?,
            }
        }
        self.byte()?;
        Some(children)
    }

    /// Passes over a value; one in a list or map is a byte also where it is a boolean.
    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        match kind {
            // True and false are their own types.
            1 | 2 => Some(()),
            3 => self.byte().map(drop),
            4..=6 => self.varint().map(drop),
            7 => self.pass(8),
            8 => {
                let length = self.varint()?;
                self.pass(length)
            }
            9 | 10 => {
                let (length, kind) = self.list()?;
                (0..length).try_for_each(|_| self.skip_element(kind, depth + 1))
            }
            11 => {
                let length = self.varint()?;
                let kinds = if length > 0 { self.byte()? } else { 0 };
                (0..length).try_for_each(|_| {
                    self.skip_element(kinds >> 4, depth + 1)?;
                    self.skip_element(kinds & 0x0f, depth + 1)
                })
            }
            12 => {
                let mut id = 0;
                while *self.rest.first()? != 0 {
                    let kind = self.field(&mut id)?;
                    self.skip(kind, depth + 1)?;
                }
                self.byte().map(drop)
            }
            13 => self.pass(16),
            _ => None,
        }
    }

    fn skip_element(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            1 | 2 => self.byte().map(drop),
            kind => self.skip(kind, depth),
        }
    }

    fn pass(&mut self, bytes: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(bytes).ok()?..)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Metadata with a schema of groups in groups, and a leaf within.
    fn nested(depth: usize) -> Vec<u8> {
        // Version 2, then the list of the schema's elements with its length.
        let mut metadata = vec![0x15, 4, 0x19, 0xfc];
        let mut length = depth + 1;
        while length >= 0x80 {
            metadata.push(length as u8 | 0x80);
            length >>= 7;
        }
        metadata.push(length as u8);
        // A name of one letter as field 4, one child as field 5, and a logical type, a struct in a struct, as field 10.
        let group = [0x48, 1, b'g', 0x15, 2, 0x5c, 0x3c, 0, 0, 0];
        metadata.extend((0..depth).flat_map(|_| group));
        metadata.extend([0x15, 12, 0x38, 1, b'l', 0]);
        metadata
    }

    #[test]
    fn groups_in_groups_are_counted() {
        assert_eq!(is_too_deep(&nested(1)), Some(false));
        assert_eq!(is_too_deep(&nested(DEEPEST)), Some(false));
        assert_eq!(is_too_deep(&nested(DEEPEST + 1)), Some(true));
        assert_eq!(is_too_deep(&nested(100_000)), Some(true));
    }

    #[test]
    fn groups_side_by_side_are_not() {
        // A root of 200 groups of one leaf each.
        let mut metadata = vec![0x15, 4, 0x19, 0xfc, 0x91, 3, 0x48, 1, b'r', 0x15, 0x90, 3, 0];
        metadata.extend((0..200).flat_map(|_| [0x48, 1, b'g', 0x15, 2, 0, 0x15, 12, 0x38, 1, b'l', 0]));
        assert_eq!(is_too_deep(&metadata), Some(false));
    }

    #[test]
    fn what_is_no_metadata_is_left_to_others() {
        let whole = nested(3);
        for end in 0..whole.len() {
            assert_eq!(is_too_deep(&whole[..end]), None, "the first {end} bytes");
        }
        assert_eq!(is_too_deep(&[0xff; 64]), None);
        // Lists of a list, without end.
        let lists = [vec![0x19], vec![0x19; 100_000]].concat();
        assert_eq!(is_too_deep(&lists), None);
    }
}
