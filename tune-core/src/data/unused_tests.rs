//! What records hold and nobody reads is named, once and with its count.

use serde_json::{Value, json};

use super::*;

fn warnings(config: DatasetConfig, template: Option<&str>) -> Vec<String> {
    load(&[config], &byte_level(template), None).unwrap().warnings(usize::MAX)
}

fn of_chat(template: &str, records: &[Value]) -> Vec<String> {
    let folder = Folder::new();
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    let warnings = warnings(DatasetConfig::Chat(chat(folder.file("d.jsonl", lines.join("\n")))), Some(template));
    warnings.into_iter().map(|warning| warning.split("d.jsonl: ").nth(1).unwrap().to_owned()).collect()
}

fn record(key: &str, value: &Value) -> Value {
    let mut record = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
    record["messages"][1][key] = value.clone();
    record
}

/// Keys of messages that other tools write, each with a value of theirs.
fn keys() -> Vec<(&'static str, Value)> {
    vec![
        ("name", json!("ann")),
        ("tool_calls", json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}])),
        ("tool_call_id", json!("c1")),
        ("reasoning_content", json!("because")),
        ("reasoning", json!("because")),
        ("thinking", json!("because")),
        ("weight", json!(1)),
        ("train", json!(true)),
        ("training", json!(true)),
        ("trainable", json!(1)),
        ("loss", json!(true)),
        ("loss_mask", json!(1)),
        ("mask", json!(false)),
        ("masked", json!(true)),
        ("train_detail", json!([{"begin_offset": 0, "end_offset": 1, "train": false}])),
        ("id", json!(7)),
        ("parent_id", json!("x")),
        ("timestamp", json!(1.5)),
        ("refusal", json!("no")),
        ("function_call", json!({"name": "f", "arguments": "{}"})),
        ("audio", json!({"id": "a"})),
        ("images", json!(["x.png"])),
        ("annotations", json!([{"type": "url_citation"}])),
        ("metadata", json!({"a": 1})),
        ("citations", json!(["x"])),
        ("end_turn", json!(true)),
        ("recipient", json!("all")),
        ("channel", json!("final")),
        ("eot", json!(false)),
        ("score", json!(0)),
    ]
}

#[test]
fn each_key_of_a_message_is_used_or_decides_or_is_named() {
    for (key, value) in keys() {
        let records = [record(key, &value), record("role", &json!("assistant")), record(key, &value)];
        let said = of_chat(CHATML, &records);
        let decides = ["weight", "train", "training", "trainable", "loss", "loss_mask"].contains(&key);
        match decides {
            true => assert_eq!(said, [""; 0], "{key}"),
            false => assert_eq!(said, [format!("keys of messages that are not used: `{key}` (in 2 messages)")]),
        }
        // A template that writes it, by whatever means, uses it.
        let by_name = CHATML.replace("+ '<|im_end|>'", &format!("+ (message.{key} | string) + '<|im_end|>'"));
        assert_eq!(of_chat(&by_name, &records), [""; 0], "{key}");
        let whole = CHATML.replace("+ '<|im_end|>'", "+ (message | tojson) + '<|im_end|>'");
        assert_eq!(of_chat(&whole, &records), [""; 0], "{key}");
        // What holds nothing is not missed.
        let empty = match value {
            Value::Array(_) => json!([]),
            Value::Object(_) => json!({}),
            Value::String(_) => json!(""),
            _ => json!(null),
        };
        assert_eq!(of_chat(CHATML, &[record(key, &empty)]), [""; 0], "{key}");
    }
    // To be mentioned is not to be read.
    let calls =
        CHATML.replace("+ '<|im_end|>'", "+ ((message.tool_calls or [{}])[0].name | default('')) + '<|im_end|>'");
    assert_eq!(
        of_chat(&calls, &[record("name", &json!("ann"))]),
        ["keys of messages that are not used: `name` (in 1 message)"]
    );
}

#[test]
fn marks_of_what_is_not_an_answer_are_named() {
    let folder = Folder::new();
    let mut record = record("weight", &json!(1));
    record["messages"][0]["weight"] = json!(1);
    let file = folder.file("d.jsonl", record.to_string());
    for (masking, value, named) in [
        (Masking::Assistant, json!(1), true),
        (Masking::Assistant, json!(0), false),
        (Masking::Last, json!(1), true),
        (Masking::All, json!(1), false),
        (Masking::All, json!(0), true),
    ] {
        record["messages"][0]["weight"] = value;
        folder.file("d.jsonl", record.to_string());
        let mut config = chat(&file);
        config.mask.masking_strategy = Some(masking);
        let said = warnings(DatasetConfig::Chat(config), Some(CHATML)).join("\n");
        assert_eq!(said.ends_with("`weight` (in 1 message that are not the assistant's)"), named, "{said}");
        assert!(named || said.is_empty(), "{said}");
    }
}

#[test]
fn keys_of_parts_are_looked_at() {
    let part = json!([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "image_url": null}]);
    let records = [record("content", &part)];
    assert_eq!(
        of_chat(CHATML, &records),
        ["keys of messages that are not used: `cache_control` of parts of a content (in 1 of them)"]
    );
}

#[test]
fn each_column_is_used_or_named() {
    let with = |name: &str, value: Value| {
        let mut record = record("role", &json!("assistant"));
        record[name] = value;
        record
    };
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let reading = format!("{{% if tools or documents or mood %}}{{{{ tools | tojson }}}}{{% endif %}}{CHATML}");
    for (name, value, decides, read) in [
        ("id", json!(1), false, false),
        ("source", json!("web"), false, false),
        ("system", json!("s"), false, false),
        ("weight", json!(1), true, false),
        ("weight", json!(0.5), false, false),
        ("loss", json!(0.0), false, false),
        ("train", json!(true), true, false),
        ("tools", tools.clone(), false, true),
        ("tools", json!(tools.to_string()), false, true),
        ("functions", json!([{"name": "f"}]), false, true),
        ("documents", json!([{"title": "t", "text": "x"}]), false, true),
    ] {
        let records = [with(name, value.clone()), record("role", &json!("assistant")), with(name, value)];
        let named = format!("columns that are not used: `{name}` (in 2 records)");
        let said = of_chat(CHATML, &records);
        assert!(if decides { said.is_empty() } else { said.len() == 1 && said[0].starts_with(&named) }, "{said:?}");
        let reads = if read { "The chat template reads no" } else { "" };
        assert!(said.iter().all(|said| said.contains(reads) && said.contains("reads no") == read), "{said:?}");
        let said = of_chat(&reading, &records);
        assert!(if decides || read { said.is_empty() } else { said[0].starts_with(&named) }, "{said:?}");
    }
    let arguments = with("chat_template_kwargs", json!({"mood": "blue", "enable_thinking": false, "none": null}));
    let expected = "columns that are not used: `chat_template_kwargs.enable_thinking` (in 1 record)";
    assert_eq!(of_chat(&reading, &[arguments]), [expected]);
}

#[test]
fn the_other_kinds_of_datasets_name_columns_too() {
    let folder = Folder::new();
    let file = folder.file("d.jsonl", r#"{"input": "q", "output": "a", "history": [["a", "b"]], "id": 3}"#);
    let said = warnings(DatasetConfig::Instruct(instruct(&file)), None);
    assert!(said.len() == 1 && said[0].ends_with("not used: `history` (in 1 record), `id` (in 1 record)"), "{said:?}");
    let text = TextDataset {
        files: files(&file),
        column: "input".into(),
        add_eos: true,
        rows: Rows::default(),
        split_across_pack: false,
    };
    let said = warnings(DatasetConfig::Text(text), None);
    assert!(said[0].ends_with("`history` (in 1 record), `id` (in 1 record), `output` (in 1 record)"), "{said:?}");
    let file = folder
        .file("a.jsonl", r#"{"instruction": "i", "output": "o", "history": [["a", "b"]], "system": "s", "id": 3}"#);
    let alpaca = AlpacaDataset {
        files: files(file),
        column_map: AlpacaColumns { instruction: "instruction".into(), input: "input".into(), output: "output".into() },
        apply_chat_template: None,
        mask: Mask::default(),
        rows: Rows::default(),
    };
    let said = warnings(DatasetConfig::Alpaca(alpaca), None);
    assert!(said.len() == 1 && said[0].ends_with("not used: `id` (in 1 record)"), "{said:?}");
}

/// Before the first step, also of data that is tokenized while training runs.
#[test]
fn what_nobody_reads_is_said_at_the_start() {
    let folder = Folder::new();
    let line = record("id", &json!(3)).to_string() + "\n";
    for records in [2, 9000] {
        let config = DatasetConfig::Chat(chat(folder.file("d.jsonl", line.repeat(records))));
        let loader = Loader::open(&[config], &byte_level(Some(CHATML)), None, LoaderOptions::default()).unwrap();
        let said = loader.news(usize::MAX);
        let expected = format!("not used: `id` (in {records} messages)");
        assert!(said[0].starts_with("warning: ") && said[0].ends_with(&expected), "{said:?}");
        loader.len().unwrap();
        assert!(!loader.news(usize::MAX).iter().any(|line| line.contains("`id`")));
    }
}
