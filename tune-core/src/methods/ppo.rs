//! Proximal policy optimization (Schulman et al. 2017, <https://arxiv.org/abs/1707.06347>) of answers that a model has drawn itself,
//! as Ouyang et al. 2022 use it (<https://arxiv.org/abs/2203.02155>): each token is an action.
//!
//! A value model says before each token what the answer's tokens from there on will be worth. A token's advantage is how much better
//! it went than that. What an answer is worth counts at its last token; each token costs its divergence from a reference.

use tune_config::Config;

use super::experience::Experience;
use crate::distributed::Group;
use crate::{Error, Result};

/// How advantages are made of rewards and values.
#[derive(Debug, Clone, Copy, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct AdvantageKeys {
    /// What a token costs for each nat by which it is likelier here than in the reference model. At 0 there is no reference.
    #[config(default = 0.02, range = 0.0..)]
    pub kl_coeff: f64,
    /// What a reward counts a token earlier.
    #[config(default = 1.0, range = 0.0..=1.0)]
    pub gamma: f64,
    /// What an advantage takes from that of the next token: at 0 values alone say what comes, at 1 rewards alone.
    #[config(default = 0.95, range = 0.0..=1.0)]
    pub lmbda: f64,
    /// Bring the rewards of a step's tokens to a standard deviation of 1, around their mean.
    #[config(default = false)]
    pub whiten_rewards: bool,
}

impl AdvantageKeys {
    /// The reward of each token of an answer: what it costs to be off the reference, and at the last token what the answer is worth.
    /// Where there is no reference, `reference` is empty.
    pub fn rewards(&self, worth: f64, log_probs: &[f64], reference: &[f64]) -> Vec<f64> {
        let mut rewards = vec![0.0; log_probs.len()];
        for ((reward, log_prob), reference) in rewards.iter_mut().zip(log_probs).zip(reference) {
            *reward = -self.kl_coeff * (log_prob - reference);
        }
        if let Some(last) = rewards.last_mut() {
            *last += worth;
        }
        rewards
    }

    /// The advantage of each token of an answer: a sum of what rewards and values say of the tokens behind it, `gamma * lmbda` times
    /// as much of each as of the one before (generalized advantage estimation, Schulman et al. 2016,
    /// <https://arxiv.org/abs/1506.02438>). Behind an answer nothing is worth anything.
    pub fn advantages(&self, rewards: &[f64], values: &[f64]) -> Vec<f64> {
        let (mut next_value, mut next_advantage) = (0.0, 0.0);
        let mut advantages = vec![0.0; rewards.len()];
        for ((advantage, reward), value) in advantages.iter_mut().zip(rewards).zip(values).rev() {
            let error = reward + self.gamma * next_value - value;
            next_advantage = error + self.gamma * self.lmbda * next_advantage;
            next_value = *value;
            *advantage = next_advantage;
        }
        advantages
    }

    /// Gives all answers of a step their advantages, and what their values should have been. Advantages have a mean of 0 and a
    /// standard deviation of 1 over the step's tokens, those of all processes of the group, of which each has its own answers.
    ///
    /// # Errors
    /// Another process that is gone.
    pub fn estimate(&self, step: &mut [Experience], group: &Group) -> Result<()> {
        if self.whiten_rewards {
            let Spread { mean, deviation } = Spread::of(step.iter().flat_map(|one| &one.rewards), group)?;
            let all = step.iter_mut().flat_map(|one| &mut one.rewards);
            all.for_each(|reward| *reward = (*reward - mean) / deviation + mean);
        }
        step.iter_mut().for_each(|one| one.estimate(self));
        let Spread { mean, deviation } = Spread::of(step.iter().flat_map(|one| &one.advantages), group)?;
        let all = step.iter_mut().flat_map(|one| &mut one.advantages);
        all.for_each(|advantage| *advantage = (*advantage - mean) / deviation);
        Ok(())
    }
}

/// How often the answers of a step are learnt from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
#[config(crate = tune_config)]
pub struct UpdateKeys {
    /// Passes over the answers of a step. In all updates but the first the model is another one than drew them.
    #[config(default = 1, range = 1..=65536)]
    pub ppo_epochs: u64,
    /// Prompts from whose answers an update learns, a multiple of batch_size times the number of processes; all of the step's where null.
    #[config(range = 1..)]
    pub ppo_batch_size: Option<usize>,
}

impl UpdateKeys {
    /// The micro-batches of an update in each of so many processes, and the most updates of a step, which has `micro_batches` of
    /// `batch_size` prompts in each at most. As one process after the other has the next micro-batch of a step, updates learn from the
    /// same prompts on any number of them.
    ///
    /// # Errors
    /// An update that would take a part of a micro-batch, or fewer of one process than of another.
    pub fn of_step(&self, batch_size: usize, micro_batches: usize, processes: usize) -> Result<(usize, u64)> {
        let of_all = batch_size * processes;
        let of_update = self.ppo_batch_size.unwrap_or(of_all * micro_batches);
        if processes > 1 && !of_update.is_multiple_of(of_all) {
            return Err(Error::setup(format!(
                "ppo_batch_size={of_update} is no multiple of batch_size={batch_size} times {processes} processes: an update takes the same \
                 number of micro-batches from each; set ppo_batch_size to a multiple of {of_all}, or a smaller batch_size with more \
                 gradient_accumulation_steps"
            )));
        }
        if !of_update.is_multiple_of(of_all) {
            return Err(Error::setup(format!(
                "ppo_batch_size={of_update} is no multiple of batch_size={batch_size}: a step has batch_size * \
                 gradient_accumulation_steps prompts, of which an update takes whole micro-batches; for updates of {of_update} set \
                 batch_size={of_update}, and gradient_accumulation_steps to how many of them a step has"
            )));
        }
        let each = (of_update / of_all).min(micro_batches);
        Ok((each, self.ppo_epochs * micro_batches.div_ceil(each) as u64))
    }
}

/// What numbers are around, and how far.
struct Spread {
    mean: f64,
    deviation: f64,
}

impl Spread {
    /// Of the numbers of all processes together, with Bessel's correction, and what keeps a quotient finite where all are the same, as
    /// in TRL and torchtune.
    fn of<'n>(numbers: impl Iterator<Item = &'n f64> + Clone, group: &Group) -> Result<Self> {
        let of_all = |mine: f64| -> Result<f64> {
            Ok(group.all_reduce("the spread of a step's tokens", vec![mine]).wait()?.into_iter().sum())
        };
        let count = of_all(numbers.clone().count() as f64)?;
        let mean = of_all(numbers.clone().sum())? / count.max(1.0);
        let squares = of_all(numbers.map(|number| (number - mean).powi(2)).sum())?;
        Ok(Self { mean, deviation: (squares / (count - 1.0).max(1.0) + 1e-8).sqrt() })
    }
}

/// What policy and value model minimize. Neither moves a token's ratio or value further, in a step, than to where it is clipped.
#[derive(Debug, Clone, Copy, PartialEq, Config)]
#[config(crate = tune_config, ignored(_component_ = "there is one loss of PPO"))]
pub struct PpoLoss {
    /// A ratio that is off 1 by more than this is not pushed further.
    #[config(default = 0.2, range = 0.0..1.0)]
    pub epsilon: f64,
    /// A value that has moved by more than this in the step is not pushed further.
    #[config(default = 0.2, range = 0.0..)]
    pub value_clip_range: f64,
    /// What the value model's loss counts beside the policy's.
    #[config(default = 0.1, range = 0.0..)]
    pub value_coeff: f64,
}

/// What a loss makes of tokens: sums over them, and the derivative with respect to each one's log-probability or value.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Clipped {
    /// The loss.
    pub loss: f64,
    /// Its derivatives.
    pub slopes: Vec<f64>,
    /// Tokens that were clipped.
    pub clipped: usize,
}

impl PpoLoss {
    /// `-min(r A, clip(r, 1 - epsilon, 1 + epsilon) A)` of each token, where `A` is its advantage and `r = exp(l - l')` the ratio of
    /// its probability now to that with which it was drawn.
    pub fn of_policy(&self, log_probs: &[f64], old: &[f64], advantages: &[f64]) -> Clipped {
        let mut all = Clipped::default();
        for ((now, old), advantage) in log_probs.iter().zip(old).zip(advantages) {
            let ratio = (now - old).exp();
            let (free, clipped) = (ratio * advantage, ratio.clamp(1.0 - self.epsilon, 1.0 + self.epsilon) * advantage);
            let is_clipped = clipped < free;
            all.loss -= free.min(clipped);
            all.slopes.push(if is_clipped { 0.0 } else { -free });
            all.clipped += usize::from(is_clipped);
        }
        all
    }

    /// `max((v - R)^2, (clip(v, v' - range, v' + range) - R)^2) / 2` of each token, where `v` is its value now, `v'` that before the
    /// step, and `R` what it should have been.
    pub fn of_values(&self, values: &[f64], old: &[f64], returns: &[f64]) -> Clipped {
        let mut all = Clipped::default();
        for ((now, old), of) in values.iter().zip(old).zip(returns) {
            let off = now - of;
            let clipped = now.clamp(old - self.value_clip_range, old + self.value_clip_range) - of;
            let is_clipped = clipped * clipped > off * off;
            all.loss += 0.5 * if is_clipped { clipped * clipped } else { off * off };
            all.slopes.push(if is_clipped { 0.0 } else { off });
            all.clipped += usize::from(is_clipped);
        }
        all
    }
}

#[cfg(test)]
#[path = "ppo_tests.rs"]
mod tests;
