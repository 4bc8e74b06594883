//! Questions are rendered as conversations that are learnt.

use serde_json::{Value, json};

use super::*;

const SHOWS: &str = "{% if tools %}T{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ \
                     m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn asked(template: &str, record: &Value) -> Result<(String, String, String), String> {
    let folder = Folder::new();
    let file = folder.file("q.jsonl", format!("\n{record}\n"));
    let tokenizer = byte_level(Some(template));
    let questions = questions(&file, &tokenizer).map_err(|e| e.to_string())?;
    let Question { text, prompt, expected } = &questions[0];
    Ok((tokenizer.decode(prompt, false).unwrap(), text.clone(), expected.clone()))
}

#[test]
fn what_stands_beside_a_question_reaches_the_template() {
    let answer =
        json!({"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
    let question = json!({"role": "user", "content": [{"type": "text", "text": "q"}]});
    let record = json!({"tools": "[{\"name\": \"f\"}]", "messages": [question, answer]});
    let prompt = "T[{\"name\": \"f\"}]<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n".to_owned();
    assert_eq!(asked(SHOWS, &record).unwrap(), (prompt, "q".into(), "ab".into()));

    let error = |messages: Value| asked(SHOWS, &json!({"messages": messages})).unwrap_err();
    let expected = "q.jsonl:2: a conversation needs a question and an answer, each with a `content`";
    assert!(error(json!([answer])).ends_with(expected), "{}", error(json!([answer])));
    assert!(error(json!([question, question, {"role": "assistant", "content": ""}])).ends_with(expected));
    assert!(
        error(json!("x"))
            .ends_with("q.jsonl:2: column `messages` must be a list of messages or JSON text of one, not a string")
    );
    let deaf = SHOWS.replace("m.content", "m.contents");
    let error = asked(&deaf, &record).unwrap_err();
    assert!(error.contains("q.jsonl:2: message 1 (`user`): nothing of part 1 of its content is in"), "{error}");
}
