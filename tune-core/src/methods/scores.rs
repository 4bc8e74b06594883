//! Losses of models that score sequences: pairs of answers of which one is preferred, and sequences of classes. Each is given with
//! its derivative with respect to each score, for [`engine::minimize_scores`](crate::engine::minimize_scores).

use tune_config::Config;

use super::math::{sigma, softplus};
use crate::Result;
use crate::data::{Batch, IGNORE};
use crate::distributed::Group;
use crate::engine::Objective;
use crate::metrics::{Extra, VAL_LOSS};

/// `-ln sigma(r - r' - margin) + c (r + r')^2`, where `r` is the reward of the preferred answer and `r'` that of the other: the model
/// of Bradley and Terry, with a margin as in Touvron et al. 2023 (<https://arxiv.org/abs/2307.09288>, section 3.2.2), and a pull of
/// rewards to a mean of zero (Eisenstein et al. 2023, <https://arxiv.org/abs/2312.09244>).
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct PairwiseLoss {
    /// By how much the preferred answer's reward is to be the larger one.
    #[config(default = 0.0, range = 0.0..)]
    pub margin: f64,
    /// How much it counts that the two rewards of a pair have a sum of zero; 0.01, say.
    #[config(default = 0.0, range = 0.0..)]
    pub center_rewards_coefficient: f64,
}

/// What a loss makes of the scores of a micro-batch.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreLoss {
    /// The sum over pairs or sequences, and its derivative with respect to each score.
    pub objective: Objective,
    /// What is logged of it.
    pub seen: ScoreMetrics,
}

impl PairwiseLoss {
    /// Whether it is the model of Bradley and Terry and nothing besides.
    pub fn is_plain(&self) -> bool {
        *self == Self { margin: 0.0, center_rewards_coefficient: 0.0 }
    }

    /// Of the rewards of pairs, `[pairs, 2]`, the preferred answer's first.
    pub fn of(&self, rewards: &[f64]) -> ScoreLoss {
        let Self { margin, center_rewards_coefficient: center } = *self;
        let (mut gradient, mut seen) = (Vec::with_capacity(rewards.len()), ScoreMetrics::default());
        for pair in rewards.chunks_exact(2) {
            let (chosen, rejected) = (pair[0], pair[1]);
            let (x, sum) = (chosen - rejected - margin, chosen + rejected);
            seen.loss += softplus(-x) + center * sum * sum;
            gradient.extend([2.0 * center * sum - sigma(-x), 2.0 * center * sum + sigma(-x)]);
            seen.count += 1;
            seen.right += usize::from(chosen > rejected);
            seen.rewards[0] += chosen;
            seen.rewards[1] += rejected;
        }
        ScoreLoss { objective: Objective { value: seen.loss, gradient }, seen }
    }
}

/// The cross-entropy of sequences with their classes, of their scores `[sequences, scores]`. A sequence's class is its target, see
/// [`Sample::scored`](crate::data::Sample::scored).
pub fn classification(batch: &Batch, scores: &[f64]) -> ScoreLoss {
    let classes = batch.spans.iter().flat_map(|span| &batch.targets[batch.positions_of(span)]);
    let classes: Vec<usize> = classes.filter(|&&class| class != IGNORE).map(|&class| class as usize).collect();
    let (mut gradient, mut seen) = (scores.to_vec(), ScoreMetrics { of_classes: true, ..ScoreMetrics::default() });
    let width = scores.len() / classes.len().max(1);
    for (row, &class) in gradient.chunks_exact_mut(width.max(1)).zip(&classes) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let first = row.iter().position(|&score| score == largest);
        let sum: f64 = row.iter().map(|score| (score - largest).exp()).sum();
        seen.loss += largest + sum.ln() - row[class];
        row.iter_mut().for_each(|score| *score = (*score - largest).exp() / sum);
        row[class] -= 1.0;
        seen.count += 1;
        seen.right += usize::from(first == Some(class));
    }
    ScoreLoss { objective: Objective { value: seen.loss, gradient }, seen }
}

/// Sums over pairs or sequences, of which means are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ScoreMetrics {
    count: usize,
    right: usize,
    loss: f64,
    rewards: [f64; 2],
    of_classes: bool,
}

impl ScoreMetrics {
    /// The names of what validation finds of pairs that says which model is better.
    pub const OF_PAIRS: &'static [&'static str] = &[VAL_LOSS, "val_rewards/accuracies", "val_rewards/margins"];
    /// The same of classes.
    pub const OF_CLASSES: &'static [&'static str] = &[VAL_LOSS, "val_accuracy"];

    /// Adds those of another micro-batch.
    pub fn add(&mut self, more: &Self) {
        self.count += more.count;
        self.right += more.right;
        self.loss += more.loss;
        self.rewards.iter_mut().zip(more.rewards).for_each(|(sum, more)| *sum += more);
        self.of_classes |= more.of_classes;
    }

    /// Those of all processes of a group together.
    ///
    /// # Errors
    /// Another process is gone.
    pub fn of_all(self, group: &Group) -> Result<Self> {
        let [chosen, rejected] = self.rewards;
        let of_classes = f64::from(self.of_classes);
        let mine = vec![self.count as f64, self.right as f64, self.loss, chosen, rejected, of_classes];
        // Counts are exact as f64. A process without any rows learns here what is scored.
        match group.all_reduce("what was seen of scores", mine).wait()?[..] {
            [count, right, loss, chosen, rejected, of_classes] => Ok(Self {
                count: count as usize,
                right: right as usize,
                loss,
                rewards: [chosen, rejected],
                of_classes: of_classes > 0.0,
            }),
            _ => Ok(self),
        }
    }

    /// The mean loss of a pair or sequence.
    pub fn loss(&self) -> f64 {
        self.mean(self.loss)
    }

    /// Means. Of pairs: the rewards, the share of pairs whose preferred answer has the larger one, and by how much. Of classes: the share
    /// of sequences whose own class has the largest score.
    pub fn logged(&self) -> Vec<Extra> {
        let right = self.mean(self.right as f64);
        if self.of_classes {
            return vec![Extra::shown("accuracy", right)];
        }
        let [chosen, rejected] = self.rewards.map(|sum| self.mean(sum));
        vec![
            Extra::new("rewards/chosen", chosen),
            Extra::new("rewards/rejected", rejected),
            Extra::shown("rewards/accuracies", right),
            Extra::shown("rewards/margins", chosen - rejected),
        ]
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::data::Span;

    const FIXTURE: &str = include_str!("../../../tests/fixtures/score_losses.json");

    fn numbers(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    }

    fn near(what: &str, ours: &[f64], theirs: &[f64]) {
        assert_eq!(ours.len(), theirs.len(), "{what}");
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{what}: {a} instead of {b}");
        }
    }

    /// One token for each sequence, whose target is its class.
    fn batch(classes: &[f64]) -> Batch {
        let len = classes.len();
        Batch {
            rows: 1,
            len,
            input_ids: vec![0; len],
            targets: classes.iter().map(|&class| class as u32).collect(),
            positions: vec![0; len],
            spans: (0..len).map(|start| Span { row: 0, start, len: 1 }).collect(),
            origins: vec![String::new(); len],
            labels: Vec::new(),
        }
    }

    /// Against PyTorch's own functions and autograd in f64 (`tests/python/make_score_losses.py`).
    #[test]
    fn losses_and_gradients_are_those_of_pytorch() {
        let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
        let cases = fixture.as_array().unwrap();
        assert!(cases.len() >= 6);
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let scores = numbers(&case["scores"]);
            let made = match &case["classes"] {
                Value::Null => PairwiseLoss {
                    margin: case["margin"].as_f64().unwrap(),
                    center_rewards_coefficient: case["center"].as_f64().unwrap(),
                }
                .of(&scores),
                classes => classification(&batch(&numbers(classes)), &scores),
            };
            near(name, &[made.objective.value], &[case["loss"].as_f64().unwrap()]);
            near(name, &made.objective.gradient, &numbers(&case["gradient"]));
            let right = made.seen.logged().into_iter().find(|extra| extra.on_console).unwrap();
            near(name, &[right.value], &[case["accuracy"].as_f64().unwrap()]);
        }
    }

    #[test]
    fn a_micro_batch_of_nothing_has_no_loss() {
        let nothing = classification(&batch(&[]), &[]);
        assert_eq!((nothing.objective.value, nothing.seen.loss()), (0.0, 0.0));
        assert!(PairwiseLoss { margin: 0.0, center_rewards_coefficient: 0.0 }.of(&[]).objective.gradient.is_empty());
    }

    /// A tie is not right of a pair, and of classes it goes to the first, as with argmax.
    #[test]
    fn ties() {
        let right = |made: ScoreLoss| made.seen.right;
        assert_eq!(right(PairwiseLoss { margin: 0.0, center_rewards_coefficient: 0.0 }.of(&[1.0, 1.0])), 0);
        assert_eq!(right(classification(&batch(&[0.0, 1.0]), &[1.0, 1.0, 1.0, 1.0])), 1);
    }
}
