//! What a record says of its own training.

use serde_json::{Value, json};

use super::*;

/// A template whose `{% generation %}` marks tell what is trained.
const MARKED: &str = include_str!("../../../tests/chat_templates/chatml_generation.jinja");

fn conversation(marks: [Value; 2]) -> Value {
    let mut messages = Vec::new();
    for (n, mark) in marks.into_iter().enumerate() {
        messages.push(json!({"role": "user", "content": format!("q{n}")}));
        messages.push(json!({"role": "assistant", "content": format!("a{n}")}));
        messages[2 * n + 1].as_object_mut().unwrap().extend(mark.as_object().unwrap().clone());
    }
    json!({"messages": messages})
}

/// What is trained of a record, or why it cannot be used.
fn trained_with(template: &str, record: &Value, masking: Masking) -> Result<Vec<String>, String> {
    let folder = Folder::new();
    let mut config = chat(folder.file("d.jsonl", record.to_string()));
    config.mask.masking_strategy = Some(masking);
    let tokenizer = byte_level(Some(template));
    let configs = [DatasetConfig::Chat(config)];
    let dataset = match load(&configs, &tokenizer, None) {
        Ok(dataset) => dataset,
        Err(error) if error.to_string().contains("has a trained token") => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string().split("d.jsonl").nth(1).unwrap().to_owned()),
    };
    let text = shown(&tokenizer, &dataset.samples[0]);
    let trained = text.split('[').skip(1).map(|part| part.split(']').next().unwrap().to_owned());
    Ok(trained.collect())
}

fn trained(record: &Value, masking: Masking) -> Result<Vec<String>, String> {
    let found = trained_with(CHATML, record, masking);
    assert_eq!(trained_with(MARKED, record, masking), found, "{record}");
    found
}

const A0: &str = "a0<|im_end|>";
const A1: &str = "a1<|im_end|>";

#[test]
fn an_answer_may_be_context_alone() {
    for key in ["weight", "train", "training", "trainable", "loss", "loss_mask"] {
        for (no, yes) in [(json!(0), json!(1)), (json!(false), json!(true)), (json!(0.0), json!(1.0))] {
            let record = conversation([json!({key: no}), json!({key: yes})]);
            assert_eq!(trained(&record, Masking::Assistant).unwrap(), [A1], "{record}");
            let record = conversation([json!({key: yes}), json!({key: no})]);
            assert_eq!(trained(&record, Masking::Assistant).unwrap(), [A0], "{record}");
            // Neither of the strategies trains what is left out.
            assert_eq!(trained(&record, Masking::Last).unwrap(), [""; 0]);
            let all = trained(&record, Masking::All).unwrap();
            assert!(
                all.len() == 2 && all[0].ends_with("q1<|im_end|>\n<|im_start|>assistant\n") && all[1] == "\n",
                "{all:?}"
            );
            let record = conversation([json!({key: no}), json!({})]);
            assert_eq!(trained(&record, Masking::Assistant).unwrap(), [A1]);
            // A null says nothing, and a record of which nothing is left is one without a trained token.
            let record = conversation([json!({key: null}), json!({key: yes})]);
            assert_eq!(trained(&record, Masking::Assistant).unwrap(), [A0, A1]);
            let record = conversation([json!({key: no}), json!({key: no})]);
            for masking in [Masking::All, Masking::Assistant, Masking::Last] {
                assert_eq!(trained(&record, masking).unwrap(), [""; 0]);
            }
        }
    }
}

#[test]
fn what_is_neither_yes_nor_no_is_an_error() {
    for (mark, expected) in [
        (json!({"weight": 0.5}), "`weight` must be true or false, 1 or 0, not 0.5"),
        (json!({"weight": 2}), "`weight` must be true or false, 1 or 0, not 2"),
        (json!({"weight": "0"}), "`weight` must be true or false, 1 or 0, not a string"),
        (json!({"loss_mask": [0, 1]}), "`loss_mask` must be true or false, 1 or 0, not a list"),
        (json!({"weight": 0, "train": true}), "`weight` and `train` contradict each other"),
    ] {
        let error = trained(&conversation([json!({}), mark]), Masking::Assistant).unwrap_err();
        assert!(error.contains(&format!(":1: message 4: {expected}")), "{error}");
    }
    assert_eq!(
        trained(&conversation([json!({}), json!({"weight": 0, "train": false})]), Masking::Assistant).unwrap(),
        [A0]
    );
}

#[test]
fn a_whole_record_may_be_left_out() {
    let record = |key: &str, value: Value| {
        let mut record = conversation([json!({}), json!({})]);
        record[key] = value;
        trained(&record, Masking::Assistant).unwrap()
    };
    for key in ["weight", "train", "training", "trainable", "loss", "loss_mask"] {
        assert_eq!(record(key, json!(false)), [""; 0]);
        assert_eq!(record(key, json!(true)), [A0, A1]);
        // One value for each message.
        assert_eq!(record(key, json!([0, 0, 0, 1])), [A1]);
        assert_eq!(record(key, json!([true, true, true, false])), [A0]);
    }
    assert_eq!(record("weight", json!(0)), [""; 0]);
    // In a table whose columns are all text.
    for (no, yes) in [("false", "true"), ("False", "True"), ("0", "1"), ("0.0", "1.0")] {
        assert_eq!(record("train", json!(no)), [""; 0]);
        assert_eq!(record("train", json!(yes)), [A0, A1]);
    }
    assert_eq!(record("loss", json!("0")), [A0, A1]);
    // Something else under such a name decides nothing: a loss that was measured, a source's share of a mixture.
    assert_eq!(record("loss", json!(0)), [A0, A1]);
    assert_eq!(record("weight", json!(0.25)), [A0, A1]);
    assert_eq!(record("train", json!("yes")), [A0, A1]);
    assert_eq!(record("loss_mask", json!([0, 1])), [A0, A1]);

    let folder = Folder::new();
    let lines = "{\"input\": \"q\", \"output\": \"a\", \"train\": false}\n{\"input\": \"r\", \"output\": \"b\"}";
    let config = || DatasetConfig::Instruct(instruct(folder.file("d.jsonl", lines)));
    for template in [None, Some(CHATML)] {
        let dataset = load(&[config()], &byte_level(template), None).unwrap();
        assert_eq!((dataset.samples.len(), dataset.reports[0].dropped), (1, 1));
    }
}
