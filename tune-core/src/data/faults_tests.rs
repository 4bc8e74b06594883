//! All that is wrong with the data, said at once.

use std::path::PathBuf;

use super::*;

const BROKEN: [&str; 4] = ["{\"messages\": [", "{\"mesages\": 1}", "{\"messages\": []}", "[]"];

#[test]
fn a_run_lists_all_broken_records_of_all_datasets() {
    let folder = Folder::new();
    let open = |files: &[PathBuf]| {
        let configs: Vec<_> = files.iter().map(|file| DatasetConfig::Chat(chat(file))).collect();
        let tokenizer = byte_level(Some(CHATML));
        Loader::open(&configs, &tokenizer, None, LoaderOptions::default()).map(drop).unwrap_err().to_string()
    };
    let file = folder.file("a.jsonl", format!("{GOOD}\n{}", BROKEN.join("\n")));
    let error = open(std::slice::from_ref(&file));
    assert!(error.starts_with(&format!("chat dataset {}: 4 of 5 records cannot be used\n", file.display())), "{error}");
    for line in 2..=5 {
        assert!(error.contains(&format!("\n  {}:{line}: ", file.display())), "{error}");
    }
    let many = folder.file("b.jsonl", format!("{}\n", BROKEN[3]).repeat(3000));
    let error = open(&[file, many, folder.0.path().join("c.jsonl")]);
    for part in [
        "a.jsonl: 4 of 5 records",
        "b.jsonl: 3000 of 3000 records",
        "b.jsonl:20: ",
        "… and 2980 more",
        "c.jsonl: No such file",
    ] {
        assert!(error.contains(part), "there is no {part} in\n{error}");
    }
    assert!(!error.contains("b.jsonl:21: "), "{error}");
    // What the template says of records, too.
    let asks = r#"{"messages": [{"role": "user", "content": "q"}]}"#;
    let error = open(&[folder.file("d.jsonl", [asks, GOOD, asks].join("\n"))]);
    assert!(
        error.contains("2 of 3 records") && error.contains("d.jsonl:1: ") && error.contains("d.jsonl:3: "),
        "{error}"
    );
}

/// What programs write that is no JSON is told with what to do.
#[test]
fn what_is_no_json_has_advice() {
    let folder = Folder::new();
    let error = |name: &str, text: &str| load_chat(chat(folder.file(name, text))).unwrap_err().to_string();
    let record = GOOD.trim_end_matches('}');
    for (text, advice) in [
        (&GOOD[..40], "the record is cut off, or goes on in the next line"),
        (&format!("{record}, \"score\": NaN}}"), "JSON has no NaN and no Infinity: write null"),
        (&format!("{record}, \"score\": -Infinity}}"), "JSON has no NaN and no Infinity: write null"),
        ("{'messages': []}", "`json.dumps(record)` writes JSON"),
        ("{\"messages\": ['a']}", "`json.dumps(record)` writes JSON"),
        (&format!("{record}, \"good\": True}}"), "`json.dumps(record)` writes JSON"),
        (&format!("{record}, \"x\": \"\\ud83d\"}}"), "is half of a character: remove it"),
        (&format!("{GOOD} {GOOD}"), "a line holds one record"),
        (&format!("[{GOOD}, {GOOD}]"), "a list of records is read with `source: json`"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n", "run `git lfs pull` in its folder"),
    ] {
        let said = error("d.jsonl", text);
        assert!(said.contains(advice), "{text}: {said}");
    }
    for (text, advice) in [
        (format!("[{record}, \"score\": NaN}}]"), "JSON has no NaN and no Infinity: write null"),
        (format!("[{GOOD},\n{record}, \"score\": NaN}}]"), "JSON has no NaN and no Infinity: write null"),
        ("[{'messages': []}]".to_owned(), "`json.dumps(record)` writes JSON"),
    ] {
        let said = error("d.json", &text);
        assert!(said.contains(advice), "{text}: {said}");
    }
}

#[test]
fn a_conversation_in_two_columns_is_to_be_joined() {
    let folder = Folder::new();
    let record =
        r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#;
    let error = load_chat(chat(folder.file("d.jsonl", record))).unwrap_err().to_string();
    assert!(
        error.contains("no column `messages`: `prompt` and `completion` are two parts of a conversation"),
        "{error}"
    );
    assert!(error.contains("jq -c '{messages: (.prompt + .completion)}'"), "{error}");
}

#[test]
fn a_conversation_in_another_column_is_found() {
    let folder = Folder::new();
    let turns = |role: &str, text: &str, user: &str, answer: &str| {
        format!(r#"[{{"{role}": "{user}", "{text}": "q"}}, {{"{role}": "{answer}", "{text}": "a"}}]"#)
    };
    let (sharegpt, openai) = (turns("from", "value", "human", "gpt"), turns("role", "content", "user", "assistant"));
    for (column, turns, style, advice) in [
        (
            "conversations",
            &sharegpt,
            ConversationStyle::Openai,
            "`conversation_column: conversations` and `conversation_style: sharegpt`",
        ),
        ("conversations", &openai, ConversationStyle::Openai, "`conversation_column: conversations`"),
        (
            "dialogue",
            &openai,
            ConversationStyle::Sharegpt,
            "`conversation_column: dialogue` and `conversation_style: openai`",
        ),
    ] {
        let mut config = chat(folder.file("d.jsonl", format!(r#"{{"id": 1, "{column}": {turns}}}"#)));
        config.conversation_style = style;
        let error = load_chat(config.clone()).unwrap_err().to_string();
        let expected = format!("d.jsonl:1: no column `messages`, and `{column}` holds a conversation: set {advice}");
        assert!(error.ends_with(&expected), "{error}");
        // The advice is followed.
        config.conversation_column = column.into();
        if advice.contains("style: sharegpt") {
            config.conversation_style = ConversationStyle::Sharegpt;
        } else if advice.contains("style: openai") {
            config.conversation_style = ConversationStyle::Openai;
        }
        assert_eq!(load_chat(config).unwrap().samples.len(), 1);
    }
}
