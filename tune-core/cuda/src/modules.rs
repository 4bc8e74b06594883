//! The embedded kernels: machine code for the card's generation, or PTX that the driver compiles for a newer one.

use std::collections::BTreeMap;
use std::ffi::CString;

use cudarc::driver::sys::{self, CUfunction, CUmodule};

use crate::archive::unpack;
use crate::driver::Capability;
use crate::error::{Error, Result};

/// Machine code by generation, the newest first. It runs on the same and later minors of its major.
const MACHINE_CODE: [(Capability, &[u8]); 6] = [
    (Capability { major: 12, minor: 0 }, include_bytes!("../kernels/built/sm_120.zst")),
    (Capability { major: 10, minor: 0 }, include_bytes!("../kernels/built/sm_100.zst")),
    (Capability { major: 9, minor: 0 }, include_bytes!("../kernels/built/sm_90a.zst")),
    (Capability { major: 8, minor: 9 }, include_bytes!("../kernels/built/sm_89.zst")),
    (Capability { major: 8, minor: 6 }, include_bytes!("../kernels/built/sm_86.zst")),
    (Capability { major: 8, minor: 0 }, include_bytes!("../kernels/built/sm_80.zst")),
];

/// For the oldest generation; every newer one can compile it.
const PTX: &[u8] = include_bytes!("../kernels/built/ptx.zst");

/// A kernel: its name, the file that it is in, and its parameters, a letter each: `p` a pointer, `l` 64 bits, `i` 32 bits, `f` an
/// f32.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) module: &'static str,
    pub(crate) name: &'static str,
    pub(crate) parameters: &'static str,
}

/// The modules of a card: each is loaded when its first kernel is launched.
#[derive(Debug)]
pub(crate) struct Modules {
    images: BTreeMap<String, Vec<u8>>,
    modules: BTreeMap<&'static str, CUmodule>,
    functions: BTreeMap<&'static str, CUfunction>,
}

impl Modules {
    pub(crate) fn new(card: Capability) -> Result<Self> {
        let images = images(card)
            .ok_or_else(|| Error::Failed("the embedded kernels are damaged: build the program again".into()))?;
        Ok(Self { images, modules: BTreeMap::new(), functions: BTreeMap::new() })
    }

    /// A kernel's handle. The card's context must be current. `shared` are the bytes of shared memory that a block may have.
    pub(crate) fn function(&mut self, kernel: &Kernel, shared: u32) -> Result<CUfunction> {
        if let Some(function) = self.functions.get(kernel.name) {
            return Ok(*function);
        }
        let module = self.module(kernel.module)?;
        let missing = |code| Error::of_driver(code, &format!("finding the kernel {}", kernel.name));
        let name = CString::new(kernel.name).map_err(|_| missing(sys::CUresult::CUDA_ERROR_INVALID_VALUE))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded; the name ends with a zero.
        unsafe { sys::cuModuleGetFunction(&raw mut function, module, name.as_ptr()) }
            .result()
            .map_err(|e| missing(e.0))?;
        let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is there. Only raises what a launch may ask for.
        unsafe { sys::cuFuncSetAttribute(function, limit, shared as i32) }
            .result()
            .map_err(|e| Error::of_driver(e.0, &format!("preparing the kernel {}", kernel.name)))?;
        self.functions.insert(kernel.name, function);
        Ok(function)
    }

    fn module(&mut self, name: &'static str) -> Result<CUmodule> {
        if let Some(module) = self.modules.get(name) {
            return Ok(*module);
        }
        let Some(image) = self.images.remove(name) else {
            return Err(Error::Failed(format!(
                "no kernels of {name} were built: run cargo xtask kernels, and build again"
            )));
        };
        let mut module = std::ptr::null_mut();
        // SAFETY: machine code as nvcc wrote it, or PTX with a zero at the end.
        unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) }
            .result()
            .map_err(|e| Error::of_driver(e.0, &format!("loading the kernels of {name}")))?;
        self.modules.insert(name, module);
        Ok(module)
    }

    /// Unloads all. The card's context must be current, and its work done.
    pub(crate) fn close(&mut self) {
        self.functions.clear();
        for (_, module) in std::mem::take(&mut self.modules) {
            // SAFETY: loaded by `module`, and unused.
            unsafe { sys::cuModuleUnload(module) };
        }
    }
}

/// The modules that suit a card, by name.
fn images(card: Capability) -> Option<BTreeMap<String, Vec<u8>>> {
    let suits = |code: &Capability| code.major == card.major && code.minor <= card.minor;
    if let Some((_, packed)) = MACHINE_CODE.iter().find(|(code, _)| suits(code)) {
        // Code for 9.0 uses what only that generation has, and there is no 9.1.
        return unpack(packed);
    }
    let mut sources = unpack(PTX)?;
    sources.values_mut().for_each(|source| source.push(0));
    Some(sources)
}

/// The embedded PTX by module.
#[cfg(test)]
pub(crate) fn ptx() -> BTreeMap<String, Vec<u8>> {
    unpack(PTX).unwrap_or_default()
}

/// The embedded machine code for Hopper by module.
#[cfg(test)]
pub(crate) fn hopper() -> BTreeMap<String, Vec<u8>> {
    images(Capability { major: 9, minor: 0 }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use sha2::{Digest, Sha256};

    use super::*;

    /// As `cargo xtask kernels` makes it.
    fn hash_of_sources(kernels: &Path) -> String {
        let mut files: Vec<PathBuf> = ["", "ptx"]
            .iter()
            .flat_map(|folder| std::fs::read_dir(kernels.join(folder)).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "cu" || e == "cuh"))
            .collect();
        files.sort_by_key(|path| path.strip_prefix(kernels).unwrap().display().to_string());
        let mut hash = Sha256::new();
        for path in files {
            let content = std::fs::read(&path).unwrap();
            hash.update(format!("{} {}\n", path.strip_prefix(kernels).unwrap().display(), content.len()));
            hash.update(content);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_embedded_kernels_are_those_of_the_sources() {
        let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let embedded = std::fs::read_to_string(kernels.join("built/sources.sha256")).unwrap();
        let found = hash_of_sources(&kernels);
        assert_eq!(embedded.trim(), found, "the kernels have changed: run cargo xtask kernels");
    }

    #[test]
    fn each_card_gets_what_it_runs() {
        let is_ptx =
            |images: &BTreeMap<String, Vec<u8>>| images.values().all(|i| i.starts_with(b"//") && i.ends_with(&[0]));
        let is_code = |images: &BTreeMap<String, Vec<u8>>| images.values().all(|i| i.starts_with(b"\x7fELF"));
        for (major, minor) in [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)] {
            let images = images(Capability { major, minor }).unwrap();
            assert!(is_code(&images) && images.contains_key("norm"), "{major}.{minor}");
        }
        for (major, minor) in [(11, 0), (13, 0)] {
            let images = images(Capability { major, minor }).unwrap();
            assert!(is_ptx(&images) && images.contains_key("norm"), "{major}.{minor}");
        }
    }

    #[test]
    fn an_archive_that_is_cut_off_is_none() {
        let plain = b"\x01\0\0\0a\x03\0\0\0xyz";
        let pack = |plain: &[u8]| zstd::stream::encode_all(plain, 1).unwrap();
        assert_eq!(unpack(&pack(plain)).unwrap(), BTreeMap::from([("a".to_owned(), b"xyz".to_vec())]));
        assert_eq!(unpack(&pack(&plain[..10])), None);
        assert_eq!(unpack(b"no archive"), None);
    }
}
