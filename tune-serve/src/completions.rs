//! `/v1/completions`: a text is continued.

use serde_json::{Map, Value, json};
use tune_core::generate::Scored;
use tune_core::tokenizer::Tokenizer;

use crate::answers::{Ask, Finish, Piece};
use crate::error::Fault;
use crate::fields::Fields;
use crate::respond::Format;
use crate::server::{Head, Server};
use crate::text::of_token;

const KNOWN: [&str; 16] = [
    "model",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "n",
    "best_of",
    "stream",
    "stream_options",
    "logprobs",
    "echo",
    "stop",
    "seed",
    "ignore_eos",
    "suffix",
];

/// New tokens where nothing is said of them, as at OpenAI.
const MAX_TOKENS: usize = 16;

/// What is asked for, and how it is written.
///
/// # Errors
/// A key or value that is not taken.
pub(crate) fn read(server: &Server, body: &Value) -> Result<(Ask, Completion, Option<bool>), Fault> {
    let fields = Fields::new(body, &KNOWN)?;
    if let Some(suffix) = fields.text("suffix")?.filter(|suffix| !suffix.is_empty()) {
        return Err(Fault::unsupported("suffix", format!("`suffix` is {suffix:?}; text is only continued here")));
    }
    let stream = fields.stream()?;
    let model = server.model(&fields)?;
    let tokenizer = &server.models[model].tokenizer;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let n = fields.count("n", 1, server.limits.sequences)?.unwrap_or(1);
    if let Some(best_of) = fields.count("best_of", 1, usize::MAX)?.filter(|&best_of| best_of != n) {
        let message =
            format!("`best_of` is {best_of}; all answers are given here, so it can only be `n`, which is {n}");
        return Err(Fault::unsupported("best_of", message));
    }
    let scores = fields.count("logprobs", 0, 20)?;
    let mut prompts = Vec::new();
    let mut echoed = Vec::new();
    for prompt in Prompt::all(fields.get("prompt"))? {
        let (ids, text) = prompt.read(tokenizer)?;
        echoed.extend(std::iter::repeat_n(if echo { text } else { String::new() }, n));
        prompts.push(ids);
    }
    let least = usize::from(!echo);
    let max_new_tokens = server.max_new_tokens(&fields, "max_tokens", least)?.unwrap_or(MAX_TOKENS);
    let max_new_tokens = server.fit(&prompts, n, max_new_tokens, "prompt")?;
    let ask = Ask {
        model,
        prompts,
        n,
        max_new_tokens,
        sampling: server.sampling(&fields)?,
        seed: server.seed(&fields)?,
        stops: fields.stops()?,
        ignores_end: fields.flag("ignore_eos")?.unwrap_or(false),
        scores,
        scores_prompt: echo && scores.is_some(),
    };
    let completion = Completion {
        head: server.head("cmpl", model),
        tokenizer: tokenizer.clone(),
        offsets: vec![0; echoed.len()],
        echoed: echoed.into_iter().map(Some).collect(),
        scores: scores.is_some(),
    };
    Ok((ask, completion, stream))
}

/// A prompt as it is given.
enum Prompt<'a> {
    Text(&'a str),
    Ids(Vec<u32>),
}

impl<'a> Prompt<'a> {
    /// A text, a list of texts, a list of tokens, or a list of such lists.
    fn all(value: Option<&'a Value>) -> Result<Vec<Self>, Fault> {
        let wrong = || Fault::value("prompt", "`prompt` is a text, a list of tokens, or a list of either");
        let ids = |list: &[Value]| -> Option<Vec<u32>> {
            list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
        };
        let one = |value: &'a Value| match value {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(list) => ids(list).map(Self::Ids).ok_or_else(wrong),
            _ => Err(wrong()),
        };
        match value {
            Some(Value::Array(list)) if list.is_empty() => Err(wrong()),
            Some(Value::Array(list)) if list.iter().all(Value::is_number) => {
                Ok(vec![Self::Ids(ids(list).ok_or_else(wrong)?)])
            }
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
            None => Err(Fault::of("prompt", "missing_parameter", "`prompt` is missing: what is to be continued?")),
        }
    }

    /// Its tokens and its text.
    fn read(self, tokenizer: &Tokenizer) -> Result<(Vec<u32>, String), Fault> {
        let wrong = |error: tune_core::Error| Fault::value("prompt", error.to_string());
        match self {
            Self::Text(text) => Ok((tokenizer.prompt(text, None, Some(false)).map_err(wrong)?, text.to_owned())),
            Self::Ids(ids) => {
                let text = tokenizer.decode(&ids, false).map_err(wrong)?;
                Ok((ids, text))
            }
        }
    }
}

/// How completions are written.
pub(crate) struct Completion {
    head: Head,
    tokenizer: Tokenizer,
    /// The prompt of each answer, until it has been written.
    echoed: Vec<Option<String>>,
    /// Characters of each answer whose tokens have been written.
    offsets: Vec<usize>,
    /// Whether log-probabilities are wanted.
    scores: bool,
}

impl Completion {
    fn choice(&mut self, piece: Piece) -> Value {
        let Piece { choice, mut text, mut tokens, of_prompt, stop, finish } = piece;
        // Whoever scores a text takes the last token for the answer: with the stop token it is always there.
        tokens.extend(stop);
        let logprobs = if self.scores { self.logprobs(choice, &tokens, of_prompt) } else { Value::Null };
        if let Some(prompt) = self.echoed[choice].take() {
            text.insert_str(0, &prompt);
        }
        let finish = finish.map(|finish| match finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        });
        json!({"text": text, "index": choice, "logprobs": logprobs, "finish_reason": finish})
    }

    fn logprobs(&mut self, choice: usize, tokens: &[Scored], of_prompt: usize) -> Value {
        let (mut texts, mut offsets, mut log_probs, mut likeliest) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let echoed = self.echoed[choice].as_deref().map(|prompt| prompt.chars().count());
        for (i, token) in tokens.iter().enumerate() {
            if let Some(echoed) = echoed.filter(|_| i == of_prompt) {
                self.offsets[choice] = echoed;
            }
            let text = of_token(&self.tokenizer, token.id);
            offsets.push(self.offsets[choice]);
            self.offsets[choice] += text.chars().count();
            texts.push(text);
            log_probs.push(token.log_prob);
            // The first token stands behind nothing.
            likeliest.push(token.log_prob.map(|_| {
                let of = |(id, log_prob): &(u32, f64)| (of_token(&self.tokenizer, *id), json!(log_prob));
                // Of tokens with the same text the likelier counts.
                token.likeliest.iter().rev().map(of).collect::<Map<_, _>>()
            }));
        }
        json!({"tokens": texts, "token_logprobs": log_probs, "top_logprobs": likeliest, "text_offset": offsets})
    }

    fn object(&self, choices: &[Value]) -> Value {
        let Head { id, created, model } = &self.head;
        json!({"id": id, "object": "text_completion", "created": created, "model": model, "choices": choices})
    }
}

impl Format for Completion {
    fn events(&mut self, piece: Piece) -> Vec<Value> {
        let choice = self.choice(piece);
        vec![self.object(&[choice])]
    }

    fn usage(&self, usage: Value) -> Value {
        let mut object = self.object(&[]);
        object["usage"] = usage;
        object
    }

    fn whole(&mut self, answers: Vec<Piece>, usage: Value) -> Value {
        let choices: Vec<Value> = answers.into_iter().map(|piece| self.choice(piece)).collect();
        let mut object = self.object(&choices);
        object["usage"] = usage;
        object
    }
}
