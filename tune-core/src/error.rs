//! The one error type of the crate. A message says what, where, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use tune_config::cli::{Exit, LOST};
use tune_hub::plain;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in words for the person at the keyboard.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading, writing or creating a file failed.
    #[error("cannot {action} {}: {source}", shown(path))]
    Io {
        /// What was tried: "read", "write", "create" …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file's content is not what it should be.
    #[error("{}: {}", shown(path), plain(message))]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it and what to do.
        message: String,
    },
    /// One line of a text file is not what it should be.
    #[error("{}:{line}: {}", shown(path), plain(message))]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it and what to do.
        message: String,
    },
    /// Settings that are valid one by one do not fit together, or do not fit the machine or the model.
    #[error("{}", plain(_0))]
    Setup(String),
    /// A record that cannot be used was found while training ran.
    #[error("{0}")]
    Data(String),
    /// Training had to stop.
    #[error("{}", plain(_0))]
    Training(String),
    /// There is no room for a file: waiting, or making room, helps.
    #[error("{}: {}", shown(path), plain(message))]
    Full {
        /// Where it was to be written.
        path: PathBuf,
        /// What was to be written and what to do.
        message: String,
    },
    /// The run was asked to end, by Ctrl-C or SIGTERM.
    #[error("{0}")]
    Stopped(#[source] Exit),
    /// Another process of the run has died or hangs. The run can go on from its newest checkpoint.
    #[error("{0}")]
    Lost(#[source] Exit),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// Any other failure.
    #[error(transparent)]
    Other(#[from] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// For `map_err` on a file operation: `fs::read(&p).map_err(Error::io("read", &p))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// The content of `path` is wrong.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// Line `line` (from 1) of `path` is wrong.
    pub fn line(path: impl AsRef<Path>, line: usize, message: impl Into<String>) -> Self {
        Self::Line { path: path.as_ref().to_path_buf(), line, message: message.into() }
    }

    /// Another process of the run has died or hangs.
    pub fn lost(message: impl Into<String>) -> Self {
        Self::Lost(Exit { code: LOST, message: message.into() })
    }

    /// Whether there was no room for a file, or no more than it has was allowed.
    pub(crate) fn is_full_disk(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match self {
            Self::Io { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge),
            Self::Full { .. } => true,
            _ => false,
        }
    }

    /// Whether it passes when somebody makes room.
    pub(crate) fn may_pass(&self) -> bool {
        let limit = matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::FileTooLarge);
        self.is_full_disk() && !limit
    }

    /// Settings do not fit together, the machine or the model.
    pub fn setup(message: impl Into<String>) -> Self {
        Self::Setup(message.into())
    }
}

/// A path, which may be named by others.
fn shown(path: &Path) -> String {
    plain(&path.display().to_string()).into_owned()
}
