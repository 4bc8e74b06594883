//! What stands beside a conversation's messages and goes to the chat template: tools, documents, arguments.

use serde_json::Value;

use super::records::{Record, kind_of};
use crate::tokenizer::{Conversation, Names, Object};
use crate::{Error, Result};

/// The columns that `apply_chat_template` has parameters for, and the one with its further arguments.
const TOOLS: &str = "tools";
const DOCUMENTS: &str = "documents";
const ARGUMENTS: &str = "chat_template_kwargs";
/// Definitions of tools in the form that came before `tools`.
const FUNCTIONS: &str = "functions";

/// Columns that a chat template is given beside the messages.
pub(super) const COLUMNS: [&str; 4] = [TOOLS, DOCUMENTS, FUNCTIONS, ARGUMENTS];

/// Gives a conversation what the record has beside its messages, as far as the template reads it. Lists and mappings
/// may be JSON text, as in files whose columns have one type.
///
/// # Errors
/// A column that is not what the template is to be given.
pub(super) fn add(conversation: &mut Conversation, record: &Record, names: &Names) -> Result<()> {
    if let Some(arguments) = column(record, ARGUMENTS)? {
        let Value::Object(mut arguments) = arguments else {
            return Err(wrong(record, ARGUMENTS, "a mapping", &arguments));
        };
        // As where these are passed on as they are: `apply_chat_template(messages, **kwargs)`.
        let mut take = |name: &str| arguments.remove(name).filter(|value| !value.is_null());
        let (tools, documents) = (take(TOOLS), take(DOCUMENTS));
        conversation.tools = tools.map(|value| objects(record, TOOLS, &value)).transpose()?;
        conversation.documents = documents.map(|value| objects(record, DOCUMENTS, &value)).transpose()?;
        conversation.arguments = arguments;
    }
    if names.contains(TOOLS)
        && let Some(tools) = column(record, TOOLS)?
    {
        conversation.tools = Some(objects(record, TOOLS, &tools)?);
    }
    if names.contains(DOCUMENTS)
        && let Some(documents) = column(record, DOCUMENTS)?
    {
        conversation.documents = Some(objects(record, DOCUMENTS, &documents)?);
    }
    match functions(names) {
        Some(Functions::AsTheyAre) => {
            if let Some(functions) = column(record, FUNCTIONS)? {
                conversation.arguments.insert(FUNCTIONS.into(), functions);
            }
        }
        Some(Functions::AsTools) if conversation.tools.is_none() => {
            if let Some(functions) = column(record, FUNCTIONS)? {
                let functions = objects(record, FUNCTIONS, &functions)?;
                conversation.tools = Some(functions.into_iter().map(tool).collect());
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether a column goes to the template.
pub(super) fn is_read(name: &str, names: &Names) -> bool {
    match name {
        TOOLS | DOCUMENTS => names.contains(name),
        FUNCTIONS => functions(names).is_some(),
        ARGUMENTS => true,
        _ => false,
    }
}

/// The arguments of a record that its template does not mention.
pub(super) fn unread_arguments(record: &Record, names: &Names) -> Vec<String> {
    let Ok(Some(Value::Object(arguments))) = column(record, ARGUMENTS) else { return Vec::new() };
    let unread = arguments.iter().filter(|(name, value)| !value.is_null() && !names.contains(name));
    unread.map(|(name, _)| format!("{ARGUMENTS}.{name}")).collect()
}

enum Functions {
    AsTheyAre,
    AsTools,
}

/// How `functions` reach a template: under their own name, or as the tools that they are.
fn functions(names: &Names) -> Option<Functions> {
    match (names.contains(FUNCTIONS), names.contains(TOOLS)) {
        (true, _) => Some(Functions::AsTheyAre),
        (false, true) => Some(Functions::AsTools),
        (false, false) => None,
    }
}

fn tool(function: Object) -> Object {
    if function.contains_key("function") {
        return function;
    }
    [("type".to_owned(), Value::from("function")), ("function".to_owned(), Value::Object(function))]
        .into_iter()
        .collect()
}

/// A column's value, where it has one; JSON text is read.
fn column(record: &Record, name: &str) -> Result<Option<Value>> {
    match record.columns.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => match tune_jinja::parse_json(text) {
            Ok(Value::Null) => Ok(None),
            Ok(value) => Ok(Some(value)),
            Err(e) => Err(record.origin.error(format_args!("column `{name}` is a string and not valid JSON: {e}"))),
        },
        Some(value) => Ok(Some(value.clone())),
    }
}

/// A list of mappings, each of which may be JSON text.
fn objects(record: &Record, name: &str, value: &Value) -> Result<Vec<Object>> {
    let Value::Array(items) = value else { return Err(wrong(record, name, "a list", value)) };
    let object = |(i, item): (usize, &Value)| match item {
        Value::Object(object) => Ok(object.clone()),
        Value::String(text) => match tune_jinja::parse_json(text) {
            Ok(Value::Object(object)) => Ok(object),
            _ => Err(wrong_item(record, name, i, item)),
        },
        _ => Err(wrong_item(record, name, i, item)),
    };
    items.iter().enumerate().map(object).collect()
}

fn wrong(record: &Record, name: &str, expected: &str, got: &Value) -> Error {
    record.origin.error(format_args!("column `{name}` must be {expected} or JSON text of one, not {}", kind_of(got)))
}

fn wrong_item(record: &Record, name: &str, i: usize, got: &Value) -> Error {
    let number = i + 1;
    record.origin.error(format_args!("column `{name}`: item {number} must be a mapping, not {}", kind_of(got)))
}
