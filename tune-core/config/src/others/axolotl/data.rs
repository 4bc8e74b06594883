//! Axolotl's datasets.

use tune_yaml::{Entry, Node, Value};

use crate::others::common::{self, shown};
use crate::others::conversion::Conversion;
use crate::others::draft::{self, Draft};
use crate::others::given::Given;

/// `dataset`, `dataset_val` and the chat template.
pub(super) fn convert(c: &mut Conversion<'_>) {
    let given = c.given;
    let mut training: Vec<(Draft, String)> = Vec::new();
    for item in given.items("datasets") {
        training.extend(dataset(c, item));
    }
    for item in given.items("pretraining_dataset") {
        training.extend(pretraining(item));
    }
    let mut held = Vec::new();
    for item in given.items("test_datasets") {
        held.extend(dataset(c, item).map(|(item, split)| with_split(item, &split)));
    }
    if let Some(entry) = given.entry("val_set_size").filter(|_| given.is_on("val_set_size")) {
        let part = given.number("val_set_size").unwrap_or(0.0);
        let splits: Option<Vec<_>> = training.iter().map(|(_, split)| common::held_out(split, part)).collect();
        match splits {
            Some(splits) if held.is_empty() => {
                // The items again, each with the part that the other leaves.
                let again: Vec<_> = given
                    .items("datasets")
                    .into_iter()
                    .filter_map(|item| silent(c, item))
                    .zip(&splits)
                    .map(|((item, _), [_, end])| with_split(item, end))
                    .collect();
                held = again;
                for ((_, split), [start, _]) in training.iter_mut().zip(splits) {
                    *split = start;
                }
            }
            _ => c.missing(entry, "no part of these datasets can be held out", "set dataset_val, with a split"),
        }
    }
    let training: Vec<_> = training.into_iter().map(|(item, split)| with_split(item, &split)).collect();
    if training.is_empty() {
        let instead = "set dataset, such as dataset='{_component_: chat, data_files: [FILE]}'";
        c.remark("there is no dataset that is understood", instead);
    }
    c.draft.set_items("dataset", training);
    if !held.is_empty() {
        c.draft.set_items("dataset_val", held);
    }
    templates(c);
}

/// The split that is not all of `train`.
fn with_split(mut item: Draft, split: &str) -> Draft {
    if split != "train" {
        item.set_text("split", split, "");
    }
    item
}

/// The template of all conversations: one of the checkpoint's, or a file.
fn templates(c: &mut Conversion<'_>) {
    let given = c.given;
    let items = given.items("datasets");
    let all = std::iter::once(given).chain(items.into_iter().map(|root| Given { root }));
    for at in all {
        let named = at.entry("chat_template").filter(|entry| entry.value.as_str() != Some("tokenizer_default"));
        let jinja = at.entry("chat_template_jinja");
        match (named, jinja) {
            (None, None) => {}
            (named, Some(jinja)) if named.is_none_or(|entry| entry.value.as_str() == Some("jinja")) => {
                let text = jinja.value.as_str().unwrap_or_default();
                let is_file = !text.contains('{') && !text.contains('\n');
                match is_file {
                    true => c.draft.set_text("tokenizer.chat_template", text, "chat_template_jinja"),
                    false => {
                        let instead = "write it into a file, and set tokenizer.chat_template=FILE";
                        c.missing(jinja, "a template is a file here", instead);
                    }
                }
            }
            (Some(named), _) => {
                let name = shown(named.value.as_str().unwrap_or_default());
                let missing = format!("the template is the checkpoint's own, and not Axolotl's `{name}`");
                let instead = "remove the key if that is what the checkpoint has; else write the template into a file, \
                               and set tokenizer.chat_template=FILE";
                c.missing(named, missing, instead);
            }
            (None, Some(_)) => {}
        }
    }
}

/// A dataset of texts that are learned as they are.
fn pretraining(item: &Node) -> Option<(Draft, String)> {
    let at = Given { root: item };
    let mut draft = Draft::default();
    draft.set("_component_", "text", "pretraining_dataset");
    let path = at.text("path").or_else(|| item.as_str());
    common::source(&mut draft, path, None, &at.texts("data_files"), "path");
    for key in ["field", "text_column"] {
        if let Some(column) = at.text(key) {
            draft.set_text("column", column, key);
        }
    }
    Some((draft, at.text("split").unwrap_or("train").to_owned()))
}

/// A dataset again, with nothing said of it.
fn silent(c: &mut Conversion<'_>, item: &Node) -> Option<(Draft, String)> {
    let said = c.diagnostics.len();
    let again = dataset(c, item);
    c.diagnostics.truncate(said);
    again
}

/// A dataset of ours, and its split; `None` where there is none for it, which is said.
fn dataset(c: &mut Conversion<'_>, item: &Node) -> Option<(Draft, String)> {
    let at = Given { root: item };
    let kind = at.entry("type");
    let mut draft = Draft::default();
    match kind.map(|entry| &entry.value) {
        Some(Node { value: Value::Map(_), .. }) => fields(c, kind?, &mut draft)?,
        Some(node) if c.recipe.name == "kto" => labelled(c, node.as_str().unwrap_or_default(), kind?, &mut draft)?,
        Some(node) if c.recipe.name == "dpo" => answers(c, at, node.as_str().unwrap_or_default(), kind?, &mut draft)?,
        Some(node) => texts(c, at, node.as_str().unwrap_or_default(), kind?, &mut draft)?,
        None => {
            let instead = "write the text itself, with a type such as chat_template; it is tokenized here";
            c.refuse(item, "tokens are not read, and a dataset without a type has them", instead);
            return None;
        }
    }
    let mut files = at.texts("data_files");
    let path = at.text("path");
    if files.is_empty()
        && at.has("ds_type")
        && let Some(path) = path
    {
        files.push(path);
        common::source(&mut draft, None, None, &files, "path");
    } else {
        let from = if files.is_empty() { "path" } else { "data_files" };
        common::source(&mut draft, path, at.text("revision"), &files, from);
    }
    if c.given.is_on("sample_packing") && matches!(c.recipe.name, "lora" | "full" | "qat") {
        draft.set("packed", "true", "sample_packing");
    }
    Some((draft, at.text("split").unwrap_or("train").to_owned()))
}

/// What is learned from: conversations, Alpaca's columns, text.
fn texts(c: &mut Conversion<'_>, at: Given<'_>, kind: &str, entry: &Entry, draft: &mut Draft) -> Option<()> {
    match kind {
        "chat_template" | "chat_template.default" => {
            draft.set("_component_", "chat", "type");
            if let Some(column) = at.text("field_messages") {
                draft.set_text("conversation_column", column, "field_messages");
            }
            message_keys(at, draft);
            learned(c, at, draft);
        }
        "alpaca" => {
            draft.set("_component_", "alpaca", "type");
            draft.set("apply_chat_template", "false", "Alpaca's own prompts");
            draft.set("masking_strategy", mask(c), "train_on_inputs");
        }
        "completion" => {
            draft.set("_component_", "text", "type");
            if let Some(column) = at.text("field") {
                draft.set_text("column", column, "field");
            }
            if c.recipe.name != "pretrain" {
                let missing = "a text is cut off after sequence_len tokens, where Axolotl goes on with the rest as another sample";
                c.missing(entry, missing, "divide long texts in the file");
            }
        }
        _ if kind.starts_with("sharegpt") => {
            let message = "Axolotl 0.18.0 refuses datasets of type sharegpt";
            let instead = "write `type: chat_template`, field_messages: conversations and \
                           message_property_mappings: {role: from, content: value}";
            c.refuse(&entry.value, message, instead);
            return None;
        }
        _ => return unknown_type(c, kind, entry),
    }
    Some(())
}

fn unknown_type(c: &mut Conversion<'_>, kind: &str, entry: &Entry) -> Option<()> {
    let missing = format!("the dataset is left out: there is no counterpart to its type `{}`", shown(kind));
    c.missing(entry, missing, "write a dataset of type chat, instruct or text, and change the file to fit");
    None
}

fn mask(c: &Conversion<'_>) -> &'static str {
    if c.given.is_on("train_on_inputs") { "all" } else { "assistant" }
}

/// The keys of a message.
fn message_keys(at: Given<'_>, draft: &mut Draft) {
    let key = |name: &str| {
        at.text(&format!("message_property_mappings.{name}")).or_else(|| at.text(&format!("message_field_{name}")))
    };
    let (role, content) = (key("role"), key("content"));
    if role == Some("from") && content == Some("value") {
        return draft.set("conversation_style", "sharegpt", "message_property_mappings");
    }
    for (ours, theirs, usual) in [("role_key", role, "role"), ("content_key", content, "content")] {
        if let Some(theirs) = theirs.filter(|theirs| *theirs != usual) {
            draft.set_text(ours, theirs, "message_property_mappings");
        }
    }
}

/// Whose messages are learned.
fn learned(c: &mut Conversion<'_>, at: Given<'_>, draft: &mut Draft) {
    if c.given.is_on("train_on_inputs") {
        draft.set("masking_strategy", "all", "train_on_inputs");
    }
    if let Some(entry) = at.entry("roles_to_train").filter(|entry| !common::only(&entry.value, &["assistant"])) {
        c.missing(entry, "what the assistant says is learned, or everything", "set masking_strategy=all or assistant");
    }
    for key in ["train_on_eos", "train_on_eot"] {
        if let Some(entry) = at.entry(key).filter(|entry| entry.value.as_str() != Some("turn")) {
            let instead = "remove the key: a model that does not learn to stop does not stop";
            c.missing(entry, "what ends an answer is learned with each answer", instead);
        }
    }
    usual_roles(c, at);
}

/// Says where roles have other names than here.
fn usual_roles(c: &mut Conversion<'_>, at: Given<'_>) {
    if let Some(entry) = at.entry("roles") {
        let usual = [("user", "human user"), ("assistant", "gpt assistant"), ("system", "system"), ("tool", "tool")];
        let is_usual = |role: &Entry| {
            let theirs = crate::others::given::texts(&role.value);
            usual.iter().any(|(name, words)| {
                *name == role.key && theirs.iter().all(|theirs| words.split(' ').any(|word| word == *theirs))
            })
        };
        if !matches!(&entry.value.value, Value::Map(roles) if roles.iter().all(is_usual)) {
            let instead =
                "change the file: system, user, assistant, tool; or human and gpt with conversation_style=sharegpt";
            c.missing(entry, "roles have their usual names here", instead);
        }
    }
}

/// A dataset whose `type` names columns and a prompt.
fn fields(c: &mut Conversion<'_>, entry: &Entry, draft: &mut Draft) -> Option<()> {
    let of = Given { root: &entry.value };
    if c.recipe.name == "dpo" {
        draft.set("_component_", "preference_instruct", "type");
        for (ours, theirs) in [("prompt", "field_prompt"), ("chosen", "field_chosen"), ("rejected", "field_rejected")] {
            if let Some(column) = of.text(theirs) {
                draft.set_text(&format!("column_map.{ours}"), column, theirs);
            }
        }
        as_they_are(c, of, &[("chosen_format", "chosen"), ("rejected_format", "rejected")], draft);
        return Some(());
    }
    if c.recipe.name == "kto" {
        draft.set("_component_", "unpaired_instruct", "type");
        for (ours, theirs) in [("prompt", "field_prompt"), ("completion", "field_completion"), ("label", "field_label")]
        {
            if let Some(column) = of.text(theirs) {
                draft.set_text(&format!("column_map.{ours}"), column, theirs);
            }
        }
        as_they_are(c, of, &[("completion_format", "chosen")], draft);
        return Some(());
    }
    let format = of.text("format").unwrap_or("{instruction} {input}");
    let alone = of.text("no_input_format").or(Some(format)).filter(|format| !format.contains("{input}"));
    let Some(alone) = alone.filter(|_| !format.contains("{input}") || !of.has("field_input")) else {
        let missing = "the dataset is left out: a question is one column here, and its prompt has two";
        c.missing(entry, missing, "use `type: alpaca`, or put instruction and input into one column");
        return None;
    };
    draft.set("_component_", "instruct", "type");
    draft.set_text("column_map.input", of.text("field_instruction").unwrap_or("instruction"), "field_instruction");
    draft.set_text("column_map.output", of.text("field_output").unwrap_or("output"), "field_output");
    let prompt = alone.replace("{instruction}", "{input}");
    draft.set("prompt_template", draft::text(&format!("{prompt}{{output}}")), "format");
    draft.set("apply_chat_template", "false", "the prompt is the format");
    draft.set("masking_strategy", mask(c), "train_on_inputs");
    if let Some(system) = of.entry("system_prompt").filter(|entry| entry.value.as_str() != Some("")) {
        c.missing(system, "a prompt is one text here", "write it into prompt_template");
    }
    Some(())
}

/// Question and answers without the chat template, in formats of their own where there are any. `answers` are the answers' formats, and
/// what stands for the answer in each.
fn as_they_are(c: &mut Conversion<'_>, of: Given<'_>, answers: &[(&str, &str)], draft: &mut Draft) {
    draft.set("apply_chat_template", "false", "question and answer as they are");
    if let Some(entry) = of.entry("field_system") {
        c.missing(entry, "a column of system prompts is not read", "write it into the question, in the file");
    }
    let formats = std::iter::once(("prompt_format", "prompt", "{input}"))
        .chain(answers.iter().map(|(key, name)| (*key, *name, "{output}")));
    let mut parts: Vec<String> = Vec::new();
    for (key, name, ours) in formats {
        let theirs = of.text(key).filter(|format| !format.is_empty());
        let part = theirs.map_or(ours.to_owned(), |format| format.replace(&format!("{{{name}}}"), ours));
        let is_plain = part.matches(ours).count() == 1 && part.matches(['{', '}']).count() == 2;
        let is_other = parts.get(1).is_some_and(|first| *first != part);
        if let (Some(entry), true) = (of.entry(key), !is_plain || is_other) {
            let instead = "set prompt_template, with {input} and {output} in it, or change the file";
            c.missing(entry, "there is one format for question and answer, with one place for each", instead);
            return;
        }
        parts.push(part);
    }
    let template: String = parts.iter().take(2).map(String::as_str).collect();
    if template != "{input}{output}" {
        draft.set("prompt_template", draft::text(&template), "prompt_format");
    }
}

/// Answers with labels.
fn labelled(c: &mut Conversion<'_>, kind: &str, entry: &Entry, draft: &mut Draft) -> Option<()> {
    let (template, form) = kind.split_once('.').unwrap_or((kind, "default"));
    match (template, form) {
        ("chatml" | "llama3", "argilla_chat") => {
            draft.set("_component_", "unpaired", "type");
            draft.set("column_map.messages", "completion", "type");
        }
        ("chatml" | "llama3", "argilla" | "intel" | "prompt_pairs" | "ultra") => {
            draft.set("_component_", "unpaired_instruct", "type");
            let question = match form {
                "argilla" => "instruction",
                "intel" => "question",
                _ => "prompt",
            };
            draft.set_text("column_map.prompt", question, "type");
        }
        _ => return unknown_type(c, kind, entry),
    }
    let missing =
        format!("the template is the checkpoint's own, and not Axolotl's `{template}`; a column `system` is not read");
    c.missing(entry, missing, "set new_system_prompt to one for all, or change the file");
    Some(())
}

/// Pairs of answers.
fn answers(c: &mut Conversion<'_>, at: Given<'_>, kind: &str, entry: &Entry, draft: &mut Draft) -> Option<()> {
    let (template, form) = kind.split_once('.').unwrap_or((kind, "default"));
    match (template, form) {
        ("chat_template", "default") => {
            draft.set("_component_", "preference", "type");
            draft.set_text("column_map.prompt", at.text("field_messages").unwrap_or("messages"), "field_messages");
            for (ours, theirs) in [("chosen", "field_chosen"), ("rejected", "field_rejected")] {
                if let Some(column) = at.text(theirs) {
                    draft.set_text(&format!("column_map.{ours}"), column, theirs);
                }
            }
            message_keys(at, draft);
            usual_roles(c, at);
        }
        ("chat_template", "argilla_chat" | "argilla") => {
            draft.set("_component_", "preference", "type");
            for (ours, theirs) in [("chosen", "field_chosen"), ("rejected", "field_rejected")] {
                if let Some(column) = at.text(theirs) {
                    draft.set_text(&format!("column_map.{ours}"), column, theirs);
                }
            }
            message_keys(at, draft);
        }
        ("chatml" | "llama3" | "zephyr", "intel" | "prompt_pairs" | "icr" | "nectar") => {
            draft.set("_component_", "preference_instruct", "type");
            let question = match form {
                "intel" => "question",
                "icr" => "input",
                _ => "prompt",
            };
            draft.set_text("column_map.prompt", question, "type");
            let missing = format!(
                "the template is the checkpoint's own, and not Axolotl's `{template}`; a column `system` is not read"
            );
            c.missing(entry, missing, "set new_system_prompt to one for all, or change the file");
        }
        _ => return unknown_type(c, kind, entry),
    }
    Some(())
}
