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

/// What an instruct dataset trains of a record, with the columns of its questions and answers.
fn of_pair(record: &Value, [input, output]: [&str; 2]) -> Result<Vec<String>, String> {
    let folder = Folder::new();
    let mut config = instruct(folder.file("d.jsonl", record.to_string()));
    config.column_map = InstructColumns { input: input.into(), output: output.into() };
    let mut found = [None, Some(CHATML)].map(|template| {
        let tokenizer = byte_level(template);
        match load(&[DatasetConfig::Instruct(config.clone())], &tokenizer, None) {
            Ok(dataset) => Ok(shown(&tokenizer, &dataset.samples[0])),
            Err(error) if error.to_string().contains("has a trained token") => Ok(String::new()),
            Err(error) => Err(error.to_string()),
        }
    });
    found.iter_mut().for_each(|found| {
        let trained = |text: &String| {
            text.split('[').nth(1).map_or(String::new(), |part| {
                let part = part.split(']').next().unwrap();
                part.trim_end_matches("<|im_end|>").trim_end_matches("<|endoftext|>").to_owned()
            })
        };
        *found = found.as_ref().map(trained).map_err(Clone::clone);
    });
    found.into_iter().collect()
}

#[test]
fn lists_of_another_length_decide_nothing() {
    // There are no messages that a list could be about.
    for list in [json!([1, 0]), json!([]), json!([0])] {
        let record = json!({"input": "q", "output": "a", "loss_mask": list});
        assert_eq!(of_pair(&record, ["input", "output"]).unwrap(), ["a", "a"], "{record}");
        let mut record = conversation([json!({}), json!({})]);
        record["loss_mask"] = list.clone();
        assert_eq!(trained(&record, Masking::Assistant).unwrap(), [A0, A1]);
        for messages in [0, 4] {
            assert!(!decides_of("loss_mask", &list, messages), "{list}");
        }
    }
    assert!(decides_of("loss_mask", &json!([1, 0]), 2) && !decides_of("loss_mask", &json!([1, 2]), 2));
}

fn decides_of(key: &str, value: &Value, messages: usize) -> bool {
    super::super::trained::decides(key, value, messages)
}

#[test]
fn columns_that_contradict_each_other_are_an_error() {
    let contradict = |columns: Value| {
        let mut record = conversation([json!({}), json!({})]);
        record.as_object_mut().unwrap().extend(columns.as_object().unwrap().clone());
        trained(&record, Masking::Assistant)
    };
    for (columns, named) in [
        (json!({"weight": 0, "train": true}), "`weight`, `train`"),
        (json!({"weight": 1, "train": "False"}), "`weight`, `train`"),
        (json!({"trainable": true, "loss": false}), "`trainable`, `loss`"),
        (json!({"weight": 0, "loss_mask": [0, 0, 0, 1]}), "`weight`, `loss_mask`"),
        (json!({"train": [0, 0, 0, 1], "loss_mask": [0, 1, 0, 1]}), "`train`, `loss_mask`"),
        (json!({"weight": 1, "train": 1, "loss_mask": false}), "`weight`, `train`, `loss_mask`"),
    ] {
        let error = contradict(columns.clone()).unwrap_err();
        assert!(error.contains(&format!("the columns {named} contradict each other")), "{columns}: {error}");
    }
    // Whoever trains a record says no more than that, and a list may say which messages.
    for columns in [
        json!({"weight": 1, "train": true, "loss_mask": [0, 0, 0, 1]}),
        json!({"train": [0, 0, 0, 1], "loss_mask": [0, 0, 0, 1]}),
    ] {
        assert_eq!(contradict(columns).unwrap(), [A1]);
    }
    assert_eq!(contradict(json!({"weight": 0, "train": false, "loss_mask": [0, 0, 0, 0]})).unwrap(), [""; 0]);
}

/// A column that holds questions or answers says nothing of what is trained, whatever its name.
#[test]
fn a_column_of_answers_may_have_such_a_name() {
    let record = json!({"train": "1", "weight": "0"});
    assert_eq!(of_pair(&record, ["train", "weight"]).unwrap(), ["0", "0"]);
    assert_eq!(of_pair(&json!({"weight": "0", "output": "a"}), ["weight", "output"]).unwrap(), ["a", "a"]);
    // Beside it, another such column counts.
    assert_eq!(
        of_pair(&json!({"weight": "0", "output": "a", "train": false}), ["weight", "output"]).unwrap(),
        ["", ""]
    );
    let folder = Folder::new();
    let record = json!({"train": conversation([json!({}), json!({})])["messages"]});
    let mut config = chat(folder.file("d.jsonl", record.to_string()));
    config.conversation_column = "train".into();
    let tokenizer = byte_level(Some(CHATML));
    assert_eq!(texts(&tokenizer, DatasetConfig::Chat(config)).len(), 1);
}
