//! `/v1/chat/completions`: a conversation is answered.

use serde_json::{Map, Value, json};
use tune_core::generate::Scored;
use tune_core::tokenizer::{Conversation, Message, Tokenizer};

use crate::answers::{Ask, Finish, Piece};
use crate::error::Fault;
use crate::fields::Fields;
use crate::respond::Format;
use crate::server::{Head, Server};
use crate::text::of_token;
use crate::tools::{Call, Form, Watch};

const KNOWN: [&str; 21] = [
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "n",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "stop",
    "seed",
    "ignore_eos",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "modalities",
    "chat_template_kwargs",
];

/// What is asked for, and how it is written.
///
/// # Errors
/// A key or value that is not taken, a conversation that the model's template refuses.
pub(crate) fn read(server: &Server, body: &Value) -> Result<(Ask, Chat, Option<bool>), Fault> {
    let fields = Fields::new(body, &KNOWN)?;
    let stream = fields.stream()?;
    let model = server.model(&fields)?;
    let served = &server.models[model];
    if let Some(format) = fields.get("response_format").filter(|format| format["type"] != "text") {
        let message = format!("`response_format` is of the type {}; only text is written here", format["type"]);
        return Err(Fault::unsupported("response_format", message));
    }
    if fields.get("modalities").is_some_and(|modalities| *modalities != json!(["text"])) {
        return Err(Fault::unsupported("modalities", "only text is written here"));
    }
    let n = fields.count("n", 1, server.limits.sequences)?.unwrap_or(1);
    let likeliest = fields.count("top_logprobs", 0, 20)?;
    let scores = fields.flag("logprobs")?.unwrap_or(false).then_some(likeliest.unwrap_or(0));
    if likeliest.is_some() && scores.is_none() {
        return Err(Fault::value("top_logprobs", "`top_logprobs` needs `logprobs` to be true"));
    }
    let tools = tools(&fields)?;
    let names = tools.iter().flatten().filter_map(|tool| tool.get("function")?.get("name")?.as_str());
    let names: Vec<String> = names.map(str::to_owned).collect();
    let messages = messages(&fields)?;
    let arguments = match fields.get("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(arguments)) => arguments.clone(),
        Some(_) => return Err(Fault::value("chat_template_kwargs", "`chat_template_kwargs` is an object")),
    };
    let has_tools = tools.is_some();
    if served.tokenizer.chat_template().is_none() {
        let message = format!(
            "`{}` has no chat template, so it is no model for conversations: ask /v1/completions, or start the server with \
             --chat-template",
            served.name
        );
        return Err(Fault::of("model", "no_chat_template", message));
    }
    let conversation = Conversation { tools, arguments, ..Conversation::new(messages) };
    let prompt = served.tokenizer.prompt_of(conversation);
    let prompt = prompt.map_err(|error| Fault::value("messages", error.to_string()))?;
    let most = match server.max_new_tokens(&fields, "max_completion_tokens", 1)? {
        Some(most) => Some(most),
        None => server.max_new_tokens(&fields, "max_tokens", 1)?,
    };
    let prompts = vec![prompt];
    let max_new_tokens = match most {
        Some(most) => server.fit(&prompts, n, most, "messages")?,
        None => server.fit_most(&prompts, n, "messages")?,
    };
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
        scores_prompt: false,
    };
    let watch = |form: Form| Watch::new(form, names.clone());
    let form = served.form.filter(|_| has_tools);
    let turns = (0..n).map(|_| Turn { has_begun: false, calls: 0, watch: form.map(watch) });
    let chat = Chat {
        head: server.head("chatcmpl", model),
        tokenizer: served.tokenizer.clone(),
        turns: turns.collect(),
        scores: scores.is_some(),
    };
    Ok((ask, chat, stream))
}

/// The tools that the model is told of.
fn tools(fields: &Fields<'_>) -> Result<Option<Vec<Map<String, Value>>>, Fault> {
    let tools = fields.objects("tools")?.filter(|tools| !tools.is_empty());
    for (i, tool) in tools.iter().flatten().enumerate() {
        let is_function = tool.get("type").is_some_and(|kind| kind == "function");
        if !is_function || !tool.get("function").is_some_and(|function| function["name"].is_string()) {
            let expected = "{\"type\": \"function\", \"function\": {\"name\": …}} was expected";
            return Err(Fault::value(
                &format!("tools[{i}]"),
                format!("`tools[{i}]` is no function with a name; {expected}"),
            ));
        }
    }
    fields.flag("parallel_tool_calls")?;
    match fields.get("tool_choice") {
        None => Ok(tools),
        Some(choice) if choice == "auto" => Ok(tools),
        Some(choice) if choice == "none" => Ok(None),
        Some(_) => Err(Fault::unsupported(
            "tool_choice",
            "`tool_choice` can be \"auto\" or \"none\": a model is not forced to call a tool here",
        )),
    }
}

/// The conversation, as templates take it.
fn messages(fields: &Fields<'_>) -> Result<Vec<Message>, Fault> {
    let Some(mut messages) = fields.objects("messages")?.filter(|messages| !messages.is_empty()) else {
        return Err(Fault::of("messages", "missing_parameter", "`messages` is missing or empty"));
    };
    for (i, message) in messages.iter_mut().enumerate() {
        let place = format!("messages[{i}]");
        let role = match message.get("role").and_then(Value::as_str) {
            // What OpenAI calls the system of its newer models.
            Some("developer") => "system",
            Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
            Some(role) => {
                let message = format!("`{place}.role` is {role:?}; system, user, assistant or tool was expected");
                return Err(Fault::value(&format!("{place}.role"), message));
            }
            None => return Err(Fault::value(&format!("{place}.role"), format!("`{place}` has no role"))),
        };
        message.insert("role".to_owned(), role.to_owned().into());
        if let Some(Value::Array(parts)) = message.get("content") {
            let text = |part: &Value| Some(part["text"].as_str().filter(|_| part["type"] == "text")?.to_owned());
            let texts: Option<String> = parts.iter().map(text).collect();
            let content = texts.ok_or_else(|| {
                Fault::unsupported(&format!("{place}.content"), format!("`{place}.content` has parts that are no text"))
            })?;
            message.insert("content".to_owned(), content.into());
        }
        // Clients send arguments as the text of an object, templates write out an object.
        for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments")) else {
                continue;
            };
            let parsed = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
            if let Some(object @ Value::Object(_)) = parsed {
                *arguments = object;
            }
        }
    }
    Ok(messages)
}

struct Turn {
    has_begun: bool,
    /// Calls that have been written.
    calls: usize,
    watch: Option<Watch>,
}

/// How conversations go on.
pub(crate) struct Chat {
    head: Head,
    tokenizer: Tokenizer,
    /// Of each answer.
    turns: Vec<Turn>,
    /// Whether log-probabilities are wanted.
    scores: bool,
}

impl Chat {
    fn logprobs(&self, tokens: &[Scored]) -> Value {
        if !self.scores {
            return Value::Null;
        }
        let of_one = |id: u32, log_prob: Option<f64>| {
            let text = of_token(&self.tokenizer, id);
            // A part of a character has no text of its own.
            let bytes = (!text.contains('\u{fffd}')).then(|| text.as_bytes().to_vec());
            json!({"token": text, "logprob": log_prob, "bytes": bytes})
        };
        let entry = |token: &Scored| {
            let mut entry = of_one(token.id, token.log_prob);
            let likeliest = token.likeliest.iter().map(|&(id, log_prob)| of_one(id, Some(log_prob)));
            entry["top_logprobs"] = likeliest.collect();
            entry
        };
        json!({"content": tokens.iter().map(entry).collect::<Vec<_>>(), "refusal": null})
    }

    fn call(&self, choice: usize, number: usize, call: &Call) -> Value {
        let id = format!("call_{}_{choice}_{number}", self.head.id.rsplit('-').next().unwrap_or_default());
        json!({"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
    }

    /// What has become known of an answer: text that is no call, and calls.
    fn tell(&mut self, piece: &Piece) -> (String, Vec<Call>) {
        let Some(watch) = &mut self.turns[piece.choice].watch else { return (piece.text.clone(), Vec::new()) };
        let mut text = watch.push(&piece.text);
        let mut calls = Vec::new();
        if piece.finish.is_some() {
            let (rest, found) = watch.end();
            text += &rest;
            calls = found;
        }
        (text, calls)
    }

    fn event(&self, choice: usize, delta: &Value, logprobs: &Value, finish: Option<&str>) -> Value {
        let choice = json!({"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        self.object("chat.completion.chunk", &[choice])
    }

    fn object(&self, kind: &str, choices: &[Value]) -> Value {
        let Head { id, created, model } = &self.head;
        json!({"id": id, "object": kind, "created": created, "model": model, "choices": choices})
    }
}

fn finish_reason(finish: Finish, calls: usize) -> &'static str {
    match finish {
        Finish::Stop if calls > 0 => "tool_calls",
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

impl Format for Chat {
    fn events(&mut self, piece: Piece) -> Vec<Value> {
        let choice = piece.choice;
        let (text, calls) = self.tell(&piece);
        let mut events = Vec::new();
        if !std::mem::replace(&mut self.turns[choice].has_begun, true) {
            events.push(self.event(choice, &json!({"role": "assistant", "content": ""}), &Value::Null, None));
        }
        if !text.is_empty() || (self.scores && !piece.tokens.is_empty()) {
            events.push(self.event(choice, &json!({"content": text}), &self.logprobs(&piece.tokens), None));
        }
        for call in &calls {
            let number = self.turns[choice].calls;
            self.turns[choice].calls += 1;
            let mut call = self.call(choice, number, call);
            call["index"] = number.into();
            events.push(self.event(choice, &json!({"tool_calls": [call]}), &Value::Null, None));
        }
        if let Some(finish) = piece.finish {
            let reason = finish_reason(finish, self.turns[choice].calls);
            events.push(self.event(choice, &json!({}), &Value::Null, Some(reason)));
        }
        events
    }

    fn usage(&self, usage: Value) -> Value {
        let mut object = self.object("chat.completion.chunk", &[]);
        object["usage"] = usage;
        object
    }

    fn whole(&mut self, answers: Vec<Piece>, usage: Value) -> Value {
        let mut choices = Vec::new();
        for piece in answers {
            let (text, calls) = self.tell(&piece);
            let mut message = json!({"role": "assistant", "content": text, "refusal": null});
            if !calls.is_empty() {
                let text = text.trim_end();
                message["content"] = if text.is_empty() { Value::Null } else { text.into() };
                let calls = calls.iter().enumerate().map(|(i, call)| self.call(piece.choice, i, call));
                message["tool_calls"] = calls.collect();
            }
            let finish = piece.finish.map(|finish| finish_reason(finish, calls.len()));
            choices.push(json!({
                "index": piece.choice,
                "message": message,
                "logprobs": self.logprobs(&piece.tokens),
                "finish_reason": finish,
            }));
        }
        let mut object = self.object("chat.completion", &choices);
        object["usage"] = usage;
        object
    }
}
