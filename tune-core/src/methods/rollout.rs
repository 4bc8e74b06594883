//! Answers that a model draws to prompts, what they are worth, and the batch that is learnt from.

use super::policy::{AnswerLoss, Drawn, PolicyLoss, Totals};
use crate::data::{Batch, IGNORE, Span};
use crate::distributed::Group;
use crate::engine::Objective;
use crate::generate::{End, Sampled};
use crate::metrics::Extra;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// What a model is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The same as text, without special tokens.
    pub text: String,
    /// The answer that the data has.
    pub expected: String,
    /// Where it came from: `file.jsonl:17`.
    pub origin: String,
}

/// The prompts of a batch: of each sample, what comes before the last stretch of trained tokens, which are the answer that is
/// expected.
///
/// # Errors
/// A sample that is trained from its first token on, which has no prompt.
pub fn prompts(batch: &Batch, tokenizer: &Tokenizer) -> Result<Vec<Prompt>> {
    let prompt = |(span, origin): (&Span, &String)| {
        let at = batch.positions_of(span);
        let (ids, targets) = (&batch.input_ids[at.clone()], &batch.targets[at]);
        let end = targets.iter().rposition(|&target| target != IGNORE).map_or(0, |last| last + 1);
        let start = targets[..end].iter().rposition(|&target| target == IGNORE).map_or(0, |before| before + 1);
        if start == 0 {
            return Err(Error::Training(format!(
                "{origin}: there is no prompt before its first trained token: use a dataset that trains on answers alone"
            )));
        }
        Ok(Prompt {
            ids: ids[..=start].to_vec(),
            text: tokenizer.decode(&ids[..=start], true)?,
            expected: tokenizer.decode(&targets[start..end], true)?,
            origin: origin.clone(),
        })
    };
    batch.spans.iter().zip(&batch.origins).map(prompt).collect()
}

/// The texts of a batch as prompts, for data that have no answers: each sample as a whole, but for a stop token at its end.
///
/// # Errors
/// A sample without a token, and those of decoding.
pub fn texts(batch: &Batch, tokenizer: &Tokenizer) -> Result<Vec<Prompt>> {
    let prompt = |(span, origin): (&Span, &String)| {
        let at = batch.positions_of(span);
        let mut ids = batch.input_ids[at.clone()].to_vec();
        // The last token is predicted and not read.
        ids.extend(batch.targets[at].last().filter(|&&target| target != IGNORE));
        if ids.last().is_some_and(|id| tokenizer.stop_tokens().contains(id)) {
            ids.pop();
        }
        if ids.is_empty() {
            return Err(Error::Training(format!("{origin}: there is no text, and so no prompt")));
        }
        let text = tokenizer.decode(&ids, true)?;
        Ok(Prompt { ids, text, expected: String::new(), origin: origin.clone() })
    };
    batch.spans.iter().zip(&batch.origins).map(prompt).collect()
}

/// An answer that was drawn, and what it is worth.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The tokens, and how it ended.
    pub sampled: Sampled,
    /// Its text, without special tokens.
    pub text: String,
    /// What it is worth.
    pub reward: f64,
    /// How much more that is than its group's mean, see [`PolicyLoss::advantages`]; 0 in [`Rollout::drawn`].
    pub advantage: f64,
}

impl Answer {
    /// Whether it was cut off before its end.
    pub fn is_truncated(&self) -> bool {
        self.sampled.end != End::Stop
    }
}

/// The answers to the prompts of a micro-batch, in groups of as many to each.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Prompts with answers, of which the answers are trained: a row for each prompt, in which the answers to it are spans, each with
    /// the prompt before it.
    pub batch: Batch,
    /// The answers, in the order of the spans.
    pub answers: Vec<Answer>,
    /// The log-probability of each position's target when it was drawn, `[rows * len]`; 0 where none is trained.
    pub(super) old: Vec<f64>,
    pub(super) samples: usize,
}

impl Rollout {
    /// Of prompts and the answers to each, as many to every one, with what `reward` says that these are worth.
    ///
    /// # Errors
    /// Those of `reward`, and of decoding.
    pub fn new(
        prompts: &[Prompt],
        groups: Vec<Vec<Sampled>>,
        tokenizer: &Tokenizer,
        loss: &PolicyLoss,
        reward: impl FnMut(&Prompt, &str) -> Result<f64>,
    ) -> Result<Self> {
        let mut rollout = Self::drawn(prompts, groups, tokenizer, reward)?;
        let rewards: Vec<f64> = rollout.answers.iter().map(|answer| answer.reward).collect();
        let advantages = loss.advantages(&rewards, rollout.samples);
        rollout.answers.iter_mut().zip(advantages).for_each(|(answer, advantage)| answer.advantage = advantage);
        Ok(rollout)
    }

    /// The same without advantages, for a method that has one for each token.
    ///
    /// # Errors
    /// As [`Rollout::new`].
    pub fn drawn(
        prompts: &[Prompt],
        groups: Vec<Vec<Sampled>>,
        tokenizer: &Tokenizer,
        mut reward: impl FnMut(&Prompt, &str) -> Result<f64>,
    ) -> Result<Self> {
        let samples = groups.first().map_or(0, Vec::len);
        let mut answers = Vec::with_capacity(prompts.len() * samples);
        for (prompt, group) in prompts.iter().zip(groups) {
            for sampled in group {
                let text = tokenizer.decode(&sampled.ids, true)?;
                let reward = reward(prompt, &text)?;
                answers.push(Answer { sampled, text, reward, advantage: 0.0 });
            }
        }
        let drawn: Vec<&Sampled> = answers.iter().map(|answer| &answer.sampled).collect();
        let (batch, old) = joined(prompts, &drawn, samples);
        Ok(Self { batch, answers, old, samples })
    }

    /// What the answers have together, with those from which `loss` learns nothing left out of the tokens.
    pub fn totals(&self, loss: &PolicyLoss, longest: usize) -> Totals {
        let counted = self.answers.iter().filter(|answer| !(loss.masks_truncated() && answer.is_truncated()));
        let tokens = counted.map(|answer| answer.sampled.ids.len()).sum();
        Totals { answers: self.answers.len(), tokens, longest }
    }

    /// Makes sure that every ratio is 1: the model has not changed since the answers were drawn, and `log_probs` are its own,
    /// `[rows * len]`. On the processor they must agree to the last bit; a card's kernels for one new token round otherwise than
    /// those for many, so there what training computes is taken from here on.
    ///
    /// # Errors
    /// Log-probabilities that differ: generation and training would not be of the same model.
    pub fn check_on_policy(&mut self, log_probs: &[f64], is_on_card: bool) -> Result<()> {
        let most = if is_on_card { ON_CARDS } else { 0.0 };
        // What is no number is told as such later.
        let differ = |(now, old): &(&f64, &f64)| (*now - *old).abs() > most;
        if let Some((now, old)) = log_probs.iter().zip(&self.old).find(differ) {
            return Err(Error::Training(format!(
                "a token was drawn with the log-probability {old}, and training finds {now}: generation and training do not \
                 compute the same, which is a bug; nothing was learnt from this step"
            )));
        }
        self.old.copy_from_slice(log_probs);
        Ok(())
    }

    /// What is minimized, with the model's `log_probs` and those of its reference, `[rows * len]` each, the latter empty where there
    /// is none. What is to be logged is added to `seen`.
    pub fn objective(
        &self,
        loss: &PolicyLoss,
        log_probs: &[f64],
        reference: &[f64],
        (totals, kl_beta): (Totals, f64),
        seen: &mut PolicyMetrics,
    ) -> Objective {
        let mut objective = Objective { value: 0.0, gradient: vec![0.0; log_probs.len()] };
        for (span, answer) in self.batch.spans.iter().zip(&self.answers) {
            if loss.masks_truncated() && answer.is_truncated() {
                continue;
            }
            let end = self.batch.positions_of(span).end;
            let at = end - answer.sampled.ids.len()..end;
            let drawn = Drawn {
                log_probs: &log_probs[at.clone()],
                old: &self.old[at.clone()],
                reference: reference.get(at.clone()).unwrap_or_default(),
                advantage: answer.advantage,
            };
            let AnswerLoss { loss, slopes, divergence, clipped } = loss.of(&drawn, totals, kl_beta);
            objective.value += loss;
            objective.gradient[at].copy_from_slice(&slopes);
            seen.divergence += divergence;
            seen.compared += drawn.reference.len();
            seen.clipped += clipped;
            seen.trained += slopes.len();
        }
        objective
    }
}

/// On a card, log-probabilities of generation and training may be so far apart, in nats.
const ON_CARDS: f64 = 0.5;

/// Prompts with the answers to each, as many to every one: a row for each prompt, in which the answers to it are spans, each with the
/// prompt before it. The answers alone are trained.
pub(super) fn answered(prompts: &[Prompt], groups: &[Vec<Sampled>]) -> Batch {
    let samples = groups.first().map_or(0, Vec::len);
    joined(prompts, &groups.iter().flatten().collect::<Vec<_>>(), samples).0
}

/// The same, and the answers' log-probabilities at their positions.
fn joined(prompts: &[Prompt], answers: &[&Sampled], samples: usize) -> (Batch, Vec<f64>) {
    if prompts.is_empty() {
        // Of a process whose micro-batch is none.
        return (Batch::idle(), vec![0.0]);
    }
    // The last token of an answer is predicted and not read.
    let len_of = |i: usize, answer: &Sampled| prompts[i / samples.max(1)].ids.len() + answer.ids.len() - 1;
    let lens: Vec<usize> = answers.iter().enumerate().map(|(i, answer)| len_of(i, answer)).collect();
    let len = lens.chunks(samples.max(1)).map(|row| row.iter().sum::<usize>()).max().unwrap_or(0);
    let rows = prompts.len();
    let mut batch = Batch {
        rows,
        len,
        input_ids: vec![0; rows * len],
        targets: vec![IGNORE; rows * len],
        positions: vec![0; rows * len],
        spans: Vec::with_capacity(answers.len()),
        origins: Vec::with_capacity(answers.len()),
        labels: Vec::new(),
    };
    let mut old = vec![0.0; rows * len];
    for (i, (answer, &of_answer)) in answers.iter().zip(&lens).enumerate() {
        let (row, prompt) = (i / samples.max(1), &prompts[i / samples.max(1)]);
        let start = lens[row * samples..i].iter().sum::<usize>();
        let span = Span { row, start, len: of_answer };
        let at = batch.positions_of(&span);
        let ids = prompt.ids.iter().chain(&answer.ids);
        batch.input_ids[at.clone()].iter_mut().zip(ids).for_each(|(to, id)| *to = *id);
        batch.positions[at.clone()].iter_mut().zip(0..).for_each(|(to, position)| *to = position);
        let of_tokens = at.end - answer.ids.len()..at.end;
        batch.targets[of_tokens.clone()].copy_from_slice(&answer.ids);
        old[of_tokens].copy_from_slice(&answer.log_probs);
        batch.spans.push(span);
        batch.origins.push(prompt.origin.clone());
    }
    (batch, old)
}

/// Sums over answers that were drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct OfAnswers {
    answers: usize,
    reward: f64,
    pub(super) tokens: usize,
    truncated: usize,
}

impl OfAnswers {
    pub(super) fn add(&mut self, answers: &[Answer]) {
        for answer in answers {
            self.answers += 1;
            self.reward += answer.reward;
            self.tokens += answer.sampled.ids.len();
            self.truncated += usize::from(answer.is_truncated());
        }
    }

    /// Those of all processes of a group together.
    pub(super) fn of_all(self, group: &Group) -> Result<Self> {
        let counts = [self.answers, self.tokens, self.truncated].map(|count| count as u64).to_vec();
        let counts = group.all_reduce("how many answers were seen", counts).wait()?;
        let reward = group.all_reduce("what answers are worth", vec![self.reward]).wait()?.into_iter().sum();
        let count = |i: usize| counts[i] as usize;
        Ok(Self { answers: count(0), reward, tokens: count(1), truncated: count(2) })
    }

    /// A sum over answers, as a mean.
    pub(super) fn mean(&self, sum: f64) -> f64 {
        sum / self.answers.max(1) as f64
    }

    pub(super) fn reward(&self) -> f64 {
        self.mean(self.reward)
    }

    /// The mean reward, the mean length, and the share of answers that were cut off, under TRL's names.
    pub(super) fn logged(&self) -> [Extra; 3] {
        [
            Extra::shown("reward", self.reward()),
            Extra::new("completions/mean_length", self.mean(self.tokens as f64)),
            Extra::new("completions/clipped_ratio", self.mean(self.truncated as f64)),
        ]
    }
}

/// Sums over answers, of which means are logged under TRL's names.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PolicyMetrics {
    answers: OfAnswers,
    groups: usize,
    deviation: f64,
    alike: usize,
    divergence: f64,
    /// Tokens of which the reference has said something.
    compared: usize,
    clipped: usize,
    /// Tokens that were trained.
    trained: usize,
}

impl PolicyMetrics {
    /// Adds the answers of a micro-batch.
    pub fn add(&mut self, rollout: &Rollout) {
        self.answers.add(&rollout.answers);
        for group in rollout.answers.chunks(rollout.samples.max(1)) {
            let mean = group.iter().map(|answer| answer.reward).sum::<f64>() / group.len() as f64;
            let squares: f64 = group.iter().map(|answer| (answer.reward - mean).powi(2)).sum();
            self.groups += 1;
            self.deviation += (squares / group.len().saturating_sub(1).max(1) as f64).sqrt();
            self.alike += usize::from(squares == 0.0);
        }
    }

    /// Those of all processes of a group together.
    ///
    /// # Errors
    /// Another process that is gone.
    pub fn of_all(self, group: &Group) -> Result<Self> {
        let counts = [self.groups, self.alike, self.compared, self.clipped, self.trained];
        let counts = counts.map(|count| count as u64).to_vec();
        let counts = group.all_reduce("how many groups and tokens were seen", counts).wait()?;
        let sums = group.all_reduce("what was seen of answers", vec![self.deviation, self.divergence]).wait()?;
        let count = |i: usize| counts[i] as usize;
        Ok(Self {
            answers: self.answers.of_all(group)?,
            groups: count(0),
            deviation: sums[0],
            alike: count(1),
            divergence: sums[1],
            compared: count(2),
            clipped: count(3),
            trained: count(4),
        })
    }

    /// The mean reward of an answer.
    pub fn reward(&self) -> f64 {
        self.answers.reward()
    }

    /// The mean reward; the mean length of an answer, and the share of those that were cut off; the reward's standard deviation in a
    /// group and the share of groups in which all answers are worth the same; the divergence from the reference, if there is one, and the
    /// share of ratios that were clipped, over tokens that were trained.
    pub fn logged(&self) -> Vec<Extra> {
        let of = |sum: f64, count: usize| sum / count.max(1) as f64;
        let mut logged = Vec::from(self.answers.logged());
        logged.extend([
            Extra::new("reward_std", of(self.deviation, self.groups)),
            Extra::new("frac_reward_zero_std", of(self.alike as f64, self.groups)),
        ]);
        if self.compared > 0 {
            logged.push(Extra::new("kl", of(self.divergence, self.compared)));
        }
        // Nothing is learnt from the answers of a validation.
        if self.trained > 0 {
            logged.push(Extra::new("clip_ratio", of(self.clipped as f64, self.trained)));
        }
        logged
    }

    /// The tokens of all answers.
    pub fn tokens(&self) -> usize {
        self.answers.tokens
    }
}
