//! Losses of pairs of answers, of which one is preferred to the other.
//!
//! With a model's log-probability of an answer `log p`, a sum over its trained tokens, and the reference model's `log r`, an
//! answer's log ratio is `log p - log r`. `margin` is the preferred answer's log ratio less the other's; `sigma` is the
//! logistic function. Each loss is given with its derivative with respect to both `log p`.

use tune_config::Config;

use super::math::{sigma, softplus};
use crate::data::Batch;
use crate::engine::Objective;

/// What is minimized, of a pair of answers.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub enum PreferenceLoss {
    /// Direct preference optimization.
    #[config(name = "dpo", alias = "torchtune.rlhf.loss.DPOLoss", default)]
    Dpo(DpoLoss),
    /// A hinge on the margin, as in SLiC and RSO.
    #[config(name = "hinge", alias = "torchtune.rlhf.loss.RSOLoss")]
    Hinge(HingeLoss),
    /// Identity preference optimization.
    #[config(name = "ipo", alias = "torchtune.rlhf.loss.IPOLoss")]
    Ipo(IpoLoss),
    /// Cross-entropy of the preferred answer and the odds ratio of the two; no reference model.
    #[config(name = "orpo")]
    Orpo(OrpoLoss),
    /// The margin of mean log-probabilities; no reference model.
    #[config(name = "simpo", alias = "torchtune.rlhf.loss.SimPOLoss")]
    SimPo(SimPoLoss),
    /// Kahneman-Tversky optimization, of the two answers of each pair. The recipe `kto` has it of answers with labels.
    #[config(name = "kto")]
    Kto(KtoLoss),
}

/// `-ln sigma(beta margin)` (Rafailov et al. 2023, <https://arxiv.org/abs/2305.18290>); with label smoothing `e`, cDPO
/// (Mitchell 2023, <https://ericmitchell.ai/cdpo.pdf>): `-(1 - e) ln sigma(beta margin) - e ln sigma(-beta margin)`.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct DpoLoss {
    /// How much a log ratio counts: the larger, the nearer the model stays to its reference.
    #[config(default = 0.1, range = 0.0..)]
    pub beta: f64,
    /// The share of pairs whose labels are taken to be the wrong way round.
    #[config(default = 0.0, range = 0.0..0.5)]
    pub label_smoothing: f64,
}

/// `max(0, 1 - gamma margin)` (Zhao et al. 2023, <https://arxiv.org/abs/2305.10425>; Liu et al. 2023,
/// <https://arxiv.org/abs/2309.06657>).
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct HingeLoss {
    /// How much a log ratio counts.
    #[config(default = 0.1, range = 0.0..)]
    pub gamma: f64,
}

/// `(margin - 1 / (2 tau))^2` (Azar et al. 2023, <https://arxiv.org/abs/2310.12036>, equation 17), the margin being one of
/// means over an answer's tokens, which the paper's authors say they used.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct IpoLoss {
    /// How strongly the model is held to its reference: the margin that is aimed at is `1 / (2 tau)`.
    #[config(default = 0.1, range = 1e-6..)]
    pub tau: f64,
}

/// `-m - lambda ln sigma(ln odds(m) - ln odds(m'))` (Hong et al. 2024, <https://arxiv.org/abs/2403.07691>), where `m` is the
/// preferred answer's log-probability as a mean over its tokens, `m'` the other's, and `odds(m) = e^m / (1 - e^m)`.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct OrpoLoss {
    /// How much the odds ratio counts beside the cross-entropy.
    #[config(default = 0.1, range = 0.0..)]
    pub lambda: f64,
}

/// `-ln sigma(beta (m - m') - gamma)` (Meng et al. 2024, <https://arxiv.org/abs/2405.14734>), where `m` is the preferred
/// answer's log-probability as a mean over its tokens, and `m'` the other's.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct SimPoLoss {
    /// How much a mean log-probability counts.
    #[config(default = 2.0, range = 0.0..)]
    pub beta: f64,
    /// The margin that is aimed at.
    #[config(default = 0.5, range = 0.0..)]
    pub gamma: f64,
}

/// The mean of `w (1 - sigma(beta (ratio - z)))` for the preferred answer and `w' (1 - sigma(beta (z - ratio')))` for the
/// other (Ethayarajh et al. 2024, <https://arxiv.org/abs/2402.01306>). `z`, which is held constant, is how far the model has
/// moved from its reference: the mean log ratio of all answers of the micro-batch, at least 0. The paper takes answers to
/// other prompts for it.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct KtoLoss {
    /// How much a log ratio counts.
    #[config(default = 0.1, range = 0.0..)]
    pub beta: f64,
    /// What preferred answers count.
    #[config(default = 1.0, range = 0.0..)]
    pub desirable_weight: f64,
    /// What the others count.
    #[config(default = 1.0, range = 0.0..)]
    pub undesirable_weight: f64,
}

/// An answer as the model and its reference see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// The model's log-probability of it: a sum over its trained tokens, in nats.
    pub log_prob: f64,
    /// The reference model's; 0 where there is none.
    pub reference: f64,
    /// Its trained tokens.
    pub tokens: usize,
}

/// Two answers to the same prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// The one that is preferred.
    pub chosen: Seen,
    /// The other.
    pub rejected: Seen,
}

/// What a loss makes of a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairLoss {
    /// What is minimized.
    pub loss: f64,
    /// Its derivative with respect to the model's log-probability of the preferred answer, and of the other.
    pub slopes: [f64; 2],
    /// The rewards that the model implies, of the preferred answer and of the other.
    pub rewards: [f64; 2],
}

impl Seen {
    pub(super) fn log_ratio(&self) -> f64 {
        self.log_prob - self.reference
    }

    /// The log-probability as a mean over tokens.
    fn mean(&self) -> f64 {
        self.log_prob / self.tokens()
    }

    /// Never 0, by which nothing can be divided.
    fn tokens(&self) -> f64 {
        self.tokens.max(1) as f64
    }
}

impl Pair {
    fn sides(&self) -> [&Seen; 2] {
        [&self.chosen, &self.rejected]
    }

    fn margin(&self) -> f64 {
        self.chosen.log_ratio() - self.rejected.log_ratio()
    }
}

impl PreferenceLoss {
    /// Whether the loss compares with a reference model.
    pub fn needs_reference(&self) -> bool {
        !matches!(self, Self::Orpo(_) | Self::SimPo(_))
    }

    /// The losses of the pairs of a micro-batch.
    pub fn of(&self, pairs: &[Pair]) -> Vec<PairLoss> {
        match self {
            Self::Dpo(loss) => pairs.iter().map(|pair| loss.of(pair)).collect(),
            Self::Hinge(loss) => pairs.iter().map(|pair| loss.of(pair)).collect(),
            Self::Ipo(loss) => pairs.iter().map(|pair| loss.of(pair)).collect(),
            Self::Orpo(loss) => pairs.iter().map(|pair| loss.of(pair)).collect(),
            Self::SimPo(loss) => pairs.iter().map(|pair| loss.of(pair)).collect(),
            Self::Kto(loss) => {
                let ratios = pairs.iter().flat_map(Pair::sides).map(Seen::log_ratio);
                let moved = ratios.sum::<f64>() / (2 * pairs.len()).max(1) as f64;
                pairs.iter().map(|pair| loss.of(pair, moved.max(0.0))).collect()
            }
        }
    }
}

impl DpoLoss {
    fn of(&self, pair: &Pair) -> PairLoss {
        let Self { beta, label_smoothing: e } = *self;
        let x = beta * pair.margin();
        let slope = beta * (e * sigma(x) - (1.0 - e) * sigma(-x));
        PairLoss {
            loss: (1.0 - e) * softplus(-x) + e * softplus(x),
            slopes: [slope, -slope],
            rewards: pair.sides().map(|answer| beta * answer.log_ratio()),
        }
    }
}

impl HingeLoss {
    fn of(&self, pair: &Pair) -> PairLoss {
        let loss = (1.0 - self.gamma * pair.margin()).max(0.0);
        let slope = if loss > 0.0 { -self.gamma } else { 0.0 };
        let rewards = pair.sides().map(|answer| self.gamma * answer.log_ratio());
        PairLoss { loss, slopes: [slope, -slope], rewards }
    }
}

impl IpoLoss {
    fn of(&self, pair: &Pair) -> PairLoss {
        let [chosen, rejected] = pair.sides().map(|answer| answer.log_ratio() / answer.tokens());
        let off = chosen - rejected - 1.0 / (2.0 * self.tau);
        PairLoss {
            loss: off * off,
            slopes: [2.0 * off / pair.chosen.tokens(), -2.0 * off / pair.rejected.tokens()],
            rewards: [self.tau * chosen, self.tau * rejected],
        }
    }
}

impl OrpoLoss {
    fn of(&self, pair: &Pair) -> PairLoss {
        // A probability of 1 has no odds.
        let means = pair.sides().map(|answer| answer.mean().min(-f64::EPSILON));
        let [chosen, rejected] = means.map(|mean| mean - ln_one_less_exp(mean));
        let x = chosen - rejected;
        // The derivative of log odds with respect to a mean is 1 / (1 - e^mean).
        let [of_chosen, of_rejected] = means.map(|mean| -1.0 / mean.exp_m1());
        let pull = self.lambda * sigma(-x);
        PairLoss {
            loss: -means[0] + self.lambda * softplus(-x),
            slopes: [-(1.0 + pull * of_chosen) / pair.chosen.tokens(), pull * of_rejected / pair.rejected.tokens()],
            rewards: means.map(|mean| self.lambda * mean),
        }
    }
}

impl SimPoLoss {
    fn of(&self, pair: &Pair) -> PairLoss {
        let [chosen, rejected] = pair.sides().map(Seen::mean);
        let x = self.beta * (chosen - rejected) - self.gamma;
        let slope = -self.beta * sigma(-x);
        PairLoss {
            loss: softplus(-x),
            slopes: [slope / pair.chosen.tokens(), -slope / pair.rejected.tokens()],
            rewards: [self.beta * chosen, self.beta * rejected],
        }
    }
}

impl KtoLoss {
    /// `moved` is how far the model is from its reference.
    fn of(&self, pair: &Pair, moved: f64) -> PairLoss {
        let Self { beta, desirable_weight, undesirable_weight } = *self;
        let [chosen, rejected] = pair.sides().map(|answer| beta * (answer.log_ratio() - moved));
        let slope = |x: f64| beta * sigma(x) * sigma(-x);
        PairLoss {
            loss: 0.5 * (desirable_weight * sigma(-chosen) + undesirable_weight * sigma(rejected)),
            slopes: [-0.5 * desirable_weight * slope(chosen), 0.5 * undesirable_weight * slope(rejected)],
            rewards: pair.sides().map(|answer| beta * answer.log_ratio()),
        }
    }
}

/// The pairs of a batch whose samples are two and two the answers of a pair, the preferred one first, as a loader of pairs
/// makes them. `log_probs` are the model's, of each position, `[rows * len]`; `reference` has a number for each sample, or
/// none.
pub fn pairs(batch: &Batch, log_probs: &[f64], reference: &[f64]) -> Vec<Pair> {
    let answers = answers(batch, log_probs, reference);
    answers.chunks_exact(2).map(|pair| Pair { chosen: pair[0], rejected: pair[1] }).collect()
}

/// Each sample of a batch as an answer.
pub(super) fn answers(batch: &Batch, log_probs: &[f64], reference: &[f64]) -> Vec<Seen> {
    let reference = reference.iter().copied().chain(std::iter::repeat(0.0));
    let answers = batch.spans.iter().zip(reference).map(|(span, reference)| Seen {
        log_prob: log_probs[batch.positions_of(span)].iter().sum(),
        reference,
        tokens: batch.trained_tokens_of(span),
    });
    answers.collect()
}

/// The sum of a batch's losses, for [`engine::minimize`](crate::engine::minimize): each token of an answer has the slope
/// of its answer.
pub fn objective(batch: &Batch, losses: &[PairLoss]) -> Objective {
    let slopes: Vec<f64> = losses.iter().flat_map(|loss| loss.slopes).collect();
    of_answers(batch, losses.iter().map(|loss| loss.loss).sum(), &slopes)
}

/// An objective in which each token of an answer has the slope of its answer.
pub(super) fn of_answers(batch: &Batch, value: f64, slopes: &[f64]) -> Objective {
    let mut gradient = vec![0.0; batch.targets.len()];
    batch.spans.iter().zip(slopes).for_each(|(span, slope)| gradient[batch.positions_of(span)].fill(*slope));
    Objective { value, gradient }
}

/// `ln(1 - e^x)` of a negative number.
fn ln_one_less_exp(x: f64) -> f64 {
    if x > -std::f64::consts::LN_2 { (-x.exp_m1()).ln() } else { (-x.exp()).ln_1p() }
}

#[cfg(test)]
#[path = "preference_tests.rs"]
mod tests;
