//! A place to write to: nothing has its name before all of it is there.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::checkpoint::{free_bytes, human, sync_dir, sync_tree};
use crate::{Error, Result};

/// Room for what is not counted: configs, tokenizers, receipts.
const SPARE: u64 = 4 << 20;

/// A folder beside the place of something new, where it is written. It is removed if it is dropped before [`Aside::name`].
#[derive(Debug)]
pub struct Aside {
    /// The folder that is written to.
    dir: PathBuf,
    /// What will be there in the end.
    target: PathBuf,
    /// Held while this lives, so that nobody else writes there.
    _lock: Option<File>,
    done: bool,
}

impl Aside {
    /// Whether something new can be written at `target`, which will take this many `bytes`; nothing is changed.
    ///
    /// # Errors
    /// There is something already, or too little room.
    pub fn check(target: &Path, bytes: u64) -> Result<()> {
        if target.file_name().is_none() {
            return Err(Error::file(target, "is no name for something new"));
        }
        if fs::symlink_metadata(target).is_ok() {
            return Err(Error::file(
                target,
                "is there already, and nothing is written over: choose another name, or remove it",
            ));
        }
        let existing = parent(target).ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new(".")).to_owned();
        let needed = bytes.saturating_add(SPARE);
        match free_bytes(&existing) {
            Some(free) if free < needed => Err(Error::Full {
                path: existing,
                message: format!(
                    "no room for {}: it needs {}, and {} are free",
                    target.display(),
                    human(needed),
                    human(free)
                ),
            }),
            _ => Ok(()),
        }
    }

    /// Begins to write `target`. What an earlier process left there when it was killed is removed.
    ///
    /// # Errors
    /// As [`Aside::check`]; another process is writing the same; a folder that cannot be made.
    pub fn begin(target: &Path, bytes: u64) -> Result<Self> {
        Self::check(target, bytes)?;
        let folder = parent(target);
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let dir = folder.join(format!(".partial-{name}"));
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let lock = lock(&dir, target)?;
        for entry in fs::read_dir(&dir).map_err(Error::io("read", &dir))? {
            let path = entry.map_err(Error::io("read", &dir))?.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::io("remove", &path))?;
        }
        Ok(Self { dir, target: target.to_owned(), _lock: lock, done: false })
    }

    /// Where the thing itself is written: it will have the name that was asked for.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(self.target.file_name().unwrap_or_default())
    }

    /// A file beside it, which gets its name in the folder of the target before the thing itself does.
    #[must_use]
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Gives everything its name: the thing itself last.
    ///
    /// # Errors
    /// One of the names is taken, or renaming fails.
    pub fn name(mut self) -> Result<()> {
        sync_tree(&self.dir)?;
        let folder = parent(&self.target).to_owned();
        let own = self.path();
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))? {
            files.push(entry.map_err(Error::io("read", &self.dir))?.path());
        }
        files.sort_by_key(|path| (*path == own, path.clone()));
        let to = |path: &Path| folder.join(path.file_name().unwrap_or_default());
        if let Some(taken) = files.iter().map(|path| to(path)).find(|path| fs::symlink_metadata(path).is_ok()) {
            return Err(Error::file(
                &taken,
                "is there already, and nothing is written over: choose another name, or remove it",
            ));
        }
        for path in &files {
            fs::rename(path, to(path)).map_err(Error::io("rename", path))?;
        }
        sync_dir(&folder)?;
        self.done = true;
        fs::remove_dir(&self.dir).map_err(Error::io("remove", &self.dir))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.done {
            // What stays is removed by the next attempt.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn lock(dir: &Path, target: &Path) -> Result<Option<File>> {
    if !cfg!(unix) {
        return Ok(None);
    }
    let handle = File::open(dir).map_err(Error::io("open", dir))?;
    match handle.try_lock() {
        Ok(()) => Ok(Some(handle)),
        Err(TryLockError::WouldBlock) => Err(Error::file(target, "is being written by another process")),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_its_name_before_all_of_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("new/model.gguf");
        let names = || {
            let mut names: Vec<String> = fs::read_dir(target.parent().unwrap())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let aside = Aside::begin(&target, 10).unwrap();
        fs::write(aside.path(), "weights").unwrap();
        assert!(!target.exists());
        // Another process finds it in use; one that was killed leaves no lock, and what it left is removed.
        let error = Aside::begin(&target, 10).unwrap_err().to_string();
        assert!(error.contains("being written by another process"), "{error}");
        drop(aside);
        assert_eq!(names(), Vec::<String>::new());
        fs::create_dir_all(dir.path().join("new/.partial-model.gguf/old")).unwrap();

        let aside = Aside::begin(&target, 10).unwrap();
        fs::write(aside.path(), "weights").unwrap();
        fs::write(aside.beside("model.gguf.receipt.json"), "{}").unwrap();
        aside.name().unwrap();
        assert_eq!(names(), ["model.gguf", "model.gguf.receipt.json"]);

        let error = Aside::begin(&target, 10).unwrap_err().to_string();
        assert!(error.contains("is there already"), "{error}");
        let error = Aside::begin(&dir.path().join("other"), u64::MAX / 2).unwrap_err().to_string();
        assert!(error.contains("no room") && !dir.path().join("other").exists(), "{error}");
    }
}
