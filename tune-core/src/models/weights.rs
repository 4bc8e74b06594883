//! Where a model's weights come from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::linear::Weight;
use crate::checkpoint::Checkpoint;
use crate::kernels::Dropout;
use crate::{Error, Result};

/// Weights by Hugging Face name.
pub trait WeightSource {
    /// The weight called `name`, which must have `shape`, as `dtype` on `device`.
    ///
    /// # Errors
    /// It is missing, or its shape is another.
    fn weight(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor>;

    /// The same for a matrix that is frozen: it may be in blocks.
    ///
    /// # Errors
    /// As [`WeightSource::weight`].
    fn matrix(&self, name: &str, shape: [usize; 2], dtype: DType, device: &Device) -> Result<Weight> {
        self.weight(name, &shape, dtype, device).map(Weight::Tensor)
    }

    /// Whether [`WeightSource::matrix`] gives this matrix in blocks.
    fn is_in_blocks(&self, _name: &str) -> bool {
        false
    }

    /// Some rows of the weight called `name`, which must have `shape`.
    ///
    /// # Errors
    /// As [`WeightSource::weight`].
    fn rows(&self, name: &str, shape: &[usize], rows: Range<usize>, dtype: DType, device: &Device) -> Result<Tensor> {
        Ok(self.weight(name, shape, dtype, device)?.narrow(0, rows.start, rows.len())?.force_contiguous()?)
    }

    /// The names of all weights, where there is a fixed set of them.
    fn names(&self) -> Vec<String>;

    /// The folder or file that they are in, for messages.
    fn path(&self) -> Option<&Path> {
        None
    }
}

impl WeightSource for Checkpoint {
    fn weight(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        self.check_shape(name, shape)?;
        self.tensor(name, dtype, device)
    }

    fn rows(&self, name: &str, shape: &[usize], rows: Range<usize>, dtype: DType, device: &Device) -> Result<Tensor> {
        self.check_shape(name, shape)?;
        Checkpoint::rows(self, name, rows, dtype, device)
    }

    fn names(&self) -> Vec<String> {
        Checkpoint::names(self).map(str::to_owned).collect()
    }

    fn path(&self) -> Option<&Path> {
        Some(Checkpoint::path(self))
    }
}

impl Checkpoint {
    /// Refuses a weight of another shape.
    pub(super) fn check_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        match self.shape(name) {
            Some(found) if found != shape => Err(Error::file(
                self.path(),
                format!(
                    "the weight `{name}` has shape {found:?}, but config.json describes a model in which it is {shape:?}; \
                     weights and config do not belong together"
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// The weights of a checkpoint that are not read: each is there and has its shape, and is one zero in memory.
pub(crate) struct Unread<'a>(pub(crate) &'a Checkpoint);

impl WeightSource for Unread<'_> {
    fn weight(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        self.0.check_shape(name, shape)?;
        match self.0.shape(name) {
            Some(_) => Ok(Tensor::zeros(1, dtype, device)?.broadcast_as(shape)?),
            None => Err(self.0.missing(name)),
        }
    }

    fn names(&self) -> Vec<String> {
        WeightSource::names(self.0)
    }

    fn path(&self) -> Option<&Path> {
        WeightSource::path(self.0)
    }
}

impl WeightSource for BTreeMap<String, Tensor> {
    fn weight(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let t = self.get(name).ok_or_else(|| Error::setup(format!("the weight `{name}` is missing")))?;
        if t.dims() != shape {
            return Err(Error::setup(format!(
                "the weight `{name}` has shape {:?}, but the model's is {shape:?}",
                t.dims()
            )));
        }
        Ok(t.to_dtype(dtype)?.to_device(device)?)
    }

    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
}

/// Random weights for models that are tested or measured: vectors are one, all else normal. [`FreshWeights`](super::FreshWeights) are
/// those to train from.
#[derive(Debug, Clone, Copy)]
pub struct RandomWeights {
    /// The same seed gives the same weights, whatever the order in which they are asked for.
    pub seed: u64,
    /// Standard deviation.
    pub std: f64,
}

impl WeightSource for RandomWeights {
    fn weight(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let count = shape.iter().product();
        let values = if shape.len() == 1 {
            vec![1f32; count]
        } else {
            normal(Dropout::mix_name(self.seed, name), count, self.std)
        };
        Ok(Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// `count` normal values with standard deviation `std` (Box and Muller's transform).
pub(super) fn normal(seed: u64, count: usize, std: f64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    (0..count)
        .map(|_| {
            let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
            (std * radius * (2.0 * std::f64::consts::PI * uniform()).cos()) as f32
        })
        .collect()
}

/// `count` values uniform in `[-bound, bound)`.
pub(crate) fn uniform(seed: u64, count: usize, bound: f64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| (((rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0) * bound) as f32).collect()
}
