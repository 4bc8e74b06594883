//! The driver and its cards, before anything is done with them.

use std::ffi::c_int;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use crate::error::{Error, Result, describe};

/// What the embedded kernels and cuBLASLt 13 need.
const NEEDED: Version = Version { major: 13, minor: 0 };

/// The oldest cards with bf16 in their matrix units.
const OLDEST: Capability = Capability { major: 8, minor: 0 };

/// The version of CUDA that a driver speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Before the point.
    pub major: u32,
    /// Behind it.
    pub minor: u32,
}

/// The generation of a card ("compute capability").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    /// Before the point: 8 is Ampere and Ada, 9 is Hopper, 10 and 12 are Blackwell.
    pub major: u32,
    /// Behind it.
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A driver that works.
#[derive(Debug, Clone, PartialEq)]
pub struct Driver {
    /// The version of CUDA that it speaks.
    pub version: Version,
    /// The cards that it shows, in its order (`CUDA_VISIBLE_DEVICES` may hide some).
    pub cards: Vec<Card>,
}

/// A card.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// Its number.
    pub ordinal: usize,
    /// The maker's name for it.
    pub name: String,
    /// Its generation.
    pub capability: Capability,
    /// Bytes of memory.
    pub memory: u64,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block may have.
    pub shared_memory: u32,
    /// Bytes of its second-level cache.
    pub l2: u64,
    /// Whether memory can be mapped into reserved addresses.
    pub maps_memory: bool,
}

impl Driver {
    /// Asks the driver what there is.
    ///
    /// # Errors
    /// No driver, one that does not start, one that is too old, or no card.
    pub fn probe() -> Result<Self> {
        // SAFETY: opens a library by name and closes it; the driver's initializers are as safe as any program's use of it.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Unavailable(no_driver()));
        }
        // SAFETY: the library is there; the function may be called at any time.
        unsafe { sys::cuInit(0) }.result().map_err(|e| Error::Unavailable(no_start(e.0)))?;
        let version = version()?;
        if version < NEEDED {
            return Err(Error::Unavailable(format!(
                "the NVIDIA driver is too old: it speaks CUDA {version}, {NEEDED} is needed; install driver 580 or newer \
                 (nvidia-smi shows the one that is there), or use device=cpu"
            )));
        }
        let count = number("counting cards", |count| {
            // SAFETY: writes one number.
            unsafe { sys::cuDeviceGetCount(count) }
        })?;
        let cards = (0..count).map(Card::probe).collect::<Result<Vec<_>>>()?;
        if cards.is_empty() {
            return Err(Error::Unavailable(no_start(CUresult::CUDA_ERROR_NO_DEVICE)));
        }
        Ok(Self { version, cards })
    }

    /// The card with a number, if it can be trained on.
    ///
    /// # Errors
    /// No such card, or one that is too old.
    pub fn card(&self, ordinal: usize) -> Result<&Card> {
        let Some(card) = self.cards.get(ordinal) else {
            let all: Vec<String> = self.cards.iter().map(|c| format!("cuda:{} ({})", c.ordinal, c.name)).collect();
            let hidden = std::env::var("CUDA_VISIBLE_DEVICES")
                .map(|v| format!("; CUDA_VISIBLE_DEVICES is {v:?}"))
                .unwrap_or_default();
            return Err(Error::Unavailable(format!("there is no card {ordinal}, only {}{hidden}", all.join(", "))));
        };
        card.check().map(|()| card)
    }
}

impl Card {
    /// Whether it can be trained on.
    ///
    /// # Errors
    /// It is too old, or a virtual one that lacks what is needed.
    pub fn check(&self) -> Result<()> {
        if self.capability < OLDEST {
            return Err(Error::Unavailable(format!(
                "{} is too old: its compute capability is {}, {OLDEST} (Ampere, 2020) or newer is needed; use device=cpu",
                self.name, self.capability
            )));
        }
        if !self.maps_memory {
            return Err(Error::Unavailable(format!(
                "{} cannot map memory into reserved addresses, as some virtual cards cannot; use a card that is passed \
                 through as a whole, or device=cpu",
                self.name
            )));
        }
        Ok(())
    }

    fn probe(ordinal: c_int) -> Result<Self> {
        let device = number("opening a card", |device| {
            // SAFETY: writes one number.
            unsafe { sys::cuDeviceGet(device, ordinal) }
        })?;
        let attribute = |attribute| {
            number("reading a card's properties", |value| {
                // SAFETY: writes one number; the device is there.
                unsafe { sys::cuDeviceGetAttribute(value, attribute, device) }
            })
            .map(|value| u32::try_from(value).unwrap_or(0))
        };
        let mut name = [0u8; 128];
        // SAFETY: writes at most this many bytes, a zero at the end.
        unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device) }
            .result()
            .map_err(|e| Error::of_driver(e.0, "reading a card's name"))?;
        let name = std::ffi::CStr::from_bytes_until_nul(&name).map(|n| n.to_string_lossy().into_owned());
        let mut memory = 0;
        // SAFETY: writes one number.
        unsafe { sys::cuDeviceTotalMem_v2(&raw mut memory, device) }
            .result()
            .map_err(|e| Error::of_driver(e.0, "reading the size of a card's memory"))?;
        Ok(Self {
            ordinal: usize::try_from(ordinal).unwrap_or(0),
            name: name.unwrap_or_else(|_| "a card without a name".into()),
            capability: Capability {
                major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            },
            memory: memory as u64,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            l2: u64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
            maps_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)? == 1,
        })
    }
}

fn version() -> Result<Version> {
    let version = number("reading the driver's version", |version| {
        // SAFETY: writes one number.
        unsafe { sys::cuDriverGetVersion(version) }
    })?;
    let version = u32::try_from(version).unwrap_or(0);
    Ok(Version { major: version / 1000, minor: version % 1000 / 10 })
}

/// A number that a call writes.
fn number(doing: &str, call: impl FnOnce(*mut c_int) -> CUresult) -> Result<c_int> {
    let mut value = 0;
    call(&raw mut value).result().map_err(|e| Error::of_driver(e.0, doing))?;
    Ok(value)
}

fn no_driver() -> String {
    let library = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    let container =
        if std::path::Path::new("/.dockerenv").exists() { "; in a container, start it with --gpus all" } else { "" };
    format!(
        "no NVIDIA driver was found ({library} cannot be opened): install driver 580 or newer{container}; or use device=cpu"
    )
}

/// Why a driver that is there does not start.
fn no_start(code: CUresult) -> String {
    match code {
        CUresult::CUDA_ERROR_NO_DEVICE => match std::env::var("CUDA_VISIBLE_DEVICES") {
            Ok(visible) => format!("the NVIDIA driver shows no card; CUDA_VISIBLE_DEVICES is {visible:?}: unset it or name a card"),
            Err(_) => "the NVIDIA driver is there, but shows no card (does nvidia-smi?); or use device=cpu".into(),
        },
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the NVIDIA driver was updated and its old kernel module is still loaded: restart the machine".into()
        }
        CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "a libcuda.so of the package cuda-compat was found, which this card does not support: take its folder out of \
             LD_LIBRARY_PATH"
                .into()
        }
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "the libcuda.so that was found is the toolkit's stub and no driver: take the toolkit's folder `stubs` out of \
             LD_LIBRARY_PATH"
                .into()
        }
        code => format!(
            "the NVIDIA driver does not start: {}; does nvidia-smi work? After an update, or where the module nvidia-uvm is \
             not loaded, restart the machine",
            describe(code)
        ),
    }
}
