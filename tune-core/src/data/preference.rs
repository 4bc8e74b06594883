//! The `dataset` section of recipes that learn from pairs of answers.

use super::config::{ChatDataset, ConversationStyle, DatasetConfig, InstructColumns, InstructDataset, Mask};
use super::files::Files;
use super::pack::Rows;
use crate::config::Config;

/// Where pairs of answers come from, of which one is preferred to the other.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub enum PreferenceConfig {
    /// Two conversations, in ShareGPT or OpenAI form, that differ in what the assistant answers.
    #[config(
        name = "preference",
        alias = "torchtune.datasets.preference_dataset",
        alias = "torchtune.datasets.hh_rlhf_helpful_dataset"
    )]
    Conversations(PreferenceDataset),
    /// One question and two answers, each a column.
    #[config(name = "preference_instruct", alias = "torchtune.datasets.stack_exchange_paired_dataset")]
    Instruct(PreferenceInstructDataset),
}

/// Pairs of conversations, rendered with the model's chat template.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct PreferenceDataset {
    /// Where the text is.
    #[config(flatten)]
    pub files: Files,
    /// The names of the columns `chosen` and `rejected`, where they are others.
    #[config(default)]
    pub column_map: ConversationColumns,
    /// `openai` (role, content) or `sharegpt` (from, value).
    #[config(default = "openai")]
    pub conversation_style: ConversationStyle,
    /// The key of a message's role, where it is not the style's own.
    pub role_key: Option<String>,
    /// The key of a message's text, where it is not the style's own.
    pub content_key: Option<String>,
    /// A system prompt for every conversation, in place of its own.
    pub new_system_prompt: Option<String>,
    /// What is trained of it.
    #[config(flatten)]
    pub mask: Mask,
}

/// The columns of a dataset of pairs of conversations.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct ConversationColumns {
    /// The column with the messages before the answers, where they are not in the other two; none where null.
    pub prompt: Option<String>,
    /// The column with the conversation that is preferred.
    #[config(default = "chosen")]
    pub chosen: String,
    /// The column with the other.
    #[config(default = "rejected")]
    pub rejected: String,
}

/// Questions with two answers each. With a chat template they are a user's and the assistant's messages; without one, question
/// and answer stand one after the other and the end-of-text token closes them.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct PreferenceInstructDataset {
    /// Where the text is.
    #[config(flatten)]
    pub files: Files,
    /// The names of the columns `prompt`, `chosen` and `rejected`, where they are others.
    #[config(default)]
    pub column_map: AnswerColumns,
    /// The text around a sample, with `{input}` and `{output}` in it. What follows `{output}` is part of the answer.
    pub prompt_template: Option<String>,
    /// A system prompt for every sample.
    pub new_system_prompt: Option<String>,
    /// Render with the model's chat template. By default, if it has one.
    pub apply_chat_template: Option<bool>,
    /// What is trained of it.
    #[config(flatten)]
    pub mask: Mask,
}

/// The columns of a dataset of questions with two answers.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct AnswerColumns {
    /// The column with the question.
    #[config(default = "prompt")]
    pub prompt: String,
    /// The column with the answer that is preferred.
    #[config(default = "chosen")]
    pub chosen: String,
    /// The column with the other.
    #[config(default = "rejected")]
    pub rejected: String,
}

impl PreferenceConfig {
    /// Its name.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Conversations(_) => "preference",
            Self::Instruct(_) => "preference_instruct",
        }
    }

    /// The dataset of the preferred answers, and that of the others.
    pub(super) fn sides(&self) -> [DatasetConfig; 2] {
        match self {
            Self::Conversations(pairs) => [&pairs.column_map.chosen, &pairs.column_map.rejected].map(|column| {
                DatasetConfig::Chat(ChatDataset {
                    files: pairs.files.clone(),
                    conversation_column: column.clone(),
                    conversation_style: pairs.conversation_style,
                    role_key: pairs.role_key.clone(),
                    content_key: pairs.content_key.clone(),
                    new_system_prompt: pairs.new_system_prompt.clone(),
                    mask: pairs.mask.clone(),
                    rows: Rows::default(),
                })
            }),
            Self::Instruct(pairs) => [&pairs.column_map.chosen, &pairs.column_map.rejected].map(|column| {
                DatasetConfig::Instruct(InstructDataset {
                    files: pairs.files.clone(),
                    column_map: InstructColumns { input: pairs.column_map.prompt.clone(), output: column.clone() },
                    prompt_template: pairs.prompt_template.clone(),
                    new_system_prompt: pairs.new_system_prompt.clone(),
                    apply_chat_template: pairs.apply_chat_template,
                    mask: pairs.mask.clone(),
                    rows: Rows::default(),
                })
            }),
        }
    }

    /// The column whose messages stand before those of the answers.
    pub(super) fn prompt(&self) -> Option<&str> {
        match self {
            Self::Conversations(pairs) => pairs.column_map.prompt.as_deref(),
            Self::Instruct(_) => None,
        }
    }
}
