//! From a recipe to its program: found if it is there and up to date, else built by cargo.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::Result;
use crate::paths::{self, Target};
use crate::shipped::Recipe;

/// The program of a shipped recipe, see [`program`]. One that MPI connects is always left to cargo, which knows whether it was built
/// so.
///
/// # Errors
/// As [`program`].
pub(crate) fn shipped(recipe: &Recipe, by_mpi: bool) -> Result<PathBuf> {
    program("recipes", recipe.name, by_mpi)
}

/// A program of a package in the checkout: the one beside this, else it is built.
///
/// # Errors
/// There is neither; or it does not compile, which cargo has said.
pub(crate) fn program(package: &str, name: &str, by_mpi: bool) -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let built = fs::metadata(&beside).and_then(|meta| meta.modified()).ok();
    let Some(workspace) = paths::workspace() else {
        return match built {
            Some(_) => Ok(beside),
            None => Err(format!(
                "the program of `{name}` is not beside `tune`, and the checkout that it could be built from is gone"
            )
            .into()),
        };
    };
    if !by_mpi && built.is_some_and(|built| sources(&beside).is_none_or(|sources| older(&sources, built))) {
        return Ok(beside);
    }
    let target = Target::own().unwrap_or_else(|| Target::at(workspace.join("target")));
    let mut args = vec!["--package", package, "--bin", name];
    args.extend(by_mpi.then_some("--features=mpi"));
    cargo(&workspace.join("Cargo.toml"), &target, &args)?;
    Ok(target.program(name))
}

/// The program of a file in no workspace. It is built in a package in the cache, one a file; what it
/// depends on is shared between them.
///
/// # Errors
/// There is no such file, it is no Rust file, or there is no tune-core; or it does not compile, which cargo has said.
pub(crate) fn own(file: &Path, core: Option<&Path>, by_mpi: bool) -> Result<PathBuf> {
    let file = file.canonicalize().map_err(|error| format!("cannot read the recipe {}: {error}", file.display()))?;
    if file.extension().is_none_or(|extension| extension != "rs") {
        return Err(format!(
            "{} is neither a recipe, which is a Rust file (NAME.rs), nor a config whose recipe shows in it: name both, as in \
             `tune run lora --config FILE`",
            file.display()
        )
        .into());
    }
    let core = Core::find(core)?;
    let name = package_name(&file);
    let folder = paths::cache()?.join("recipes").join(&name);
    let manifest = folder.join("Cargo.toml");
    let text = core.manifest(&name, &file)?;
    let target = core.target()?;
    let program = target.program(&name);
    let stamp = folder.join("built");

    let built = fs::metadata(&stamp).and_then(|meta| meta.modified()).ok();
    // Whether it was built with MPI, cargo knows.
    let built = built.filter(|_| !by_mpi);
    let unchanged = fs::read_to_string(&manifest).is_ok_and(|found| found == text);
    if let (true, Some(built), true, Some(mut files)) = (unchanged, built, program.is_file(), sources(&program)) {
        files.extend(core.files());
        if older(&files, built) {
            return Ok(program);
        }
    }
    let failed = |error| format!("cannot write {}: {error}", folder.display());
    fs::create_dir_all(&folder).map_err(failed)?;
    if !unchanged {
        fs::write(&manifest, &text).map_err(failed)?;
        if let Core::Local(core) = &core {
            // The same versions as in the checkout, which are built there already.
            let _ = fs::copy(core.with_file_name("Cargo.lock"), folder.join("Cargo.lock"));
        }
    }
    // Made before the build: a file that changes while it runs is newer.
    let begun = folder.join("begun");
    fs::write(&begun, "").map_err(failed)?;
    let mut args = vec!["--bin", &name];
    args.extend(by_mpi.then_some("--features=mpi"));
    cargo(&manifest, &target, &args)?;
    fs::rename(&begun, &stamp).map_err(failed)?;
    Ok(program)
}

/// Where tune-core comes from.
enum Core {
    /// Its folder.
    Local(PathBuf),
    /// crates.io, in the version of this program.
    Registry,
}

impl Core {
    fn find(given: Option<&Path>) -> Result<Self> {
        let Some(given) = given else {
            return Ok(paths::workspace().map_or(Self::Registry, |root| Self::Local(root.join("tune-core"))));
        };
        let is_core = |folder: &PathBuf| {
            let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
            manifest.lines().any(|line| line.trim() == "name = \"tune-core\"")
        };
        let found = [given.to_owned(), given.join("tune-core")].into_iter().find(is_core);
        let found = found.ok_or_else(|| format!("{} is neither tune-core nor a checkout with it", given.display()))?;
        Ok(Self::Local(found.canonicalize()?))
    }

    /// Where packages that depend on it are built.
    fn target(&self) -> Result<Target> {
        let shared = || Ok(Target::at(paths::cache()?.join("target")));
        match (self, paths::workspace()) {
            (Self::Local(core), Some(root)) if *core == root.join("tune-core") => {
                Ok(Target::own().unwrap_or_else(|| Target::at(root.join("target"))))
            }
            _ => shared(),
        }
    }

    /// What the build depends on besides sources.
    fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Local(core) => [core.join("Cargo.toml"), core.with_file_name("Cargo.lock")].into(),
            Self::Registry => Vec::new(),
        }
    }

    /// The manifest of a package whose program is `file`.
    fn manifest(&self, name: &str, file: &Path) -> Result<String> {
        let (core, mpi) = match self {
            Self::Local(folder) => {
                (format!("path = {}", quoted(folder)?), format!("path = {}", quoted(&folder.join("mpi"))?))
            }
            Self::Registry => {
                let version = concat!("version = \"=", env!("CARGO_PKG_VERSION"), "\"").to_owned();
                (version.clone(), version)
            }
        };
        // The profiles of the checkout: what trains is optimized in every build.
        let workspace = include_str!("../../../../Cargo.toml");
        let profiles = workspace.find("[profile.").map_or("", |at| &workspace[at..]);
        Ok(format!(
            r#"# Made by `tune run`.
[package]
name = "{name}"
version = "0.0.0"
edition = "2024"
publish = false
autobins = false

[[bin]]
name = "{name}"
path = {}

[features]
mpi = ["dep:tune-mpi"]

[dependencies]
tune-core = {{ {core} }}
tune-mpi = {{ {mpi}, features = ["mpi"], optional = true }}
serde_json = {{ version = "1", features = ["float_roundtrip", "preserve_order"] }}

[workspace]

{profiles}"#,
            quoted(file)?
        ))
    }
}

/// A TOML string.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| format!("the path {} is not UTF-8, which cargo needs", path.display()))?;
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\u{:04X}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    Ok(quoted + "\"")
}

/// One for each file, and no recipe's of this project: they may share a folder of programs.
fn package_name(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    let stem: String = stem.chars().map(plain).collect();
    let mut hasher = DefaultHasher::new();
    file.hash(&mut hasher);
    let digit = if stem.starts_with(|c: char| c.is_ascii_digit()) { "_" } else { "" };
    format!("{digit}{stem}-{:016x}", hasher.finish())
}

/// The files that cargo made a program of, configs and those of the packages it depends on among them, as cargo has
/// written them beside it.
fn sources(program: &Path) -> Option<Vec<PathBuf>> {
    let text = fs::read_to_string(program.with_extension("d")).ok()?;
    let (_, list) = text.split_once(": ")?;
    let mut files = Vec::new();
    let mut file = String::new();
    let mut chars = list.trim_end().chars();
    while let Some(c) = chars.next() {
        match c {
            // A blank in a name.
            '\\' => file.extend(chars.next()),
            ' ' => files.push(PathBuf::from(std::mem::take(&mut file))),
            c => file.push(c),
        }
    }
    files.push(PathBuf::from(file));
    Some(files)
}

/// Whether all are there and none has changed since.
fn older(files: &[PathBuf], built: SystemTime) -> bool {
    files.iter().all(|file| fs::metadata(file).and_then(|meta| meta.modified()).is_ok_and(|changed| changed <= built))
}

/// Builds; what cargo has to say is on the standard error.
fn cargo(manifest: &Path, target: &Target, what: &[&str]) -> Result<()> {
    let mut cargo = tune_core::cargo::command();
    let program = cargo.get_program().to_owned();
    let status = cargo
        .arg("build")
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target.folder)
        .args(["--profile", target.profile()])
        .args(what)
        .stdin(std::process::Stdio::null())
        // Paths of programs are printed there; the recipe's own output follows.
        .stdout(std::process::Stdio::null())
        .status()
        .map_err(|error| {
            format!("cannot start {}: {error}; Rust is needed to build a recipe: https://rustup.rs", program.display())
        })?;
    match status.success() {
        true => Ok(()),
        false if what.contains(&"--features=mpi") => Err(format!(
            "the recipe does not compile with MPI; cargo says why above. Where that is MPI's library or libclang: {}",
            crate::launch::INSTALL_MPI
        )
        .into()),
        false => Err("the recipe does not compile; cargo says why above".into()),
    }
}
