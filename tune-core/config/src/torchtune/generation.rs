//! Configs of torchtune's that generate, evaluate or quantize: they name a model's parts, and some two sides of a prompt. Here a folder says what
//! the model is.

use tune_yaml::{Entry, Node, Span, Value};

use super::files;
use super::translate::{Change, Translation, What};
use crate::codes;
use crate::emit;
use crate::report::{DEFAULTS, Diagnostic};
use crate::schema::Schema;

/// The key under which torchtune's recipes for generation have what the model is asked. No other recipe of its has it.
pub(super) const PROMPT: &str = "prompt";

const CHECKPOINTER: &str = "checkpointer";
/// Where the model is, in recipes that only read one.
pub(super) const FOLDER: &str = "checkpoint_dir";
const OUTPUT: &str = "output_dir";

/// Moves what recipes that only read a model have elsewhere. Others are left alone, and so is what is written in our way.
pub(super) fn translate(schema: &Schema, root: &mut Node, out: &mut Translation) {
    let Schema::Struct(fields) = schema else { return };
    if fields.find(FOLDER).is_none() {
        return;
    }
    let quantizes = fields.find(files::QUANTIZER).is_some();
    if let Some(refused) = files::family(root) {
        out.diagnostics.push(refused);
        root.value = Value::Reported;
        return;
    }
    let Value::Map(entries) = &mut root.value else { return };
    let mut found = Vec::new();
    entries.retain_mut(|entry| {
        let moved = match (entry.key.as_str(), &entry.value.value) {
            (CHECKPOINTER, Value::Map(_)) => of_checkpointer(entry, quantizes),
            (PROMPT, Value::Map(_)) => of_prompt(entry),
            _ => return true,
        };
        let moved = match moved {
            Ok(moved) => moved,
            Err(refused) => {
                out.diagnostics.push(*refused);
                entry.value.value = Value::Reported;
                return true;
            }
        };
        let keys = moved.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>().join(" and ");
        let why = if keys.is_empty() { "it says nothing".to_owned() } else { format!("{keys} say it") };
        out.changes.push(Change { span: entry.key_span, what: What::Removed(entry.clone()), why });
        found.extend(moved);
        false
    });
    // What is there already was said by an override, in our words.
    found.retain(|entry| entries.iter().all(|there| there.key != entry.key));
    for entry in &found {
        let keys = vec![(entry.key.clone(), emit::inline_node(&entry.value))];
        let what = What::Added { keys, component: None };
        out.changes.push(Change { span: Span::new(DEFAULTS, 0, 0), what, why: String::new() });
    }
    entries.extend(found);
}

const SYSTEM: &str = "system_prompt";

/// An entry of a section, under another name.
fn taken(section: &Entry, name: &str, ours: &str) -> Option<Entry> {
    let entry = section.value.get(name).filter(|entry| !entry.value.is_null())?;
    Some(Entry { key: ours.to_owned(), ..entry.clone() })
}

/// The folder, and the one that is written to where something `is_written`. Files of torchtune's own are refused: the folder's others would
/// be read in their place.
fn of_checkpointer(section: &Entry, is_written: bool) -> Result<Vec<Entry>, Box<Diagnostic>> {
    let refused = |at: Span, missing: &str, instead: &str| {
        Err(Box::new(Diagnostic::error(codes::NOT_HERE, missing).at(at, "it is named here").help(instead)))
    };
    if let Some(adapter) = taken(section, "adapter_checkpoint", FOLDER) {
        let instead = "set adapter_dir to the folder with adapter_config.json, and remove the key";
        return refused(adapter.value.span, "an adapter is read from a folder in PEFT's form", instead);
    }
    let files = section.value.get("checkpoint_files").map(|entry| &entry.value);
    let files = files.map_or(&[][..], |files| match &files.value {
        Value::List(files) => files.as_slice(),
        _ => std::slice::from_ref(files),
    });
    match files.iter().find(|file| file.as_str().is_some_and(|name| name.ends_with(".pt"))) {
        Some(file) => refused(
            file.span,
            "torchtune's own files (.pt), quantized ones among them, are not read",
            "name a folder in Hugging Face's form, and no checkpoint_files; `tune quantize` makes a GGUF file of it, which checkpoint_dir \
             takes, too",
        ),
        None => {
            let written = is_written.then(|| taken(section, OUTPUT, OUTPUT)).flatten();
            Ok(taken(section, FOLDER, FOLDER).into_iter().chain(written).collect())
        }
    }
}

/// What the user says, a text or, in newer recipes, pieces of which one is a text; and what stands before it.
fn of_prompt(section: &Entry) -> Result<Vec<Entry>, Box<Diagnostic>> {
    let mut moved = Vec::new();
    for (name, ours) in [("system", SYSTEM), ("user", PROMPT)] {
        let Some(mut entry) = taken(section, name, ours) else { continue };
        if let Value::Map(pieces) = &entry.value.value {
            let other = pieces.iter().find(|piece| piece.key != "text" && !piece.value.is_null());
            if let Some(piece) = other {
                let error = Diagnostic::error(codes::NOT_HERE, "a prompt is text here");
                return Err(Box::new(error.at(piece.key_span, "this is none").help("ask in words: prompt.user.text")));
            }
            let Some(text) = taken(&entry, "text", ours) else { continue };
            entry = text;
        }
        moved.push(entry);
    }
    Ok(moved)
}
