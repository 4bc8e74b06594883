//! Measuring what a model learned.

use std::path::PathBuf;

use rayon::prelude::*;
use serde::Deserialize;
use tune_config::{Config, files};

use crate::generate::{Sampler, StopOptions, generate};
use crate::models::Decoder;
use crate::tokenizer::{Conversation, Message, Tokenizer};
use crate::{Error, Result, hub};

/// The longest file of questions.
const LARGEST: u64 = 256 << 20;

/// Held-out questions whose answers must be right to the letter.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct ExactMatchConfig {
    /// JSON Lines with conversations (`messages` with `role` and `content`); the last message is the expected answer.
    pub data_file: PathBuf,
    /// An answer is cut off after so many tokens.
    #[config(default = 64, range = 1..)]
    pub max_new_tokens: usize,
}

/// One question, ready to be asked.
#[derive(Debug, Clone)]
struct Question {
    text: String,
    prompt: Vec<u32>,
    expected: String,
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

#[derive(Deserialize)]
struct Record {
    messages: Vec<Message>,
}

impl ExactMatch {
    /// Reads the questions and renders them with the chat template.
    ///
    /// # Errors
    /// A file that cannot be read, a tokenizer without a chat template, a line that is no conversation or whose question
    /// the model cannot be asked (it is named).
    pub fn read(config: &ExactMatchConfig, tokenizer: &Tokenizer) -> Result<Self> {
        let path = &*hub::dataset(&config.data_file)?;
        let template = tokenizer
            .chat_template()
            .ok_or_else(|| Error::setup("exact_match needs a model with a chat template; this one has none"))?;
        let text = files::read(path, LARGEST).map_err(Error::io("read", path))?;
        let text = String::from_utf8(text).map_err(|e| Error::file(path, format!("not UTF-8: {e}")))?;
        let mut questions = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let Record { mut messages } =
                serde_json::from_str(line).map_err(|e| Error::line(path, i + 1, e.to_string()))?;
            let answer = messages.pop();
            let [Some(expected), Some(text)] = [answer.as_ref(), messages.last()].map(|m| m.and_then(content)) else {
                return Err(Error::line(
                    path,
                    i + 1,
                    "a conversation needs a question and an answer, each with a `content`",
                ));
            };
            let prompt = template.render(&Conversation::new(messages), true)?;
            let prompt = tokenizer.encode(&prompt).and_then(|ids| tokenizer.check_prompt(&ids).map(|()| ids));
            let prompt = prompt.map_err(|e| Error::line(path, i + 1, e.to_string()))?;
            questions.push(Question { text, prompt, expected });
        }
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

    /// Asks every question; answers are greedy.
    ///
    /// # Errors
    /// A prompt that is too long for the model.
    pub fn ask(&self, model: &Decoder, tokenizer: &Tokenizer) -> Result<Vec<Answer>> {
        let ask = |q: &Question| {
            let ids = generate(model, &q.prompt, &mut Sampler::greedy(), &self.stop, |_| Ok(()))?;
            Ok(Answer { question: q.text.clone(), expected: q.expected.clone(), given: tokenizer.decode(&ids, true)? })
        };
        self.questions.par_iter().map(ask).collect()
    }
}

fn content(message: &Message) -> Option<String> {
    message.get("content")?.as_str().map(str::to_owned)
}

/// The share of answers that are right, between 0 and 1.
pub fn share_right(answers: &[Answer]) -> f64 {
    answers.iter().filter(|a| a.is_right()).count() as f64 / answers.len().max(1) as f64
}
