//! What `--check` says of data: what is used of it and what is not, and advice that is followed.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;

use runs::{recipe, root, text};
use serde_json::{Value, json};

/// A folder of a test.
struct Place(tempfile::TempDir);

/// The few steps of these runs are fewer than those of the config's warm-up, which would be a warning.
const NO_WARM_UP: &str = "lr_scheduler.num_warmup_steps=0";

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// What `--check` says of the tiny config with overrides, and whether the run is sound.
    fn check(&self, overrides: &[&str]) -> (String, bool) {
        let output = format!("output_dir={}", self.0.path().join("out").display());
        let mut args = vec!["--check", "--config", "configs/lora/tiny.yaml", &output, "~exact_match", NO_WARM_UP];
        args.extend(overrides);
        let answer = recipe("lora", &args).env_remove("CLICOLOR_FORCE").output().unwrap();
        let said = text(&answer.stdout) + &text(&answer.stderr);
        assert!(!said.contains("panicked"), "{said}");
        (said, answer.status.code() == Some(0))
    }

    fn sound(&self, overrides: &[&str]) -> String {
        let (said, sound) = self.check(overrides);
        assert!(sound, "{said}");
        said
    }

    fn unsound(&self, overrides: &[&str]) -> String {
        let (said, sound) = self.check(overrides);
        assert!(!sound && said.contains("\nerror: "), "{said}");
        said
    }

    fn records(&self, records: &[Value]) -> String {
        let lines: Vec<String> = records.iter().map(Value::to_string).collect();
        format!("dataset.data_files={}", self.write("d.jsonl", &lines.join("\n")))
    }

    /// Questions and answers, of so many letters each.
    fn turns(&self, lengths: &[(usize, usize)]) -> Value {
        let turn = |&(question, answer): &(usize, usize)| {
            [
                json!({"role": "user", "content": "q".repeat(question)}),
                json!({"role": "assistant", "content": "a".repeat(answer)}),
            ]
        };
        json!({"messages": lengths.iter().flat_map(turn).collect::<Vec<_>>()})
    }

    fn template(&self, source: &str) -> String {
        format!("tokenizer.chat_template={}", self.write("template.jinja", source))
    }
}

fn contains(said: &str, expected: &[&str]) {
    for part in expected {
        assert!(said.contains(part), "there is no {part:?} in\n{said}");
    }
}

/// ChatML with tools and their calls.
const TOOLS: &str = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages \
                     %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | \
                     tojson }}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% \
                     endif %}";

#[test]
fn what_nobody_reads_is_a_warning() {
    let place = Place::new();
    let mut record = place.turns(&[(1, 1)]);
    record["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
    record["id"] = json!(7);
    record["messages"][0]["name"] = json!("ann");
    let data = place.records(&[record.clone(), record]);
    let said = place.sound(&[&data]);
    contains(
        &said,
        &[
            "d.jsonl: columns that are not used: `id` (in 2 records), `tools` (in 2 records). The chat template reads no tools",
            "d.jsonl: keys of messages that are not used: `name` (in 2 messages)",
            "there are 2 warnings",
        ],
    );
    let said = place.sound(&[&data, &place.template(TOOLS)]);
    contains(&said, &["columns that are not used: `id` (in 2 records)\n", "{\"name\": \"f\"}"]);
}

#[test]
fn arguments_in_json_text_are_mentioned() {
    let place = Place::new();
    let record = |arguments: Value| {
        let mut record = place.turns(&[(1, 1)]);
        let call = json!({"type": "function", "function": {"name": "f", "arguments": arguments}});
        record["messages"][1] = json!({"role": "assistant", "content": null, "tool_calls": [call]});
        record
    };
    let template = place.template(TOOLS);
    let said = place.sound(&[&place.records(&[record(json!("{\"a\": 1}"))]), &template]);
    contains(
        &said,
        &[
            "in 1 message the arguments of calls are JSON text, and reach the chat template as text",
            "in 1 message the arguments of calls are JSON text, and the chat template writes them as a text in quotes: \
             give them as objects",
            r#""arguments": "{\"a\": 1}""#,
        ],
    );
    // The advice is followed.
    let said = place.sound(&[&place.records(&[record(json!({"a": 1}))]), &template]);
    contains(&said, &[r#""arguments": {"a": 1}"#, "Nothing stands in the way of this run."]);
    // A template that writes text as it is has nothing to quote.
    let bare = TOOLS.replace("c.function | tojson", "c.function.name ~ c.function.arguments");
    let said = place.sound(&[&place.records(&[record(json!("{\"a\": 1}"))]), &place.template(&bare)]);
    contains(&said, &["and reach the chat template as text", "«f{\"a\": 1}<|im_end|>»", "Nothing stands in the way"]);
}

#[test]
fn last_answers_that_lose_their_end_are_counted() {
    let place = Place::new();
    // The first answer keeps its stop token in both.
    let data = place.records(&[place.turns(&[(1, 1), (1, 200)]), place.turns(&[(1, 1)])]);
    let said = place.sound(&[&data, "tokenizer.max_seq_len=64"]);
    contains(
        &said,
        &[
            "1 sample has more than `tokenizer.max_seq_len` = 64 tokens and is cut",
            "the last answers of 1 have lost their stop token",
        ],
    );
    // A question at the end is no loss.
    let data = place.records(&[place.turns(&[(1, 1), (200, 1)]), place.turns(&[(1, 1)])]);
    contains(&place.sound(&[&data, "tokenizer.max_seq_len=64"]), &["the last answers of 1 have lost their stop token"]);
    let mut record = place.turns(&[(1, 1)]);
    record["messages"].as_array_mut().unwrap().push(json!({"role": "user", "content": "q".repeat(200)}));
    let said = place.sound(&[&place.records(&[record]), "tokenizer.max_seq_len=64"]);
    assert!(!said.contains("have lost their stop token"), "{said}");
}

/// Users' turns may end with one, where every token is trained.
#[test]
fn a_template_whose_answers_never_end_is_an_error() {
    let place = Place::new();
    let data = place.records(&[place.turns(&[(1, 1)])]);
    let template = place.template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.role == 'user' %}<|im_end|>{% endif \
         %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    );
    for masking in ["assistant", "last", "all"] {
        let said = place.unsound(&[&data, &template, &format!("dataset.masking_strategy={masking}")]);
        contains(
            &said,
            &["no stop token (`<|im_end|>`) ends an answer that is trained", "no stop token follows the answer"],
        );
        assert!(!said.contains("answers end with"), "{said}");
    }
}

/// What `--check` refuses, the run does, before its first step.
#[test]
fn a_run_without_an_end_of_answers_does_not_begin() {
    let place = Place::new();
    let data = place.records(&[place.turns(&[(1, 1)])]);
    let endless = place.template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}");
    let output = place.0.path().join("out");
    let folder = format!("output_dir={}", output.display());
    let args = ["--config", "configs/lora/tiny.yaml", &folder, "~exact_match", NO_WARM_UP, &data, &endless];
    let answer = recipe("lora", &args).output().unwrap();
    let said = text(&answer.stderr);
    assert_eq!(answer.status.code(), Some(1), "{said}");
    contains(&said, &["error: ", "no stop token (`<|im_end|>`) ends an answer that is trained"]);
    assert!(!output.exists(), "{said}");
}

#[test]
fn samples_without_a_trained_token_are_told_why() {
    let place = Place::new();
    let mut left_out = place.turns(&[(1, 1)]);
    left_out["messages"][1]["weight"] = json!(0);
    let data = place.records(&[place.turns(&[(1, 1)]), place.turns(&[(300, 1)]), left_out.clone()]);
    let said = place.sound(&[&data, "tokenizer.max_seq_len=64"]);
    contains(
        &said,
        &["2 samples have no trained token and are left out (1 ends before its answer begins: raise \
           `tokenizer.max_seq_len`, which is 64; 1 is marked as not to be trained)"],
    );
    // The advice is followed.
    let said = place.sound(&[&data, "tokenizer.max_seq_len=400"]);
    contains(&said, &["1 sample has no trained token and is left out (1 is marked as not to be trained)"]);
    let said = place.unsound(&[&place.records(&[left_out])]);
    contains(&said, &["none of 1 sample has a trained token: 1 is marked as not to be trained"]);
    assert!(!said.contains("raise `tokenizer.max_seq_len`"), "{said}");
}

/// Each of them leads on.
#[test]
fn advice_is_followed() {
    let place = Place::new();
    let data = place.records(&[place.turns(&[(1, 1), (1, 1)]), place.turns(&[(1, 1), (1, 100)])]);
    // Cut off.
    let said = place.unsound(&[&data, "tokenizer.max_seq_len=12"]);
    contains(&said, &["raise `tokenizer.max_seq_len`"]);
    let said = place.sound(&[&data, "tokenizer.max_seq_len=64"]);
    contains(&said, &["The model is made for up to 256"]);
    let said = place.sound(&[&data, "tokenizer.max_seq_len=256"]);
    contains(&said, &["Nothing stands in the way of this run."]);
    // Too long for the model.
    let long = place.records(&[place.turns(&[(1, 1), (1, 400)])]);
    let said = place.sound(&[&long, "tokenizer.max_seq_len=null"]);
    contains(&said, &["the model is made for at most 256: set `tokenizer.max_seq_len`"]);
    assert!(!place.sound(&[&long, "tokenizer.max_seq_len=256"]).contains("the model is made for at most"));
    // A template that renders earlier answers otherwise.
    let forgets = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if not loop.last and m.role == \
                   'assistant' %}!{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt \
                   %}<|im_start|>assistant\n{% endif %}";
    let data = place.records(&[place.turns(&[(1, 1), (1, 1)])]);
    let said = place.unsound(&[&data, &place.template(forgets)]);
    contains(&said, &["Set `masking_strategy: last`, or use a chat template with {% generation %} marks"]);
    place.sound(&[&data, &place.template(forgets), "dataset.masking_strategy=last"]);
    let marked = fs::read_to_string(root().join("tests/chat_templates/chatml_generation.jinja")).unwrap();
    place.sound(&[&data, &place.template(&marked)]);
    // Where the strategy is set already, or there is one answer, it is not advised.
    let mute = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt \
                %}A: {% endif %}";
    let one = place.records(&[place.turns(&[(1, 1)])]);
    for overrides in [[one.as_str(), ""], [data.as_str(), ""], [data.as_str(), "dataset.masking_strategy=last"]] {
        let template = place.template(mute);
        let overrides: Vec<&str> = overrides.into_iter().filter(|o| !o.is_empty()).chain([template.as_str()]).collect();
        let said = place.unsound(&overrides);
        assert!(!said.contains("masking_strategy: last") && said.contains("Use a chat template with"), "{said}");
        // The same text, with marks.
        let marked = mute.replace("{{ m.content }}<|im_end|>", "{% if m.role == 'assistant' %}{% generation %}{{ \
                                  m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}");
        assert_ne!(marked, mute);
        let marked = place.template(&marked);
        let overrides = [&overrides[..overrides.len() - 1], &[marked.as_str()]].concat();
        let said = place.sound(&overrides);
        contains(&said, &["`{% generation %}` marks say what is trained", "Nothing stands in the way of this run."]);
    }
    // Contradicting ways to say what is trained.
    let both = ["dataset.masking_strategy=last", "dataset.train_on_input=true"];
    contains(&place.unsound(&[&data, both[0], both[1]]), &["remove `train_on_input`"]);
    place.sound(&[&data, both[0]]);
}

/// A copy of the tiny model, with changes to one of its files.
fn changed_model(place: &Place, file: &str, change: impl Fn(&mut Value)) -> String {
    let model = place.0.path().join("model");
    fs::create_dir_all(&model).unwrap();
    for entry in fs::read_dir(root().join("recipes/tiny/model")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let path = model.join(file);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
    format!("checkpointer.checkpoint_dir={}", model.display())
}

#[test]
fn a_token_that_closes_answers_becomes_a_stop_token() {
    let place = Place::new();
    let data = place.records(&[place.turns(&[(1, 1)])]);
    // It begins turns, too, so it is not taken for their end.
    let template = place.template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.role == 'assistant' %}<|im_start|>{% \
         endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    );
    let said = place.unsound(&[&data, &template]);
    contains(
        &said,
        &["closed by `<|im_start|>`, which is not", "add its id 0 to `eos_token_id` in generation_config.json"],
    );
    let model = changed_model(&place, "generation_config.json", |config| config["eos_token_id"] = json!([1, 0]));
    let said = place.sound(&[&data, &template, &model]);
    contains(&said, &["generation stops at `<|im_start|>`, `<|im_end|>`", "Nothing stands in the way of this run."]);
}

#[test]
fn several_datasets_are_packed_or_none() {
    let place = Place::new();
    let path = place.write("d.jsonl", &place.turns(&[(1, 1)]).to_string());
    let both = |packed: [bool; 2]| {
        let each = packed.map(|packed| format!("{{_component_: chat, data_files: {path}, packed: {packed}}}"));
        format!("dataset=[{}]", each.join(", "))
    };
    let said = place.unsound(&[&both([true, false])]);
    contains(&said, &["of several datasets either all or none must be `packed`"]);
    place.sound(&[&both([true, true])]);
    place.sound(&[&both([false, false])]);
    contains(&place.unsound(&[&both([true, true]), "tokenizer.max_seq_len=null"]), &["needs `max_seq_len`"]);
}

#[test]
fn a_model_without_a_chat_template_has_three_ways_on() {
    let place = Place::new();
    let model = changed_model(&place, "tokenizer_config.json", |config| config["chat_template"] = Value::Null);
    let chats = place.records(&[place.turns(&[(1, 1)])]);
    let said = place.unsound(&[&chats, &model]);
    contains(
        &said,
        &["no chat template", "with an `instruct` dataset", "name a file with one as `tokenizer.chat_template`"],
    );
    let chatml = fs::read_to_string(root().join("tests/chat_templates/chatml.jinja")).unwrap();
    place.sound(&[&chats, &model, &place.template(&chatml)]);
    let pairs = place.write("pairs.jsonl", "{\"input\": \"q\", \"output\": \"a\"}");
    let pairs = |more: &str| format!("dataset={{_component_: instruct, data_files: {pairs}{more}}}");
    place.sound(&[&pairs(""), &model]);
    let said = place.unsound(&[&pairs(", apply_chat_template: true"), &model]);
    contains(&said, &["`apply_chat_template` asks for one: remove it"]);
}

#[test]
fn answers_before_the_last_without_an_end_are_told() {
    let place = Place::new();
    let data = place.records(&[place.turns(&[(1, 1), (1, 1)]), place.turns(&[(1, 1)])]);
    let told = "in 1 sample an answer before the last has no stop token that is trained, so the model learns to go on \
                there: set `masking_strategy: last`";
    // Only the conversation has an end.
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if loop.last and m.role == 'assistant' \
                    %}<|im_end|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    // The marks hold only the last one's.
    let marks = "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% if \
                 loop.last %}<|im_end|>{% endif %}{% endgeneration %}{% if not loop.last %}<|im_end|>{% endif %}{% else \
                 %}{{ m.content }}{% endif %}\n{% endfor %}";
    let ends_all = marks.replace(" loop.last %}<|im_end|>", " true %}<|im_end|>");
    for (template, is_told) in [(template, false), (marks, true), (&*ends_all, false)] {
        let template = place.template(template);
        let (said, _) = place.check(&[&data, &template]);
        assert_eq!(said.contains(told), is_told, "{said}");
        if is_told {
            let said = place.sound(&[&data, &template, "dataset.masking_strategy=last"]);
            contains(&said, &["Nothing stands in the way of this run."]);
        }
    }
}

/// What is taken of the data, and how full its rows are.
#[test]
fn what_is_taken_is_said() {
    let place = Place::new();
    let record = |score: usize, answer: usize| {
        let mut record = place.turns(&[(1, answer)]);
        record["score"] = json!(score);
        record
    };
    // 40 records with answers of 1 to 40 letters, a token each.
    let data = place.records(&(1..=40).map(|i| record(i % 4, i)).collect::<Vec<_>>());
    let plain = place.sound(&[&data, "batch_size=4"]);
    contains(
        &plain,
        &["columns that are not used: `score` (in 40 records)", " of the positions in batches are padding"],
    );

    let said = place.sound(&[&data, "dataset.filter=score > 0", "dataset.min_tokens=20", "dataset.max_tokens=40"]);
    contains(&said, &["\n            10 records filtered out\n"]);
    assert!(!said.contains("columns that are not used"), "{said}");
    let number = |end: &str| {
        let line = said.lines().find(|line| line.ends_with(end)).unwrap_or_else(|| panic!("no {end:?} in\n{said}"));
        line.split_whitespace().next().unwrap().parse::<usize>().unwrap()
    };
    let (short, long) =
        (number(" of fewer tokens than `min_tokens` left out"), number(" of more tokens than `max_tokens` left out"));
    contains(&said, &[&format!("\n            {} samples, ", 30 - short - long)]);

    let packed = place.sound(&[&data, "dataset.packed=true", "dataset.packing=best_fit", "tokenizer.max_seq_len=64"]);
    contains(&packed, &[" rows of up to 64 tokens, which fill "]);

    let said = place.sound(&[&data, "val_set_size=0.25"]);
    contains(
        &said,
        &[
            "data        chat dataset",
            "\n            30 samples, ",
            "validation  chat dataset",
            "\n            10 samples, ",
        ],
    );
    contains(
        &place.unsound(&[&data, "val_set_size=40"]),
        &["val_set_size=40: of 40 records none would be left to train on"],
    );

    let path = data.split_once('=').unwrap().1;
    let each = |weight: usize| format!("{{_component_: chat, data_files: {path}, weight: {weight}}}");
    let said = place.sound(&[&format!("dataset=[{}, {}]", each(1), each(3))]);
    contains(
        &said,
        &[
            "an epoch takes 20 of its 40 records, the same in each epoch; ",
            "an epoch takes its 40 records 1.50 times in each epoch: 60; ",
        ],
    );
    // A mistake in an expression is shown where it stands.
    let config = fs::read_to_string(root().join("configs/lora/tiny.yaml")).unwrap();
    let file = place.write("c.yaml", &config.replace("  conversation_style: openai", "  filter: score >"));
    let error = runs::fail("lora", &["--check", "--config", &file, "output_dir=out/never"]);
    contains(&error, &["c.yaml:23:11", "not an expression in Jinja, such as `score > 0.5`"]);
}
