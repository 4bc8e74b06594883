//! Answers with labels: the forms of a record, what is trained of it, what is wrong with one, and what is told of them.

use serde_json::{Value, json};

use super::*;

fn said(answer: &str) -> Value {
    json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}])
}

fn labelled(answer: &str, is_good: bool) -> Value {
    json!({"messages": said(answer), "label": is_good})
}

fn open(yaml: &str, records: &[Value], batch_size: usize) -> Result<Loader> {
    let folder = Folder::new();
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    let file = folder.file("d.jsonl", lines.join("\n"));
    let yaml = format!("{yaml}\ndata_files: {}\n", file.display());
    let config = crate::config::load::<UnpairedConfig>(crate::config::Input::yaml("c.yaml", yaml)).unwrap().config;
    let options = LoaderOptions { batch_size, ..LoaderOptions::default() };
    Loader::open([&config], &byte_level(Some(CHATML)), None, options)
}

/// The samples of the first batch, as text with what is trained in brackets, and their labels.
fn first(loader: &Loader) -> (Vec<String>, Vec<bool>) {
    let tokenizer = byte_level(Some(CHATML));
    let batch = loader.batch(0, 0).unwrap().unwrap();
    let of = |span: &Span| {
        let positions = batch.positions_of(span);
        let (input_ids, targets) = (batch.input_ids[positions.clone()].to_vec(), batch.targets[positions].to_vec());
        shown(&tokenizer, &Sample { input_ids, targets, origin: String::new(), label: None })
    };
    (batch.spans.iter().map(of).collect(), batch.labels.clone())
}

fn chatml(answer: &str) -> String {
    format!("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[{answer}<|im_end|>]\n")
}

fn error(yaml: &str, record: &Value) -> String {
    let error = open(yaml, std::slice::from_ref(record), 1).map(drop).unwrap_err().to_string();
    error.split("d.jsonl:1: ").nth(1).unwrap_or_else(|| panic!("{error}")).to_owned()
}

const CONVERSATIONS: &str = "_component_: unpaired";
const COLUMNS: &str = "_component_: unpaired_instruct";

#[test]
fn an_answer_comes_with_its_label() {
    let loader = open(CONVERSATIONS, &[labelled("yes", true), labelled("no", false), labelled("a", true)], 2).unwrap();
    assert_eq!(first(&loader), (["yes", "no"].map(chatml).to_vec(), vec![true, false]));
    assert_eq!(loader.batch(0, 1).unwrap().unwrap().labels, [true]);
    let report = &loader.reports().unwrap()[0];
    assert_eq!((report.samples, report.good), (3, Some(2)));
    assert!(
        report.to_string().contains("unpaired dataset") && report.to_string().contains("3 answers (2 good, 1 bad)")
    );
    assert_eq!(loader.news(1000), Vec::<String>::new());
}

#[test]
fn other_forms_say_the_same() {
    let sharegpt = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}]);
    for (yaml, record) in [
        (COLUMNS, json!({"prompt": "q", "completion": "yes", "label": true})),
        // Numbers, and texts as CSV has them.
        (COLUMNS, json!({"prompt": "q", "completion": "yes", "label": 1})),
        (COLUMNS, json!({"prompt": "q", "completion": "yes", "label": "True"})),
        (
            "_component_: unpaired_instruct\ncolumn_map: {prompt: a, completion: b, label: kto_tag}",
            json!({"a": "q", "b": "yes", "kto_tag": true}),
        ),
        // TRL's conversations.
        (
            "_component_: unpaired\ncolumn_map: {prompt: prompt, messages: completion}",
            json!({"prompt": [said("")[0]], "completion": [said("yes")[1]], "label": true}),
        ),
        (
            "_component_: unpaired\nconversation_style: sharegpt\ncolumn_map: {messages: conversations}",
            json!({"conversations": sharegpt, "label": true}),
        ),
        (CONVERSATIONS, json!({"messages": said("yes").to_string(), "label": true})),
    ] {
        let loader = open(yaml, std::slice::from_ref(&record), 1).unwrap();
        assert_eq!(first(&loader), (vec![chatml("yes")], vec![true]), "{yaml}: {record}");
    }
}

#[test]
fn the_last_answer_alone_is_trained() {
    let turns = json!([said("first")[0], said("first")[1], said("second")[0], said("second")[1]]);
    let loader = open(CONVERSATIONS, &[json!({"messages": turns, "label": false})], 1).unwrap();
    let (texts, labels) = first(&loader);
    assert_eq!(texts, [chatml("first").replace(['[', ']'], "") + &chatml("second")]);
    assert_eq!(labels, [false]);
}

#[test]
fn a_label_that_is_none_is_named() {
    let with = |label: Value| json!({"prompt": "q", "completion": "a", "label": label});
    let what = "a label is true for a good answer and false for a bad one";
    for (yaml, record, expected) in [
        (
            CONVERSATIONS,
            json!({"messages": said("a")}),
            "no column `label` (the columns are: `messages`). `column_map` names the columns".to_owned(),
        ),
        (
            COLUMNS,
            json!({"prompt": "q", "completion": "a", "labels": true}),
            "no column `label` (the columns are: `prompt`, `completion`, `labels`); did you mean `labels`?".to_owned(),
        ),
        (COLUMNS, with(json!("good")), format!("column `label` is \"good\"; {what}")),
        (COLUMNS, with(json!(2)), format!("column `label` is 2; {what}")),
        (COLUMNS, with(json!(null)), format!("column `label` is null; {what}")),
        (COLUMNS, with(json!([true])), format!("column `label` is a list; {what}")),
        (COLUMNS, json!({"prompt": "q", "label": true}), "no column `completion`".to_owned()),
        (
            CONVERSATIONS,
            json!({"messages": "a", "label": true}),
            "column `messages` must be a list of messages or JSON text of one, not a string".to_owned(),
        ),
    ] {
        let found = error(yaml, &record);
        assert!(found.starts_with(&expected), "{found}\ninstead of {expected}");
    }
}

#[test]
fn labels_that_are_all_the_same_are_told_of() {
    for (is_good, word) in [(true, "good"), (false, "bad")] {
        let loader = open(CONVERSATIONS, &[labelled("a", is_good), labelled("b", is_good)], 1).unwrap();
        let warnings = &loader.reports().unwrap()[0].warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains(&format!("all 2 answers are labelled {word}")), "{warnings:?}");
    }
}

#[test]
fn the_fingerprint_knows_labels() {
    let of = |is_good: bool| open(CONVERSATIONS, &[labelled("a", is_good)], 1).unwrap().fingerprint().unwrap();
    assert_eq!(of(true), of(true));
    assert_ne!(of(true), of(false));
}
