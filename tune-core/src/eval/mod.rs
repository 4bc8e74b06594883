//! Measuring what a model learned: questions that are asked while it trains ([`ExactMatch`]), and [`Item`]s of many kinds
//! that one model, or two side by side, are measured on.
//!
//! What an item's part of a metric is does not depend on the other items, nor on which process measures it.

mod compare;
mod during;
mod grade;
mod item;
mod measure;
mod page;
pub mod statistics;

use std::path::PathBuf;

use tune_config::Config;

use crate::data::{Question, questions};
use crate::generate::{Kernels, Sampler, StopOptions, generate_many};
use crate::models::Decoder;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, hub};

pub use compare::{Estimate, Resampling, Row, more_is_better, rows, scores, table};
pub use during::{Evaluation, EvaluationConfig, Found, Measuring, SamplesConfig};
pub use grade::Program;
pub use item::Item;
pub use measure::{Answers, Asking, Outcome, Part, measure};
pub use page::{Task, page};

/// The share of answers that are right to the letter, but for white space around them.
pub const EXACT_MATCH: &str = "exact_match";
/// The share of answers in which the pattern is found.
pub const REGEX: &str = "regex";
/// The share of answers that are JSON of the wanted kind.
pub const JSON_SCHEMA: &str = "json_schema";
/// The mean score of a program.
pub const PROGRAM: &str = "program";
/// The share of items whose right choice is the likeliest.
pub const CHOICE: &str = "choice";
/// The same by the mean log-probability of a choice's tokens.
pub const CHOICE_PER_TOKEN: &str = "choice_per_token";
/// The same by the log-probability for each byte of a choice.
pub const CHOICE_PER_BYTE: &str = "choice_per_byte";
/// Perplexity of the right answers' tokens.
pub const ANSWER_PERPLEXITY: &str = "answer_perplexity";
/// Perplexity of the texts' tokens.
pub const PERPLEXITY: &str = "perplexity";
/// Loss of the texts for each of their bytes, in bits.
pub const BITS_PER_BYTE: &str = "bits_per_byte";

/// Held-out questions whose answers must be right to the letter.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct ExactMatchConfig {
    /// JSON Lines with conversations (`messages` with `role` and `content`); the last message is the expected answer.
    pub data_file: PathBuf,
    /// The most tokens of an answer: a longer one is cut off.
    #[config(default = 64, range = 1..)]
    pub max_new_tokens: usize,
}

/// The questions of a file, for one tokenizer.
#[derive(Debug, Clone)]
pub struct ExactMatch {
    questions: Vec<Question>,
    stop: StopOptions,
}

/// One question and what the model said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The last message before the answer.
    pub question: String,
    /// The right answer.
    pub expected: String,
    /// The model's.
    pub given: String,
}

impl Answer {
    /// Whether the answer is right, to the letter.
    pub fn is_right(&self) -> bool {
        self.given == self.expected
    }
}

impl ExactMatch {
    /// Reads the questions and renders them with the chat template.
    ///
    /// # Errors
    /// A file that cannot be read, a tokenizer without a chat template, a line that is no conversation or whose question
    /// the model cannot be asked (it is named).
    pub fn read(config: &ExactMatchConfig, tokenizer: &Tokenizer) -> Result<Self> {
        let path = &*hub::dataset(&config.data_file)?;
        if tokenizer.chat_template().is_none() {
            return Err(Error::setup("exact_match needs a model with a chat template; this one has none"));
        }
        let questions = questions(path, tokenizer)?;
        if questions.is_empty() {
            return Err(Error::file(path, "holds no conversation"));
        }
        let stop_tokens = tokenizer.stop_tokens().iter().copied().collect();
        Ok(Self { questions, stop: StopOptions { max_new_tokens: config.max_new_tokens, stop_tokens } })
    }

    /// The number of questions.
    pub fn len(&self) -> usize {
        self.questions.len()
    }

    /// Whether there is no question.
    pub fn is_empty(&self) -> bool {
        self.questions.is_empty()
    }

    /// The questions that take most memory when they are asked together.
    #[must_use]
    pub fn demanding(&self) -> Option<Answers> {
        let mut rest = &self.questions[..];
        let groups = std::iter::from_fn(|| {
            let count = together(rest.iter().map(|question| question.prompt.len()));
            let (some, others) = rest.split_at_checked(count)?;
            rest = others;
            let prompts = some.iter().map(|question| question.prompt.len()).collect();
            Some(Answers { prompts, max_new_tokens: self.stop.max_new_tokens })
        });
        groups.max_by_key(Answers::tokens)
    }

    /// Asks every question; answers are greedy.
    ///
    /// # Errors
    /// A prompt that is too long for the model.
    pub fn ask(&self, model: &Decoder, tokenizer: &Tokenizer) -> Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(self.questions.len());
        let mut rest = &self.questions[..];
        while !rest.is_empty() {
            let (questions, others) = rest.split_at(together(rest.iter().map(|question| question.prompt.len())));
            let prompts: Vec<&[u32]> = questions.iter().map(|question| &question.prompt[..]).collect();
            let mut samplers: Vec<Sampler> = questions.iter().map(|_| Sampler::greedy()).collect();
            let given = generate_many(model, &prompts, &mut samplers, &self.stop, Kernels::Fast, |_, _| Ok(()))?;
            for (question, ids) in questions.iter().zip(given) {
                let given = tokenizer.decode(&ids, true)?;
                answers.push(Answer { question: question.text.clone(), expected: question.expected.clone(), given });
            }
            rest = others;
        }
        Ok(answers)
    }
}

/// Of prompts of these lengths, how many are asked at a time: some, which together are no longer than a long text.
fn together(lengths: impl Iterator<Item = usize>) -> usize {
    const QUESTIONS: usize = 16;
    const TOKENS: usize = 2048;
    let mut tokens = 0;
    let fitting = lengths.take(QUESTIONS).take_while(|length| {
        tokens += length;
        tokens <= TOKENS
    });
    fitting.count().max(1)
}

/// A few questions under a title, wrong answers first: they say more.
pub fn excerpt(title: &str, answers: &[Answer]) -> String {
    let mut text = format!("\n{title}:");
    let (right, wrong): (Vec<_>, Vec<_>) = answers.iter().partition(|a| a.is_right());
    for answer in wrong.into_iter().chain(right).take(3) {
        let verdict = if answer.is_right() { "right" } else { "wrong" };
        text += &format!("\n  {} -> {} ({verdict}; expected {})", answer.question, answer.given, answer.expected);
    }
    text
}

/// The share of answers that are right, between 0 and 1.
pub fn share_right(answers: &[Answer]) -> f64 {
    answers.iter().filter(|a| a.is_right()).count() as f64 / answers.len().max(1) as f64
}
