//! A folder that one process at a time saves into.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How long a folder may still be locked by a process that was killed: its memory is given back and its last write ends before
/// its files are closed.
const UNTIL_FREE: Duration = Duration::from_secs(5);

/// The folder that is locked, where its file system has locks. It is free again when this is
/// dropped or the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock(Option<File>);

impl Lock {
    pub(super) fn on(dir: &Path) -> Result<Self> {
        if !cfg!(unix) {
            return Ok(Self(None));
        }
        let handle = File::open(dir).map_err(Error::io("open", dir))?;
        let begun = Instant::now();
        loop {
            match handle.try_lock() {
                Ok(()) => return Ok(Self(Some(handle))),
                Err(TryLockError::WouldBlock) if begun.elapsed() < UNTIL_FREE => thread::sleep(UNTIL_FREE / 200),
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::file(
                        dir,
                        "is in use: another run is saving into it; wait for it, or choose another output_dir",
                    ));
                }
                Err(TryLockError::Error(_)) => return Ok(Self(None)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process that is just being started still has the handle, too.
        if let Some(handle) = &self.0 {
            let _ = handle.unlock();
        }
    }
}
