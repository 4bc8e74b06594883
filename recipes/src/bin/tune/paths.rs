//! Where things are: the checkout that `tune` was built in, cargo's output, the cache.

use std::env;
use std::path::{Path, PathBuf};

use crate::Result;

/// The checkout that this program was built in, if it is still there.
pub(crate) fn workspace() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    root.join("tune-core/Cargo.toml").is_file().then(|| root.to_owned())
}

/// The folder of tune's own cached files.
///
/// # Errors
/// Nothing says where that is.
pub(crate) fn cache() -> Result<PathBuf> {
    let given = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = given("XDG_CACHE_HOME").or_else(|| env::home_dir().map(|home| home.join(".cache")));
    caches.map(|path| path.join("tune")).ok_or_else(|| "there is no home folder; set XDG_CACHE_HOME".into())
}

/// A folder that cargo builds into, and the profile that it builds.
pub(crate) struct Target {
    pub(crate) folder: PathBuf,
    /// The name of the folder's folder, which is that of the profile but for `dev`.
    profile: String,
}

impl Target {
    /// The one that this program is in, if cargo put it there.
    pub(crate) fn own() -> Option<Self> {
        let program = env::current_exe().ok()?;
        let profile = program.parent()?;
        let folder = profile.parent()?;
        folder.join("CACHEDIR.TAG").is_file().then_some(())?;
        Some(Self { folder: folder.to_owned(), profile: profile.file_name()?.to_str()?.to_owned() })
    }

    /// `folder`, with the profile that this program was built in.
    pub(crate) fn at(folder: PathBuf) -> Self {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        Self { folder, profile: profile.to_owned() }
    }

    /// What cargo calls the profile.
    pub(crate) fn profile(&self) -> &str {
        if self.profile == "debug" { "dev" } else { &self.profile }
    }

    /// Where a program is when it is built.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(&self.profile).join(format!("{name}{}", env::consts::EXE_SUFFIX))
    }
}
