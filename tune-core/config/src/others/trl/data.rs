//! TRL's datasets. Their columns are looked at when they are read, so a file does not say what is in them.

use crate::others::common;
use crate::others::conversion::Conversion;
use crate::others::draft::{self, Draft};
use crate::others::given::Given;

/// `dataset` and `dataset_val`.
pub(super) fn convert(c: &mut Conversion<'_>) {
    let given = c.given;
    let mut training = Vec::new();
    for item in given.items("datasets") {
        let at = Given { root: item };
        let files = at.texts("data_files");
        let mut draft = Draft::default();
        kind(c, &mut draft);
        common::source(&mut draft, at.text("path"), None, &files, if files.is_empty() { "path" } else { "data_files" });
        training.push((draft, at.text("split").unwrap_or("train").to_owned()));
    }
    let named = given.text("dataset_name").filter(|_| training.is_empty());
    if let Some(entry) = given.entry("dataset_name").filter(|_| named.is_none()) {
        c.meaningless(entry, "`datasets` is taken in its place");
    }
    let of = |c: &Conversion<'_>, name: &str| {
        let mut draft = Draft::default();
        kind(c, &mut draft);
        common::source(&mut draft, Some(name), None, &[], "dataset_name");
        draft
    };
    let mut held = Vec::new();
    if let Some(name) = named {
        training.push((of(c, name), given.text("dataset_train_split").unwrap_or("train").to_owned()));
        if given.text("eval_strategy").is_some_and(|strategy| strategy != "no") {
            held.push(with_split(of(c, name), given.text("dataset_test_split").unwrap_or("test")));
        }
    }
    if let Some(entry) = given.entry("test_split_size").filter(|_| given.is_on("test_split_size")) {
        let part = given.number("test_split_size").unwrap_or(0.0);
        let splits: Option<Vec<_>> = training.iter().map(|(_, split)| common::held_out(split, part)).collect();
        match splits {
            Some(splits) if named.is_none() => {
                let again = given.items("datasets").into_iter().map(|item| {
                    let at = Given { root: item };
                    let mut draft = Draft::default();
                    kind(c, &mut draft);
                    common::source(&mut draft, at.text("path"), None, &at.texts("data_files"), "path");
                    draft
                });
                let again: Vec<_> = again.collect();
                for (((_, split), item), [start, end]) in training.iter_mut().zip(again).zip(splits) {
                    *split = start;
                    held.push(with_split(item, &end));
                }
            }
            _ => c.missing(entry, "no part of these datasets can be held out", "set dataset_val, with a split"),
        }
    }
    match training.is_empty() {
        true => c.remark("there is no dataset", "set dataset, such as dataset='{_component_: chat, data_files: [FILE]}'"),
        false if c.recipe.name == "kto" => c.remark(
            "TRL looks at a dataset's columns, and this file does not say them: messages in `prompt` and `completion` are expected",
            "for texts set dataset._component_=unpaired_instruct, and remove column_map",
        ),
        false if c.recipe.name != "dpo" && guessed(given) => c.remark(
            "TRL looks at a dataset's columns, and this file does not say them: conversations in `messages` are expected",
            "for texts set dataset=text, for questions and answers dataset=instruct, with their columns",
        ),
        false => {}
    }
    let training = training.into_iter().map(|(item, split)| with_split(item, &split)).collect();
    c.draft.set_items("dataset", training);
    if !held.is_empty() {
        c.draft.set_items("dataset_val", held);
    }
}

fn with_split(mut item: Draft, split: &str) -> Draft {
    if split != "train" {
        item.set("split", draft::text(split), "");
    }
    item
}

/// Whether nothing says what columns there are.
fn guessed(given: Given<'_>) -> bool {
    !given.has("dataset_text_field") && !given.is_on("assistant_only_loss") && !given.is_on("completion_only_loss")
}

/// The component that fits what the file says.
fn kind(c: &Conversion<'_>, draft: &mut Draft) {
    let given = c.given;
    if c.recipe.name == "dpo" {
        return draft.set("_component_", "preference", "");
    }
    if c.recipe.name == "kto" {
        draft.set("_component_", "unpaired", "");
        draft.set("column_map.prompt", "prompt", "TRL's columns");
        return draft.set("column_map.messages", "completion", "TRL's columns");
    }
    if given.is_on("completion_only_loss") {
        draft.set("_component_", "instruct", "completion_only_loss");
        draft.set("column_map.input", "prompt", "TRL's columns");
        draft.set("column_map.output", "completion", "TRL's columns");
    } else if let Some(column) = given.text("dataset_text_field") {
        draft.set("_component_", "text", "dataset_text_field");
        draft.set_text("column", column, "dataset_text_field");
    } else {
        draft.set("_component_", "chat", "");
        let mask = if given.is_on("assistant_only_loss") { "assistant" } else { "all" };
        draft.set("masking_strategy", mask, "assistant_only_loss");
    }
    if given.is_on("packing") {
        draft.set("packed", "true", "packing");
    }
}
