//! What is wrong with data, templates and tokens.

use super::*;

#[test]
fn broken_records_are_counted_and_the_first_are_shown() {
    let place = Place::new();
    let good = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let broken = [good, "{\"messages\": [", r#"{"conversation": []}"#, r#"{"messages": []}"#, "[]"].join("\n");
    let data = format!("dataset.data_files={}", place.write("broken.jsonl", &broken));
    let said = place.unsound(&[&data]);
    contains(
        &said,
        &[
            "4 of 5 records cannot be used\n",
            "broken.jsonl:2: column 14: not valid JSON",
            "broken.jsonl:3: no column `messages` (the columns are: `conversation`)",
            "broken.jsonl:4: the conversation is empty",
            "broken.jsonl:5: must be a JSON object, not a list",
            // What can be used is shown.
            "broken.jsonl:1, ",
            "«b<|im_end|>»",
        ],
    );
    // The same of validation data.
    let value = format!("dataset_val={{_component_: chat, data_files: [{}]}}", place.path("broken.jsonl").display());
    contains(&place.unsound(&[&value]), &["4 of 5 records cannot be used", "data        chat dataset recipes/tiny"]);
}

#[test]
fn a_template_that_does_not_render_is_an_error() {
    let place = Place::new();
    let refusing = place.template("{{ raise_exception('only poems here') }}");
    contains(
        &place.unsound(&[&refusing]),
        &["1500 of 1500 records cannot be used", "secret_code.jsonl:1", "only poems here"],
    );
    let broken = place.template("{% for m in messages %}{{ m.content }");
    contains(&place.unsound(&[&broken]), &["the chat template is not valid"]);
}

#[test]
fn samples_without_a_trained_token_are_found() {
    let place = Place::new();
    let data = place.conversations("cut.jsonl", &[("a", "b"), (&"c".repeat(200), "d")]);
    let said = place.sound(&[&data]);
    contains(&said, &["1 sample has no trained token", "cut.jsonl:2", "1 sample without a trained token left out"]);
    let said = place.unsound(&["tokenizer.max_seq_len=8"]);
    contains(&said, &["none of 1500 samples has a trained token", "8 tokens, 0 of them trained"]);
}

/// In each of the ways in which it comes to that.
#[test]
fn a_stop_token_that_is_never_trained_is_an_error() {
    let place = Place::new();
    let never = "no stop token (`<|im_end|>`) ends an answer that is trained";
    // The template's marks leave it out.
    let turn = |answer: &str| {
        format!(
            "{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\\n' }}}}{{% if m.role == 'assistant' %}}{answer}{{% else \
             %}}{{{{ m.content + '<|im_end|>' }}}}{{% endif %}}{{{{ '\\n' }}}}{{% endfor %}}"
        )
    };
    let masked = turn("{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>");
    let said = place.unsound(&[&place.template(&masked), "~exact_match"]);
    contains(&said, &[never, "`{% generation %}` blocks must hold the token that ends a turn", "»<|im_end|>"]);
    let marked = turn("{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}");
    contains(&place.sound(&[&place.template(&marked), "~exact_match"]), &["<|im_end|>»"]);
    // The template has none.
    let said = place.unsound(&[&place.template(&turn("{{ m.content }}")), "~exact_match"]);
    contains(&said, &[never, "no stop token follows the answer"]);
    // It ends turns with another.
    let said = place.unsound(&[&place.template(&turn("{{ m.content }}<|im_start|>")), "~exact_match"]);
    contains(&said, &[never, "closed by `<|im_start|>`, which is not among the model's stop tokens", "eos_token_id"]);
    // It is cut off.
    let data = place.conversations("long.jsonl", &[("a", &"b".repeat(200)), ("c", &"d".repeat(300))]);
    contains(&place.unsound(&[&data]), &[never, "every sample is cut off before it: raise `tokenizer.max_seq_len`"]);
    // Text that is not to end may do without.
    let text = place.write("text.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n");
    let endless = format!("dataset={{_component_: text, add_eos: false, data_files: [{text}]}}");
    place.sound(&[&endless]);
}

#[test]
fn what_is_cut_off_is_counted() {
    let place = Place::new();
    let data = place.conversations("some.jsonl", &[("a", "b"), ("a", &"b".repeat(200)), ("a", "c")]);
    let whole = place.sound(&[&data, "tokenizer.max_seq_len=null"]);
    let tokens = |said: &str| -> usize {
        let (before, _) = said.split_once(" tokens, ").unwrap_or_else(|| panic!("{said}"));
        before.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let tokens = |said: &str| tokens(said.split_once("3 samples, ").map(|(_, rest)| rest).unwrap());
    let cut = place.sound(&[&data, "tokenizer.max_seq_len=64"]);
    let lost = tokens(&whole) - tokens(&cut);
    assert!(lost > 100, "{whole}\n{cut}");
    contains(
        &cut,
        &[
            &format!("1 sample cut, {lost} tokens lost"),
            "warning: ",
            "more than `tokenizer.max_seq_len` = 64 tokens",
            "the last answers of 1 have lost their stop token",
            "The model is made for up to 256",
        ],
    );
    // Longer than the model is made for.
    let data = place.conversations("longer.jsonl", &[("a", &"b".repeat(400))]);
    let said = place.sound(&[&data, "tokenizer.max_seq_len=null"]);
    contains(&said, &["the model is made for at most 256"]);
}

/// The tiny model's folder with a token for which there is no embedding.
fn model_without_an_embedding(place: &Place) -> String {
    let model = place.model(&json!({}));
    let path = place.path("model/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({"id": 384, "content": "<tool>", "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}));
    fs::write(path, tokenizer.to_string()).unwrap();
    model
}

#[test]
fn a_token_that_the_model_has_no_embedding_for_is_an_error() {
    let place = Place::new();
    let model = model_without_an_embedding(&place);
    let without = place.conversations("without.jsonl", &[("a", "b"), ("c", "d")]);
    contains(
        &place.sound(&[&model, &without]),
        &["warning: the tokenizer has 385 tokens and the model 384 embeddings"],
    );

    let lacks = "the token `<tool>` has id 384, and the model has 384 embeddings (ids 0 to 383)";
    let with = place.conversations("with.jsonl", &[("a", "b"), ("call <tool> now", "c")]);
    let said = place.unsound(&[&model, &with]);
    contains(&said, &["1 of 2 records cannot be used", &format!("with.jsonl:2: {lacks}")]);
    // What is cut off is no matter.
    let late = place.conversations("late.jsonl", &[("a", &format!("{} <tool>", "word ".repeat(50))), ("a", "b")]);
    place.sound(&[&model, &late, "tokenizer.max_seq_len=40"]);
    let file = with.strip_prefix("dataset.data_files=").unwrap();
    let value = format!("dataset_val={{_component_: chat, data_files: [{file}]}}");
    contains(&place.unsound(&[&model, &without, &value]), &[&format!("with.jsonl:2: {lacks}")]);
    let asked = format!("exact_match.data_file={file}");
    contains(&place.unsound(&[&model, &without, &asked]), &[&format!("with.jsonl:2: {lacks}")]);
    let text = place.write("text.jsonl", "{\"text\": \"one\"}\n{\"text\": \"<tool>\"}\n");
    let text = format!("dataset={{_component_: text, data_files: [{text}]}}");
    contains(&place.unsound(&[&model, &text]), &[&format!("text.jsonl:2: {lacks}")]);

    // Training does not begin.
    let output = place.output();
    let said = runs::fail("lora", &["--config", "configs/lora/tiny.yaml", &output, &model, &with]);
    contains(&said, &[&format!("with.jsonl:2: {lacks}")]);
    assert!(!place.path("out").exists());
    let folder = model.strip_prefix("checkpointer.").unwrap();
    let config = ["--config", "configs/generate/tiny.yaml"];
    let said = runs::fail("generate", &[&config[..], &[folder, "prompt='call <tool>'"]].concat());
    contains(&said, &[lacks]);
}

#[test]
fn a_question_that_cannot_be_asked_is_an_error() {
    let place = Place::new();
    let long = place.conversations("long.jsonl", &[("a", "b"), (&"word ".repeat(200), "c")]);
    let asked = long.replace("dataset.data_files", "exact_match.data_file");
    contains(
        &place.unsound(&[&asked]),
        &["long.jsonl:2: the prompt has ", "the model reads at most 256, answer included"],
    );
}
