//! Text to token ids and back, and the chat templates that make text of conversations.

use std::collections::BTreeMap;

/// The files beside a checkpoint's weights that belong to its tokenizer, by file name:
/// `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, `chat_template.jinja` …
///
/// They are read from the base checkpoint (or made from a GGUF file's metadata) and carried,
/// byte for byte, into every checkpoint that is written.
#[derive(Debug, Clone, Default)]
pub struct TokenizerFiles {
    /// File name to content.
    pub files: BTreeMap<String, Vec<u8>>,
}
