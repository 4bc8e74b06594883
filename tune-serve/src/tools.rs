//! Calls of tools in what a model writes.

use serde_json::Value;

use crate::text::Cut;

/// How a model writes calls, by what its chat template asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen 2.5 and 3, SmolLM 3.
    Hermes,
    /// `{"name": …, "parameters": {…}}` and nothing else: Llama 3.1 to 3.3.
    Llama,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const PYTHON: &str = "<|python_tag|>";

/// A call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// A JSON object.
    pub(crate) arguments: String,
}

impl Form {
    /// What a template asks for, if that is known here.
    pub(crate) fn of(template: &str) -> Option<Self> {
        if template.contains(OPEN) && template.contains("\"arguments\"") {
            return Some(Self::Hermes);
        }
        let is_llama = template.contains("\"parameters\": dictionary of argument name");
        is_llama.then_some(Self::Llama)
    }

    /// The calls of some of these tools that a whole answer consists of, and the text before them. An answer of another form is
    /// text.
    pub(crate) fn parse(self, text: &str, tools: &[String]) -> (String, Vec<Call>) {
        let found = match self {
            Self::Hermes => hermes(text, tools),
            Self::Llama => llama(text, tools).map(|calls| (String::new(), calls)),
        };
        found.unwrap_or_else(|| (text.to_owned(), Vec::new()))
    }
}

fn hermes(text: &str, tools: &[String]) -> Option<(String, Vec<Call>)> {
    let (before, mut rest) = text.split_once(OPEN)?;
    let mut calls = Vec::new();
    loop {
        // The last one may end where the answer does.
        let (inner, after) = rest.split_once(CLOSE).unwrap_or((rest, ""));
        calls.push(call(&serde_json::from_str(inner).ok()?, "arguments", tools)?);
        match after.split_once(OPEN) {
            Some((between, next)) if between.trim().is_empty() => rest = next,
            None if after.trim().is_empty() => return Some((before.trim_end().to_owned(), calls)),
            _ => return None,
        }
    }
}

fn llama(text: &str, tools: &[String]) -> Option<Vec<Call>> {
    let mut rest = text.trim();
    rest = rest.strip_prefix(PYTHON).unwrap_or(rest).trim_start();
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        calls.push(call(&values.next()?.ok()?, "parameters", tools)?);
        rest = rest[values.byte_offset()..].trim_start_matches(|c: char| c.is_whitespace() || c == ';');
    }
    (!calls.is_empty()).then_some(calls)
}

fn call(value: &Value, arguments: &str, tools: &[String]) -> Option<Call> {
    let name = value.get("name")?.as_str().filter(|name| tools.iter().any(|tool| tool == name))?;
    let arguments = value.get(arguments)?;
    arguments.is_object().then(|| Call { name: name.to_owned(), arguments: arguments.to_string() })
}

/// What is to be written of an answer that may contain calls.
#[derive(Debug)]
pub(crate) struct Watch {
    form: Form,
    tools: Vec<String>,
    cut: Cut,
    /// What may be calls, from where they begin.
    calls: Option<String>,
    /// Whether it is known that the answer is text.
    is_text: bool,
}

impl Watch {
    pub(crate) fn new(form: Form, tools: Vec<String>) -> Self {
        Self { form, tools, cut: Cut::new(vec![OPEN.to_owned()]), calls: None, is_text: false }
    }

    /// The part of a text that is certainly no call.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if let Some(calls) = &mut self.calls {
            calls.push_str(text);
            return String::new();
        }
        match self.form {
            Form::Hermes => {
                let held = self.cut.held().to_owned();
                let (given, has_begun) = self.cut.push(text);
                if has_begun {
                    let all = held + text;
                    self.calls = Some(all[given.len()..].to_owned());
                }
                given
            }
            Form::Llama if self.is_text || text.is_empty() => text.to_owned(),
            Form::Llama => {
                let begin = text.trim_start();
                if begin.is_empty() || begin.starts_with('{') || begin.starts_with('<') {
                    self.calls = Some(text.to_owned());
                    return String::new();
                }
                self.is_text = true;
                text.to_owned()
            }
        }
    }

    /// What is left at the end: text, and calls.
    pub(crate) fn end(&mut self) -> (String, Vec<Call>) {
        match self.calls.take() {
            Some(calls) => self.form.parse(&calls, &self.tools),
            None => (self.cut.rest(), Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Vec<String> {
        vec!["weather".to_owned(), "time".to_owned()]
    }

    fn weather() -> Call {
        Call { name: "weather".into(), arguments: r#"{"city":"Rome"}"#.into() }
    }

    const HERMES: &str =
        "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
    const LLAMA: &str = r#"{"name": "weather", "parameters": {"city": "Rome"}}"#;

    #[test]
    fn calls_are_found() {
        let time = Call { name: "time".into(), arguments: "{}".into() };
        assert_eq!(Form::Hermes.parse(HERMES, &tools()), ("Let me see.".into(), vec![weather()]));
        let two = format!("{HERMES}\n<tool_call>{{\"name\": \"time\", \"arguments\": {{}}}}");
        assert_eq!(Form::Hermes.parse(&two, &tools()).1, [weather(), time.clone()]);
        assert_eq!(Form::Llama.parse(LLAMA, &tools()), (String::new(), vec![weather()]));
        let two = format!("<|python_tag|>{LLAMA}; {{\"name\": \"time\", \"parameters\": {{}}}}");
        assert_eq!(Form::Llama.parse(&two, &tools()).1, [weather(), time]);
    }

    #[test]
    fn what_is_no_call_is_text() {
        for text in [
            "Rome is sunny.",
            "<tool_call>{\"name\": \"weather\"}</tool_call>",
            "<tool_call>{\"name\": \"other\", \"arguments\": {}}</tool_call>",
            "<tool_call>no JSON</tool_call>",
            "<tool_call>{\"name\": \"time\", \"arguments\": {}}</tool_call> and more",
        ] {
            assert_eq!(Form::Hermes.parse(text, &tools()), (text.to_owned(), Vec::new()));
        }
        for text in ["{}", "", "{\"name\": \"weather\", \"parameters\": 3}", "{\"name\": \"weather\", \"para"] {
            assert_eq!(Form::Llama.parse(text, &tools()), (text.to_owned(), Vec::new()));
        }
    }

    #[test]
    fn in_a_stream_calls_are_held_back_and_text_is_not() {
        for (form, text, before) in [(Form::Hermes, HERMES, "Let me see.\n"), (Form::Llama, LLAMA, "")] {
            for size in [1, 3, 7, 1000] {
                let mut watch = Watch::new(form, tools());
                let characters: Vec<char> = text.chars().collect();
                let given: String =
                    characters.chunks(size).map(|piece| watch.push(&piece.iter().collect::<String>())).collect();
                assert_eq!(given, before, "{size}");
                assert_eq!(watch.end(), (String::new(), vec![weather()]), "{size}");
            }
        }
        let mut watch = Watch::new(Form::Hermes, tools());
        assert_eq!(watch.push("a <tool"), "a ");
        assert_eq!(watch.push("box> b"), "<toolbox> b");
        assert_eq!(watch.push("<tool_call>nothing"), "");
        assert_eq!(watch.end(), ("<tool_call>nothing".to_owned(), Vec::new()));
        let mut watch = Watch::new(Form::Llama, tools());
        assert_eq!(watch.push("It is"), "It is");
        assert_eq!(watch.push(" {"), " {");
        let mut watch = Watch::new(Form::Llama, tools());
        assert_eq!(watch.push("{\"a\""), "");
        assert_eq!(watch.end().0, "{\"a\"");
    }

    #[test]
    fn the_template_tells_the_form() {
        let qwen = "return a json object within <tool_call></tool_call>: {\"name\": <n>, \"arguments\": <args>}";
        assert_eq!(Form::of(qwen), Some(Form::Hermes));
        let llama = "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its value}";
        assert_eq!(Form::of(llama), Some(Form::Llama));
        assert_eq!(Form::of("{% for m in messages %}{{ m.content }}{% endfor %}"), None);
    }
}
