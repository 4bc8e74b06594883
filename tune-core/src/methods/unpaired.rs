//! Losses of answers each of which is labelled good or bad.
//!
//! An answer's log ratio is `log p - log r`, of the log-probabilities by the model and by its reference, each a sum over the
//! answer's trained tokens. `sigma` is the logistic function.

use tune_config::Config;

use super::Seen;
use super::math::sigma;
use super::preference::{answers, of_answers};
use crate::Result;
use crate::data::{Batch, IGNORE, Span};
use crate::distributed::Group;
use crate::engine::Objective;
use crate::metrics::{Extra, VAL_LOSS};

/// What is minimized, of an answer that is labelled good or bad.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub enum UnpairedLoss {
    /// Kahneman-Tversky optimization.
    #[config(name = "kto", default)]
    Kto(LabelWeights),
    /// The unpaired form of anchored preference optimization: good answers are to gain and bad ones to lose against the reference.
    #[config(name = "apo_zero_unpaired")]
    ApoZero(LabelWeights),
}

/// `w sigma(beta (kl - ratio))` for a good answer and `w' sigma(beta (ratio - kl))` for a bad one. For `kto` (Ethayarajh et al.
/// 2024, <https://arxiv.org/abs/2402.01306>) `kl`, which is held constant, is how far the model has moved from its reference: the
/// mean log ratio of answers to other prompts, at least 0. For `apo_zero_unpaired` (D'Oosterlinck et al. 2024,
/// <https://arxiv.org/abs/2408.06266>, as TRL has it) it is 0, and such answers are not looked at.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct LabelWeights {
    /// How much a log ratio counts: the larger, the nearer the model stays to its reference.
    #[config(default = 0.1, range = 0.0..)]
    pub beta: f64,
    /// What good answers count. Where there are fewer of the one label, the paper lets it count more: the good answers times their
    /// weight are to be 1 to 4/3 times the bad ones times theirs.
    #[config(default = 1.0, range = 0.0..)]
    pub desirable_weight: f64,
    /// What bad answers count.
    #[config(default = 1.0, range = 0.0..)]
    pub undesirable_weight: f64,
}

/// An answer with its label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Labelled {
    /// What the model and its reference say of it.
    pub answer: Seen,
    /// Its label.
    pub is_good: bool,
}

/// What a loss makes of an answer with its label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LabelledLoss {
    /// What is minimized.
    pub loss: f64,
    /// Its derivative with respect to the model's log-probability of the answer.
    pub slope: f64,
    /// The reward that the model implies.
    pub reward: f64,
}

impl UnpairedLoss {
    /// Whether the loss asks how far the model has moved from its reference.
    pub fn asks_how_far(&self) -> bool {
        matches!(self, Self::Kto(_))
    }

    /// The losses of answers, where the model has moved from its reference by `kl` nats: [`Moved::kl`] of the step's batches; `None`
    /// where the loss does not ask.
    pub fn of(&self, answers: &[Labelled], kl: Option<f64>) -> Vec<LabelledLoss> {
        let (Self::Kto(weights) | Self::ApoZero(weights)) = self;
        answers.iter().map(|answer| weights.of(answer, kl.unwrap_or(0.0))).collect()
    }
}

impl LabelWeights {
    fn of(&self, Labelled { answer, is_good }: &Labelled, kl: f64) -> LabelledLoss {
        let Self { beta, desirable_weight, undesirable_weight } = *self;
        let x = beta * (answer.log_ratio() - kl);
        let (weight, sign) = if *is_good { (desirable_weight, -1.0) } else { (undesirable_weight, 1.0) };
        LabelledLoss {
            loss: weight * sigma(sign * x),
            slope: sign * weight * beta * sigma(x) * sigma(-x),
            reward: beta * answer.log_ratio(),
        }
    }
}

/// The answers of a batch with their labels; none of a batch without labels. `log_probs` are the model's, of each position,
/// `[rows * len]`; `reference` has a number for each sample.
pub fn labelled(batch: &Batch, log_probs: &[f64], reference: &[f64]) -> Vec<Labelled> {
    let answers = answers(batch, log_probs, reference).into_iter();
    answers.zip(&batch.labels).map(|(answer, &is_good)| Labelled { answer, is_good }).collect()
}

/// The sum of a batch's losses, for [`engine::minimize`](crate::engine::minimize): each token of an answer has the slope of its
/// answer.
pub fn labelled_objective(batch: &Batch, losses: &[LabelledLoss]) -> Objective {
    let slopes: Vec<f64> = losses.iter().map(|loss| loss.slope).collect();
    of_answers(batch, losses.iter().map(|loss| loss.loss).sum(), &slopes)
}

/// The prompts of a batch, each with the answer to the prompt before it, the first one with that to the last, cut to `max_seq_len`
/// tokens: what a model says of these tells how far it has moved from another one. They are the pairs of TRL's `KTOTrainer`. The
/// prompt is all before the first trained token. A batch of one sample stays what it is.
pub fn mismatched(batch: &Batch, max_seq_len: Option<usize>) -> Batch {
    let limit = max_seq_len.unwrap_or(usize::MAX);
    let before = batch.spans.iter().cycle().skip(batch.spans.len().saturating_sub(1));
    let parts = |span: &Span| {
        let positions = batch.positions_of(span);
        let (ids, targets) = (&batch.input_ids[positions.clone()], &batch.targets[positions]);
        // The token at the first position that is trained is the prompt's last.
        let last = targets.iter().position(|&target| target != IGNORE).unwrap_or(0);
        (ids.split_at((last + 1).min(ids.len())), targets.split_at(last))
    };
    let samples: Vec<(Vec<u32>, Vec<u32>)> = batch
        .spans
        .iter()
        .zip(before)
        .map(|(span, before)| {
            let (((prompt, _), (ignored, _)), ((_, answer), (_, trained))) = (parts(span), parts(before));
            let (mut ids, mut targets) = ([prompt, answer].concat(), [ignored, trained].concat());
            ids.truncate(limit);
            targets.truncate(ids.len());
            // What would follow may have been cut off.
            targets.last_mut().into_iter().for_each(|last| *last = IGNORE);
            (ids, targets)
        })
        .collect();
    let len = samples.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0);
    let mut batch = Batch {
        rows: samples.len(),
        len,
        input_ids: Vec::with_capacity(samples.len() * len),
        targets: Vec::with_capacity(samples.len() * len),
        positions: Vec::with_capacity(samples.len() * len),
        spans: Vec::with_capacity(samples.len()),
        origins: batch.origins.clone(),
        labels: Vec::new(),
    };
    for (row, (ids, targets)) in samples.into_iter().enumerate() {
        batch.spans.push(Span { row, start: 0, len: ids.len() });
        batch.positions.extend(0..len as u32);
        batch.input_ids.extend(ids);
        batch.targets.extend(targets);
        batch.input_ids.resize(batch.positions.len(), 0);
        batch.targets.resize(batch.positions.len(), IGNORE);
    }
    batch
}

/// How far a model has moved from its reference, of [`mismatched`] answers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moved {
    answers: usize,
    log_ratios: f64,
}

impl Moved {
    /// Adds the answers of a batch. One of a single answer, which is no answer to another prompt, says nothing.
    pub fn add(&mut self, mismatched: &Batch, log_probs: &[f64], reference: &[f64]) {
        if mismatched.spans.len() > 1 {
            let answers = answers(mismatched, log_probs, reference);
            self.answers += answers.len();
            self.log_ratios += answers.iter().map(Seen::log_ratio).sum::<f64>();
        }
    }

    /// Those of all processes of a group together.
    ///
    /// # Errors
    /// Another process is gone.
    pub fn of_all(self, group: &Group) -> Result<Self> {
        let mine = vec![self.answers as f64, self.log_ratios];
        match group.all_reduce("how far the model has moved", mine).wait()?[..] {
            [answers, log_ratios] => Ok(Self { answers: answers as usize, log_ratios }),
            _ => Ok(self),
        }
    }

    /// The mean log ratio in nats, at least 0; 0 where no batch said anything.
    pub fn kl(&self) -> f64 {
        (self.log_ratios / self.answers.max(1) as f64).max(0.0)
    }
}

/// Sums over answers with labels, of which means are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct UnpairedMetrics {
    loss: f64,
    /// Of good answers, and of bad ones.
    labels: [OfLabel; 2],
}

/// Sums over the answers of one label.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct OfLabel {
    answers: f64,
    rewards: f64,
    log_probs: f64,
}

impl UnpairedMetrics {
    /// The names of what validation finds that says which model is better.
    pub const VALIDATED: &'static [&'static str] = &[VAL_LOSS, "val_rewards/margins"];

    /// Adds the answers of a micro-batch, with what their loss made of them.
    pub fn add(&mut self, answers: &[Labelled], losses: &[LabelledLoss]) {
        for (Labelled { answer, is_good }, loss) in answers.iter().zip(losses) {
            let of_label = &mut self.labels[usize::from(!is_good)];
            of_label.answers += 1.0;
            of_label.rewards += loss.reward;
            of_label.log_probs += answer.log_prob;
            self.loss += loss.loss;
        }
    }

    /// Those of all processes of a group together.
    ///
    /// # Errors
    /// Another process is gone.
    pub fn of_all(self, group: &Group) -> Result<Self> {
        let of_label = |of: OfLabel| [of.answers, of.rewards, of.log_probs];
        let mine = [&[self.loss][..], &of_label(self.labels[0]), &of_label(self.labels[1])].concat();
        let label = |[answers, rewards, log_probs]: [f64; 3]| OfLabel { answers, rewards, log_probs };
        match group.all_reduce("what was seen of answers", mine).wait()?[..] {
            [loss, a, b, c, d, e, f] => Ok(Self { loss, labels: [label([a, b, c]), label([d, e, f])] }),
            _ => Ok(self),
        }
    }

    /// The mean loss of an answer.
    pub fn loss(&self) -> f64 {
        let answers: f64 = self.labels.iter().map(|of| of.answers).sum();
        self.loss / answers.max(1.0)
    }

    /// Under TRL's names, means over the good (`chosen`) and over the bad answers (`rejected`): the rewards that the model implies,
    /// by how much they differ, and log-probabilities; what there is no answer of is left out. And `kl`, how far the model has
    /// moved from its reference.
    pub fn logged(&self, kl: Option<f64>) -> Vec<Extra> {
        let [chosen, rejected] = self.labels;
        let mean = |of: OfLabel, sum: f64| (of.answers > 0.0).then(|| sum / of.answers);
        let rewards = [chosen, rejected].map(|of| mean(of, of.rewards));
        let log_probs = [chosen, rejected].map(|of| mean(of, of.log_probs));
        let margin = rewards[0].zip(rewards[1]).map(|(chosen, rejected)| chosen - rejected);
        let logged = [
            ("rewards/chosen", rewards[0]),
            ("rewards/rejected", rewards[1]),
            ("log_probs/chosen", log_probs[0]),
            ("log_probs/rejected", log_probs[1]),
        ];
        let logged = logged.into_iter().filter_map(|(name, value)| Some(Extra::new(name, value?)));
        let shown = [("rewards/margins", margin), ("kl", kl)];
        logged.chain(shown.into_iter().filter_map(|(name, value)| Some(Extra::shown(name, value?)))).collect()
    }
}

#[cfg(test)]
#[path = "unpaired_tests.rs"]
mod tests;
