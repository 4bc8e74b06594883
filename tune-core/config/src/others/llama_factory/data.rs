//! LLaMA-Factory's datasets: names, which `dataset_info.json` in `dataset_dir` says more of.

use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

use super::list;
use crate::files;
use crate::others::common;
use crate::others::conversion::Conversion;
use crate::others::draft::Draft;
use crate::others::given::Given;

/// No description of datasets is longer.
const LARGEST: u64 = 8 << 20;

/// `dataset` and `dataset_val`.
pub(super) fn convert(c: &mut Conversion<'_>) {
    let given = c.given;
    let folder = given.text("dataset_dir").unwrap_or("data");
    let info = described(folder);
    let names = list(given, "dataset");
    if info.is_none()
        && let Some(entry) = given.entry("dataset")
    {
        let missing = format!(
            "{folder}/dataset_info.json, which says what the names are, is not there; each is taken for a file {folder}/NAME.json"
        );
        c.missing(
            entry,
            missing,
            "convert the file in LLaMA-Factory's folder, or set source, data_files and the columns",
        );
    }
    let mut training: Vec<_> =
        names.iter().filter_map(|name| dataset(c, "dataset", name, folder, info.as_ref())).collect();
    if training.is_empty() {
        c.remark("there is no dataset", "set dataset, such as dataset='{_component_: chat, data_files: [FILE]}'");
    }
    let mut held: Vec<_> = list(given, "eval_dataset")
        .iter()
        .filter_map(|name| dataset(c, "eval_dataset", name, folder, info.as_ref()))
        .map(|(item, split)| with_split(item, &split))
        .collect();
    if let Some(entry) = given.entry("val_size").filter(|_| given.is_on("val_size")) {
        let part = given.number("val_size").unwrap_or(0.0);
        let splits: Option<Vec<_>> = training.iter().map(|(_, split)| common::held_out(split, part)).collect();
        match splits {
            Some(splits) if held.is_empty() => {
                let said = c.diagnostics.len();
                let again: Vec<_> =
                    names.iter().filter_map(|name| dataset(c, "dataset", name, folder, info.as_ref())).collect();
                c.diagnostics.truncate(said);
                for (((_, split), (item, _)), [start, end]) in training.iter_mut().zip(again).zip(splits) {
                    *split = start;
                    held.push(with_split(item, &end));
                }
            }
            _ => c.missing(entry, "no part of these datasets can be held out", "set dataset_val, with a split"),
        }
    }
    let training = training.into_iter().map(|(item, split)| with_split(item, &split)).collect();
    c.draft.set_items("dataset", training);
    if !held.is_empty() {
        c.draft.set_items("dataset_val", held);
    }
    if given.is_on("disable_shuffling") {
        c.draft.set("shuffle", "false", "disable_shuffling");
    }
}

fn with_split(mut item: Draft, split: &str) -> Draft {
    if split != "train" {
        item.set_text("split", split, "");
    }
    item
}

/// What `dataset_info.json` says, if it is there.
fn described(folder: &str) -> Option<Value> {
    let mut text = String::new();
    let file = files::open_file(&Path::new(folder).join("dataset_info.json")).ok()?;
    file.take(LARGEST).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// A dataset of ours, and its split; `None` where there is none for it, which is said.
fn dataset(
    c: &mut Conversion<'_>,
    key: &str,
    name: &str,
    folder: &str,
    info: Option<&Value>,
) -> Option<(Draft, String)> {
    let given = c.given;
    let entry = given.entry(key)?;
    let guess = serde_json::json!({ "file_name": format!("{name}.json") });
    let Some(of) = info.map_or(Some(&guess), |info| info.get(name)) else {
        let missing = format!("{folder}/dataset_info.json has no dataset `{}`", common::shown(name));
        c.missing(entry, missing, "describe it there, or write it under dataset");
        return None;
    };
    let text = |key: &str| of.get(key).and_then(Value::as_str);
    let mut draft = Draft::default();
    let pretraining = given.text("stage") == Some("pt");
    let form = match (text("formatting").unwrap_or("alpaca"), of.get("ranking").and_then(Value::as_bool)) {
        (_, Some(true)) if c.recipe.name == "kto" => {
            let missing = format!("`{}` has pairs of answers (`ranking: true`)", common::shown(name));
            c.missing(entry, missing, "choose a dataset of answers with labels, or write `stage: dpo`");
            return None;
        }
        (form, _) if c.recipe.name == "kto" => columns_with_labels(of, form, &mut draft),
        (form, Some(true)) => columns_of_pairs(of, form, &mut draft),
        _ if c.recipe.name == "dpo" => {
            let missing = format!("`{}` has no pairs of answers (`ranking: true`)", common::shown(name));
            c.missing(entry, missing, "choose a dataset of pairs");
            return None;
        }
        _ if pretraining => {
            draft.set("_component_", "text", "stage: pt");
            draft.set_text("column", column(of, "prompt").unwrap_or("instruction"), "columns.prompt");
            Some(())
        }
        (form, _) => columns(of, form, &mut draft),
    };
    if form.is_none() {
        let missing = format!("the columns of `{}` have no counterpart here", common::shown(name));
        c.missing(entry, missing, "write the dataset under dataset, and change the file to fit");
        return None;
    }
    if column(of, "images").or(column(of, "videos")).or(column(of, "audios")).is_some() {
        c.missing(entry, format!("`{}` has images or sounds, which are not read", common::shown(name)), "use text");
    }
    match (text("hf_hub_url"), text("file_name")) {
        (Some(hub), None) => {
            let subset = text("subset").filter(|subset| *subset != "default");
            if let Some(subset) = subset {
                let missing = format!(
                    "the subset `{}` of `{}` is taken for a folder",
                    common::shown(subset),
                    common::shown(name)
                );
                c.missing(
                    entry,
                    missing,
                    "set source=hf://org/name/FOLDER, with the folder that the subset's files are in",
                );
            }
            let within = subset.or(text("folder"));
            let path = within.map_or_else(|| format!("hf://{hub}"), |within| format!("hf://{hub}/{within}"));
            draft.set_text("source", &path, "hf_hub_url");
        }
        (_, Some(file)) => {
            let path = Path::new(folder).join(file);
            common::source(&mut draft, None, None, &[&path.to_string_lossy()], "file_name");
        }
        _ => {
            let missing = format!("`{}` is neither a file nor on the Hugging Face hub", common::shown(name));
            c.missing(entry, missing, "download it, and set data_files");
            return None;
        }
    }
    learned(c, pretraining, &mut draft);
    let mut split = text("split").unwrap_or("train").to_owned();
    if let Some(most) = given.whole("max_samples").filter(|_| key == "dataset") {
        split = format!("{split}[:{most}]");
    }
    Some((draft, split))
}

fn column<'v>(of: &'v Value, name: &str) -> Option<&'v str> {
    of.get("columns")?.get(name)?.as_str()
}

/// The component and columns of questions and answers.
fn columns(of: &Value, form: &str, draft: &mut Draft) -> Option<()> {
    match form {
        "sharegpt" | "openai" => {
            draft.set("_component_", "chat", "formatting");
            draft.set_text(
                "conversation_column",
                column(of, "messages").unwrap_or("conversations"),
                "columns.messages",
            );
            message_keys(of, draft);
        }
        _ => {
            if of.get("columns").is_some_and(|columns| columns.get("query").is_none()) {
                // A table of columns leaves out those that it does not name.
                draft.set("_component_", "instruct", "formatting");
                draft.set_text("column_map.input", column(of, "prompt")?, "columns.prompt");
                draft.set_text("column_map.output", column(of, "response")?, "columns.response");
                return Some(());
            }
            draft.set("_component_", "alpaca", "formatting");
            draft.set("apply_chat_template", "true", "LLaMA-Factory renders these with its template");
            for (ours, theirs) in [("instruction", "prompt"), ("input", "query"), ("output", "response")] {
                if let Some(name) = column(of, theirs).filter(|name| *name != ours) {
                    draft.set_text(&format!("column_map.{ours}"), name, theirs);
                }
            }
        }
    }
    Some(())
}

/// The keys of a message.
fn message_keys(of: &Value, draft: &mut Draft) {
    let tag = |name: &str| of.get("tags").and_then(|tags| tags.get(name)).and_then(Value::as_str);
    let (role, content) = (tag("role_tag").unwrap_or("from"), tag("content_tag").unwrap_or("value"));
    match (role, content) {
        ("role", "content") => {}
        ("from", "value") => draft.set("conversation_style", "sharegpt", "tags"),
        _ => {
            let style = if tag("user_tag").unwrap_or("human") == "human" { "sharegpt" } else { "openai" };
            draft.set("conversation_style", style, "tags");
            draft.set_text("role_key", role, "tags.role_tag");
            draft.set_text("content_key", content, "tags.content_tag");
        }
    }
}

/// The component and columns of answers with labels. Where no column is named, that of the label has the name that examples give it.
fn columns_with_labels(of: &Value, form: &str, draft: &mut Draft) -> Option<()> {
    let label = column(of, "kto_tag").or_else(|| of.get("columns").is_none().then_some("kto_tag"))?;
    match form {
        "sharegpt" | "openai" => {
            draft.set("_component_", "unpaired", "formatting");
            let messages = column(of, "messages").unwrap_or("conversations");
            draft.set_text("column_map.messages", messages, "columns.messages");
            draft.set_text("column_map.label", label, "columns.kto_tag");
            message_keys(of, draft);
        }
        _ => {
            // A question of two columns is none here.
            if column(of, "query").is_some() {
                return None;
            }
            draft.set("_component_", "unpaired_instruct", "formatting");
            draft.set_text("column_map.prompt", column(of, "prompt").unwrap_or("instruction"), "columns.prompt");
            draft.set_text("column_map.completion", column(of, "response").unwrap_or("output"), "columns.response");
            draft.set_text("column_map.label", label, "columns.kto_tag");
        }
    }
    Some(())
}

/// The component and columns of questions with two answers.
fn columns_of_pairs(of: &Value, form: &str, draft: &mut Draft) -> Option<()> {
    let (chosen, rejected) = (column(of, "chosen").unwrap_or("chosen"), column(of, "rejected").unwrap_or("rejected"));
    if form == "alpaca" {
        draft.set("_component_", "preference_instruct", "formatting");
        draft.set_text("column_map.prompt", column(of, "prompt").unwrap_or("instruction"), "columns.prompt");
    } else {
        let tag = |name: &str| of.get("tags").and_then(|tags| tags.get(name)).and_then(Value::as_str);
        draft.set("_component_", "preference", "formatting");
        draft.set_text("column_map.prompt", column(of, "messages").unwrap_or("conversations"), "columns.messages");
        if tag("role_tag").unwrap_or("from") == "from" {
            draft.set("conversation_style", "sharegpt", "tags");
        }
    }
    draft.set_text("column_map.chosen", chosen, "columns.chosen");
    draft.set_text("column_map.rejected", rejected, "columns.rejected");
    Some(())
}

/// Which tokens are learned, and whether rows are filled up.
fn learned(c: &Conversion<'_>, pretraining: bool, draft: &mut Draft) {
    let given: Given<'_> = c.given;
    if !matches!(c.recipe.name, "dpo" | "kto") {
        if !pretraining {
            let (mask, from) = match (given.is_on("train_on_prompt"), given.is_on("mask_history")) {
                (true, _) => ("all", "train_on_prompt"),
                (_, true) => ("last", "mask_history"),
                _ => ("assistant", "default of LLaMA-Factory"),
            };
            draft.set("masking_strategy", mask, from);
        }
        let packs = ["packing", "neat_packing"].into_iter().find(|key| given.is_on(key));
        if c.recipe.name == "pretrain" {
            // Its rows are always full.
        } else if let Some(key) = packs.or(Some("stage: pt").filter(|_| pretraining && !given.has("packing"))) {
            draft.set("packed", "true", key);
        }
    }
    if let Some(system) = given.text("default_system").filter(|_| !pretraining) {
        draft.set_text("new_system_prompt", system, "default_system");
    }
}
