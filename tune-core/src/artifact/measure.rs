//! How far two models are from each other in what they say.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tune_config::files;

use crate::data::{Batch, IGNORE, Span};
use crate::models::Decoder;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, engine};

/// Questions that no recipe trains on.
const HELD_OUT: [&str; 8] = [
    "What is the capital of France?",
    "Write a haiku about the sea in winter.",
    "How do I sort a list of numbers in Python without changing it?",
    "Translate into German: The train leaves at seven o'clock.",
    "If I have three apples and eat one, how many are left? Explain.",
    "Name two differences between a frog and a toad.",
    "Summarize in one sentence why the sky is blue.",
    "Liste trois fruits qui commencent par la lettre p.",
];

/// No file of prompts is longer.
const LARGEST: u64 = 16 << 20;

/// Positions at the end of a prompt at which logits are compared.
const LAST: usize = 24;

/// Prompts as a model meets them.
#[derive(Debug, Clone)]
pub struct Prompts(Vec<Vec<u32>>);

impl Prompts {
    /// Questions that no recipe trains on, in the model's chat template if it has one; cut to what a model of `longest`
    /// positions takes.
    ///
    /// # Errors
    /// The tokenizer cannot encode them.
    pub fn held_out(tokenizer: &Tokenizer, longest: usize) -> Result<Self> {
        Self::of(&HELD_OUT, tokenizer, longest)
    }

    /// These texts in place of the held-out questions.
    ///
    /// # Errors
    /// As [`Prompts::held_out`]; and where there is none.
    pub fn of(texts: &[impl AsRef<str>], tokenizer: &Tokenizer, longest: usize) -> Result<Self> {
        let mut prompts = Vec::new();
        for text in texts {
            let text = text.as_ref();
            // A template that fails without a system message, say, is no reason not to look.
            let ids = tokenizer.prompt(text, None, None).or_else(|_| tokenizer.prompt(text, None, Some(false)))?;
            prompts.push(ids[..ids.len().min(longest.saturating_sub(1)).max(1)].to_vec());
        }
        match prompts.is_empty() {
            true => Err(Error::setup("there are no prompts to compare the models on")),
            false => Ok(Self(prompts)),
        }
    }

    /// Those of a file, a line each; the held-out questions where there is none.
    ///
    /// # Errors
    /// A file that cannot be read, is no text or holds no prompt; as [`Prompts::held_out`].
    pub fn read(file: Option<&Path>, tokenizer: &Tokenizer, longest: usize) -> Result<Self> {
        let Some(file) = file else { return Self::held_out(tokenizer, longest) };
        let bytes = files::read(file, LARGEST).map_err(Error::io("read", file))?;
        let text = String::from_utf8(bytes).map_err(|_| Error::file(file, "is not UTF-8 text"))?;
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        match lines.is_empty() {
            true => Err(Error::file(file, "holds no prompt; a line each was expected")),
            false => Self::of(&lines, tokenizer, longest),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tokens of each.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u32]> {
        self.0.iter().map(Vec::as_slice)
    }
}

/// What a model says at the last positions of prompts, `[vocab]` for each.
#[derive(Debug)]
pub(super) struct Said(Vec<Vec<f32>>);

impl Said {
    pub(super) fn by(model: &Decoder, prompts: &Prompts) -> Result<Self> {
        let mut said = Vec::new();
        for ids in prompts.iter() {
            let batch = Batch {
                rows: 1,
                len: ids.len(),
                input_ids: ids.to_vec(),
                targets: vec![IGNORE; ids.len()],
                positions: (0..ids.len() as u32).collect(),
                spans: vec![Span { row: 0, start: 0, len: ids.len() }],
                origins: vec!["a prompt".into()],
                labels: Vec::new(),
            };
            let logits = engine::logits(model, &batch)?.squeeze(0)?.to_vec2::<f32>()?;
            said.extend(logits.into_iter().skip(ids.len().saturating_sub(LAST)));
        }
        Ok(Self(said))
    }

    pub(super) fn positions(&self) -> usize {
        self.0.len()
    }

    /// Whether all of it are numbers.
    pub(super) fn is_finite(&self) -> bool {
        self.0.iter().flatten().all(|logit| logit.is_finite())
    }

    /// How far `other` is from this.
    pub(super) fn distance(&self, other: &Self) -> Distance {
        let mut distance = Distance { largest: 0.0, divergence: 0.0, same_first: 0.0 };
        for (ours, theirs) in self.0.iter().zip(&other.0) {
            for (a, b) in ours.iter().zip(theirs) {
                distance.largest = distance.largest.max(f64::from((a - b).abs()));
            }
            distance.divergence += divergence(ours, theirs);
            distance.same_first += f64::from(u8::from(first(ours) == first(theirs)));
        }
        let count = self.0.len().max(1) as f64;
        distance.divergence /= count;
        distance.same_first /= count;
        distance
    }
}

/// How far what one model says is from what another does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// The largest difference of two logits.
    pub largest: f64,
    /// The mean of the Kullback-Leibler divergences of the next token's probabilities, in nats.
    pub divergence: f64,
    /// The share of positions at which both find the same token likeliest.
    pub same_first: f64,
}

fn first(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)))
}

/// `Σ p (ln p − ln q)` of the probabilities that logits stand for.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| {
        let largest = logits.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
        largest + logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum::<f64>().ln()
    };
    let (of_p, of_q) = (log_sum(p), log_sum(q));
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let p = f64::from(p) - of_p;
        p.exp() * (p - (f64::from(q) - of_q))
    });
    terms.sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_what_they_are_called() {
        let one = Said(vec![vec![0.0, f32::ln(3.0)], vec![1.0, 0.0]]);
        assert_eq!(one.distance(&one), Distance { largest: 0.0, divergence: 0.0, same_first: 1.0 });
        // A shift of all logits changes no probability.
        let other = Said(vec![vec![2.0, 2.0], vec![2.0, 1.0]]);
        let found = one.distance(&other);
        // From (1/4, 3/4) to (1/2, 1/2) at one of two positions.
        let expected = (0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln()) / 2.0;
        assert!((found.divergence - expected).abs() < 1e-6, "{found:?}");
        assert!((found.largest - 2.0).abs() < 1e-6 && found.same_first == 0.5, "{found:?}");
        assert!(!Said(vec![vec![f32::NAN]]).is_finite());
    }
}
