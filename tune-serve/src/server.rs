//! What all requests share: the models, the limits, the queue.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tune_core::device::choose_seed;
use tune_core::generate::{Continuous, SamplerOptions};
use tune_core::models::ModelSpec;
use tune_core::tokenizer::Tokenizer;

use crate::engine::Queue;
use crate::error::Fault;
use crate::fields::Fields;
use crate::metrics::Metrics;
use crate::tools::Form;

/// A model as clients see it.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) stop_tokens: Vec<u32>,
    /// How it writes calls of tools.
    pub(crate) form: Option<Form>,
}

/// What a client may ask for.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Bytes of a body.
    pub(crate) body: usize,
    /// Tokens of a prompt.
    pub(crate) prompt: usize,
    /// Tokens of an answer.
    pub(crate) answer: usize,
    /// Sequences that are answered at a time.
    pub(crate) sequences: usize,
    /// Tokens of all sequences that there is memory for.
    pub(crate) room: usize,
    /// From a request to the end of its answer.
    pub(crate) time: Duration,
    /// For a client to send a request, and to take a part of an answer.
    pub(crate) patience: Duration,
    /// Connections at a time.
    pub(crate) connections: usize,
}

/// See the [module](self).
pub(crate) struct Server {
    pub(crate) models: Vec<Served>,
    /// What all of them compute.
    pub(crate) spec: ModelSpec,
    pub(crate) limits: Limits,
    pub(crate) queue: Queue,
    pub(crate) metrics: Metrics,
    /// What clients must know.
    pub(crate) key: Option<String>,
    /// When it began, in seconds after 1970.
    pub(crate) since: u64,
    /// Tells the answers of this server from another's.
    nonce: u64,
    answers: AtomicU64,
}

/// What stands at the head of each answer.
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Server {
    pub(crate) fn new(
        models: Vec<Served>,
        spec: ModelSpec,
        limits: Limits,
        most_waiting: usize,
        key: Option<String>,
    ) -> Self {
        Self {
            queue: Queue::new(models.len(), most_waiting),
            models,
            spec,
            limits,
            metrics: Metrics::default(),
            key,
            since: now(),
            nonce: choose_seed(None),
            answers: AtomicU64::new(0),
        }
    }

    pub(crate) fn head(&self, kind: &str, model: usize) -> Head {
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        let id = format!("{kind}-{:016x}{number:08x}", self.nonce);
        Head { id, created: now(), model: self.models[model].name.clone() }
    }

    /// The model of a name, as it is listed.
    pub(crate) fn shown(&self, model: &Served) -> Value {
        json!({
            "id": model.name,
            "object": "model",
            "created": self.since,
            "owned_by": "tune",
            "max_model_len": self.spec.max_position_embeddings.min(self.limits.room),
        })
    }

    /// The number of the model that is asked.
    ///
    /// # Errors
    /// There is no such model.
    pub(crate) fn model(&self, fields: &Fields<'_>) -> Result<usize, Fault> {
        let missing = || Fault::of("model", "missing_parameter", "`model` is missing: which model is asked?");
        self.named(fields.text("model")?.ok_or_else(missing)?)
    }

    /// The number of a model.
    ///
    /// # Errors
    /// There is no such model.
    pub(crate) fn named(&self, name: &str) -> Result<usize, Fault> {
        self.models.iter().position(|model| model.name == name).ok_or_else(|| {
            let names: Vec<String> = self.models.iter().map(|model| format!("`{}`", model.name)).collect();
            let message = format!("there is no model `{name}`; there is {}", names.join(", "));
            Fault { status: axum::http::StatusCode::NOT_FOUND, ..Fault::of("model", "model_not_found", message) }
        })
    }

    /// How tokens are drawn; where nothing is said of it, as at OpenAI.
    ///
    /// # Errors
    /// A value that is not taken.
    pub(crate) fn sampling(&self, fields: &Fields<'_>) -> Result<SamplerOptions, Fault> {
        let temperature = fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0);
        let top_p = fields.number("top_p", 0.0, 1.0)?.filter(|&p| p < 1.0);
        Ok(SamplerOptions { temperature, top_k: fields.count("top_k", 1, usize::MAX)?, top_p })
    }

    /// Where drawing starts.
    ///
    /// # Errors
    /// A value that is not taken.
    pub(crate) fn seed(&self, fields: &Fields<'_>) -> Result<u64, Fault> {
        Ok(choose_seed(fields.seed("seed")?))
    }

    /// The new tokens that are asked for.
    ///
    /// # Errors
    /// More than there may be.
    pub(crate) fn max_new_tokens(&self, fields: &Fields<'_>, key: &str, least: usize) -> Result<Option<usize>, Fault> {
        fields.count(key, least, self.limits.answer)
    }

    /// The new tokens that each of some prompts may have, at most `most`.
    ///
    /// # Errors
    /// A prompt that is too long for the model, for the memory or for what is allowed; too many sequences.
    pub(crate) fn fit(&self, prompts: &[Vec<u32>], n: usize, most: usize, param: &str) -> Result<usize, Fault> {
        if prompts.len().saturating_mul(n) > self.queue.most() {
            let message = format!("{} answers are asked for; {} may wait", prompts.len() * n, self.queue.most());
            return Err(Fault::value(param, message));
        }
        for prompt in prompts {
            if prompt.len() > self.limits.prompt {
                let message =
                    format!("the prompt has {} tokens; at most {} are taken", prompt.len(), self.limits.prompt);
                return Err(Fault::too_long(param, message));
            }
            let room = Continuous::room_for(&self.spec, prompt, most).map_err(|error| {
                let is_long = prompt.len() >= self.spec.max_position_embeddings;
                let fault = if is_long { Fault::too_long } else { |param: &str, text| Fault::value(param, text) };
                fault(param, error.to_string())
            })?;
            if room > self.limits.room {
                let message = format!(
                    "prompt and answer may have {room} tokens, and there is memory for {}: ask for fewer tokens",
                    self.limits.room
                );
                return Err(Fault::too_long(param, message));
            }
        }
        Ok(most)
    }

    /// The same, as many as there may be.
    ///
    /// # Errors
    /// As [`Server::fit`].
    pub(crate) fn fit_most(&self, prompts: &[Vec<u32>], n: usize, param: &str) -> Result<usize, Fault> {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let most = self.limits.answer.min((self.limits.room + 1).saturating_sub(longest)).max(1);
        self.fit(prompts, n, most, param)
    }
}
