//! The conversation itself.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use tune_core::config::cli::signals;
use tune_core::config::{complain, files, output};
use tune_core::generate::{End, Sampler, StopOptions, Talk};
use tune_core::models::Decoder;
use tune_core::tokenizer::{Conversation, Message, Streaming, Tokenizer};
use tune_core::words;

use crate::Result;

/// No conversation is longer.
const LARGEST: u64 = 64 << 20;

/// A conversation with a model.
pub(super) struct Session<'m> {
    talk: Talk<'m>,
    tokenizer: &'m Tokenizer,
    sampler: Sampler,
    stop: StopOptions,
    /// What stands before the conversation.
    system: Option<String>,
    /// Questions and answers in turn.
    messages: Vec<Message>,
    /// Nobody reads what is written any more, or the program was asked to end.
    over: bool,
}

fn message(role: &str, text: &str) -> Message {
    [("role", role), ("content", text)].into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect()
}

fn has_role(message: &Message, role: &str) -> bool {
    message.get("role").and_then(Value::as_str) == Some(role)
}

impl<'m> Session<'m> {
    pub(super) fn new(
        model: &'m Decoder,
        tokenizer: &'m Tokenizer,
        sampler: Sampler,
        stop: StopOptions,
        system: Option<String>,
    ) -> Self {
        Self { talk: Talk::new(model), tokenizer, sampler, stop, system, messages: Vec::new(), over: false }
    }

    /// Whether nobody reads what is written any more, or the program was asked to end.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Says something and shows the answer.
    ///
    /// # Errors
    /// A conversation that the template refuses, or one that is too long: what was said is then as if it had not been.
    pub(super) fn say(&mut self, text: &str) -> Result<()> {
        self.messages.push(message("user", text));
        let answered = self.answer();
        if answered.is_err() {
            self.messages.pop();
        }
        answered
    }

    /// Shows another answer to what was said last.
    ///
    /// # Errors
    /// Nothing has been said; else as [`Session::say`].
    pub(super) fn regenerate(&mut self) -> Result<()> {
        let before = self.messages.clone();
        if self.messages.last().is_some_and(|message| has_role(message, "assistant")) {
            self.messages.pop();
        }
        if !self.messages.last().is_some_and(|message| has_role(message, "user")) {
            self.messages = before;
            return Err("nothing has been said that could be answered again".into());
        }
        let answered = self.answer();
        if answered.is_err() {
            self.messages = before;
        }
        answered
    }

    fn answer(&mut self) -> Result<()> {
        let prompt = self.tokenizer.prompt_of(Conversation::new(self.whole()))?;
        let mut text = String::new();
        let mut streaming = Streaming::default();
        let (tokenizer, over) = (self.tokenizer, &mut self.over);
        let mut show = |new: &str| -> Result<bool, std::io::Error> {
            text += new;
            *over |= !output::show(new)?;
            Ok(!*over)
        };
        // Ctrl-C ends the answer, and not the program.
        let _listening = signals::Listening::begin();
        let begun = Instant::now();
        let mut first = None;
        let mut failed = None;
        let reply = self.talk.answer(&prompt, &mut self.sampler, &self.stop, |token| {
            first.get_or_insert_with(Instant::now);
            let go_on = match show(&streaming.push(tokenizer, token)?) {
                Ok(go_on) => go_on,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            };
            Ok(go_on && signals::requested().is_none())
        })?;
        let ended = Instant::now();
        if let Some(error) = failed {
            return Err(output::unwritten(&error).into());
        }
        let sign = match reply.end {
            End::Stop => String::new(),
            End::Length => {
                format!(" [cut off after {}: --max-new-tokens]", words::count(reply.tokens.len(), "token"))
            }
            End::Full => " [cut off: the conversation is as long as the model can read; /reset begins anew]".to_owned(),
            End::Interrupted => " [interrupted]".to_owned(),
        };
        show(&streaming.rest(tokenizer)?)?;
        output::show(&format!("{sign}\n"))?;
        self.messages.push(message("assistant", &text));
        // The first token is what reading takes, the others are what writing takes.
        let count = reply.tokens.len();
        let writing = first.map_or(0.0, |first| (ended - first).as_secs_f64());
        let speed = if count > 1 && writing > 0.0 {
            format!("{:.1} tokens a second", (count - 1) as f64 / writing)
        } else {
            "-".to_owned()
        };
        let reading = first.map_or(0.0, |first| (first - begun).as_secs_f64());
        complain!("[{}, {speed}; {} read in {reading:.2} s]", words::count(count, "token"), reply.read);
        self.over |= signals::take().is_some_and(|signal| !signal.is_interrupt());
        Ok(())
    }

    /// The conversation with what stands before it.
    fn whole(&self) -> Vec<Message> {
        let system = self.system.as_deref().map(|text| message("system", text));
        system.into_iter().chain(self.messages.iter().cloned()).collect()
    }

    /// Forgets what was said.
    pub(super) fn reset(&mut self) {
        self.messages.clear();
    }

    /// Changes what stands before the conversation, and says what does now.
    pub(super) fn instruct(&mut self, text: Option<String>) -> String {
        self.system = text;
        match &self.system {
            Some(text) => format!("before the conversation stands: {text}"),
            None => "nothing stands before the conversation".to_owned(),
        }
    }

    /// Writes the conversation as a line of training data; a file that is there is not written over.
    ///
    /// # Errors
    /// Nothing has been said; the file exists or cannot be written.
    pub(super) fn save(&self, file: &Path) -> Result<String> {
        if self.messages.is_empty() {
            return Err("nothing has been said that could be saved".into());
        }
        let failed = |error| match fs::symlink_metadata(file).is_ok() {
            true => format!("{} is there already; name another file", file.display()),
            false => format!("cannot write {}: {error}", file.display()),
        };
        let mut new = fs::File::create_new(file).map_err(failed)?;
        writeln!(new, "{}", json!({"messages": self.whole()})).map_err(failed)?;
        Ok(format!("saved {} to {}", words::count(self.whole().len(), "message"), file.display()))
    }

    /// Takes the conversation of a file in place of this one.
    ///
    /// # Errors
    /// It cannot be read, or is no conversation.
    pub(super) fn load(&mut self, file: &Path) -> Result<String> {
        let shown = file.display();
        let bytes = files::read(file, LARGEST).map_err(|error| format!("cannot read {shown}: {error}"))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
            format!("{shown}:{}:{}: is no conversation in JSON: {error}", error.line(), error.column())
        })?;
        let wrong = || {
            format!("{shown}: is no conversation: {{\"messages\": [{{\"role\": …, \"content\": …}}, …]}} was expected")
        };
        let list = value.get("messages").unwrap_or(&value).as_array().ok_or_else(wrong)?;
        let mut messages = Vec::new();
        for entry in list {
            let message = entry.as_object().filter(|message| message.get("role").is_some_and(Value::is_string));
            messages.push(message.cloned().ok_or_else(wrong)?);
        }
        if messages.first().is_some_and(|message| has_role(message, "system")) {
            self.system = messages.remove(0).get("content").and_then(Value::as_str).map(str::to_owned);
        }
        self.messages = messages;
        Ok(format!("the conversation of {shown}, {}, goes on", words::count(self.messages.len(), "message")))
    }
}
