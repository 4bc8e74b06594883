//! Losses of answers that the model has drawn itself, of which some are worth more than others.
//!
//! Answers come in groups, each of which answers one prompt. An answer's advantage is how much its reward is above the mean of its
//! group. With a token's log-probability `l` and the one `l'` that it was drawn with, its ratio is `r = exp(l - l')`, and what is
//! minimized is `-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A)`, a mean over tokens that each loss takes in its own way. Before
//! the first update every ratio is 1. Each loss is given with its derivative with respect to every `l`.

use tune_config::Config;

use crate::Result;
use crate::distributed::Group;

/// What is minimized, of answers and their advantages.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub enum PolicyLoss {
    /// Group relative policy optimization.
    #[config(name = "grpo", default)]
    Grpo(GrpoLoss),
    /// GRPO without the biases towards long answers and towards prompts on which all are alike.
    #[config(name = "dr_grpo")]
    DrGrpo(DrGrpoLoss),
    /// Decoupled clipping; every token counts the same.
    #[config(name = "dapo")]
    Dapo(DapoLoss),
    /// One ratio for a whole answer.
    #[config(name = "gspo")]
    Gspo(GspoLoss),
}

/// A mean over each answer's tokens, and of these over answers; advantages are divided by the standard deviation of their group
/// (Shao et al. 2024, <https://arxiv.org/abs/2402.03300>).
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct GrpoLoss {
    /// A ratio below 1 by more than this is not pushed further down.
    #[config(default = 0.2, range = 0.0..1.0)]
    pub epsilon: f64,
    /// A ratio above 1 by more than this is not pushed further up; `epsilon` where null.
    #[config(range = 0.0..)]
    pub epsilon_high: Option<f64>,
}

/// A sum over tokens by the most that answers may have; advantages are not divided by anything
/// (Liu et al. 2025, <https://arxiv.org/abs/2503.20783>).
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct DrGrpoLoss {
    /// A ratio below 1 by more than this is not pushed further down.
    #[config(default = 0.2, range = 0.0..1.0)]
    pub epsilon: f64,
    /// A ratio above 1 by more than this is not pushed further up; `epsilon` where null.
    #[config(range = 0.0..)]
    pub epsilon_high: Option<f64>,
}

/// A mean over the tokens of all answers of the step; ratios may grow by more than they may shrink (Yu et al. 2025,
/// <https://arxiv.org/abs/2503.14476>). Prompts whose answers are all worth the same are not replaced by others here; nothing is
/// learnt from them.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct DapoLoss {
    /// A ratio below 1 by more than this is not pushed further down.
    #[config(default = 0.2, range = 0.0..1.0)]
    pub epsilon: f64,
    /// A ratio above 1 by more than this is not pushed further up.
    #[config(default = 0.28, range = 0.0..)]
    pub epsilon_high: f64,
    /// Learn nothing from answers that were cut off at max_new_tokens.
    #[config(default = true)]
    pub mask_truncated: bool,
}

/// The ratio of an answer is `exp` of the mean of its tokens' `l - l'`, and each of its tokens has it (Zheng et al. 2025,
/// <https://arxiv.org/abs/2507.18071>). Otherwise as [`GrpoLoss`].
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct GspoLoss {
    /// A ratio below 1 by more than this is not pushed further down.
    #[config(default = 3.0e-4, range = 0.0..1.0)]
    pub epsilon: f64,
    /// A ratio above 1 by more than this is not pushed further up.
    #[config(default = 4.0e-4, range = 0.0..)]
    pub epsilon_high: f64,
}

/// What all answers of a step have together, over all of its micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Answers.
    pub answers: usize,
    /// Their tokens, without those of answers from which nothing is learnt.
    pub tokens: usize,
    /// The most tokens that an answer may have.
    pub longest: usize,
}

impl Totals {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            answers: self.answers + other.answers,
            tokens: self.tokens + other.tokens,
            longest: self.longest.max(other.longest),
        }
    }

    /// Those of all processes of a group together; `longest` is the same in all.
    ///
    /// # Errors
    /// Another process that is gone.
    pub fn of_all(self, group: &Group) -> Result<Self> {
        let sums = group.all_reduce("what answers have", vec![self.answers as u64, self.tokens as u64]).wait()?;
        Ok(Self { answers: sums[0] as usize, tokens: sums[1] as usize, ..self })
    }
}

/// An answer as the model sees it now and saw it when it was drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn<'a> {
    /// The model's log-probability of each token, in nats.
    pub log_probs: &'a [f64],
    /// The same when the answer was drawn.
    pub old: &'a [f64],
    /// The reference model's; empty where there is none.
    pub reference: &'a [f64],
    /// How much the answer's reward is above its group's.
    pub advantage: f64,
}

/// What a loss makes of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AnswerLoss {
    /// Its part of what is minimized: parts are added up over a step.
    pub loss: f64,
    /// The derivative of that with respect to each token's log-probability.
    pub slopes: Vec<f64>,
    /// How far the model is from its reference: the sum over tokens of `e^d - d - 1`, where `d` is the reference's log-probability
    /// less the model's; an estimate of the divergence (Schulman 2020, <http://joschu.net/blog/kl-approx.html>), in nats.
    pub divergence: f64,
    /// Tokens whose ratio was clipped.
    pub clipped: usize,
}

/// What keeps an advantage finite where all answers of a group are worth the same, as in TRL.
const LEAST_DEVIATION: f64 = 1e-4;

impl PolicyLoss {
    /// How much more each answer is worth than the mean of its group; groups of `samples` answers come one behind the other. In
    /// units of the group's standard deviation (with Bessel's correction), but for Dr. GRPO.
    pub fn advantages(&self, rewards: &[f64], samples: usize) -> Vec<f64> {
        let is_scaled = !matches!(self, Self::DrGrpo(_));
        let of_group = |rewards: &[f64]| {
            let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
            let squares: f64 = rewards.iter().map(|reward| (reward - mean).powi(2)).sum();
            let deviation = (squares / rewards.len().saturating_sub(1).max(1) as f64).sqrt();
            let by = if is_scaled { deviation + LEAST_DEVIATION } else { 1.0 };
            rewards.iter().map(|reward| (reward - mean) / by).collect::<Vec<_>>()
        };
        rewards.chunks(samples.max(1)).flat_map(of_group).collect()
    }

    /// Whether nothing is learnt from answers that were cut off.
    pub fn masks_truncated(&self) -> bool {
        matches!(self, Self::Dapo(DapoLoss { mask_truncated: true, .. }))
    }

    /// The loss of an answer, of a step whose answers have `totals` together; the divergence from a reference counts `kl_beta` of
    /// every token's.
    pub fn of(&self, answer: &Drawn<'_>, totals: Totals, kl_beta: f64) -> AnswerLoss {
        let count = answer.log_probs.len().max(1) as f64;
        let answers = totals.answers.max(1) as f64;
        // What a token counts.
        let weight = match self {
            Self::Grpo(_) | Self::Gspo(_) => 1.0 / (answers * count),
            Self::DrGrpo(_) => 1.0 / (answers * totals.longest.max(1) as f64),
            Self::Dapo(_) => 1.0 / totals.tokens.max(1) as f64,
        };
        let log_ratios = answer.log_probs.iter().zip(answer.old).map(|(now, old)| now - old);
        let log_ratios: Vec<f64> = match self {
            Self::Gspo(_) => vec![log_ratios.sum::<f64>() / count; answer.log_probs.len()],
            _ => log_ratios.collect(),
        };
        let (low, high) = self.clip();
        let mut all = AnswerLoss::default();
        for log_ratio in log_ratios {
            let ratio = log_ratio.exp();
            let (free, clipped) = (ratio * answer.advantage, ratio.clamp(1.0 - low, 1.0 + high) * answer.advantage);
            let is_clipped = clipped < free;
            all.loss -= weight * free.min(clipped);
            all.clipped += usize::from(is_clipped);
            // The ratio of an answer depends on each of its tokens by one part in `count`, and each of them has it: that is the same.
            all.slopes.push(if is_clipped { 0.0 } else { -weight * free });
        }
        for ((slope, now), reference) in all.slopes.iter_mut().zip(answer.log_probs).zip(answer.reference) {
            let off = reference - now;
            let divergence = off.exp() - off - 1.0;
            all.divergence += divergence;
            all.loss += weight * kl_beta * divergence;
            *slope += weight * kl_beta * (1.0 - off.exp());
        }
        all
    }

    /// By how much a ratio may be below 1, and above.
    fn clip(&self) -> (f64, f64) {
        match *self {
            Self::Grpo(GrpoLoss { epsilon, epsilon_high }) | Self::DrGrpo(DrGrpoLoss { epsilon, epsilon_high }) => {
                (epsilon, epsilon_high.unwrap_or(epsilon))
            }
            Self::Dapo(DapoLoss { epsilon, epsilon_high, .. }) | Self::Gspo(GspoLoss { epsilon, epsilon_high }) => {
                (epsilon, epsilon_high)
            }
        }
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
