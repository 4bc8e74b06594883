//! A card for machines without one: a driver and a cuBLASLt that are this machine's memory and plain loops, and the kernels' very
//! sources, built by `tune-core/cuda/harness/stand_in`.

// Each test uses a part of it.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where it is; `None` where there is no C++ compiler, which is said.
pub fn folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(build).as_deref()
}

/// Has a program find it.
pub fn environment(program: &mut Command, folder: &Path) {
    // Kernels for matrix units are left out.
    program.env("LD_LIBRARY_PATH", folder).env("TUNE_CUDA_LIBRARIES", folder).env("TUNE_CUDA_UNITS", "none");
}

fn build() -> Option<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    if !Command::new(&compiler).arg("--version").output().is_ok_and(|output| output.status.success()) {
        // Past the capture of a test's output: this must be seen.
        #[expect(clippy::disallowed_methods, reason = "a test that cannot write fails")]
        let mut seen = std::io::stderr();
        writeln!(seen, "NOTICE: no C++ compiler ({compiler}) here; nothing is tested on a stand-in for a card").ok();
        return None;
    }
    let cuda =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|dir| dir.join("tune-core/cuda").is_dir()).unwrap();
    let cuda = cuda.join("tune-core/cuda");
    let mut hash = DefaultHasher::new();
    for part in ["harness", "harness/plain", "harness/stand_in", "kernels"] {
        let mut files: Vec<PathBuf> = std::fs::read_dir(cuda.join(part))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|p| p.is_file())
            .collect();
        files.sort();
        files.iter().for_each(|file| std::fs::read(file).unwrap().hash(&mut hash));
    }
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stand-in-{:016x}", hash.finish()));
    if !built.exists() {
        let unfinished = built.with_extension(std::process::id().to_string());
        let output = Command::new("sh").arg(cuda.join("harness/stand_in/build.sh")).arg(&unfinished).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Another test may have been first.
        if std::fs::rename(&unfinished, &built).is_err() {
            std::fs::remove_dir_all(&unfinished).ok();
        }
    }
    Some(built)
}
