//! Which instructions the processor has, decided once.

mod amx;

use std::sync::OnceLock;

use crate::{Error, Result, environment};

/// The instructions that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Any processor: what the compiler and the `gemm` crate make of it.
    Portable,
    /// AVX2 with FMA: as above with wider vectors, and products of few rows of our own.
    Avx2,
    /// AVX-512; bf16 is widened to f32.
    Avx512,
    /// AVX-512 with a bf16 dot product that is worth using.
    Avx512Bf16,
    /// As [`Isa::Avx512`], with products of bf16 by Intel's matrix units.
    Amx,
    /// The same without the units: slow, and for tests on processors that have none.
    AmxPlain,
}

impl Isa {
    /// This processor's, or the one that `TUNE_ISA` in the environment names, see [`Isa::check`].
    pub(crate) fn get() -> Self {
        static ISA: OnceLock<Isa> = OnceLock::new();
        *ISA.get_or_init(|| Self::chosen().unwrap_or_else(|_| Self::detect()))
    }

    /// Looks at `TUNE_ISA`, which chooses other kernels than the processor's best, for tests and comparisons.
    ///
    /// # Errors
    /// Where it names none, or one that the processor lacks.
    pub(crate) fn check() -> Result<()> {
        Self::chosen().map(drop).map_err(Error::setup)
    }

    /// What this processor has of what kernels are written for.
    pub(crate) fn features() -> Vec<&'static str> {
        let all =
            [("avx2", has_avx2()), ("avx512", has_avx512()), ("avx512bf16", has_bf16()), ("amx", amx::check().is_ok())];
        all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }

    /// Why matrix units that the processor has are not used.
    pub(crate) fn refused_units() -> Option<&'static str> {
        match amx::check() {
            Err(amx::Missing::Refused(why)) => Some(why),
            _ => None,
        }
    }

    /// Whether kernels in AVX-512 can be used.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx512(self) -> bool {
        !matches!(self, Self::Portable | Self::Avx2)
    }

    /// Whether products of bf16 are computed in the tiles of matrix units, or as these do it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_tiles(self) -> bool {
        matches!(self, Self::Amx | Self::AmxPlain)
    }

    fn chosen() -> std::result::Result<Self, String> {
        let Some(name) = environment::said("TUNE_ISA") else { return Ok(Self::detect()) };
        let (isa, there) = match name.as_str() {
            "portable" => (Self::Portable, true),
            "avx2" => (Self::Avx2, has_avx2()),
            "avx512" => (Self::Avx512, has_avx512()),
            "avx512bf16" => (Self::Avx512Bf16, has_bf16()),
            "amx" => (Self::Amx, has_amx()),
            "amx-plain" => (Self::AmxPlain, has_avx512()),
            _ => {
                return Err(format!(
                    "TUNE_ISA={name}: it can be portable, avx2, avx512, avx512bf16 or amx, or not set"
                ));
            }
        };
        if there {
            return Ok(isa);
        }
        Err(match Self::refused_units() {
            Some(why) if isa == Self::Amx => format!("TUNE_ISA=amx: {why}; unset it"),
            _ => format!("TUNE_ISA={name}: this processor does not have it; unset it, or set portable"),
        })
    }

    fn detect() -> Self {
        if !has_avx512() {
            return if has_avx2() { Self::Avx2 } else { Self::Portable };
        }
        if has_amx() {
            return Self::Amx;
        }
        // Intel's cores take four times as long for a bf16 dot product as for an f32 multiply-add,
        // which does half of its work: there, widening wins by two (they have AMX for this instead).
        if has_bf16() && !is_intel() { Self::Avx512Bf16 } else { Self::Avx512 }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
            Self::AmxPlain => "amx-plain",
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    pulp::x86::V3::try_new().is_some()
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

#[cfg(target_arch = "x86_64")]
fn has_bf16() -> bool {
    has_avx512() && is_x86_feature_detected!("avx512bf16")
}

/// Whether matrix units can be used; kernels around them are written in AVX-512 with bf16.
fn has_amx() -> bool {
    has_bf16() && amx::check().is_ok()
}

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_bf16() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

/// Runs a loop compiled for the widest vectors that the processor has. The closure is to be `#[inline(always)]`.
#[inline(always)]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    match Isa::get() {
        Isa::Portable => f(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => match pulp::x86::V3::try_new() {
            Some(v3) => v3.vectorize(f),
            None => f(),
        },
        _ => pulp::Arch::new().dispatch(f),
    }
}
