//! Files compressed with gzip or Zstandard, as the hub's are.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::data::scratch::Scratch;
use crate::{Error, Result};

/// What names of compressed files end in.
const EXTENSIONS: [&str; 3] = ["gz", "zst", "zstd"];

const GZIP: &[u8] = b"\x1f\x8b\x08";
const ZSTANDARD: &[u8] = b"\x28\xb5\x2f\xfd";

/// The name without what says that the file is compressed.
pub(in crate::data) fn plain_name(path: &Path) -> Cow<'_, Path> {
    let is_compressed =
        path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)));
    if is_compressed { path.with_extension("").into() } else { path.into() }
}

/// The file itself or, if its first bytes say that it is compressed, a temporary one with what is in it; at its
/// beginning.
pub(super) fn unpacked(path: &Path, mut file: File) -> Result<File> {
    let failed = Error::io("read", path);
    let mut beginning = Vec::new();
    let begun = (&mut file).take(4).read_to_end(&mut beginning).and_then(|_| file.rewind());
    begun.map_err(failed)?;
    let reader = BufReader::with_capacity(1 << 20, file);
    if beginning.starts_with(GZIP) {
        unpack(path, "gzip", MultiGzDecoder::new(reader))
    } else if beginning.starts_with(ZSTANDARD) {
        let decoder = zstd::stream::read::Decoder::with_buffer(reader).map_err(Error::io("read", path))?;
        unpack(path, "Zstandard", decoder)
    } else {
        Ok(reader.into_inner())
    }
}

fn unpack(path: &Path, format: &str, mut from: impl Read) -> Result<File> {
    let about = |error: Error| Error::file(path, error.to_string());
    let mut scratch = Scratch::new().map_err(about)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => scratch.write(&buffer[..count]).map_err(about)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(path, format, scratch.len(), error)),
        }
    }
    let mut file = scratch.reader()?;
    scratch.finish()?;
    file.rewind().map_err(Error::io("read", path))?;
    Ok(file)
}

/// What cannot be unpacked behind the first `bytes`.
fn broken(path: &Path, format: &str, bytes: u64, error: io::Error) -> Error {
    if error.raw_os_error().is_some() {
        return Error::io("read", path)(error);
    }
    let what = match error.kind() {
        ErrorKind::UnexpectedEof => "it ends too early; get or write it again".to_owned(),
        _ => format!("{error}; get or write it again"),
    };
    Error::file(path, format!("not a {format} file that can be read, behind {bytes} bytes of what is in it: {what}"))
}
