//! A package of its own that depends on tune-config, among the tests' output.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// The checkout.
pub(crate) fn workspace() -> io::Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()
}

/// Makes the package and returns its folder; `src` and `configs` in it are empty.
pub(crate) fn create(name: &str) -> io::Result<PathBuf> {
    let workspace = workspace()?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    for part in ["src", "configs"] {
        let _ = fs::remove_dir_all(folder.join(part));
        fs::create_dir_all(folder.join(part))?;
    }
    let config = workspace.join("tune-core/config").display().to_string();
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n\
         tune-config = {{ path = {config:?} }}\n\n[workspace]\n"
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::copy(workspace.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    Ok(folder)
}
