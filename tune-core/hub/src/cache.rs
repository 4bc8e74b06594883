//! The cache, in the layout of `huggingface_hub`:
//!
//! ```text
//! models--org--name/
//!   refs/main                      the commit that the branch was at
//!   blobs/<etag>                   contents, by their hash
//!   snapshots/<commit>/<path>      links to them
//! ```

use std::env;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::{Error, Hub, Repo, Result};

/// A variable of the environment that says something.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// `HF_HOME`, or where it is by default.
fn home() -> Result<PathBuf> {
    if let Some(home) = variable("HF_HOME") {
        return Ok(home.into());
    }
    let caches = variable("XDG_CACHE_HOME").map(PathBuf::from);
    let caches = caches.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    let caches = caches
        .ok_or_else(|| Error::Refused("there is no home folder to keep downloads in; set HF_HOME to one".to_owned()))?;
    Ok(caches.join("huggingface"))
}

/// The folder of all repositories.
pub(crate) fn folder() -> Result<PathBuf> {
    match variable("HF_HUB_CACHE") {
        Some(folder) => Ok(folder.into()),
        None => Ok(home()?.join("hub")),
    }
}

/// The token that `HF_TOKEN` has, or the file that `hf auth login` writes.
pub(crate) fn token() -> Option<String> {
    let file = || {
        let path = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home().ok()?.join("token")));
        let text = fs::read_to_string(path?).ok()?;
        Some(text.trim().to_owned()).filter(|token| !token.is_empty())
    };
    variable("HF_TOKEN").or_else(file)
}

impl Hub {
    fn repo(&self, repo: &Repo) -> PathBuf {
        self.cache.join(repo.folder())
    }

    /// Where the contents with this hash are kept.
    pub(crate) fn blob(&self, repo: &Repo, etag: &str) -> PathBuf {
        self.repo(repo).join("blobs").join(etag)
    }

    /// Where the files of a commit are.
    pub(crate) fn snapshot_folder(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.repo(repo).join("snapshots").join(commit)
    }

    /// The files of the revision that are in the cache, if any.
    #[must_use]
    pub fn cached(&self, repo: &Repo) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.repo(repo).join("refs").join(&repo.revision));
        let commit = commit.unwrap_or_else(|_| repo.revision.clone());
        Some(self.snapshot_folder(repo, commit.trim())).filter(|folder| folder.is_dir())
    }

    /// Keeps which commit a branch or tag is at.
    pub(crate) fn remember(&self, repo: &Repo, commit: &str) -> Result<()> {
        if repo.revision == commit {
            return Ok(());
        }
        let path = self.repo(repo).join("refs").join(&repo.revision);
        if fs::read_to_string(&path).is_ok_and(|found| found.trim() == commit) {
            return Ok(());
        }
        make_parent(&path)?;
        fs::write(&path, commit).map_err(Error::io("write", &path))
    }

    /// Puts a blob into a snapshot under its name.
    pub(crate) fn link(&self, repo: &Repo, commit: &str, name: &str, etag: &str) -> Result<()> {
        let path = self.snapshot_folder(repo, commit).join(name);
        if path.exists() {
            return Ok(());
        }
        make_parent(&path)?;
        // One whose blob has gone.
        let _ = fs::remove_file(&path);
        let failed = Error::io("write", &path);
        #[cfg(unix)]
        {
            // Relative, so that the cache can be moved: out of the file's folders, of the commit's and `snapshots`.
            let out = "../".repeat(name.split('/').count() + 1);
            std::os::unix::fs::symlink(format!("{out}blobs/{etag}"), &path).map_err(failed)
        }
        #[cfg(not(unix))]
        fs::copy(self.blob(repo, etag), &path).map(drop).map_err(failed)
    }
}

/// Makes the folder that a file is to lie in.
pub(crate) fn make_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(Error::io("create", folder))
}

/// Whether a name that the server gave stays inside the folder.
pub(crate) fn stays_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}
