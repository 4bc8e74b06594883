//! Temporary files: what data is kept in besides its own files.

use std::env;
use std::fs::File;
use std::io::{self, BufWriter, Write};

use crate::checkpoint::{free_bytes, human};
use crate::{Error, Result};

/// After this many bytes it is looked again whether there is room.
const LOOK_EVERY: u64 = 4 << 20;

/// A file without a name: it is gone when it is closed, however the program ends.
pub(super) fn temporary_file() -> Result<File> {
    tempfile::tempfile().map_err(|e| temporary_error(&e))
}

/// Data cannot be kept aside.
pub(super) fn temporary_error(error: &io::Error) -> Error {
    let place = env::temp_dir();
    Error::setup(format!(
        "cannot keep data in a temporary file in {}: {error}; TMPDIR in the environment names another place",
        place.display()
    ))
}

/// A temporary file that is written from its beginning, and leaves others some room.
pub(super) struct Scratch {
    out: BufWriter<File>,
    written: u64,
    look_at: u64,
    /// What was free at the beginning, where that can be known.
    free: Option<u64>,
}

impl Scratch {
    pub(super) fn new() -> Result<Self> {
        let out = BufWriter::with_capacity(1 << 18, temporary_file()?);
        Ok(Self { out, written: 0, look_at: LOOK_EVERY, free: free_bytes(&env::temp_dir()) })
    }

    /// The same file, to read from.
    pub(super) fn reader(&self) -> Result<File> {
        self.out.get_ref().try_clone().map_err(|e| temporary_error(&e))
    }

    /// The bytes that were written.
    pub(super) fn len(&self) -> u64 {
        self.written
    }

    /// Makes sure that there is room for `bytes`, of which at least this many will come.
    pub(super) fn expect(&self, bytes: u64) -> Result<()> {
        match self.free {
            Some(free) if bytes > free - reserve(free) => Err(no_room(bytes, free)),
            _ => Ok(()),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        if self.written >= self.look_at {
            self.look_at = self.written + LOOK_EVERY;
            if let (Some(before), Some(now)) = (self.free, free_bytes(&env::temp_dir()))
                && now < reserve(before) + bytes.len() as u64
            {
                return Err(no_room(self.written, before));
            }
        }
        self.out.write_all(bytes).map_err(|e| temporary_error(&e))
    }

    /// Writes what is still in memory.
    pub(super) fn finish(mut self) -> Result<()> {
        self.out.flush().map_err(|e| temporary_error(&e))
    }
}

/// What is left to others, and to what the run itself keeps there later.
fn reserve(free: u64) -> u64 {
    free / 10
}

fn no_room(bytes: u64, free: u64) -> Error {
    Error::setup(format!(
        "takes more than {} in a temporary file, and {} has {} free, of which a tenth is left to others; TMPDIR in \
         the environment names another place",
        human(bytes),
        env::temp_dir().display(),
        human(free)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_refused_before_and_on_the_way() {
        let free = free_bytes(&env::temp_dir()).unwrap();
        let mut scratch = Scratch::new().unwrap();
        assert!(scratch.expect(1 << 10).is_ok());
        let error = scratch.expect(free + (1 << 40)).unwrap_err().to_string();
        assert!(error.starts_with("takes more than 1.") && error.contains("TMPDIR"), "{error}");
        // As if most of the room had gone since it began.
        scratch.free = Some(free.saturating_mul(20));
        let error = (0..8).find_map(|_| scratch.write(&[0; 1 << 20]).err()).unwrap().to_string();
        assert!(error.contains("takes more than 4.2 MB in a temporary file, and "), "{error}");
    }
}
