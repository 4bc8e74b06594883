//! NVIDIA's libraries, found where people have them.
//!
//! cuBLASLt and NCCL come with the toolkit, with a package of the system, or with PyTorch as a wheel of PyPI; the driver does not
//! bring them. Whichever is found is opened by its path, and then found again by its name.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The environment variable that names folders of libraries, before all others.
pub const VARIABLE: &str = "TUNE_CUDA_LIBRARIES";

/// A library of NVIDIA's: its file, the folders of wheels that have it, and the wheel that is named where it is missing.
struct Library {
    name: &'static str,
    file: &'static str,
    in_wheels: &'static [&'static str],
    wheel: &'static str,
    /// Whether the loader finds it by its name.
    present: fn() -> bool,
}

static CUBLASLT: Library = Library {
    name: "cuBLASLt",
    file: if cfg!(windows) { "cublasLt64_13.dll" } else { "libcublasLt.so.13" },
    in_wheels: &["nvidia/cu13/lib", "nvidia/cublas/lib"],
    wheel: "nvidia-cublas==13.*",
    // SAFETY: opens a library by name; NVIDIA's initializers do nothing that other code could see.
    present: || unsafe { cudarc::cublaslt::sys::is_culib_present() },
};

static NCCL: Library = Library {
    name: "NCCL",
    file: if cfg!(windows) { "nccl.dll" } else { "libnccl.so.2" },
    in_wheels: &["nvidia/nccl/lib"],
    wheel: "nvidia-nccl-cu13",
    // SAFETY: as above.
    present: || unsafe { libloading::Library::new(NCCL.file) }.is_ok(),
};

/// Where a library was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Where the system's loader looks.
    System,
    /// A file.
    File(PathBuf),
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::System => f.write_str("where the system's loader looks"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Opens cuBLASLt: from the folders that [`VARIABLE`] names and no others if it is set; else where the system's loader looks,
/// in the toolkit's folders, and in the `site-packages` of the Python that is active. It stays open.
///
/// # Errors
/// It is nowhere, or cannot be opened.
pub fn open_cublaslt() -> Result<Found> {
    CUBLASLT.open()
}

/// The same of NCCL, which several cards at a time need.
///
/// # Errors
/// It is nowhere, or cannot be opened.
pub fn open_nccl() -> Result<Found> {
    NCCL.open()
}

/// NCCL, opened once more, and where it was found.
///
/// # Errors
/// As [`open_nccl`].
pub(crate) fn nccl() -> Result<(libloading::Library, Found)> {
    let found = open_nccl()?;
    let again = match &found {
        // SAFETY: as where it is asked whether it is present.
        Found::System => unsafe { libloading::Library::new(NCCL.file) },
        // SAFETY: as above.
        Found::File(path) => unsafe { libloading::Library::new(path) },
    };
    match again {
        Ok(library) => Ok((library, found)),
        Err(error) => Err(Error::Unavailable(format!("NCCL {found} cannot be opened: {error}; {}", how_to_get_nccl()))),
    }
}

/// How NCCL is got, in a line.
pub(crate) fn how_to_get_nccl() -> String {
    NCCL.how_to_get_it()
}

impl Library {
    fn open(&self) -> Result<Found> {
        let (name, file) = (self.name, self.file);
        if let Some(named) = env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
            let folders: Vec<PathBuf> = env::split_paths(&named).collect();
            return self.open_in(&folders)?.ok_or_else(|| {
                let how = self.how_to_get_it();
                Error::Unavailable(format!("{file} is not in {} (named by {VARIABLE}); {how}", named.display()))
            });
        }
        if (self.present)() {
            return Ok(Found::System);
        }
        self.open_in(&usual_folders(self.in_wheels))?.ok_or_else(|| {
            Error::Unavailable(format!(
                "{name} ({file}) was found neither where the system looks, nor in a CUDA toolkit, nor beside the active Python; {}",
                self.how_to_get_it()
            ))
        })
    }

    fn how_to_get_it(&self) -> String {
        let (wheel, folder) = (self.wheel, self.in_wheels[0]);
        format!(
            "get it with: python3 -m venv cuda && cuda/bin/pip install '{wheel}' && export {VARIABLE}=$(echo \
             $PWD/cuda/lib/python3*/site-packages/{folder})"
        )
    }

    fn open_in(&self, folders: &[PathBuf]) -> Result<Option<Found>> {
        let Some(path) = folders.iter().map(|folder| folder.join(self.file)).find(|path| path.is_file()) else {
            return Ok(None);
        };
        // SAFETY: as where it is asked whether it is present.
        let library = unsafe { libloading::Library::new(&path) }.map_err(|e| {
            Error::Unavailable(format!("{} cannot be opened: {e}; {}", path.display(), self.how_to_get_it()))
        })?;
        // Never closed: code of it may run until the program ends.
        std::mem::forget(library);
        if (self.present)() {
            return Ok(Some(Found::File(path)));
        }
        Err(Error::Unavailable(format!(
            "{} was opened, but is not found by its name, which an intact one would be; {}",
            path.display(),
            self.how_to_get_it()
        )))
    }
}

/// Folders in which the library often is although the system's loader does not look there.
fn usual_folders(in_wheels: &[&str]) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let roots = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    for root in roots.chain(["/usr/local/cuda-13", "/usr/local/cuda", "/opt/cuda"].map(PathBuf::from)) {
        folders.extend(["lib64", "lib", "bin/x64", "targets/x86_64-linux/lib"].map(|folder| root.join(folder)));
    }
    let mut pythons: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from).collect();
    let paths = env::var_os("PATH").unwrap_or_default();
    // The link itself tells the environment, what it points to does not.
    pythons.extend(env::split_paths(&paths).filter(|bin| bin.join("python3").exists()).map(|bin| bin.join("..")));
    pythons.extend(env::home_dir().map(|home| home.join(".local")));
    pythons.push("/usr/local".into());
    for packages in pythons.iter().flat_map(|root| site_packages(root)) {
        folders.extend(in_wheels.iter().map(|folder| packages.join(folder)));
    }
    folders
}

/// The folders of Python packages below an environment's root, the newest Python's first.
fn site_packages(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.join("Lib/site-packages")];
    let Ok(entries) = std::fs::read_dir(root.join("lib")) else { return found };
    let mut versions: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")))
        .collect();
    versions.sort();
    for version in versions.into_iter().rev() {
        found.extend(["site-packages", "dist-packages"].map(|folder| version.join(folder)));
    }
    found
}
