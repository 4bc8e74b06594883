//! Conversations that are asked, not learnt: the last message is the answer that is expected.

use std::path::Path;

use super::config::{ChatDataset, DatasetConfig};
use super::content::texts_of;
use super::files::Files;
use super::format::{Form, Formatter};
use super::records::Record;
use super::source;
use crate::tokenizer::{Tokenizer, unrendered};
use crate::{Error, Result};

/// One question, ready to be asked.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// The last message before the answer.
    pub(crate) text: String,
    /// The ids of the conversation up to the answer.
    pub(crate) prompt: Vec<u32>,
    /// The right answer.
    pub(crate) expected: String,
}

/// The questions of a file of JSON lines, rendered as a chat dataset's conversations are.
///
/// # Errors
/// A file that cannot be read, a tokenizer without a chat template, a line that is no conversation or whose question
/// the model cannot be asked (it is named).
pub(crate) fn questions(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<Question>> {
    let files = Files { source: Some("jsonl".into()), ..path.to_path_buf().into() };
    let config = DatasetConfig::Chat(ChatDataset::openai(files));
    let formatter = Formatter::new(&config, tokenizer)?;
    let records = source::find(config.files(), &config.all_columns())?;
    let question = |i| {
        let record = formatter.read(&records, i)?;
        question(&record, &formatter, tokenizer)
    };
    (0..records.len()).map(question).collect()
}

fn question(record: &Record, formatter: &Formatter<'_>, tokenizer: &Tokenizer) -> Result<Question> {
    let (Form::Conversation(chat), Some(template)) = (formatter.form(record)?, formatter.template()) else {
        return Err(Error::setup("exact_match needs a model with a chat template; this one has none"));
    };
    let mut conversation = chat.conversation;
    let answer = conversation.messages.pop();
    let said = |message| Some(texts_of(message).concat()).filter(|text| !text.is_empty());
    let (Some(expected), Some(text)) = (answer.as_ref().and_then(said), conversation.messages.last().and_then(said))
    else {
        return Err(record.origin.error("a conversation needs a question and an answer, each with a `content`"));
    };
    let prompt = || {
        unrendered::check(template, &conversation, true)?;
        let ids = tokenizer.encode(&template.render(&conversation, true)?)?;
        tokenizer.check_prompt(&ids)?;
        Ok(ids)
    };
    let prompt = prompt().map_err(|e: Error| record.origin.error(e))?;
    Ok(Question { text, prompt, expected })
}
