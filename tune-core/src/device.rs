//! Where and in what precision a run computes, and the seed that it starts from.

use std::hash::{BuildHasher, RandomState};

use candle_core::{DType, Device};

use crate::{Error, Result};

/// Opens `cpu`, `cuda` (the first GPU) or `cuda:N`.
///
/// # Errors
/// An unknown name, a GPU in a build without the feature `cuda`, or a GPU that is not there.
pub fn open_device(name: &str) -> Result<Device> {
    let ordinal = match name {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        _ => name
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| Error::setup(format!("device `{name}` is unknown; use cpu, cuda or cuda:N")))?,
    };
    if !cfg!(feature = "cuda") {
        return Err(Error::setup(format!(
            "device `{name}`: this program was built without CUDA; build it with `--features cuda`, or set device=cpu"
        )));
    }
    Device::new_cuda(ordinal).map_err(|e| Error::setup(format!("device `{name}` cannot be used: {e}")))
}

/// The precision of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floating point.
    Fp32,
    /// bfloat16; sums are in 32 bits.
    Bf16,
}

impl Precision {
    /// The tensors' dtype.
    pub fn dtype(self) -> DType {
        match self {
            Self::Fp32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// The given seed, or a fresh one from the system's randomness where there is none.
/// A fresh one is below 2³², so that it survives any YAML or JSON reader.
pub fn choose_seed(seed: Option<u64>) -> u64 {
    seed.unwrap_or_else(|| RandomState::new().hash_one(0u8) >> 32)
}
