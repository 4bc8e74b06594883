//! What the hub says of a file's contents, and whether it is so.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The hash of a file's contents, in hexadecimal digits; the cache keeps them under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hash {
    /// Of files in large-file storage.
    Sha256(String),
    /// Of all others, git's name for the contents: the SHA-1 of a header and them.
    Git(String),
}

impl Hash {
    /// The hash with these digits.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let is_hex = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        match text.len() {
            64 if is_hex => Some(Self::Sha256(text.to_owned())),
            40 if is_hex => Some(Self::Git(text.to_owned())),
            _ => None,
        }
    }

    pub(crate) fn digits(&self) -> &str {
        let (Self::Sha256(digits) | Self::Git(digits)) = self;
        digits
    }

    /// Compares a file's contents, which are on the disk, with the hash. `Err` has what was found instead.
    pub(crate) fn check(&self, path: &Path) -> io::Result<Result<(), String>> {
        let mut file = File::open(path)?;
        let found = match self {
            Self::Sha256(_) => digest(Sha256::new(), &mut file)?,
            Self::Git(_) => {
                let header = format!("blob {}\0", file.metadata()?.len());
                digest(Sha1::new_with_prefix(header), &mut file)?
            }
        };
        if found == self.digits() {
            return Ok(Ok(()));
        }
        let name = if matches!(self, Self::Git(_)) { "git's SHA-1" } else { "SHA-256" };
        Ok(Err(format!("{name} {found} instead of {}", self.digits())))
    }
}

fn digest<D: Digest>(mut hash: D, file: &mut File) -> io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What tells whether a file has changed: its length, when it was written, and where it is.
pub(crate) fn state(path: &Path) -> Option<String> {
    let meta = fs::metadata(path).ok()?;
    let written = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(format!("{} {} {}", meta.len(), written.as_nanos(), path.display()))
}
