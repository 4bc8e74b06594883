//! Gradients, what is done to them, and the steps they lead to.

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
mod on_card;
mod scaled;
mod schedule;
mod schedule_free;
mod sgd;
mod update;
mod values;

use std::collections::BTreeMap;

use by_place::ByPlace;
use candle_core::Tensor;

pub use adafactor::Adafactor;
pub use adamw::AdamW;
pub use adamw_8bit::AdamW8bit;
pub use averaged::Averaged;
pub use config::{
    AdafactorConfig, AdamWConfig, CosineConfig, GroupKeys, InverseSqrtConfig, LionConfig, MuonConfig, OptimizerConfig,
    PolynomialConfig, RestartsConfig, ScheduleFreeConfig, SchedulerConfig, SgdConfig, StableDecayConfig, WarmupConfig,
};
pub use gradient::Gradient;
pub use gradients::{GradientSink, Gradients, InBackward, clip_factor};
pub use groups::Groups;
pub use layer_wise::LayerWise;
pub use lion::Lion;
pub use lora_plus::LoraPlus;
pub use muon::{AdjustLr, Muon};
pub use scaled::{Rates, Scaled};
pub use schedule::{Decay, Schedule, Shape};
pub use schedule_free::ScheduleFree;
pub use sgd::Sgd;

use crate::engine::OnCard;
use crate::kernels::Dropout;
use crate::models::{Parameter, Trainable};
use crate::{Error, Result};

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

    /// Takes back what [`Optimizer::state`] gave, for the parameters of this run.
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

/// The state tensors of parameters, for one part of an optimizer's state.
#[derive(Debug, Default)]
struct StatePart(ByPlace<Kept>);

/// The state of one parameter, where its steps are taken.
#[derive(Debug)]
enum Kept {
    Here(Tensor),
    OnCard(OnCard),
}

impl StatePart {
    /// The parameter's state on the processor, zero at first.
    fn get(&mut self, parameter: &Parameter) -> Result<&Tensor> {
        let here = match self.0.get(parameter) {
            Some(Kept::Here(_)) => None,
            Some(Kept::OnCard(state)) => Some(state.read()?),
            None => {
                let var = parameter.var();
                let dtype = if var.dtype() == candle_core::DType::F64 { var.dtype() } else { candle_core::DType::F32 };
                // Written zeros: those that the system promises would fault twice, when read and when written.
                let zeros = Tensor::zeros(var.shape(), dtype, var.device())?;
                zeros.zero_set()?;
                Some(zeros)
            }
        };
        if let Some(here) = here {
            self.0.insert(parameter, Kept::Here(here));
        }
        match self.0.get(parameter) {
            Some(Kept::Here(state)) => Ok(state),
            _ => Err(Error::Training(format!("no optimizer state for `{}`", parameter.name()))),
        }
    }

    fn save(&self, part: &str, into: &mut BTreeMap<String, Tensor>) -> Result<()> {
        for (_, name, state) in self.0.iter() {
            let state = match state {
                Kept::Here(state) => state.clone(),
                Kept::OnCard(state) => state.read()?,
            };
            into.insert(format!("{name}.{part}"), state);
        }
        Ok(())
    }

    /// Splits `state` by the parts of its names.
    fn load(state: BTreeMap<String, Tensor>, parts: &mut [(&str, &mut Self)], parameters: &Trainable) -> Result<()> {
        for (key, tensor) in state {
            let found = parts.iter_mut().find_map(|(part, state)| {
                let name = key.strip_suffix(*part)?.strip_suffix('.')?;
                Some((name.to_string(), state))
            });
            let (name, part) =
                found.ok_or_else(|| Error::setup(format!("the saved optimizer state `{key}` is not this optimizer's; resume with the optimizer that the run was started with")))?;
            match parameters.get(&name) {
                Some(parameter) if parameter.var().shape() == tensor.shape() => {
                    // A copy of its own: the optimizer changes it in place.
                    part.0.insert(parameter, Kept::Here(tensor.to_device(parameter.var().device())?.copy()?));
                }
                _ => {
                    return Err(Error::setup(format!(
                        "the saved optimizer state `{key}` {:?} fits no parameter of this run; resume with the settings that the run was started with",
                        tensor.dims()
                    )));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
