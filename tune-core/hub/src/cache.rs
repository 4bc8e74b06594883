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
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};

use crate::hash::{Hash, state};
use crate::listing::is_commit;
use crate::{Error, Event, File, Hub, Listing, Repo, Result, plain};

/// Checking larger files takes long enough to be told.
const LARGE: u64 = 256 << 20;

/// A variable of the environment that says something.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// The folder of all programs' caches.
fn caches() -> Option<PathBuf> {
    let given = variable("XDG_CACHE_HOME").map(PathBuf::from);
    given.or_else(|| env::home_dir().map(|home| home.join(".cache")))
}

/// Where it is noted which contents were checked.
pub(crate) fn notes() -> Option<PathBuf> {
    Some(caches()?.join("tune").join("checked"))
}

/// `HF_HOME`, or where it is by default.
fn home() -> Result<PathBuf> {
    if let Some(home) = variable("HF_HOME") {
        return Ok(home.into());
    }
    let caches = caches()
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
        let mut text = String::new();
        // No token is longer.
        fs::File::open(path?).ok()?.take(1 << 16).read_to_string(&mut text).ok()?;
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
        let commit = Some(commit.trim()).filter(|commit| is_commit(commit))?;
        Some(self.snapshot_folder(repo, commit)).filter(|folder| folder.is_dir())
    }

    /// Whether the contents with this hash are in the cache, which are checked where that was not done since they were
    /// written: other programs put them there without making sure that they outlive a power cut. `Ok(Err)` says what
    /// is wrong with what is there.
    pub(crate) fn has(&self, repo: &Repo, file: &File, events: &mut dyn FnMut(Event<'_>)) -> Result<Has> {
        let blob = self.blob(repo, file.hash.digits());
        match fs::metadata(&blob) {
            Ok(meta) if meta.len() == file.size => {}
            Ok(meta) => return Ok(Has::Damaged(format!("{} bytes instead of {}", meta.len(), file.size))),
            Err(_) => return Ok(Has::Nothing),
        }
        let noted = self.note(file).and_then(|note| fs::read_to_string(note).ok());
        if noted.is_some() && noted == state(&blob) {
            return Ok(Has::Whole);
        }
        if file.size > LARGE {
            events(Event::Note(&format!("checking {}, which is in the cache", plain(&file.name))));
        }
        match file.hash.check(&blob).map_err(Error::io("read", &blob))? {
            Ok(()) => {
                self.checked(repo, file);
                Ok(Has::Whole)
            }
            Err(what) => Ok(Has::Damaged(what)),
        }
    }

    /// The bytes of a file that are to be downloaded, by the length of what is there.
    pub(crate) fn missing(&self, repo: &Repo, file: &File) -> u64 {
        let blob = self.blob(repo, file.hash.digits());
        let len = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        file.size.saturating_sub(len(&blob).max(len(&blob.with_extension("part"))))
    }

    /// Notes that what is in the cache is what it should be.
    pub(crate) fn checked(&self, repo: &Repo, file: &File) {
        // Without a note, it is checked again.
        if let Some(state) = state(&self.blob(repo, file.hash.digits()))
            && let Some(note) = self.note(file)
            && make_parent(&note).is_ok()
        {
            let _ = fs::write(&note, state);
        }
    }

    fn note(&self, file: &File) -> Option<PathBuf> {
        self.notes.as_ref().map(|notes| notes.join(file.hash.digits()))
    }

    /// The files in a folder of the cache, whose contents are kept under their hashes.
    pub(crate) fn files_of(&self, folder: &Path) -> Listing {
        let mut found = Listing { commit: name_of(folder), files: Vec::new() };
        let mut folders = vec![folder.to_owned()];
        while let Some(inner) = folders.pop() {
            for path in fs::read_dir(&inner).into_iter().flatten().flatten().map(|entry| entry.path()) {
                let hash = fs::read_link(&path).ok().and_then(|blob| Hash::new(&name_of(&blob)));
                let name = path.strip_prefix(folder).ok().and_then(Path::to_str);
                match (hash, name, fs::metadata(&path)) {
                    (Some(hash), Some(name), Ok(meta)) if meta.is_file() => {
                        found.files.push(File { name: name.to_owned(), size: meta.len(), hash });
                    }
                    _ if path.is_dir() => folders.push(path),
                    _ => {}
                }
            }
        }
        found.files.sort_by(|a, b| a.name.cmp(&b.name));
        found
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
        // Beside it first: a branch that is half written would be at no commit.
        let aside = path.with_file_name(format!(".{}-{}", name_of(&path), std::process::id()));
        let written = fs::File::create(&aside).and_then(|mut file| {
            file.write_all(commit.as_bytes())?;
            file.sync_all()
        });
        written.and_then(|()| fs::rename(&aside, &path)).map_err(Error::io("write", &path))
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

/// What is known of contents in the cache.
pub(crate) enum Has {
    /// They are there, and are what they should be.
    Whole,
    /// Something else is there: what is wrong with it.
    Damaged(String),
    Nothing,
}

/// The last part of a path.
fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Makes sure that a file's name outlives a power cut.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    if cfg!(unix) {
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("write", folder))?;
    }
    Ok(())
}

/// Makes the folder that a file is to be in.
pub(crate) fn make_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(Error::io("create", folder))
}

/// Whether a name that the server gave stays inside the folder.
pub(crate) fn stays_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}
