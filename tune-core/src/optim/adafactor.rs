//! Adafactor (Shazeer & Stern 2018, <https://arxiv.org/abs/1804.04235>): of a matrix's squared gradients it keeps the means over
//! rows and over columns.

use std::collections::BTreeMap;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Tensor, bail};

use super::by_place::ByPlace;
use super::update::{TASK, rounded, squared_norm, squares, write};
use super::{Gradient, Optimizer, rounding};
use crate::kernels::{Element, parallel};
use crate::models::{Parameter, Trainable};
use crate::{Error, Result};

/// Columns that one task adds up.
const COLUMNS: usize = 256;

/// Adafactor as PyTorch has it, in f32; sums are added up in f64.
#[derive(Debug)]
pub struct Adafactor {
    /// Learning rate before any schedule.
    pub lr: f64,
    /// The means of step `t` take `t` to this power of the new squares.
    pub beta2_decay: f64,
    /// The least root of a mean square, and the least size of weights that a step is scaled by.
    pub eps: [f64; 2],
    /// The largest root mean square of a step before it is scaled.
    pub clip_threshold: f64,
    /// Share of a weight taken away per step, times the learning rate.
    pub weight_decay: f64,
    /// Whether steps are scaled by the root mean square of a parameter's weights.
    pub scale_parameter: bool,
    /// Whether the learning rate is at most one over the root of the step.
    pub relative_step: bool,
    kept: ByPlace<Kept>,
}

/// Means of squared gradients.
#[derive(Debug)]
enum Kept {
    /// Of a matrix `[rows, columns]`: over the columns of each row, and over the rows of each column.
    Factored { rows: Vec<f32>, columns: Vec<f32> },
    /// Of each number.
    Whole(Vec<f32>),
}

/// What state is called in a checkpoint.
const ROWS: &str = "row_var";
const COLUMN_MEANS: &str = "col_var";
const WHOLE: &str = "variance";

impl Adafactor {
    /// Without state yet.
    pub fn new(lr: f64, weight_decay: f64) -> Self {
        Self {
            lr,
            beta2_decay: -0.8,
            eps: [f64::from(f32::EPSILON), 1e-3],
            clip_threshold: 1.0,
            weight_decay,
            scale_parameter: true,
            relative_step: true,
            kept: ByPlace::default(),
        }
    }

    /// Bytes of the state of a parameter of this shape.
    pub(super) fn state_bytes(dims: &[usize]) -> u64 {
        let numbers: usize = if let [rows, columns] = dims { rows + columns } else { dims.iter().product() };
        4 * numbers as u64
    }
}

impl Kept {
    /// Zeros for a parameter of this shape.
    fn new(dims: &[usize]) -> Self {
        match dims {
            &[rows, columns] => Self::Factored { rows: vec![0.0; rows], columns: vec![0.0; columns] },
            _ => Self::Whole(vec![0.0; dims.iter().product()]),
        }
    }

    /// Takes in a share `new` of the squares of `gradient · scale`.
    fn take(&mut self, gradient: &[f32], scale: f64, new: f64) {
        let mix = |mean: &mut f32, square: f64| *mean += (square as f32 - *mean) * new as f32;
        match self {
            Self::Factored { rows, columns } => {
                let (height, width) = (rows.len(), columns.len());
                let of = scale * scale;
                parallel::each_chunk(rows, 1, |row, mean| {
                    mix(&mut mean[0], squares(&gradient[row * width..][..width]) * of / width as f64);
                });
                parallel::each_chunk(columns, COLUMNS, |task, means| {
                    let mut sums = [0f64; COLUMNS];
                    for row in gradient.chunks(width) {
                        for (sum, &g) in sums.iter_mut().zip(&row[task * COLUMNS..][..means.len()]) {
                            *sum += f64::from(g) * f64::from(g);
                        }
                    }
                    means.iter_mut().zip(sums).for_each(|(mean, sum)| mix(mean, sum * of / height as f64));
                });
            }
            Self::Whole(means) => parallel::each_chunk(means, TASK, |task, means| {
                for (mean, &g) in means.iter_mut().zip(&gradient[task * TASK..]) {
                    let g = g * scale as f32;
                    mix(mean, f64::from(g * g));
                }
            }),
        }
    }

    /// Rows of a parameter, as far as its state has rows.
    fn height(&self) -> usize {
        if let Self::Factored { rows, .. } = self { rows.len() } else { 1 }
    }

    /// The mean that rows are divided by, so that a row's mean times a column's is that of the squares.
    fn middle(&self, least: f64) -> f32 {
        let Self::Factored { rows, .. } = self else { return 1.0 };
        let sum: f64 = rows.iter().copied().map(f64::from).sum();
        (sum / rows.len() as f64).max(least) as f32
    }

    /// Gives `f` each number's place in a row, its gradient and its estimated mean square.
    #[inline(always)]
    fn each(&self, row: usize, gradient: &[f32], middle: f32, mut f: impl FnMut(usize, f32, f32)) {
        match self {
            Self::Factored { rows, columns } => {
                let of_row = rows[row];
                gradient
                    .iter()
                    .zip(columns)
                    .enumerate()
                    .for_each(|(i, (&g, &column))| f(i, g, of_row * column / middle));
            }
            Self::Whole(means) => gradient.iter().zip(means).enumerate().for_each(|(i, (&g, &mean))| f(i, g, mean)),
        }
    }
}

/// What a step does to the weights, once the means are those of the step.
struct Step<'a> {
    kept: &'a Kept,
    gradient: &'a [f32],
    scale: f32,
    /// The least mean square; never zero, which zeros are divided by.
    least: f32,
    middle: f32,
}

impl Step<'_> {
    fn width(&self) -> usize {
        (self.gradient.len() / self.kept.height().max(1)).max(1)
    }

    #[inline(always)]
    fn direction(&self, g: f32, mean_square: f32) -> f32 {
        g * self.scale / mean_square.max(self.least).sqrt()
    }

    /// The root mean square of the step, before it is scaled.
    fn root_mean_square(&self) -> f64 {
        let of_row = |row: usize, gradient: &[f32]| {
            let mut sum = 0f64;
            self.kept.each(row, gradient, self.middle, |_, g, mean| {
                let direction = f64::from(self.direction(g, mean));
                sum += direction * direction;
            });
            sum
        };
        // One after the other, so that the sum does not depend on who computed what.
        let sums = parallel::map_chunks(self.gradient, self.width(), of_row);
        (sums.into_iter().sum::<f64>() / self.gradient.len().max(1) as f64).sqrt()
    }

    /// Moves all weights by `size` times the step.
    fn apply<W: Element>(&self, weight: &mut [W], keep: f32, size: f32, narrow: impl Fn(usize, f32) -> W + Sync) {
        let width = self.width();
        parallel::each_chunk(weight, width, |row, weight| {
            let gradient = &self.gradient[row * width..][..weight.len()];
            self.kept.each(row, gradient, self.middle, |i, g, mean| {
                let moved = weight[i].to_f32() * keep - size * self.direction(g, mean);
                weight[i] = narrow(row * width + i, moved);
            });
        });
    }
}

impl Optimizer for Adafactor {
    fn base_lr(&self) -> f64 {
        self.lr
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        let (var, steps) = (parameter.var(), step as f64);
        if self.kept.get(parameter).is_none() {
            self.kept.insert(parameter, Kept::new(var.dims()));
        }
        let Some(kept) = self.kept.get_mut(parameter) else { return Ok(()) };
        let gradient = gradient.values::<f32>()?;
        if gradient.len() != var.elem_count() || gradient.is_empty() {
            return Err(Error::Training(format!("`{}` has a gradient of another size, or none", parameter.name())));
        }
        kept.take(&gradient, scale, steps.powf(self.beta2_decay));
        let [least, least_weights] = self.eps;
        let middle = kept.middle(least);
        let moving = Step {
            kept,
            gradient: &gradient,
            scale: scale as f32,
            least: ((least * least) as f32).max(f32::MIN_POSITIVE),
            middle,
        };

        let mut size = if self.relative_step { lr.min(steps.sqrt().recip()) } else { lr };
        if self.scale_parameter {
            size *= (squared_norm(var)? / var.elem_count() as f64).sqrt().max(least_weights);
        }
        size /= (moving.root_mean_square() / self.clip_threshold).max(1.0);
        let (keep, size) = ((1.0 - lr * self.weight_decay) as f32, size as f32);
        let round = rounded(rounding(parameter, step));
        write(var, |weight, range| {
            match weight {
                CpuStorage::F32(w) => moving.apply(&mut w[range], keep, size, |_, w| w),
                CpuStorage::BF16(w) => moving.apply(&mut w[range], keep, size, round),
                other => bail!("update: tensors of {:?} are not trained", other.dtype()),
            }
            Ok(())
        })?;
        Ok(())
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (_, name, kept) in self.kept.iter() {
            let mut put = |part: &str, means: &[f32]| -> Result<()> {
                state.insert(format!("{name}.{part}"), Tensor::new(means, &Device::Cpu)?);
                Ok(())
            };
            match kept {
                Kept::Factored { rows, columns } => {
                    put(ROWS, rows)?;
                    put(COLUMN_MEANS, columns)?;
                }
                Kept::Whole(means) => put(WHOLE, means)?,
            }
        }
        Ok(state)
    }

    fn set_state(&mut self, mut state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()> {
        for parameter in parameters {
            let mut kept = Kept::new(parameter.var().dims());
            let mut take = |part: &str, means: &mut Vec<f32>| -> Result<bool> {
                let Some(saved) = state.remove(&format!("{}.{part}", parameter.name())) else { return Ok(false) };
                if saved.dims() != [means.len()] || saved.dtype() != DType::F32 {
                    return Err(unfit(parameter.name()));
                }
                *means = saved.to_vec1()?;
                Ok(true)
            };
            let is_complete = match &mut kept {
                Kept::Factored { rows, columns } => match (take(ROWS, rows)?, take(COLUMN_MEANS, columns)?) {
                    (of_rows, of_columns) if of_rows == of_columns => of_rows,
                    _ => return Err(unfit(parameter.name())),
                },
                Kept::Whole(means) => take(WHOLE, means)?,
            };
            if is_complete {
                self.kept.insert(parameter, kept);
            }
        }
        state.keys().next().map_or(Ok(()), |key| Err(unfit(key)))
    }
}

fn unfit(what: &str) -> Error {
    Error::setup(format!(
        "the saved optimizer state of `{what}` fits no parameter of this run; resume with the optimizer and the settings that the \
         run was started with"
    ))
}
