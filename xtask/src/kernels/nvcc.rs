//! nvcc as a Python package, and what it makes of a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::table::{self, Resources};
use super::{Compiled, Target};
use crate::Result;
use crate::python::{self, step};

/// All of one version: a newer compiler writes what a driver of 13.0 does not read.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// Beside the target. `-v` has the assembler tell what each kernel takes.
const FLAGS: [&str; 5] = ["-std=c++17", "-O3", "-Xptxas=-v", "-Xcudafe=--display_error_number", "-Werror=all-warnings"];

/// A compiler that is installed.
pub(super) struct Nvcc {
    home: PathBuf,
    kernels: PathBuf,
    /// What was compiled before, by its sources.
    kept: PathBuf,
}

impl Nvcc {
    /// Installs the compiler into `folder`, unless it is there.
    pub(super) fn install(folder: &Path, kernels: &Path) -> Result<Self> {
        python::environment(&folder.join("venv"), "nvcc", &PACKAGES)?;
        Self::found(folder, kernels)
    }

    fn found(folder: &Path, kernels: &Path) -> Result<Self> {
        let pythons = fs::read_dir(folder.join("venv/lib"))?;
        let home = pythons
            .flatten()
            .map(|python| python.path().join("site-packages/nvidia/cu13"))
            .find(|home| home.join("bin/nvcc").is_file())
            .ok_or_else(|| format!("no nvcc in {}: remove that folder and try again", folder.display()))?;
        let kept = folder.join("kept");
        fs::create_dir_all(&kept)?;
        Ok(Self { home, kernels: kernels.to_owned(), kept })
    }

    /// Compiles a file, or finds what was made of the same sources before.
    pub(super) fn compile(&self, file: &str, target: Target, sources: &str) -> Result<Compiled, String> {
        let flags = self.flags(target);
        let key = format!(
            "{file}-{}-{:016x}",
            target.name(),
            crc(&format!("{sources}{}{}", PACKAGES.join(" "), FLAGS.join(" ")))
        );
        let (image, log) = (self.kept.join(format!("{key}.image")), self.kept.join(format!("{key}.log")));
        if !(image.is_file() && log.is_file()) {
            let made = self.kept.join(format!("{key}.new"));
            let mut nvcc = Command::new(self.home.join("bin/nvcc"));
            nvcc.env("CUDA_HOME", &self.home).current_dir(&self.kernels).args(FLAGS).args(flags);
            // As seen from the folder: no path of this machine gets into what is embedded.
            nvcc.args(["-I", "ptx", "-I", "."]).arg("-o").arg(&made).arg(format!("{file}.cu"));
            let said = step(&mut nvcc).map_err(|e| format!("{file}.cu for {}: {e}", target.name()))?;
            let keep = || -> std::io::Result<()> {
                fs::rename(&made, &image)?;
                fs::write(&log, said)
            };
            keep().map_err(|e| format!("{}: {e}", image.display()))?;
        }
        let read = || -> std::io::Result<(Vec<u8>, String)> { Ok((fs::read(&image)?, fs::read_to_string(&log)?)) };
        let (image, said) = read().map_err(|e| format!("{}: {e}", image.display()))?;
        let resources: Vec<Resources> = if target == Target::Ptx { Vec::new() } else { table::parse(&said) };
        Ok(Compiled { image, resources })
    }

    fn flags(&self, target: Target) -> Vec<String> {
        match target {
            Target::Machine(generation) => {
                vec![format!("-gencode=arch=compute_{generation},code=sm_{generation}"), "-cubin".into()]
            }
            Target::Ptx => vec!["-gencode=arch=compute_80,code=compute_80".into(), "-ptx".into()],
        }
    }
}

fn crc(text: &str) -> u64 {
    let half = |seed: &str| u64::from(crc32c::crc32c(format!("{seed}{text}").as_bytes()));
    half("a") << 32 | half("b")
}
