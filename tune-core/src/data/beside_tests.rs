//! What stands beside the messages: tools, documents, arguments, system prompts, history.

use serde_json::{Value, json};

use super::*;

/// Shows all that a template can be given.
const SHOWS: &str = "{% if tools %}T{{ tools | tojson }}{% endif %}{% if documents %}D{{ documents | tojson }}{% endif %}{% \
                     if mood %}M{{ mood }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content \
                     }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const TURN: &str = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n";

fn with_columns(template: &str, columns: &Value) -> Result<String, String> {
    let mut record = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
    record.as_object_mut().unwrap().extend(columns.as_object().unwrap().clone());
    chat_with(template, &record)
}

#[test]
fn tools_documents_and_arguments_reach_the_template() {
    let tool = r#"{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2.0}}}"#;
    let parsed: Value = serde_json::from_str(tool).unwrap();
    let expected = format!("T[{tool}]{TURN}");
    for tools in [json!([parsed]), json!(format!("[{tool}]")), json!([tool])] {
        assert_eq!(with_columns(SHOWS, &json!({"tools": tools})).unwrap(), expected);
    }
    // The older form, bare and in JSON text.
    let function = parsed["function"].clone();
    for functions in [json!([function]), json!(json!([function]).to_string()), json!([parsed])] {
        assert_eq!(with_columns(SHOWS, &json!({"functions": functions})).unwrap(), expected);
    }
    let own = SHOWS.replace("tools", "functions");
    let bare = format!("T[{}]{TURN}", r#"{"name": "f", "parameters": {"z": 1, "a": 2.0}}"#);
    assert_eq!(with_columns(&own, &json!({"functions": [function]})).unwrap(), bare);

    let documents = json!([{"title": "t", "text": "x"}]);
    let expected = format!(r#"D[{{"title": "t", "text": "x"}}]{TURN}"#);
    for documents in [documents.clone(), json!(documents.to_string())] {
        assert_eq!(with_columns(SHOWS, &json!({"documents": documents})).unwrap(), expected);
    }
    for arguments in [json!({"mood": "blue"}), json!("{\"mood\": \"blue\"}")] {
        assert_eq!(with_columns(SHOWS, &json!({"chat_template_kwargs": arguments})).unwrap(), format!("Mblue{TURN}"));
    }
    let all = json!({"chat_template_kwargs": {"tools": [parsed], "documents": documents, "mood": "blue"}});
    let got = with_columns(SHOWS, &all).unwrap();
    assert!(got.starts_with("T[{") && got.contains("]D[{") && got.contains("]Mblue<"), "{got}");
    for nothing in [json!(null), json!(""), json!("null")] {
        let columns =
            json!({"tools": nothing, "documents": nothing, "chat_template_kwargs": nothing, "functions": nothing});
        assert_eq!(with_columns(SHOWS, &columns).unwrap(), TURN);
    }
}

#[test]
fn columns_that_a_template_cannot_be_given_are_named() {
    for (columns, expected) in [
        (json!({"tools": "hammer"}), "column `tools` is a string and not valid JSON"),
        (json!({"tools": {"name": "f"}}), "column `tools` must be a list or JSON text of one, not an object"),
        (json!({"tools": [3]}), "column `tools`: item 1 must be a mapping, not a number"),
        (json!({"documents": ["x"]}), "column `documents`: item 1 must be a mapping, not a string"),
        (
            json!({"chat_template_kwargs": [1]}),
            "column `chat_template_kwargs` must be a mapping or JSON text of one, not a list",
        ),
        (
            json!({"chat_template_kwargs": {"add_generation_prompt": true}}),
            "`add_generation_prompt` cannot be an argument",
        ),
    ] {
        let error = with_columns(SHOWS, &columns).unwrap_err();
        assert!(error.contains(&format!("d.jsonl:1: {expected}")), "{error}");
    }
    // A template that reads no tools is not given any.
    assert_eq!(with_columns(CHATML, &json!({"tools": "hammer", "documents": 3, "functions": true})).unwrap(), TURN);
}

#[test]
fn sharegpt_has_its_system_prompt_beside() {
    let folder = Folder::new();
    let get = |record: Value, prompt: Option<&str>| {
        let mut config = chat(folder.file("d.jsonl", record.to_string()));
        config.conversation_column = "conversations".into();
        config.conversation_style = ConversationStyle::Sharegpt;
        config.new_system_prompt = prompt.map(str::to_owned);
        let dataset = load(&[DatasetConfig::Chat(config)], &byte_level(Some(SHOWS)), None);
        dataset.map(|d| shown(&byte_level(None), &d.samples[0])).map_err(|e| e.to_string())
    };
    let turns = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]);
    let system = |text: &str| format!("<|im_start|>system\n{text}<|im_end|>\n{TURN}");
    let record = |value: Value| json!({"system": value, "conversations": turns});
    assert_eq!(get(record(json!("s")), None).unwrap(), system("s"));
    assert_eq!(get(record(json!("s")), Some("new")).unwrap(), system("new"));
    for nothing in [json!(""), json!(null)] {
        assert_eq!(get(record(nothing), None).unwrap(), TURN);
    }
    assert!(get(record(json!(3)), None).unwrap_err().contains("column `system` must be a string, not a number"));
    // What the conversation says itself counts.
    let mut own = record(json!("s"));
    own["conversations"].as_array_mut().unwrap().insert(0, json!({"from": "system", "value": "own"}));
    assert_eq!(get(own, None).unwrap(), system("own"));
    let record = json!({"tools": "[{\"name\": \"f\"}]", "conversations": turns});
    assert_eq!(get(record, None).unwrap(), format!("T[{{\"name\": \"f\"}}]{TURN}"));
    // The marks of what is trained stay with their messages.
    let mut marked = json!({"system": "s", "conversations": [turns[0], turns[1], turns[0], turns[1]]});
    marked["conversations"][1]["weight"] = json!(0);
    assert!(
        get(marked, None)
            .unwrap()
            .contains("assistant\na<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]")
    );
}

#[test]
fn alpaca_has_a_history_and_a_system_prompt() {
    let folder = Folder::new();
    let get = |record: Value, template: Option<&str>, masking: Masking| {
        let mut config = alpaca(folder.file("d.jsonl", record.to_string()));
        config.mask.masking_strategy = Some(masking);
        let dataset = load(&[DatasetConfig::Alpaca(config)], &byte_level(template), None);
        dataset.map(|d| shown(&byte_level(None), &d.samples[0])).map_err(|e| e.to_string())
    };
    let record = json!({"instruction": "I", "output": "O", "system": "S", "history": [["q", "a"], ["r", "b"]]});
    let prompt = |text: &str| {
        format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n{text}\n\n### Response:\n"
        )
    };
    let expected = format!("S\n\n{}[a<|im_end|>]{}[b<|im_end|>]{}[O<|im_end|>]", prompt("q"), prompt("r"), prompt("I"));
    assert_eq!(get(record.clone(), None, Masking::Assistant).unwrap(), expected);
    let turn = |question: &str, answer: &str| {
        format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n[{answer}<|im_end|>]\n", prompt(question))
    };
    let expected = format!("<|im_start|>system\nS<|im_end|>\n{}{}{}", turn("q", "a"), turn("r", "b"), turn("I", "O"));
    assert_eq!(get(record.clone(), Some(CHATML), Masking::Assistant).unwrap(), expected);
    for template in [None, Some(CHATML)] {
        let last = get(record.clone(), template, Masking::Last).unwrap();
        assert!(last.contains("[O<|im_end|>]") && last.matches('[').count() == 1, "{last}");
    }
    let bare = json!({"instruction": "I", "output": "O", "system": "", "history": []});
    assert_eq!(get(bare, None, Masking::Assistant).unwrap(), format!("{}[O<|im_end|>]", prompt("I")));
    for (history, expected) in [
        (json!("x"), "column `history` must be a list of [question, answer] pairs or JSON text of one, not a string"),
        (json!([["q", "a"], ["q"]]), "column `history` must be a list of [question, answer] pairs; its item 2 is none"),
    ] {
        let record = json!({"instruction": "I", "output": "O", "history": history});
        assert!(get(record, None, Masking::Assistant).unwrap_err().contains(expected));
    }
}

#[test]
fn sharegpt_calls_tools() {
    let folder = Folder::new();
    let template = SHOWS.replace("m.content", "(m.content or (m.tool_calls | tojson))");
    let get = |call: &str| {
        let record = json!({"tools": "[{\"name\": \"f\"}]", "conversations": [
            {"from": "human", "value": "q"}, {"from": "function_call", "value": call},
            {"from": "observation", "value": "3"}, {"from": "gpt", "value": "a"},
        ]});
        let mut config = chat(folder.file("d.jsonl", record.to_string()));
        config.conversation_column = "conversations".into();
        config.conversation_style = ConversationStyle::Sharegpt;
        let dataset = load(&[DatasetConfig::Chat(config)], &byte_level(Some(&template)), None);
        dataset.map(|d| shown(&byte_level(None), &d.samples[0])).map_err(|e| e.to_string())
    };
    let expected = |calls: &str| {
        format!(
            "T[{{\"name\": \"f\"}}]<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[[{calls}]<|im_end|>]\n<|im_start|>\
             tool\n3<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n"
        )
    };
    let call = r#"{"name": "f", "arguments": {"z": 1, "a": 2}}"#;
    let wrapped = format!(r#"{{"type": "function", "function": {call}}}"#);
    assert_eq!(get(call).unwrap(), expected(&wrapped));
    assert_eq!(get(&format!("[{call}, {call}]")).unwrap(), expected(&format!("{wrapped}, {wrapped}")));
    for wrong in ["f()", "{\"arguments\": {}}", "[]", "3"] {
        let error = get(wrong).unwrap_err();
        assert!(
            error.contains("d.jsonl:1: message 2: `value` of a `function_call` must be JSON text of a call"),
            "{error}"
        );
    }
}
