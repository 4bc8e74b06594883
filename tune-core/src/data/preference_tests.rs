//! Pairs of answers: both sides of a record, what is wrong with either, and what is told of them.

use serde_json::{Value, json};

use super::*;

fn said(answer: &str) -> Value {
    json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}])
}

fn pair(chosen: &str, rejected: &str) -> Value {
    json!({"chosen": said(chosen), "rejected": said(rejected)})
}

/// Pairs with what a config says besides, on records.
fn config(folder: &Folder, yaml: &str, records: &[Value]) -> PreferenceConfig {
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    let file = folder.file("d.jsonl", lines.join("\n"));
    let yaml = format!("{yaml}\ndata_files: {}\n", file.display());
    crate::config::load::<PreferenceConfig>(crate::config::Input::yaml("c.yaml", yaml)).unwrap().config
}

fn open(yaml: &str, records: &[Value], max_seq_len: Option<usize>, batch_size: usize) -> Result<Loader> {
    let folder = Folder::new();
    let options = LoaderOptions { batch_size, ..LoaderOptions::default() };
    Loader::open([&config(&folder, yaml, records)], &byte_level(Some(CHATML)), max_seq_len, options)
}

/// The samples of the first batch, as text with what is trained in brackets.
fn first(loader: &Loader) -> Vec<String> {
    let tokenizer = byte_level(Some(CHATML));
    let batch = loader.batch(0, 0).unwrap().unwrap();
    let of = |span: &Span| {
        let positions = batch.positions_of(span);
        let (input_ids, targets) = (batch.input_ids[positions.clone()].to_vec(), batch.targets[positions].to_vec());
        shown(&tokenizer, &Sample { input_ids, targets, origin: String::new(), label: None })
    };
    batch.spans.iter().map(of).collect()
}

fn chatml(answer: &str) -> String {
    format!("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[{answer}<|im_end|>]\n")
}

fn error(yaml: &str, record: &Value) -> String {
    let error = open(yaml, std::slice::from_ref(record), None, 1).map(drop).unwrap_err().to_string();
    error.split("d.jsonl:1: ").nth(1).unwrap_or_else(|| panic!("{error}")).to_owned()
}

const CONVERSATIONS: &str = "_component_: preference";
const COLUMNS: &str = "_component_: preference_instruct";

#[test]
fn the_answers_of_a_pair_share_a_row_and_the_preferred_one_is_first() {
    let loader = open(CONVERSATIONS, &[pair("yes", "no"), pair("a", "bcd")], None, 2).unwrap();
    let batch = loader.batch(0, 0).unwrap().unwrap();
    assert_eq!(batch.spans.iter().map(|span| span.row).collect::<Vec<_>>(), [0, 0, 1, 1]);
    assert_eq!(first(&loader), ["yes", "no", "a", "bcd"].map(chatml));
    assert_eq!(loader.len().unwrap(), 1);
    let report = &loader.reports().unwrap()[0];
    assert_eq!((report.pairs, report.samples), (Some(2), 4));
    assert!(report.to_string().contains("preference dataset") && report.to_string().contains("2 pairs of answers, "));
    // Positions begin anew with each answer.
    assert_eq!(batch.positions[batch.positions_of(&batch.spans[1])][0], 0);
}

#[test]
fn other_forms_say_the_same() {
    let columns = |chosen: &str, rejected: &str| json!({"prompt": "q", "chosen": chosen, "rejected": rejected});
    let mapped = json!({"question": "q", "response_j": "yes", "response_k": "no"});
    let sharegpt = |answer: &str| json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]);
    let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
    let apart = json!({"prompt": [said("")[0]], "chosen": answer("yes"), "rejected": answer("no")});
    let apart_as_text = json!({
        "prompt": apart["prompt"].to_string(), "chosen": apart["chosen"].to_string(), "rejected": answer("no")
    });
    let with_prompt = "_component_: preference\ncolumn_map: {prompt: prompt}";
    for (yaml, record) in [
        (COLUMNS, columns("yes", "no")),
        (
            "_component_: preference_instruct\ncolumn_map: {prompt: question, chosen: response_j, rejected: response_k}",
            mapped,
        ),
        (
            "_component_: preference\nconversation_style: sharegpt\ncolumn_map: {chosen: a, rejected: b}",
            json!({"a": sharegpt("yes"), "b": sharegpt("no")}),
        ),
        (with_prompt, apart),
        (with_prompt, apart_as_text),
        (CONVERSATIONS, json!({"chosen": said("yes").to_string(), "rejected": said("no").to_string()})),
    ] {
        let loader = open(yaml, std::slice::from_ref(&record), None, 1).unwrap();
        assert_eq!(first(&loader), ["yes", "no"].map(chatml), "{yaml}: {record}");
        assert_eq!(loader.news(1000), Vec::<String>::new(), "{yaml}: {record}");
    }
    // A system prompt, and which answers are trained.
    let yaml = "_component_: preference\nnew_system_prompt: Be kind.\nmasking_strategy: all";
    let loader = open(yaml, &[pair("yes", "no")], None, 1).unwrap();
    assert_eq!(
        first(&loader)[1],
        format!("<|im_start|>[system\nBe kind.<|im_end|>\n{}]", chatml("no").replace(['[', ']'], ""))
    );
}

#[test]
fn a_side_that_is_wrong_is_named() {
    for (yaml, record, expected) in [
        (
            CONVERSATIONS,
            json!({"chosen": said("a")}),
            "no column `rejected` (the columns are: `chosen`). `column_map` names the columns",
        ),
        (
            CONVERSATIONS,
            json!({"chosn": said("a"), "rejected": said("b")}),
            "no column `chosen` (the columns are: `chosn`, `rejected`); did you mean `chosn`?",
        ),
        (
            CONVERSATIONS,
            json!({"chosen": "a", "rejected": said("b")}),
            "chosen: column `chosen` must be a list of messages or JSON text of one, not a string",
        ),
        (CONVERSATIONS, json!({"chosen": said("a"), "rejected": []}), "rejected: the conversation is empty"),
        (
            CONVERSATIONS,
            json!({"chosen": said("a"), "rejected": [{"role": "boss", "content": "b"}]}),
            "rejected: message 1: unknown role `boss`",
        ),
        (
            CONVERSATIONS,
            json!({"chosen": said("a"), "rejected": [{"from": "gpt", "value": "b"}]}),
            "rejected: message 1: has no `role` (it has: `from`, `value`); is it `conversation_style: sharegpt`?",
        ),
        (
            CONVERSATIONS,
            json!({"chosen": said("a"), "rejected": [{"role": "user", "content": "b"}]}),
            "rejected: the conversation has no assistant's message to learn",
        ),
        (
            COLUMNS,
            json!({"prompt": "q", "chosen": "a", "rejected": 3}),
            "rejected: column `rejected` must be a string, not a number",
        ),
        (COLUMNS, json!({"chosen": "a", "rejected": "b"}), "no column `prompt`"),
        (
            "_component_: preference\ncolumn_map: {prompt: p}",
            json!({"p": "q", "chosen": said("a"), "rejected": said("b")}),
            "column `p` must be a list of messages",
        ),
    ] {
        let found = error(yaml, &record);
        assert!(found.starts_with(expected), "{found}\ninstead of {expected}");
    }
}

#[test]
fn what_nobody_reads_is_named_once() {
    let mut record = pair("yes", "no");
    record["score_chosen"] = json!(3.5);
    record["prompt"] = json!("q");
    record["rejected"][1]["score"] = json!(1);
    let loader = open(CONVERSATIONS, &[record], None, 1).unwrap();
    let news = loader.news(1000);
    assert_eq!(news.len(), 2, "{news:?}");
    assert!(
        news[0].ends_with("columns that are not used: `prompt` (in 1 record), `score_chosen` (in 1 record)"),
        "{news:?}"
    );
    assert!(news[1].ends_with("keys of messages that are not used: `score` (in 1 message)"), "{news:?}");
}

#[test]
fn pairs_that_teach_nothing_are_told_of() {
    let other = json!({"chosen": said("a"), "rejected": [
        {"role": "user", "content": "another"}, {"role": "assistant", "content": "b"}]});
    let loader = open(CONVERSATIONS, &[pair("same", "same"), other, pair("a", "b")], None, 1).unwrap();
    let warnings = &loader.reports().unwrap()[0].warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].ends_with("in 1 pair both answers are the same, and nothing is learnt from it"),
        "{warnings:?}"
    );
    assert!(warnings[1].contains("in 1 pair the two answers follow different prompts"), "{warnings:?}");
}

#[test]
fn a_pair_of_which_one_answer_is_cut_off_is_left_out_whole() {
    let long = json!({"chosen": said("yes"), "rejected": [
        {"role": "user", "content": "q".repeat(100)}, {"role": "assistant", "content": "no"}]});
    let loader = open(CONVERSATIONS, &[pair("yes", "no"), long.clone(), pair("a", "b")], Some(60), 1).unwrap();
    assert_eq!(loader.len().unwrap(), 2);
    let report = &loader.reports().unwrap()[0];
    assert_eq!((report.pairs, report.samples, report.dropped), (Some(2), 4, 1));
    let warning = "1 pair has an answer without a trained token and is left out (1 ends before its answer begins";
    assert!(report.warnings[0].contains(warning), "{:?}", report.warnings);
    let none = open(CONVERSATIONS, &[long], Some(60), 1).map(drop).unwrap_err().to_string();
    assert!(none.contains("none of 1 pair has a trained token in both answers"), "{none}");
}

#[test]
fn the_fingerprint_knows_which_answer_is_preferred() {
    let of = |record: Value| open(CONVERSATIONS, &[record], None, 1).unwrap().fingerprint().unwrap();
    assert_eq!(of(pair("a", "b")), of(pair("a", "b")));
    assert_ne!(of(pair("a", "b")), of(pair("b", "a")));
}

#[test]
fn shuffling_keeps_pairs_together() {
    let folder = Folder::new();
    let records: Vec<Value> = (0..50).map(|i| pair(&format!("yes {i}"), &format!("no {i}"))).collect();
    let options = LoaderOptions { batch_size: 4, shuffle: true, seed: 3, ..LoaderOptions::default() };
    let config = config(&folder, CONVERSATIONS, &records);
    let tokenizer = byte_level(Some(CHATML));
    let loader = Loader::open([&config], &tokenizer, None, options).unwrap();
    let mut seen = Vec::new();
    for batch in loader.epoch(1).batches(0) {
        let batch = batch.unwrap();
        for pair in batch.spans.chunks(2) {
            let texts = [0, 1].map(|i| tokenizer.decode(&batch.input_ids[batch.positions_of(&pair[i])], true).unwrap());
            let number = |text: &str| text.trim().rsplit(' ').next().unwrap().to_owned();
            assert!(texts[0].contains("yes ") && texts[1].contains("no "), "{texts:?}");
            assert_eq!(number(&texts[0]), number(&texts[1]));
            seen.push(number(&texts[0]));
        }
    }
    assert_eq!(seen.len(), 50);
    assert!(seen != (0..50).map(|i| i.to_string()).collect::<Vec<_>>(), "they were not shuffled");
}

#[test]
fn examples_and_faults_are_of_both_sides() {
    let folder = Folder::new();
    let config = config(&folder, CONVERSATIONS, &[pair("yes", "no"), json!({"chosen": said("a")})]);
    let tokenizer = byte_level(Some(CHATML));
    let found = examples([&config], &tokenizer, None, 3);
    let origins: Vec<&str> = found.iter().map(|s| s.origin.rsplit("d.jsonl:").next().unwrap()).collect();
    assert_eq!(origins, ["1, chosen", "1, rejected"]);
    let found = faults([&config], Some(&tokenizer), None);
    assert_eq!((found[0].records, found[0].broken), (2, 1));
}
