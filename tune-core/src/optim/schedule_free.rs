//! AdamW without a schedule (Defazio et al. 2024, <https://arxiv.org/abs/2405.15682>): the weights that are evaluated and saved are a
//! mean of those that the steps lead to.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::by_place::ByPlace;
use super::on_card::{place_on_card, update_on_card};
use super::state::dtype_of;
use super::update::{UpdateRule, update};
use super::values::Real;
use super::{Gradient, Optimizer, StatePart, made, rounding};
use crate::engine::Rule as OnCards;
use crate::kernels::Dropout;
use crate::models::{Parameter, Piece, Trainable};
use crate::offload::OffloadFile;
use crate::{Error, Result};

/// Schedule-free AdamW as its authors have it. Between steps a model has the mean `x` of the weights `z` that steps lead to.
/// [`Optimizer::prepare`] puts `y = β₁ · x + (1 - β₁) · z` in its place, where gradients are taken, and the update puts back the new `x`.
#[derive(Debug)]
pub struct ScheduleFree {
    /// Learning rate before any schedule, of which a warm-up is all that is needed.
    pub lr: f64,
    /// The share of `x` in `y`, and the decay of the second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of `y` taken away per step, times the learning rate.
    pub weight_decay: f64,
    /// Step `t` counts as `t` to this power in the mean.
    pub r: f64,
    /// A step counts as the largest learning rate so far to this power in the mean.
    pub weight_lr_power: f64,
    walking: StatePart,
    mean: StatePart,
    second: StatePart,
    counted: ByPlace<Counted>,
}

/// What the mean of a parameter counts.
#[derive(Debug, Default, Clone, Copy)]
struct Counted {
    /// The sum of what all steps so far count.
    sum: f64,
    /// The largest learning rate so far.
    largest_lr: f64,
    /// The step whose gradients are taken, while the weights are `y`.
    under_way: Option<u64>,
}

/// What state is called in a checkpoint.
const WALKING: &str = "z";
const MEAN: &str = "x";
const SECOND: &str = "exp_avg_sq";
const SUM: &str = "weight_sum";
const LARGEST_LR: &str = "lr_max";

impl ScheduleFree {
    /// Without state yet.
    pub fn new(lr: f64, betas: [f64; 2], eps: f64, weight_decay: f64) -> Self {
        Self {
            lr,
            betas,
            eps,
            weight_decay,
            r: 0.0,
            weight_lr_power: 2.0,
            walking: StatePart::default(),
            mean: StatePart::default(),
            second: StatePart::default(),
            counted: ByPlace::default(),
        }
    }

    /// Keeps its state in this file, before there is any.
    pub(super) fn keep_in(mut self, file: Option<&Arc<OffloadFile>>) -> Self {
        [&mut self.walking, &mut self.mean, &mut self.second].into_iter().for_each(|part| part.keep_in(file));
        self
    }

    /// Ends a step of a parameter; returns the share of where it leads to in the mean.
    fn count(&mut self, parameter: &Parameter, lr: f64, step: u64) -> Result<f64> {
        let mut counted = match self.counted.get(parameter) {
            Some(counted) if counted.under_way == Some(step) => *counted,
            _ => {
                return Err(Error::Training(
                    "the weights are not those that schedule_free_adamw takes gradients at: a recipe calls `prepare_all` before \
                     each step"
                        .to_owned(),
                ));
            }
        };
        counted.under_way = None;
        counted.largest_lr = counted.largest_lr.max(lr);
        let counts = (step as f64).powf(self.r) * counted.largest_lr.powf(self.weight_lr_power);
        counted.sum += counts;
        self.counted.insert(parameter, counted);
        // While a warm-up is at zero nothing counts yet.
        Ok(if counted.sum > 0.0 { counts / counted.sum } else { 0.0 })
    }

    /// Bytes of the state of a parameter with this many elements.
    pub(super) fn state_bytes(elements: u64) -> u64 {
        12 * elements + 16
    }
}

impl Optimizer for ScheduleFree {
    fn base_lr(&self) -> f64 {
        self.lr
    }

    fn prepare(&mut self, parameter: &Parameter, step: u64) -> Result<()> {
        if self.counted.get(parameter).is_none() {
            for part in [&mut self.walking, &mut self.mean] {
                match parameter.card() {
                    Some(card) => part.put_on_card(parameter, card.widened(parameter.var())?),
                    // A copy of its own: it is changed in place.
                    None => {
                        part.put(parameter, parameter.var().as_tensor().to_dtype(dtype_of(parameter))?.copy()?)?;
                    }
                }
            }
        }
        let mut counted = self.counted.get(parameter).copied().unwrap_or_default();
        counted.under_way = Some(step);
        self.counted.insert(parameter, counted);
        let (key, first) = rounding(parameter, step);
        // Bits of its own: those of the key itself are for the update.
        let (key, share) = (Dropout::mix(key, 1), 1.0 - self.betas[0]);
        if parameter.card().is_some() {
            return place_on_card(parameter, (Some(&mut self.mean), &mut self.walking), share, key);
        }
        let walking = Gradient::from(self.walking.whole(parameter)?);
        Ok(update(parameter.var(), [self.mean.get(parameter)?], &walking, (key, first), &Between { share })?)
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        if gradient.card().is_some() {
            return self.update_all(&[(parameter, gradient)], lr, scale, step);
        }
        let (new, b2) = (self.count(parameter, lr, step)?, self.betas[1]);
        let bias = 1.0 - b2.powf(step as f64);
        let rule = Rule { scale, lr, b2, bias, eps: self.eps, decay: self.weight_decay, new };
        let state = [self.walking.get(parameter)?, self.second.get(parameter)?, self.mean.get(parameter)?];
        Ok(update(parameter.var(), state, gradient, rounding(parameter, step), &rule)?)
    }

    fn works_on_cards(&self) -> bool {
        true
    }

    fn update_all(&mut self, all: &[(&Parameter, &Gradient)], lr: f64, scale: f64, step: u64) -> Result<()> {
        // Those that count alike at once: all but where some were not trained in each step. Such shares are in the order of their bits.
        let mut by_share: BTreeMap<u64, Vec<(&Parameter, &Gradient)>> = BTreeMap::new();
        for &(parameter, gradient) in all {
            match gradient.card() {
                None => self.update(parameter, gradient, lr, scale, step)?,
                Some(_) => {
                    let new = self.count(parameter, lr, step)?;
                    by_share.entry(new.to_bits()).or_default().push((parameter, gradient));
                }
            }
        }
        let ([_, beta2], eps, weight_decay) = (self.betas, self.eps, self.weight_decay);
        for (new, some) in by_share {
            let rule = tune_cuda::ScheduleFree { lr, beta2, eps, weight_decay, new: f64::from_bits(new) };
            let parts = [&mut self.walking, &mut self.second, &mut self.mean];
            update_on_card(&some, parts, OnCards::ScheduleFree(rule, step), scale, step)?;
        }
        Ok(())
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        made(&self.state_pieces()?)
    }

    fn state_pieces(&self) -> Result<Vec<Piece<'_>>> {
        let mut pieces = Vec::new();
        self.walking.pieces(WALKING, &mut pieces);
        self.mean.pieces(MEAN, &mut pieces);
        self.second.pieces(SECOND, &mut pieces);
        for (_, name, counted) in self.counted.iter() {
            for (part, number) in [(SUM, counted.sum), (LARGEST_LR, counted.largest_lr)] {
                let make = move || Ok(Tensor::new(number, &Device::Cpu)?);
                pieces.push(Piece::new(format!("{name}.{part}"), DType::F64, Vec::new(), make));
            }
        }
        Ok(pieces)
    }

    fn set_state(&mut self, mut state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()> {
        for parameter in parameters {
            let mut take = |part: &str| -> Result<Option<f64>> {
                let number = state.remove(&format!("{}.{part}", parameter.name()));
                Ok(number.map(|number| number.to_dtype(DType::F64)?.to_scalar()).transpose()?)
            };
            if let (Some(sum), Some(largest_lr)) = (take(SUM)?, take(LARGEST_LR)?) {
                self.counted.insert(parameter, Counted { sum, largest_lr, under_way: None });
            }
        }
        let parts = &mut [(WALKING, &mut self.walking), (MEAN, &mut self.mean), (SECOND, &mut self.second)];
        StatePart::load(state, parts, parameters)?;
        // A mean without its count would begin anew, and the other way round.
        let is_whole = |parameter: &&Parameter| {
            let is_counted = self.counted.get(parameter).is_some();
            [&self.walking, &self.mean, &self.second].iter().all(|part| part.has(parameter) == is_counted)
        };
        match parameters.iter().find(|parameter| !is_whole(parameter)) {
            Some(parameter) => Err(Error::setup(format!(
                "the saved optimizer state of `{}` is not whole; resume with the optimizer that the run was started with",
                parameter.name()
            ))),
            None => Ok(()),
        }
    }
}

/// What is between the mean and `z`, which is given as the gradient.
#[derive(Clone, Copy)]
struct Between {
    /// The share of `z`.
    share: f64,
}

impl UpdateRule<1> for Between {
    #[inline(always)]
    fn step<R: Real>(&self, _: R, [x]: &mut [R; 1], z: R) -> R {
        *x + (z - *x) * R::of(self.share)
    }
}

/// One step of one parameter.
#[derive(Clone, Copy)]
struct Rule {
    scale: f64,
    lr: f64,
    b2: f64,
    /// The second moment's bias.
    bias: f64,
    eps: f64,
    decay: f64,
    /// The share of the new `z` in the mean.
    new: f64,
}

impl UpdateRule<3> for Rule {
    #[inline(always)]
    fn step<R: Real>(&self, y: R, [z, v, x]: &mut [R; 3], g: R) -> R {
        let g = g * R::of(self.scale);
        *v = *v * R::of(self.b2) + R::of(1.0 - self.b2) * g * g;
        let step = g / ((*v / R::of(self.bias)).sqrt() + R::of(self.eps)) + R::of(self.decay) * y;
        *z -= R::of(self.lr) * step;
        *x += (*z - *x) * R::of(self.new);
        *x
    }
}
