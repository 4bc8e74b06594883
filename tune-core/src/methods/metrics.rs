//! What is logged of preferences, under torchtune's names.

use super::{Pair, PairLoss};
use crate::Result;
use crate::distributed::Group;
use crate::metrics::{Extra, VAL_LOSS};

/// Sums over pairs of answers, of which means are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PreferenceMetrics {
    pairs: usize,
    rewards: [f64; 2],
    log_probs: [f64; 2],
    right: usize,
    loss: f64,
}

impl PreferenceMetrics {
    /// The names of what validation finds that says which model is better.
    pub const VALIDATED: &'static [&'static str] = &[VAL_LOSS, "val_rewards/accuracies", "val_rewards/margins"];

    /// Adds the pairs of a micro-batch, with what their loss made of them.
    pub fn add(&mut self, pairs: &[Pair], losses: &[PairLoss]) {
        for (pair, PairLoss { loss, rewards, .. }) in pairs.iter().zip(losses) {
            self.pairs += 1;
            self.loss += loss;
            self.right += usize::from(rewards[0] > rewards[1]);
            for (side, answer) in [pair.chosen, pair.rejected].into_iter().enumerate() {
                self.rewards[side] += rewards[side];
                self.log_probs[side] += answer.log_prob;
            }
        }
    }

    /// Those of all processes of a group together.
    ///
    /// # Errors
    /// Another process is gone.
    pub fn of_all(self, group: &Group) -> Result<Self> {
        let [chosen, rejected] = [0, 1].map(|side| (self.rewards[side], self.log_probs[side]));
        let mine = vec![self.pairs as f64, chosen.0, rejected.0, chosen.1, rejected.1, self.right as f64, self.loss];
        // Counts are exact as f64.
        match group.all_reduce("what was seen of pairs", mine).wait()?[..] {
            [pairs, of_chosen, of_rejected, chosen, rejected, right, loss] => Ok(Self {
                pairs: pairs as usize,
                rewards: [of_chosen, of_rejected],
                log_probs: [chosen, rejected],
                right: right as usize,
                loss,
            }),
            _ => Ok(self),
        }
    }

    /// The mean loss of a pair.
    pub fn loss(&self) -> f64 {
        self.mean(self.loss)
    }

    /// Means over pairs: the rewards that the model implies, the share of pairs whose preferred answer has the larger one,
    /// by how much, and the log-probabilities of the answers.
    pub fn logged(&self) -> Vec<Extra> {
        let [chosen, rejected] = self.rewards.map(|sum| self.mean(sum));
        let log_probs = self.log_probs.map(|sum| self.mean(sum));
        vec![
            Extra::new("rewards/chosen", chosen),
            Extra::new("rewards/rejected", rejected),
            Extra::shown("rewards/accuracies", self.mean(self.right as f64)),
            Extra::shown("rewards/margins", chosen - rejected),
            Extra::new("log_probs/chosen", log_probs[0]),
            Extra::new("log_probs/rejected", log_probs[1]),
        ]
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.pairs.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::Seen;

    #[test]
    fn means_are_logged_under_torchtunes_names() {
        let pair = |chosen, rejected| {
            let seen = |log_prob| Seen { log_prob, reference: 0.0, tokens: 1 };
            Pair { chosen: seen(chosen), rejected: seen(rejected) }
        };
        let loss = |loss, rewards| PairLoss { loss, slopes: [0.0; 2], rewards };
        let mut metrics = PreferenceMetrics::default();
        metrics.add(&[pair(-1.0, -2.0)], &[loss(0.5, [0.25, 0.125])]);
        // Equal rewards are not right.
        metrics.add(&[pair(-3.0, -8.0)], &[loss(1.0, [0.5, 0.5])]);
        let logged: Vec<(&str, f64)> = metrics.logged().iter().map(|extra| (extra.name, extra.value)).collect();
        let expected = [
            ("rewards/chosen", 0.375),
            ("rewards/rejected", 0.3125),
            ("rewards/accuracies", 0.5),
            ("rewards/margins", 0.0625),
            ("log_probs/chosen", -2.0),
            ("log_probs/rejected", -5.0),
        ];
        assert_eq!((logged.as_slice(), metrics.loss()), (expected.as_slice(), 0.75));
    }
}
