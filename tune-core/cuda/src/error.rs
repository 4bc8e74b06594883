//! What can go wrong with a card, in words for whoever runs the program.

use cudarc::driver::sys::CUresult;

/// A result with an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// CUDA cannot be used on this machine as it is.
    #[error("{0}")]
    Unavailable(String),
    /// The card's memory is full.
    #[error(
        "the card's memory is full: {} more were needed, {} are in use here and {} of {} are free on the card; use a \
         smaller batch or shorter sequences, or end other programs on the card (nvidia-smi lists them)",
        gib(*.wanted), gib(*.used), gib(*.free), gib(*.total)
    )]
    OutOfMemory {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes that this program uses.
        used: u64,
        /// Bytes that are free on the card.
        free: u64,
        /// Bytes that the card has.
        total: u64,
    },
    /// A call failed. Later calls fail, too.
    #[error("{0}")]
    Failed(String),
    /// Another process is gone that this one computes with.
    #[error("{0}")]
    Lost(String),
}

impl Error {
    /// A call to the driver that failed: `doing` completes "CUDA failed …".
    pub(crate) fn of_driver(code: CUresult, doing: &str) -> Self {
        let advice = match code {
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_ASSERT => {
                "; this is a mistake of the program: please report it, and resume from the last checkpoint"
            }
            CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_CONTAINED
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE => {
                "; the card reports a fault of its hardware (dmesg | grep -i xid): resume from the last checkpoint on another card"
            }
            CUresult::CUDA_ERROR_LAUNCH_TIMEOUT => {
                "; the card also drives a screen, which limits how long a kernel may run"
            }
            CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
                "; another program holds the card for itself (nvidia-smi lists programs and the compute mode)"
            }
            _ => "",
        };
        Self::Failed(format!("CUDA failed {doing}: {}{advice}", describe(code)))
    }
}

/// The driver's own name and words for a code.
pub(crate) fn describe(code: CUresult) -> String {
    let error = cudarc::driver::DriverError(code);
    let text = |found: Result<&std::ffi::CStr, _>| found.ok().map(|text| text.to_string_lossy().into_owned());
    match (text(error.error_name()), text(error.error_string())) {
        (Some(name), Some(words)) => format!("{words} ({name})"),
        _ => format!("error {}", code as u32),
    }
}

pub(crate) fn gib(bytes: u64) -> String {
    match bytes {
        0..0x4000_0000 => format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}
