//! Rotary frequencies, and how they are stretched beyond the length that a model was first trained at.
//!
//! What each kind computes is that of the functions of the same name in `modeling_rope_utils.py` of transformers.

/// A table of rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub struct RotarySpec {
    /// The elements of a head that are turned, the first ones; even.
    pub dim: usize,
    /// The base of the frequencies.
    pub theta: f64,
    /// Their stretch.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched beyond the length a model was first trained at.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor` (position interpolation, <https://arxiv.org/abs/2306.15595>).
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// The base grows with the length of a sequence, where that is beyond the trained one (NTK-aware scaling). In a sequence
    /// that is generated, each key keeps the base of the length that the sequence had when it came, as in transformers.
    Dynamic {
        /// The stretch at twice the trained length, less one.
        factor: f64,
        /// The trained length.
        trained: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// The stretch of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The length first trained at.
        original_max_position_embeddings: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a ramp between (<https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// The stretch of low frequencies.
        factor: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
        /// Turns within the original length above which a frequency is kept.
        beta_fast: f64,
        /// Turns below which it is stretched.
        beta_slow: f64,
        /// The length first trained at.
        original_max_position_embeddings: f64,
        /// Whether the ends of the ramp are whole pairs of elements.
        truncate: bool,
    },
    /// A divisor for each frequency, others for sequences beyond the original length (<https://arxiv.org/abs/2402.13753>).
    /// A sequence that is generated beyond that length is computed again with the others, whatever its family; transformers
    /// does so for Phi-3 alone, and leaves the keys of other families as they are.
    LongRope {
        /// Divisors up to the original length.
        short_factor: Vec<f64>,
        /// Divisors for longer sequences.
        long_factor: Vec<f64>,
        /// Factor on cosines and sines.
        attention_factor: f64,
        /// The length first trained at.
        original_max_position_embeddings: f64,
    },
}

impl RotarySpec {
    /// Radians a position for each pair of elements, `[dim / 2]`, in a sequence of `len` tokens.
    pub fn inverse_frequencies(&self, len: usize) -> Vec<f32> {
        let theta = self.scaling.base(self.theta, self.dim, len);
        (0..self.dim / 2)
            .map(|i| self.scaling.stretch(1.0 / theta.powf(2.0 * i as f64 / self.dim as f64), self, i, len) as f32)
            .collect()
    }

    /// What each frequency is divided by, `[dim / 2]`, up to the trained length.
    pub(crate) fn divisors(&self) -> Vec<f64> {
        let frequency = |i: usize| 1.0 / self.theta.powf(2.0 * i as f64 / self.dim as f64);
        (0..self.dim / 2).map(|i| frequency(i) / self.scaling.stretch(frequency(i), self, i, 0)).collect()
    }

    /// Factor on cosines and sines.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }

    /// Whether the frequencies of a sequence depend on its length.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. })
    }
}

impl RopeScaling {
    /// Whether a sequence that grows from `before` to `after` tokens comes to have another set of frequencies, for all of its
    /// tokens.
    pub(crate) fn switches_between(&self, before: usize, after: usize) -> bool {
        let Self::LongRope { original_max_position_embeddings: original, .. } = self else { return false };
        (before as f64 > *original) != (after as f64 > *original)
    }

    /// The base of the frequencies.
    fn base(&self, theta: f64, dim: usize, len: usize) -> f64 {
        let Self::Dynamic { factor, trained } = *self else { return theta };
        let (len, dim) = (trained.max(len as f64), dim as f64);
        theta * (factor * len / trained - (factor - 1.0)).powf(dim / (dim - 2.0))
    }

    /// The frequency of pair `i`, which is `frequency` without a stretch.
    fn stretch(&self, frequency: f64, of: &RotarySpec, i: usize, len: usize) -> f64 {
        match self {
            Self::None | Self::Dynamic { .. } => frequency,
            Self::Linear { factor } => frequency / factor,
            &Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings: original } => {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                if wavelength < original / high_freq_factor {
                    frequency
                } else if wavelength > original / low_freq_factor {
                    frequency / factor
                } else {
                    let blend = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - blend) * frequency / factor + blend * frequency
                }
            }
            &Self::Yarn {
                factor, beta_fast, beta_slow, truncate, original_max_position_embeddings: original, ..
            } => {
                let dim = of.dim as f64;
                // The pair of elements that turns so often within the original length.
                let pair = |turns: f64| dim * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * of.theta.ln());
                let (low, high) = (pair(beta_fast), pair(beta_slow));
                let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let high = if low == high { high + 0.001 } else { high };
                let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * stretched + frequency * (1.0 - stretched)
            }
            Self::LongRope { short_factor, long_factor, original_max_position_embeddings: original, .. } => {
                let factors = if len as f64 > *original { long_factor } else { short_factor };
                frequency / factors[i]
            }
        }
    }
}
