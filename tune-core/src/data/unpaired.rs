//! The `dataset` section of recipes that learn from answers each of which is labelled good or bad.

use serde_json::Value;

use super::config::{ChatDataset, ConversationStyle, DatasetConfig, InstructColumns, InstructDataset, Mask, Masking};
use super::conversation::column;
use super::files::Files;
use super::pack::Rows;
use super::records::{Record, kind_of};
use crate::Result;
use crate::config::Config;

/// Where answers come from that are labelled good or bad; TRL calls such data unpaired preferences.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub enum UnpairedConfig {
    /// A conversation, in OpenAI or ShareGPT form, with a label of its last answer.
    #[config(name = "unpaired")]
    Conversations(UnpairedDataset),
    /// A question, an answer and the answer's label, each a column.
    #[config(name = "unpaired_instruct")]
    Instruct(UnpairedInstructDataset),
}

/// Conversations, rendered with the model's chat template. What is trained is the last answer with its stop token: the label is
/// about that.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct UnpairedDataset {
    /// Where the text is.
    #[config(flatten)]
    pub files: Files,
    /// The names of the columns `messages` and `label`, where they are others; where prompts have a column of their own, its name.
    #[config(default)]
    pub column_map: LabelledConversationColumns,
    /// `openai` (role, content) or `sharegpt` (from, value).
    #[config(default = "openai")]
    pub conversation_style: ConversationStyle,
    /// The key of a message's role, where it is not the style's own.
    pub role_key: Option<String>,
    /// The key of a message's text, where it is not the style's own.
    pub content_key: Option<String>,
    /// A system prompt for every conversation, in place of its own.
    pub new_system_prompt: Option<String>,
}

/// The columns of a dataset of conversations with labels.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct LabelledConversationColumns {
    /// The column with the messages before the answer, where they are not in `messages`; none where null.
    pub prompt: Option<String>,
    /// The column with the conversation; with the answer alone, where `prompt` names a column (TRL's `completion`).
    #[config(default = "messages")]
    pub messages: String,
    /// The column with the label: true for a good answer, false for a bad one.
    #[config(default = "label")]
    pub label: String,
}

/// Questions with an answer and its label. With a chat template they are a user's and the assistant's message; without one,
/// question and answer stand one after the other and the end-of-text token closes them.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct UnpairedInstructDataset {
    /// Where the text is.
    #[config(flatten)]
    pub files: Files,
    /// The names of the columns `prompt`, `completion` and `label`, where they are others.
    #[config(default)]
    pub column_map: LabelledAnswerColumns,
    /// The text around a sample, with `{input}` and `{output}` in it. What follows `{output}` is part of the answer.
    pub prompt_template: Option<String>,
    /// A system prompt for every sample.
    pub new_system_prompt: Option<String>,
    /// Render with the model's chat template. By default, if it has one.
    pub apply_chat_template: Option<bool>,
}

/// The columns of a dataset of questions, each with an answer and a label.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct LabelledAnswerColumns {
    /// The column with the question.
    #[config(default = "prompt")]
    pub prompt: String,
    /// The column with the answer.
    #[config(default = "completion")]
    pub completion: String,
    /// The column with the label: true for a good answer, false for a bad one.
    #[config(default = "label")]
    pub label: String,
}

impl UnpairedConfig {
    /// Its name.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Conversations(_) => "unpaired",
            Self::Instruct(_) => "unpaired_instruct",
        }
    }

    /// The dataset of the answers, without their labels.
    pub(super) fn answers(&self) -> DatasetConfig {
        let mask = Mask { masking_strategy: Some(Masking::Last), train_on_input: None };
        match self.clone() {
            Self::Conversations(config) => DatasetConfig::Chat(ChatDataset {
                files: config.files,
                conversation_column: config.column_map.messages,
                conversation_style: config.conversation_style,
                role_key: config.role_key,
                content_key: config.content_key,
                new_system_prompt: config.new_system_prompt,
                mask,
                rows: Rows::default(),
            }),
            Self::Instruct(config) => DatasetConfig::Instruct(InstructDataset {
                files: config.files,
                column_map: InstructColumns { input: config.column_map.prompt, output: config.column_map.completion },
                prompt_template: config.prompt_template,
                new_system_prompt: config.new_system_prompt,
                apply_chat_template: config.apply_chat_template,
                mask,
                rows: Rows::default(),
            }),
        }
    }

    /// The column whose messages stand before those of the answer.
    pub(super) fn prompt(&self) -> Option<&str> {
        match self {
            Self::Conversations(config) => config.column_map.prompt.as_deref(),
            Self::Instruct(_) => None,
        }
    }

    /// The column with the label.
    pub(super) fn label(&self) -> &str {
        match self {
            Self::Conversations(config) => &config.column_map.label,
            Self::Instruct(config) => &config.column_map.label,
        }
    }
}

/// Whether a record's answer is good. Formats that have only text write `true` and `false`.
pub(super) fn label(record: &Record, name: &str) -> Result<bool> {
    let value = column(record, name)?;
    let found = match value {
        Value::Bool(is_good) => Some(*is_good),
        Value::Number(number) => match number.as_u64() {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        },
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    };
    found.ok_or_else(|| {
        let what = match value {
            Value::String(_) | Value::Number(_) => value.to_string(),
            other => kind_of(other).to_owned(),
        };
        record
            .origin
            .error(format_args!("column `{name}` is {what}; a label is true for a good answer and false for a bad one"))
    })
}
