//! A file for what memory need not hold all the time: optimizer state from step to step, inputs of blocks until the backward pass.
//!
//! It is read and written at positions, not mapped: a disk that fills up is an error then, and not the end of the process, and what has
//! passed is no memory of the process. How much of it stays in its cache is up to the system.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::checkpoint::{free_bytes, human};
use crate::positions::{read_exact_at, write_all_at};
use crate::{Error, Result};

/// A file without a name in a folder of the user's: it is gone when it is closed, however the program ends. It is opened when it is first
/// needed.
#[derive(Debug)]
pub(crate) struct OffloadFile {
    dir: PathBuf,
    /// The config key that names the folder.
    key: &'static str,
    place: Mutex<Place>,
}

#[derive(Debug, Default)]
struct Place {
    file: Option<Arc<File>>,
    /// Bytes whose blocks on disk are the file's.
    reserved: u64,
    /// Bytes that are given away.
    taken: u64,
}

/// A part of a file. There are zeros in it at first.
#[derive(Debug)]
pub(crate) struct Region {
    of: Arc<OffloadFile>,
    file: Arc<File>,
    at: u64,
    len: u64,
}

impl OffloadFile {
    /// A file in `dir`, which the config key `key` names.
    pub(crate) fn new(dir: &Path, key: &'static str) -> Arc<Self> {
        Arc::new(Self { dir: dir.to_path_buf(), key, place: Mutex::default() })
    }

    /// Takes this many bytes of the disk at once, so that there is room when they are written.
    ///
    /// # Errors
    /// A folder that is not there or cannot be written, a full disk.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<()> {
        self.grow(&mut self.place.lock().unwrap_or_else(PoisonError::into_inner), bytes).map(drop)
    }

    /// Gives away the next part of the file.
    ///
    /// # Errors
    /// As [`OffloadFile::reserve`].
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Result<Region> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let at = place.taken;
        let file = self.grow(&mut place, at + bytes)?;
        place.taken = at + bytes;
        Ok(Region { of: Arc::clone(self), file, at, len: bytes })
    }

    /// A part of the file that its user gives away: `len` bytes from byte `at` on.
    ///
    /// # Errors
    /// As [`OffloadFile::reserve`].
    pub(crate) fn part(self: &Arc<Self>, at: u64, len: u64) -> Result<Region> {
        let file = self.grow(&mut self.place.lock().unwrap_or_else(PoisonError::into_inner), at + len)?;
        Ok(Region { of: Arc::clone(self), file, at, len })
    }

    fn grow(&self, place: &mut Place, bytes: u64) -> Result<Arc<File>> {
        let file = match &place.file {
            Some(file) => Arc::clone(file),
            None => {
                let file = tempfile::tempfile_in(&self.dir);
                let file = Arc::new(file.map_err(|error| self.unusable(&error, "keep a file in it"))?);
                place.file = Some(Arc::clone(&file));
                file
            }
        };
        if bytes > place.reserved {
            let more = bytes - place.reserved;
            // Some systems fill the disk before they find that it is too small.
            if free_bytes(&self.dir).is_some_and(|free| free < more) {
                return Err(self.full(bytes));
            }
            if let Err(error) = allocate(&file, place.reserved, more) {
                // What was found of it is others' again; if that fails, too, it is when the file is closed.
                let _ = file.set_len(place.reserved);
                return Err(match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.full(bytes),
                    _ => self.unusable(&error, &format!("keep {} in it", human(bytes))),
                });
            }
            place.reserved = bytes;
        }
        Ok(file)
    }

    fn full(&self, bytes: u64) -> Error {
        let message = format!(
            "there is no room for the {} that are kept here: make room, or name a folder on another disk in {}",
            human(bytes),
            self.key
        );
        Error::Full { path: self.dir.clone(), message }
    }

    fn unusable(&self, error: &io::Error, what: &str) -> Error {
        Error::file(&self.dir, format!("cannot {what}: {error}; name another folder in {}", self.key))
    }
}

impl Region {
    /// Its bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `bytes` with what is from byte `from` of this part on.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, bytes, self.at + from)
            .map_err(|error| self.of.unusable(&error, "read what is kept in it"))
    }

    /// Puts `bytes` where byte `from` of this part is.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn write(&self, from: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(&self.file, bytes, self.at + from)
            .map_err(|error| self.of.unusable(&error, "write what is kept in it"))
    }

    /// Tells the system that these bytes will be read next.
    pub(crate) fn will_read(&self, from: u64, len: u64) {
        advise(&self.file, self.at + from, len);
    }
}

/// Refuses a folder, which the config key `key` names, in which there is no room for `bytes` of `what`.
///
/// # Errors
/// A folder that is not there, too little room. Whether it can be written shows when the file is made.
pub(crate) fn check_room(dir: &Path, key: &str, what: &str, bytes: u64) -> Result<()> {
    if !dir.is_dir() {
        return Err(Error::file(
            dir,
            format!("there is no such folder: make it, on a fast disk of this machine, or name another one in {key}"),
        ));
    }
    match free_bytes(dir) {
        Some(free) if free < bytes => Err(Error::Full {
            path: dir.to_path_buf(),
            message: format!(
                "there is no room for {what}: {} are needed, and {} are free; make room, or name a folder on another disk in {key}",
                human(bytes),
                human(free)
            ),
        }),
        _ => Ok(()),
    }
}

/// Takes the blocks of bytes of a file, which are zero.
#[cfg(target_os = "linux")]
fn allocate(file: &File, from: u64, len: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
    let (from, len) = (from.try_into().map_err(too_large)?, len.try_into().map_err(too_large)?);
    loop {
        // SAFETY: the descriptor is an open file's.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), from, len) } {
            0 => return Ok(()),
            libc::EINTR => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(file: &File, from: u64, len: u64) -> io::Result<()> {
    file.set_len(from + len)
}

#[cfg(target_os = "linux")]
fn advise(file: &File, from: u64, len: u64) {
    use std::os::fd::AsRawFd as _;
    if let (Ok(from), Ok(len)) = (from.try_into(), len.try_into()) {
        // SAFETY: the descriptor is an open file's. It is advice: what comes of it is of no matter.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), from, len, libc::POSIX_FADV_WILLNEED) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_: &File, _: u64, _: u64) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_apart_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let file = OffloadFile::new(folder.path(), "optimizer.offload_dir");
        file.reserve(100).unwrap();
        let [one, two] = [40, 80].map(|bytes| file.take(bytes).unwrap());
        one.write(0, &[1; 40]).unwrap();
        two.write(8, &[2; 72]).unwrap();
        let mut read = [9; 40];
        one.read(0, &mut read).unwrap();
        assert_eq!(read, [1; 40]);
        two.read(0, &mut read).unwrap();
        assert_eq!((&read[..8], &read[8..]), (&[0; 8][..], &[2; 32][..]));
        let mut behind = [0; 1];
        assert!(two.read(80, &mut behind).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has a name");
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let error = OffloadFile::new(&missing, "optimizer.offload_dir").take(8).unwrap_err().to_string();
        assert!(
            error.contains("missing: cannot keep a file in it: ") && error.contains("in optimizer.offload_dir"),
            "{error}"
        );
    }

    /// More than any disk has is refused before anything is written.
    #[test]
    #[cfg(target_os = "linux")]
    fn what_has_no_room_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let free = free_bytes(folder.path()).unwrap();
        let file = OffloadFile::new(folder.path(), "optimizer.offload_dir");
        let error = file.reserve(free + (1 << 40)).unwrap_err().to_string();
        assert!(error.contains("there is no room for the ") && error.contains("optimizer.offload_dir"), "{error}");
        // What there was room for is still there.
        file.take(1 << 10).unwrap().write(0, &[1; 1 << 10]).unwrap();
    }
}
