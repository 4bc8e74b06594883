//! Lists in JSON text, in columns that can but hold text.

use serde_json::{Value, json};

use super::*;

const TURN: &str = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n";

/// A field of a CSV file.
fn quoted(value: &Value) -> String {
    format!("\"{}\"", value.to_string().replace('"', "\"\""))
}

#[test]
fn a_conversation_in_json_text_is_one() {
    let conversation = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let each: Vec<String> = conversation.as_array().unwrap().iter().map(Value::to_string).collect();
    for messages in [json!(conversation.to_string()), json!(each), json!(json!(each).to_string())] {
        assert_eq!(chat_with(CHATML, &json!({"messages": messages})).unwrap(), TURN, "{messages}");
    }
    // What the messages hold is what it is in a list.
    let marked = json!([{"role": "assistant", "content": "x", "weight": 0}, {"role": "assistant", "content": "a"}]);
    let expected = "<|im_start|>assistant\nx<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n";
    assert_eq!(chat_with(CHATML, &json!({"messages": marked.to_string()})).unwrap(), expected);
    for (text, expected) in [
        ("hello", "column `messages` must be a list of messages or JSON text of one, not a string"),
        ("{}", "column `messages` must be a list of messages or JSON text of one, not a string"),
        ("[3]", "message 1: must be an object, not a number"),
        ("[\"x\"]", "message 1: must be an object, not a string"),
        ("[\"3\"]", "message 1: must be an object, not a string"),
        ("[]", "the conversation is empty"),
    ] {
        let error = chat_with(CHATML, &json!({"messages": text})).unwrap_err();
        assert!(error.ends_with(&format!("d.jsonl:1: {expected}")), "{error}");
    }
}

#[test]
fn tables_of_text_hold_conversations() {
    let folder = Folder::new();
    let tokenizer = byte_level(Some(CHATML));
    let openai = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let left_out = openai.to_string().replace("\"a\"", "\"b\"");
    let left_out = quoted(&serde_json::from_str(&left_out).unwrap());
    let table = format!("id,messages,train\n1,{},True\n2,{left_out},False\n", quoted(&openai));
    assert_eq!(texts(&tokenizer, DatasetConfig::Chat(chat(folder.file("d.csv", table)))), [TURN]);

    let sharegpt = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]);
    let table = format!("system\tconversations\nBe brief.\t{}\n", quoted(&sharegpt));
    let mut config = chat(folder.file("d.tsv", table));
    config.conversation_column = "conversations".into();
    config.conversation_style = ConversationStyle::Sharegpt;
    let expected = format!("<|im_start|>system\nBe brief.<|im_end|>\n{TURN}");
    assert_eq!(texts(&tokenizer, DatasetConfig::Chat(config)), [expected]);
}

#[test]
fn alpacas_history_may_be_json_text() {
    let folder = Folder::new();
    let table = "instruction,output,history\ni,o,\"[[\"\"q\"\", \"\"a\"\"]]\"\ni,o,\n";
    let mut config = alpaca(folder.file("h.csv", table));
    config.mask.masking_strategy = Some(Masking::Assistant);
    let texts = texts(&byte_level(None), DatasetConfig::Alpaca(config));
    assert!(texts[0].contains("### Instruction:\nq\n\n### Response:\n[a<|im_end|>]"), "{}", texts[0]);
    assert!(!texts[1].contains("\nq\n"), "{}", texts[1]);
}
