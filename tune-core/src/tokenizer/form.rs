//! In which form a chat template takes what a message says: as a text, or as a list of parts.

use serde_json::{Value, json};

use super::{ChatTemplate, Conversation, Message};

/// The form of a message's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Form {
    /// A text.
    #[default]
    Text,
    /// A list of parts, of which each is a text.
    Parts,
}

impl Form {
    /// A text in this form.
    pub(crate) fn content(self, text: impl Into<String>) -> Value {
        match self {
            Self::Text => Value::String(text.into()),
            Self::Parts => json!([{"type": "text", "text": text.into()}]),
        }
    }
}

/// A text that stands in no template.
const PROBE: &str = "7093184265";

/// Which forms a template renders, by role. It is found out by trying: a template that wants the other form mostly
/// renders an empty message.
#[derive(Debug, Clone, Default)]
pub(crate) struct Forms(Vec<(&'static str, Rendered)>);

/// Which forms of one role's messages are rendered.
#[derive(Debug, Clone, Copy, Default)]
struct Rendered {
    text: bool,
    parts: bool,
}

impl Rendered {
    fn chosen(self) -> Form {
        if self.parts && !self.text { Form::Parts } else { Form::Text }
    }
}

impl Forms {
    pub(crate) fn of(template: &ChatTemplate) -> Self {
        let both = |messages: &dyn Fn(Form) -> Vec<Message>| Rendered {
            text: renders(template, messages(Form::Text)),
            parts: renders(template, messages(Form::Parts)),
        };
        let user = both(&|form| vec![message("user", PROBE, form)]);
        let asked = message("user", "Q", user.chosen());
        let assistant = both(&|form| vec![asked.clone(), message("assistant", PROBE, form)]);
        let instructs = |role: &'static str| both(&|form| vec![message(role, PROBE, form), asked.clone()]);
        let mut call = message("assistant", "", assistant.chosen());
        call.insert(
            "tool_calls".into(),
            json!([{"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {}}}]),
        );
        let returns = |role: &'static str| {
            both(&|form| {
                let mut result = message(role, PROBE, form);
                result.insert("name".into(), "f".into());
                result.insert("tool_call_id".into(), "call00001".into());
                vec![asked.clone(), call.clone(), result]
            })
        };
        let mut forms = vec![("user", user), ("assistant", assistant)];
        forms.extend(["system", "developer"].map(|role| (role, instructs(role))));
        forms.extend(["tool", "function", "ipython"].map(|role| (role, returns(role))));
        Self(forms)
    }

    fn role(&self, role: &str) -> Rendered {
        self.0.iter().find(|(name, _)| *name == role).map(|(_, rendered)| *rendered).unwrap_or_default()
    }

    /// The form in which the template renders a text of this role; as a text, if it renders both or neither.
    pub(crate) fn choose(&self, role: &str) -> Form {
        self.role(role).chosen()
    }

    /// Whether the template renders texts of this role and cannot render parts.
    pub(crate) fn only_text(&self, role: &str) -> bool {
        let rendered = self.role(role);
        rendered.text && !rendered.parts
    }
}

fn message(role: &str, text: &str, form: Form) -> Message {
    [("role".to_owned(), Value::from(role)), ("content".to_owned(), form.content(text))].into_iter().collect()
}

/// Whether the probe stands in the rendered conversation as a text, not as a list that is printed as Python prints it.
fn renders(template: &ChatTemplate, messages: Vec<Message>) -> bool {
    template
        .render(&Conversation::new(messages), false)
        .is_ok_and(|text| text.contains(PROBE) && !text.contains(&format!("'text': '{PROBE}'")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn forms(content: &str) -> Forms {
        let source = format!("{{% for m in messages %}}<{{{{ m.role }}}}>{content}\n{{% endfor %}}");
        Forms::of(&ChatTemplate::new(&source, BTreeMap::new()).unwrap())
    }

    #[test]
    fn the_form_that_is_rendered_is_chosen() {
        let parts = "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}";
        for (content, text, only_text) in [
            ("{{ m.content }}".to_owned(), true, true),
            ("{{ m.content | trim }}".to_owned(), true, true),
            ("{{ 'a' + m.content }}".to_owned(), true, true),
            (parts.to_owned(), false, false),
            ("{{ m.content[0].text }}".to_owned(), false, false),
            (format!("{{% if m.content is string %}}{{{{ m.content }}}}{{% else %}}{parts}{{% endif %}}"), true, false),
            ("{{ m.content | tojson }}".to_owned(), true, false),
            ("nothing".to_owned(), true, false),
        ] {
            let forms = forms(&content);
            for role in ["system", "developer", "user", "assistant", "tool", "function", "ipython"] {
                assert_eq!(forms.choose(role) == Form::Text, text, "{content} {role}");
                assert_eq!(forms.only_text(role), only_text, "{content} {role}");
            }
        }
    }

    #[test]
    fn roles_may_differ() {
        let forms = forms("{% if m.role == 'system' %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}");
        assert_eq!((forms.choose("system"), forms.choose("user")), (Form::Text, Form::Parts));
        assert_eq!(forms.choose("assistant"), Form::Parts);
    }
}
