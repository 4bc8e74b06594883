//! Chat templates render as in Python's transformers: `chat_templates/expected.json` is what
//! `chat_templates/make_expected.py` got there.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::Value;
use tune_core::tokenizer::{ChatTemplate, Conversation, Message};

#[test]
fn templates_render_as_in_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/chat_templates");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let expected: Value = serde_json::from_str(&read("expected.json")).unwrap();
    let tokens: BTreeMap<String, String> = serde_json::from_value(expected["tokens"].clone()).unwrap();
    let now = expected["now"].as_i64().unwrap();

    let mut wrong = Vec::new();
    let cases = expected["cases"].as_array().unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let conversation = case["conversation"].as_str().unwrap();
        let messages: Vec<Message> = serde_json::from_value(expected["conversations"][conversation].clone()).unwrap();
        let messages = Conversation::new(messages);
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let template = ChatTemplate::new(&read(&format!("{name}.jinja")), tokens.clone())
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .at(now);
        let got = template.render(&messages, prompt);
        let title = format!("{name}, {conversation}, {prompt}");
        match (got, case["text"].as_str(), case["error"].as_str()) {
            (Ok(got), Some(text), _) if got == text => {}
            (Ok(got), Some(text), _) => wrong.push(format!("{title}\n got {got:?}\nwant {text:?}")),
            (Err(got), _, Some(error)) if got.to_string().contains(error) => {}
            (got, _, _) => wrong.push(format!("{title}\n got {got:?}\nwant {case}")),
        }
        if let (Some(spans), false) = (case["generated"].as_array(), prompt) {
            let rendered = template.render_marked(&messages).unwrap();
            let got: Vec<&str> = rendered.generated.iter().map(|r| &rendered.text[r.clone()]).collect();
            let want: Vec<&str> = spans.iter().filter_map(Value::as_str).collect();
            if got != want {
                wrong.push(format!("{title}, marks\n got {got:?}\nwant {want:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// 2,856 renderings of 49 real templates, in a folder that is not part of this repository.
#[test]
fn the_reference_templates_render_as_in_transformers_where_their_folder_is_there() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/templates");
    if !folder.is_dir() {
        let notice = format!("NOTICE: {} is missing, so the reference templates are NOT tested\n", folder.display());
        // Past the capture of a test's output: this must be seen.
        #[expect(clippy::disallowed_methods, reason = "a test that cannot write fails")]
        let mut seen = std::io::stderr();
        seen.write_all(notice.as_bytes()).unwrap();
        return;
    }
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let data = tune_jinja::parse_json(&read("conversations.json")).unwrap();
    let tokens: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_str(&read("special_tokens.json")).unwrap();
    let mut wrong = Vec::new();
    let mut count = 0;
    for (name, tokens) in tokens {
        let template = ChatTemplate::new(&read(&format!("templates/{name}.jinja")), tokens)
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .at(1_721_995_200);
        let cases: Vec<Value> = serde_json::from_str(&read(&format!("golden/{name}.json"))).unwrap();
        count += cases.len();
        for case in cases {
            let messages = &data["conversations"][case["conversation"].as_str().unwrap()];
            let mut options: tune_core::tokenizer::Object = serde_json::from_value(case["options"].clone()).unwrap();
            let mut conversation: Conversation =
                serde_json::from_value::<Vec<Message>>(messages.clone()).unwrap().into();
            let prompt = options.remove("add_generation_prompt") == Some(true.into());
            if options.remove("tools") == Some(true.into()) {
                conversation.tools = Some(serde_json::from_value(data["tools"].clone()).unwrap());
            }
            conversation.arguments = options;
            let got = template.render(&conversation, prompt).map_err(|e| e.to_string());
            let same = match (&got, case["text"].as_str(), case["error"].as_str()) {
                (Ok(got), Some(text), _) => got == text,
                (Err(got), None, Some(error)) => case["error_type"] != "TemplateError" || got.contains(error),
                _ => false,
            };
            if !same {
                wrong.push(format!("{name}: {case}\n got {got:?}"));
            }
        }
    }
    assert!(count >= 2_856);
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}
