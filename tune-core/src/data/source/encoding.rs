//! Text in UTF-16 and UTF-32, as Windows' tools write it, made UTF-8.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek};
use std::path::Path;

use crate::data::scratch::Scratch;
use crate::{Error, Result};

/// Text that is passed on at a time.
const CHUNK: usize = 1 << 16;

/// The byte order mark.
const MARK: char = '\u{feff}';

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Encoding {
    name: &'static str,
    /// Bytes of a unit.
    width: usize,
    big_endian: bool,
}

const UTF16_LE: Encoding = Encoding { name: "UTF-16", width: 2, big_endian: false };
const UTF16_BE: Encoding = Encoding { name: "UTF-16", width: 2, big_endian: true };
const UTF32_LE: Encoding = Encoding { name: "UTF-32", width: 4, big_endian: false };
const UTF32_BE: Encoding = Encoding { name: "UTF-32", width: 4, big_endian: true };

/// The file itself, or a temporary one with its text in UTF-8 and without a byte order mark; at its beginning.
pub(super) fn utf8(path: &Path, mut file: File) -> Result<File> {
    let mut beginning = Vec::new();
    (&mut file).take(4).read_to_end(&mut beginning).map_err(Error::io("read", path))?;
    file.rewind().map_err(Error::io("read", path))?;
    match encoding(&beginning) {
        None => Ok(file),
        Some(encoding) => rewrite(path, file, encoding),
    }
}

/// The encoding that a text begins with: by its mark or, as data begins with two ASCII characters, by the zeros around them.
fn encoding(beginning: &[u8]) -> Option<Encoding> {
    match *beginning {
        [0xff, 0xfe, 0, 0] => Some(UTF32_LE),
        [0, 0, 0xfe, 0xff] => Some(UTF32_BE),
        [0xff, 0xfe, ..] => Some(UTF16_LE),
        [0xfe, 0xff, ..] => Some(UTF16_BE),
        [1..=0x7f, 0, 0, 0] => Some(UTF32_LE),
        [0, 0, 0, 1..=0x7f] => Some(UTF32_BE),
        [1..=0x7f, 0, 1..=0x7f, 0] => Some(UTF16_LE),
        [0, 1..=0x7f, 0, 1..=0x7f] => Some(UTF16_BE),
        _ => None,
    }
}

fn rewrite(path: &Path, file: File, encoding: Encoding) -> Result<File> {
    let about = |error: Error| Error::file(path, error.to_string());
    let mut scratch = Scratch::new().map_err(about)?;
    let mut units = Units { from: BufReader::with_capacity(1 << 20, file), encoding, failed: None };
    let mut text = String::new();
    let (mut line, mut is_first) = (1, true);
    let mut push = |decoded: Option<char>| {
        if std::mem::take(&mut is_first) && decoded == Some(MARK) {
            return Ok(());
        }
        let Some(character) = decoded else {
            let message = format!("holds a unit of {} that is no character", encoding.name);
            return Err(Error::line(path, line, message));
        };
        line += usize::from(character == '\n');
        text.push(character);
        if text.len() >= CHUNK {
            scratch.write(text.as_bytes()).map_err(about)?;
            text.clear();
        }
        Ok(())
    };
    if encoding.width == 2 {
        // A unit has two bytes.
        let sixteen = std::iter::from_fn(|| units.next()).map(|unit| unit as u16);
        char::decode_utf16(sixteen).map(Result::ok).try_for_each(&mut push)?;
    } else {
        std::iter::from_fn(|| units.next()).map(char::from_u32).try_for_each(&mut push)?;
    }
    if let Some(error) = units.failed {
        return Err(match error.kind() {
            ErrorKind::UnexpectedEof => Error::line(path, line, format!("ends within a unit of {}", encoding.name)),
            _ => Error::io("read", path)(error),
        });
    }
    scratch.write(text.as_bytes()).map_err(about)?;
    let mut utf8 = scratch.reader()?;
    scratch.finish()?;
    utf8.rewind().map_err(Error::io("read", path))?;
    Ok(utf8)
}

/// The units of a text.
struct Units {
    from: BufReader<File>,
    encoding: Encoding,
    /// Why there are no more, where that is not the end.
    failed: Option<std::io::Error>,
}

impl Units {
    fn next(&mut self) -> Option<u32> {
        let mut bytes = [0; 4];
        let bytes = &mut bytes[..self.encoding.width];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.from.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 => return None,
                Ok(0) => {
                    self.failed = Some(ErrorKind::UnexpectedEof.into());
                    return None;
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failed = Some(error);
                    return None;
                }
            }
        }
        let add = |unit: u32, byte: &u8| unit << 8 | u32::from(*byte);
        Some(match self.encoding.big_endian {
            true => bytes.iter().fold(0, add),
            false => bytes.iter().rev().fold(0, add),
        })
    }
}
