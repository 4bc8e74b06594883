//! Answers with what proximal policy optimization learns from them.

use std::ops::Range;

use tune_config::Config;

use super::ppo::{AdvantageKeys, Clipped, PpoLoss};
use super::rollout::{Answer, OfAnswers, Rollout};
use crate::data::{Batch, IGNORE};
use crate::distributed::Group;
use crate::engine::Objective;
use crate::generate::End;
use crate::metrics::Extra;
use crate::{Error, Result};

/// What answers are worth that are not as they should be.
#[derive(Debug, Clone, Copy, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct Penalties {
    /// An answer that was cut off before its end is worth reward_penalty.
    #[config(default = false)]
    pub penalise_no_eos: bool,
    /// An answer of fewer tokens is worth reward_penalty; its stop token does not count.
    #[config(range = 1..)]
    pub min_response_length: Option<usize>,
    /// What these answers are worth.
    #[config(default = -3.0)]
    pub reward_penalty: f64,
}

impl Penalties {
    /// Puts the penalty in the place of what the answers are worth that have it.
    pub fn apply(&self, answers: &mut [Answer]) {
        for answer in answers {
            let has_stop = answer.sampled.end == End::Stop;
            let len = answer.sampled.ids.len() - usize::from(has_stop);
            let is_short = self.min_response_length.is_some_and(|least| len < least);
            if is_short || (self.penalise_no_eos && !has_stop) {
                answer.reward = self.reward_penalty;
            }
        }
    }
}

/// The answers to the prompts of a micro-batch, with a reward, a value and an advantage of each of their tokens, `[tokens]`, answer by
/// answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Experience {
    /// The answers, and the batch that the policy learns from.
    pub rollout: Rollout,
    /// The same batch for the value model: each token of an answer has a score, at the position that the token is drawn from.
    pub states: Batch,
    pub(super) rewards: Vec<f64>,
    values: Vec<f64>,
    pub(super) advantages: Vec<f64>,
    returns: Vec<f64>,
    /// By how much the answers are likelier than in the reference, a sum over their tokens, in nats.
    divergence: f64,
}

impl Experience {
    /// Of answers with the log-probabilities of the reference model, `[rows * len]`, empty where there is none. `values` says what
    /// the value model gives for `states`.
    ///
    /// # Errors
    /// Those of `values`, and another number of values than of tokens.
    pub fn new(
        rollout: Rollout,
        reference: &[f64],
        keys: &AdvantageKeys,
        values: impl FnOnce(&Batch) -> Result<Vec<f64>>,
    ) -> Result<Self> {
        let states = states(&rollout.batch);
        let values = values(&states)?;
        let (mut rewards, mut divergence) = (Vec::with_capacity(values.len()), 0.0);
        for (at, answer) in places(&rollout) {
            let reference = reference.get(at.clone()).unwrap_or_default();
            let log_probs = &rollout.old[at];
            divergence += log_probs.iter().zip(reference).map(|(now, before)| now - before).sum::<f64>();
            rewards.extend(keys.rewards(answer.reward, log_probs, reference));
        }
        if values.len() != rewards.len() {
            let (values, tokens) = (values.len(), rewards.len());
            return Err(Error::Training(format!(
                "the value model gives {values} values for {tokens} tokens of answers"
            )));
        }
        Ok(Self { rollout, states, rewards, values, advantages: Vec::new(), returns: Vec::new(), divergence })
    }

    /// The tokens of all answers.
    pub fn tokens(&self) -> usize {
        self.values.len()
    }

    /// The tokens of an update in all processes of a group, each of which has a `part` of it.
    ///
    /// # Errors
    /// Another process that is gone.
    pub fn tokens_of_all(part: &[Self], group: &Group) -> Result<usize> {
        let mine: usize = part.iter().map(Self::tokens).sum();
        Ok(group.all_reduce("the tokens of an update", vec![mine as u64]).wait()?.into_iter().sum::<u64>() as usize)
    }

    /// Makes advantages of rewards and values, not yet brought to the step's mean and deviation.
    pub(super) fn estimate(&mut self, keys: &AdvantageKeys) {
        self.advantages.clear();
        let mut first = 0;
        for answer in &self.rollout.answers {
            let of = first..first + answer.sampled.ids.len();
            first = of.end;
            self.advantages.extend(keys.advantages(&self.rewards[of.clone()], &self.values[of]));
        }
        self.returns = self.advantages.iter().zip(&self.values).map(|(advantage, value)| advantage + value).collect();
    }

    /// What the policy minimizes, with its `log_probs`, `[rows * len]`: a mean over `count` tokens, those of an update.
    pub fn of_policy(&self, loss: &PpoLoss, log_probs: &[f64], count: usize, seen: &mut PpoMetrics) -> Objective {
        let mut objective = Objective { value: 0.0, gradient: vec![0.0; log_probs.len()] };
        let (scale, mut first) = (1.0 / count.max(1) as f64, 0);
        for (at, _) in places(&self.rollout) {
            let (now, old) = (&log_probs[at.clone()], &self.rollout.old[at.clone()]);
            let found = loss.of_policy(now, old, &self.advantages[first..first + at.len()]);
            first += at.len();
            objective.value += scale * found.loss;
            objective.gradient[at].iter_mut().zip(&found.slopes).for_each(|(to, slope)| *to = scale * slope);
            seen.moved += now.iter().zip(old).map(|(now, old)| 0.5 * (now - old).powi(2)).sum::<f64>();
            seen.policy.add(&found);
        }
        objective
    }

    /// What the value model minimizes, with its `values` now: a mean over `count` tokens, those of an update.
    pub fn of_values(&self, loss: &PpoLoss, values: &[f64], count: usize, seen: &mut PpoMetrics) -> Objective {
        let found = loss.of_values(values, &self.values, &self.returns);
        seen.value.add(&found);
        let scale = loss.value_coeff / count.max(1) as f64;
        Objective { value: scale * found.loss, gradient: found.slopes.into_iter().map(|slope| scale * slope).collect() }
    }
}

/// The same batch with a score at each trained token.
fn states(batch: &Batch) -> Batch {
    let of = |&target: &u32| if target == IGNORE { IGNORE } else { 0 };
    Batch { targets: batch.targets.iter().map(of).collect(), ..batch.clone() }
}

/// The answers, each with the positions that its tokens are drawn from.
fn places(rollout: &Rollout) -> impl Iterator<Item = (Range<usize>, &Answer)> {
    rollout.batch.spans.iter().zip(&rollout.answers).map(|(span, answer)| {
        let end = rollout.batch.positions_of(span).end;
        (end - answer.sampled.ids.len()..end, answer)
    })
}

/// Sums over the answers and updates of a step, of which means are logged, mostly under torchtune's names.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PpoMetrics {
    answers: OfAnswers,
    divergence: f64,
    /// What all tokens' rewards add up to.
    rewards: f64,
    values: f64,
    policy: Sums,
    value: Sums,
    /// Half the square of how far log-probabilities have moved.
    moved: f64,
}

/// Of tokens in all updates.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    tokens: usize,
    loss: f64,
    clipped: usize,
}

impl Sums {
    fn add(&mut self, found: &Clipped) {
        self.tokens += found.slopes.len();
        self.loss += found.loss;
        self.clipped += found.clipped;
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.tokens.max(1) as f64
    }
}

impl PpoMetrics {
    /// Adds answers from which nothing is learnt.
    pub fn add_answers(&mut self, rollout: &Rollout) {
        self.answers.add(&rollout.answers);
    }

    /// Adds the answers of a micro-batch.
    pub fn add(&mut self, experience: &Experience) {
        self.add_answers(&experience.rollout);
        self.divergence += experience.divergence;
        self.rewards += experience.rewards.iter().sum::<f64>();
        self.values += experience.values.iter().sum::<f64>();
    }

    /// Those of all processes of a group together.
    ///
    /// # Errors
    /// Another process that is gone.
    pub fn of_all(self, group: &Group) -> Result<Self> {
        let Self { answers, divergence, rewards, values, policy, value, moved } = self;
        let counts = [policy.tokens, policy.clipped, value.tokens, value.clipped].map(|count| count as u64).to_vec();
        let counts = group.all_reduce("the tokens that were learnt from", counts).wait()?;
        let sums = vec![divergence, rewards, values, policy.loss, value.loss, moved];
        let sums = group.all_reduce("what was seen of tokens", sums).wait()?;
        let of = |first: usize, loss: f64| Sums {
            tokens: counts[first] as usize,
            loss,
            clipped: counts[first + 1] as usize,
        };
        Ok(Self {
            answers: answers.of_all(group)?,
            divergence: sums[0],
            rewards: sums[1],
            values: sums[2],
            policy: of(0, sums[3]),
            value: of(2, sums[4]),
            moved: sums[5],
        })
    }

    /// What an answer is worth, a mean.
    pub fn reward(&self) -> f64 {
        self.answers.reward()
    }

    /// The loss of both models together, a mean over the step's updates.
    pub fn loss(&self, loss: &PpoLoss) -> f64 {
        self.policy.mean(self.policy.loss) + loss.value_coeff * self.value.mean(self.value.loss)
    }

    /// The mean reward; the mean length of an answer, and the share of those that were cut off. Where something was learnt, also what
    /// an answer is worth less its divergence (`rlhf_reward`); the divergence from the reference, a sum over an answer's tokens; the
    /// mean value of a token; both losses, the shares of ratios and values that were clipped, and how far the policy has moved.
    pub fn logged(&self) -> Vec<Extra> {
        let mut logged = Vec::from(self.answers.logged());
        if self.policy.tokens > 0 {
            let (policy, value) = (&self.policy, &self.value);
            logged.extend([
                Extra::new("rlhf_reward", self.answers.mean(self.rewards)),
                Extra::new("kl", self.answers.mean(self.divergence)),
                Extra::new("value", self.values / self.answers.tokens.max(1) as f64),
                Extra::new("policy_loss", policy.mean(policy.loss)),
                Extra::shown("value_loss", value.mean(value.loss)),
                Extra::new("clip_ratio", policy.mean(policy.clipped as f64)),
                Extra::new("value_clip_ratio", value.mean(value.clipped as f64)),
                Extra::new("approx_policy_kl", policy.mean(self.moved)),
            ]);
        }
        logged
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::Span;
    use crate::generate::Sampled;

    /// Answers with these worths, log-probabilities and values of their tokens, each to a prompt of two tokens.
    pub(crate) fn experience(
        worths: &[f64],
        old: &[Vec<f64>],
        reference: &[Vec<f64>],
        values: &[Vec<f64>],
        keys: &AdvantageKeys,
    ) -> Experience {
        let len = 1 + old.iter().map(Vec::len).max().unwrap();
        let rows = old.len();
        let mut batch = Batch {
            rows,
            len,
            input_ids: vec![0; rows * len],
            targets: vec![IGNORE; rows * len],
            positions: vec![0; rows * len],
            spans: old.iter().enumerate().map(|(row, old)| Span { row, start: 0, len: 1 + old.len() }).collect(),
            origins: vec![String::new(); rows],
            labels: Vec::new(),
        };
        let (mut of_old, mut of_reference) = (vec![0.0; rows * len], vec![0.0; rows * len]);
        let mut answers = Vec::new();
        for (row, old) in old.iter().enumerate() {
            let at = row * len + 1..row * len + 1 + old.len();
            batch.targets[at.clone()].fill(7);
            of_old[at.clone()].copy_from_slice(old);
            of_reference[at].iter_mut().zip(&reference[row]).for_each(|(to, reference)| *to = *reference);
            let sampled = Sampled { ids: vec![7; old.len()], log_probs: old.clone(), end: End::Stop };
            answers.push(Answer { sampled, text: String::new(), reward: worths[row], advantage: 0.0 });
        }
        let reference = if reference.concat().is_empty() { Vec::new() } else { of_reference };
        let rollout = Rollout { batch, answers, old: of_old, samples: 1 };
        Experience::new(rollout, &reference, keys, |states| {
            assert!(states.targets.iter().all(|&target| target == IGNORE || target == 0));
            Ok(values.concat())
        })
        .unwrap()
    }

    impl Experience {
        pub(crate) fn returns(&self) -> &[f64] {
            &self.returns
        }

        /// Numbers of tokens at their positions, `[rows * len]`.
        pub(crate) fn spread_out(&self, of_tokens: &[f64]) -> Vec<f64> {
            let (mut all, mut first) = (vec![0.0; self.states.targets.len()], 0);
            for (at, _) in places(&self.rollout) {
                let len = at.len();
                all[at].copy_from_slice(&of_tokens[first..first + len]);
                first += len;
            }
            all
        }

        /// Of numbers of positions, those of tokens.
        pub(crate) fn picked(&self, all: &[f64]) -> Vec<f64> {
            places(&self.rollout).flat_map(|(at, _)| all[at].to_vec()).collect()
        }
    }

    #[test]
    fn answers_that_are_cut_off_or_short_have_a_penalty() {
        let answer = |len: usize, end: End| {
            let sampled = Sampled { ids: vec![1; len], log_probs: vec![0.0; len], end };
            Answer { sampled, text: String::new(), reward: 1.0, advantage: 0.0 }
        };
        let rewards = |penalties: Penalties| {
            let mut answers =
                [answer(3, End::Stop), answer(3, End::Length), answer(2, End::Stop), answer(5, End::Stop)];
            penalties.apply(&mut answers);
            answers.map(|answer| answer.reward)
        };
        let none = Penalties { penalise_no_eos: false, min_response_length: None, reward_penalty: -3.0 };
        assert_eq!(rewards(none), [1.0; 4]);
        assert_eq!(rewards(Penalties { penalise_no_eos: true, ..none }), [1.0, -3.0, 1.0, 1.0]);
        // A stop token is no part of what was said.
        assert_eq!(rewards(Penalties { min_response_length: Some(2), ..none }), [1.0, 1.0, -3.0, 1.0]);
        let both = Penalties { penalise_no_eos: true, min_response_length: Some(4), reward_penalty: 0.0 };
        assert_eq!(rewards(both), [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn another_number_of_values_than_of_tokens_is_refused() {
        let keys = AdvantageKeys { kl_coeff: 0.0, gamma: 1.0, lmbda: 1.0, whiten_rewards: false };
        let made = experience(&[1.0], &[vec![-1.0, -2.0]], &[vec![]], &[vec![0.0, 0.0]], &keys);
        let error = Experience::new(made.rollout, &[], &keys, |_| Ok(vec![0.0])).unwrap_err().to_string();
        assert!(error.contains("1 values for 2 tokens"), "{error}");
    }
}
