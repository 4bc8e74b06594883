//! Sequences that are scored: where the score is, what a label may be, and what is told of one that is none.

use serde_json::{Value, json};

use super::*;
use crate::config::{Input, load as read};

fn config(folder: &Folder, yaml: &str, records: &[Value], labels: &[&str]) -> DataConfig {
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    let yaml = format!("{yaml}\ndata_files: {}\n", folder.file("d.jsonl", lines.join("\n")).display());
    let config = read::<ScoredConfig>(Input::yaml("c.yaml", yaml)).unwrap().config;
    config.with_labels(&labels.iter().map(|&label| label.to_owned()).collect::<Vec<_>>())
}

/// The first batch: each sample's text up to its score, and the target there.
fn first(yaml: &str, records: &[Value], labels: &[&str]) -> Result<Vec<(String, u32)>> {
    let (folder, tokenizer) = (Folder::new(), byte_level(Some(CHATML)));
    let options = LoaderOptions { batch_size: 16, ..LoaderOptions::default() };
    let loader = Loader::open([config(&folder, yaml, records, labels)], &tokenizer, Some(64), options)?;
    let batch = loader.batch(0, 0)?.unwrap();
    let of = |span: &Span| {
        let positions = batch.positions_of(span);
        let (ids, targets) = (&batch.input_ids[positions.clone()], &batch.targets[positions]);
        let (last, before) = targets.split_last().unwrap();
        assert!(before.iter().all(|&target| target == IGNORE));
        (tokenizer.decode(ids, false).unwrap(), *last)
    };
    Ok(batch.spans.iter().map(of).collect())
}

const LABELLED: &str = "_component_: labelled";
const PAIRS: &str = "_component_: preference_instruct";

#[test]
fn a_label_is_a_name_or_a_number() {
    let record = |label: Value| json!({"text": "a b", "label": label});
    let records = [json!("no"), json!("yes"), json!(1), json!(0), json!("1"), json!(1.0)].map(record);
    let found = first(LABELLED, &records, &["no", "yes"]).unwrap();
    assert_eq!(found.iter().map(|(_, label)| *label).collect::<Vec<_>>(), [0, 1, 1, 0, 1, 1]);
    assert!(found.iter().all(|(text, _)| text == "a b"), "{found:?}");
    // A name comes before a number, and truth has names.
    let names = |label: Value, labels: &[&str]| first(LABELLED, &[record(label)], labels).unwrap()[0].1;
    assert_eq!(names(json!("1"), &["1", "0"]), 0);
    assert_eq!(names(json!(true), &["false", "true"]), 1);
    let other = "_component_: labelled\ncolumn: said\nlabel_column: of";
    assert_eq!(first(other, &[json!({"said": "x", "of": "yes"})], &["no", "yes"]).unwrap(), [("x".into(), 1)]);
}

#[test]
fn several_texts_share_a_row_and_keep_their_labels() {
    let records: Vec<Value> = (0..9).map(|i| json!({"text": "a ".repeat(i + 1), "label": i % 3})).collect();
    let alone = first(LABELLED, &records, &["x", "y", "z"]).unwrap();
    for packing in ["greedy", "best_fit"] {
        let yaml = format!("{LABELLED}\npacked: true\npacking: {packing}");
        let mut shared = first(&yaml, &records, &["x", "y", "z"]).unwrap();
        shared.sort_by_key(|(text, _)| text.len());
        assert_eq!(shared, alone, "{packing}");
    }
}

#[test]
fn what_is_no_label_is_told_with_its_place() {
    let error = |yaml: &str, record: Value| first(yaml, &[record], &["negative", "positive"]).unwrap_err().to_string();
    for (record, expected) in [
        (
            json!({"text": "x", "label": "negativ"}),
            "column `label` is \"negativ\", which is no class: `labels` has `negative`, `positive` (0 to 1); the nearest is `negative`",
        ),
        (json!({"text": "x", "label": 2}), "column `label` is 2, which is no class"),
        (json!({"text": "x", "label": -1}), "column `label` is -1, which is no class"),
        (json!({"text": "x", "label": 0.5}), "column `label` is 0.5, which is no class"),
        (json!({"text": "x", "label": [1]}), "column `label` must be a class's name or number, not a list"),
        (json!({"text": "x", "lable": 1}), "no column `label`"),
        (json!({"label": 1}), "no column `text`"),
    ] {
        let error = error(LABELLED, record);
        assert!(error.contains("d.jsonl:1: ") && error.contains(expected), "{error}");
    }
}

/// A pair is scored at the last token of either answer, whatever of it is trained elsewhere.
#[test]
fn answers_are_scored_at_their_ends() {
    let pair = json!({"prompt": "q", "chosen": "yes", "rejected": "no"});
    let rendered = |answer: &str| format!("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n");
    let expected = [(rendered("yes"), 0), (rendered("no"), 0)];
    assert_eq!(first(PAIRS, std::slice::from_ref(&pair), &[]).unwrap(), expected);
    // The token that ends a text is what fills rows up here: the score is before it, as transformers finds it.
    let plain = format!("{PAIRS}\napply_chat_template: false");
    let found = first(&plain, &[pair], &[]).unwrap();
    let tokenizer = byte_level(Some(CHATML));
    assert_eq!(tokenizer.pad(), tokenizer.eos());
    assert_eq!(found, [("qyes".into(), 0), ("qno".into(), 0)]);
}

/// Another label is other data, and a run that goes on says so.
#[test]
fn labels_are_in_the_fingerprint() {
    let of = |label: u32| {
        let folder = Folder::new();
        let config = config(&folder, LABELLED, &[json!({"text": "x y", "label": label})], &["a", "b"]);
        Loader::open([config], &byte_level(None), None, LoaderOptions::default()).unwrap().fingerprint().unwrap()
    };
    assert_eq!(of(0), of(0));
    assert_ne!(of(0), of(1));
}
