//! NVIDIA's libraries, found where people have them.
//!
//! cuBLASLt comes with the toolkit, with a package of the system, or with PyTorch as a wheel of PyPI; the driver does not
//! bring it. Whichever is found is opened by its path, and then found again by its name.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The environment variable that names folders of libraries, before all others.
pub const VARIABLE: &str = "TUNE_CUDA_LIBRARIES";

const FILE: &str = if cfg!(windows) { "cublasLt64_13.dll" } else { "libcublasLt.so.13" };

/// Where cuBLASLt was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Where the system's loader looks.
    System,
    /// A file.
    File(PathBuf),
}

/// Opens cuBLASLt: from the folders that [`VARIABLE`] names and no others if it is set; else where the system's loader looks,
/// in the toolkit's folders, and in the `site-packages` of the Python that is active. It stays open.
///
/// # Errors
/// It is nowhere, or cannot be opened.
pub(crate) fn open_cublaslt() -> Result<Found> {
    if let Some(named) = env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
        let folders: Vec<PathBuf> = env::split_paths(&named).collect();
        return open_in(&folders)?.ok_or_else(|| {
            Error::Unavailable(format!(
                "{FILE} is not in {} (named by {VARIABLE}); {}",
                named.display(),
                how_to_get_it()
            ))
        });
    }
    if present() {
        return Ok(Found::System);
    }
    open_in(&usual_folders())?.ok_or_else(|| {
        Error::Unavailable(format!(
            "cuBLASLt ({FILE}) was found neither where the system looks, nor in a CUDA toolkit, nor beside the active Python; {}",
            how_to_get_it()
        ))
    })
}

fn how_to_get_it() -> String {
    format!(
        "get it with: python3 -m venv cuda && cuda/bin/pip install 'nvidia-cublas==13.*' && export {VARIABLE}=$(echo \
         $PWD/cuda/lib/python3*/site-packages/nvidia/cu13/lib)"
    )
}

/// Whether the loader finds cuBLASLt by its name.
fn present() -> bool {
    // SAFETY: opens a library by name; NVIDIA's initializers do nothing that other code could see.
    unsafe { cudarc::cublaslt::sys::is_culib_present() }
}

fn open_in(folders: &[PathBuf]) -> Result<Option<Found>> {
    let Some(path) = folders.iter().map(|folder| folder.join(FILE)).find(|path| path.is_file()) else {
        return Ok(None);
    };
    // SAFETY: as in `present`.
    let library = unsafe { libloading::Library::new(&path) }
        .map_err(|e| Error::Unavailable(format!("{} cannot be opened: {e}; {}", path.display(), how_to_get_it())))?;
    // Never closed: code of it may run until the program ends.
    std::mem::forget(library);
    if present() {
        return Ok(Some(Found::File(path)));
    }
    Err(Error::Unavailable(format!(
        "{} was opened, but is not found by its name, which an intact one would be; {}",
        path.display(),
        how_to_get_it()
    )))
}

/// Folders in which the library often is although the system's loader does not look there.
fn usual_folders() -> Vec<PathBuf> {
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
        folders.extend(["nvidia/cu13/lib", "nvidia/cublas/lib"].map(|folder| packages.join(folder)));
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
