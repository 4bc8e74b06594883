//! A `Modelfile`, with which Ollama makes a model of a GGUF file.
//!
//! Ollama does not render the chat template in the file: it has Go templates of its own. One is written here where the model's
//! template puts the same text around each message of a role, which is tried out; else the Modelfile says what is missing.

use std::fmt::Write as _;

use crate::tokenizer::{ChatTemplate, Conversation, Forms, Message, Tokenizer};

/// What stands around messages in a conversation.
struct Around {
    /// Before the first message.
    begin: String,
    /// Whether that is there only where the first message is none of the system's: a template's own instructions.
    only_without_system: bool,
    /// Roles with what stands before and behind their messages.
    roles: Vec<(&'static str, String, String)>,
    /// The header of the answer.
    header: String,
}

/// The Modelfile for the model or adapter in `file`, which is beside it; an adapter's says what its `base` is.
#[must_use]
pub fn modelfile(file: &str, base: Option<&str>, tokenizer: &Tokenizer) -> String {
    let mut text = String::new();
    match base {
        None => text += &format!("FROM ./{file}\n"),
        Some(base) => {
            text += &format!("# The base model as a GGUF file, or as Ollama knows it. Made from: {}\n", one_line(base));
            text += &format!("FROM ./base.gguf\nADAPTER ./{file}\n");
        }
    }
    if let Some(template) = tokenizer.chat_template() {
        match around(template) {
            Some(mut around) => {
                // Ollama puts the token that begins a text there by itself.
                let bos = tokenizer.bos().filter(|_| tokenizer.begins_with_bos()).and_then(|id| tokenizer.token(id));
                if let Some(rest) = bos.and_then(|bos| around.begin.strip_prefix(&bos).map(str::to_owned)) {
                    around.begin = rest;
                }
                let _ = writeln!(text, "TEMPLATE \"\"\"{}\"\"\"", go_template(&around));
            }
            None => {
                text += "# The chat template in the file is one that no TEMPLATE was found for: what it makes of a message depends on\n";
                text += "# other messages, or on their place. Ollama needs one: https://docs.ollama.com/modelfile#template\n";
            }
        }
    }
    for id in tokenizer.stop_tokens().in_order() {
        if let Some(token) = tokenizer.token(id).filter(|token| !token.contains(['"', '\n'])) {
            let _ = writeln!(text, "PARAMETER stop \"{token}\"");
        }
    }
    text
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// Texts that stand in no template, for four messages.
const PROBES: [&str; 4] = ["Qzwv7", "Kxjq3", "Vbnm9", "Wprt5"];

fn render(template: &ChatTemplate, roles: &[&str], probes: &[&str], header: bool) -> Option<String> {
    let forms = Forms::of(template);
    let messages = roles.iter().zip(probes).map(|(role, text)| -> Message {
        let content = forms.choose(role).content(*text);
        [("role".to_owned(), (*role).into()), ("content".to_owned(), content)].into_iter().collect()
    });
    template.render(&Conversation::new(messages.collect()), header).ok()
}

/// What a template puts around messages, if it is the same wherever these stand.
fn around(template: &ChatTemplate) -> Option<Around> {
    if template.uses_date() {
        return None;
    }
    let roles = ["user", "assistant", "user", "assistant"];
    let whole = render(template, &roles, &PROBES, false)?;
    let mut pieces = Vec::new();
    let mut rest = whole.as_str();
    for probe in PROBES {
        let (before, after) = rest.split_once(probe)?;
        pieces.push(before);
        rest = after;
    }
    let [first, to_answer, to_question, again] = pieces.as_slice() else { return None };
    if again != to_answer {
        return None;
    }
    // Where between two messages one ends and the next begins, one message alone says.
    let asked = render(template, &roles[..1], &PROBES[..1], false)?;
    let (_, behind_user) = asked.split_once(PROBES[0])?;
    let before_assistant = to_answer.strip_prefix(behind_user)?;
    let behind_assistant = rest;
    let before_user = to_question.strip_prefix(behind_assistant)?;
    let begin = first.strip_suffix(before_user)?;
    let prompt = render(template, &roles[..1], &PROBES[..1], true)?;
    let header = prompt.strip_prefix(&asked)?;
    let mut around = Around {
        begin: begin.to_owned(),
        only_without_system: false,
        roles: vec![
            ("user", before_user.to_owned(), behind_user.to_owned()),
            ("assistant", before_assistant.to_owned(), behind_assistant.to_owned()),
        ],
        header: header.to_owned(),
    };
    if let Some(instructed) = render(template, &["system", "user"], &PROBES[..2], false) {
        let (before, after) = instructed.split_once(PROBES[0])?;
        let (behind, end) = after.split_once(PROBES[1])?;
        if end != behind_user {
            return None;
        }
        let common = before.strip_prefix(begin);
        around.only_without_system = common.is_none();
        let before = common.unwrap_or(before);
        around.roles.insert(0, ("system", before.to_owned(), behind.strip_suffix(before_user)?.to_owned()));
    }
    // The whole of it gives what the template gives.
    let made = |roles: &[&str], probes: &[&str]| -> Option<String> {
        let has_begin = !around.only_without_system || roles.first() != Some(&"system");
        let mut text = if has_begin { around.begin.clone() } else { String::new() };
        for (role, probe) in roles.iter().zip(probes) {
            let (_, before, behind) = around.roles.iter().find(|(name, ..)| name == role)?;
            text += &format!("{before}{probe}{behind}");
        }
        Some(text + &around.header)
    };
    let mut conversations: Vec<&[&str]> = vec![&["user", "assistant", "user"], &["user"]];
    if around.roles.iter().any(|(role, ..)| *role == "system") {
        conversations.push(&["system", "user", "assistant", "user"]);
    }
    let agree = |roles: &[&str]| made(roles, &PROBES) == render(template, roles, &PROBES, true);
    conversations.into_iter().all(agree).then_some(around)
}

/// The same as a Go template, as Ollama renders it. A text is written as a constant, so that nothing in it is a directive.
fn go_template(around: &Around) -> String {
    let constant = |text: &str| match text.is_empty() {
        true => String::new(),
        false => format!("{{{{ {} }}}}", go_string(text)),
    };
    let mut text = constant(&around.begin);
    if around.only_without_system && !text.is_empty() {
        text = format!("{{{{- if ne (index .Messages 0).Role \"system\" }}}}{text}{{{{- end }}}}");
    }
    text += "{{- range .Messages }}";
    for (i, (role, before, behind)) in around.roles.iter().enumerate() {
        let word = if i == 0 { "if" } else { "else if" };
        let _ = write!(
            text,
            "{{{{- {word} eq .Role \"{role}\" }}}}{}{{{{ .Content }}}}{}",
            constant(before),
            constant(behind)
        );
    }
    text += "{{- end }}{{- end }}";
    text + &constant(&around.header)
}

/// A string constant of Go's.
fn go_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted += "\\\"",
            '\\' => quoted += "\\\\",
            '\n' => quoted += "\\n",
            '\r' => quoted += "\\r",
            '\t' => quoted += "\\t",
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}
