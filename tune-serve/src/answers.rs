//! The answers to a request, as they come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::sync::mpsc::{self, UnboundedReceiver};
use tune_core::generate::{End, Event, Request, Sampler, SamplerOptions, Scored};
use tune_core::tokenizer::Tokenizer;

use crate::engine::{Caller, Job, Update};
use crate::error::Fault;
use crate::server::Server;
use crate::text::{Text, of_token};

/// What is asked for, whether in a completion or in a chat.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// The number of the model.
    pub(crate) model: usize,
    /// The tokens of each prompt.
    pub(crate) prompts: Vec<Vec<u32>>,
    /// Answers to each.
    pub(crate) n: usize,
    pub(crate) max_new_tokens: usize,
    pub(crate) sampling: SamplerOptions,
    pub(crate) seed: u64,
    /// Texts that end an answer.
    pub(crate) stops: Vec<String>,
    /// Whether the model cannot end its answer.
    pub(crate) ignores_end: bool,
    /// The number of likeliest tokens whose log-probabilities are wanted.
    pub(crate) scores: Option<usize>,
    /// Whether those of the prompt are wanted, too.
    pub(crate) scores_prompt: bool,
}

/// How an answer ended, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    Stop,
    Length,
}

/// A part of an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Piece {
    /// Which answer it is of.
    pub(crate) choice: usize,
    pub(crate) text: String,
    /// Its tokens; those of the prompt come first, where they are scored.
    pub(crate) tokens: Vec<Scored>,
    /// How many of these are the prompt's.
    pub(crate) of_prompt: usize,
    /// The token that ended the answer and is no part of it.
    pub(crate) stop: Option<Scored>,
    /// That it is the last one.
    pub(crate) finish: Option<Finish>,
}

struct Choice {
    text: Text,
    /// Tokens whose text has not been given.
    tokens: Vec<Scored>,
    stop: Option<Scored>,
    is_over: Arc<AtomicBool>,
    finished: bool,
}

/// The answers to a request. When they are dropped, nothing more is computed for it.
pub(crate) struct Answers {
    server: Arc<Server>,
    tokenizer: Tokenizer,
    updates: UnboundedReceiver<Update>,
    choices: Vec<Choice>,
    /// Answers that have not ended.
    open: usize,
    ready: VecDeque<Piece>,
    begun: Instant,
    has_begun: bool,
    /// Tokens of the prompts.
    pub(crate) prompt_tokens: usize,
    /// Tokens that were drawn.
    pub(crate) new_tokens: usize,
}

impl Answers {
    /// Puts a request into the queue, and waits until something of an answer is there.
    ///
    /// # Errors
    /// It cannot be answered: there is no room, or no time.
    pub(crate) async fn begin(server: &Arc<Server>, ask: &Ask, begun: Instant) -> Result<Self, Fault> {
        let model = &server.models[ask.model];
        let (reply, updates) = mpsc::unbounded_channel();
        let mut jobs = Vec::new();
        let mut choices = Vec::new();
        for prompt in ask.prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, ask.n)) {
            let choice = jobs.len();
            let is_over = Arc::new(AtomicBool::new(false));
            let stop_tokens = if ask.ignores_end { Vec::new() } else { model.stop_tokens.clone() };
            let request = Request {
                model: ask.model,
                prompt: prompt.clone(),
                // Each answer has a sampler of its own: it does not depend on the others.
                sampler: Sampler::new(ask.sampling, ask.seed.wrapping_add(choice as u64)),
                max_new_tokens: ask.max_new_tokens,
                stop_tokens,
                scores: ask.scores,
                scores_prompt: ask.scores_prompt,
            };
            let caller = Caller {
                choice,
                reply: reply.clone(),
                is_over: Arc::clone(&is_over),
                deadline: begun + server.limits.time,
            };
            jobs.push(Job { request, caller });
            choices.push(Choice {
                text: Text::new(ask.stops.clone()),
                tokens: Vec::new(),
                stop: None,
                is_over,
                finished: false,
            });
        }
        server.queue.submit(jobs)?;
        let prompt_tokens = ask.prompts.iter().map(Vec::len).sum();
        server.metrics.prompt(prompt_tokens);
        let mut answers = Self {
            server: Arc::clone(server),
            tokenizer: model.tokenizer.clone(),
            updates,
            open: choices.len(),
            choices,
            ready: VecDeque::new(),
            begun,
            has_begun: false,
            prompt_tokens,
            new_tokens: 0,
        };
        let first = answers.next().await.transpose()?;
        answers.ready.extend(first);
        Ok(answers)
    }

    /// The next part of an answer; nothing when all have ended.
    pub(crate) async fn next(&mut self) -> Option<Result<Piece, Fault>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// See [`Answers::next`].
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, Fault>>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(piece)));
            }
            if self.open == 0 {
                return Poll::Ready(None);
            }
            let update = ready!(self.updates.poll_recv(context));
            let taken = match update {
                None => Err(Fault::internal("the model cannot be computed any more")),
                Some(Update { choice, what }) => what.and_then(|event| {
                    self.take(choice, event).map_err(|error| Fault::internal(format!("no text can be made: {error}")))
                }),
            };
            if let Err(fault) = taken {
                self.open = 0;
                return Poll::Ready(Some(Err(fault)));
            }
        }
    }

    fn take(&mut self, index: usize, event: Event) -> tune_core::Result<()> {
        if !self.has_begun {
            self.has_begun = true;
            self.server.metrics.first(self.begun.elapsed());
        }
        let choice = &mut self.choices[index];
        if choice.finished {
            return Ok(());
        }
        let mut piece = Piece { choice: index, ..Piece::default() };
        let stopped = match event {
            Event::Read(scored) => {
                piece.of_prompt = scored.len();
                piece.tokens = scored;
                self.ready.push_back(piece);
                return Ok(());
            }
            Event::Token(token) => {
                self.new_tokens += 1;
                self.server.metrics.token();
                let (text, stopped) = choice.text.push(&self.tokenizer, token.id)?;
                choice.tokens.push(token);
                if stopped {
                    // Tokens of the stop sequence are not shown.
                    let mut left = text.len();
                    choice.tokens.retain(|token| {
                        let is_shown = left > 0;
                        left = left.saturating_sub(of_token(&self.tokenizer, token.id).len());
                        is_shown
                    });
                }
                piece.text = text;
                stopped.then_some(Finish::Stop)
            }
            Event::Stop(token) => {
                choice.stop = Some(token);
                return Ok(());
            }
            Event::End(end) => {
                piece.stop = choice.stop.take();
                let (text, stopped) = choice.text.rest(&self.tokenizer)?;
                piece.text = text;
                Some(if stopped || end == End::Stop { Finish::Stop } else { Finish::Length })
            }
        };
        piece.finish = stopped;
        if piece.text.is_empty() && stopped.is_none() {
            return Ok(());
        }
        piece.tokens = std::mem::take(&mut choice.tokens);
        if stopped.is_some() {
            choice.finished = true;
            choice.is_over.store(true, Ordering::Relaxed);
            self.open -= 1;
            if self.open == 0 {
                self.server.metrics.whole(self.begun.elapsed());
            }
        }
        self.ready.push_back(piece);
        Ok(())
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.open > 0 {
            self.server.metrics.hung_up();
        }
    }
}
