//! The `tokenizer` key.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tune_config::{Config, files};

use super::{
    Conversation, Forms, Limits, Message, NewTokens, TEMPLATE, TOKENIZER, Tokenizer, TokenizerFiles, unrendered,
};
use crate::checkpoint::{Checkpoint, peft};
use crate::{Error, Result};

/// The longest file that is read whole.
const LARGEST: u64 = 256 << 20;

/// The tokenizer, which is the checkpoint's own unless something else is said.
#[derive(Debug, Clone, Default, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct TokenizerConfig {
    /// A `tokenizer.json`, under any name, in place of the checkpoint's. Tokenizer files of other kinds are not read: the checkpoint's is taken.
    pub path: Option<PathBuf>,
    /// The most tokens of a sample: longer ones are cut off, and packed rows are filled up to it.
    #[config(range = 2..)]
    pub max_seq_len: Option<usize>,
    /// A file with a chat template (Jinja) in place of the checkpoint's.
    pub chat_template: Option<PathBuf>,
}

impl TokenizerConfig {
    /// The tokenizer for a checkpoint, and the files to carry into what is saved.
    ///
    /// # Errors
    /// A file that is missing or broken.
    pub fn open(&self, checkpoint: &Checkpoint) -> Result<(Tokenizer, TokenizerFiles)> {
        self.open_with(checkpoint, None)
    }

    /// The same for a checkpoint with the adapter in a folder, whose own tokenizer and chat template it was trained with.
    ///
    /// # Errors
    /// A file that is missing or broken.
    pub fn open_with(&self, checkpoint: &Checkpoint, adapter: Option<&Path>) -> Result<(Tokenizer, TokenizerFiles)> {
        self.open_adding(checkpoint, adapter, &[]).map(|(tokenizer, files, _)| (tokenizer, files))
    }

    /// The same with more tokens, for which the model is to have embeddings.
    ///
    /// # Errors
    /// A file that is missing or broken, and as [`TokenizerFiles::add`].
    pub fn open_adding(
        &self,
        checkpoint: &Checkpoint,
        adapter: Option<&Path>,
        new: &[String],
    ) -> Result<(Tokenizer, TokenizerFiles, NewTokens)> {
        let of_adapter = adapter.map(peft::tokenizer_files).transpose()?.unwrap_or_default();
        let theirs: BTreeSet<String> = of_adapter.files.keys().cloned().collect();
        let mut all = match of_adapter.files.contains_key(TOKENIZER) {
            true => of_adapter,
            // Only what is there is another: a chat template, for one.
            false => {
                let mut all = checkpoint.tokenizer_files()?;
                all.files.extend(of_adapter.files);
                all
            }
        };
        for (name, path) in self.given() {
            all.files.insert(name.into(), files::read(path, LARGEST).map_err(Error::io("read", path))?);
        }
        let generation = checkpoint.generation_config();
        let limits = Limits::of_config(checkpoint.config());
        let found = all.add(new).map_err(|e| self.place(e, checkpoint.path()))?;
        let grown = |tokenizer: &Tokenizer| match found.added.is_empty() {
            true => limits,
            false => Limits { embeddings: limits.embeddings.max(tokenizer.vocab_size()), ..limits },
        };
        let tokenizer = Tokenizer::from_files(&all)
            .map(|tokenizer| tokenizer.clone().for_model(grown(&tokenizer)))
            .and_then(|tokenizer| tokenizer.with_stop_tokens_of(generation.as_ref(), checkpoint.config()))
            .map_err(|e| match (&e, adapter) {
                (Error::File { path, .. }, Some(dir)) if path.to_str().is_some_and(|name| theirs.contains(name)) => {
                    self.place(e, dir)
                }
                _ => self.place(e, checkpoint.path()),
            })?;
        Ok((tokenizer, all, found))
    }

    /// The files to take in place of the checkpoint's.
    fn given(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let tokenizer = self.path.as_deref().filter(|p| is_read(p));
        let template = self.chat_template.as_deref();
        tokenizer.map(|path| (TOKENIZER, path)).into_iter().chain(template.map(|path| (TEMPLATE, path)))
    }

    /// The error about one of a tokenizer's files, with the place that the file has on the disk: a GGUF file
    /// holds all of them.
    fn place(&self, error: Error, checkpoint: &Path) -> Error {
        let Error::File { path: name, message } = error else { return error };
        let given = self.given().find(|(other, _)| Path::new(other) == name);
        let path = match given {
            Some((_, path)) => path.to_path_buf(),
            None if checkpoint.is_dir() => checkpoint.join(name),
            None => return Error::file(checkpoint, format!("its {}: {message}", name.display())),
        };
        Error::file(path, message)
    }

    /// What deserves the user's attention without being an error.
    pub fn warning(&self) -> Option<String> {
        let path = self.path.as_deref().filter(|p| !is_read(p))?;
        Some(format!(
            "tokenizer.path: {} is not read, the checkpoint's own tokenizer.json is taken in its place",
            path.display()
        ))
    }
}

/// Whether a tokenizer file is of the kind that is read: all but `vocab.json` and SentencePiece's and tiktoken's.
fn is_read(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "json") && path.file_name().is_some_and(|n| n != "vocab.json")
}

impl Tokenizer {
    /// The ids of a prompt as the model meets it: in its chat template up to the assistant's header
    /// if `chat` (by default, if it has one), else as plain text after the beginning-of-text token.
    ///
    /// # Errors
    /// A template that is wanted and not there, or that fails; a prompt that the model cannot answer.
    pub fn prompt(&self, text: &str, system: Option<&str>, chat: Option<bool>) -> Result<Vec<u32>> {
        let is_chat = match (self.chat_template(), chat) {
            (_, Some(false)) | (None, None) => false,
            (Some(_), _) => true,
            (None, Some(true)) => {
                return Err(Error::setup("apply_chat_template: this model has no chat template"));
            }
        };
        if !is_chat {
            let begin = if self.begins_with_bos() { self.bos() } else { None };
            let text = system.map_or_else(|| text.to_owned(), |s| format!("{s}\n{text}"));
            let ids: Vec<u32> = begin.into_iter().chain(self.encode(&text)?).collect();
            return self.check_prompt(&ids).map(|()| ids);
        }
        let message = |role: &str, text: &str| -> Message {
            [("role", role), ("content", text)].into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect()
        };
        let messages = system.map(|s| message("system", s)).into_iter().chain([message("user", text)]);
        self.prompt_of(Conversation::new(messages.collect()))
    }

    /// The ids of a conversation as the model meets it, up to the header of the answer that it is to give. Contents that
    /// are texts become what the chat template takes, be it parts.
    ///
    /// # Errors
    /// There is no chat template, or it fails or leaves something out; a conversation that the model cannot answer.
    pub fn prompt_of(&self, mut conversation: Conversation) -> Result<Vec<u32>> {
        let template =
            self.chat_template().ok_or_else(|| Error::setup("this model has no chat template for a conversation"))?;
        let forms = Forms::of(template);
        for message in &mut conversation.messages {
            let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
            let content = message.get("content").and_then(Value::as_str).map(|text| forms.choose(role).content(text));
            if let Some(content) = content {
                message.insert("content".to_owned(), content);
            }
        }
        let prompt = template.render(&conversation, true)?;
        unrendered::check(template, &conversation, true)?;
        let ids = self.encode(&prompt)?;
        self.check_prompt(&ids).map(|()| ids)
    }
}
