//! Gradients, what is done to them, and the steps they lead to.
//!
//! A step depends on weights, state, gradients, the rate and the step's number alone: the processor, on any number of threads, and a card
//! come to the same bits, and so does a run that is resumed. All that an optimizer remembers is in [`Optimizer::state`].

mod adafactor;
mod adamw;
mod adamw_8bit;
mod averaged;
mod blocks;
mod by_place;
mod config;
mod gradient;
mod gradients;
mod groups;
mod layer_wise;
mod lion;
mod lora_plus;
mod muon;
mod offloaded;
mod on_card;
mod scaled;
mod schedule;
mod schedule_free;
mod sgd;
mod state;
mod update;
mod values;

use std::collections::BTreeMap;

use candle_core::Tensor;
use offloaded::Offloaded;
use state::{StatePart, made};

pub use adafactor::Adafactor;
pub use adamw::AdamW;
pub use adamw_8bit::AdamW8bit;
pub use averaged::Averaged;
pub use config::{
    AdafactorConfig, AdamWConfig, CosineConfig, GroupKeys, InverseSqrtConfig, LionConfig, MuonConfig, OptimizerConfig,
    PolynomialConfig, RestartsConfig, ScheduleFreeConfig, SchedulerConfig, SgdConfig, StableDecayConfig, WarmupConfig,
};
pub use gradient::Gradient;
pub use gradients::{Clip, GradientSink, Gradients, InBackward, clip_factor};
pub use groups::Groups;
pub use layer_wise::LayerWise;
pub use lion::Lion;
pub use lora_plus::LoraPlus;
pub use muon::{AdjustLr, Muon};
pub use scaled::{Rates, Scaled};
pub use schedule::{Decay, Schedule, Shape};
pub use schedule_free::ScheduleFree;
pub use sgd::Sgd;

use crate::Result;
use crate::kernels::Dropout;
use crate::models::{Parameter, Piece, Trainable};

/// One step of one parameter at a time. State can be saved.
///
/// A recipe that has one of its own puts it where the shipped ones have `cfg.optimizer.build()`:
///
/// ```
/// use std::collections::BTreeMap;
///
/// use candle_core::{DType, Device, Tensor, Var};
/// use tune_core::Result;
/// use tune_core::models::{Parameter, Trainable};
/// use tune_core::optim::{Gradient, Optimizer};
///
/// /// Each weight goes the same way, whatever the size of its gradient. It keeps no state.
/// struct SignDescent {
///     lr: f64,
/// }
///
/// impl Optimizer for SignDescent {
///     fn base_lr(&self) -> f64 {
///         self.lr
///     }
///     fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, _: u64) -> Result<()> {
///         let var = parameter.var();
///         let direction = (gradient.to_tensor()? * scale)?.sign()?.to_dtype(var.dtype())?;
///         Ok(var.set(&(var.as_tensor() - (direction * lr)?)?)?)
///     }
///     fn state(&self) -> Result<BTreeMap<String, Tensor>> {
///         Ok(BTreeMap::new())
///     }
///     fn set_state(&mut self, _: BTreeMap<String, Tensor>, _: &Trainable) -> Result<()> {
///         Ok(())
///     }
/// }
///
/// let weight = Var::new(&[1f32, 1.0], &Device::Cpu)?;
/// let parameters = Trainable::from_iter([("weight".to_string(), weight.clone())]);
/// let gradient = Gradient::from(Tensor::new(&[0.1f32, -7.0], &Device::Cpu)?);
/// let mut optimizer: Box<dyn Optimizer> = Box::new(SignDescent { lr: 0.5 });
/// for parameter in &parameters {
///     optimizer.update(parameter, &gradient, optimizer.base_lr(), 1.0, 1)?;
/// }
/// assert_eq!(weight.to_vec1::<f32>()?, [0.5, 1.5]);
/// # assert_eq!(weight.dtype(), DType::F32);
/// # Ok::<(), tune_core::Error>(())
/// ```
pub trait Optimizer: Send {
    /// The learning rate before any schedule.
    fn base_lr(&self) -> f64;

    /// Readies a parameter for the gradients of optimizer step `step` (from 1): for an optimizer that takes them elsewhere than at the
    /// weights that are evaluated and saved. Between [`Optimizer::update`] and the next call those weights are there.
    ///
    /// # Errors
    /// Those of the tensor library.
    fn prepare(&mut self, _parameter: &Parameter, _step: u64) -> Result<()> {
        Ok(())
    }

    /// [`Optimizer::prepare`] of all parameters. A recipe calls it before it computes a step's gradients.
    ///
    /// # Errors
    /// As [`Optimizer::prepare`].
    fn prepare_all(&mut self, parameters: &Trainable, step: u64) -> Result<()> {
        parameters.iter().try_for_each(|parameter| self.prepare(parameter, step))
    }

    /// Moves `parameter` against `gradient · scale` with learning rate `lr`, in optimizer step `step` (from 1).
    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()>;

    /// Whether [`Optimizer::update`] moves parameters on a card, where their gradients are on one. For one that does not, parameter
    /// and gradient are brought to the processor in each step.
    fn works_on_cards(&self) -> bool {
        false
    }

    /// Whether [`Optimizer::update_all`] multiplies gradients on a card by a number that is known there alone. For one that does not, they
    /// are multiplied before.
    fn clips_on_cards(&self) -> bool {
        false
    }

    /// [`Optimizer::update`] of several parameters: in one go, if it can be.
    ///
    /// # Errors
    /// As [`Optimizer::update`].
    fn update_all(&mut self, all: &[(&Parameter, &Gradient)], lr: f64, scale: f64, step: u64) -> Result<()> {
        all.iter().try_for_each(|(parameter, gradient)| self.update(parameter, gradient, lr, scale, step))
    }

    /// The state by `<parameter>.<part>`, on the processor, in types that checkpoints hold: of the rows that are here of each
    /// parameter.
    ///
    /// # Errors
    /// What failed on the card that it is on.
    fn state(&self) -> Result<BTreeMap<String, Tensor>>;

    /// The same for a checkpoint, which asks for one tensor after the other: what is kept in a file is read then, and not before.
    ///
    /// # Errors
    /// As [`Optimizer::state`].
    fn state_pieces(&self) -> Result<Vec<Piece<'_>>> {
        let piece = |(name, tensor): (String, Tensor)| {
            Piece::new(name, tensor.dtype(), tensor.dims().to_vec(), move || Ok(tensor.clone()))
        };
        Ok(self.state()?.into_iter().map(piece).collect())
    }

    /// Takes back what [`Optimizer::state`] gave, for the parameters of this run: all of it, or that of a parameter after that of another.
    ///
    /// # Errors
    /// State of a parameter that this run lacks, or of another shape.
    fn set_state(&mut self, state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()>;
}

/// The key of the random bits that round a bf16 parameter in this step, see [`update::update`].
fn rounding_key(parameter: &Parameter, step: u64) -> u64 {
    Dropout::mix(Dropout::mix_name(step, parameter.name()), step)
}

/// The same, and the first element that is here: so the bits do not depend on how a parameter is divided among processes.
fn rounding(parameter: &Parameter, step: u64) -> (u64, usize) {
    let first = parameter.shard().map_or(0, |shard| shard.first_element(parameter.var()));
    (rounding_key(parameter, step), first)
}

#[cfg(test)]
mod tests;
