//! Content as a text and as a list of parts, and templates that take one or the other.

use serde_json::json;

use super::*;

/// Goes through the parts of a content, and trims each.
const PARTS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'text' %}{{ \
                     p.text | trim + '\n' }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if \
                     add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[test]
fn parts_reach_the_template_as_parts() {
    let record = json!({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "a: "}, {"type": "text", "text": "  b c"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "d "}]},
    ]});
    let expected = "<|im_start|>user\na:\nb c\n<|im_end|>\n<|im_start|>assistant\n[d\n<|im_end|>]\n";
    assert_eq!(chat_with(PARTS, &record).unwrap(), expected);
    // A template that can but add texts gets them joined.
    let joined = "<|im_start|>user\na:   b c<|im_end|>\n<|im_start|>assistant\n[d <|im_end|>]\n";
    assert_eq!(chat_with(CHATML, &record).unwrap(), joined);
    let printed = CHATML.replace("message['content']", "(message['content'] ~ '')");
    assert_eq!(chat_with(&printed, &record).unwrap(), joined);
}

#[test]
fn a_text_that_the_template_does_not_render_is_an_error() {
    let record = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    let error = chat_with(PARTS, &record).unwrap_err();
    assert!(
        error.contains("d.jsonl:1: message 1 (`user`): nothing of its content is in what the chat template renders"),
        "{error}"
    );
    assert!(error.contains("the template takes a list of parts"), "{error}");
}

#[test]
fn where_the_form_is_ours_the_template_gets_what_it_renders() {
    let folder = Folder::new();
    let tokenizer = byte_level(Some(PARTS));
    let expected = "<|im_start|>user\nq\n<|im_end|>\n<|im_start|>assistant\n[a\n<|im_end|>]\n";
    let file = folder.file("d.jsonl", r#"{"input": "q", "output": "a"}"#);
    let mut config = instruct(&file);
    assert_eq!(texts(&tokenizer, DatasetConfig::Instruct(config.clone())), [expected]);
    config.new_system_prompt = Some("s".into());
    let with_system = format!("<|im_start|>system\ns\n<|im_end|>\n{expected}");
    assert_eq!(texts(&tokenizer, DatasetConfig::Instruct(config)), std::slice::from_ref(&with_system));

    let file = folder.file(
        "s.jsonl",
        r#"{"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
    );
    let mut sharegpt = chat(file);
    sharegpt.conversation_column = "conversations".into();
    sharegpt.conversation_style = ConversationStyle::Sharegpt;
    assert_eq!(texts(&tokenizer, DatasetConfig::Chat(sharegpt)), [with_system]);

    let prompt = |system| tokenizer.decode(&tokenizer.prompt("q", system, None).unwrap(), false).unwrap();
    assert_eq!(prompt(None), "<|im_start|>user\nq\n<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(
        prompt(Some("s")),
        "<|im_start|>system\ns\n<|im_end|>\n<|im_start|>user\nq\n<|im_end|>\n<|im_start|>assistant\n"
    );
    let deaf = byte_level(Some("{% for m in messages %}{{ m.role }}{% endfor %}"));
    assert!(deaf.prompt("q", None, None).unwrap_err().to_string().contains("nothing of its content is in"));
}

#[test]
fn parts_that_are_no_text_are_named() {
    for (part, expected) in [
        (json!({"type": "image_url", "image_url": {"url": "x"}}), "part 2 of `content` is of type `image_url`"),
        (json!({"type": "input_audio"}), "part 2 of `content` is of type `input_audio`"),
        (json!({"type": "text"}), "part 2 of `content` has no string `text`"),
        (json!({"image": "x"}), "part 2 of `content` must be {\"type\": \"text\", \"text\": ...}"),
        (json!(3), "part 2 of `content` must be {"),
    ] {
        let record = json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, part]}, {"role": "assistant", "content": "b"},
        ]});
        for template in [PARTS, CHATML] {
            let error = chat_with(template, &record).unwrap_err();
            assert!(error.contains(&format!("d.jsonl:1: message 1: {expected}")), "{error}");
        }
    }
}
