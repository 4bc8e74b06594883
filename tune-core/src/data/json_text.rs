//! Columns of lists that are JSON text, as in files whose columns have one type: CSV, and tables made of it.

use serde_json::Value;

use super::alpaca;
use super::config::DatasetConfig;
use super::records::Record;

/// Reads the columns of a record that are to be lists: a conversation and each of its messages, Alpaca's `history`. What
/// is no JSON text of a list stays as it is, and is refused where it is used.
pub(super) fn read_lists(record: &mut Record, config: &DatasetConfig) {
    let own = config.columns();
    let name = match config {
        DatasetConfig::Chat(chat) => &chat.conversation_column,
        DatasetConfig::Alpaca(_) if !own.contains(&alpaca::HISTORY) => alpaca::HISTORY,
        DatasetConfig::Alpaca(_) | DatasetConfig::Instruct(_) | DatasetConfig::Text(_) => return,
    };
    if name == alpaca::HISTORY
        && let Some(column) = record.columns.get_mut(name)
        && column.as_str().is_some_and(|text| text.trim().is_empty())
    {
        *column = Value::Null;
    }
    read_list(record, name);
}

/// Reads a column that is to be a list of messages, and each of these.
pub(super) fn read_list(record: &mut Record, name: &str) {
    let Some(column) = record.columns.get_mut(name) else { return };
    if let Some(list) = text_of(column).filter(Value::is_array) {
        *column = list;
    }
    for item in column.as_array_mut().into_iter().flatten() {
        if let Some(object) = text_of(item).filter(|value| value.is_object() || value.is_array()) {
            *item = object;
        }
    }
}

/// What is in a JSON text.
fn text_of(value: &Value) -> Option<Value> {
    tune_jinja::parse_json(value.as_str()?).ok()
}
