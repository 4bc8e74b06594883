//! What kind of text a file holds, by its name and the columns of its first record.

use std::path::Path;

use super::config::{ChatDataset, ConversationStyle};
use super::files::Files;
use super::pack::{Fit, Rows};
use super::pretrain::{DocumentsDataset, PretrainData};
use super::source::{self, Columns};
use crate::{Error, Result};

/// The documents or conversations of a file, a folder or a dataset of the hub, one after the other in rows. The column with the text
/// is `text`, that with a conversation `messages` (OpenAI) or `conversations` (ShareGPT); a file named `.txt` or `.raw` is one document.
///
/// # Errors
/// What cannot be read, and records with none of these columns.
pub fn running_text(path: &Path) -> Result<PretrainData> {
    let is_plain = path.extension().is_some_and(|extension| extension == "txt" || extension == "raw");
    let mut files = Files::from(path.to_owned());
    if is_plain {
        files.source = Some("text".into());
        return Ok(documents(files));
    }
    let mut failed = None;
    for (column, style) in [
        ("text", None),
        ("messages", Some(ConversationStyle::Openai)),
        ("conversations", Some(ConversationStyle::Sharegpt)),
    ] {
        match (has(&files, column), style) {
            (Ok(true), None) => return Ok(documents(files)),
            (Ok(true), Some(style)) => return Ok(PretrainData::Chat(chats(files, column, style))),
            (Ok(false), _) => {}
            (Err(error), _) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.unwrap_or_else(|| {
        Error::file(path, "the first record has none of the columns `text`, `messages` and `conversations`")
    }))
}

/// Whether the first record has a column.
fn has(files: &Files, column: &str) -> Result<bool> {
    let records = source::find(files, &Columns { first: column, read: vec![column] })?;
    Ok(records.read(0)?.columns.contains_key(column))
}

/// Attention reaches from one document into the next, as in a long text.
fn documents(files: Files) -> PretrainData {
    PretrainData::Text(DocumentsDataset { files, column: "text".to_owned(), add_eos: true, attend_across: true })
}

fn chats(files: Files, column: &str, conversation_style: ConversationStyle) -> ChatDataset {
    ChatDataset {
        conversation_column: column.to_owned(),
        conversation_style,
        rows: Rows { packed: true, packing: Fit::Greedy },
        ..ChatDataset::openai(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_columns() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str, content: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            running_text(&path)
        };
        assert!(matches!(of("a.jsonl", "{\"text\": \"one\"}\n"), Ok(PretrainData::Text(_))));
        assert!(matches!(of("a.csv", "id,text\n1,one\n"), Ok(PretrainData::Text(_))));
        assert!(matches!(of("a.txt", "one {\"messages\": 1}"), Ok(PretrainData::Text(_))));
        let chat = "{\"messages\": [{\"role\": \"user\", \"content\": \"one\"}]}\n";
        let Ok(PretrainData::Chat(chat)) = of("b.jsonl", chat) else { panic!("no chat") };
        assert!((chat.conversation_column.as_str(), chat.rows.packed) == ("messages", true));
        let chat = "[{\"id\": 3, \"conversations\": [{\"from\": \"human\", \"value\": \"one\"}]}]";
        let Ok(PretrainData::Chat(chat)) = of("b.json", chat) else { panic!("no chat") };
        assert!(matches!(chat.conversation_style, ConversationStyle::Sharegpt));
        let error = of("c.jsonl", "{\"prompt\": \"one\"}\n").unwrap_err().to_string();
        assert!(error.contains("none of the columns `text`, `messages` and `conversations`"), "{error}");
        let error = running_text(&dir.path().join("d.jsonl")).unwrap_err().to_string();
        assert!(error.contains("d.jsonl"), "{error}");
    }
}
