use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, BTreeMap::new()).unwrap()
}

fn conversation(messages: Value) -> Conversation {
    Conversation::new(serde_json::from_value(messages).unwrap())
}

fn said(source: &str, messages: Value) -> String {
    match check(&template(source), &conversation(messages), false) {
        Ok(beside_calls) => format!("{beside_calls:?}"),
        Err(error) => error.to_string(),
    }
}

/// Real templates and nasty conversations, with all that `transformers` renders of them.
#[test]
fn what_real_templates_leave_out_is_really_not_there() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/templates");
    if !folder.exists() {
        return println!("NOT TESTED: {} is not there", folder.display());
    }
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let (all, tokens) = (read(folder.join("conversations.json")), read(folder.join("special_tokens.json")));
    let (mut there, mut left_out, mut wrong) = (0, 0, Vec::new());
    for (name, tokens) in tokens.as_object().unwrap() {
        let source = fs::read_to_string(folder.join("templates").join(format!("{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(&source, serde_json::from_value(tokens.clone()).unwrap()).unwrap();
        for case in read(folder.join("golden").join(format!("{name}.json"))).as_array().unwrap() {
            let Some(text) = case["text"].as_str() else { continue };
            let title = case["conversation"].as_str().unwrap();
            let mut conversation = conversation(all["conversations"][title].clone());
            if case["options"]["tools"] == true {
                conversation.tools = Some(serde_json::from_value(all["tools"].clone()).unwrap());
            }
            if let Some(thinking) = case["options"].get("enable_thinking") {
                conversation.arguments.insert("enable_thinking".into(), thinking.clone());
            }
            let prompt = case["options"]["add_generation_prompt"] == true;
            // What does not render at all is another test's matter.
            let Ok(found) = find(&template, &conversation, prompt) else { continue };
            let mut texts = Vec::new();
            each_text(&mut conversation, |_, text| texts.push(text.clone()));
            let whole = serde_json::to_string(&(&conversation.messages, &conversation.tools)).unwrap();
            for ((place, found), said) in found.into_iter().zip(&texts) {
                // Reasoning may go, what stands behind it may not; the rest is trimmed and escaped in many ways: its
                // longest plain stretch is looked for, unless that may be another's.
                let said = said.rsplit("</think>").next().unwrap();
                let plain = said.split(|c: char| !c.is_alphanumeric() && !" ,.?+_".contains(c));
                let plain = plain.map(str::trim).max_by_key(|plain| plain.len()).unwrap();
                if plain.len() < 3 || whole.matches(plain).count() > 1 || source.contains(plain) {
                    continue;
                }
                *(if found { &mut there } else { &mut left_out }) += 1;
                if text.contains(plain) != found {
                    wrong.push(format!("{name}, {title}, {place:?}: {plain:?} found: {found}"));
                }
            }
        }
    }
    println!("{there} texts are there, {left_out} left out");
    assert!(there > 5000 && left_out > 100, "{there} {left_out}");
    assert!(wrong.is_empty(), "{}: {wrong:#?}", wrong.len());
}

fn template_of(content: &str) -> String {
    format!("{{% for m in messages %}}<{{{{ m.role }}}}>{content}<end>{{% endfor %}}")
}

#[test]
fn a_message_of_which_nothing_is_rendered_is_an_error() {
    let parts = template_of("{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}");
    let question = json!({"role": "user", "content": "a"});
    let listed = |text: &str| json!([{"type": "text", "text": text}]);
    let error = said(&parts, json!([question]));
    assert_eq!(
        error,
        "message 1 (`user`): nothing of its content is in what the chat template renders of this conversation; the \
         template takes a list of parts: `\"content\": [{\"type\": \"text\", \"text\": \"...\"}]`"
    );
    // The advice is followed.
    assert_eq!(said(&parts, json!([{"role": "user", "content": listed("a")}])), "[]");
    // Of each part something must be there.
    let first = template_of("{{ m.content[0].text }}");
    assert_eq!(said(&first, json!([{"role": "user", "content": listed("a")}])), "[]");
    let two = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
    assert!(said(&first, two).starts_with("message 1 (`user`): nothing of part 2 of its content is in"));
    let two = json!([{"role": "user", "content": ["a", "b"]}]);
    let error = said(&template_of("{{ m.content[0] }}"), two);
    assert!(error.starts_with("message 1 (`user`): nothing of part 2 of its content is in"), "{error}");
    // A letter of the text that stands elsewhere is not it.
    let mute = template_of("{% if m.role != 'user' %}{{ m.content }}{% endif %}");
    for role in ["user", "assistant", "system", "tool"] {
        let said = said(&mute, json!([{"role": role, "content": "e"}]));
        assert_eq!(said.starts_with("message 1 (`user`)"), role == "user", "{said}");
    }
    // There is nothing to be left out.
    assert_eq!(
        said("", json!([{"role": "user", "content": " \n"}, {"role": "user"}, {"role": "user", "content": []}])),
        "[]"
    );
}

#[test]
fn what_a_template_does_to_a_text_is_its_own_matter() {
    let messages =
        || json!([{"role": "user", "content": " <think>a</think> it's b "}, {"role": "user", "content": "c"}]);
    for content in [
        "{{ m.content | trim }}",
        "{{ m.content | upper }}",
        "{{ m.content | tojson(ensure_ascii=true) }}",
        "{{ m.content | e }}",
        "{{ m.content.split('</think>')[-1].strip() }}",
        "{{ m.content.strip().split(' ')[0] }}",
        "{% if '5' in m.content %}{{ raise_exception('no digits') }}{% endif %}{{ m.content }}",
        "{% if '5' in m.content %}{{ raise_exception('no digits') }}{% endif %}{{ m.content | trim }}",
    ] {
        assert_eq!(said(&template_of(content), messages()), "[]", "{content}");
    }
    // Marks are at the text itself, not at the spaces around it.
    for (content, text) in
        [("{{ m.content.split(' ')[1] }}", " a b"), ("{{ m.content.split('  ')[0].split(' ')[1] }}", "a b  ")]
    {
        assert_eq!(said(&template_of(content), json!([{"role": "user", "content": text}])), "[]", "{content}");
    }
    let first_user = "{% for m in messages if m.role == 'user' %}{% if loop.first %}{{ messages[0].content }}{% endif %}{{ \
                      m.content }}{% endfor %}";
    assert_eq!(said(first_user, json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])), "[]");
}

#[test]
fn calls_are_something_that_a_message_says() {
    let call =
        |content: &str| json!([{"role": "assistant", "content": content, "tool_calls": [{"function": {"name": "f"}}]}]);
    let with_calls = "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}";
    assert_eq!(said(&template_of(with_calls), call("")), "[]");
    assert_eq!(said(&template_of(with_calls), call("text")), "[0]");
    assert_eq!(said(&template_of("{{ m.content }}"), call("text")), "[]");
    assert!(said(&template_of("{{ m.content }}"), call("")).contains("nothing of its `tool_calls` is in"));

    let old = json!([{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]);
    let error = said(&template_of(with_calls), old);
    assert!(
        error.contains("nothing of its `function_call` is in") && error.contains("takes `\"tool_calls\""),
        "{error}"
    );
    let followed = json!([{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}]);
    assert_eq!(said(&template_of(with_calls), followed), "[]");
}
