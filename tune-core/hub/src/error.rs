//! What can go wrong, in words for the person at the keyboard.

use std::io;
use std::path::{Path, PathBuf};

use crate::plain;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something is not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server does not answer, so it may be there another time.
    #[error("{} cannot be reached: {}", plain(host), plain(why))]
    Unreachable {
        /// The server.
        host: String,
        /// What the system said.
        why: String,
    },
    /// The answer is no, or what was asked for is not there.
    #[error("{}", plain(_0))]
    Refused(String),
    /// What was sent is not what was promised.
    #[error("{}", plain(_0))]
    Damaged(String),
    /// A file in the cache cannot be read or written.
    #[error("cannot {action} {}: {source}", plain(&path.display().to_string()))]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
