//! `cargo xtask kernels`: the CUDA kernels, compiled and embedded.
//!
//! nvcc comes from PyPI into `target/nvcc`; no card and no toolkit are needed. Each file of `tune-core/cuda/kernels` is compiled to machine
//! code for each generation of cards, and to PTX for those to come; `*_sm90a.cu` is for Hopper alone. What is written to `built` goes into
//! the program: archives, a table of what each kernel takes of a multiprocessor, and the hash of the sources, which a test of
//! `tune-cuda` makes again.

mod archive;
mod nvcc;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sha2::{Digest, Sha256};
use tune_core::config::say;

use crate::Result;
use nvcc::Nvcc;
use table::Resources;

/// Compile the CUDA kernels for every generation of cards and embed them (nvcc comes from PyPI; minutes the first time).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail where what is embedded is not what the sources give.
    #[arg(long)]
    check: bool,
}

/// Generations, and what stands for all that are newer.
const TARGETS: [Target; 7] = [
    Target::Machine("80"),
    Target::Machine("86"),
    Target::Machine("89"),
    Target::Machine("90a"),
    Target::Machine("100"),
    Target::Machine("120"),
    Target::Ptx,
];

/// What a file is compiled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// Machine code for one generation.
    Machine(&'static str),
    /// PTX for the oldest.
    Ptx,
}

impl Target {
    fn name(self) -> String {
        match self {
            Self::Machine(generation) => format!("sm_{generation}"),
            Self::Ptx => "ptx".into(),
        }
    }

    fn takes(self, file: &str) -> bool {
        self == Self::Machine("90a") || !file.ends_with("_sm90a")
    }
}

/// What a file was compiled to.
struct Compiled {
    image: Vec<u8>,
    resources: Vec<Resources>,
}

/// Compiles what has changed, and writes what is embedded.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let kernels = root.join("tune-core/cuda/kernels");
    let sources = sources(&kernels)?;
    let nvcc = Nvcc::install(&root.join("target/nvcc"), &kernels)?;
    let files: Vec<String> = sources.keys().filter_map(|name| name.strip_suffix(".cu")).map(str::to_owned).collect();
    let work: Vec<(&String, Target)> = files
        .iter()
        .flat_map(|file| TARGETS.map(|target| (file, target)))
        .filter(|(file, target)| target.takes(file))
        .collect();
    let headers = hash(sources.iter().filter(|(name, _)| name.ends_with(".cuh")));
    let compiled = in_parallel(work, |(file, target)| {
        let key = format!("{headers}{}", hash(sources.iter().filter(|(name, _)| **name == format!("{file}.cu"))));
        nvcc.compile(file, target, &key).map(|compiled| ((target, file.clone()), compiled))
    })?;

    let mut old = Vec::new();
    let mut put = |name: String, content: &[u8]| -> Result<()> {
        let path = kernels.join("built").join(name);
        if fs::read(&path).is_ok_and(|found| found == content) {
            return Ok(());
        }
        if !args.check {
            fs::create_dir_all(kernels.join("built"))?;
            fs::write(&path, content).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        }
        old.push(path.strip_prefix(root).unwrap_or(&path).display().to_string());
        Ok(())
    };
    let mut size = 0;
    for target in TARGETS {
        let images = compiled.iter().filter(|((of, _), _)| *of == target).map(|((_, file), c)| (file, &c.image));
        let packed = archive::pack(images)?;
        size += packed.len();
        put(format!("{}.zst", target.name()), &packed)?;
    }
    let table = table::render(compiled.iter().map(|((target, file), c)| (*target, file.as_str(), &c.resources[..])));
    put("resources.txt".into(), table.as_bytes())?;
    put("sources.sha256".into(), format!("{}\n", hash(sources.iter())).as_bytes())?;
    say!("{table}");
    say!("{} files, {} KiB embedded", files.len(), size.div_ceil(1024));
    match (old.is_empty(), args.check) {
        (true, _) => say!("everything is up to date"),
        (false, false) => say!("wrote\n  {}", old.join("\n  ")),
        (false, true) => {
            return Err(format!("not up to date; `cargo xtask kernels` writes\n  {}", old.join("\n  ")).into());
        }
    }
    Ok(())
}

/// Names, as seen from the folder of kernels, and contents of all sources.
fn sources(kernels: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for folder in ["", "ptx"] {
        for entry in fs::read_dir(kernels.join(folder)).map_err(|e| format!("{}: {e}", kernels.display()))? {
            let path: PathBuf = entry?.path();
            if path.extension().is_some_and(|e| e == "cu" || e == "cuh") {
                let name = path.strip_prefix(kernels).unwrap_or(&path).display().to_string();
                found.insert(name, fs::read(&path)?);
            }
        }
    }
    Ok(found)
}

/// SHA-256 over names and contents, in the order of names.
fn hash<'a>(sources: impl Iterator<Item = (&'a String, &'a Vec<u8>)>) -> String {
    let mut hash = Sha256::new();
    for (name, content) in sources {
        hash.update(format!("{name} {}\n", content.len()));
        hash.update(content);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Does each piece of work on one of as many threads as there are processors.
fn in_parallel<W: Send, K: Ord + Send, V: Send>(
    work: Vec<W>,
    run: impl Fn(W) -> Result<(K, V), String> + Sync,
) -> Result<BTreeMap<K, V>, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (work, done) = (Mutex::new(work), Mutex::new(Ok(BTreeMap::new())));
    let next = || work.lock().ok().and_then(|mut work| work.pop());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(piece) = next() {
                    let result = run(piece);
                    let Ok(mut done) = done.lock() else { return };
                    match (&mut *done, result) {
                        (Ok(done), Ok((key, value))) => _ = done.insert(key, value),
                        (Ok(_), Err(error)) => *done = Err(error),
                        (Err(_), _) => return,
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(|_| Err("a thread that compiled has panicked".into()))
}
