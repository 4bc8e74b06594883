//! What a model makes of items.

use std::collections::BTreeMap;

use super::item::Judge;
use super::{Item, Program};
use crate::data::{Batch, IGNORE, Span};
use crate::generate::{Kernels, Sampler, StopOptions, generate_many};
use crate::models::Decoder;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, engine};

/// A part of a metric that one item gives: its share is the sum of the first over all items by the sum of the second.
pub type Part = (f64, f64);

/// What a model made of an item.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// Its answer, or the choice that it finds likeliest; empty where it only predicted a text.
    pub said: String,
    /// What is to be said of the verdict.
    pub why: String,
    /// What the item gives to each metric, by the metric's name.
    pub parts: BTreeMap<&'static str, Part>,
    /// Of each choice, the log-probability, in nats.
    pub log_likelihoods: Vec<f64>,
}

/// How a model is asked.
#[derive(Debug, Clone)]
pub struct Asking {
    /// What stands before the conversation.
    pub system: Option<String>,
    /// Whether prompts are rendered with the chat template; by default, if there is one.
    pub chat: Option<bool>,
    /// The most tokens of an answer: a longer one is cut off.
    pub max_new_tokens: usize,
    /// How many tokens are computed at a time.
    pub tokens: usize,
}

/// What a model makes of items, in their order: log-likelihoods, many in a row of tokens, and greedy answers, many at a time.
/// `program` judges answers where items are to be judged by one.
///
/// # Errors
/// An item that is too long for the model (it is named), a program that fails.
pub fn measure(
    model: &Decoder,
    tokenizer: &Tokenizer,
    items: &[Item],
    asking: &Asking,
    mut program: Option<&mut Program>,
) -> Result<Vec<Outcome>> {
    let prepared = Prepared::new(tokenizer, items, asking, model.config.max_position_embeddings)?;
    let (mut outcomes, answers) = prepared.ask(model, tokenizer, items, &|| Ok(()))?;
    for (i, answer) in answers {
        judge(&items[i], answer.trim(), program.as_deref_mut(), &mut outcomes[i])?;
    }
    Ok(outcomes)
}

/// The number of an item, and what the model answers to it.
pub(super) type Answer = (usize, String);

/// Items as the tokens that a model meets.
pub(super) struct Prepared {
    pieces: Vec<Piece>,
    /// The prompts of those that are to be answered, with the numbers of their items.
    questions: Vec<(usize, Vec<u32>)>,
    max_new_tokens: usize,
    tokens: usize,
}

impl Prepared {
    /// For a model that reads up to `longest` tokens.
    ///
    /// # Errors
    /// An item that is too long (it is named), or that the chat template refuses.
    pub(super) fn new(tokenizer: &Tokenizer, items: &[Item], asking: &Asking, longest: usize) -> Result<Self> {
        let (mut pieces, mut questions) = (Vec::new(), Vec::new());
        for (i, item) in items.iter().enumerate() {
            match &item.judge {
                Judge::Perplexity => {
                    pieces.extend(windows(i, &item.prompt(tokenizer, None, None)?, tokenizer, longest));
                }
                Judge::Choice { choices, .. } => {
                    for (n, choice) in choices.iter().enumerate() {
                        pieces.push(continuation(i, n, item, choice, tokenizer, asking)?);
                    }
                }
                judge => {
                    let prompt = item.prompt(tokenizer, asking.system.as_deref(), asking.chat)?;
                    if let Judge::Exact(answers) = judge
                        && !answers[0].is_empty()
                    {
                        pieces.push(continuation(i, 0, item, &answers[0], tokenizer, asking)?);
                    }
                    questions.push((i, prompt));
                }
            }
        }
        if let Some(piece) = pieces.iter().find(|piece| piece.ids.len() > longest + 1) {
            let what = format!("with its answer it has {} tokens; the model reads at most {longest}", piece.ids.len());
            return Err(items[piece.item].error(&Error::setup(what)));
        }
        Ok(Self { pieces, questions, max_new_tokens: asking.max_new_tokens, tokens: asking.tokens })
    }

    /// What log-likelihoods say of each item, and the answers, which are still to be judged, with the numbers of their items.
    /// `go_on` is asked every now and then; its error ends it.
    pub(super) fn ask(
        &self,
        model: &Decoder,
        tokenizer: &Tokenizer,
        items: &[Item],
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<(Vec<Outcome>, Vec<Answer>)> {
        let mut of_items: Vec<Vec<Likelihood>> = vec![Vec::new(); items.len()];
        let mut pieces = self.pieces.iter();
        for row in self.rows() {
            go_on()?;
            let batch = packed(row);
            let log_probs = engine::log_probs(model, &batch)?;
            for (span, piece) in batch.spans.iter().zip(&mut pieces) {
                let sum = log_probs[batch.positions_of(span)].iter().sum();
                of_items[piece.item].push(Likelihood { sum, tokens: batch.trained_tokens_of(span) });
            }
        }
        let outcomes = items.iter().zip(&of_items).map(|(item, found)| likely(item, found)).collect();
        let stop_tokens = tokenizer.stop_tokens().iter().copied().collect();
        let stop = StopOptions { max_new_tokens: self.max_new_tokens, stop_tokens };
        let mut answers = Vec::with_capacity(self.questions.len());
        for some in self.together() {
            go_on()?;
            let prompts: Vec<&[u32]> = some.iter().map(|(_, prompt)| &prompt[..]).collect();
            let mut samplers: Vec<Sampler> = some.iter().map(|_| Sampler::greedy()).collect();
            let given = generate_many(model, &prompts, &mut samplers, &stop, Kernels::Fast, |_, _| Ok(()))?;
            for ((i, _), ids) in some.iter().zip(given) {
                answers.push((*i, tokenizer.decode(&ids, true)?));
            }
        }
        Ok((outcomes, answers))
    }

    /// The pieces, about `tokens` tokens at a time.
    fn rows(&self) -> impl Iterator<Item = &[Piece]> {
        let mut rest = &self.pieces[..];
        std::iter::from_fn(move || {
            let mut filled = 0;
            let fitting = rest.iter().take_while(|piece| {
                filled += piece.ids.len() - 1;
                filled <= self.tokens
            });
            let (some, others) = rest.split_at_checked(fitting.count().max(1))?;
            rest = others;
            Some(some)
        })
    }

    /// The questions, some at a time.
    fn together(&self) -> impl Iterator<Item = &[(usize, Vec<u32>)]> {
        let mut rest = &self.questions[..];
        std::iter::from_fn(move || {
            let count = super::together(rest.iter().map(|(_, prompt)| prompt.len()));
            let (some, others) = rest.split_at_checked(count)?;
            rest = others;
            Some(some)
        })
    }

    /// What of it takes most memory: the longest row of texts, and the lengths of the prompts that are answered together.
    pub(super) fn demanding(&self) -> (Option<Batch>, Option<Answers>) {
        let row = self.rows().map(packed).max_by_key(|batch| batch.len);
        let answers = |some: &[(usize, Vec<u32>)]| Answers {
            prompts: some.iter().map(|(_, prompt)| prompt.len()).collect(),
            max_new_tokens: self.max_new_tokens,
        };
        (row, self.together().map(answers).max_by_key(Answers::tokens))
    }
}

/// Prompts that are answered at a time, by their lengths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The tokens of each prompt.
    pub prompts: Vec<usize>,
    /// The most tokens of an answer: a longer one is cut off.
    pub max_new_tokens: usize,
}

impl Answers {
    /// The tokens that there is to be memory for.
    pub fn tokens(&self) -> usize {
        self.prompts.iter().map(|len| len + self.max_new_tokens).sum()
    }
}

/// Tokens of which some are predicted from those before them.
struct Piece {
    item: usize,
    ids: Vec<u32>,
    /// The first that is predicted.
    from: usize,
}

/// The log-probability of a piece's predicted tokens, in nats, and how many they are.
#[derive(Debug, Clone, Copy)]
struct Likelihood {
    sum: f64,
    tokens: usize,
}

/// A text in stretches that the model can read. Each token is predicted once, from as many before it as one stretch has; the
/// first from the token that begins texts, or else the one that ends them.
fn windows(item: usize, ids: &[u32], tokenizer: &Tokenizer, longest: usize) -> Vec<Piece> {
    let begin = tokenizer.bos().or(tokenizer.eos()).filter(|begin| ids.first() != Some(begin));
    let all: Vec<u32> = begin.into_iter().chain(ids.iter().copied()).collect();
    let last = all.len().saturating_sub(1);
    let piece = |start: usize| {
        // The last token of a stretch is predicted, not read.
        let end = (start + longest).min(last);
        let ids = all[end.saturating_sub(longest)..=end].to_vec();
        Piece { item, from: ids.len() - (end - start), ids }
    };
    (0..last).step_by(longest.max(1)).map(piece).collect()
}

/// An answer behind what is asked. In a plain text the two are tokenized together, and what is not the prompt's is the
/// answer's; spaces at the prompt's end belong to the answer.
fn continuation(
    i: usize,
    choice: usize,
    item: &Item,
    answer: &str,
    tokenizer: &Tokenizer,
    asking: &Asking,
) -> Result<Piece> {
    let is_plain = asking.chat == Some(false) || tokenizer.chat_template().is_none();
    let prompt = item.prompt(tokenizer, asking.system.as_deref(), asking.chat)?;
    let mut ids = prompt.clone();
    let mut from = prompt.len();
    match (&item.ask, is_plain) {
        (super::item::Ask::Prompt(text), true) => {
            let before = asking.system.as_ref().map_or_else(|| text.clone(), |system| format!("{system}\n{text}"));
            let start = prompt.len() - tokenizer.encode(&before)?.len();
            let trimmed = before.trim_end();
            from = start + tokenizer.encode(trimmed)?.len();
            ids.truncate(start);
            ids.extend(tokenizer.encode(&format!("{before}{answer}"))?);
        }
        _ => ids.extend(tokenizer.encode_continuation(answer)?),
    }
    // Nothing predicts the very first token.
    let from = from.max(1);
    if ids.len() <= from {
        let what = format!("answer {choice} (`{answer}`) adds no token to the prompt");
        return Err(item.error(&Error::setup(what)));
    }
    Ok(Piece { item: i, ids, from })
}

/// Pieces in one row.
fn packed(pieces: &[Piece]) -> Batch {
    let mut batch = Batch {
        rows: 1,
        len: 0,
        input_ids: Vec::new(),
        targets: Vec::new(),
        positions: Vec::new(),
        spans: Vec::new(),
        origins: vec![String::new(); pieces.len()],
        labels: Vec::new(),
    };
    for piece in pieces {
        let len = piece.ids.len() - 1;
        batch.spans.push(Span { row: 0, start: batch.len, len });
        batch.len += len;
        batch.input_ids.extend(&piece.ids[..len]);
        batch.targets.extend((1..=len).map(|at| if at < piece.from { IGNORE } else { piece.ids[at] }));
        batch.positions.extend(0..len as u32);
    }
    batch
}

/// What log-likelihoods say of an item.
fn likely(item: &Item, found: &[Likelihood]) -> Outcome {
    let mut outcome = Outcome::default();
    match &item.judge {
        Judge::Perplexity => {
            let sum: f64 = found.iter().map(|l| l.sum).sum();
            let tokens: usize = found.iter().map(|l| l.tokens).sum();
            outcome.parts.insert(super::PERPLEXITY, (-sum, tokens as f64));
            outcome.parts.insert(super::BITS_PER_BYTE, (-sum, item.shown().len() as f64));
        }
        Judge::Choice { choices, right } => {
            let mut best = |name, score: &dyn Fn(usize) -> f64| {
                let best = (0..choices.len()).fold(0, |best, n| if score(n) > score(best) { n } else { best });
                outcome.parts.insert(name, (f64::from(u8::from(best == *right)), 1.0));
                best
            };
            let raw = best(super::CHOICE, &|n| found[n].sum);
            best(super::CHOICE_PER_TOKEN, &|n| found[n].sum / found[n].tokens as f64);
            best(super::CHOICE_PER_BYTE, &|n| found[n].sum / choices[n].len() as f64);
            outcome.said.clone_from(&choices[raw]);
            outcome.log_likelihoods = found.iter().map(|l| l.sum).collect();
            let all = choices.iter().zip(found).map(|(choice, l)| format!("{choice}: {:.3}", l.sum));
            outcome.why = all.collect::<Vec<_>>().join("\n");
        }
        _ => {
            if let Some(Likelihood { sum, tokens }) = found.first() {
                outcome.parts.insert(super::ANSWER_PERPLEXITY, (-sum, *tokens as f64));
            }
        }
    }
    outcome
}

/// What a judge says of an answer.
pub(super) fn judge(item: &Item, answer: &str, program: Option<&mut Program>, outcome: &mut Outcome) -> Result<()> {
    let (name, score) = match &item.judge {
        Judge::Exact(answers) => (super::EXACT_MATCH, f64::from(u8::from(answers.iter().any(|a| a.trim() == answer)))),
        Judge::Regex(regex) => match regex.is_match(answer) {
            Ok(found) => (super::REGEX, f64::from(u8::from(found))),
            Err(error) => {
                outcome.why = error.to_string();
                (super::REGEX, 0.0)
            }
        },
        Judge::Schema(schema) => {
            let checked = serde_json::from_str(answer).map_err(|error| format!("no JSON: {error}"));
            let checked = checked.and_then(|value| schema.validate(&value).map_err(|error| error.to_string()));
            let score = f64::from(u8::from(checked.is_ok()));
            outcome.why = checked.err().unwrap_or_default();
            (super::JSON_SCHEMA, score)
        }
        Judge::Program => {
            let program = program.ok_or_else(|| Error::setup("there is no program that judges"))?;
            let (score, why) = program.judge(item, answer)?;
            outcome.why = why;
            (super::PROGRAM, score)
        }
        Judge::Perplexity | Judge::Choice { .. } => return Ok(()),
    };
    outcome.parts.insert(name, (score, 1.0));
    answer.clone_into(&mut outcome.said);
    Ok(())
}
