//! The `dataset` section of a config.

use super::conversation::SYSTEM_COLUMN;
use super::files::Files;
use super::pack::Rows;
use super::source::Columns;
use super::{alpaca, beside, trained};
use crate::config::Config;

/// Where training text comes from and how a sample is made of a record.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub enum DatasetConfig {
    /// Conversations, in ShareGPT or OpenAI form.
    #[config(name = "chat", alias = "torchtune.datasets.chat_dataset")]
    Chat(ChatDataset),
    /// One question and one answer, each a column.
    #[config(name = "instruct", alias = "torchtune.datasets.instruct_dataset")]
    Instruct(InstructDataset),
    /// Instructions in Alpaca's columns and with Alpaca's prompts.
    #[config(
        name = "alpaca",
        alias = "torchtune.datasets.alpaca_dataset",
        alias = "torchtune.datasets.alpaca_cleaned_dataset"
    )]
    Alpaca(AlpacaDataset),
    /// Plain text, all of it trained.
    #[config(name = "text", alias = "torchtune.datasets.text_completion_dataset")]
    Text(TextDataset),
}

/// Which of a sample's tokens are trained, said in the new way or the old.
#[derive(Debug, Clone, Default, Config)]
#[config(crate = crate::config)]
pub struct Mask {
    /// Which tokens are trained. By default `assistant`; for `alpaca`, as in torchtune, `all`.
    pub masking_strategy: Option<Masking>,
    /// The older way to say it: true is `masking_strategy: all`, false is `assistant`.
    pub train_on_input: Option<bool>,
}

/// Which of a sample's tokens are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
#[config(crate = crate::config)]
pub enum Masking {
    /// Every token.
    #[config(name = "all", alias = "train_on_all")]
    All,
    /// What the assistant says, each time with the stop token.
    #[config(name = "assistant", alias = "train_on_assistant")]
    Assistant,
    /// The assistant's last answer with its stop token.
    #[config(name = "last", alias = "train_on_last")]
    Last,
}

/// How a conversation is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
#[config(crate = crate::config)]
pub enum ConversationStyle {
    /// `{"role": "user", "content": "..."}`; roles system, user, assistant, tool.
    #[config(name = "openai")]
    Openai,
    /// `{"from": "human", "value": "..."}`; system, human, gpt, tool.
    #[config(name = "sharegpt")]
    Sharegpt,
}

/// Conversations, rendered with the model's chat template.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct ChatDataset {
    /// Where the text is.
    #[config(flatten)]
    pub files: Files,
    /// The column that holds the conversation.
    #[config(default = "messages")]
    pub conversation_column: String,
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
    /// Whether and how samples share rows.
    #[config(flatten)]
    pub rows: Rows,
}

/// A question and an answer. With a chat template they are a user's and the assistant's message;
/// without one, the prompt and the answer stand one after the other and the end-of-text token closes them.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct InstructDataset {
    /// Where the text is.
    #[config(flatten)]
    pub files: Files,
    /// The names of the columns `input` and `output`, where they are others.
    #[config(default)]
    pub column_map: InstructColumns,
    /// The text around a sample, with `{input}` and `{output}` in it. What follows `{output}` is part of the answer.
    pub prompt_template: Option<String>,
    /// A system prompt for every sample.
    pub new_system_prompt: Option<String>,
    /// Render with the model's chat template. By default, if it has one.
    pub apply_chat_template: Option<bool>,
    /// What is trained of it.
    #[config(flatten)]
    pub mask: Mask,
    /// Whether and how samples share rows.
    #[config(flatten)]
    pub rows: Rows,
}

/// The columns of an instruct dataset.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct InstructColumns {
    /// The column with the question.
    #[config(default = "input")]
    pub input: String,
    /// The column with the answer.
    #[config(default = "output")]
    pub output: String,
}

/// Alpaca's three columns: an instruction, an input that may be empty, and an output.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct AlpacaDataset {
    /// Where the text is.
    #[config(flatten)]
    pub files: Files,
    /// The names of the columns `instruction`, `input` and `output`, where they are others.
    #[config(default)]
    pub column_map: AlpacaColumns,
    /// Render with the model's chat template. By default, if it has one.
    pub apply_chat_template: Option<bool>,
    /// What is trained of it.
    #[config(flatten)]
    pub mask: Mask,
    /// Whether and how samples share rows.
    #[config(flatten)]
    pub rows: Rows,
}

/// The columns of an Alpaca dataset.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct AlpacaColumns {
    /// The column with the instruction.
    #[config(default = "instruction")]
    pub instruction: String,
    /// The column with the input, which a record may lack.
    #[config(default = "input")]
    pub input: String,
    /// The column with the answer.
    #[config(default = "output")]
    pub output: String,
}

/// Plain text, for continued pretraining.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct TextDataset {
    /// Where the text is.
    #[config(flatten)]
    pub files: Files,
    /// The column with the text.
    #[config(default = "text")]
    pub column: String,
    /// Close each text with the end-of-text token.
    #[config(default = true)]
    pub add_eos: bool,
    /// Whether and how samples share rows.
    #[config(flatten)]
    pub rows: Rows,
    /// Where rows are `packed`, let a text that does not fit into one go on in the next, and cut off nothing.
    #[config(default = false)]
    pub split_across_pack: bool,
}

impl ChatDataset {
    /// Conversations in OpenAI's form, all else as it is where a config says nothing.
    pub(super) fn openai(files: Files) -> Self {
        Self {
            files,
            conversation_column: "messages".into(),
            conversation_style: ConversationStyle::Openai,
            role_key: None,
            content_key: None,
            new_system_prompt: None,
            mask: Mask::default(),
            rows: Rows::default(),
        }
    }
}

impl DatasetConfig {
    pub(super) fn rows(&self) -> Rows {
        match self {
            Self::Chat(c) => c.rows,
            Self::Instruct(c) => c.rows,
            Self::Alpaca(c) => c.rows,
            Self::Text(c) => c.rows,
        }
    }

    /// Whether a sample that does not fit into a row goes on in the next.
    pub(super) fn splits(&self) -> bool {
        matches!(self, Self::Text(TextDataset { split_across_pack: true, rows: Rows { packed: true, .. }, .. }))
    }

    /// Whether a sample is to end with a stop token that is trained.
    pub(super) fn ends_samples(&self) -> bool {
        !matches!(self, Self::Text(TextDataset { add_eos: false, .. }))
    }

    pub(super) fn files(&self) -> &Files {
        match self {
            Self::Chat(c) => &c.files,
            Self::Instruct(c) => &c.files,
            Self::Alpaca(c) => &c.files,
            Self::Text(c) => &c.files,
        }
    }

    /// The columns that the config names.
    pub(super) fn columns(&self) -> Vec<&str> {
        match self {
            Self::Chat(c) => vec![&c.conversation_column],
            Self::Instruct(c) => vec![&c.column_map.input, &c.column_map.output],
            Self::Alpaca(c) => vec![&c.column_map.instruction, &c.column_map.input, &c.column_map.output],
            Self::Text(c) => vec![&c.column],
        }
    }

    /// The columns that a sample may be made of.
    pub(super) fn all_columns(&self) -> Columns<'_> {
        let first = match self {
            Self::Chat(c) => &c.conversation_column,
            Self::Instruct(c) => &c.column_map.input,
            Self::Alpaca(c) => &c.column_map.instruction,
            Self::Text(c) => &c.column,
        };
        let beside: &[&str] = match self {
            Self::Chat(_) => &beside::COLUMNS,
            Self::Alpaca(_) => &[alpaca::HISTORY],
            Self::Instruct(_) | Self::Text(_) => &[],
        };
        let read = self.columns().into_iter().chain(beside.iter().copied());
        Columns { first, read: read.chain(trained::KEYS).chain([SYSTEM_COLUMN]).collect() }
    }

    /// The kind, unless it is called otherwise, and the first file, for messages.
    pub(super) fn name_as(&self, kind: Option<&str>) -> String {
        let kind = kind.unwrap_or(match self {
            Self::Chat(_) => "chat",
            Self::Instruct(_) => "instruct",
            Self::Alpaca(_) => "alpaca",
            Self::Text(_) => "text",
        });
        let files = self.files();
        match files.data_files.as_slice() {
            [] => format!("{kind} dataset {}", files.source.as_deref().unwrap_or_default()),
            [one] => format!("{kind} dataset {}", one.display()),
            [first, ..] => format!("{kind} dataset {} …", first.display()),
        }
    }
}
