use serde_json::json;

use super::super::testing::{byte_level, byte_level_files};
use super::*;

/// 258 `<|im_start|>`, 259 `<|im_end|>` (the end of text), 260 `<s>`, 261 `</s>`, 262 `<|user|>`, 263 `<|end|>`.
fn stops(template: Option<&str>, generation: Option<&Value>, config: &Value) -> StopTokens {
    byte_level(template).with_stop_tokens_of(generation, config).unwrap().stop_tokens().clone()
}

fn all(stops: &StopTokens) -> Vec<u32> {
    stops.iter().copied().collect()
}

/// As `tests/python/make_stop_tokens.py` found with transformers.
#[test]
fn the_files_are_read_as_transformers_reads_them() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../../../tests/fixtures/stop_tokens.json")).unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let found = listed(case.get("generation_config"), &case["config"]).unwrap();
        assert_eq!(json!(found), case["stops_at"], "{case}");
    }
    assert_eq!(listed(None, &json!({"text_config": {"eos_token_id": 9}})).unwrap(), [9]);
}

#[test]
fn the_end_of_text_and_the_models_files_count() {
    let config = json!({"eos_token_id": [263, 259, -1, 999_999]});
    assert_eq!(all(&stops(None, None, &config)), [259, 263]);
    let generation = json!({"eos_token_id": 261});
    let found = stops(None, Some(&generation), &config);
    assert_eq!(all(&found), [259, 261]);
    assert_eq!(found.unlisted(), [259]);
    assert_eq!(stops(None, None, &config).unlisted(), [0; 0]);
    // Of a model without any, nothing is written.
    let without = StopTokens::default().export(&json!({"vocab_size": 3}), None);
    assert_eq!(without, (json!({"vocab_size": 3}), json!({})));
    let error = byte_level(None).with_stop_tokens_of(None, &json!({"eos_token_id": "1"})).unwrap_err().to_string();
    assert_eq!(error, "config.json: `eos_token_id` is \"1\"; a token's id or a list of ids was expected");
}

#[test]
fn the_end_of_text_may_come_from_the_models_files() {
    let mut files = byte_level_files(None);
    files.files.insert("tokenizer_config.json".into(), b"{}".to_vec());
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    assert!(tokenizer.stop_tokens().is_empty());
    let tokenizer = tokenizer.with_stop_tokens_of(None, &json!({"eos_token_id": [263, 261]})).unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.pad()), (Some(263), Some(263)));
}

#[test]
fn the_templates_end_of_turn_counts() {
    let turn = |answer: &str| {
        format!(
            "{{% for m in messages %}}{{% if m.role == 'user' %}}<|user|>{{{{ m.content }}}}{{% else %}}{answer}{{% endif \
             %}}{{% endfor %}}"
        )
    };
    let own = |template: &str| stops(Some(template), None, &Value::Null).unlisted();
    assert_eq!(own(&turn("{{ m.content }}<|end|>\n")), [259, 263]);
    assert_eq!(own(&turn("{{ m.content | trim }}\n<|end|></s>")), [259, 263]);
    assert_eq!(own(&turn("{% generation %}{{ m.content }}<|end|>{% endgeneration %}")), [259, 263]);
    assert_eq!(own(&turn("{{ m.content }}<|im_end|>")), [259]);
    // Content in parts.
    assert_eq!(own(&turn("{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}<|end|>")), [259, 263]);
    let parts = "{% for m in messages %}<|user|>{% for p in m.content %}{{ p.text }}{% endfor %}<|end|>{% endfor %}";
    assert_eq!(own(parts), [259, 263]);
    // None, one that begins a turn, and one that begins the answer.
    assert_eq!(own(&turn("{{ m.content }}")), [259]);
    assert_eq!(own(&turn("{{ m.content }}<|user|>")), [259]);
    let next = format!("{}{{% if add_generation_prompt %}}<|end|>{{% endif %}}", turn("{{ m.content }}<|end|>"));
    assert_eq!(own(&next), [259]);
    // A template that refuses says so where it is used.
    assert_eq!(own("{{ raise_exception('no') }}"), [259]);
}

#[test]
fn another_template_has_another_end_of_turn() {
    let template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}";
    assert_eq!(byte_level(None).with_chat_template(template).unwrap().stop_tokens().unlisted(), [259, 261]);
}

#[test]
fn all_of_them_are_written_into_both_files() {
    let export = |config: Value, generation: Option<Value>| {
        stops(None, generation.as_ref(), &config).export(&config, generation.as_ref())
    };
    // As they are, where they list it.
    let (config, generation) = (json!({"eos_token_id": [263, 259]}), json!({"eos_token_id": 259, "top_k": 5}));
    assert_eq!(export(config, Some(generation.clone())), (json!({"eos_token_id": [263, 259]}), generation));
    // Added.
    let generation = json!({"eos_token_id": 263, "top_k": 5});
    assert_eq!(
        export(json!({"eos_token_id": 261, "x": 1}), Some(generation)),
        (json!({"eos_token_id": [261, 263, 259], "x": 1}), json!({"eos_token_id": [263, 259], "top_k": 5}))
    );
    assert_eq!(export(json!({}), Some(json!({}))), (json!({"eos_token_id": 259}), json!({"eos_token_id": 259})));
    // A new file keeps what transformers took from config.json before.
    let config = json!({"eos_token_id": [263], "bos_token_id": 1, "pad_token_id": null, "temperature": 0.5, "x": 1});
    let (config, generation) = export(config, None);
    assert_eq!(config["eos_token_id"], json!([263, 259]));
    assert_eq!(generation, json!({"eos_token_id": [263, 259], "bos_token_id": 1, "temperature": 0.5}));
}
