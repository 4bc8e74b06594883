//! The `dataset` section of a config.

use std::path::PathBuf;

/// Where training text comes from and how a sample is made of a record.
#[derive(Debug, Clone)]
pub enum DatasetConfig {
    /// Conversations, in ShareGPT or OpenAI form.
    Chat(ChatDataset),
    /// One question and one answer, each a column.
    Instruct(InstructDataset),
    /// Instructions in Alpaca's columns and with Alpaca's prompts.
    Alpaca(AlpacaDataset),
    /// Plain text, all of it trained.
    Text(TextDataset),
}

/// Which of a sample's tokens are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masking {
    /// Every token.
    All,
    /// What the assistant says, each time with the stop token.
    Assistant,
    /// The assistant's last answer with its stop token.
    Last,
}

/// How a conversation is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConversationStyle {
    /// `{"role": "user", "content": "..."}`; roles system, user, assistant, tool.
    Openai,
    /// `{"from": "human", "value": "..."}`; system, human, gpt, tool.
    Sharegpt,
}

/// Conversations, rendered with the model's chat template.
#[derive(Debug, Clone)]
pub struct ChatDataset {
    /// `json`, `jsonl` or `parquet`, where the files' names do not tell; or a file or folder, in place of `data_files`.
    pub source: Option<String>,
    /// A file, several files or a folder, relative to the working directory.
    pub data_files: Vec<PathBuf>,
    /// Which part to take: `train`, `train[:10%]`, `train[200:]` …
    pub split: String,
    /// The column that holds the conversation.
    pub conversation_column: String,
    /// `openai` (role, content) or `sharegpt` (from, value).
    pub conversation_style: ConversationStyle,
    /// The key of a message's role, where it is not the style's own.
    pub role_key: Option<String>,
    /// The key of a message's text, where it is not the style's own.
    pub content_key: Option<String>,
    /// A system prompt for every conversation, in place of its own.
    pub new_system_prompt: Option<String>,
    /// Which tokens are trained: `all`, `assistant` (the default) or `last`.
    pub masking_strategy: Option<Masking>,
    /// The older way to say it: true is `masking_strategy: all`, false is `assistant`.
    pub train_on_input: Option<bool>,
    /// Put several samples into one row of up to `max_seq_len` tokens. Attention stays inside each sample.
    pub packed: bool,
}

/// A question and an answer. With a chat template they are a user's and the assistant's message;
/// without one, the prompt and the answer stand one after the other and the end-of-text token closes them.
#[derive(Debug, Clone)]
pub struct InstructDataset {
    /// `json`, `jsonl` or `parquet`, where the files' names do not tell; or a file or folder, in place of `data_files`.
    pub source: Option<String>,
    /// A file, several files or a folder, relative to the working directory.
    pub data_files: Vec<PathBuf>,
    /// Which part to take: `train`, `train[:10%]`, `train[200:]` …
    pub split: String,
    /// The names of the columns `input` and `output`, where they are others.
    pub column_map: Option<InstructColumns>,
    /// The text around a sample, with `{input}` and `{output}` in it. What follows `{output}` is part of the answer.
    pub prompt_template: Option<String>,
    /// A system prompt for every sample.
    pub new_system_prompt: Option<String>,
    /// Render with the model's chat template. By default, if it has one.
    pub apply_chat_template: Option<bool>,
    /// Which tokens are trained: `all`, `assistant` (the default) or `last`.
    pub masking_strategy: Option<Masking>,
    /// The older way to say it: true is `masking_strategy: all`, false is `assistant`.
    pub train_on_input: Option<bool>,
    /// Put several samples into one row of up to `max_seq_len` tokens. Attention stays inside each sample.
    pub packed: bool,
}

/// The columns of an instruct dataset.
#[derive(Debug, Clone)]
pub struct InstructColumns {
    /// The column with the question.
    pub input: String,
    /// The column with the answer.
    pub output: String,
}

/// Alpaca's three columns: an instruction, an input that may be empty, and an output.
#[derive(Debug, Clone)]
pub struct AlpacaDataset {
    /// `json`, `jsonl` or `parquet`, where the files' names do not tell; or a file or folder, in place of `data_files`.
    pub source: Option<String>,
    /// A file, several files or a folder, relative to the working directory.
    pub data_files: Vec<PathBuf>,
    /// Which part to take: `train`, `train[:10%]`, `train[200:]` …
    pub split: String,
    /// The names of the columns `instruction`, `input` and `output`, where they are others.
    pub column_map: Option<AlpacaColumns>,
    /// Render with the model's chat template. By default, if it has one.
    pub apply_chat_template: Option<bool>,
    /// Which tokens are trained: `all` (the default), `assistant` or `last`.
    pub masking_strategy: Option<Masking>,
    /// The older way to say it: true is `masking_strategy: all`, false is `assistant`.
    pub train_on_input: Option<bool>,
    /// Put several samples into one row of up to `max_seq_len` tokens. Attention stays inside each sample.
    pub packed: bool,
}

/// The columns of an Alpaca dataset.
#[derive(Debug, Clone)]
pub struct AlpacaColumns {
    /// The column with the instruction.
    pub instruction: String,
    /// The column with the input, which a record may lack.
    pub input: String,
    /// The column with the answer.
    pub output: String,
}

/// Plain text, for continued pretraining.
#[derive(Debug, Clone)]
pub struct TextDataset {
    /// `json`, `jsonl` or `parquet`, where the files' names do not tell; or a file or folder, in place of `data_files`.
    pub source: Option<String>,
    /// A file, several files or a folder, relative to the working directory.
    pub data_files: Vec<PathBuf>,
    /// Which part to take: `train`, `train[:10%]`, `train[200:]` …
    pub split: String,
    /// The column with the text.
    pub column: String,
    /// Close each text with the end-of-text token.
    pub add_eos: bool,
    /// Put several samples into one row of up to `max_seq_len` tokens. Attention stays inside each sample.
    pub packed: bool,
}

impl DatasetConfig {
    pub(super) fn packed(&self) -> bool {
        match self {
            Self::Chat(c) => c.packed,
            Self::Instruct(c) => c.packed,
            Self::Alpaca(c) => c.packed,
            Self::Text(c) => c.packed,
        }
    }

    pub(super) fn split(&self) -> &str {
        match self {
            Self::Chat(c) => &c.split,
            Self::Instruct(c) => &c.split,
            Self::Alpaca(c) => &c.split,
            Self::Text(c) => &c.split,
        }
    }

    pub(super) fn files(&self) -> (Option<&str>, &[PathBuf]) {
        let (source, files) = match self {
            Self::Chat(c) => (&c.source, &c.data_files),
            Self::Instruct(c) => (&c.source, &c.data_files),
            Self::Alpaca(c) => (&c.source, &c.data_files),
            Self::Text(c) => (&c.source, &c.data_files),
        };
        (source.as_deref(), files)
    }

    /// A column without which a record is none.
    pub(super) fn first_column(&self) -> &str {
        match self {
            Self::Chat(c) => &c.conversation_column,
            Self::Instruct(c) => c.column_map.as_ref().map_or("input", |m| &m.input),
            Self::Alpaca(c) => c
                .column_map
                .as_ref()
                .map_or("instruction", |m| &m.instruction),
            Self::Text(c) => &c.column,
        }
    }

    /// The kind and the first file, for messages.
    pub(super) fn name(&self) -> String {
        let kind = match self {
            Self::Chat(_) => "chat",
            Self::Instruct(_) => "instruct",
            Self::Alpaca(_) => "alpaca",
            Self::Text(_) => "text",
        };
        let (source, files) = self.files();
        match files {
            [] => format!("{kind} dataset {}", source.unwrap_or_default()),
            [one] => format!("{kind} dataset {}", one.display()),
            [first, ..] => format!("{kind} dataset {} …", first.display()),
        }
    }
}
