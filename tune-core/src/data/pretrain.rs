//! The `dataset` section of recipes that train on running text.

use super::config::{ChatDataset, DatasetConfig, TextDataset};
use super::files::Files;
use super::pack::{Fit, Joins, Rows};
use super::tokens::TokensDataset;
use crate::config::Config;

/// Where the text comes from that a model is made of.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub enum PretrainData {
    /// Documents, one after the other in rows of `max_seq_len` tokens. One that does not fit into its row goes on in the next.
    #[config(name = "text", alias = "torchtune.datasets.text_completion_dataset")]
    Text(DocumentsDataset),
    /// Files of tokens, which `tune tokenize` makes of documents once.
    #[config(name = "tokens")]
    Tokens(TokensDataset),
    /// Conversations, in ShareGPT or OpenAI form: each is a sample.
    #[config(name = "chat", alias = "torchtune.datasets.chat_dataset")]
    Chat(ChatDataset),
}

/// Documents, all of which is trained: no token of them is lost.
#[derive(Debug, Clone, Config)]
#[config(
    crate = crate::config,
    ignored(packed = "rows are always filled", split_across_pack = "a document always goes on in the next row")
)]
pub struct DocumentsDataset {
    /// Where the text is.
    #[config(flatten)]
    pub files: Files,
    /// The column with the text.
    #[config(default = "text")]
    pub column: String,
    /// Close each document with the end-of-text token.
    #[config(default = true)]
    pub add_eos: bool,
    /// Let attention reach over the borders of documents that share a row, as GPT-2 does; the end of a document then also predicts the beginning of the next. If false, attention stays inside each document.
    #[config(default = false)]
    pub attend_across: bool,
}

impl PretrainData {
    /// The dataset whose samples are the documents or conversations, if they are still to be tokenized, and how they share rows.
    pub(super) fn parts(&self) -> (Option<DatasetConfig>, Joins) {
        match self {
            Self::Text(DocumentsDataset { files, column, add_eos, attend_across }) => {
                let (files, column) = (files.clone(), column.clone());
                let rows = Rows { packed: true, packing: Fit::Greedy };
                let text = TextDataset { files, column, add_eos: *add_eos, rows, split_across_pack: false };
                (Some(DatasetConfig::Text(text)), joined(*attend_across))
            }
            Self::Tokens(tokens) => (None, joined(tokens.attend_across)),
            Self::Chat(chat) => (Some(DatasetConfig::Chat(chat.clone())), Joins::Whole),
        }
    }
}

fn joined(attend_across: bool) -> Joins {
    if attend_across { Joins::Across } else { Joins::Split }
}
