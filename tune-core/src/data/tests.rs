use std::path::PathBuf;

use super::testing::*;
use super::*;
use crate::tokenizer::Limits;
use crate::tokenizer::testing::{byte_level, sentence_piece};

#[path = "beside_tests.rs"]
mod beside;
#[path = "content_tests.rs"]
mod content;
#[path = "faults_tests.rs"]
mod faults;
#[path = "files_tests.rs"]
mod files;
#[path = "json_text_tests.rs"]
mod json_text;
#[path = "packing_tests.rs"]
mod packing;
#[path = "preference_tests.rs"]
mod preference;
#[path = "pretrain_tests.rs"]
mod pretrain;
#[path = "questions_tests.rs"]
mod questions;
#[path = "scored_tests.rs"]
mod scored;
#[path = "selected_tests.rs"]
mod selected;
#[path = "tokens_tests.rs"]
mod tokens;
#[path = "trained_tests.rs"]
mod trained;
#[path = "unpaired_tests.rs"]
mod unpaired;
#[path = "unused_tests.rs"]
mod unused;

#[test]
fn chat_in_both_styles() {
    let folder = Folder::new();
    let tokenizer = byte_level(Some(CHATML));
    let expected = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n";
    let openai = chat(folder.file("a.jsonl", GOOD));
    assert_eq!(texts(&tokenizer, DatasetConfig::Chat(openai)), [expected]);

    let file = folder
        .file("b.json", r#"[{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]"#);
    let mut sharegpt = chat(file);
    sharegpt.conversation_column = "conversations".into();
    sharegpt.conversation_style = ConversationStyle::Sharegpt;
    assert_eq!(texts(&tokenizer, DatasetConfig::Chat(sharegpt)), [expected]);

    let file = folder.file(
        "c.jsonl",
        r#"{"c": [{"who": "user", "says": [{"type": "text", "text": "q"}]}, {"who": "assistant", "says": "a"}]}"#,
    );
    let mut other = chat(file);
    other.conversation_column = "c".into();
    other.role_key = Some("who".into());
    other.content_key = Some("says".into());
    other.new_system_prompt = Some("S".into());
    let expected = format!("<|im_start|>system\nS<|im_end|>\n{expected}");
    assert_eq!(texts(&tokenizer, DatasetConfig::Chat(other)), [expected]);
}

#[test]
fn broken_data_is_named() {
    let folder = Folder::new();
    let message = |content: &str| format!("{GOOD}\n{{\"messages\": {content}}}\n");
    let cases: &[(String, &str)] = &[
        (format!("{GOOD}\n\n{{\"messages\": [}}\n{GOOD}"), ":3: column 15: not valid JSON: expected value"),
        (format!("{GOOD}\n[1]"), ":2: must be a JSON object, not a list"),
        (
            format!("{GOOD}\n{{\"mesages\": 1, \"id\": 2}}"),
            ":2: no column `messages` (the columns are: `mesages`, `id`); did you mean `mesages`?",
        ),
        (
            format!("{GOOD}\n{{\"text\": \"a document\"}}"),
            ":2: no column `messages` (the columns are: `text`); `_component_: text` reads documents",
        ),
        (
            format!("{GOOD}\n{{\"question\": \"?\", \"answer\": \"!\"}}"),
            ":2: no column `messages` (the columns are: `question`, `answer`); `_component_: instruct` reads questions and answers, \
             from the columns that its `column_map` names",
        ),
        (message("3"), ":2: column `messages` must be a list of messages or JSON text of one, not a number"),
        (message("[]"), ":2: the conversation is empty"),
        (message("[3]"), ":2: message 1: must be an object, not a number"),
        (
            message(r#"[{"role": "usr", "content": ""}]"#),
            ":2: message 1: unknown role `usr`; known are `system`, `developer`, `user`, `assistant`",
        ),
        (message(r#"[{"role": 1, "content": ""}]"#), ":2: message 1: `role` must be a string, not a number"),
        (
            message(r#"[{"from": "gpt", "value": ""}]"#),
            ":2: message 1: has no `role` (it has: `from`, `value`); is it `conversation_style: sharegpt`?",
        ),
        (message(r#"[{"role": "user"}]"#), ":2: message 1: has no `content` (it has: `role`)"),
        (
            message(r#"[{"role": "user", "content": null}]"#),
            ":2: message 1: `content` must be a string or a list of text parts, not null",
        ),
        (
            message(r#"[{"role": "user", "content": [{"type": "image_url"}]}]"#),
            ":2: message 1: part 1 of `content` is of type `image_url`; only text can be trained on",
        ),
        (message(r#"[{"role": "user", "content": "q"}]"#), ":2: the conversation has no assistant's message to learn"),
        (String::new(), ": the file is empty"),
        (" \n\n".into(), ": the file is empty"),
    ];
    for (content, expected) in cases {
        let path = folder.file("d.jsonl", content);
        let error = load_chat(chat(&path)).unwrap_err().to_string();
        let expected = format!("{}{expected}", path.display());
        assert!(error.starts_with(&expected), "\n got {error}\nwant {expected}");
    }
    let path = folder.file("latin1.jsonl", b"{\"messages\": \"\xe9\"}");
    let error = load_chat(chat(&path)).unwrap_err().to_string();
    assert!(error.contains("latin1.jsonl:1: column"), "{error}");
}

#[test]
fn a_broken_record_far_behind_is_named() {
    let folder = Folder::new();
    let many = format!("{GOOD}\n").repeat(5000);
    let open = |last: &str| {
        let path = folder.file("d.jsonl", format!("{many}{last}\n"));
        let tokenizer = byte_level(Some(CHATML));
        Loader::open(&[DatasetConfig::Chat(chat(path))], &tokenizer, None, LoaderOptions::default())
    };
    // What can be seen of a record without rendering it is seen at once.
    for (last, expected) in [
        ("{\"messages\": [}", "d.jsonl:5001: column 15: not valid JSON"),
        ("{\"messages\": 1}", "d.jsonl:5001: column `messages` must be a list"),
    ] {
        let error = open(last).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // What the template says of it stops whoever asks next.
    let loader = open(r#"{"messages": [{"role": "user", "content": "q"}]}"#).unwrap();
    let expected = "d.jsonl:5001: the conversation has no assistant's message to learn";
    assert!(loader.len().unwrap_err().to_string().ends_with(expected));
    assert!(loader.batch(0, 0).unwrap_err().to_string().ends_with(expected));

    let loader = open(GOOD).unwrap();
    assert_eq!(loader.len().unwrap(), 5001);
    let last = loader.batch(0, 5000).unwrap().unwrap();
    assert!(last.origins[0].ends_with("d.jsonl:5001"), "{last:?}");
}

#[test]
fn tokenized_ahead_or_at_once_the_samples_are_the_same() {
    let folder = Folder::new();
    let pair = |i: usize| {
        let (q, a) = ("q".repeat(i % 37), "a".repeat(i % 11));
        format!("{{\"input\": \"{i}{q}\", \"output\": \"{a}\"}}\n")
    };
    let file = folder.file("d.jsonl", (0..9000).map(pair).collect::<String>());
    let mut config = instruct(file);
    for packed in [false, true] {
        config.rows.packed = packed;
        let configs = [DatasetConfig::Instruct(config.clone())];
        let tokenizer = byte_level(None);
        let dataset = load(&configs, &tokenizer, Some(40)).unwrap();
        assert!(dataset.reports[0].dropped > 0 && dataset.reports[0].truncated > 0);
        let options = LoaderOptions { batch_size: 7, shuffle: true, seed: 1, ..Default::default() };
        let ahead = Loader::open(&configs, &tokenizer, Some(40), options.clone()).unwrap();
        let batches: Vec<Batch> = ahead.epoch(1).batches(0).collect::<Result<_>>().unwrap();
        let mut got: Vec<&String> = batches.iter().flat_map(|b| &b.origins).collect();
        let mut expected: Vec<&String> = dataset.samples.iter().map(|s| &s.origin).collect();
        got.sort();
        expected.sort();
        assert_eq!(got, expected);
        assert_eq!(ahead.len().unwrap(), batches.len());
        let said = ahead.news(40).join("\n");
        assert!(said.contains(&dataset.reports[0].to_string()), "{said}");
        assert!(said.contains(&format!("warning: {}", dataset.warnings(40)[0])), "{said}");
        assert_eq!(ahead.news(40), [""; 0]);
        let options = LoaderOptions { pack_to: dataset.pack_to, ..options };
        let at_once = Loader::new(dataset.samples, options).unwrap();
        assert_eq!(at_once.fingerprint().unwrap(), ahead.fingerprint().unwrap());
    }
}

#[test]
fn a_token_without_an_embedding_is_found_while_training_runs() {
    let folder = Folder::new();
    let text = |i: usize| format!("{{\"text\": \"a{}\"}}\n", if i == 4500 { "<|end|>" } else { "" });
    let file = folder.file("d.jsonl", (1..=5000).map(text).collect::<String>());
    let configs = [DatasetConfig::Text(TextDataset {
        files: files(file),
        column: "text".into(),
        add_eos: true,
        rows: Rows::default(),
        split_across_pack: false,
    })];
    let tokenizer = byte_level(None).for_model(Limits { embeddings: 263, ..Limits::default() });
    let loader = Loader::open(&configs, &tokenizer, None, LoaderOptions::default()).unwrap();
    loader.batch(0, 0).unwrap();
    let error = loader.len().unwrap_err();
    assert!(matches!(error, crate::Error::Data(_)));
    let error = error.to_string();
    assert!(error.contains("d.jsonl:4500: the token `<|end|>` has id 263"), "{error}");
}

#[test]
fn instruct_with_and_without_a_chat_template() {
    let folder = Folder::new();
    let file = folder.file("d.jsonl", r#"{"q": "1 + 1", "output": "2"}"#);
    let mut config = instruct(&file);
    config.column_map.input = "q".into();
    config.prompt_template = Some("Q: {input}\nA: {output}.".into());
    let get =
        |tokenizer: &Tokenizer, config: &InstructDataset| texts(tokenizer, DatasetConfig::Instruct(config.clone()));

    assert_eq!(get(&byte_level(None), &config), ["Q: 1 + 1\nA: [2.<|im_end|>]"]);
    assert_eq!(
        get(&byte_level(Some(CHATML)), &config),
        ["<|im_start|>user\nQ: 1 + 1\nA: <|im_end|>\n<|im_start|>assistant\n[2.<|im_end|>]\n"]
    );
    config.apply_chat_template = Some(false);
    config.new_system_prompt = Some("Add.".into());
    assert_eq!(get(&byte_level(Some(CHATML)), &config), ["Add.\n\nQ: 1 + 1\nA: [2.<|im_end|>]"]);
    assert_eq!(get(&sentence_piece(None), &config), ["<s> Add.\n\nQ: 1 + 1\nA: [2.</s>]"]);
    config.mask.train_on_input = Some(true);
    assert_eq!(get(&sentence_piece(None), &config), ["<s>[Add.\n\nQ: 1 + 1\nA: 2.</s>]"]);

    let fails = |config: InstructDataset| {
        load(&[DatasetConfig::Instruct(config)], &byte_level(None), None).unwrap_err().to_string()
    };
    config.mask.masking_strategy = Some(Masking::Last);
    assert!(fails(config.clone()).contains("contradict"));
    config.mask.masking_strategy = None;
    config.prompt_template = Some("Q: {output} {input}".into());
    assert!(fails(config.clone()).contains("after it `{output}`"));
    config.prompt_template = Some("Q:".into());
    assert!(fails(config.clone()).contains("has no `{input}`"));
    config.prompt_template = None;
    config.apply_chat_template = Some(true);
    assert!(fails(config).contains("no chat template"));
}

#[test]
fn alpaca_has_two_prompts() {
    let folder = Folder::new();
    let lines = "{\"instruction\": \"I\", \"input\": \"\", \"output\": \"O\"}\n{\"instruction\": \"I\", \"input\": \"J\", \"output\": \"O\"}";
    let config = AlpacaDataset {
        files: files(folder.file("d.jsonl", lines)),
        column_map: AlpacaColumns { instruction: "instruction".into(), input: "input".into(), output: "output".into() },
        apply_chat_template: None,
        mask: Mask { masking_strategy: Some(Masking::Assistant), train_on_input: None },
        rows: Rows::default(),
    };
    let got = texts(&byte_level(None), DatasetConfig::Alpaca(config));
    let request = "appropriately completes the request.\n\n### Instruction:\nI\n\n";
    assert!(got[0].ends_with(&format!("{request}### Response:\n[O<|im_end|>]")), "{}", got[0]);
    assert!(got[1].ends_with(&format!("{request}### Input:\nJ\n\n### Response:\n[O<|im_end|>]")), "{}", got[1]);
}

#[test]
fn text_is_trained_whole() {
    let folder = Folder::new();
    let config = |add_eos| {
        DatasetConfig::Text(TextDataset {
            files: files(folder.file("d.jsonl", r#"{"text": "abc"}"#)),
            column: "text".into(),
            add_eos,
            rows: Rows::default(),
            split_across_pack: false,
        })
    };
    // Nothing predicts the first token.
    assert_eq!(texts(&byte_level(None), config(true)), ["a[bc<|im_end|>]"]);
    assert_eq!(texts(&byte_level(None), config(false)), ["a[bc]"]);
    assert_eq!(texts(&sentence_piece(None), config(true)), ["<s>[abc</s>]"]);
}

#[test]
fn what_is_cut_and_dropped_is_reported() {
    let folder = Folder::new();
    let pair =
        |q: usize, a: usize| format!("{{\"input\": \"{}\", \"output\": \"{}\"}}\n", "q".repeat(q), "a".repeat(a));
    let lines: String =
        [(2, 3), (20, 1), (2, 30), (30, 1), (9, 2), (10, 1), (40, 1), (50, 1)].map(|(q, a)| pair(q, a)).concat();
    let config = || vec![DatasetConfig::Instruct(instruct(folder.file("d.jsonl", &lines)))];
    let dataset = load(&config(), &byte_level(None), Some(10)).unwrap();
    let report = &dataset.reports[0];
    assert_eq!(
        (report.samples, report.tokens, report.trained_tokens, report.truncated, report.dropped, report.longest),
        (3, 6 + 10 + 10, 4 + 8 + 1, 7, 5, 10)
    );
    let warnings = dataset.warnings(10);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("5 samples have no trained token"), "{}", warnings[0]);
    assert!(warnings[0].contains("d.jsonl:2, ") && warnings[0].ends_with("…"), "{}", warnings[0]);
    let kept: Vec<usize> = dataset.samples.iter().map(|s| s.input_ids.len()).collect();
    assert_eq!(kept, [6, 10, 10]);
    let too_long = &dataset.warnings(9)[1];
    assert!(too_long.contains("the longest sample has 10 tokens, and the model is made for at most 9"), "{too_long}");

    let error = load(&config(), &byte_level(None), Some(2)).unwrap_err().to_string();
    assert!(error.contains("none of 8 samples has a trained token: 8 end before their answers begin: raise `tokenizer.max_seq_len`, which is 2"), "{error}");
}

#[test]
fn answers_without_an_end_are_reported() {
    let folder = Folder::new();
    let file = folder.file("d.jsonl", GOOD);
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let warnings = |source: &str| {
        let dataset = load(&[DatasetConfig::Chat(chat(&file))], &byte_level(Some(source)), None).unwrap();
        dataset.warnings(usize::MAX).join("\n")
    };
    assert!(warnings(source).contains("in 1 sample no stop token follows the answer"));
    let other = source
        .replace("\n{% endfor", "<|end|>\n{% endfor")
        .replace("{{ m.role }}", "<|end|>{{ m.role }}")
        .replace("}assistant", "}<|end|>assistant");
    assert!(warnings(&other).contains("closed by `<|end|>`"), "{}", warnings(&other));
    let dated = format!("{{% set d = strftime_now('%Y') %}}{CHATML}");
    assert!(warnings(&dated).contains("date"));
    assert_eq!(warnings(CHATML), "");
}

/// Before anything is trained, however much data there is.
#[test]
fn a_loader_may_refuse_data_that_teaches_no_end() {
    let folder = Folder::new();
    let endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    for records in [3, order::BLOCK + 1] {
        let config = [DatasetConfig::Chat(chat(folder.file("d.jsonl", vec![GOOD; records].join("\n"))))];
        let open = |template: &str, must_stop| {
            let options = LoaderOptions { must_stop, shuffle: true, ..LoaderOptions::default() };
            Loader::open(&config, &byte_level(Some(template)), None, options).map_err(|e| e.to_string())
        };
        let error = open(endless, true).map(drop).unwrap_err();
        let expected = format!(
            "ends an answer that is trained, and the model would not learn to end its answers: in {records} samples"
        );
        assert!(error.contains(&expected), "{error}");
        let loader = open(endless, false).unwrap();
        assert!(loader.reports().unwrap()[0].never_stops.as_ref().is_some_and(|why| why.contains(&expected)));
        assert!(loader.news(usize::MAX).iter().any(|line| line.contains(&expected)));
        open(CHATML, true).unwrap().reports().unwrap();
    }
    // Text that is not to end may do without.
    let file = folder.file("t.jsonl", "{\"text\": \"a b\"}");
    let text = TextDataset {
        files: files(file),
        column: "text".into(),
        add_eos: false,
        rows: Rows::default(),
        split_across_pack: false,
    };
    let options = LoaderOptions { must_stop: true, ..LoaderOptions::default() };
    Loader::open(&[DatasetConfig::Text(text)], &byte_level(None), None, options).unwrap();
}

#[test]
fn configs_are_read_in_our_names_and_torchtunes() {
    #[derive(crate::config::Config)]
    #[config(crate = crate::config)]
    struct Recipe {
        /// What to train on.
        #[config(one_or_many)]
        dataset: Vec<DatasetConfig>,
    }
    let read = |yaml: &str| {
        let input = crate::config::Input::yaml("test.yaml", yaml);
        crate::config::load::<Recipe>(input).map(|loaded| loaded.config.dataset)
    };
    let torchtune = "dataset:\n  _component_: torchtune.datasets.chat_dataset\n  source: json\n  data_files: a.jsonl\n  \
                     conversation_column: conversations\n  conversation_style: sharegpt\n  train_on_input: true\n  \
                     split: train[:5%]\n  packed: true\n";
    match read(torchtune).unwrap().as_slice() {
        [DatasetConfig::Chat(chat)] => {
            assert_eq!(chat.files.data_files, [PathBuf::from("a.jsonl")]);
            assert_eq!(chat.files.split, "train[:5%]");
            assert_eq!(chat.conversation_style, ConversationStyle::Sharegpt);
            assert_eq!(chat.mask.train_on_input, Some(true));
            assert!(chat.rows.packed);
        }
        other => panic!("{other:?}"),
    }
    let ours = "dataset:\n- _component_: instruct\n  data_files: [a.json, b]\n  column_map: {input: q}\n  \
                masking_strategy: last\n- _component_: text\n  source: c.parquet\n- _component_: alpaca\n";
    match read(ours).unwrap().as_slice() {
        [DatasetConfig::Instruct(a), DatasetConfig::Text(b), DatasetConfig::Alpaca(c)] => {
            assert_eq!(a.files.data_files.len(), 2);
            assert_eq!((a.column_map.input.as_str(), a.column_map.output.as_str()), ("q", "output"));
            assert_eq!(a.mask.masking_strategy, Some(Masking::Last));
            assert_eq!((b.files.source.as_deref(), b.add_eos), (Some("c.parquet"), true));
            assert_eq!(c.column_map.instruction, "instruction");
        }
        other => panic!("{other:?}"),
    }
    assert!(read("dataset: {_component_: chat, conversation_style: shareGPT}").is_err());
}
