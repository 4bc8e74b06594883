//! Answers that a student draws itself, for its teacher to say what it thinks of them.

use tune_config::Config;

use super::rollout::{answered, prompts};
use crate::Result;
use crate::data::Batch;
use crate::generate::{Sampler, SamplerOptions, StopOptions, sample_groups};
use crate::models::Decoder;
use crate::tokenizer::Tokenizer;

/// On-policy distillation: of some batches the answers are not those of the data but the student's own, drawn by the student as it is, and it
/// learns what its teacher would have said at each of their tokens (generalized knowledge distillation, Agarwal et al. 2024,
/// <https://arxiv.org/abs/2306.13649>).
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct OnPolicyConfig {
    /// The share of batches whose answers the student draws, on average; the others have those of the data.
    #[config(default = 0.5, alias = "lmbda", range = 0.0..=1.0)]
    pub share: f64,
    /// The most tokens of an answer: a longer one is cut off.
    #[config(default = 128, range = 1..)]
    pub max_new_tokens: usize,
    /// The temperature at which answers are drawn: 1 is by the student's own probabilities, and at 0 the likeliest token is taken.
    #[config(default = 1.0, range = 0.0..)]
    pub temperature: f64,
}

impl OnPolicyConfig {
    /// Whether the student draws the answers of a batch with this key, which is as good as random.
    pub fn draws(&self, key: u64) -> bool {
        ((key >> 11) as f64) / ((1u64 << 53) as f64) < self.share
    }

    /// The prompts of a batch, each with an answer that the student draws in the place of the one that the data has; only its tokens are
    /// trained, with the stop token where it ended by one. `key` says where the drawing for a prompt starts, by the prompt's number:
    /// what is drawn depends on nothing else, and on the student. Processes that divide the student draw at the same time, or
    /// [draw along](Self::draw_along).
    ///
    /// # Errors
    /// As [`prompts`] and [`sample_groups`].
    pub fn draw(
        &self,
        student: &Decoder,
        batch: &Batch,
        tokenizer: &Tokenizer,
        key: impl Fn(usize) -> u64,
    ) -> Result<Batch> {
        let prompts = prompts(batch, tokenizer)?;
        let ids: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt.ids[..]).collect();
        let stop_tokens = tokenizer.stop_tokens().iter().copied().collect();
        let stop = StopOptions { max_new_tokens: self.max_new_tokens, stop_tokens };
        let options = SamplerOptions { temperature: self.temperature, top_k: None, top_p: None };
        let groups = sample_groups(student, &ids, 1, &stop, |prompt, _| Sampler::new(options, key(prompt)))?;
        Ok(answered(&prompts, &groups))
    }

    /// What a process does that draws nothing while others draw: where they divide the student, it takes part in gathering its blocks.
    ///
    /// # Errors
    /// Another process that is gone.
    pub fn draw_along(&self, student: &Decoder) -> Result<()> {
        let stop = StopOptions { max_new_tokens: self.max_new_tokens, stop_tokens: Vec::new() };
        sample_groups(student, &[], 1, &stop, |_, _| Sampler::greedy()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::sampling_key;

    #[test]
    fn so_many_batches_are_drawn_as_are_asked_for() {
        for share in [0.0, 0.25, 1.0] {
            let on_policy = OnPolicyConfig { share, max_new_tokens: 1, temperature: 1.0 };
            let keys =
                (0..1000).flat_map(|step| (0..4).map(move |i| sampling_key(7, step, i, (usize::MAX, usize::MAX))));
            let drawn = keys.filter(|&key| on_policy.draws(key)).count();
            assert!((drawn as f64 / 4000.0 - share).abs() < 0.03, "{share}: {drawn} of 4000");
        }
    }
}
